"""A spool in memory, slots and a transport that do as they are told: for the courier's tests.

FakeDoor keeps the promises of spool.store.Door that the courier leans on: one holder for
each delivery, fences, Holds, priority before age. It is synchronous, so that a test decides
what happens when.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import gevent

from relayd.clock import FakeClock
from relayd.deliver.outcome import Answer, Result, Sent
from relayd.deliver.transport import Grip, OpenContent
from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.spool.model import Lease, MailboxRef, NewDelivery, QueueId, Settlement, State
from relayd.spool.store import Draft, Expired, Hold, Taker, Told, Work

ALERTS = MailboxRef("contoso", "alerts@contoso.com")
LEASE_S = 240.0
CONTENT = b"From: a@contoso.com\r\nTo: b@example.com\r\nSubject: x\r\n\r\nhello\r\n"


def lease_of(  # a lease with sensible values, any of them replaced
    clock: FakeClock, **changes: object
) -> Lease:
    base = Lease(
        delivery=1,
        message=QueueId(1_800_000_000_000_000 << 12),
        fence=1,
        attempt=1,
        mailbox=ALERTS,
        sender="a@contoso.com",
        recipients=("b@example.com",),
        header_from="alerts@contoso.com",
        set_from="",
        reply_to_original=False,
        priority=1,
        accepted_at=clock.utcnow(),
        expires_at=clock.utcnow() + timedelta(days=5),
        size_bytes=len(CONTENT),
        device="ups",
        session="S1",
        content=CONTENT,
        expires_boottime=clock.boottime() + LEASE_S,
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # a test's keywords


@dataclass
class Row:
    lease: Lease
    state: State = State.READY
    due: datetime | None = None
    held_by: str = ""
    history: list[Settlement] = field(default_factory=list)

    def at(self, state: State) -> bool:
        """Tell where it stands; a call, so that mypy does not believe it stays there."""
        return self.state is state


class FakeDoor:
    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.rows: dict[int, Row] = {}
        self.kept_holds: dict[tuple[MailboxRef, str], Hold] = {}
        self.broken: SpoolUnavailable | None = None
        self.taker: Taker | None = None
        self.calls: list[str] = []
        self.expired: tuple[Expired, ...] = ()
        self._numbers = itertools.count(1)

    # --- for tests

    def put(self, **changes: object) -> Row:
        """Put a READY row into the spool, as another worker would."""
        number = next(self._numbers)
        lease = lease_of(
            self.clock, **{"delivery": number, "message": QueueId(number << 12), **changes}
        )
        row = self.rows[number] = Row(replace(lease, fence=0, attempt=0))
        return row

    def accept(self, **changes: object) -> Row:
        """Accept a message here: born leased if the taker wants it, offered if not."""
        row = self.put(**changes)
        assert self.taker is not None
        new = NewDelivery(
            mailbox=row.lease.mailbox,
            recipients=row.lease.recipients,
            header_from=row.lease.header_from,
        )
        if self.taker.wants(new, row.lease.priority):
            self.taker.take(self._leased(row))
        else:
            self.taker.offer([row.lease.mailbox])
        return row

    def count(self, state: State) -> int:
        return sum(row.state is state for row in self.rows.values())

    def _check(self, call: str) -> None:
        self.calls.append(call)
        if self.broken is not None:
            raise self.broken

    def _leased(self, row: Row) -> Lease:
        row.state = State.LEASED
        row.lease = replace(
            row.lease,
            fence=row.lease.fence + 1,
            attempt=row.lease.attempt + 1,
            expires_boottime=self.clock.boottime() + LEASE_S,
        )
        return row.lease

    def _held_pair(self, row: Row) -> Hold | None:
        return self.kept_holds.get((row.lease.mailbox, row.lease.header_from))

    def _may_go(self, row: Row) -> bool:
        now, hold = self.clock.utcnow(), self._held_pair(row)
        is_due = row.due is not None and row.due <= now
        waits = row.state is State.READY or (row.state is State.DEFERRED and is_due)
        if hold is not None:
            return (waits or row.state is State.HELD) and hold.probe_at <= now
        return waits

    # --- Door

    def draft(self, *, priority: int = 1) -> Draft:
        raise NotImplementedError

    def set_taker(self, taker: Taker) -> None:
        self.taker = taker

    def work(self) -> Work:
        self._check("work")
        ready = sorted(
            (row for row in self.rows.values() if self._may_go(row)),
            key=lambda row: (row.lease.priority, row.lease.delivery),
        )
        moments = [
            row.due
            for row in self.rows.values()
            if row.state is State.DEFERRED and row.due and row.due > self.clock.utcnow()
        ]
        moments += [
            h.probe_at for h in self.kept_holds.values() if h.probe_at > self.clock.utcnow()
        ]
        mailboxes = tuple(dict.fromkeys(row.lease.mailbox for row in ready))
        return Work(mailboxes, min(moments, default=None))

    def lease(self, mailbox: MailboxRef, *, limit: int) -> list[Lease]:
        self._check("lease")
        rows = sorted(
            (r for r in self.rows.values() if r.lease.mailbox == mailbox and self._may_go(r)),
            key=lambda row: (row.lease.priority, row.lease.delivery),
        )
        chosen: list[Row] = []
        for row in rows:
            hold = self._held_pair(row)
            if hold is not None:
                self.kept_holds[hold.mailbox, hold.header_from] = replace(
                    hold, probe_at=self.clock.utcnow() + timedelta(minutes=30)
                )
            chosen.append(row)
            if len(chosen) == limit:
                break
        return [self._leased(row) for row in chosen]

    def renew(self, lease: Lease) -> Lease:
        self._check("renew")
        row = self.rows[lease.delivery]
        if row.state is not State.LEASED or row.lease.fence != lease.fence:
            raise LeaseLost(str(lease.delivery))
        row.lease = replace(row.lease, expires_boottime=self.clock.boottime() + LEASE_S)
        return row.lease

    def settle(self, lease: Lease, settlement: Settlement) -> None:
        self._check("settle")
        row = self.rows[lease.delivery]
        if row.state is not State.LEASED or row.lease.fence != lease.fence:
            raise LeaseLost(str(lease.delivery))
        row.state, row.due, row.held_by = settlement.state, settlement.due_at, settlement.held_by
        row.history.append(settlement)
        if settlement.state is State.READY:
            row.lease = replace(row.lease, attempt=row.lease.attempt - 1)
        pair = (lease.mailbox, lease.header_from)
        if settlement.state is State.SENT and pair in self.kept_holds:
            del self.kept_holds[pair]
            for other in self.rows.values():
                if (
                    other.state is State.HELD
                    and (other.lease.mailbox, other.lease.header_from) == pair
                ):
                    other.state = State.READY
        if settlement.state is State.HELD and settlement.due_at is not None:
            self.kept_holds[pair] = Hold(
                *pair,
                cause=settlement.held_by,
                text=settlement.text,
                since=self.clock.utcnow(),
                probe_at=settlement.due_at,
            )

    def settle_soon(self, lease: Lease, settlement: Settlement, told: Told) -> None:
        trouble: LeaseLost | SpoolUnavailable | None = None
        try:
            self.settle(lease, settlement)
        except (LeaseLost, SpoolUnavailable) as error:
            trouble = error
        told(trouble)

    def content(self, message: QueueId) -> AbstractContextManager[Iterator[bytes]]:
        self._check("content")
        return contextlib.nullcontext(iter((CONTENT,)))

    def holds(self) -> tuple[Hold, ...]:
        return tuple(self.kept_holds.values())

    def reclaim(self, *, pid: int | None = None) -> int:
        self._check("reclaim")
        dead = [
            row
            for row in self.rows.values()
            if row.state is State.LEASED and row.lease.expires_boottime < self.clock.boottime()
        ]
        for row in dead:
            row.state = State.READY
        return len(dead)

    def follow_clock(self) -> None:
        self._check("follow_clock")

    def sweep(self) -> tuple[Expired, ...]:
        self._check("sweep")
        expired, self.expired = self.expired, ()
        return expired

    def close(self) -> None:
        self._check("close")


class FakeSlots:
    """Slots of one worker; `capacity` for each mailbox, waiting ends at once when told."""

    def __init__(self, capacity: int = 3) -> None:
        self.capacity = capacity
        self.used: dict[MailboxRef, int] = {}
        self.most: dict[MailboxRef, int] = {}
        self.asked: list[tuple[MailboxRef, int]] = []
        self.unused = 0
        self.is_paced_out = False  # only urgent mail gets a slot, for one send
        self._freed = gevent.event.Event()
        self._is_closed = False
        self.rests: list[tuple[MailboxRef, float]] = []
        self.tell_rest: Callable[[MailboxRef, float], None] = lambda _ref, _rest_s: None
        self.backs: list[str] = []
        self.tell_back: Callable[[str], None] = lambda _upstream: None

    def rest(self, ref: MailboxRef, rest_s: float) -> None:
        self.rests.append((ref, rest_s))

    def on_rest(self, told: Callable[[MailboxRef, float], None]) -> None:
        self.tell_rest = told

    def back(self, upstream: str) -> None:
        self.backs.append(upstream)

    def on_back(self, told: Callable[[str], None]) -> None:
        self.tell_back = told

    def try_acquire(self, ref: MailboxRef) -> bool:
        return not self.is_paced_out and self._take(ref)

    def _take(self, ref: MailboxRef) -> bool:
        if self.used.get(ref, 0) >= self.capacity:
            return False
        self.used[ref] = self.used.get(ref, 0) + 1
        self.most[ref] = max(self.most.get(ref, 0), self.used[ref])
        return True

    def acquire(
        self,
        ref: MailboxRef,
        capacity: int,
        timeout_s: float,
        *,
        per_minute: int = 0,
        priority: int = 1,
    ) -> bool:
        self.asked.append((ref, priority))
        while (self.is_paced_out and priority) or not self._take(ref):
            self._freed.clear()
            is_free = self._freed.wait(timeout_s)
            if self._is_closed:
                raise gevent.GreenletExit
            if not is_free:
                return False
        return True

    def close(self) -> None:
        """End whoever waits for a slot: his time-out must not speak in a later test."""
        self._is_closed = True
        self._freed.set()

    def again(self, ref: MailboxRef, *, unused: bool = False) -> bool:
        if self.used[ref] <= self.capacity and not self.is_paced_out:
            return True
        self.release(ref, unused=unused)
        return False

    def release(self, ref: MailboxRef, *, unused: bool = False) -> None:
        assert self.used[ref] > 0, "released what was not held"
        self.used[ref] -= 1
        self.unused += unused
        self._freed.set()

    def all_free(self) -> bool:
        return not any(self.used.values())


def taken(lease: Lease) -> Result:
    return Sent(Answer(status=202, request_id="r"))


class FakeTransport:
    """Answers as `plan` says; None: as `default` does. Remembers what it was given."""

    name = "graph"

    def __init__(self, default: Callable[[Lease], Result] | None = None) -> None:
        self.sent: list[Lease] = []
        self.default = default or taken
        self.gate: gevent.event.Event | None = None
        self.before: Callable[[Grip], None] | None = None
        self.at_once = 0
        self.most_at_once = 0
        self.is_closed = False

    def send(self, grip: Grip, content: OpenContent) -> Result:
        if self.before is not None:
            self.before(grip)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if not grip.may_begin():
                raise AssertionError("begun without a lease")
            self.sent.append(grip.lease)
            if self.gate is not None:
                self.gate.wait()
            return self.default(grip.lease)
        finally:
            self.at_once -= 1

    def close(self) -> None:
        self.is_closed = True

    def order(self) -> Sequence[int]:
        return [lease.delivery for lease in self.sent]
