"""Queue ids as people see them, and the table of moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.spool.model import (
    NEXT,
    QueueId,
    State,
    done_in,
    parse_queue_id,
    queue_id_text,
    recipients_in,
)


@given(st.integers(0, 2**63 - 1))
def test_an_id_is_read_back_in_any_case(number: int) -> None:
    text = queue_id_text(number)
    assert len(text) == 13
    assert parse_queue_id(text) == parse_queue_id(text.lower()) == QueueId(number)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_ids_sort_as_their_texts_do(one: int, other: int) -> None:
    assert (one < other) == (queue_id_text(one) < queue_id_text(other))


@pytest.mark.parametrize(
    "text", ["", "0" * 12, "0" * 14, "000000000000-", "00000000000 0", "\uff10" * 13]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a queue id"):
        parse_queue_id(text)


def test_every_state_has_a_row_and_can_be_left_but_deleted() -> None:
    assert set(NEXT) == set(State)
    assert [state for state in State if not NEXT[state]] == [State.DELETED]
    assert {to for row in NEXT.values() for to in row} >= set(State) - {State.DEFERRED}


@pytest.mark.parametrize("damaged", ["[", "", "{}", "7", "[1]", '["a@b", null]'])
def test_damaged_recipients_are_shown_as_they_lie_there(damaged: str) -> None:
    assert recipients_in(damaged) == (damaged,)


def test_recipients_and_those_counted_off_are_read() -> None:
    assert recipients_in('["a@b", "c@d"]') == ("a@b", "c@d")
    assert done_in('{"a@b": "", "c@d": "5.1.3 no"}') == {"a@b": "", "c@d": "5.1.3 no"}
    assert done_in("") == done_in("[1]") == done_in("{") == {}
