"""Rows count what their owners say; limits hold over all rows; nobody's row goes below zero."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.clock import FakeClock
from relayd.master import board as rooms
from relayd.master.board import Board, Row, bucket_of


def row(board: Board, number: int, most: int = 100, each: int = 10) -> Row:
    return board.row(number, max_connections=most, max_per_device=each)


def test_a_beat_is_seen_by_the_master() -> None:
    clock = FakeClock()
    board = Board(clock=clock)
    assert board.beat_at(3) == 0.0
    row(board, 3).beat()
    clock.advance(5)
    assert board.beat_at(3) == pytest.approx(clock.monotonic() - 5)


def test_the_whole_limit_is_over_all_rows() -> None:
    board = Board()
    rows = [row(board, number, most=5, each=0) for number in range(3)]
    taken = [rows[n % 3].enter("ups") for n in range(8)]
    assert taken == [True] * 5 + [False] * 3
    assert board.connections() == 5
    rows[0].leave("ups")
    assert rows[2].enter("ups")


def test_a_devices_limit_is_over_all_rows_and_others_are_free() -> None:
    board = Board()
    one, two = row(board, 1, each=2), row(board, 2, each=2)
    assert one.enter("ups")
    assert two.enter("ups")
    assert not one.enter("ups")
    assert one.enter("nas")


def test_strangers_may_fill_half_and_no_more() -> None:
    board = Board()
    mine = row(board, 0, most=20, each=3)
    assert sum(mine.enter("") for _ in range(20)) == 10
    assert mine.enter("ups")


def test_a_stranger_who_becomes_known_moves() -> None:
    board = Board()
    mine = row(board, 0, each=1)
    assert mine.enter("")
    assert mine.enter("")
    assert mine.move("", "ups")
    assert not mine.move("", "ups")
    assert board.connections() == 2
    mine.leave("ups")
    assert mine.move("", "ups")
    assert mine.move("ups", "ups")


def test_it_is_full_when_all_are_in_and_not_when_one_device_is() -> None:
    board = Board()
    row = board.row(0, max_connections=3, max_per_device=1)
    other = board.row(1, max_connections=3, max_per_device=1)
    assert row.enter("ups")
    assert not row.enter("ups")
    assert not row.is_full()
    assert other.enter("nas")
    assert other.enter("camera")
    assert row.is_full()
    assert not board.row(2, max_connections=0, max_per_device=0).is_full()


@pytest.mark.parametrize(
    ("mine", "others", "ahead"),
    [
        (0, [0], False),
        (1, [0], False),
        (2, [0], True),
        (4, [2], False),
        (5, [2], True),
        (31, [20], False),
        (32, [20], True),
        (32, [40, 20, 30], True),
        (32, [], False),
    ],
)
def test_who_has_far_more_than_another_that_accepts_is_ahead(
    mine: int, others: list[int], *, ahead: bool
) -> None:
    board = Board()
    counts = {3: mine, 4: 0} | dict(enumerate(others, start=rooms.ROWS - len(others)))
    for number, count in counts.items():
        one = row(board, number, most=0, each=0)
        if number != 4:  # it does not accept: a daemon, or on its way out
            one.accept(does=True)
        assert all(one.enter("ups") for _ in range(count))
    assert row(board, 3).is_ahead() is ahead


def test_the_others_are_all_rows_but_ones_own() -> None:
    board = Board()
    mine, other = row(board, 0), row(board, 1)
    assert mine.enter("ups")
    assert mine.others() == 0
    assert all(other.enter(device) for device in ("ups", "nas"))
    assert (mine.others(), other.others()) == (2, 1)


@pytest.mark.parametrize("goes", [lambda board: row(board, 1).accept(does=False),
                                  lambda board: board.clear(1)])  # fmt: skip
def test_who_accepts_no_more_or_is_dead_gets_nothing(goes: Callable[[Board], None]) -> None:
    board = Board()
    mine, other = row(board, 0), row(board, 1)
    other.accept(does=True)
    assert all(mine.enter("ups") for _ in range(9))
    assert mine.is_ahead()
    goes(board)
    assert not mine.is_ahead()


def test_zero_is_no_limit() -> None:
    mine = row(Board(), 0, most=0, each=0)
    assert all(mine.enter("") for _ in range(500))


def test_a_dead_childs_row_is_cleared_and_no_other() -> None:
    board = Board()
    row(board, 1).enter("ups")
    row(board, 2).enter("ups")
    row(board, 1).beat()
    board.clear(1)
    assert (board.connections(1), board.connections(2), board.beat_at(1)) == (0, 1, 0.0)
    assert board.device_connections(bucket_of("ups")) == 1


def test_a_board_taken_over_shows_the_same_figures() -> None:
    board = Board()
    row(board, 7).enter("ups")
    adopted = Board.adopt(os.dup(board.fd))
    assert adopted is not None
    assert adopted.connections(7) == 1
    row(board, 7).enter("ups")
    assert adopted.connections() == 2


def test_a_board_of_another_layout_is_not_taken_over() -> None:
    board = Board()
    board._head[0] = 1
    assert Board.adopt(os.dup(board.fd)) is None
    small = os.memfd_create("small", os.MFD_CLOEXEC)
    assert Board.adopt(small) is None
    os.close(small)


@settings(deadline=None, max_examples=50)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["", "a", "b"]), st.booleans()), max_size=60
    )
)
def test_the_board_agrees_with_a_dictionary(steps: list[tuple[int, str, bool]]) -> None:
    board = Board()
    rows = [row(board, number, most=12, each=4) for number in range(3)]
    counts: dict[tuple[int, str], int] = {}
    for number, device, coming in steps:
        key = (number, device)
        if not coming:
            if counts.get(key):
                rows[number].leave(device)
                counts[key] -= 1
            continue
        total = sum(counts.values())
        same = sum(count for (_, name), count in counts.items() if name == device)
        wanted = total < 12 and same < (6 if device == "" else 4)
        assert rows[number].enter(device) is wanted
        if wanted:
            counts[key] = counts.get(key, 0) + 1
    for number in range(3):
        mine = sum(count for (owner, _), count in counts.items() if owner == number)
        assert board.connections(number) == mine


def test_leaving_twice_does_not_make_room_for_a_thousand_million() -> None:
    board = Board()
    row(board, 0).leave("ups")
    assert board.connections() == 0


def test_names_have_their_own_bucket_but_the_unknown() -> None:
    assert bucket_of("") == rooms.BUCKETS
    assert 0 <= bucket_of("ups\udcff") < rooms.BUCKETS
