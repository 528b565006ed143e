"""Ids rise, and no two writers make the same."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.clock import FakeClock, micros
from relayd.errors import SpoolUnavailable
from relayd.spool.ids import LANES, Ids, accepted_micros, claim
from relayd.spool.model import QueueId, queue_id_text


@given(st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_ids_rise_whatever_the_clock_does(steps: list[float]) -> None:
    clock = FakeClock()
    ids = Ids(3, clock)
    made = [ids.next()]
    for step in steps:
        clock.advance(step)
        made.append(ids.next())
    assert made == sorted(set(made))
    assert {one & 4095 for one in made} == {3 << 6}


def test_an_id_says_when_it_was_made() -> None:
    clock = FakeClock()
    assert accepted_micros(Ids(63, clock).next()) == micros(clock.utcnow())


@pytest.mark.parametrize("year", [2026, 2027, 2041, 2100, 2140])
def test_ids_fit_and_say_when_they_were_made_for_a_century(year: int) -> None:
    clock = FakeClock()
    clock.now = datetime(year, 12, 31, 23, 59, tzinfo=UTC)
    made = Ids(63, clock).next()
    assert 0 < made < 2**63
    assert len(queue_id_text(made)) == 13
    assert 0 <= micros(clock.now) - accepted_micros(made) < 8


def test_ids_rise_in_number_and_in_text_over_the_change_of_the_tick() -> None:
    clock = FakeClock()
    clock.now = datetime(2026, 12, 31, 23, 59, 59, 999_990, tzinfo=UTC)
    ids = Ids(0, clock)
    made = []
    for _ in range(40):
        made.append(ids.next())
        clock.now += timedelta(microseconds=1)
    later = [queue_id_text(one) for one in made]
    assert made == sorted(set(made))
    assert later == sorted(set(later))


def test_ids_of_code_that_did_not_know_of_the_change_are_not_met_again() -> None:
    clock = FakeClock()
    clock.now = datetime(2027, 6, 1, tzinfo=UTC)
    newest = QueueId(micros(clock.now) << 12)
    ids = Ids(0, clock, newest=newest)
    assert newest < ids.next() < ids.next()


def test_ids_go_on_from_the_newest_in_the_spool() -> None:
    clock = FakeClock()
    newest = Ids(0, clock).next()
    clock.advance(-3600)
    assert Ids(0, clock, newest=newest).next() > newest


def test_a_clock_of_the_far_future_makes_no_id_that_does_not_fit() -> None:
    clock = FakeClock()
    ids = Ids(0, clock)
    ids.next()
    clock.now = clock.now.replace(year=9000)
    assert ids.next() < 2**63


def test_lanes_in_use_are_passed_over(tmp_path: Path) -> None:
    path = str(tmp_path / "lanes")
    with ExitStack() as stack:
        lanes = []
        for _ in range(LANES):
            lane, descriptor = claim(path, LANES + 7)
            stack.callback(os.close, descriptor)
            lanes.append(lane)
        assert lanes[:2] == [7, 8]
        assert sorted(lanes) == list(range(LANES))
        with pytest.raises(SpoolUnavailable):
            claim(path, 0)
    lane, descriptor = claim(path, 7)
    os.close(descriptor)
    assert lane == 7
