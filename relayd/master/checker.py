"""The configuration is read, and checked, in a forked child that may import everything.

The child calls `entry(path, fd)` (relayd.check:run_checker), which writes one JSON object
into the memfd behind `fd`:

    {"config": {…codec.dumps…} or null, "problems": ["…"], "warnings": ["…"]}

The configuration goes on in a memfd of its own, sealed: what was checked is what runs, and
no child can change it for another.

SECURITY: secrets are in both memfds; they are CLOEXEC and never have a name in a file system.
Source: memfd_create(2), fcntl(2) F_ADD_SEALS.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
from collections.abc import Callable
from typing import Final, cast

from relayd.master import spawn
from relayd.master.frames import Json
from relayd.master.settings import Settings, parse
from relayd.values import frozen

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@frozen
class Loaded:
    """A configuration that was checked. fd: sealed memfd with the whole of it, owned."""

    settings: Settings
    fd: int
    warnings: tuple[str, ...] = ()

    def close(self) -> None:
        """Close the memfd."""
        os.close(self.fd)


@frozen
class Rejected:
    """A configuration that cannot be used, and every reason."""

    problems: tuple[str, ...]


@frozen
class Checker:
    """A check under way in child `pid`."""

    pid: int
    fd: int

    def finish(self, status: int) -> Loaded | Rejected:
        """Read what the child wrote; call it once, with waitpid's status."""
        try:
            octets = read_all(self.fd)
        finally:
            os.close(self.fd)
        if not octets:
            return Rejected((f"the check itself failed ({spawn.how_it_ended(status)})",))
        return _judge(octets)


def start(path: str, entry: str, mine: spawn.Mine = ()) -> Checker:
    """Begin to check the configuration at `path`; `mine` is closed in the child."""
    fd = os.memfd_create("relayd-check", os.MFD_CLOEXEC)

    def run() -> int:
        module, _, name = entry.partition(":")
        function = cast("Callable[[str, int], int]", getattr(importlib.import_module(module), name))
        return function(path, fd) or 0

    return Checker(spawn.fork(run, title="relayd: check", mine=mine), fd)


def run_and_wait(path: str, entry: str, timeout_s: float) -> Loaded | Rejected:
    """Check at start-up, when there is nothing else to do but wait."""
    checker = start(path, entry)
    status = spawn.wait(checker.pid, timeout_s)
    return checker.finish(status)


def sealed(octets: bytes | bytearray, *, name: str = "relayd-config") -> int:
    """Return a memfd that holds `octets` for ever; `name` is what `lsof` shows."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as stream:
        stream.write(octets)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def read_all(fd: int) -> bytes:
    """Return all that a memfd holds, from 0, without moving anybody's position."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _judge(octets: bytes) -> Loaded | Rejected:
    try:
        report = json.loads(octets)
        problems = _texts(report["problems"])
        if problems:
            return Rejected(problems)
        config = json.dumps(report["config"], separators=(",", ":")).encode()
        return Loaded(parse(config), sealed(config), _texts(report.get("warnings", [])))
    except (ValueError, KeyError, TypeError) as error:
        # SECURITY: the octets hold secrets; only the kind of trouble is told.
        return Rejected((f"the check gave no usable answer ({type(error).__name__})",))


def _texts(value: Json) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("a list of texts is missing")
    return tuple(str(each) for each in value)
