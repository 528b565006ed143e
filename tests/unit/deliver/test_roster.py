"""Upstreams and mailboxes are known, shown and forgotten."""

from __future__ import annotations

from relayd.config.model import Upstream
from relayd.deliver.lane import Way
from relayd.deliver.roster import Roster, UpstreamStatus
from relayd.spool.model import MailboxRef
from tests.courier_scene import FOREIGN, OTHER
from tests.deliver_fakes import ALERTS, FakeTransport


def roster() -> Roster:
    ways = [Way(Upstream(name=name), FakeTransport()) for name in ("fabrikam", "contoso")]
    return Roster(ways, carriers=5)


def test_a_mailbox_has_one_lane_and_shares_the_permits_of_its_upstream() -> None:
    known = roster()
    alerts, other, foreign = known.lane(ALERTS), known.lane(OTHER), known.lane(FOREIGN)
    assert alerts is not None
    assert other is not None
    assert foreign is not None

    assert known.lane(ALERTS) is alerts
    assert alerts.permits is other.permits is known.permits["contoso"]
    assert foreign.permits is known.permits["fabrikam"]
    assert [one.counter for one in known.permits.values()] == [5, 5]
    assert list(known.lanes) == [ALERTS, OTHER, FOREIGN]


def test_what_is_forgotten_is_made_anew() -> None:
    known = roster()
    lane = known.lane(ALERTS)
    assert lane is not None
    known.forget(lane)
    assert not known.lanes

    assert known.lane(ALERTS) is not lane


def test_the_status_shows_each_upstream_by_name_and_what_waits_for_it() -> None:
    known = roster()
    lane, other = known.lane(ALERTS), known.lane(OTHER)
    assert lane is not None
    assert other is not None
    lane.has_work, lane.in_flight, other.in_flight = True, 2, 1
    other.rest(100.0, 30.0)
    lane.way.circuit.failed(100.0, cause="dns-failed", text="no such host", retry_after_s=60.0)

    contoso, fabrikam = known.status(110.0)

    assert contoso == UpstreamStatus(
        name="contoso",
        state="down",
        cause="dns-failed",
        text="no such host",
        down_s=10.0,
        retry_in_s=50.0,
        in_flight=3,
        mailboxes_waiting=1,
        resting={"other@contoso.com": 20.0},
    )
    assert fabrikam == UpstreamStatus("fabrikam", "up", "", "", 0.0, 0.0, 0, 0, {})
    assert known.status(161.0)[0].retry_in_s == 0.0, "its probe is due, not overdue"


def test_an_upstream_nobody_configured_has_no_lanes() -> None:
    known = roster()
    for mailbox in ("a@x", "b@x"):
        assert known.lane(MailboxRef("gone", mailbox)) is None
    assert not known.lanes
