"""The program as it was when this master started: children import it from memory.

A package manager puts new files in place while the relay runs. A worker forked after that by
the old master would mix two versions: the master's modules of before, everything else of now.
So the byte code of every module is read once, at the start, into a sealed memfd; whatever is
imported later, here or in a child, comes from there. (Kept as objects it was 3.6 MiB of each
process.) New code comes by SIGUSR2 (upgrade.py), which begins with a new reading.

Only relayd itself: a library replaced on disk is taken by the next child that starts, as with
any daemon (`needrestart` tells). The source lines in a traceback are those on disk.

Source: importlib, "Setting up an importer"; PEP 451; memfd_create(2).
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import marshal
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Final, NamedTuple

from relayd.master.checker import sealed

_PACKAGE: Final = "relayd"
_NEVER_HERE: Final = frozenset({"relayd.sandbox", "relayd.cli"})
"""Not imported by any process of the daemon but at the master's own start."""


class Pin(NamedTuple):
    """One module. start, length: of its marshalled code; folder: "" for a plain module."""

    start: int
    length: int
    path: str
    folder: str


class Pinned:
    """A finder and loader for `sys.meta_path`. pins: by the module's full name; fd: the code."""

    def __init__(self, pins: dict[str, Pin], fd: int) -> None:
        self.pins = pins
        self._fd = fd

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002  importlib's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where a module of ours comes from; None for all others."""
        pin = self.pins.get(fullname)
        if pin is None:
            return None
        folders = [pin.folder] if pin.folder else None
        return importlib.util.spec_from_file_location(
            fullname,
            pin.path,
            loader=self,  # type: ignore[arg-type]  # has all that importlib calls
            submodule_search_locations=folders,
        )

    def create_module(self, _spec: importlib.machinery.ModuleSpec) -> None:
        """Leave making the module to importlib."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code of when we started."""
        pin = self.pins[module.__name__]
        code = os.pread(self._fd, pin.length, pin.start)
        exec(marshal.loads(code), module.__dict__)  # noqa: S102, S302  sealed, nobody else's


def pin(package: str = _PACKAGE) -> Pinned:
    """Read the code of every module of `package`, and import from that from now on.

    Those imported already stay as they are. What cannot be read, or compiled, is left to be
    found on disk, or to fail there, when it is wanted.
    """
    root = sys.modules[package].__path__[0]
    found: dict[str, Pin] = {}
    codes = bytearray()
    for name, path, folder in _modules(package, root):
        loader = importlib.machinery.SourceFileLoader(name, path)
        try:
            code = loader.get_code(name)
        except (OSError, SyntaxError, ImportError):
            continue
        octets = marshal.dumps(code)
        found[name] = Pin(len(codes), len(octets), path, folder)
        codes += octets
    pinned = Pinned(found, sealed(codes, name="relayd-code"))
    sys.meta_path.insert(0, pinned)
    return pinned


def _modules(package: str, folder: str) -> Iterator[tuple[str, str, str]]:
    """Yield (name, file, folder of a package or "") of a package and all below it."""
    if package in _NEVER_HERE:
        return
    yield package, os.path.join(folder, "__init__.py"), folder
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        stem, extension = os.path.splitext(name)
        if extension == ".py" and stem not in ("__init__", "__main__"):
            yield f"{package}.{stem}", path, ""
        elif os.path.isfile(os.path.join(path, "__init__.py")):
            yield from _modules(f"{package}.{name}", path)
