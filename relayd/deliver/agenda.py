"""When the courier's loop looks round next, and whether it asks the spool what there is.

    wake      something changed: look round now
    scan      the same, and the spool may hold work that nobody named
    wake_by   look round then at the latest: a rest or an outage is over
    due       a row comes due then; the first of them is kept in mind

Anybody tells it these, at any time; only the loop (`deliver.courier`) waits for it.
"""

from __future__ import annotations

from datetime import datetime

from gevent.event import Event

from relayd.clock import Clock


class Agenda:
    """What the loop has before it; owned by the courier, shared with its parts.

    sleeps_until: monotonic; when the loop wakes of itself.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = Event()
        self._must_scan = True
        self._next_due: datetime | None = None
        self.sleeps_until: float = 0.0

    # --- what everybody tells it -----------------------------------------------------------

    def wake(self) -> None:
        """Have the loop look round now."""
        self._rung.set()

    def scan(self) -> None:
        """Have it ask the spool, too, what there is to do."""
        self._must_scan = True
        self._rung.set()

    def wake_by(self, moment: float) -> None:
        """Have the loop look round at `moment`, monotonic, at the latest."""
        if moment < self.sleeps_until:
            self._rung.set()

    def due(self, moment: datetime) -> None:
        """Note a row's due moment; wake up for it if it is the first."""
        if self._next_due is None or moment < self._next_due:
            self._next_due = moment
            self.wake_by(self._clock.monotonic() + self._seconds_to(moment))

    # --- the loop's own --------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to look round: who wakes the loop from now on wants one look more."""
        self._rung.clear()

    def must_scan(self) -> bool:
        """Tell whether the spool is to be asked."""
        if self._next_due is not None and self._next_due <= self._clock.utcnow():
            self._must_scan = True
        return self._must_scan

    def scanning(self) -> None:
        """Note that it is being asked: what is told from now on, the answer may not know of."""
        self._must_scan = False
        self._next_due = None

    def scanned(self, next_due_at: datetime | None) -> None:
        """Note its answer: when the next row comes due."""
        if next_due_at is not None:
            self.due(next_due_at)

    def due_in_s(self) -> float | None:
        """Return how long it is to the next row's moment, below 0 if it is over; None: no row."""
        return None if self._next_due is None else self._seconds_to(self._next_due)

    def sleep(self, wait_s: float) -> None:
        """Wait until somebody wakes the loop, `wait_s` at most."""
        self.sleeps_until = self._clock.monotonic() + wait_s
        self._rung.wait(wait_s)

    def _seconds_to(self, moment: datetime) -> float:
        return (moment - self._clock.utcnow()).total_seconds()
