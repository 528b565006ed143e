"""Which upstreams and mailboxes this worker knows, and how they stand.

An upstream (`Way`) is known from the configuration; a mailbox (`Lane`) from when mail for it
is first heard of until nothing is left to remember of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gevent.lock import Semaphore

from relayd.deliver.lane import Lane, Way
from relayd.spool.model import MailboxRef
from relayd.values import frozen


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


class Roster:
    """Every Way and Lane of one worker; owned by the courier.

    ways:    by the upstream's name.
    permits: likewise; `carriers` for each upstream.
    lanes:   those known now; look them up with `lane`.
    """

    def __init__(self, ways: Sequence[Way], *, carriers: int) -> None:
        self.ways: Mapping[str, Way] = {way.upstream.name: way for way in ways}
        self.permits: Mapping[str, Semaphore] = {name: Semaphore(carriers) for name in self.ways}
        self._lanes: dict[MailboxRef, Lane] = {}
        self.lanes: Mapping[MailboxRef, Lane] = self._lanes

    def lane(self, ref: MailboxRef) -> Lane | None:
        """Return the mailbox's lane, made if need be; None: its upstream is not configured."""
        lane = self._lanes.get(ref)
        if lane is None:
            way = self.ways.get(ref.upstream)
            if way is None:
                return None
            lane = self._lanes[ref] = Lane(ref, way, self.permits[ref.upstream])
        return lane

    def forget(self, lane: Lane) -> None:
        """Drop a lane of which nothing matters any more."""
        del self._lanes[lane.ref]

    def status(self, now: float) -> tuple[UpstreamStatus, ...]:
        """Return the state of every upstream, by name. now: monotonic."""
        return tuple(self._status(way, now) for _, way in sorted(self.ways.items()))

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
