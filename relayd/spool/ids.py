"""Queue ids: unique over all writers of a spool, rising within each, in time order.

An id is a tick of time shifted left by 12. Of the low bits six are the writer's lane (0..63)
and six are 0, left to the message's deliveries: delivery n of message m is m + n for n < 64;
further ones get ids of their own.

A tick is a microsecond since 1970 until 2027 begins, and 8 microseconds from then on: so ids fit
SQLite's 63 bits until 2141, not 2041, and go on rising over the change.

Two live writers never share a lane: `claim` locks it. A clock that goes back does not make
ids go back: they go on from the last one, and from the newest in the spool after a restart.

Source: fcntl(2), open file description locks.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from relayd.clock import Clock, micros
from relayd.errors import SpoolUnavailable
from relayd.spool.model import QueueId

LANES: Final = 64
DELIVERIES: Final = 64
"""How many deliveries share their message's id."""
_SHIFT: Final = 12
_LANE_SHIFT: Final = 6
_COARSE_FROM: Final = 1_798_761_600_000_000
"""2027-01-01T00:00Z in microseconds; never to be moved once it has passed."""
_COARSE: Final = 8
_LATEST: Final = (1 << (63 - _SHIFT)) - (1 << 40)
"""The tick past which a clock is not believed: ids must fit 63 bits."""


class Ids:
    """One writer's ids. newest: the highest id known to exist, 0 if none."""

    __slots__ = ("_clock", "_lane_bits", "_last")

    def __init__(self, lane: int, clock: Clock, *, newest: int = 0) -> None:
        self._clock = clock
        self._lane_bits = (lane % LANES) << _LANE_SHIFT
        self._last = newest >> _SHIFT

    def next(self) -> QueueId:
        """Return an id higher than all before."""
        now = _tick(micros(self._clock.utcnow()))
        self._last = now if self._last < now < _LATEST else self._last + 1
        return QueueId(self._last << _SHIFT | self._lane_bits)


def accepted_micros(queue_id: int) -> int:
    """Return when the id was made, microseconds since 1970."""
    tick = queue_id >> _SHIFT
    return tick if tick < _COARSE_FROM else _COARSE_FROM + (tick - _COARSE_FROM) * _COARSE


def _tick(moment: int) -> int:
    """Return the tick of a moment in microseconds since 1970."""
    if moment < _COARSE_FROM:
        return moment
    return _COARSE_FROM + (moment - _COARSE_FROM) // _COARSE


def claim(path: str, wanted: int) -> tuple[int, int]:
    """Lock a lane, `wanted` (taken modulo 64) if nobody has it, else the next free one.

    path:    lock file; created.
    returns: (lane, descriptor); the lane is ours until the descriptor is closed or we die.
    raises:  SpoolUnavailable - 64 writers are alive; OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for step in range(LANES):
        lane = (wanted + step) % LANES
        if _locked(descriptor, lane):
            return lane, descriptor
    os.close(descriptor)
    raise SpoolUnavailable(f"{LANES} processes have this spool open")


def _locked(descriptor: int, lane: int) -> bool:
    # An open-file lock belongs to the descriptor: two doors in one process differ too.
    lock = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, lane, 1, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
    except BlockingIOError:
        return False
    return True
