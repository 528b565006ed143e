"""Time, in the three kinds relayd tells apart.

    utcnow()     aware UTC; moments that are stored or shown.
    monotonic()  seconds; deadlines and durations inside one process.
    boottime()   seconds since boot, suspend included; leases, compared between processes
                 of one boot (`boot_id` says which).

Stored moments are integers, microseconds since 1970-01-01 UTC (`micros`, `from_micros`).
Nothing else in relayd calls the operating system's clock, so tests can stand here.

Source: clock_gettime(2), proc_sys_kernel_random(5).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, Protocol

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_LEAST_MICROS: Final = (datetime(1900, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND
_MOST_MICROS: Final = (datetime(9000, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND


class Clock(Protocol):
    """What a room that needs the time is given."""

    def utcnow(self) -> datetime:
        """Return the wall clock, aware UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds from some start that never go back."""
        ...

    def boottime(self) -> float:
        """Return seconds since boot, suspend included."""
        ...


class SystemClock:
    """The kernel's clocks, asked without a Python function between: forty times for a message."""

    utcnow = staticmethod(partial(datetime.now, UTC))
    monotonic = staticmethod(time.monotonic)
    boottime = staticmethod(partial(time.clock_gettime, time.CLOCK_BOOTTIME))


@dataclass(slots=True)
class FakeClock:
    """A clock that stands still until told; for tests and the sandbox's time factor."""

    now: datetime = field(default_factory=lambda: datetime(2026, 11, 20, 10, 0, tzinfo=UTC))
    elapsed_s: float = 1000.0

    def utcnow(self) -> datetime:
        """Return the wall clock as set."""
        return self.now

    def monotonic(self) -> float:
        """Return the seconds gone by."""
        return self.elapsed_s

    def boottime(self) -> float:
        """Return the same seconds: a fake never sleeps."""
        return self.elapsed_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` go by on every clock."""
        self.now += timedelta(seconds=seconds)
        self.elapsed_s += seconds


SYSTEM: Final[Clock] = SystemClock()


def micros(moment: datetime) -> int:
    """Return an aware moment as microseconds since 1970, the stored form."""
    return (moment - _EPOCH) // _MICROSECOND


def from_micros(value: int) -> datetime:
    """Return the aware UTC moment of a stored value, within the years 1900 to 9000.

    A damaged one must not stop what is read along with it.
    """
    return _EPOCH + min(max(value, _LEAST_MICROS), _MOST_MICROS) * _MICROSECOND


def boot_id() -> str:
    """Return this boot's identity, 36 characters; "" where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
