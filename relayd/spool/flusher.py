"""Group commit: greenlets queue operations, one native thread does all that wait as one batch.

While one flush runs the next batch collects; no timer decides when. A caller waits until
its operation is durable, or until its deadline:

    deadline passed while queued     the operation is taken out; it never happens
    deadline passed while it runs    the caller goes; `on_late` hears when it succeeded
    caller killed while waiting      the same

The thread is this flusher's own: gevent's default pool also serves name lookups, and ten of
those that hang would stop the mail.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeVar, cast

import gevent
from gevent.event import Event
from gevent.hub import Waiter, get_hub
from gevent.threadpool import ThreadPool

from relayd.clock import Clock
from relayd.errors import SpoolUnavailable
from relayd.spool.sqlite import Applied
from relayd.spool.transaction import Operation

T = TypeVar("T")

_LARGEST_BATCH: Final = 256
FOREVER: Final = float("inf")
_TOO_LATE: Final = SpoolUnavailable("not written in time")


class _Ticket:
    """One caller's operation. outcome: what the caller was, or is about to be, told."""

    __slots__ = ("deadline", "is_waited_for", "operation", "outcome", "waiter")

    def __init__(self, operation: Operation[object], deadline: float) -> None:
        self.operation = operation
        self.deadline = deadline
        self.waiter: Waiter[object] = Waiter()
        self.is_waited_for = True
        self.outcome: object = _TOO_LATE


class Flusher:
    """Owns the spool's writing thread.

    apply:      called in the thread with a batch.
    on_applied: called on the hub's thread after each batch, before its callers go on.
    on_late:    called likewise with each operation that succeeded when nobody waited any more.
    wants_idle, idle_work: asked after a batch was answered; called in the thread if so.
    """

    def __init__(
        self,
        apply: Callable[[Sequence[Operation[object]]], Applied],
        *,
        clock: Clock,
        on_applied: Callable[[Applied], None],
        on_late: Callable[[Operation[object], object], None],
        wants_idle: Callable[[], bool],
        idle_work: Callable[[], None],
    ) -> None:
        self._apply = apply
        self._clock = clock
        self._on_applied = on_applied
        self._on_late = on_late
        self._wants_idle = wants_idle
        self._idle_work = idle_work
        self._pool = ThreadPool(1)
        self._queue: deque[_Ticket] = deque()
        self._flying: list[_Ticket] = []
        self._wake = Event()
        self._closed = False
        self._killed = False
        self._timer = get_hub().loop.timer(0)
        self._alarm_at = FOREVER
        self._greenlet = gevent.spawn(self._run)

    def ask(self, operation: Operation[T], *, deadline: float = FOREVER) -> T:
        """Have `operation` done durably and return its outcome.

        deadline: monotonic. raises: SpoolUnavailable, SpoolFull.
        """
        if self._closed:
            raise SpoolUnavailable("the spool is closed")
        if deadline <= self._clock.monotonic():
            raise SpoolUnavailable("too late to begin")
        ticket = _Ticket(operation, deadline)
        self._queue.append(ticket)
        self._wake.set()
        if deadline < self._alarm_at:
            self._set_alarm(deadline)
        try:
            outcome = ticket.waiter.get()
        except BaseException:
            self._leave(ticket)
            raise
        if isinstance(outcome, SpoolUnavailable):
            raise type(outcome)(*outcome.args)  # one value answers many callers
        return outcome  # type: ignore[return-value]  # `run` of this operation gave it

    def post(self, operation: Operation[object]) -> None:
        """Have `operation` done in the next batch; nobody waits for it."""
        ticket = _Ticket(operation, FOREVER)
        ticket.is_waited_for = False
        self._queue.append(ticket)
        self._wake.set()

    @property
    def is_closed(self) -> bool:
        """True once `close` was called."""
        return self._closed

    def in_thread(self, job: Callable[[], T]) -> T:
        """Call `job` in the writing thread, between batches; not after `kill`."""
        if self._killed:
            raise SpoolUnavailable("the spool is closed")
        return cast("T", self._pool.spawn(job).get())

    def close(self) -> None:
        """Refuse new operations, finish those queued, let the thread go."""
        self._closed = True
        self._wake.set()
        self._greenlet.join()
        self._timer.stop()
        self._timer.close()

    def kill(self) -> None:
        """Let the thread itself go; after `close`."""
        self._killed = True
        self._pool.kill()

    def _leave(self, ticket: _Ticket) -> None:
        """The caller was killed: what it asked for must not stay behind unowned."""
        if ticket.is_waited_for:
            ticket.is_waited_for = False
            if ticket in self._queue:
                self._queue.remove(ticket)
        elif not isinstance(ticket.outcome, SpoolUnavailable):  # answered, but never heard
            self._on_late(ticket.operation, ticket.outcome)

    # -- the loop -------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            while not self._queue:
                if self._closed:
                    return
                self._wake.clear()
                self._wake.wait()
            self._flush()

    def _flush(self) -> None:
        queue = self._queue
        self._flying = batch = [queue.popleft() for _ in range(min(len(queue), _LARGEST_BATCH))]
        applied = self._applied([one.operation for one in batch])
        self._flying = []
        self._on_applied(applied)
        now = self._clock.monotonic()
        for ticket, outcome in zip(batch, applied.outcomes, strict=True):
            if ticket.is_waited_for:
                _answer(ticket, outcome if now < ticket.deadline else _TOO_LATE)
            if ticket.outcome is _TOO_LATE and not isinstance(outcome, SpoolUnavailable):
                self._on_late(ticket.operation, outcome)
        if self._wants_idle():
            self._pool.spawn(self._idle_work).get()

    def _applied(self, operations: list[Operation[object]]) -> Applied:
        try:
            return cast("Applied", self._pool.spawn(self._apply, operations).get())
        except Exception:  # noqa: BLE001 - a daemon loop: its callers must hear of it, whatever it is
            failed = SpoolUnavailable("not understood, see the log")
            return Applied([failed] * len(operations), bugs=[traceback.format_exc()])

    # -- deadlines ------------------------------------------------------------------------

    def _set_alarm(self, deadline: float) -> None:
        self._alarm_at = deadline
        self._timer.stop()
        self._timer.close()
        self._timer = get_hub().loop.timer(max(0.001, deadline - self._clock.monotonic()))
        self._timer.start(self._ring)

    def _ring(self) -> None:
        """Send away those whose deadline has passed; on the hub."""
        now = self._clock.monotonic()
        for ticket in [one for one in self._queue if one.deadline <= now]:
            self._queue.remove(ticket)
            _answer(ticket, _TOO_LATE)
        for ticket in self._flying:
            if ticket.is_waited_for and ticket.deadline <= now:
                _answer(ticket, _TOO_LATE)
        self._alarm_at = FOREVER
        later = [one.deadline for one in (*self._queue, *self._flying) if one.deadline > now]
        if later and min(later) < FOREVER:
            self._set_alarm(min(later))


def _answer(ticket: _Ticket, outcome: object) -> None:
    ticket.is_waited_for = False
    ticket.outcome = outcome
    get_hub().loop.run_callback(ticket.waiter.switch, outcome)
