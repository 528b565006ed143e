"""What is true now: states nobody is in are 0, what has gone is gone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from relayd import gauges
from relayd.config.model import Upstream
from relayd.deliver.roster import UpstreamStatus
from relayd.observe import metrics
from relayd.spool.model import State
from relayd.spool.queries import Counts

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
CONTOSO = Upstream(name="contoso", credential_expires="2027-05-31")
NONE = Counts(by_state={}, oldest={})


def shown(name: str) -> dict[str, metrics.Value]:
    return metrics.snapshot()[name]


def status(name: str, state: str) -> UpstreamStatus:
    return UpstreamStatus(
        name=name, state=state, cause="", text="", down_s=0.0, retry_in_s=0.0, in_flight=0,
        mailboxes_waiting=0, resting={},
    )  # fmt: skip


def test_an_empty_queue_is_zero_in_every_state_and_priority() -> None:
    gauges.tell_queue(NONE, [CONTOSO], now=NOW)
    assert shown("relayd_queue_messages") == {
        f"{state}\tcontoso": 0 for state in ("ready", "leased", "deferred", "held", "failed")
    }
    assert shown("relayd_queue_oldest_seconds") == {
        f"contoso\t{priority}": 0 for priority in ("high", "normal", "low")
    }


def test_what_waits_is_counted_and_aged_and_a_removed_upstream_is_seen() -> None:
    counts = Counts(
        by_state={(State.HELD, "contoso"): 2, (State.HELD, "gone"): 7},
        oldest={
            ("contoso", "high"): NOW - timedelta(seconds=90),
            ("gone", "low"): NOW + timedelta(seconds=5),  # the clock was set back
        },
    )
    gauges.tell_queue(counts, [CONTOSO], now=NOW)
    messages = shown("relayd_queue_messages")
    assert (messages["held\tcontoso"], messages["held\tgone"]) == (2, 7)
    assert messages["ready\tgone"] == 0
    oldest = shown("relayd_queue_oldest_seconds")
    assert (oldest["contoso\thigh"], oldest["gone\tlow"]) == (90, 0)
    gauges.tell_queue(NONE, [CONTOSO], now=NOW)
    assert "held\tgone" not in shown("relayd_queue_messages")
    assert shown("relayd_queue_messages")["held\tcontoso"] == 0


def test_an_upstream_is_up_or_not_and_the_clock_right_or_not() -> None:
    statuses = [status("a", "up"), status("b", "down"), status("c", "probing")]
    gauges.tell_upstreams(statuses, clock_is_right=False)
    assert shown("relayd_upstream_up") == {"a": 1, "b": 0, "c": 0}
    assert shown("relayd_clock_right") == {"": 0}
    gauges.tell_upstreams([], clock_is_right=True)
    assert shown("relayd_upstream_up") == {}
    assert shown("relayd_clock_right") == {"": 1}


def test_a_credential_ends_at_the_first_moment_of_its_day_and_without_a_date_is_not_shown() -> None:
    gauges.tell_credentials([CONTOSO, Upstream(name="other")])
    ends = datetime(2027, 5, 31, tzinfo=UTC).timestamp()
    assert shown("relayd_credential_expiry_timestamp_seconds") == {"contoso": ends}
