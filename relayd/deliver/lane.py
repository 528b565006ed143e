"""What the courier knows: upstreams (`Way`), mailboxes (`Lane`) and leases in hand (`Carried`).

Plain records that the courier moves; no waiting and no I/O here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from gevent.lock import Semaphore

from relayd.clock import Clock
from relayd.config.model import Upstream
from relayd.deliver import retry
from relayd.deliver.circuit import Circuit
from relayd.deliver.transport import Transport
from relayd.spool.model import Lease, MailboxRef

LEASE_MARGIN_S: Final = 5.0
"""An exchange must end so long before its lease does."""

_MOST_AHEAD: Final = 8
_MOST_SLOTS: Final = 32


class Slots(Protocol):
    """What is needed of quota.slots.SlotClient."""

    def try_acquire(self, ref: MailboxRef) -> bool:
        """Take a slot that is at hand; never blocks."""
        ...

    def acquire(
        self,
        ref: MailboxRef,
        capacity: int,
        timeout_s: float,
        *,
        per_minute: int = 0,
        priority: int = 1,
    ) -> bool:
        """Wait for a slot."""
        ...

    def again(self, ref: MailboxRef, *, unused: bool = False) -> bool:
        """Keep it for the next message; False: it is given up, somebody else is to have it."""
        ...

    def release(self, ref: MailboxRef, *, unused: bool = False) -> None:
        """Give it up."""
        ...

    def rest(self, ref: MailboxRef, rest_s: float) -> None:
        """Tell the other workers to leave a mailbox alone; never blocks."""
        ...

    def on_rest(self, told: Callable[[MailboxRef, float], None]) -> None:
        """Have `told` run when another worker says so."""
        ...

    def back(self, upstream: str) -> None:
        """Tell the other workers that an upstream works again; never blocks."""
        ...

    def on_back(self, told: Callable[[str], None]) -> None:
        """Have `told` run when another worker says so."""
        ...


@dataclass(slots=True)
class Way:
    """One upstream: its settings, its transport, and whether it is up."""

    upstream: Upstream
    transport: Transport
    circuit: Circuit = field(default_factory=Circuit)


@dataclass(slots=True)
class Lane:
    """One mailbox.

    has_work:    the spool may hold rows for it.
    is_urgent:   one of them may be of high priority.
    pumps:       priorities (0, 1) for which a greenlet waits for a slot.
    permits:     of its upstream: how much may be under way at once.
    hand:        leased, and waiting for one of the carriers; urgent mail first.
    carriers:    greenlets that send, each in a slot of its own.
    slots_aside: slots taken for mail that is being committed.
    in_flight:   deliveries under way from here, being committed or settled included.
    unsent:      those of them whose exchange is not over.
    rest_until:  monotonic; Microsoft wants it left alone until then.
    strikes:     refusals in a row.
    told_wait:   `quota.waiting` was logged for the present wait.
    lease_s:     how long the last lease took; send_s: a send, smoothed.
    reach:       how many slots to take for the next lease, at most.
    """

    ref: MailboxRef
    way: Way
    permits: Semaphore
    has_work: bool = False
    is_urgent: bool = False
    pumps: set[int] = field(default_factory=set)
    hand: deque[Carried] = field(default_factory=deque)
    carriers: int = 0
    slots_aside: int = 0
    in_flight: int = 0
    unsent: int = 0
    rest_until: float = 0.0
    strikes: int = 0
    told_wait: bool = False
    is_leasing_ahead: bool = False
    lease_s: float = 0.0
    send_s: float = 1.0
    reach: int = 1

    def note_send(self, took_s: float) -> None:
        """Remember how long a send takes here."""
        self.send_s += (took_s - self.send_s) / 4

    def note_lease(self, got: int, limit: int) -> None:
        """Reach further when as many rows came as were asked for, and only for one when not.

        A pump that took every slot at hand for the last few rows would leave none for the mail
        that comes meanwhile: that would wait too, and keep the pump busy for ever.
        """
        self.reach = min(2 * self.reach, _MOST_SLOTS) if got == limit else 1

    def ahead(self) -> int:
        """Return how many rows to have in hand for each slot in use, 0.._MOST_AHEAD.

        As many as are sent while the spool leases the next, so that no row waits in hand for
        long: what is in hand when a worker dies counts as "maybe sent". And none where
        Exchange's pace decides.
        """
        if self.way.upstream.messages_per_minute:
            return 0
        return min(_MOST_AHEAD, round(self.lease_s / max(self.send_s, 0.0001)))

    def room(self, slots: int = 0) -> int:
        """Return how much more may be leased while the slots in use, and `slots` more, are."""
        return (self.carriers + slots) * (1 + self.ahead()) - self.unsent

    def lay_in_hand(self, carried: Iterable[Carried]) -> None:
        """Add to what is in hand, urgent mail before other."""
        for one in carried:
            if one.lease.priority:
                self.hand.append(one)
            else:
                urgent = sum(not other.lease.priority for other in self.hand)
                self.hand.insert(urgent, one)

    def has_urgent_in_hand(self) -> bool:
        """Tell whether mail of high priority waits for a carrier."""
        return bool(self.hand) and self.hand[0].lease.priority == 0

    def rest(self, now: float, retry_after_s: float | None) -> None:
        """Leave the mailbox alone: as long as the server wishes, else longer each time."""
        self.strikes += 1
        if retry_after_s is None:
            wait_s = retry.mailbox_rest_s(self.strikes)
        else:
            wait_s = retry.obeyed_s(retry_after_s, self.strikes)
        self.rest_until = max(self.rest_until, now + wait_s)

    def next_moment(self, now: float) -> float | None:
        """Return when what stands in its way is over; None if that is no matter of time."""
        moments = [self.rest_until]
        if not self.way.circuit.is_up():
            moments.append(self.way.circuit.probe_at)
        last = max(moments)
        return last if last > now else None

    def is_forgettable(self, now: float) -> bool:
        """Tell whether nothing is known of it that matters."""
        busy = self.has_work or self.is_urgent or self.pumps or self.in_flight or self.carriers
        return not busy and not self.is_resting(now)

    def is_resting(self, now: float) -> bool:
        """Tell whether it is to be left alone."""
        return now < self.rest_until


@dataclass(slots=True, eq=False)
class Carried:
    """One lease in hand; the Grip that the transport works with.

    is_probe:     it finds out whether the upstream is back.
    has_begun:    an octet may have gone out.
    is_stopping:  set by the courier: do not begin any more.
    unsettled:    how often what became of it could not be written down.
    """

    lease: Lease
    clock: Clock
    is_probe: bool = False
    has_begun: bool = False
    is_stopping: bool = False
    unsettled: int = 0

    def may_start(self) -> bool:
        """Tell whether to try at all."""
        return not self.is_stopping

    def seconds_left(self) -> float:
        """Return how long one exchange may take."""
        return self.lease.expires_boottime - LEASE_MARGIN_S - self.clock.boottime()

    def may_begin(self) -> bool:
        """Tell whether the first octet may go; from then on it may have gone."""
        if self.is_stopping or self.seconds_left() <= 0:
            return False
        self.has_begun = True
        return True


class Supply(Protocol):
    """Who gets slots and leases for a mailbox (pumps.Pumps); none of these waits."""

    def start(self, lane: Lane) -> None:
        """See to it that somebody waits for a slot."""
        ...

    def go_on(self, lane: Lane) -> None:
        """Do so if the mailbox has work and may have it done; else note when it may."""
        ...

    def lease_ahead(self, lane: Lane) -> None:
        """Lease what the slots in use will soon be free for."""
        ...
