"""Delivers: one worker's way out, put together; its life, its loop, and what the spool asks it.

    agenda     when the loop looks round next           attempt    send once, decide, tell
    roster     upstreams and mailboxes, their status    custody    leases kept and settled
    gate       what stands in the way                   carriers   greenlets that send
    standing   what outcomes say of upstream, mailbox   pumps      slots, permits, leases
    telling    lines of the log, counters               decide     outcome -> settlement
                                                        crew       greenlets used again

A message accepted here is born leased where a slot is at hand (`take`) and goes straight to a
carrier; all else waits in the spool for a pump. The loop wakes at the next due moment, never in
between. Microsoft takes responsibility with 202; that is "sent", not "delivered".

# DURABILITY: lease and intent are durable before the first octet goes out; a 202 that cannot
be settled is tried again until the spool is back: its open intent says "maybe sent".

Source: docs/flow.md, docs/spool.md.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import gevent
import structlog
from gevent.event import Event

from relayd.clock import SYSTEM, Clock
from relayd.config.model import Spool
from relayd.deliver import telling
from relayd.deliver.agenda import Agenda
from relayd.deliver.attempt import Attempts, policies
from relayd.deliver.carriers import Carriers
from relayd.deliver.custody import Custody
from relayd.deliver.gate import Gate
from relayd.deliver.lane import Lane, Slots, Way
from relayd.deliver.pumps import Pumps
from relayd.deliver.roster import Roster, UpstreamStatus
from relayd.deliver.standing import Standing
from relayd.deliver.wallclock import EARLIEST
from relayd.errors import SpoolUnavailable
from relayd.spool.model import Lease, MailboxRef, NewDelivery, Settlement
from relayd.spool.store import Door, Expired

log = structlog.get_logger()

CARRIERS: Final = 256
"""Deliveries under way in one worker for one upstream, so that one which hangs with hundreds of
mailboxes leaves the others theirs; each holds one small message or one piece of a large."""

_UPKEEP_S: Final = 60.0
_CLOCK_LOOK_S: Final = 10.0
_SHORTEST_WAIT_S: Final = 0.001
_PROBING_LANES: Final = 4


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
        self._clock = clock
        self._stopped = Event()
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self._agenda = Agenda(clock)
        self._gate = Gate(self._agenda, clock)
        self._roster = Roster(ways, carriers=carriers)
        self._standing = Standing(self._roster, slots, self._agenda, clock)
        self._custody = Custody(
            door,
            self._gate,
            clock,
            stopped=self._stopped,
            supply=lambda: self._pumps,
        )
        attempts = Attempts(
            door,
            self._standing,
            policies(ways, spool),
            wall=self._gate.wall,
            clock=clock,
            dice=dice,
            on_outcome=on_outcome,
        )
        self._carriers = Carriers(
            slots, self._gate, self._custody, attempts, supply=lambda: self._pumps
        )
        self._pumps = Pumps(
            door,
            slots,
            self._gate,
            self._agenda,
            custody=self._custody,
            carriers=self._carriers,
            clock=clock,
        )

    # --- life ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver; call it once, when the Door is open."""
        self._gate.look_at_clock()
        self._gate.learn_holds(self._door.holds())
        self._door.set_taker(self)
        self._standing.listen()
        self._greenlets = [gevent.spawn(self._run), gevent.spawn(self._upkeep)]

    def drain(self, deadline: float) -> int:
        """Lease no more, let urgent mail leave first, finish what is under way.

        deadline: monotonic. returns: how many deliveries were still under way at its end;
                  their open intents say "maybe sent".
        """
        lanes = [
            one
            for one in self._roster.lanes.values()
            if one.is_urgent and self._gate.may_lease(one)
        ]
        self._gate.is_draining = True
        self._agenda.wake()
        self._custody.stop()
        for lane in self._roster.lanes.values():
            self._carriers.stop_hand(lane)
        urgent = [gevent.spawn(self._pumps.last_urgent, lane, deadline) for lane in lanes]
        gevent.joinall(urgent, timeout=max(deadline - self._clock.monotonic(), 0.0))
        self._custody.idle.wait(max(deadline - self._clock.monotonic(), 0.0))
        self._stopped.set()
        gevent.killall(self._greenlets, block=False)
        for way in self._roster.ways.values():
            way.transport.close()
        return self.in_flight

    def reclaim(self, pid: int | None = None) -> int:
        """Take back the leases of a worker that died, and deliver them; raises nothing."""
        try:
            count = self._door.reclaim(pid=pid)
        except SpoolUnavailable as error:
            self._gate.spool_failed(error)
            return 0
        if count or pid is not None:  # what it gave back before its end, nobody else was told
            self._agenda.scan()
        return count

    # --- what is asked from outside -------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many deliveries are under way."""
        return len(self._custody.in_flight)

    @property
    def clock_trouble(self) -> str:
        """Why nothing is sent because of the wall clock, for people; "" while it is right."""
        return self._gate.wall.trouble()

    def upstreams(self) -> tuple[UpstreamStatus, ...]:
        """Return the state of every upstream, by name."""
        return self._roster.status(self._clock.monotonic())

    # --- Taker: called by the Door on the hub, never blocks ------------------------------

    def wants(self, delivery: NewDelivery, priority: int) -> bool:
        """Set a slot and a carrier aside, if all is clear for this delivery; see Taker."""
        lane = self._roster.lane(delivery.mailbox)
        if lane is None:
            return False
        is_clear = self._gate.is_clear(lane, delivery, priority)
        if is_clear and lane.permits.acquire(blocking=False):
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
        lane = self._roster.lane(lease.mailbox)
        if lane is None:  # `wants` said yes: it is there
            raise LookupError(lease.mailbox.upstream)
        carried = self._custody.pick_up(lease)
        if lane.slots_aside:
            lane.slots_aside -= 1
            self._carriers.start(lane, carried)
        else:
            self._carriers.lay_in_hand(lane, [carried])

    def spare(self, delivery: NewDelivery) -> None:
        """Put back what `wants` set aside; see Taker."""
        lane = self._roster.lanes[delivery.mailbox]
        lane.in_flight -= 1
        lane.unsent -= 1
        lane.permits.release()
        if lane.slots_aside:
            lane.slots_aside -= 1
            self._slots.release(lane.ref, unused=True)
        self._pumps.go_on(lane)

    def offer(self, mailboxes: Sequence[MailboxRef]) -> None:
        """Note that these mailboxes have work in the spool; see Taker."""
        for ref in mailboxes:
            lane = self._roster.lane(ref)
            if lane is not None:
                lane.has_work = True
                self._pumps.go_on(lane)

    # --- the loop ------------------------------------------------------------------------

    def _run(self) -> None:
        """Wake at the next moment at which something may be done."""
        while not self._gate.is_draining:
            self._agenda.begin()
            try:
                wait_s = self._turn()
            except Exception:  # the edge of a daemon loop: it must never end
                log.exception("courier.bug")
                wait_s = _CLOCK_LOOK_S
            self._agenda.sleep(wait_s)

    def _turn(self) -> float:
        """Find work, set pumps going; return how long there is nothing else to do."""
        self._gate.look_at_clock()
        now = self._clock.monotonic()
        if self._agenda.must_scan() and now >= self._gate.retry_at:
            self._scan()
        probing: Counter[str] = Counter()
        for lane in list(self._roster.lanes.values()):
            if lane.is_forgettable(now):
                self._roster.forget(lane)
            elif lane.has_work and self._gate.may_lease(lane):
                if not lane.way.circuit.is_up():
                    # A slot may be long in coming: try a few mailboxes, not all of them.
                    name = lane.ref.upstream
                    probing[name] += 1
                    if probing[name] > _PROBING_LANES:
                        continue
                self._pumps.start(lane)
        return self._wait_s(now)

    def _scan(self) -> None:
        self._agenda.scanning()
        try:
            work = self._door.work()
        except SpoolUnavailable as error:
            self._gate.spool_failed(error)
            return
        self._agenda.scanned(work.next_due_at)  # that it can be read: not that it can be written
        for ref in work.mailboxes:
            lane = self._roster.lane(ref)
            if lane is not None:
                lane.has_work = True

    def _wait_s(self, now: float) -> float:
        """Return the time to the first of: a row due, a probe, a rest's end, the spool."""
        moments = [now + (_CLOCK_LOOK_S if self._gate.clock_is_wrong else _UPKEEP_S)]
        due_in_s = self._agenda.due_in_s()
        if due_in_s is not None:
            moments.append(now + due_in_s)
        if self._gate.retry_at > now:
            moments.append(self._gate.retry_at)
        for lane in self._roster.lanes.values():
            moment = lane.next_moment(now) if lane.has_work else None
            if moment is not None:
                moments.append(moment)
        first = max(min(moments), self._gate.retry_at)  # sooner, nothing can be done
        return min(max(first - now, _SHORTEST_WAIT_S), _UPKEEP_S)

    # --- upkeep ------------------------------------------------------------------------------

    def _upkeep(self) -> None:
        """Once a minute: leases of the dead, what is too old, holds made by other workers."""
        while not self._stopped.wait(_UPKEEP_S):
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
                self._gate.spool_failed(error)
                return
            for one in expired:
                telling.expired(one)
        self._gate.learn_holds(self._door.holds())
        self._agenda.scan()

    def _swept(self) -> tuple[Expired, ...]:
        if self._gate.wall.may_expire():
            return self._door.sweep()
        self._door.follow_clock()  # what was due in a minute must not wait for the old clock's hour
        return ()
