"""One attempt: send what is in hand once, heed what came of it, decide, tell.

It returns what to settle, and settles nothing itself. A fault of ours is an outcome too:
content that cannot be read, or something nobody foresaw, is tried again later; after the first
octet nobody knows what Microsoft has, and the upstream's `ambiguous` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import structlog

from relayd.clock import Clock
from relayd.config.model import Spool
from relayd.deliver import catalogue, telling
from relayd.deliver.decide import Policy, decide, returned
from relayd.deliver.lane import Carried, Lane, Way
from relayd.deliver.outcome import Ambiguous
from relayd.deliver.standing import Standing
from relayd.deliver.wallclock import WallClock
from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.spool.model import Lease, QueueId, Settlement, queue_id_text
from relayd.spool.store import Door

log = structlog.get_logger()


def policies(ways: Sequence[Way], spool: Spool) -> Mapping[str, Policy]:
    """Return what the configuration says about trying again, by the upstream's name."""
    return {
        way.upstream.name: Policy(
            schedule=spool.retry,
            ambiguous=way.upstream.ambiguous,
            transport=way.transport.name,
        )
        for way in ways
    }


class Attempts:
    """Makes the attempts of one worker; owned by the courier.

    dice:       0..1, random; spreads the next tries.
    on_outcome: called with each lease and what was decided about it, before it is settled.
    """

    def __init__(
        self,
        door: Door,
        standing: Standing,
        rules: Mapping[str, Policy],
        *,
        wall: WallClock,
        clock: Clock,
        dice: Callable[[], float],
        on_outcome: Callable[[Lease, Settlement], None] | None,
    ) -> None:
        self._door = door
        self._standing = standing
        self._policies = rules
        self._wall = wall
        self._clock = clock
        self._dice = dice
        self._on_outcome = on_outcome

    def make(self, lane: Lane, carried: Carried) -> Settlement | None:
        """Send once; blocks the greenlet. None: settle nothing, the lease is lost or runs out."""
        try:
            return self._attempt(lane, carried)
        except Exception:  # the courier's edge: unknown is temporary, the lease runs out
            log.exception("courier.bug", id=queue_id_text(carried.lease.message))
            return None

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
            telling.lease_lost(lease, str(error))
            self._standing.spare_probe(lane, carried)
            return None
        except SpoolUnavailable as error:
            # By its schedule, not at once: it may be this one message that cannot be read.
            self._standing.spare_probe(lane, carried)
            result = catalogue.local("unreadable", str(error))
        except Exception as error:  # unknown is temporary (ADR 0006)
            log.exception("courier.bug", id=queue_id_text(lease.message))
            self._standing.spare_probe(lane, carried)
            unforeseen = catalogue.local("unknown-error", type(error).__name__)
            # After the first octet nobody knows what Microsoft has: as the upstream wants it.
            result = Ambiguous(unforeseen.answer) if carried.has_begun else unforeseen
        else:
            self._standing.heed(lane, carried, result)
        if not (carried.may_start() or carried.has_begun):
            return returned("the worker stops", transport=lane.way.transport.name)
        policy = self._policies[lease.mailbox.upstream]
        if not self._wall.may_expire():
            policy = replace(policy, may_expire=False)
        now = self._clock.utcnow()
        settlement = decide(result, lease, policy, now, dice=self._dice())
        telling.decided(lease, settlement, now)
        if self._on_outcome is not None:
            self._on_outcome(lease, settlement)
        return settlement

    def _opener(self, message: QueueId) -> Callable[[], AbstractContextManager[Iterator[bytes]]]:
        return lambda: self._door.content(message)
