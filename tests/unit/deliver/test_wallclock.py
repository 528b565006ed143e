"""A clock that cannot be right stops sending and expiry, not accepting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from relayd.clock import FakeClock
from relayd.deliver.wallclock import EARLIEST, WallClock


def test_a_steady_clock_is_believed() -> None:
    clock = FakeClock()
    wall = WallClock(clock)
    for _ in range(10):
        clock.advance(600)
        assert wall.look() is False

    assert wall.may_send()
    assert wall.may_expire()
    assert wall.trouble() == ""


def test_a_clock_older_than_the_program_is_not() -> None:
    wall = WallClock(FakeClock(now=datetime(1970, 1, 1, tzinfo=UTC)))

    assert wall.trouble() == (
        "the clock of this host shows 1970-01-01T00:00:00+00:00, which cannot be"
    )
    assert not wall.may_send()
    assert not wall.may_expire()


def test_setting_a_plainly_wrong_clock_right_is_no_leap() -> None:
    clock = FakeClock(now=datetime(1970, 1, 1, tzinfo=UTC))
    wall = WallClock(clock)
    clock.now = EARLIEST + timedelta(days=20)

    assert wall.look() is False
    assert wall.may_send()
    assert wall.may_expire()


@pytest.mark.parametrize("leap_s", [-3600, 301, 864_000])
def test_after_a_leap_sending_waits_a_minute_and_expiry_an_hour(leap_s: float) -> None:
    clock = FakeClock()
    wall = WallClock(clock)
    clock.now += timedelta(seconds=leap_s)

    assert wall.look() is True
    assert wall.leaped_s == pytest.approx(leap_s)
    assert wall.look() is False, "it is told once"
    assert not wall.may_send()
    assert f"leaped by {leap_s} s" in wall.trouble()

    clock.advance(60)
    assert wall.may_send()
    assert not wall.may_expire()

    clock.advance(3540)
    assert wall.may_expire()


def test_small_steps_are_ntp_at_work() -> None:
    clock = FakeClock()
    wall = WallClock(clock)
    for _ in range(100):
        clock.now += timedelta(seconds=20)
        assert wall.look() is False

    assert wall.may_send()
