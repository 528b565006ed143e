"""What stands in the way of leasing and sending, asked before every step.

    this worker    it stops; the wall clock is wrong; the spool cannot be written
    a mailbox      it rests (`Lane.rest_until`)
    an upstream    it is down (`Circuit`); once its probe is due, one lease may go
    a sender       Microsoft refuses it: new mail of a (mailbox, From) on hold waits in the spool

Three questions, for three moments: `is_clear`, a message is being accepted; `may_lease`, a slot
is sought or at hand; `may_send`, a lease is in hand. Nothing waits here.
"""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from relayd.clock import Clock
from relayd.deliver import retry, telling
from relayd.deliver.agenda import Agenda
from relayd.deliver.lane import Lane
from relayd.deliver.wallclock import WallClock
from relayd.errors import SpoolUnavailable
from relayd.spool.model import Lease, MailboxRef, NewDelivery, Settlement, State
from relayd.spool.store import Hold

log = structlog.get_logger()


class Gate:
    """What one worker's deliveries must not do now; owned by the courier, shared with its parts.

    wall:           the wall clock, for who asks it about more than sending.
    is_draining:    no lease is taken any more but by who sends the last urgent mail.
    clock_is_wrong: as of the last `look_at_clock`.
    retry_at:       monotonic; before it a spool that failed is not asked again; 0: it is well.
    """

    def __init__(self, agenda: Agenda, clock: Clock) -> None:
        self._agenda = agenda
        self._clock = clock
        self.wall = WallClock(clock)
        self.is_draining = False
        self.clock_is_wrong = False
        self.retry_at = 0.0
        self._failures = 0
        self._held: set[tuple[MailboxRef, str]] = set()

    # --- the questions ---------------------------------------------------------------------

    def is_clear(self, lane: Lane, delivery: NewDelivery, priority: int) -> bool:
        """Tell whether a new delivery may go before all that waits."""
        return (
            not self.is_draining
            and lane.way.circuit.is_up()
            and not (lane.has_work and priority > 0)  # those who came first go first
            and not self._failures
            and not self.clock_is_wrong
            and not lane.is_resting(self._clock.monotonic())
            and (lane.ref, delivery.header_from) not in self._held
        )

    def may_lease(self, lane: Lane) -> bool:
        """Tell whether rows of this mailbox may be leased; of an upstream that is down, a probe."""
        now = self._clock.monotonic()
        circuit = lane.way.circuit
        return (
            not self.is_draining
            and not self.clock_is_wrong
            and now >= self.retry_at
            and not lane.is_resting(now)
            and (circuit.is_up() or now >= circuit.probe_at)
        )

    def may_send(self, lane: Lane) -> bool:
        """Tell whether nothing has come in the way of what is in hand."""
        return (
            not self.clock_is_wrong
            and lane.way.circuit.is_up()
            and not lane.is_resting(self._clock.monotonic())
        )

    # --- the clock -------------------------------------------------------------------------

    def look_at_clock(self) -> None:
        """See whether the wall clock can be believed; tell when that has changed."""
        if self.wall.look():
            telling.clock_leaped(self.wall.leaped_s)
        is_wrong = not self.wall.may_send()
        if is_wrong != self.clock_is_wrong:
            self.clock_is_wrong = is_wrong
            if is_wrong:
                telling.clock_wrong(self._clock.utcnow())
            else:
                telling.clock_right()

    # --- the spool -------------------------------------------------------------------------

    def spool_failed(self, error: SpoolUnavailable) -> None:
        """Take no new work until the spool can be written again."""
        if not self._failures:
            log.error("delivery.paused", reason="spool", text=str(error))
        pause_s = retry.spool_pause_s(self._failures)
        self._failures += 1
        self.retry_at = self._clock.monotonic() + pause_s
        self._agenda.scan()

    def spool_is_well(self) -> None:
        """Go on: it was written. That it can be read is not enough."""
        if self._failures:
            self._failures = 0
            self.retry_at = 0.0
            log.info("delivery.resumed", reason="spool")
            self._agenda.wake()

    # --- holds -----------------------------------------------------------------------------

    def learn_holds(self, holds: Iterable[Hold]) -> None:
        """Know the holds in force; other workers make and end some."""
        self._held = {(hold.mailbox, hold.header_from) for hold in holds}

    def settled(self, lease: Lease, settlement: Settlement) -> None:
        """Note a hold that this made or ended, and when the row is tried again."""
        pair = (lease.mailbox, lease.header_from)
        if settlement.state is State.SENT:
            if self._held and pair in self._held:
                self._held.discard(pair)
                self._agenda.scan()
        elif settlement.due_at is not None:
            if settlement.state is State.HELD:
                self._held.add(pair)
            self._agenda.due(settlement.due_at)
