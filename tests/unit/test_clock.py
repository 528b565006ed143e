"""Moments go into the spool and come back the same; clocks tell what they say they tell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from relayd import clock


@given(st.datetimes(datetime(1900, 1, 1), datetime(9000, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001  hypothesis wants them so
def test_a_stored_moment_comes_back_the_same(moment: datetime) -> None:
    assert clock.from_micros(clock.micros(moment)) == moment


def test_a_stored_moment_does_not_depend_on_the_zone_it_was_told_in() -> None:
    here = datetime(2026, 11, 20, 11, 0, tzinfo=timezone(timedelta(hours=1)))

    assert clock.micros(here) == clock.micros(datetime(2026, 11, 20, 10, 0, tzinfo=UTC))


def test_a_stored_moment_out_of_all_bounds_is_one_that_can_be_shown() -> None:
    for absurd in (-(1 << 63), (1 << 63) - 1):
        moment = clock.from_micros(absurd)

        assert 1900 <= moment.astimezone().year <= 9000


def test_the_systems_clock_is_aware_and_never_goes_back() -> None:
    system = clock.SystemClock()

    first, boot = system.monotonic(), system.boottime()

    assert system.utcnow().tzinfo is UTC
    assert system.monotonic() >= first
    assert system.boottime() >= boot


def test_a_fake_clock_stands_until_told() -> None:
    fake = clock.FakeClock()
    before = (fake.utcnow(), fake.monotonic(), fake.boottime())

    fake.advance(2.5)

    assert fake.utcnow() - before[0] == timedelta(seconds=2.5)
    assert fake.monotonic() - before[1] == fake.boottime() - before[2] == 2.5


def test_a_boot_has_a_name() -> None:
    assert clock.boot_id() == clock.boot_id()
    assert len(clock.boot_id()) in (0, 36)
