"""Group commit: greenlets queue operations, one native thread does all that wait as one batch.

While one flush runs the next batch collects. An operation that may wait (a settle: the mail
is gone, its client has long had its 250) asks for no flush of its own: when a few have come
together they go with the next that somebody waits for, after 10 ms at the latest alone. A
caller waits until its operation is durable, or until its deadline:

    deadline passed while queued     the operation is taken out; it never happens
    deadline passed while it runs    the caller goes; `on_late` hears when it succeeded
    caller killed while waiting      the same

The thread is this flusher's own: gevent's default pool also serves name lookups, and ten of
those that hang would stop the mail. It is given a batch once every greenlet that could run
has run: measured, a larger batch saves more than an earlier start.

    hub:    queue -> batch -> bell            results -> callers go on -> next batch
    thread:                   bell -> apply -> results -> wake the hub

Other workers write to the same file in turn. What is queued while ours is waited for still
goes with the batch (`latecomers`).
"""

from __future__ import annotations

import os
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias, TypeVar, cast

from gevent import monkey
from gevent.event import Event
from gevent.hub import Waiter, get_hub

from relayd.clock import Clock
from relayd.errors import SpoolUnavailable
from relayd.spool.sqlite import Applied, Latecomers
from relayd.spool.transaction import Operation

T = TypeVar("T")

_LARGEST_BATCH: Final = 256
FOREVER: Final = float("inf")
_TOO_LATE: Final = SpoolUnavailable("not written in time")
_END_S: Final = 5.0
_PATIENCE_S: Final = 0.01
_COMPANY: Final = 16
"""So many that may wait go with a flush of others: their statements cost the same for one."""
_MOST_PATIENT: Final = 32
"""So many are worth a flush of their own."""


class _Ticket:
    """One caller's operation.

    told:    called on the hub with the outcome; None: nobody wants to know (any more).
    outcome: what was, or is about to be, told.
    """

    __slots__ = ("deadline", "operation", "outcome", "told")

    def __init__(
        self, operation: Operation[object], deadline: float, told: Callable[[object], object] | None
    ) -> None:
        self.operation = operation
        self.deadline = deadline
        self.told = told
        self.outcome: object = _TOO_LATE


class _Job:
    """Something else the thread is to do, between batches. error: what it raised."""

    __slots__ = ("call", "error", "outcome", "waiter")

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.outcome: object = None
        self.error: BaseException | None = None
        self.waiter: Waiter[object] = Waiter()

    def run(self) -> None:
        try:
            self.outcome = self.call()
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked for
            self.error = error


_Work: TypeAlias = list[_Ticket] | _Job | None  # None: end
_Done: TypeAlias = tuple[list[_Ticket], Applied] | _Job | None  # None: it has ended


class Flusher:
    """Owns the spool's writing thread.

    apply:      called in the thread with a batch, and with what returns its latecomers.
    on_applied: called on the hub after each batch, before its callers go on. Must not block.
    on_late:    called likewise with each operation that succeeded when nobody waited any more.
    wants_idle, idle_work: asked and called in the thread, after a batch.
    """

    def __init__(
        self,
        apply: Callable[[Sequence[Operation[object]], Latecomers], Applied],
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
        self._queue: deque[_Ticket] = deque()
        self._patient: deque[_Ticket] = deque()  # those that may wait
        self._is_overdue = False  # they have waited long enough
        self._jobs: deque[_Job | None] = deque()
        self._given: _Work = None
        self._is_busy = False  # a batch will be given, or is in the thread
        self._patience = get_hub().loop.timer(_PATIENCE_S, _PATIENCE_S)
        self._done: deque[_Done] = deque()
        self._bugs: deque[str] = deque()  # of the work between batches
        self._pending = 0  # tickets queued or being written
        self._drained = Event()
        self._dated: set[_Ticket] = set()  # those whose callers have a deadline, unanswered
        self._closed = False
        self._ended = Event()
        self._loop = get_hub().loop
        self._timer = self._loop.timer(0)
        self._alarm_at = FOREVER
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._wake_hub = self._loop.async_()
        self._wake_hub.start(self._collect)
        self._is_killed = False
        monkey.get_original("_thread", "start_new_thread")(self._work, ())

    def ask(self, operation: Operation[T], *, deadline: float = FOREVER) -> T:
        """Have `operation` done durably and return its outcome.

        deadline: monotonic. raises: SpoolUnavailable, SpoolFull.
        """
        if self._closed:
            raise SpoolUnavailable("the spool is closed")
        waiter: Waiter[object] = Waiter()
        ticket = _Ticket(operation, deadline, waiter.switch)  # it goes on at once, and comes back
        if deadline < FOREVER:
            if deadline <= self._clock.monotonic():
                raise SpoolUnavailable("too late to begin")
            self._dated.add(ticket)
            if deadline < self._alarm_at:
                self._set_alarm(deadline)
        self._put(ticket)
        try:
            outcome = waiter.get()
        except BaseException:
            self._leave(ticket)
            raise
        if isinstance(outcome, SpoolUnavailable):
            raise type(outcome)(*outcome.args)  # one value answers many callers
        return outcome  # type: ignore[return-value]  # `run` of this operation gave it

    def post(
        self, operation: Operation[T], told: Callable[[T | SpoolUnavailable], None] | None = None
    ) -> None:
        """Have `operation` done durably; nobody waits for it.

        told: called with its outcome in a turn of the hub of its own; must not block.
        """
        if told is None:
            self._put(_Ticket(operation, FOREVER, None))
            return
        run = self._loop.run_callback
        if self._closed:
            run(partial(told, SpoolUnavailable("the spool is closed")))
            return
        self._put(_Ticket(operation, FOREVER, lambda outcome: run(partial(told, outcome))))  # type: ignore[arg-type]  # `run` of this operation gave it

    @property
    def is_closed(self) -> bool:
        """True once `close` was called."""
        return self._closed

    def in_thread(self, job: Callable[[], T]) -> T:
        """Call `job` in the writing thread, between batches; not after `kill`."""
        if self._is_killed:
            raise SpoolUnavailable("the spool is closed")
        ticket = _Job(job)
        self._jobs.append(ticket)
        self._hurry()
        ticket.waiter.get()
        if ticket.error is not None:
            raise ticket.error
        return cast("T", ticket.outcome)

    def close(self) -> None:
        """Refuse new operations, finish those queued."""
        self._closed = True
        self._hurry()
        while self._pending:
            self._drained.clear()
            self._drained.wait()
        for timer in (self._timer, self._patience):
            timer.stop()
            timer.close()

    def kill(self) -> None:
        """Let the thread go; after `close`."""
        if self._is_killed:
            return
        self._is_killed = True
        self._jobs.append(None)
        self._hurry()
        if self._ended.wait(_END_S):  # else it hangs in the disk: its descriptor must stay
            os.close(self._bell)
        self._wake_hub.stop()
        self._wake_hub.close()

    def _leave(self, ticket: _Ticket) -> None:
        """The caller was killed: what it asked for must not stay behind unowned."""
        ticket.told = None
        self._dated.discard(ticket)
        self._taken_out(ticket)

    def _taken_out(self, ticket: _Ticket) -> None:
        """Take it out of the queue, unless the thread has it already."""
        queue = self._patient if ticket.operation.may_wait else self._queue
        try:
            queue.remove(ticket)
        except ValueError:
            return
        self._one_less(1)

    def _one_less(self, count: int) -> None:
        self._pending -= count
        if not self._pending:
            self._drained.set()

    # -- in the thread --------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            os.eventfd_read(self._bell)
            given = self._given
            if given is None:
                break
            if isinstance(given, _Job):
                given.run()
                self._tell(given)
            else:
                self._tell((given, self._applied(given)))
                self._idle()
        self._tell(None)

    def _idle(self) -> None:
        try:
            if self._wants_idle():
                self._idle_work()
        except Exception:  # noqa: BLE001 - a daemon loop's edge: told to the hub as a value
            self._bugs.append(traceback.format_exc())

    def _applied(self, batch: list[_Ticket]) -> Applied:
        operations = [one.operation for one in batch]
        try:
            return self._apply(operations, partial(self._latecomers, batch))
        except Exception:  # noqa: BLE001 - a daemon loop: its callers must hear of it, whatever it is
            failed = SpoolUnavailable("not understood, see the log")
            return Applied([failed] * len(batch), bugs=[traceback.format_exc()])

    def _latecomers(self, batch: list[_Ticket]) -> list[Operation[object]]:
        """Take what was queued meanwhile into the batch; return its operations.

        The hub may take tickets out at the same time: each is taken by one of us.
        """
        late: list[Operation[object]] = []
        while len(batch) < _LARGEST_BATCH:
            try:
                ticket = self._queue.popleft()
            except IndexError:
                break
            batch.append(ticket)
            late.append(ticket.operation)
        return late

    def _tell(self, done: _Done) -> None:
        self._done.append(done)
        self._wake_hub.send()

    # -- on the hub -------------------------------------------------------------------------

    def _put(self, ticket: _Ticket) -> None:
        self._pending += 1
        if not ticket.operation.may_wait:
            self._queue.append(ticket)
            self._hurry()
            return
        self._patient.append(ticket)
        if len(self._patient) == 1:
            self._patience.again(self._lose_patience)
        elif len(self._patient) >= _MOST_PATIENT:
            self._hurry()

    def _lose_patience(self) -> None:
        self._patience.stop()
        self._is_overdue = True
        self._hurry()

    def _hurry(self) -> None:
        """Have the thread given what waits, once those greenlets have run that can."""
        if not self._is_busy:
            self._is_busy = True
            self._loop.run_callback(self._give)

    def _give(self) -> None:
        if self._jobs:
            self._given = self._jobs.popleft()
        else:
            self._given = batch = self._batch()
            if not batch:  # all were taken out again, or may wait
                self._is_busy = False
                return
        os.eventfd_write(self._bell, 1)

    def _batch(self) -> list[_Ticket]:
        """Take out what is to be written next."""
        # However many are in a hurry, half of a batch is for those that waited long enough.
        batch = _taken(self._patient, _LARGEST_BATCH // 2) if self._is_overdue else []
        batch += _taken(self._queue, _LARGEST_BATCH - len(batch))
        enough = _COMPANY if batch else _MOST_PATIENT
        if self._is_overdue or self._closed or len(self._patient) >= enough:
            batch += _taken(self._patient, _LARGEST_BATCH - len(batch))
            if not self._patient:
                self._is_overdue = False
        return batch

    def _collect(self) -> None:
        while self._done:
            done = self._done.popleft()
            if done is None:
                self._ended.set()
                return
            try:
                if isinstance(done, _Job):
                    done.waiter.switch(None)
                else:
                    self._answer_all(*done)
            finally:
                # Behind the callers just answered: what they ask next goes with the same batch.
                self._loop.run_callback(self._give)

    def _answer_all(self, batch: list[_Ticket], applied: Applied) -> None:
        if self._bugs:
            applied.bugs.append(self._bugs.popleft())
        try:
            self._on_applied(applied)
        finally:
            now = self._clock.monotonic()
            for ticket, outcome in zip(batch, applied.outcomes, strict=True):
                if ticket.told is not None:
                    self._answer(ticket, outcome if now < ticket.deadline else _TOO_LATE)
            try:
                self._tell_late(batch, applied.outcomes)
            finally:
                self._one_less(len(batch))

    def _tell_late(self, batch: list[_Ticket], outcomes: Sequence[object]) -> None:
        """Tell of what was done for nobody; every caller has its answer by now."""
        for ticket, outcome in zip(batch, outcomes, strict=True):
            if ticket.outcome is _TOO_LATE and not isinstance(outcome, SpoolUnavailable):
                self._on_late(ticket.operation, outcome)

    def _answer(self, ticket: _Ticket, outcome: object) -> None:
        told, ticket.told = ticket.told, None
        ticket.outcome = outcome
        self._dated.discard(ticket)
        if told is not None:
            told(outcome)

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
        for ticket in [one for one in self._dated if one.deadline <= now]:
            self._taken_out(ticket)
            self._answer(ticket, _TOO_LATE)
        self._alarm_at = FOREVER
        if self._dated:
            self._set_alarm(min(one.deadline for one in self._dated))


def _taken(queue: deque[_Ticket], most: int) -> list[_Ticket]:
    return [queue.popleft() for _ in range(min(len(queue), most))]
