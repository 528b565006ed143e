"""Which leases this worker answers for: from when it takes one until it is written down.

    pick_up   it is under way; while it is, its lease is renewed before it ends
    settle    write down what became of it, again and again until the spool is back
    let_go    it is settled, or nothing of ours any more; the permit is free

Who sends meanwhile is `deliver.carriers`. What is left at the end has its open intent in the
journal, which says "maybe sent".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import gevent
import structlog
from gevent.event import Event

from relayd.clock import Clock
from relayd.deliver import retry, telling
from relayd.deliver.gate import Gate
from relayd.deliver.lane import Carried, Lane, Supply
from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.spool.model import Lease, Settlement, State, queue_id_text
from relayd.spool.store import Door

log = structlog.get_logger()

_KEEP_LEASES_S: Final = 15.0
_RENEW_BELOW_S: Final = 120.0


class Custody:
    """Every lease one worker has; owned by the courier.

    stopped:   set at the worker's end: nothing is renewed nor tried again after it.
    supply:    hears that a permit is free again; asked for when it is needed: it is made later.
    in_flight: what is under way.
    idle:      set while nothing is.
    """

    def __init__(
        self,
        door: Door,
        gate: Gate,
        clock: Clock,
        *,
        stopped: Event,
        supply: Callable[[], Supply],
    ) -> None:
        self._door = door
        self._gate = gate
        self._clock = clock
        self._stopped = stopped
        self._supply = supply
        self.in_flight: set[Carried] = set()
        self.idle = Event()
        self.idle.set()
        self._keeper: gevent.Greenlet[..., None] | None = None

    def pick_up(self, lease: Lease, *, is_probe: bool = False) -> Carried:
        """Answer for a lease from now on."""
        carried = Carried(lease, self._clock, is_probe)
        carried.is_stopping = self._gate.is_draining and lease.priority > 0
        self.in_flight.add(carried)
        self.idle.clear()
        if self._keeper is None:
            self._keeper = gevent.spawn(self._keep_leases)
        return carried

    def let_go(self, lane: Lane, carried: Carried) -> None:
        """It is settled, or nothing of ours any more: give up the permit and the place."""
        self.in_flight.discard(carried)
        if not self.in_flight:
            self.idle.set()
        lane.in_flight -= 1
        lane.permits.release()
        if lane.has_work:
            self._supply().go_on(lane)

    def stop(self) -> None:
        """Let nothing begin any more but what is urgent."""
        for carried in self.in_flight:
            carried.is_stopping = carried.lease.priority > 0

    # --- settling --------------------------------------------------------------------------

    def settle(self, lane: Lane, carried: Carried, settlement: Settlement) -> None:
        """Have it written down what became of it, then let it go; nobody waits."""
        try:
            self._door.settle_soon(
                carried.lease,
                settlement,
                lambda trouble: self._told(lane, carried, settlement, trouble),
            )
        except Exception:  # the courier's edge: unknown is temporary, the lease runs out
            log.exception("courier.bug", id=queue_id_text(carried.lease.message))
            self.let_go(lane, carried)

    def _told(
        self,
        lane: Lane,
        carried: Carried,
        settlement: Settlement,
        trouble: LeaseLost | SpoolUnavailable | None,
    ) -> None:
        """Go on with what is settled; on the hub, waits for nothing."""
        if isinstance(trouble, SpoolUnavailable):
            self._gate.spool_failed(trouble)
            gevent.spawn(self._settle_later, lane, carried, settlement)
            return
        try:
            if trouble is not None:
                telling.lease_lost(carried.lease, str(trouble), outcome=settlement.outcome)
            else:
                self._gate.spool_is_well()
                self._gate.settled(carried.lease, settlement)
                # Given back: only now can it be leased again, and nobody else will say so.
                lane.has_work |= settlement.state is State.READY
        except Exception:  # the courier's edge: it is written down, and others wait
            log.exception("courier.bug", id=queue_id_text(carried.lease.message))
        finally:
            self.let_go(lane, carried)

    def _settle_later(self, lane: Lane, carried: Carried, settlement: Settlement) -> None:
        """Try again to write it down, however long the spool takes to come back."""
        # DURABILITY: what Microsoft took must not stay "maybe sent" while we live.
        pause_s = retry.spool_pause_s(carried.unsettled)
        carried.unsettled += 1
        if self._stopped.wait(pause_s):
            telling.unsettled(carried.lease, settlement)
            self.let_go(lane, carried)
            return
        self.settle(lane, carried, settlement)

    # --- keeping leases --------------------------------------------------------------------

    def _keep_leases(self) -> None:
        """Renew the leases of long sends; ends when nothing is under way."""
        try:
            while self.in_flight and not self._stopped.wait(_KEEP_LEASES_S):
                for carried in list(self.in_flight):
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
            self._gate.spool_failed(error)
        except Exception:  # one lease's trouble must not let the others run out
            log.exception("courier.bug", id=queue_id_text(carried.lease.message))
        else:
            carried.lease = replace(carried.lease, expires_boottime=renewed.expires_boottime)
