"""One writer at a time, in turn: two file locks that SQLite's own lock hides behind.

    take A, take B, drop A, ... write, checkpoint, open or close ..., drop B

Who waits for B holds A, so at most one waits there and the one that just wrote queues up
behind the others: equal shares, where SQLite's busy handler gave one process 2 % of the
commits and others waits of seconds. The kernel drops both when a holder dies.

# DURABILITY: all that may not happen twice at once in a WAL database before SQLite 3.51.3
# (write beside checkpoint: the WAL-reset race) happens inside.

Source: flock(2); sqlite.org/wal.html, "The WAL-Reset Bug".
"""

from __future__ import annotations

import fcntl
import os
from types import TracebackType


class Turnstile:
    """Two lock files, `path`.a and `path`.b; one instance for each thread that enters.

    Waiting has no deadline of its own: it happens in a native thread, and those who wait for
    that thread have theirs. A holder that hangs is killed by the master's heartbeat.
    """

    __slots__ = ("_gate", "_room")

    def __init__(self, path: str) -> None:
        self._gate = _open(path + ".a")
        self._room = _open(path + ".b")

    def __enter__(self) -> None:
        fcntl.flock(self._gate, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX)
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        fcntl.flock(self._room, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the descriptors back."""
        os.close(self._gate)
        os.close(self._room)


def _open(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
