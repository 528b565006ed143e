"""Who may send through which mailbox now: slots and pacing for all workers, pure.

A mailbox has `capacity` slots (requests in flight that Exchange tolerates) and, when paced,
at most `per_minute` sends in any 60 seconds. A grant is one slot, and with pacing the right
to a few sends through it, so that not every message needs a question. Grants belong to a
connection and are freed at its end.

    who is next   priority first, then the connection that holds least, then who came first
    recall        no slot is free and somebody waits: a holder with more than its share is
                  asked for one back ("hard": at its next completion; else only an idle one)
    high priority waits for a slot, never for pacing; its sends are counted all the same
    pacing        a send handed out counts until it is given back unused; a used one counts for
                  60 s from when we hear of it, which is never too early
    a new table   (the daemon was restarted) grants nothing until it is opened: first the
                  workers say what they hold

Methods return what must be said; nothing here waits, sends, or looks at a clock.
"""

from __future__ import annotations

import collections
import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from relayd.spool.model import MailboxRef
from relayd.values import frozen

WINDOW_S: Final = 60.0
RECALL_AGAIN_S: Final = 1.0
HIGH: Final = 0

_MOST_SENDS_SHARE: Final = 6  # a grant carries at most a sixth of a minute's sends


@frozen
class Granted:
    """Tell `connection` that it has the slot. sends: how many it may send with it; None: any."""

    connection: int
    grant: int
    sends: int | None


@frozen
class TimedOut:
    """Tell `connection` that the time it was willing to wait is over."""

    connection: int
    grant: int


@frozen
class Recalled:
    """Ask `connection` for a slot of `mailbox` back. hard: even one that is in use, once done."""

    connection: int
    mailbox: MailboxRef
    hard: bool


Said: TypeAlias = Granted | TimedOut | Recalled


@frozen(kw_only=True)
class Ask:
    """One wish for a slot. grant: the connection's own number for it, never used again.

    deadline: by the clock of the `now` that is handed in.
    """

    connection: int
    grant: int
    mailbox: MailboxRef
    capacity: int
    per_minute: int
    priority: int
    deadline: float


@frozen(kw_only=True)
class Claim:
    """A slot that a connection holds already. sends: left on it; None: unpaced.

    recent: ages, seconds, of the sends made through this mailbox in the last minute.
    """

    connection: int
    grant: int
    mailbox: MailboxRef
    capacity: int
    per_minute: int
    sends: int | None
    recent: Sequence[float] = ()


@frozen(kw_only=True)
class MailboxUse:
    """For `relayd status`. sent: in the last minute, as far as told."""

    mailbox: MailboxRef
    capacity: int
    per_minute: int
    held: int
    waiting: int
    sent: int


@dataclass(slots=True)
class _Waiter:
    ask: Ask
    order: int
    recalled_at: float = float("-inf")


@dataclass(slots=True)
class _Mailbox:
    ref: MailboxRef
    capacity: int = 1
    per_minute: int = 0
    held: dict[tuple[int, int], int] = field(default_factory=dict)  # (connection, grant) -> sends
    counts: collections.Counter[int] = field(default_factory=collections.Counter)
    waiting: list[_Waiter] = field(default_factory=list)
    sent: collections.deque[float] = field(default_factory=collections.deque)  # moments, sorted
    handed: int = 0  # sends handed out and not yet given back
    due: float = float("inf")

    def free_sends(self, now: float) -> int:
        """Return how many more sends the window holds; may be negative."""
        while self.sent and self.sent[0] <= now - WINDOW_S:
            self.sent.popleft()
        return self.per_minute - len(self.sent) - self.handed

    def is_empty(self) -> bool:
        return not (self.held or self.waiting or self.sent)


class SlotTable:
    """All mailboxes; one thread's own."""

    def __init__(self, *, is_open: bool = False) -> None:
        self.is_open = is_open
        self._mailboxes: dict[MailboxRef, _Mailbox] = {}
        self._where: dict[tuple[int, int], MailboxRef] = {}
        self._due: list[tuple[float, MailboxRef]] = []
        self._order = 0

    def open(self, now: float) -> list[Said]:
        """Begin to grant."""
        self.is_open = True
        said: list[Said] = []
        for mailbox in list(self._mailboxes.values()):
            said += self._serve(mailbox, now)
        return said

    def ask(self, ask: Ask, now: float) -> list[Said]:
        """Take a wish; its Granted or TimedOut comes now or from a later call."""
        mailbox = self._mailbox(ask.mailbox, ask.capacity, ask.per_minute)
        self._order += 1
        mailbox.waiting.append(_Waiter(ask, self._order))
        self._where[ask.connection, ask.grant] = ask.mailbox
        return self._serve(mailbox, now)

    def claim(self, claim: Claim, now: float) -> None:
        """Take note of a slot held since before this table was made, over capacity or not."""
        mailbox = self._mailbox(claim.mailbox, claim.capacity, claim.per_minute)
        if mailbox.per_minute:
            moments = (now - age for age in claim.recent if 0 <= age < WINDOW_S)
            mailbox.sent = collections.deque(sorted([*mailbox.sent, *moments]))
        self._hold(mailbox, claim.connection, claim.grant, claim.sends or 0)
        self._where[claim.connection, claim.grant] = claim.mailbox

    def release(self, connection: int, grant: int, used: int, now: float) -> list[Said]:
        """Take a slot back, or a wish that is no longer one; unknown ones are ignored.

        used: how many of its sends were made; the rest may go to others.
        """
        ref = self._where.pop((connection, grant), None)
        if ref is None:
            return []
        mailbox = self._mailboxes[ref]
        if not self._let_go(mailbox, connection, grant, used, now):
            mailbox.waiting = [w for w in mailbox.waiting if not _is(w, connection, grant)]
        return self._serve(mailbox, now)

    def left(self, connection: int, now: float) -> list[Said]:
        """A connection has ended: free what it held, forget what it wanted."""
        touched: dict[MailboxRef, None] = {}
        for key in [key for key in self._where if key[0] == connection]:
            ref = self._where.pop(key)
            mailbox = self._mailboxes[ref]
            # It may have made all its sends before it died.
            if not self._let_go(mailbox, *key, mailbox.held.get(key, 0), now):
                mailbox.waiting = [w for w in mailbox.waiting if not _is(w, *key)]
            touched[ref] = None
        said: list[Said] = []
        for ref in touched:
            said += self._serve(self._mailboxes[ref], now)
        return said

    def tick(self, now: float) -> list[Said]:
        """Do what time has made due; see `next_due`."""
        said: list[Said] = []
        while self._due and self._due[0][0] <= now:
            due, ref = heapq.heappop(self._due)
            mailbox = self._mailboxes.get(ref)
            if mailbox is not None and mailbox.due == due:
                mailbox.due = float("inf")
                said += self._serve(mailbox, now)
        return said

    def next_due(self) -> float:
        """Return when `tick` has something to do; infinity if never, or now and then too early."""
        return self._due[0][0] if self._due else float("inf")

    def use(self, now: float) -> tuple[MailboxUse, ...]:
        """Return the mailboxes in use."""
        return tuple(
            MailboxUse(
                mailbox=one.ref,
                capacity=one.capacity,
                per_minute=one.per_minute,
                held=len(one.held),
                waiting=len(one.waiting),
                sent=sum(1 for moment in one.sent if moment > now - WINDOW_S) + one.handed,
            )
            for one in self._mailboxes.values()
        )

    def _mailbox(self, ref: MailboxRef, capacity: int, per_minute: int) -> _Mailbox:
        mailbox = self._mailboxes.get(ref)
        if mailbox is None:
            mailbox = self._mailboxes[ref] = _Mailbox(ref)
        # The newest question knows the newest configuration.
        mailbox.capacity, mailbox.per_minute = capacity, per_minute
        return mailbox

    def _hold(self, mailbox: _Mailbox, connection: int, grant: int, sends: int) -> None:
        mailbox.held[connection, grant] = sends
        mailbox.counts[connection] += 1
        mailbox.handed += sends

    def _let_go(
        self, mailbox: _Mailbox, connection: int, grant: int, used: int, now: float
    ) -> bool:
        """Return whether it was held."""
        sends = mailbox.held.pop((connection, grant), None)
        if sends is None:
            return False
        mailbox.handed -= sends
        mailbox.counts[connection] -= 1
        if not mailbox.counts[connection]:
            del mailbox.counts[connection]
        if mailbox.per_minute:
            mailbox.sent.extend([now] * max(0, used))
        return True

    def _serve(self, mailbox: _Mailbox, now: float) -> list[Said]:
        """Grant what can be granted, give up what waited too long, recall what is unfair."""
        said = self._time_out(mailbox, now)
        if self.is_open:
            said += self._grant(mailbox, now)
            if len(mailbox.held) >= mailbox.capacity:
                said += _recall(mailbox, now)
        if mailbox.waiting:
            self._remind(mailbox, now)
        elif mailbox.sent:
            self._remind_at(mailbox, mailbox.sent[-1] + WINDOW_S)
        elif mailbox.is_empty():
            del self._mailboxes[mailbox.ref]
        return said

    def _time_out(self, mailbox: _Mailbox, now: float) -> list[Said]:
        said: list[Said] = []
        mailbox.free_sends(now)  # forgets sends that are too old to matter
        for waiter in [w for w in mailbox.waiting if w.ask.deadline <= now]:
            mailbox.waiting.remove(waiter)
            key = waiter.ask.connection, waiter.ask.grant
            del self._where[key]
            said.append(TimedOut(*key))
        return said

    def _grant(self, mailbox: _Mailbox, now: float) -> list[Said]:
        said: list[Said] = []
        while mailbox.waiting and len(mailbox.held) < mailbox.capacity:
            waiter = min(mailbox.waiting, key=lambda w: _rank(mailbox, w))
            sends: int | None = None
            if mailbox.per_minute:
                free = mailbox.free_sends(now)
                if free < 1 and waiter.ask.priority != HIGH:
                    break
                most = max(1, mailbox.per_minute // _MOST_SENDS_SHARE)
                sends = max(1, min(most, free // (2 * len(mailbox.waiting))))
            mailbox.waiting.remove(waiter)
            self._hold(mailbox, waiter.ask.connection, waiter.ask.grant, sends or 0)
            said.append(Granted(waiter.ask.connection, waiter.ask.grant, sends))
        return said

    def _remind(self, mailbox: _Mailbox, now: float) -> None:
        """See that `tick` comes back when time alone may change something."""
        due = min(waiter.ask.deadline for waiter in mailbox.waiting)
        if len(mailbox.held) >= mailbox.capacity:
            due = min(due, now + RECALL_AGAIN_S)
        elif mailbox.sent:
            due = min(due, mailbox.sent[0] + WINDOW_S)
        self._remind_at(mailbox, due)

    def _remind_at(self, mailbox: _Mailbox, due: float) -> None:
        if due < mailbox.due:
            mailbox.due = due
            heapq.heappush(self._due, (due, mailbox.ref))


def _is(waiter: _Waiter, connection: int, grant: int) -> bool:
    return (waiter.ask.connection, waiter.ask.grant) == (connection, grant)


def _rank(mailbox: _Mailbox, waiter: _Waiter) -> tuple[int, int, int]:
    return waiter.ask.priority, mailbox.counts.get(waiter.ask.connection, 0), waiter.order


def _recall(mailbox: _Mailbox, now: float) -> list[Said]:
    """Ask holders with more than their share for slots back, for those who wait for one."""
    said: list[Said] = []
    counts = collections.Counter(mailbox.counts)
    for waiter in sorted(mailbox.waiting, key=lambda w: _rank(mailbox, w))[: mailbox.capacity]:
        mine = waiter.ask.connection
        # Counted as if earlier recalls were obeyed; asked is only who holds some now.
        others = [one for one in mailbox.counts if one != mine and counts[one] > 0]
        if not others:
            continue
        is_due = now >= waiter.recalled_at + RECALL_AGAIN_S
        if is_due:
            waiter.recalled_at = now
        richest = max(others, key=lambda connection: counts[connection])
        is_urgent = waiter.ask.priority == HIGH or not counts[mine]
        if is_urgent or counts[richest] > counts[mine] + 1:
            counts[richest] -= 1
            counts[mine] += 1
            others, hard = [richest], True
        else:
            hard = False
        if is_due:
            said += [Recalled(connection, mailbox.ref, hard) for connection in others]
    return said
