"""Files that are replaced whole: nobody ever reads half of one, nor finds none.

# DURABILITY: scratch file written and flushed, then renamed over the old one.
"""

from __future__ import annotations

import contextlib
import os
import tempfile


def replace(path: str, octets: bytes, *, mode: int) -> None:
    """Put `octets` where `path` is, or will be, with those permissions. raises: OSError."""
    folder, name = os.path.split(path)
    descriptor, scratch = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(octets)
            file.flush()
            os.fsync(descriptor)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(scratch)
        raise
