"""Delivers: takes a slot, leases the best row of that mailbox, sends, settles.

    born leased   a message accepted here goes out at once where a slot is at hand (`take`)
    pump          one greenlet for each mailbox with work waits for a slot, then leases; mailboxes
                  take turns for the permits, so that one with 100,000 rows stops no other
    in hand       where sending is faster than leasing, some rows more than there are slots are
                  leased, so that no slot waits for the spool
    carriers      a greenlet for each slot in use sends what is in hand, one after the other
    one loop      wakes at the next due moment, never in between

Microsoft takes responsibility with 202; that is "sent", not "delivered". Nothing is leased
while the spool cannot be written, the clock is wrong, the upstream is down (its circuit lets
one probe through) or the mailbox rests.

# DURABILITY: lease and intent are durable before the first octet goes out; a 202 that cannot
be settled is tried again until the spool is back: its open intent says "maybe sent".

Source: docs/flow.md, docs/spool.md.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from typing import Final

import gevent
import structlog
from gevent.event import Event
from gevent.lock import Semaphore

from relayd.clock import SYSTEM, Clock
from relayd.config.model import Spool
from relayd.deliver import catalogue
from relayd.deliver.decide import Policy, decide, returned
from relayd.deliver.lane import Carried, Lane, Slots, Way
from relayd.deliver.outcome import (
    Ambiguous,
    Answer,
    Deferred,
    Divided,
    Misconfigured,
    Outcome,
    Result,
    Sent,
)
from relayd.deliver.wallclock import EARLIEST, WallClock
from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.identity import aadsts
from relayd.observe import metrics
from relayd.spool.model import (
    Lease,
    MailboxRef,
    NewDelivery,
    QueueId,
    Settlement,
    State,
    queue_id_text,
)
from relayd.spool.store import Door, Expired
from relayd.values import frozen

log = structlog.get_logger()

CARRIERS: Final = 256
"""Deliveries under way in one worker for one upstream, so that one which hangs with hundreds of
mailboxes leaves the others theirs; each holds one small message or one piece of a large."""

_BATCH: Final = 32
_SLOT_WAIT_S: Final = 30.0
_SLOT_PATIENCE_S: Final = 2.0
_UPKEEP_S: Final = 60.0
_KEEP_LEASES_S: Final = 15.0
_RENEW_BELOW_S: Final = 120.0
_CLOCK_LOOK_S: Final = 10.0
_FAULT_REST_S: Final = 5.0
_SHORTEST_WAIT_S: Final = 0.001
_PROBING_LANES: Final = 4
_SPOOL_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)


@frozen
class UpstreamStatus:
    """One upstream for `status`.

    state:      "up", "down", "probing".
    retry_in_s: 0 while up.
    resting:    mailboxes that Microsoft wants left alone -> for how long, seconds.
    """

    name: str
    state: str
    cause: str
    text: str
    down_s: float
    retry_in_s: float
    in_flight: int
    mailboxes_waiting: int
    resting: Mapping[str, float]


class Courier:
    """One worker's deliveries; implements spool.store.Taker. Built by the worker's root.

    ways:       one for each upstream of the configuration.
    on_outcome: called with each lease and what was decided about it, before it is settled;
                reply mode `cutthrough` listens there. Must not block.
    """

    def __init__(
        self,
        door: Door,
        slots: Slots,
        ways: Sequence[Way],
        spool: Spool,
        *,
        carriers: int = CARRIERS,
        clock: Clock = SYSTEM,
        dice: Callable[[], float] = random.random,
        on_outcome: Callable[[Lease, Settlement], None] | None = None,
    ) -> None:
        self._door = door
        self._slots = slots
        self._ways: Mapping[str, Way] = {way.upstream.name: way for way in ways}
        self._policies: Mapping[str, Policy] = {
            way.upstream.name: Policy(
                schedule=spool.retry,
                ambiguous=way.upstream.ambiguous,
                transport=way.transport.name,
            )
            for way in ways
        }
        self._clock = clock
        self._dice = dice
        self._on_outcome = on_outcome
        self._wall = WallClock(clock)
        self._clock_is_wrong = False
        self._lanes: dict[MailboxRef, Lane] = {}
        self._held: set[tuple[MailboxRef, str]] = set()
        self._permits = {way.upstream.name: Semaphore(carriers) for way in ways}
        self._in_flight: set[Carried] = set()
        self._idle = Event()
        self._idle.set()
        self._wake = Event()
        self._must_scan = True
        self._next_due: datetime | None = None
        self._sleeps_until: float = 0.0
        self._spool_failures = 0
        self._spool_retry_at = 0.0
        self._is_draining = False
        self._is_stopped = Event()
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self._keeper: gevent.Greenlet[..., None] | None = None
        self._unknown: set[str] = set()

    # --- life ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver; call it once, when the Door is open."""
        self._look_at_clock()
        self._learn_holds()
        self._door.set_taker(self)
        self._slots.on_rest(self._told_to_rest)
        self._slots.on_back(self._told_back)
        self._greenlets = [gevent.spawn(self._run), gevent.spawn(self._upkeep)]

    def drain(self, deadline: float) -> int:
        """Lease no more, let urgent mail leave first, finish what is under way.

        deadline: monotonic. returns: how many deliveries were still under way at its end;
                  their open intents say "maybe sent".
        """
        lanes = [one for one in self._lanes.values() if one.is_urgent and self._may_lease(one)]
        self._is_draining = True
        self._wake.set()
        for carried in self._in_flight:
            carried.is_stopping = carried.lease.priority > 0
        for lane in self._lanes.values():
            self._stop_hand(lane)
        urgent = [gevent.spawn(self._last_urgent, lane, deadline) for lane in lanes]
        gevent.joinall(urgent, timeout=max(deadline - self._clock.monotonic(), 0.0))
        self._idle.wait(max(deadline - self._clock.monotonic(), 0.0))
        self._is_stopped.set()
        gevent.killall(self._greenlets, block=False)
        for way in self._ways.values():
            way.transport.close()
        return len(self._in_flight)

    def _stop_hand(self, lane: Lane) -> None:
        """Give back what is in hand, but for what is urgent."""
        urgent = [one for one in lane.hand if not one.is_stopping]
        for one in urgent:
            lane.hand.remove(one)
        self._give_up_hand(lane, "the worker stops")
        lane.hand.extend(urgent)

    def reclaim(self, pid: int | None = None) -> int:
        """Take back the leases of a worker that died, and deliver them; raises nothing."""
        try:
            count = self._door.reclaim(pid=pid)
        except SpoolUnavailable as error:
            self._spool_failed(error)
            return 0
        if count or pid is not None:  # what it gave back before its end, nobody else was told
            self._must_scan = True
            self._wake.set()
        return count

    # --- what is asked from outside -------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many deliveries are under way."""
        return len(self._in_flight)

    @property
    def clock_trouble(self) -> str:
        """Why nothing is sent because of the wall clock, for people; "" while it is right."""
        return self._wall.trouble()

    def upstreams(self) -> tuple[UpstreamStatus, ...]:
        """Return the state of every upstream, by name."""
        now = self._clock.monotonic()
        return tuple(self._status(way, now) for _, way in sorted(self._ways.items()))

    def _status(self, way: Way, now: float) -> UpstreamStatus:
        circuit, lanes = way.circuit, [one for one in self._lanes.values() if one.way is way]
        is_up = circuit.is_up()
        return UpstreamStatus(
            name=way.upstream.name,
            state=circuit.state.value,
            cause=circuit.cause,
            text=circuit.text,
            down_s=0.0 if is_up else now - circuit.down_since,
            retry_in_s=0.0 if is_up else max(circuit.probe_at - now, 0.0),
            in_flight=sum(lane.in_flight for lane in lanes),
            mailboxes_waiting=sum(lane.has_work for lane in lanes),
            resting={
                lane.ref.mailbox: lane.rest_until - now for lane in lanes if lane.is_resting(now)
            },
        )

    # --- Taker: called by the Door on the hub, never blocks ------------------------------

    def wants(self, delivery: NewDelivery, priority: int) -> bool:
        """Set a slot and a carrier aside, if all is clear for this delivery; see Taker."""
        lane = self._lane(delivery.mailbox)
        if lane is None:
            return False
        if self._is_clear(lane, delivery, priority) and lane.permits.acquire(blocking=False):
            if self._slots.try_acquire(lane.ref):
                lane.slots_aside += 1
            elif lane.room() <= 0:
                lane.permits.release()
                return self._must_wait(lane, priority)
            lane.in_flight += 1
            lane.unsent += 1
            return True
        return self._must_wait(lane, priority)

    def _must_wait(self, lane: Lane, priority: int) -> bool:
        if priority == 0:
            lane.is_urgent = True  # it will be in the spool in a moment; it must not wait its turn
        return False

    def take(self, lease: Lease) -> None:
        """Deliver a message born leased; see Taker."""
        lane = self._lane(lease.mailbox)
        if lane is None:  # `wants` said yes: it is there
            raise LookupError(lease.mailbox.upstream)
        carried = self._picked_up(lease)
        if lane.slots_aside:
            lane.slots_aside -= 1
            self._start_carrier(lane, carried)
        else:
            self._lay_in_hand(lane, [carried])

    def spare(self, delivery: NewDelivery) -> None:
        """Put back what `wants` set aside; see Taker."""
        lane = self._lanes[delivery.mailbox]
        lane.in_flight -= 1
        lane.unsent -= 1
        lane.permits.release()
        if lane.slots_aside:
            lane.slots_aside -= 1
            self._slots.release(lane.ref, unused=True)
        self._go_on(lane)

    def offer(self, mailboxes: Sequence[MailboxRef]) -> None:
        """Note that these mailboxes have work in the spool; see Taker."""
        for ref in mailboxes:
            lane = self._lane(ref)
            if lane is not None:
                lane.has_work = True
                self._go_on(lane)

    def _is_clear(self, lane: Lane, delivery: NewDelivery, priority: int) -> bool:
        """Tell whether a new delivery may go before all that waits."""
        return (
            not self._is_draining
            and lane.way.circuit.is_up()
            and not (lane.has_work and priority > 0)  # those who came first go first
            and not self._spool_failures
            and not self._clock_is_wrong
            and not lane.is_resting(self._clock.monotonic())
            and (lane.ref, delivery.header_from) not in self._held
        )

    def _lane(self, ref: MailboxRef) -> Lane | None:
        lane = self._lanes.get(ref)
        if lane is None:
            way = self._ways.get(ref.upstream)
            if way is None:
                if ref.upstream not in self._unknown:
                    self._unknown.add(ref.upstream)
                    log.warning("upstream.unknown", upstream=ref.upstream)
                return None
            lane = self._lanes[ref] = Lane(ref, way, self._permits[ref.upstream])
        return lane

    # --- the loop ------------------------------------------------------------------------

    def _run(self) -> None:
        """Wake at the next moment at which something may be done."""
        while not self._is_draining:
            self._wake.clear()
            try:
                wait_s = self._turn()
            except Exception:  # the edge of a daemon loop: it must never end
                log.exception("courier.bug")
                wait_s = _CLOCK_LOOK_S
            self._sleeps_until = self._clock.monotonic() + wait_s
            self._wake.wait(wait_s)

    def _turn(self) -> float:
        """Find work, set pumps going; return how long there is nothing else to do."""
        self._look_at_clock()
        now = self._clock.monotonic()
        if self._next_due is not None and self._next_due <= self._clock.utcnow():
            self._must_scan = True
        if self._must_scan and now >= self._spool_retry_at:
            self._scan()
        probing: dict[str, int] = {}
        for lane in list(self._lanes.values()):
            if lane.is_forgettable(now):
                del self._lanes[lane.ref]
            elif lane.has_work and self._may_lease(lane):
                if not lane.way.circuit.is_up():
                    # A slot may be long in coming: try a few mailboxes, not all of them.
                    name = lane.ref.upstream
                    probing[name] = probing.get(name, 0) + 1
                    if probing[name] > _PROBING_LANES:
                        continue
                self._start_pump(lane)
        return self._wait_s(now)

    def _scan(self) -> None:
        try:
            work = self._door.work()
        except SpoolUnavailable as error:
            self._spool_failed(error)
            return
        self._must_scan = False  # that it can be read does not mean that it can be written
        self._next_due = work.next_due_at
        for ref in work.mailboxes:
            lane = self._lane(ref)
            if lane is not None:
                lane.has_work = True

    def _wait_s(self, now: float) -> float:
        """Return the time to the first of: a row due, a probe, a rest's end, the spool."""
        moments = [now + (_CLOCK_LOOK_S if self._clock_is_wrong else _UPKEEP_S)]
        if self._next_due is not None:
            moments.append(now + (self._next_due - self._clock.utcnow()).total_seconds())
        if self._spool_failures and self._spool_retry_at > now:
            moments.append(self._spool_retry_at)
        for lane in self._lanes.values():
            moment = lane.next_moment(now) if lane.has_work else None
            if moment is not None:
                moments.append(moment)
        first = min(moments)
        if self._spool_failures:
            first = max(first, self._spool_retry_at)  # sooner, nothing can be done
        return min(max(first - now, _SHORTEST_WAIT_S), _UPKEEP_S)

    def _wake_by(self, moment: float) -> None:
        """Have the loop look round at `moment`, monotonic, at the latest."""
        if moment < self._sleeps_until:
            self._wake.set()

    def _due(self, moment: datetime) -> None:
        """Note a row's due moment; wake up for it if it is the first."""
        if self._next_due is None or moment < self._next_due:
            self._next_due = moment
            in_s = (moment - self._clock.utcnow()).total_seconds()
            self._wake_by(self._clock.monotonic() + in_s)

    def _look_at_clock(self) -> None:
        if self._wall.look():
            log.warning(
                "clock.leaped",
                seconds=round(self._wall.leaped_s),
                text="nothing is sent for a minute, nothing expires for an hour",
            )
        is_wrong = not self._wall.may_send()
        if is_wrong != self._clock_is_wrong:
            self._clock_is_wrong = is_wrong
            if is_wrong:
                log.error(
                    "clock.wrong",
                    now=self._clock.utcnow().isoformat(timespec="seconds"),
                    text="sending waits until the clock is right; mail is accepted and kept",
                )
            else:
                log.info("clock.right")

    # --- pumps: slots, then leases --------------------------------------------------------

    def _go_on(self, lane: Lane) -> None:
        """See to it that somebody waits for a slot for what the mailbox has."""
        if not lane.has_work:
            return
        if self._may_lease(lane):
            self._start_pump(lane)
            return
        moment = lane.next_moment(self._clock.monotonic())
        if moment is not None:
            self._wake_by(moment)

    def _start_pump(self, lane: Lane) -> None:
        priority = 0 if lane.is_urgent or lane.has_urgent_in_hand() else 1
        if priority not in lane.pumps:
            lane.pumps.add(priority)
            gevent.spawn(self._pump, lane, priority)

    def _may_lease(self, lane: Lane) -> bool:
        now = self._clock.monotonic()
        circuit = lane.way.circuit
        return (
            not self._is_draining
            and not self._clock_is_wrong
            and not (self._spool_failures and now < self._spool_retry_at)
            and not lane.is_resting(now)
            and (circuit.is_up() or now >= circuit.probe_at)
        )

    def _may_send(self, lane: Lane) -> bool:
        """Tell whether nothing has come in the way of what is in hand."""
        return (
            not self._clock_is_wrong
            and lane.way.circuit.is_up()
            and not lane.is_resting(self._clock.monotonic())
        )

    def _pump(self, lane: Lane, priority: int) -> None:
        """Get slots for one mailbox as long as it has work; one for each lane and priority."""
        try:
            while self._has_use_for_slots(lane) and self._turn_of(lane, priority):
                pass
        except Exception:  # an unforeseen fault must not silence a mailbox
            log.exception("courier.bug", upstream=lane.ref.upstream, mailbox=lane.ref.mailbox)
            lane.has_work = True
            lane.rest_until = self._clock.monotonic() + _FAULT_REST_S
            self._wake.set()
        finally:
            lane.pumps.discard(priority)
            if not lane.pumps and not lane.carriers:
                self._give_up_hand(lane)

    def _has_use_for_slots(self, lane: Lane) -> bool:
        return bool(lane.hand) or (lane.has_work and self._may_lease(lane))

    def _turn_of(self, lane: Lane, priority: int) -> bool:
        """Take slots, then permits, then lease; False: enough for now."""
        if not self._wait_for_slot(lane, priority):
            if not lane.carriers:
                self._give_up_hand(lane)
            return lane.has_work
        if lane.hand or not lane.has_work:
            self._man(lane, slots=1)
            return True
        slots, permits = 1, 0
        leases: list[Lease] = []
        is_probe = False
        is_up = lane.way.circuit.is_up()
        try:
            while is_up and slots < lane.reach and self._slots.try_acquire(lane.ref):
                slots += 1
            permits = self._permits_for(lane, max(slots, lane.room(slots)) if is_up else 1)
            leases, is_probe = self._lease(lane, permits)
        finally:
            self._hand_out(lane, leases, permits=permits, slots=slots, is_probe=is_probe)
        # While a probe is out, or after one, the loop decides.
        # Work noted while the lease came back empty found this pump, and started no other.
        return is_up and not is_probe and (bool(leases) or lane.has_work)

    def _permits_for(self, lane: Lane, wanted: int) -> int:
        """Wait for a permit, and take as many more as are wanted and to be had."""
        lane.permits.acquire()  # in order of arrival: mailboxes take turns
        permits = 1
        while permits < min(wanted, _BATCH) and lane.permits.acquire(blocking=False):
            permits += 1
        return permits

    def _hand_out(
        self, lane: Lane, leases: Sequence[Lease], *, permits: int, slots: int, is_probe: bool
    ) -> None:
        """Give leases to carriers in the slots taken for them; what is too many goes back."""
        lane.in_flight += len(leases)
        lane.unsent += len(leases)
        for _ in range(permits - len(leases)):
            lane.permits.release()
        carried = [self._picked_up(lease, is_probe=is_probe) for lease in leases]
        if is_probe and carried:  # in nobody's hand: it alone may go
            self._start_carrier(lane, carried[0])
            slots -= 1
        else:
            lane.lay_in_hand(carried)
        self._man(lane, slots=slots)

    # --- in hand --------------------------------------------------------------------------

    def _lay_in_hand(self, lane: Lane, carried: Sequence[Carried]) -> None:
        lane.lay_in_hand(carried)
        self._man(lane)

    def _man(self, lane: Lane, *, slots: int = 0) -> None:
        """Have what is in hand carried: in `slots` taken for it, those at hand, else by a pump."""
        if lane.hand and not self._may_send(lane):
            self._give_up_hand(lane)
        while lane.hand and (slots or self._slots.try_acquire(lane.ref)):
            slots = max(slots - 1, 0)
            if not lane.hand:  # taking a slot may let others run
                slots += 1
                break
            self._start_carrier(lane, lane.hand.popleft())
        for _ in range(slots):
            self._slots.release(lane.ref, unused=True)
        if lane.hand:
            self._start_pump(lane)

    def _give_up_hand(self, lane: Lane, reason: str = "its turn did not come") -> None:
        """Give back what is in hand, untried: only now can it be leased again."""
        while lane.hand:
            carried = lane.hand.popleft()
            lane.unsent -= 1
            settlement = returned(reason, transport=lane.way.transport.name)
            self._settle(lane, carried, settlement)

    def _lease_ahead(self, lane: Lane) -> None:
        """Lease what the slots in use will soon be free for; one greenlet for each lane."""
        permits = 0
        leases: list[Lease] = []
        try:
            while permits < min(lane.room(), _BATCH) and lane.permits.acquire(blocking=False):
                permits += 1
            if permits and self._may_send(lane):
                leases, _ = self._lease(lane, permits)
        except Exception:  # an unforeseen fault must not silence a mailbox
            log.exception("courier.bug", upstream=lane.ref.upstream, mailbox=lane.ref.mailbox)
            lane.has_work = True
        finally:
            lane.is_leasing_ahead = False
            self._hand_out(lane, leases, permits=permits, slots=0, is_probe=False)

    def _wait_for_slot(self, lane: Lane, priority: int) -> bool:
        upstream = lane.way.upstream
        wait_s = _SLOT_WAIT_S if lane.told_wait else _SLOT_PATIENCE_S
        got = self._slots.acquire(
            lane.ref,
            upstream.concurrency,
            wait_s,
            per_minute=upstream.messages_per_minute,
            priority=priority,
        )
        if got:
            lane.told_wait = False
        elif not lane.told_wait:
            lane.told_wait = True
            log.info("quota.waiting", upstream=lane.ref.upstream, mailbox=lane.ref.mailbox)
        return got

    def _lease(self, lane: Lane, limit: int) -> tuple[list[Lease], bool]:
        """Lease with slots in hand; what stood in the way meanwhile is looked at again.

        returns: the leases, and whether one is to find out if the upstream is back.
        """
        if not self._may_lease(lane):
            return [], False
        circuit = lane.way.circuit
        is_probe = not circuit.is_up()
        if is_probe and not circuit.may_probe(self._clock.monotonic()):
            return [], False
        if is_probe:
            limit = 1
        # Cleared before, not after: what is offered while the spool looks must not be missed.
        lane.has_work = lane.is_urgent = False
        began = self._clock.monotonic()
        try:
            leases = self._door.lease(lane.ref, limit=limit)
            lane.lease_s = self._clock.monotonic() - began
        except SpoolUnavailable as error:
            self._spool_failed(error)
            lane.has_work = True
            leases = []
        else:
            self._spool_is_well()
            lane.note_lease(len(leases), limit)
            if len(leases) == limit:
                lane.has_work = True
                lane.is_urgent |= leases[-1].priority == 0
        if is_probe and not leases:
            circuit.spare(self._clock.monotonic())
            self._wake.set()
        return leases, is_probe

    def _last_urgent(self, lane: Lane, deadline: float) -> None:
        """While stopping: send what is of high priority, give back the first that is not."""
        upstream = lane.way.upstream
        while lane.way.circuit.is_up():
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0 or not lane.permits.acquire(timeout=left_s):
                return
            leases: list[Lease] = []
            left_s = deadline - self._clock.monotonic()
            has_slot = left_s > 0 and self._slots.acquire(
                lane.ref,
                upstream.concurrency,
                min(left_s, _SLOT_WAIT_S),
                per_minute=upstream.messages_per_minute,
                priority=0,
            )
            if has_slot:
                with contextlib.suppress(SpoolUnavailable):
                    leases = self._door.lease(lane.ref, limit=1)
            if not leases:
                if has_slot:
                    self._slots.release(lane.ref, unused=True)
                lane.permits.release()
                return
            lane.in_flight += 1
            lane.unsent += 1
            lane.carriers += 1
            self._carry(lane, self._picked_up(leases[0]))
            if leases[0].priority > 0:
                return

    # --- carrying -------------------------------------------------------------------------------

    def _picked_up(self, lease: Lease, *, is_probe: bool = False) -> Carried:
        carried = Carried(lease, self._clock, is_probe)
        carried.is_stopping = self._is_draining and lease.priority > 0
        self._in_flight.add(carried)
        self._idle.clear()
        if self._keeper is None:
            self._keeper = gevent.spawn(self._keep_leases)
        return carried

    def _start_carrier(self, lane: Lane, first: Carried) -> None:
        lane.carriers += 1
        # A bare greenlet costs a third of a Greenlet, and nobody looks at its end.
        gevent.spawn_raw(self._carry, lane, first)

    def _carry(self, lane: Lane, first: Carried) -> None:
        """Send, in the slot taken for it, then what is in hand; each is settled meanwhile."""
        carried: Carried | None = first
        try:
            while carried is not None:
                settlement = self._exchanged(lane, carried)
                lane.unsent -= 1
                # The exchange is over: the next may begin while this one is settled.
                following = self._next_in_hand(lane, unused=not carried.has_begun)
                if settlement is None:
                    self._let_go(lane, carried)
                else:
                    self._settle(lane, carried, settlement)
                carried = following
        finally:
            lane.carriers -= 1
        self._go_on(lane)

    def _exchanged(self, lane: Lane, carried: Carried) -> Settlement | None:
        """Send once; None: touch nothing."""
        try:
            return self._attempt(lane, carried)
        except Exception:  # the courier's edge: unknown is temporary, the lease runs out
            log.exception("courier.bug", id=queue_id_text(carried.lease.message))
            return None

    def _next_in_hand(self, lane: Lane, *, unused: bool) -> Carried | None:
        """Return what to send next in the same slot; None: the slot is given up.

        unused: nothing was sent in the slot so far.
        """
        if lane.has_work and not lane.is_leasing_ahead and lane.room() > 0:
            lane.is_leasing_ahead = True
            gevent.spawn(self._lease_ahead, lane)
        if lane.hand and not self._may_send(lane):
            self._give_up_hand(lane)
        if not lane.hand:
            self._slots.release(lane.ref, unused=unused)
            return None
        if not self._slots.again(lane.ref, unused=unused):
            self._start_pump(lane)  # it waits for a slot
            return None
        if lane.hand:
            return lane.hand.popleft()
        self._slots.release(lane.ref, unused=True)  # asking for it let others run
        return None

    def _let_go(self, lane: Lane, carried: Carried) -> None:
        """It is settled, or nothing of ours any more: give up the permit and the place."""
        self._in_flight.discard(carried)
        if not self._in_flight:
            self._idle.set()
        lane.in_flight -= 1
        lane.permits.release()
        if lane.has_work:
            self._go_on(lane)

    def _attempt(self, lane: Lane, carried: Carried) -> Settlement | None:
        """Send once and decide; None: the lease is lost, touch nothing."""
        lease = carried.lease
        if not carried.may_start():
            return returned("the worker stops", transport=lane.way.transport.name)
        began = self._clock.monotonic()
        try:
            result = lane.way.transport.send(carried, self._opener(lease.message))
            lane.note_send(self._clock.monotonic() - began)
        except LeaseLost as error:
            log.warning("lease.lost", id=queue_id_text(lease.message), text=str(error))
            self._spare_probe(lane, carried)
            return None
        except SpoolUnavailable as error:
            # By its schedule, not at once: it may be this one message that cannot be read.
            self._spare_probe(lane, carried)
            result = catalogue.local("unreadable", str(error))
        except Exception as error:  # unknown is temporary (ADR 0006)
            log.exception("courier.bug", id=queue_id_text(lease.message))
            self._spare_probe(lane, carried)
            unforeseen = catalogue.local("unknown-error", type(error).__name__)
            # After the first octet nobody knows what Microsoft has: as the upstream wants it.
            result = Ambiguous(unforeseen.answer) if carried.has_begun else unforeseen
        else:
            self._heed(lane, carried, result)
        if not (carried.may_start() or carried.has_begun):
            return returned("the worker stops", transport=lane.way.transport.name)
        policy = self._policies[lease.mailbox.upstream]
        if not self._wall.may_expire():
            policy = replace(policy, may_expire=False)
        settlement = decide(result, lease, policy, self._clock.utcnow(), dice=self._dice())
        self._tell(lease, settlement)
        return settlement

    def _opener(self, message: QueueId) -> Callable[[], AbstractContextManager[Iterator[bytes]]]:
        return lambda: self._door.content(message)

    def _keep_leases(self) -> None:
        """Renew the leases of long sends; ends when nothing is under way."""
        try:
            while self._in_flight and not self._is_stopped.wait(_KEEP_LEASES_S):
                for carried in list(self._in_flight):
                    if carried.seconds_left() < _RENEW_BELOW_S:
                        self._renew(carried)
        finally:
            self._keeper = None

    def _renew(self, carried: Carried) -> None:
        try:
            renewed = self._door.renew(carried.lease)
        except LeaseLost:
            carried.is_stopping = True
        except SpoolUnavailable as error:
            self._spool_failed(error)
        except Exception:  # one lease's trouble must not let the others run out
            log.exception("courier.bug", id=queue_id_text(carried.lease.message))
        else:
            carried.lease = replace(carried.lease, expires_boottime=renewed.expires_boottime)

    # --- what an outcome means for the upstream and the mailbox ---------------------------

    def _heed(self, lane: Lane, carried: Carried, result: Result) -> None:
        if isinstance(result, Sent):
            lane.strikes = 0
            if lane.way.circuit.succeeded():
                self._came_back(lane.way)
            return
        outcomes = [o for _, o in result.parts] if isinstance(result, Divided) else [result]
        for outcome in {id(one): one for one in outcomes}.values():
            self._heed_one(lane, carried, outcome)

    def _heed_one(self, lane: Lane, carried: Carried, outcome: Outcome) -> None:
        way, now = lane.way, self._clock.monotonic()
        answer = outcome.answer
        went_down = False
        match outcome:
            case Deferred(whole_upstream=True, retry_after_s=wish):
                went_down = way.circuit.failed(
                    now, cause=_cause(outcome), text=answer.text, retry_after_s=wish
                )
                lane.has_work = True
            case Misconfigured(whole_upstream=True):
                went_down = way.circuit.failed(
                    now, cause=_cause(outcome), text=answer.text, by_configuration=True
                )
                lane.has_work = True
            case Ambiguous() | Deferred(answer=Answer(code="send-interrupted")):
                went_down = way.circuit.doubt(now, cause=_cause(outcome), text=answer.text)
            case Deferred(whole_mailbox=True, retry_after_s=wish):
                lane.rest(now, wish)
                self._slots.rest(lane.ref, lane.rest_until - now)
                self._answered(way)
            case Deferred() if answer.status == 0:
                self._spare_probe(lane, carried)  # it says nothing about the upstream
            case _:
                self._answered(way)
        if went_down:
            self._went_down(way)
        self._wake.set()

    def _told_to_rest(self, ref: MailboxRef, rest_s: float) -> None:
        """Another worker got a 429: the mailbox is everybody's."""
        lane = self._lane(ref) if ref.upstream in self._ways else None
        if lane is not None:
            lane.rest_until = max(lane.rest_until, self._clock.monotonic() + rest_s)
            self._wake.set()

    def _told_back(self, upstream: str) -> None:
        """Another worker got through: what waits here need not wait for a probe of our own."""
        way = self._ways.get(upstream)
        if way is not None and way.circuit.succeeded():
            self._is_back(way)

    def _spare_probe(self, lane: Lane, carried: Carried) -> None:
        if carried.is_probe:
            lane.way.circuit.spare(self._clock.monotonic())

    def _answered(self, way: Way) -> None:
        """It said no to this message or mailbox, but it is there."""
        if way.circuit.succeeded():
            self._came_back(way)

    def _went_down(self, way: Way) -> None:
        circuit = way.circuit
        log.error(
            "upstream.down",
            upstream=way.upstream.name,
            cause=circuit.cause,
            text=circuit.text,
            retry_in_s=round(circuit.probe_at - self._clock.monotonic()),
            **({"advice": advice} if (advice := _advice(circuit.cause)) else {}),
        )

    def _came_back(self, way: Way) -> None:
        """Its first success releases all that waits for it, at once, in all workers."""
        self._slots.back(way.upstream.name)
        self._is_back(way)

    def _is_back(self, way: Way) -> None:
        log.info(
            "upstream.up",
            upstream=way.upstream.name,
            down_s=round(self._clock.monotonic() - way.circuit.down_since),
        )
        self._must_scan = True
        self._wake.set()

    # --- settling ------------------------------------------------------------------------------

    def _settle(self, lane: Lane, carried: Carried, settlement: Settlement) -> None:
        """Have it written down what became of it; nobody waits."""
        try:
            self._door.settle_soon(
                carried.lease,
                settlement,
                lambda trouble: self._told(lane, carried, settlement, trouble),
            )
        except Exception:  # the courier's edge: unknown is temporary, the lease runs out
            log.exception("courier.bug", id=queue_id_text(carried.lease.message))
            self._let_go(lane, carried)

    def _told(
        self,
        lane: Lane,
        carried: Carried,
        settlement: Settlement,
        trouble: LeaseLost | SpoolUnavailable | None,
    ) -> None:
        """Go on with what is settled; on the hub, waits for nothing."""
        if isinstance(trouble, SpoolUnavailable):
            self._spool_failed(trouble)
            gevent.spawn(self._settle_later, lane, carried, settlement)
            return
        try:
            if trouble is not None:
                log.warning(
                    "lease.lost",
                    id=queue_id_text(carried.lease.message),
                    outcome=settlement.outcome,
                    text=str(trouble),
                )
            else:
                self._spool_is_well()
                self._settled(carried.lease, settlement)
                # Given back: only now can it be leased again, and nobody else will say so.
                lane.has_work |= settlement.state is State.READY
        except Exception:  # the courier's edge: it is written down, and others wait
            log.exception("courier.bug", id=queue_id_text(carried.lease.message))
        finally:
            self._let_go(lane, carried)

    def _settle_later(self, lane: Lane, carried: Carried, settlement: Settlement) -> None:
        """Try again to write it down, however long the spool takes to come back."""
        # DURABILITY: what Microsoft took must not stay "maybe sent" while we live.
        pause_s = _SPOOL_PAUSES_S[min(carried.unsettled, len(_SPOOL_PAUSES_S) - 1)]
        carried.unsettled += 1
        if self._is_stopped.wait(pause_s):
            log.error(
                "message.unsettled",
                id=queue_id_text(carried.lease.message),
                outcome=settlement.outcome,
                text="the worker ends and the spool cannot be written",
            )
            self._let_go(lane, carried)
            return
        self._settle(lane, carried, settlement)

    def _settled(self, lease: Lease, settlement: Settlement) -> None:
        pair = (lease.mailbox, lease.header_from)
        if settlement.state is State.SENT:
            if self._held and pair in self._held:
                self._held.discard(pair)
                self._must_scan = True
                self._wake.set()
        elif settlement.due_at is not None:
            if settlement.state is State.HELD:
                self._held.add(pair)
            self._due(settlement.due_at)

    def _spool_failed(self, error: SpoolUnavailable) -> None:
        """Take no new work until the spool can be written again."""
        if not self._spool_failures:
            log.error("delivery.paused", reason="spool", text=str(error))
        pause_s = _SPOOL_PAUSES_S[min(self._spool_failures, len(_SPOOL_PAUSES_S) - 1)]
        self._spool_failures += 1
        self._spool_retry_at = self._clock.monotonic() + pause_s
        self._must_scan = True
        self._wake.set()

    def _spool_is_well(self) -> None:
        if self._spool_failures:
            self._spool_failures = 0
            self._spool_retry_at = 0.0
            log.info("delivery.resumed", reason="spool")
            self._wake.set()

    # --- telling -----------------------------------------------------------------------------

    def _tell(self, lease: Lease, settlement: Settlement) -> None:
        """One line and one count for each change of state."""
        upstream = lease.mailbox.upstream
        fields: dict[str, object] = {
            "id": queue_id_text(lease.message),
            "session": lease.session,
            "device": lease.device,
            "upstream": upstream,
            "mailbox": lease.mailbox.mailbox,
            "recipients": len(lease.recipients),
            "bytes": lease.size_bytes,
            "attempt": lease.attempt,
            "request_id": settlement.request_id,
        }
        reason = settlement.code or str(settlement.http_status or settlement.outcome)
        if settlement.state is not State.SENT:
            fields |= {"reason": reason, "status": settlement.http_status, "text": settlement.text}
        if settlement.failed_recipients and settlement.state is not State.FAILED:
            failed = list(settlement.failed_recipients)
            more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
            fields["failed_recipients"] = ", ".join(failed[:5]) + more
        match settlement.state:
            case State.SENT:
                queued_s = (self._clock.utcnow() - lease.accepted_at).total_seconds()
                metrics.count("relayd_messages_sent_total", upstream=upstream)
                metrics.observe("relayd_queued_seconds", queued_s, upstream=upstream)
                log.info("message.sent", queued_s=round(queued_s, 3), **fields)
            case State.FAILED:
                metrics.count("relayd_messages_failed_total", upstream=upstream, reason=reason)
                log.error("message.failed", **fields)
            case State.HELD:
                log.error("message.held", **fields)
            case State.READY:
                metrics.count("relayd_messages_deferred_total", upstream=upstream, reason=reason)
                log.info("message.deferred", due="with the upstream", **fields)
            case _:
                metrics.count("relayd_messages_deferred_total", upstream=upstream, reason=reason)
                due = settlement.due_at
                log.warning(
                    "message.deferred",
                    due=due.isoformat(timespec="seconds") if due else "",
                    **fields,
                )
        if self._on_outcome is not None:
            self._on_outcome(lease, settlement)

    # --- upkeep ------------------------------------------------------------------------------

    def _upkeep(self) -> None:
        """Once a minute: leases of the dead, what is too old, holds made by other workers."""
        while not self._is_stopped.wait(_UPKEEP_S):
            try:
                self.tidy()
            except Exception:  # the edge of a daemon loop: it must never end
                log.exception("courier.bug")

    def tidy(self) -> None:
        """Do the upkeep now; raises nothing but what nobody foresaw."""
        self.reclaim()
        if self._clock.utcnow() >= EARLIEST:
            try:
                expired = self._swept()
            except SpoolUnavailable as error:
                self._spool_failed(error)
                return
            for one in expired:
                metrics.count(
                    "relayd_messages_failed_total",
                    upstream=one.mailbox.upstream,
                    reason="expired",
                )
                log.error(
                    "message.failed",
                    id=queue_id_text(one.message),
                    session=one.session,
                    device=one.device,
                    upstream=one.mailbox.upstream,
                    mailbox=one.mailbox.mailbox,
                    recipients=len(one.recipients),
                    attempt=one.attempts,
                    reason="expired",
                    text=f"held by {one.held_by}" if one.held_by else "its time was over",
                )
        self._learn_holds()
        self._must_scan = True
        self._wake.set()

    def _swept(self) -> tuple[Expired, ...]:
        if self._wall.may_expire():
            return self._door.sweep()
        self._door.follow_clock()  # what was due in a minute must not wait for the old clock's hour
        return ()

    def _learn_holds(self) -> None:
        self._held = {(hold.mailbox, hold.header_from) for hold in self._door.holds()}


def _advice(cause: str) -> str:
    """Return what to do about a circuit's cause, Graph's or Entra's; "" if nobody knows."""
    meaning = aadsts.explain(cause)
    if meaning is not None:
        return meaning.action
    row = catalogue.explain(cause)
    return row.advice if row is not None else ""


def _cause(outcome: Outcome) -> str:
    return outcome.answer.code or f"HTTP {outcome.answer.status}"
