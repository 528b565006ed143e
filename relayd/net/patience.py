"""Waits of one connection, each with a deadline, for the price of none.

gevent's sockets make a time-out object and a timer for each wait; a busy worker waits ten times for
a message. Here a connection keeps one alarm. It is set anew only for a deadline sooner than the
one it is set for; one that rings too early is set again.

Works on the hub of the thread that made it, patched by gevent or not.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from gevent import get_hub, getcurrent
from greenlet import greenlet

from relayd.clock import SYSTEM, Clock


class _Overdue(BaseException):
    """Thrown into a greenlet whose deadline has passed; never leaves this file."""


class Patience:
    """Owned by one connection; one greenlet waits at a time."""

    __slots__ = ("_alarm", "_clock", "_deadline", "_loop", "_rings_at", "_waiter")

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._loop = get_hub().loop
        self._waiter: greenlet | None = None
        self._deadline = inf  # of the wait under way, monotonic
        self._alarm = self._loop.timer(0.0)
        self._rings_at = inf  # monotonic; inf: it is not set

    def wait(self, wait: Callable[[], object], deadline: float) -> bool:
        """Call `wait`, which goes to the hub; False when the deadline comes first.

        deadline: monotonic. raises: what `interrupt` is given.
        """
        if deadline < self._rings_at:
            self._set_alarm(deadline)
        self._deadline = deadline
        self._waiter = getcurrent()
        try:
            wait()
        except _Overdue:
            return False
        finally:
            self._waiter = None
        return True

    def interrupt(self, error: BaseException) -> None:
        """Have whoever waits here raise `error`, and nobody else; call it in the hub.

        A throw scheduled for later could hit the greenlet in the middle of something else.
        """
        if self._waiter is not None:
            self._waiter.throw(error)

    def close(self) -> None:
        """Set no alarm any more."""
        self._alarm.close()

    def _set_alarm(self, at: float) -> None:
        self._alarm.close()
        self._alarm = self._loop.timer(max(0.0, at - self._clock.monotonic()), ref=False)
        self._alarm.start(self._ring)
        self._rings_at = at

    def _ring(self) -> None:
        # In the hub. Most deadlines were met long ago, and a later one stands.
        self._rings_at = inf
        if self._waiter is None:
            return
        if self._clock.monotonic() < self._deadline:
            self._set_alarm(self._deadline)
        else:
            self._waiter.throw(_Overdue())
