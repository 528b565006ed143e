"""A spool in memory: the same promises but the power cut, without SQLite, files or gevent.

For unit tests of whoever holds a Door, and as the oracle that tests/store compares the real
ones with. `MemorySpool` is the disk, `MemoryDoor` a worker's way to it; several doors share
one spool, and `crash` is the kill -9 of a door: what it had not committed is gone, what it
had leased comes back by `reclaim`.

Not thread-safe, and never used by the daemon.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from relayd.clock import SYSTEM, Clock, from_micros
from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.spool import moves
from relayd.spool.ids import DELIVERIES, Ids, accepted_micros
from relayd.spool.model import (
    Course,
    Lease,
    MailboxRef,
    NewDelivery,
    NewMessage,
    QueueId,
    Redirect,
    Settlement,
    State,
)
from relayd.spool.store import Expired, Hold, Taker, Told, Work
from relayd.spool.transaction import Pair
from relayd.values import frozen

_PIECE: Final = 262_144
_WAITING: Final = frozenset({State.READY, State.DEFERRED})
_UNTAKEN: Final = _WAITING | {State.HELD}
_LIVE: Final = _UNTAKEN | {State.LEASED}


@dataclass(slots=True, kw_only=True)
class Row:
    """One delivery as the disk has it."""

    id: int
    message: QueueId
    way: NewDelivery
    state: State
    due: datetime
    expires_at: datetime
    priority: int
    held_by: str = ""
    fence: int = 0
    attempts: int = 0
    done: Mapping[str, str] = field(default_factory=dict)
    wish: str = ""
    maybe_sent: bool = False
    holder: str = ""
    lease_until: float = 0.0
    settled_at: datetime | None = None

    @property
    def pair(self) -> Pair:
        """What a Hold of it would be for."""
        return (*self.way.mailbox, self.way.header_from)


@frozen(kw_only=True)
class Note:
    """A row of the journal."""

    delivery: int
    outcome: str
    text: str = ""


@dataclass(slots=True)
class MemorySpool:
    """What survives a crash. alive: the holders that have not crashed."""

    messages: dict[QueueId, NewMessage] = field(default_factory=dict)
    contents: dict[QueueId, bytes] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    holds: dict[tuple[Pair, str], Hold] = field(default_factory=dict)
    journal: list[Note] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)

    def deliveries(self, message: QueueId) -> list[Row]:
        """Return the deliveries of a message."""
        return [row for row in self.rows.values() if row.message == message]


@frozen(kw_only=True)
class Keeping:
    """How long things are kept, and what becomes of doubtful mail; as [spool] says."""

    keep_sent: timedelta = timedelta(0)
    keep_failed: timedelta = timedelta(days=30)
    history: timedelta = timedelta(days=90)
    ambiguous: Mapping[str, str] = field(default_factory=dict)


class _NoTaker:
    def wants(self, delivery: NewDelivery, priority: int) -> bool:
        del delivery, priority
        return False

    def take(self, lease: Lease) -> None:
        pass

    def spare(self, delivery: NewDelivery) -> None:
        pass

    def offer(self, mailboxes: Sequence[MailboxRef]) -> None:
        pass


class MemoryDoor:
    """store.Door on a MemorySpool. broken: set it, and everything raises it."""

    def __init__(
        self,
        spool: MemorySpool | None = None,
        *,
        lane: int = 0,
        clock: Clock = SYSTEM,
        keeping: Keeping | None = None,
    ) -> None:
        self.spool = MemorySpool() if spool is None else spool
        self.broken: SpoolUnavailable | None = None
        self._clock = clock
        self._keeping = Keeping() if keeping is None else keeping
        self._ids = Ids(lane, clock, newest=max(self.spool.messages, default=0))
        self._name = f"door {lane} {len(self.spool.alive)} {id(self)}"
        self.spool.alive.add(self._name)
        self._taker: Taker = _NoTaker()
        self._closed = False

    # -- accepting --------------------------------------------------------------------------

    def draft(self, *, priority: int = 1) -> MemoryDraft:
        """Begin a message."""
        del priority
        self._guard()
        return MemoryDraft(self, self._ids.next())

    def set_taker(self, taker: Taker) -> None:
        """Name who delivers here."""
        self._taker = taker

    def accept(self, draft: QueueId, octets: bytes, message: NewMessage, deadline: float) -> None:
        """Keep a message; for MemoryDraft."""
        rows = [
            self._row(number, draft, message, way)
            for number, way in zip(
                self._delivery_ids(draft, message), message.deliveries, strict=True
            )
        ]
        born = [row for row in rows if row.state is State.LEASED]
        try:
            self._guard()
            if deadline <= self._clock.monotonic():
                raise SpoolUnavailable("too late to begin")
        except SpoolUnavailable:
            for row in born:
                self._taker.spare(row.way)
            raise
        self.spool.messages[draft] = message
        self.spool.contents[draft] = octets
        self.spool.rows.update({row.id: row for row in rows})
        for row in born:
            self._taker.take(self._lease_of(row))
        taken = {row.way.mailbox for row in born}
        waiting = dict.fromkeys(row.way.mailbox for row in rows if row.way.mailbox not in taken)
        if waiting:
            self._taker.offer(list(waiting))

    def _delivery_ids(self, draft: QueueId, message: NewMessage) -> list[int]:
        count = len(message.deliveries)
        own = [int(draft) + number for number in range(min(count, DELIVERIES))]
        return own + [int(self._ids.next()) for _ in range(count - DELIVERIES)]

    def _row(self, number: int, draft: QueueId, message: NewMessage, way: NewDelivery) -> Row:
        row = Row(
            id=number,
            message=draft,
            way=way,
            state=State.READY,
            due=message.accepted_at,
            expires_at=message.expires_at,
            priority=min(max(message.priority, 0), 2),
        )
        cause = self._cause(row.pair)
        if cause:
            row.state, row.held_by = State.HELD, cause
        elif self._taker.wants(way, message.priority):
            self._hand_out(row)
        return row

    # -- delivering -------------------------------------------------------------------------

    def work(self) -> Work:
        """Return the mailboxes with work."""
        self._guard()
        now = self._clock.utcnow()
        best: dict[MailboxRef, tuple[int, datetime]] = {}
        later = []
        for row in self.spool.rows.values():
            if row.state in _WAITING and row.due <= now:
                rank = (row.priority, row.due)
                best[row.way.mailbox] = min(best.get(row.way.mailbox, rank), rank)
            elif row.state in _WAITING:
                later.append(row.due)
        for hold in self.spool.holds.values():
            if hold.probe_at <= now:
                best.setdefault(hold.mailbox, (3, hold.probe_at))
            else:
                later.append(hold.probe_at)
        boxes = sorted(best, key=lambda one: (*best[one], one))
        return Work(tuple(boxes), min(later, default=None))

    def lease(self, mailbox: MailboxRef, *, limit: int) -> list[Lease]:
        """Lease the best rows of `mailbox`."""
        self._guard()
        if limit <= 0:
            return []
        now = self._clock.utcnow()
        chosen = self._probes(mailbox, limit)
        waiting = [
            row
            for row in self.spool.rows.values()
            if row.way.mailbox == mailbox and row.state in _WAITING and row.due <= now
        ]
        for row in sorted(waiting, key=lambda one: (one.priority, one.due, one.id)):
            cause = self._cause(row.pair)
            if cause:
                row.state, row.held_by = State.HELD, cause
            elif len(chosen) < limit:
                chosen.append(row)
        for row in chosen:
            self._hand_out(row)
        return [self._lease_of(row) for row in chosen]

    def _probes(self, mailbox: MailboxRef, limit: int) -> list[Row]:
        now = self._clock.utcnow()
        chosen: list[Row] = []
        for key, hold in sorted(self.spool.holds.items(), key=lambda item: item[0]):
            if hold.mailbox != mailbox or hold.probe_at > now or len(chosen) >= limit:
                continue
            held = [one for one in self._held(key[0]) if one.held_by == hold.cause]
            if not held:
                del self.spool.holds[key]
                continue
            until = now + timedelta(seconds=moves.LEASE_S)
            self.spool.holds[key] = dataclasses.replace(hold, probe_at=until)
            chosen.append(min(held, key=lambda one: one.id))
        return chosen

    def _held(self, pair: Pair) -> list[Row]:
        return [
            row for row in self.spool.rows.values() if row.state is State.HELD and row.pair == pair
        ]

    def _cause(self, pair: Pair) -> str:
        return min((cause for one, cause in self.spool.holds if one == pair), default="")

    def _hand_out(self, row: Row) -> None:
        row.state, row.held_by = State.LEASED, ""
        row.fence += 1
        row.holder = self._name
        row.lease_until = self._clock.boottime() + moves.LEASE_S

    def _lease_of(self, row: Row) -> Lease:
        message = self.spool.messages[row.message]
        return Lease(
            delivery=row.id,
            message=row.message,
            fence=row.fence,
            attempt=row.attempts + 1,
            mailbox=row.way.mailbox,
            sender=message.sender,
            recipients=moves.rest(row.way.recipients, row.done),
            header_from=row.way.header_from,
            set_from=row.way.set_from,
            reply_to_original=row.way.reply_to_original,
            priority=row.priority,
            accepted_at=message.accepted_at,
            expires_at=row.expires_at,
            size_bytes=message.size_bytes,
            device=message.device,
            session=message.session,
            content=self.spool.contents[row.message],
            expires_boottime=row.lease_until,
            maybe_sent=row.maybe_sent,
        )

    def renew(self, lease: Lease) -> Lease:
        """Return the lease with a later expiry."""
        row = self._mine(lease)
        row.lease_until = self._clock.boottime() + moves.LEASE_S
        return dataclasses.replace(lease, expires_boottime=row.lease_until)

    def _mine(self, lease: Lease) -> Row:
        self._guard()
        row = self.spool.rows.get(lease.delivery)
        if row is None or row.fence != lease.fence or row.state is not State.LEASED:
            raise LeaseLost(f"delivery {lease.delivery}: lease {lease.fence} is over")
        return row

    def settle(self, lease: Lease, settlement: Settlement) -> None:
        """Record what became of it."""
        row = self._mine(lease)
        now = self._clock.utcnow()
        move = moves.settled(
            settlement, recipients=row.way.recipients, done=row.done, wish=row.wish
        )
        deferred = move.state is State.DEFERRED and settlement.due_at is not None
        self._end(row, move, settlement.due_at if deferred and settlement.due_at else now)
        row.maybe_sent |= settlement.outcome == moves.AMBIGUOUS
        self._note(row, settlement.outcome, settlement.text)
        if move.state is State.SENT:
            self._drop_sent(row.message)
            self._lift(row.pair)
        elif move.state is State.HELD and move.held_by == settlement.held_by:
            self._put_hold(row, settlement)

    def settle_soon(self, lease: Lease, settlement: Settlement, told: Told) -> None:
        """Record what became of it, and tell at once."""
        trouble: LeaseLost | SpoolUnavailable | None = None
        try:
            self.settle(lease, settlement)
        except (LeaseLost, SpoolUnavailable) as error:
            trouble = error
        told(trouble)

    def _end(self, row: Row, move: moves.Move, due: datetime) -> None:
        row.state, row.held_by, row.due = move.state, move.held_by, due
        row.done = dict(move.done)
        row.attempts += move.counted
        row.wish = row.holder = ""
        row.settled_at = self._clock.utcnow() if move.state in moves.FINAL else None
        if move.drop_content:
            self._drop(row.message)

    def _drop_sent(self, message: QueueId) -> None:
        if not self._keeping.keep_sent and all(
            row.state is State.SENT for row in self.spool.deliveries(message)
        ):
            self.spool.contents.pop(message, None)

    def _drop(self, message: QueueId) -> None:
        if not any(row.state in _LIVE for row in self.spool.deliveries(message)):
            self.spool.contents.pop(message, None)

    def _put_hold(self, row: Row, settlement: Settlement) -> None:
        if settlement.due_at is None or settlement.held_by in moves.STICKY:
            return
        key = (row.pair, settlement.held_by)
        old = self.spool.holds.get(key)
        self.spool.holds[key] = Hold(
            mailbox=row.way.mailbox,
            header_from=row.way.header_from,
            cause=settlement.held_by,
            text=settlement.text,
            since=old.since if old else self._clock.utcnow(),
            probe_at=settlement.due_at,
        )

    def _lift(self, pair: Pair) -> None:
        for key in [one for one in self.spool.holds if one[0] == pair]:
            del self.spool.holds[key]
            freed = [row for row in self._held(pair) if row.held_by == key[1]]
            for row in freed:
                self._free(row)
            if freed:
                self._taker.offer([freed[0].way.mailbox])

    def _free(self, row: Row) -> None:
        row.state, row.held_by, row.due = State.READY, "", self._clock.utcnow()

    def content(self, message: QueueId) -> AbstractContextManager[Iterator[bytes]]:
        """Open the content in pieces."""
        self._guard()
        if message not in self.spool.contents:
            raise SpoolUnavailable("its content is gone")
        octets = self.spool.contents[message]
        pieces = (octets[at : at + _PIECE] for at in range(0, len(octets), _PIECE))
        return nullcontext(pieces)

    def holds(self) -> tuple[Hold, ...]:
        """Return the Holds in force."""
        return tuple(self.spool.holds.values())

    def reclaim(self, *, pid: int | None = None) -> int:
        """Return dead holders' leases; doors here have no pid, so any means all the dead."""
        self._guard()
        ended = float("-inf") if pid is not None else self._clock.boottime()
        leased = [row for row in self.spool.rows.values() if row.state is State.LEASED]
        lost = [
            row for row in leased if row.holder not in self.spool.alive or row.lease_until < ended
        ]
        for row in lost:
            policy = self._keeping.ambiguous.get(row.way.mailbox.upstream, "retry")
            done = row.done
            self._end(row, moves.reclaimed(wish=row.wish, policy=policy), self._clock.utcnow())
            row.done = done
            row.fence += 1
            row.maybe_sent = True
            self._note(row, moves.AMBIGUOUS, "ambiguous: the worker died while sending")
        if lost:
            self._taker.offer(list(dict.fromkeys(row.way.mailbox for row in lost)))
        return len(lost)

    # -- operators --------------------------------------------------------------------------

    def retry(
        self,
        messages: Sequence[QueueId],
        redirects: Sequence[Redirect] = (),
        upstreams: frozenset[str] | None = None,
    ) -> int:
        """Try these now, FAILED ones included; returns how many messages it reached.

        redirects: of their deliveries, in the same commit; so with release and resend.
        upstreams: only what goes through one of these; None: all; likewise.
        """
        return self._ask("retry", messages, redirects, upstreams)

    def hold(self, messages: Sequence[QueueId]) -> int:
        """Hold these until `release`; returns how many messages it reached."""
        return self._ask("hold", messages)

    def release(
        self,
        messages: Sequence[QueueId],
        redirects: Sequence[Redirect] = (),
        upstreams: frozenset[str] | None = None,
    ) -> int:
        """Let held ones go; returns how many messages it reached."""
        return self._ask("release", messages, redirects, upstreams)

    def delete(self, messages: Sequence[QueueId]) -> int:
        """Give these up and drop their content; returns how many messages it reached."""
        return self._ask("delete", messages)

    def resend(
        self,
        messages: Sequence[QueueId],
        redirects: Sequence[Redirect] = (),
        upstreams: frozenset[str] | None = None,
    ) -> int:
        """Send SENT ones again whose content was kept; returns how many messages it reached."""
        return self._ask("resend", messages, redirects, upstreams)

    def _ask(
        self,
        wish: moves.Wish,
        messages: Sequence[QueueId],
        redirects: Sequence[Redirect] = (),
        upstreams: frozenset[str] | None = None,
    ) -> int:
        self.redirect(redirects, "wish")
        reached = [
            [self._wished(wish, row, upstreams) for row in self.spool.deliveries(message)]
            for message in dict.fromkeys(messages)
        ]
        return sum(any(one) for one in reached)

    def _wished(self, wish: moves.Wish, row: Row, upstreams: frozenset[str] | None) -> bool:
        if row.state is State.LEASED:
            row.wish = moves.WHILE_LEASED.get(wish, row.wish)
            return wish in moves.WHILE_LEASED
        if row.state not in moves.WISHES[wish]:
            return False
        if not moves.may_start(wish, row.way.mailbox.upstream, upstreams):
            return False
        if moves.needs_content(wish, row.state) and row.message not in self.spool.contents:
            return False
        hold = self.spool.holds.get((row.pair, row.held_by))
        if wish in moves.STARTS and row.state is State.HELD and hold is not None:
            at = min(hold.probe_at, self._clock.utcnow())
            self.spool.holds[row.pair, row.held_by] = dataclasses.replace(hold, probe_at=at)
            self._taker.offer([row.way.mailbox])
            self._note(row, moves.WISHED[wish], "by an operator")
            row.fence += 1
            return True
        self._wish_moves(wish, row)
        return True

    def _wish_moves(self, wish: moves.Wish, row: Row) -> None:
        now, was = self._clock.utcnow(), row.state
        row.state = moves.WISHES[wish][was]
        row.held_by = moves.OPERATOR if row.state is State.HELD else ""
        row.fence += 1
        row.due = now
        row.settled_at = now if row.state in moves.FINAL else None
        self._note(row, moves.WISHED[wish], "by an operator")
        if row.state is State.READY:
            row.done = moves.forgiven(was, row.done)
            if row.expires_at <= now:
                row.expires_at = now + (
                    row.expires_at - self.spool.messages[row.message].accepted_at
                )
            self._taker.offer([row.way.mailbox])
        if wish == "delete":
            self._drop(row.message)

    def hasten(self, upstream: str) -> int:
        """Make all that is DEFERRED for `upstream` due now: it answers again."""
        self._guard()
        now = self._clock.utcnow()
        rows = [
            row
            for row in self.spool.rows.values()
            if row.state is State.DEFERRED
            and row.way.mailbox.upstream == upstream
            and row.due > now
        ]
        for row in rows:
            self._free(row)
        if rows:
            self._taker.offer(list(dict.fromkeys(row.way.mailbox for row in rows)))
        return len(rows)

    def adopt(self, upstreams: Sequence[str]) -> int:
        """Hold mail of upstreams not named here, free what was held so and is named again."""
        self._guard()
        moved = 0
        for row in self.spool.rows.values():
            upstream = row.way.mailbox.upstream
            if row.state in _WAITING and upstream not in upstreams:
                row.state, row.held_by = State.HELD, moves.missing(upstream)
            elif row.held_by == moves.missing(upstream) and upstream in upstreams:
                self._free(row)
            else:
                continue
            moved += 1
        return moved

    def courses(
        self, messages: Sequence[QueueId], states: frozenset[State], *, with_content: bool = False
    ) -> list[Course]:
        """Return the way out of deliveries of these messages, if they are in these states.

        with_content: only of those whose content is kept.
        """
        self._guard()
        return [
            self._course(row)
            for message in dict.fromkeys(messages)
            for row in self.spool.deliveries(message)
            if row.state in states and (row.message in self.spool.contents or not with_content)
        ]

    def astray(self, mailboxes: Sequence[MailboxRef]) -> list[Course]:
        """Return waiting deliveries whose upstream sends through another mailbox by now.

        mailboxes: the one mailbox of each upstream that has one.
        returns:   some that have the same wrong one; [] where there are none.
        """
        self._guard()
        right = {one.upstream: one for one in mailboxes}
        wrong = [
            one
            for one in map(self._course, self.spool.rows.values())
            if moves.is_turned(one) and right.get(one.mailbox.upstream, one.mailbox) != one.mailbox
        ]
        return [one for one in wrong if one.mailbox == wrong[0].mailbox]

    def _course(self, row: Row) -> Course:
        message = self.spool.messages[row.message]
        return Course(
            delivery=row.id,
            message=row.message,
            state=row.state,
            held_by=row.held_by,
            mailbox=row.way.mailbox,
            header_from=row.way.header_from,
            set_from=row.way.set_from,
            reply_to_original=row.way.reply_to_original,
            device=message.device,
            user=message.user,
        )

    def redirect(self, redirects: Sequence[Redirect], why: moves.Why) -> int:
        """Give deliveries another way out; returns how many still stood as they were read."""
        self._guard()
        return sum(self._redirected(one, why) for one in redirects)

    def _redirected(self, one: Redirect, why: moves.Why) -> bool:
        row = self.spool.rows.get(one.course.delivery)
        if row is None or row.state not in moves.TURNED_BY[why]:
            return False
        if self._course(row) != one.course:
            return False
        pair = row.pair
        to = moves.turned(one.course, why)
        row.way = dataclasses.replace(
            row.way,
            mailbox=one.mailbox,
            header_from=one.header_from,
            set_from=one.set_from,
            reply_to_original=one.reply_to_original,
        )
        row.state, row.held_by = to.state, to.held_by
        row.fence += 1
        if to.is_due:
            row.due = self._clock.utcnow()
        self._note(row, moves.MOVED, moves.turned_words(one, why))
        if one.course.state is State.HELD:
            self._drop_holds(pair)
        self._taker.offer([one.mailbox])
        return True

    def _drop_holds(self, pair: Pair) -> None:
        for key in [one for one in self.spool.holds if one[0] == pair]:
            if not any(row.held_by == key[1] for row in self._held(pair)):
                del self.spool.holds[key]

    # -- upkeep -----------------------------------------------------------------------------

    def follow_clock(self) -> None:
        """Do nothing: a test's clock is set by its test."""
        self._guard()

    def sweep(self) -> tuple[Expired, ...]:
        """Expire, forget; returns what was given up."""
        self._guard()
        now = self._clock.utcnow()
        gone = [
            row
            for row in self.spool.rows.values()
            if row.state in _UNTAKEN and row.expires_at < now and row.held_by not in moves.STICKY
        ]
        expired = tuple(self._expire(row) for row in gone)
        self._forget(lambda row: row.state in moves.FINAL and self._over(row), self._drop)
        self._forget(lambda row: row.state in moves.FINAL, self._forget_rows)
        return expired

    def _expire(self, row: Row) -> Expired:
        held_by, row.held_by = row.held_by, ""
        row.state, row.settled_at = State.FAILED, self._clock.utcnow()
        row.fence += 1
        self._note(row, "failed", "not delivered within its time")
        message = self.spool.messages[row.message]
        return Expired(
            delivery=row.id,
            message=row.message,
            mailbox=row.way.mailbox,
            held_by=held_by,
            attempts=row.attempts,
            recipients=row.way.recipients,
            sender=message.sender,
            device=message.device,
            session=message.session,
            accepted_at=message.accepted_at,
        )

    def _over(self, row: Row) -> bool:
        keep = {State.SENT: self._keeping.keep_sent, State.FAILED: self._keeping.keep_failed}
        until = row.settled_at and row.settled_at + keep.get(row.state, timedelta())
        return until is not None and until <= self._clock.utcnow()

    def _forget(self, is_over: Callable[[Row], bool], forget: Callable[[QueueId], None]) -> None:
        for message in list(self.spool.messages):
            if all(is_over(row) for row in self.spool.deliveries(message)):
                forget(message)

    def _forget_rows(self, message: QueueId) -> None:
        made = from_micros(accepted_micros(message))
        if (
            made + self._keeping.history < self._clock.utcnow()
            and message not in self.spool.contents
        ):
            for row in self.spool.deliveries(message):
                del self.spool.rows[row.id]
            del self.spool.messages[message]

    def _note(self, row: Row, outcome: str, text: str) -> None:
        self.spool.journal.append(Note(delivery=row.id, outcome=outcome, text=text))

    def crash(self) -> None:
        """Be killed: whatever this door held is nobody's until it is reclaimed."""
        self.spool.alive.discard(self._name)
        self._closed = True

    def close(self) -> None:
        """Close; later calls raise SpoolUnavailable."""
        self.crash()

    def _guard(self) -> None:
        if self.broken is not None:
            raise self.broken
        if self._closed:
            raise SpoolUnavailable("the spool is closed")


class MemoryDraft:
    """store.Draft on a MemorySpool."""

    def __init__(self, door: MemoryDoor, queue_id: QueueId) -> None:
        self._door = door
        self.id = queue_id
        self._parts: list[bytes] | None = []

    def write(self, octets: bytes) -> None:
        """Add content."""
        self._content().append(octets)

    def commit(self, message: NewMessage, *, deadline: float) -> None:
        """Keep the message."""
        self._door.accept(self.id, b"".join(self._content()), message, deadline)
        self._parts = None

    def discard(self) -> None:
        """Forget all."""
        self._parts = None

    def _content(self) -> list[bytes]:
        if self._parts is None or self._door.broken is not None:
            raise self._door.broken or SpoolUnavailable("the draft is gone")
        return self._parts
