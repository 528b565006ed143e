"""When to try again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.deliver import retry

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(0, 60.0), (1, 60.0), (2, 120.0), (3, 300.0), (4, 300.0), (99, 300.0)]
)
def test_a_message_follows_its_schedule_and_the_last_step_repeats(
    attempt: int, seconds: float
) -> None:
    assert retry.message_delay_s((60.0, 120.0, 300.0), attempt, dice=0.5) == seconds


@given(st.floats(0, 1))
def test_jitter_stays_within_a_tenth(dice: float) -> None:
    assert 54.0 <= retry.message_delay_s((60.0,), 1, dice=dice) <= 66.0


def test_jitter_uses_its_whole_width() -> None:
    assert retry.message_delay_s((100.0,), 1, dice=0.0) == pytest.approx(90.0)
    assert retry.message_delay_s((100.0,), 1, dice=1.0) == pytest.approx(110.0)


def test_the_servers_wish_beats_the_schedule_both_ways() -> None:
    for wish in (1.0, 9999.0):
        assert retry.due_at(NOW, NOW + DAY, delay_s=60.0, retry_after_s=wish) == NOW + timedelta(
            seconds=wish
        )


def test_the_last_try_is_at_the_end_itself() -> None:
    end = NOW + timedelta(seconds=30)

    assert retry.due_at(NOW, end, delay_s=60.0, retry_after_s=None) == end


def test_only_the_servers_wish_leads_past_the_end() -> None:
    end = NOW + timedelta(seconds=30)

    assert retry.due_at(NOW, end, delay_s=60.0, retry_after_s=90.0) == NOW + timedelta(seconds=90)


@pytest.mark.parametrize("wish", [None, 5.0])
def test_at_its_end_a_message_has_had_its_time(wish: float | None) -> None:
    assert retry.due_at(NOW, NOW, delay_s=60.0, retry_after_s=wish) is None


def test_a_wish_is_never_cut_short_but_a_short_one_is_stretched() -> None:
    assert [retry.obeyed_s(0.001, n) for n in (0, 1, 2, 3, 4, 5, 1000)] == [1, 1, 2, 4, 8, 10, 10]
    assert [retry.obeyed_s(wish, 1) for wish in (1.0, 1.5, 10.0, 9999.0)] == [1, 1.5, 10, 9999]
    assert retry.obeyed_s(11.0, 1000) == 11


def test_a_mailbox_rests_longer_each_time() -> None:
    assert [retry.mailbox_rest_s(n) for n in (0, 1, 2, 3, 6, 1000)] == [10, 10, 20, 40, 300, 300]


def test_an_upstream_is_left_alone_longer_each_time() -> None:
    assert [retry.upstream_rest_s(n) for n in (1, 2, 3, 6, 1000)] == [2, 4, 8, 60, 60]
