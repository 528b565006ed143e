"""Posts are filled, emptied and filled again, slower each time; states follow their table."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config.model import Config
from relayd.master.channel import Channel, pair
from relayd.master.checker import Loaded
from relayd.master.crew import BACK_OFF_S, MOST_WORKERS, NEXT, Child, Crew, Life
from relayd.master.settings import select

LOADED = Loaded(select(Config()), fd=-1)


def a_crew(size: int = 2, kind: str = "worker") -> Crew:
    return Crew(kind, 1, LOADED, (), size)


def a_child(crew: Crew, number: int, now: float = 0.0) -> Child:
    ours, theirs = pair()
    ours.close()
    theirs.close()
    child = Child(
        pid=1000 + number,
        kind=crew.kind,
        number=number,
        serial=number,
        row=number,
        generation=1,
        channel=Channel(ours),
        born_at=now,
    )
    crew.posts[number].child = child
    return child


def test_every_state_has_a_row_and_the_end_is_reached_from_each() -> None:
    assert set(NEXT) == set(Life)
    assert all(Life.KILLED in NEXT[life] for life in Life if life is not Life.KILLED)


@given(life=st.sampled_from(Life), to=st.sampled_from(Life))
def test_a_move_that_is_not_in_the_table_is_a_bug(life: Life, to: Life) -> None:
    child = a_child(a_crew(), 1)
    child.life = life
    if to in NEXT[life]:
        child.move(to)
        assert child.life is to
    else:
        with pytest.raises(ValueError, match=f"worker 1: {life.value} to {to.value}"):
            child.move(to)


def test_workers_are_numbered_from_one_and_cached_is_zero() -> None:
    assert sorted(a_crew(3).posts) == [1, 2, 3]
    assert sorted(a_crew(5, "cached").posts) == [0]


def test_vacant_posts_are_due_at_once() -> None:
    crew = a_crew()
    assert [post.number for post in crew.due(0.0)] == [1, 2]
    assert crew.next_due() == 0.0
    a_child(crew, 1)
    assert [post.number for post in crew.due(0.0)] == [2]


def test_a_child_that_keeps_dying_waits_longer_each_time() -> None:
    crew = a_crew(1)
    delays = []
    for round_ in range(9):
        child = a_child(crew, 1, now=float(round_))
        delays.append(crew.buried(child, float(round_)))
    assert delays == [*BACK_OFF_S, 30.0, 30.0]
    assert crew.due(8.0) == []
    assert crew.next_due() == 38.0
    assert crew.due(38.0) != []


def test_a_minute_of_life_is_a_clean_record() -> None:
    crew = a_crew(1)
    for now in (0.0, 1.0, 2.0):
        crew.buried(a_child(crew, 1, now), now)
    child = a_child(crew, 1, 10.0)
    child.move(Life.READY)
    assert crew.buried(child, 70.0) == 0.0
    assert crew.buried(a_child(crew, 1, 70.0), 71.0) == 1.0


def test_a_crew_is_ready_when_every_post_serves() -> None:
    crew = a_crew()
    one, two = a_child(crew, 1), a_child(crew, 2)
    seen = [crew.is_ready]
    for child in (one, two):
        child.move(Life.READY)
        seen.append(crew.is_ready)
    assert seen == [False, False, True]
    assert crew.ready() == [one, two]


def test_fewer_posts_send_the_last_away_and_more_make_room() -> None:
    crew = a_crew(3)
    children = [a_child(crew, number) for number in (1, 2, 3)]
    assert crew.resize(1) == children[1:]
    assert list(crew.children()) == children
    assert crew.buried(children[2], 5.0) == -1.0
    assert crew.size == 1
    assert crew.resize(2) == []
    assert [post.number for post in crew.due(5.0)] == [2]


@pytest.mark.parametrize(("size", "expected"), [(0, 1), (-3, 1), (7, 7), (999, MOST_WORKERS)])
def test_there_is_at_least_one_worker_and_no_army(size: int, expected: int) -> None:
    assert a_crew(size).size == expected


def test_a_crew_that_leaves_fills_no_post() -> None:
    crew = a_crew(1)
    child = a_child(crew, 1)
    crew.dismiss()
    assert crew.buried(child, 1.0) == -1.0
    assert crew.due(1000.0) == []
    assert math.isinf(crew.next_due())
    assert crew.is_gone


def test_a_child_from_before_takes_its_post_or_is_surplus() -> None:
    crew = a_crew(1)
    ours, twin = a_child(a_crew(1), 1), a_child(a_crew(1), 1)
    crew.adopt(ours)
    crew.adopt(twin)
    assert list(crew.children()) == [ours, twin]
    assert crew.posts[1].child is ours


def test_a_child_that_was_told_to_go_did_not_fail() -> None:
    crew = a_crew(1)
    child = a_child(crew, 1)
    child.move(Life.DRAINING)
    assert crew.buried(child, 1.0) == 0.0
    assert crew.buried(a_child(crew, 1, 1.0), 2.0) == 0.0


def test_a_life_without_service_is_no_sound_one() -> None:
    crew = a_crew()
    delays = []
    for lives in range(4):
        child = a_child(crew, 1, 100.0 * lives)
        if lives == 3:
            child.move(Life.READY)
        delays.append(crew.buried(child, 100.0 * lives + 90))
    assert delays == [0.0, 1.0, 2.0, 0.0]
