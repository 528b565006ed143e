"""What is true now, as gauges: the queue, upstreams, credentials; a worker sets them every 2 s.

A state nobody is in is 0, not absent, so that a graph of it has no holes and an alert can end.

Source: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Final

from relayd.config.model import Upstream
from relayd.deliver.roster import UpstreamStatus
from relayd.observe import metrics
from relayd.spool.model import State
from relayd.spool.queries import Counts

SHOWN: Final = (State.READY, State.LEASED, State.DEFERRED, State.HELD, State.FAILED)
PRIORITIES: Final = ("high", "normal", "low")


def tell_queue(counts: Counts, configured: Iterable[Upstream], *, now: datetime) -> None:
    """Set the gauges of what waits, for each upstream that is configured or has mail."""
    there = {upstream for _, upstream in counts.by_state} | {name for name, _ in counts.oldest}
    names = dict.fromkeys([*(one.name for one in configured), *sorted(there)])
    messages: dict[tuple[str, ...], float] = {
        (state.value, name): 0.0 for name in names for state in SHOWN
    }
    messages |= {(state.value, name): n for (state, name), n in counts.by_state.items()}
    metrics.gauges("relayd_queue_messages", messages)
    oldest: dict[tuple[str, ...], float] = {
        (name, priority): 0.0 for name in names for priority in PRIORITIES
    }
    oldest |= {
        (name, priority): max(0.0, (now - at).total_seconds())
        for (name, priority), at in counts.oldest.items()
    }
    metrics.gauges("relayd_queue_oldest_seconds", oldest)


def tell_upstreams(statuses: Iterable[UpstreamStatus], *, clock_is_right: bool) -> None:
    """Set which upstreams take mail, as this worker knows."""
    up: dict[tuple[str, ...], float] = {(one.name,): float(one.state == "up") for one in statuses}
    metrics.gauges("relayd_upstream_up", up)
    metrics.gauge("relayd_clock_right", float(clock_is_right))


def tell_credentials(configured: Iterable[Upstream]) -> None:
    """Set when credentials end, where the configuration says so: the first moment of that day."""
    ends: dict[tuple[str, ...], float] = {
        (one.name,): datetime.combine(
            date.fromisoformat(one.credential_expires), datetime.min.time(), UTC
        ).timestamp()
        for one in configured
        if one.credential_expires
    }
    metrics.gauges("relayd_credential_expiry_timestamp_seconds", ends)
