"""Process titles: "relayd: master", as ps and top show them.

The setproctitle package imports `logging`, and with it `threading`, which the master must
not have; so its C extension is loaded by itself. Without it the title
stays as it was: nothing depends on one.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

_EXTENSION: Final = "_setproctitle"


def set_title(title: str) -> bool:
    """Name this process; False when the extension is missing."""
    setter = _setter()
    if setter is None:
        return False
    setter(title)
    return True


def _setter() -> Callable[[str], None] | None:
    module = sys.modules.get(_EXTENSION) or sys.modules.get("setproctitle._setproctitle")
    if module is None:
        spec = _find()
        if spec is None or spec.loader is None:
            return None
        try:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except ImportError:
            return None
        sys.modules[_EXTENSION] = module
    return cast("Callable[[str], None] | None", getattr(module, "setproctitle", None))


def _find() -> importlib.machinery.ModuleSpec | None:
    """Return where the extension is: a module of its own (1.3.1) or inside the package."""
    whole = importlib.machinery.PathFinder.find_spec("setproctitle")
    if whole is None:
        return None
    if whole.submodule_search_locations is None:
        return whole if isinstance(whole.loader, importlib.machinery.ExtensionFileLoader) else None
    for folder in whole.submodule_search_locations:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(folder) / f"{_EXTENSION}{suffix}"
            if path.exists():
                loader = importlib.machinery.ExtensionFileLoader(_EXTENSION, str(path))
                return importlib.util.spec_from_file_location(_EXTENSION, str(path), loader=loader)
    return None
