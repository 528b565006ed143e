"""Who gets slots and leases: one greenlet for each mailbox with work, and each priority.

A pump waits for a slot (`quota.slots`), then for a permit of the upstream, then leases as much
as there are slots and permits for, and hands it to the carriers. Mailboxes take turns for the
permits, so that one with 100,000 rows stops no other. Where sending is faster than leasing,
some rows are leased ahead of the slots. Of an upstream that is down one row is leased: its probe.

# DURABILITY: a lease and its intent are durable before what is leased is handed on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final

import gevent
import structlog

from relayd.clock import Clock
from relayd.deliver.agenda import Agenda
from relayd.deliver.carriers import Carriers
from relayd.deliver.custody import Custody
from relayd.deliver.gate import Gate
from relayd.deliver.lane import Lane, Slots
from relayd.errors import SpoolUnavailable
from relayd.spool.model import Lease
from relayd.spool.store import Door

log = structlog.get_logger()

_BATCH: Final = 32
_SLOT_WAIT_S: Final = 30.0
_SLOT_PATIENCE_S: Final = 2.0
_FAULT_REST_S: Final = 5.0


class Pumps:
    """The `Supply` of one worker's carriers; owned by the courier."""

    def __init__(
        self,
        door: Door,
        slots: Slots,
        gate: Gate,
        agenda: Agenda,
        *,
        custody: Custody,
        carriers: Carriers,
        clock: Clock,
    ) -> None:
        self._door = door
        self._slots = slots
        self._gate = gate
        self._agenda = agenda
        self._custody = custody
        self._carriers = carriers
        self._clock = clock

    # --- Supply ----------------------------------------------------------------------------

    def start(self, lane: Lane) -> None:
        """See to it that somebody waits for a slot; see Supply."""
        priority = 0 if _has_urgent(lane) else 1
        if priority not in lane.pumps:
            lane.pumps.add(priority)
            gevent.spawn(self._pump, lane, priority)

    def go_on(self, lane: Lane) -> None:
        """Do so for what the mailbox has in the spool, if it may; see Supply."""
        if not lane.has_work:
            return
        if self._gate.may_lease(lane):
            self.start(lane)
            return
        moment = lane.next_moment(self._clock.monotonic())
        if moment is not None:
            self._agenda.wake_by(moment)

    def lease_ahead(self, lane: Lane) -> None:
        """Lease what the slots in use will soon be free for; see Supply."""
        lane.is_leasing_ahead = True
        gevent.spawn(self._lease_ahead, lane)

    # --- one pump --------------------------------------------------------------------------

    def _pump(self, lane: Lane, priority: int) -> None:
        """Get slots for one mailbox as long as it has work; one for each lane and priority.

        What waits for no pacing is urgent mail alone: when none is left the other takes over.
        """
        try:
            while (
                self._has_use_for_slots(lane)
                and (priority or _has_urgent(lane))
                and self._turn_of(lane, priority)
            ):
                pass
        except Exception:  # an unforeseen fault must not silence a mailbox
            log.exception("courier.bug", upstream=lane.ref.upstream, mailbox=lane.ref.mailbox)
            lane.has_work = True
            lane.rest_until = self._clock.monotonic() + _FAULT_REST_S
            self._agenda.wake()
        finally:
            lane.pumps.discard(priority)
            if not priority and not _has_urgent(lane) and self._has_use_for_slots(lane):
                self.start(lane)
            if not lane.pumps and not lane.carriers:
                self._carriers.give_up_hand(lane)

    def _has_use_for_slots(self, lane: Lane) -> bool:
        return bool(lane.hand) or (lane.has_work and self._gate.may_lease(lane))

    def _turn_of(self, lane: Lane, priority: int) -> bool:
        """Take slots, then permits, then lease; False: enough for now."""
        if not self._wait_for_slot(lane, priority):
            if not lane.carriers:
                self._carriers.give_up_hand(lane)
            return lane.has_work
        if not priority and not _has_urgent(lane):  # another slot was quicker
            self._slots.release(lane.ref, unused=True)
            return True
        if lane.hand or not lane.has_work:
            self._carriers.man(lane, slots=1)
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

    def _permits_for(self, lane: Lane, wanted: int) -> int:
        """Wait for a permit, and take as many more as are wanted and to be had."""
        lane.permits.acquire()  # in order of arrival: mailboxes take turns
        permits = 1
        while permits < min(wanted, _BATCH) and lane.permits.acquire(blocking=False):
            permits += 1
        return permits

    # --- leasing ---------------------------------------------------------------------------

    def _lease(self, lane: Lane, limit: int) -> tuple[list[Lease], bool]:
        """Lease with slots in hand; what stood in the way meanwhile is looked at again.

        returns: the leases, and whether one is to find out if the upstream is back.
        """
        if not self._gate.may_lease(lane):
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
            self._gate.spool_failed(error)
            lane.has_work = True
            leases = []
        else:
            self._gate.spool_is_well()
            lane.note_lease(len(leases), limit)
            if len(leases) == limit:
                lane.has_work = True
                lane.is_urgent |= leases[-1].priority == 0
        if is_probe and not leases:
            circuit.spare(self._clock.monotonic())
            self._agenda.wake()
        return leases, is_probe

    def _hand_out(
        self, lane: Lane, leases: Sequence[Lease], *, permits: int, slots: int, is_probe: bool
    ) -> None:
        """Give leases to carriers in the slots taken for them; what is too many goes back."""
        lane.in_flight += len(leases)
        lane.unsent += len(leases)
        for _ in range(permits - len(leases)):
            lane.permits.release()
        carried = [self._custody.pick_up(lease, is_probe=is_probe) for lease in leases]
        if is_probe and carried:  # in nobody's hand: it alone may go
            self._carriers.start(lane, carried.pop())
            slots -= 1
        self._carriers.lay_in_hand(lane, carried, slots=slots)

    def _lease_ahead(self, lane: Lane) -> None:
        """Lease without a slot; one greenlet for each lane."""
        permits = 0
        leases: list[Lease] = []
        try:
            while permits < min(lane.room(), _BATCH) and lane.permits.acquire(blocking=False):
                permits += 1
            if permits and self._gate.may_send(lane):
                leases, _ = self._lease(lane, permits)
        except Exception:  # an unforeseen fault must not silence a mailbox
            log.exception("courier.bug", upstream=lane.ref.upstream, mailbox=lane.ref.mailbox)
            lane.has_work = True
        finally:
            lane.is_leasing_ahead = False
            self._hand_out(lane, leases, permits=permits, slots=0, is_probe=False)

    # --- the end ---------------------------------------------------------------------------

    def last_urgent(self, lane: Lane, deadline: float) -> None:
        """While stopping: send what is of high priority, give back the first that is not.

        deadline: monotonic.
        """
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
            self._carriers.carry(lane, self._custody.pick_up(leases[0]))
            if leases[0].priority > 0:
                return


def _has_urgent(lane: Lane) -> bool:
    return lane.is_urgent or lane.has_urgent_in_hand()
