"""The shared board: a row of figures for each child, in memory that all of them map.

    magic and version | of each row: heartbeat, whether it accepts, connections
                      | of each device: connections in each row

A child writes its own row and reads all; the master clears a dead child's. No lock: two
workers may pass a limit at the same moment and overshoot by a few, and nobody ever waits.
It is a memfd, not an anonymous map, so that it outlives the master's re-exec.

A device is one of 1024 buckets by CRC-32 of its name: two that meet share a limit. "" is a
peer not (yet) known; strangers together may fill at most half of all connections, so that
they cannot shut out known devices (nor the few per-device ones a fleet that logs in).

Source: memfd_create(2), mmap(2).
"""

from __future__ import annotations

import mmap
import os
import zlib
from typing import Final

from relayd.clock import SYSTEM, Clock

ROWS: Final = 128
BUCKETS: Final = 1024
UNKNOWN: Final = ""

_MAGIC: Final = 0x72656C6179640002  # "relayd", layout 2
_UNKNOWN_BUCKET: Final = BUCKETS  # one more than names hash to
_HEAD_BYTES: Final = 64
_BEATS_BYTES: Final = ROWS * 8
_COUNTS_BYTES: Final = ROWS * 4
SIZE_BYTES: Final = _HEAD_BYTES + _BEATS_BYTES + ROWS + _COUNTS_BYTES * (1 + BUCKETS + 1)


class Board:
    """The whole board; owned by the master, inherited by its children.

    fd: an older board's memfd, taken over after a re-exec; None makes a new one.
    """

    def __init__(self, fd: int | None = None, *, clock: Clock = SYSTEM) -> None:
        self.fd = _new() if fd is None else fd
        self._clock = clock
        self._map = mmap.mmap(self.fd, SIZE_BYTES)
        view = memoryview(self._map)
        self._head = view[:8].cast("Q")
        beats_end = _HEAD_BYTES + _BEATS_BYTES
        accepts_end = beats_end + ROWS
        counts_end = accepts_end + _COUNTS_BYTES
        self._beats = view[_HEAD_BYTES:beats_end].cast("Q")
        self._accepts = view[beats_end:accepts_end]
        self._connections = view[accepts_end:counts_end].cast("I")
        self._devices = view[counts_end:SIZE_BYTES].cast("I")
        if fd is None:
            self._head[0] = _MAGIC

    @classmethod
    def adopt(cls, fd: int, *, clock: Clock = SYSTEM) -> Board | None:
        """Return the board behind `fd`; None when another version laid it out."""
        if os.fstat(fd).st_size != SIZE_BYTES:
            return None
        board = cls(fd, clock=clock)
        return board if board._head[0] == _MAGIC else None

    def clear(self, row: int) -> None:
        """Forget what a dead child counted; its row may be given away again."""
        self._beats[row] = 0
        self._accepts[row] = False
        self._connections[row] = 0
        for bucket in range(BUCKETS + 1):
            self._devices[bucket * ROWS + row] = 0

    def beat_at(self, row: int) -> float:
        """Return when the row's owner last beat, monotonic seconds; 0.0 before the first."""
        return self._beats[row] / 1e9

    def connections(self, row: int | None = None) -> int:
        """Return the connections of one row, or of all."""
        return sum(self._connections) if row is None else self._connections[row]

    def row(self, number: int, *, max_connections: int, max_per_device: int) -> Row:
        """Return the row a child will own."""
        return Row(self, number, max_connections, max_per_device)

    def beat(self, row: int) -> None:
        """Write the time into a row."""
        self._beats[row] = int(self._clock.monotonic() * 1e9)

    def accept(self, row: int, *, does: bool) -> None:
        """Write down whether a row's owner accepts connections."""
        self._accepts[row] = does

    def fewest(self) -> int | None:
        """Return the fewest connections of a row that accepts; None: none does."""
        rows = zip(self._accepts, self._connections, strict=True)
        return min((count for does, count in rows if does), default=None)

    def add(self, row: int, bucket: int, amount: int) -> None:
        """Add to a row's count of all connections and of one bucket; never below zero."""
        self._connections[row] = max(0, self._connections[row] + amount)
        self._add_device(row, bucket, amount)

    def shift(self, row: int, old: int, new: int) -> None:
        """Move one connection of a row from a bucket to another."""
        self._add_device(row, old, -1)
        self._add_device(row, new, 1)

    def device_connections(self, bucket: int) -> int:
        """Return all rows' connections in one bucket."""
        return sum(self._devices[bucket * ROWS : (bucket + 1) * ROWS])

    def _add_device(self, row: int, bucket: int, amount: int) -> None:
        at = bucket * ROWS + row
        self._devices[at] = max(0, self._devices[at] + amount)


class Row:
    """What a child is handed as its `Pulse` (child.py). Limits of 0 are no limits."""

    def __init__(
        self, board: Board, number: int, max_connections: int, max_per_device: int
    ) -> None:
        self._board = board
        self._number = number
        self._max_connections = max_connections
        self._max_per_device = max_per_device
        self._max_unknown = max(max_per_device, (max_connections + 1) // 2) if max_per_device else 0

    def beat(self) -> None:
        """Tell the master that the hub is alive; call it from the hub every second."""
        self._board.beat(self._number)

    def accept(self, *, does: bool) -> None:
        """Tell the other rows whether this one accepts connections; at first it does not."""
        self._board.accept(self._number, does=does)

    def is_ahead(self) -> bool:
        """Tell whether another that accepts has far fewer connections, and should have the next.

        Far: this row has more than half as many again, and one.
        """
        fewest = self._board.fewest()
        return fewest is not None and self._board.connections(self._number) > fewest * 1.5 + 1

    def others(self) -> int:
        """Return the connections of all other rows."""
        return self._board.connections() - self._board.connections(self._number)

    def enter(self, device: str) -> bool:
        """Count one connection in for `device`; False when a limit is reached, none counted."""
        bucket = bucket_of(device)
        if self.is_full():
            return False
        if not self._has_room(bucket):
            return False
        self._board.add(self._number, bucket, 1)
        return True

    def is_full(self) -> bool:
        """Tell whether the limit for all connections together is reached."""
        return 0 < self._max_connections <= self._board.connections()

    def leave(self, device: str) -> None:
        """Count one connection out."""
        self._board.add(self._number, bucket_of(device), -1)

    def move(self, old: str, new: str) -> bool:
        """Recount a connection whose device became known; False when the limit is reached."""
        before, after = bucket_of(old), bucket_of(new)
        if before == after:
            return True
        if not self._has_room(after):
            return False
        self._board.shift(self._number, before, after)
        return True

    def _has_room(self, bucket: int) -> bool:
        limit = self._max_unknown if bucket == _UNKNOWN_BUCKET else self._max_per_device
        return not limit or self._board.device_connections(bucket) < limit


def bucket_of(device: str) -> int:
    """Return a device's bucket, 0..1023; 1024 for the unknown."""
    if device == UNKNOWN:
        return _UNKNOWN_BUCKET
    return zlib.crc32(device.encode("utf-8", "surrogateescape")) % BUCKETS


def _new() -> int:
    fd = os.memfd_create("relayd-board", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE_BYTES)
    return fd
