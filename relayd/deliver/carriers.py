"""Who carries: a greenlet for each slot in use sends what is in hand, one after the other.

What is in hand is leased and waits for a slot: some rows more than there are slots, where
sending is faster than leasing. When something comes in its way, or its turn does not come, it
is given back untried. Who finds slots and leases for more is a `Supply` (`deliver.pumps`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relayd.deliver.attempt import Attempts
from relayd.deliver.crew import Crew
from relayd.deliver.custody import Custody
from relayd.deliver.decide import returned
from relayd.deliver.gate import Gate
from relayd.deliver.lane import Carried, Lane, Slots, Supply


class Carriers:
    """The greenlets that send, and what waits for them; owned by the courier.

    supply: asked for when it is needed: it is made later, for it needs the carriers.
    """

    def __init__(
        self,
        slots: Slots,
        gate: Gate,
        custody: Custody,
        attempts: Attempts,
        supply: Callable[[], Supply],
    ) -> None:
        self._slots = slots
        self._gate = gate
        self._custody = custody
        self._attempts = attempts
        self._supply = supply
        self._crew = Crew()

    # --- carrying --------------------------------------------------------------------------

    def start(self, lane: Lane, first: Carried) -> None:
        """Send `first` in a slot taken for it, then what is in hand, in a greenlet of its own."""
        lane.carriers += 1
        self._crew.start(self._carry, lane, first)

    def carry(self, lane: Lane, first: Carried) -> None:
        """Do the same in this greenlet; returns when the slot is given up."""
        lane.carriers += 1
        self._carry(lane, first)

    def _carry(self, lane: Lane, first: Carried) -> None:
        carried: Carried | None = first
        try:
            while carried is not None:
                settlement = self._attempts.make(lane, carried)
                lane.unsent -= 1
                # The exchange is over: the next may begin while this one is settled.
                following = self._next_in_hand(lane, unused=not carried.has_begun)
                if settlement is None:
                    self._custody.let_go(lane, carried)
                else:
                    self._custody.settle(lane, carried, settlement)
                carried = following
        finally:
            lane.carriers -= 1
        if lane.has_work:
            self._supply().go_on(lane)

    def _next_in_hand(self, lane: Lane, *, unused: bool) -> Carried | None:
        """Return what to send next in the same slot; None: the slot is given up.

        unused: nothing was sent in the slot so far.
        """
        if lane.has_work and not lane.is_leasing_ahead and lane.room() > 0:
            self._supply().lease_ahead(lane)
        if lane.hand and not self._gate.may_send(lane):
            self.give_up_hand(lane)
        if not lane.hand:
            self._slots.release(lane.ref, unused=unused)
            return None
        if not self._slots.again(lane.ref, unused=unused):
            self._supply().start(lane)  # it waits for a slot
            return None
        if lane.hand:
            return lane.hand.popleft()
        self._slots.release(lane.ref, unused=True)  # asking for it let others run
        return None

    # --- in hand ---------------------------------------------------------------------------

    def lay_in_hand(self, lane: Lane, carried: Sequence[Carried], *, slots: int = 0) -> None:
        """Have leases carried as slots are free for them. slots: as in `man`."""
        lane.lay_in_hand(carried)
        self.man(lane, slots=slots)

    def man(self, lane: Lane, *, slots: int) -> None:
        """Have what is in hand carried: in `slots` taken for it, those at hand, else by a pump."""
        if lane.hand and not self._gate.may_send(lane):
            self.give_up_hand(lane)
        while lane.hand and (slots or self._slots.try_acquire(lane.ref)):
            slots = max(slots - 1, 0)
            if not lane.hand:  # taking a slot may let others run
                slots += 1
                break
            self.start(lane, lane.hand.popleft())
        for _ in range(slots):
            self._slots.release(lane.ref, unused=True)
        if lane.hand:
            self._supply().start(lane)

    def give_up_hand(self, lane: Lane, reason: str = "its turn did not come") -> None:
        """Give back what is in hand, untried: only now can it be leased again."""
        while lane.hand:
            carried = lane.hand.popleft()
            lane.unsent -= 1
            settlement = returned(reason, transport=lane.way.transport.name)
            self._custody.settle(lane, carried, settlement)

    def stop_hand(self, lane: Lane) -> None:
        """Give back what is in hand, but for what is urgent: the worker stops."""
        urgent = [one for one in lane.hand if not one.is_stopping]
        for one in urgent:
            lane.hand.remove(one)
        self.give_up_hand(lane, "the worker stops")
        lane.hand.extend(urgent)
