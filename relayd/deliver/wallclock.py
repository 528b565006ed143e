"""Whether the wall clock can be believed.

Tries, expiry and tokens hang on it: a clock of 1970 (no battery) or one that leaps would
expire a whole queue, or send nothing for years. So sending waits while the clock is older
than this program, and for a minute after a leap; nothing expires for an hour after one.
Accepting goes on. Leaps are seen against CLOCK_BOOTTIME, which goes on in suspend, so a
laptop's lid is no leap.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from relayd.clock import Clock

EARLIEST: Final = datetime(2026, 11, 1, tzinfo=UTC)
"""No clock that is right shows an earlier moment; moved forward with each release."""

LEAP_S: Final = 300.0
STEADY_BEFORE_SENDING_S: Final = 60.0
STEADY_BEFORE_EXPIRY_S: Final = 3600.0


class WallClock:
    """Watches one Clock; `look` it up at each turn.

    leaped_s: the last leap, seconds, negative for backwards; 0 if there was none.
    """

    __slots__ = ("_clock", "_leaped_at", "_offset_s", "leaped_s")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_s = self._offset()
        self._leaped_at: float | None = None
        self.leaped_s = 0.0

    def look(self) -> bool:
        """Compare the clocks; return True when the wall clock has just leaped.

        A clock that was plainly wrong before and is set right is no leap.
        """
        offset_s = self._offset()
        leap_s = offset_s - self._offset_s
        self._offset_s = offset_s  # slow drift and NTP's slewing never add up
        if abs(leap_s) < LEAP_S:
            return False
        if (self._clock.utcnow().timestamp() - leap_s) < EARLIEST.timestamp():
            return False
        self.leaped_s = leap_s
        self._leaped_at = self._clock.boottime()
        return True

    def may_send(self) -> bool:
        """Tell whether sending may go on."""
        return self._clock.utcnow() >= EARLIEST and self._steady_for(STEADY_BEFORE_SENDING_S)

    def trouble(self) -> str:
        """Return why sending waits, for people; "" when it need not."""
        if self._clock.utcnow() < EARLIEST:
            now = self._clock.utcnow().isoformat(timespec="seconds")
            return f"the clock of this host shows {now}, which cannot be"
        if not self._steady_for(STEADY_BEFORE_SENDING_S):
            return (
                f"the clock of this host leaped by {round(self.leaped_s)} s less than a minute ago"
            )
        return ""

    def may_expire(self) -> bool:
        """Tell whether a message's age may be believed."""
        return self._clock.utcnow() >= EARLIEST and self._steady_for(STEADY_BEFORE_EXPIRY_S)

    def _steady_for(self, seconds: float) -> bool:
        return self._leaped_at is None or self._clock.boottime() - self._leaped_at >= seconds

    def _offset(self) -> float:
        return self._clock.utcnow().timestamp() - self._clock.boottime()
