"""What the courier knows of a mailbox and a lease."""

from __future__ import annotations

from relayd.clock import FakeClock
from relayd.config.model import Upstream
from relayd.deliver.lane import LEASE_MARGIN_S, Carried, Lane, Way
from tests.deliver_fakes import ALERTS, LEASE_S, FakeTransport, lease_of


def lane() -> Lane:
    return Lane(ALERTS, Way(Upstream(name="contoso"), FakeTransport()))


def test_a_mailbox_rests_as_the_server_wishes_or_longer_each_time() -> None:
    one = lane()
    one.rest(100.0, 7.0)
    assert one.is_resting(106.9)
    assert not one.is_resting(107.0)

    one.rest(200.0, None)
    assert one.rest_until == 220.0


def test_a_shorter_wish_does_not_cut_a_longer_rest() -> None:
    one = lane()
    one.rest(100.0, 60.0)
    one.rest(101.0, 1.0)

    assert one.rest_until == 160.0


def test_the_next_moment_is_when_all_obstacles_are_gone() -> None:
    one = lane()
    assert one.next_moment(100.0) is None
    one.rest(100.0, 30.0)
    assert one.next_moment(100.0) == 130.0
    one.way.circuit.failed(100.0, cause="c", text="", retry_after_s=60.0)
    assert one.next_moment(100.0) == 160.0
    assert one.next_moment(160.0) is None


def test_only_a_lane_with_nothing_to_remember_is_forgotten() -> None:
    one = lane()
    assert one.is_forgettable(0.0)
    one.rest(0.0, 10.0)
    assert not one.is_forgettable(5.0)
    assert one.is_forgettable(10.0)
    one.in_flight = 1
    assert not one.is_forgettable(10.0)


def test_a_lease_is_begun_only_with_time_to_end() -> None:
    clock = FakeClock()
    carried = Carried(lease_of(clock), clock)
    assert carried.seconds_left() == LEASE_S - LEASE_MARGIN_S

    clock.advance(LEASE_S - LEASE_MARGIN_S)

    assert not carried.may_begin()
    assert not carried.has_begun


def test_from_the_first_octet_on_it_has_begun() -> None:
    clock = FakeClock()
    carried = Carried(lease_of(clock), clock)

    assert carried.may_begin()
    assert carried.has_begun


def test_while_stopping_nothing_begins() -> None:
    clock = FakeClock()
    carried = Carried(lease_of(clock), clock)
    carried.is_stopping = True

    assert not carried.may_start()
    assert not carried.may_begin()


def test_rows_are_leased_ahead_only_where_sending_is_faster_than_leasing() -> None:
    one = Lane(ALERTS, Way(Upstream(name="contoso", messages_per_minute=0), FakeTransport()))
    assert one.rows_per_slot() == 1, "nothing is known yet"
    for lease_s, send_s, rows in ((0.01, 0.3, 1), (0.01, 0.004, 2), (0.1, 0.001, 8), (0.1, 0.0, 8)):
        one.lease_s, one.send_s = lease_s, send_s
        assert one.rows_per_slot() == rows


def test_nothing_is_leased_ahead_where_exchange_sets_the_pace() -> None:
    one = lane()
    one.lease_s, one.send_s = 1.0, 0.001

    assert one.rows_per_slot() == 1


def test_the_length_of_a_send_is_smoothed() -> None:
    one = lane()
    for _ in range(40):
        one.note_send(0.1)

    assert 0.1 <= one.send_s < 0.11
