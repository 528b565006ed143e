"""What the courier knows of a mailbox and a lease."""

from __future__ import annotations

from gevent.lock import Semaphore

from relayd.clock import FakeClock
from relayd.config.model import Upstream
from relayd.deliver.lane import LEASE_MARGIN_S, Carried, Lane, Way
from tests.deliver_fakes import ALERTS, LEASE_S, FakeTransport, lease_of


def lane(*, messages_per_minute: int = 30) -> Lane:
    upstream = Upstream(name="contoso", messages_per_minute=messages_per_minute)
    return Lane(ALERTS, Way(upstream, FakeTransport()), Semaphore(16))


def test_a_mailbox_rests_as_the_server_wishes_or_longer_each_time() -> None:
    one = lane()
    one.rest(100.0, 7.0)
    assert one.is_resting(106.9)
    assert not one.is_resting(107.0)

    one.rest(200.0, None)
    assert one.rest_until == 220.0


def test_a_mailbox_is_never_asked_oftener_than_each_second_whatever_it_wishes() -> None:
    one = lane()
    rests = []
    for now in (100.0, 200.0, 300.0, 400.0, 500.0, 600.0):
        one.rest(now, 0.01)
        rests.append(one.rest_until - now)

    assert rests == [1, 2, 4, 8, 10, 10]


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
    one = lane(messages_per_minute=0)
    assert one.ahead() == 0, "nothing is known yet"
    for lease_s, send_s, rows in ((0.01, 0.3, 0), (0.01, 0.004, 2), (0.1, 0.001, 8), (0.1, 0.0, 8)):
        one.lease_s, one.send_s = lease_s, send_s
        assert one.ahead() == rows


def test_nothing_is_leased_ahead_where_exchange_sets_the_pace() -> None:
    one = lane(messages_per_minute=30)
    one.lease_s, one.send_s = 1.0, 0.001

    assert one.ahead() == 0


def test_there_is_room_in_hand_for_what_the_slots_in_use_will_soon_be_free_for() -> None:
    one = lane(messages_per_minute=0)
    one.lease_s, one.send_s = 0.02, 0.01
    assert one.room() == 0, "no slot is in use"

    one.carriers, one.unsent = 2, 1

    assert one.room() == 5
    assert one.room(1) == 8


def test_urgent_mail_is_laid_before_other_and_behind_its_like() -> None:
    clock, one = FakeClock(), lane()
    for number, priority in enumerate((1, 0, 2, 0), start=1):
        one.lay_in_hand([Carried(lease_of(clock, delivery=number, priority=priority), clock)])

    assert [carried.lease.delivery for carried in one.hand] == [2, 4, 1, 3]
    assert one.has_urgent_in_hand()
    assert not lane().has_urgent_in_hand()


def test_a_pump_reaches_further_while_as_much_comes_as_it_asks_for() -> None:
    one = lane()
    for got, reach in ((1, 2), (2, 4), (4, 8), (7, 1), (1, 2)):
        one.note_lease(got, 8 if got == 7 else got)
        assert one.reach == reach
    for _ in range(9):
        one.note_lease(5, 5)
    assert one.reach == 32


def test_the_length_of_a_send_is_smoothed() -> None:
    one = lane()
    for _ in range(40):
        one.note_send(0.1)

    assert 0.1 <= one.send_s < 0.11
