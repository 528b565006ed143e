"""The rules of settling: recipients, wishes, duplicates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.spool import moves
from relayd.spool.model import NEXT, Settlement, State

ALL = ("a@x.org", "b@x.org", "c@x.org")
STATES = st.sampled_from([State.SENT, State.DEFERRED, State.HELD, State.FAILED, State.READY])


def settlement(state: State, failed: frozenset[str], sent: frozenset[str]) -> Settlement:
    return Settlement(
        state=state,
        outcome="x",
        held_by="ErrorX",
        text="why",
        failed_recipients=dict.fromkeys(failed, "no"),
        sent_recipients=tuple(sent),
    )


@given(
    STATES,
    st.frozensets(st.sampled_from(ALL)),
    st.frozensets(st.sampled_from(ALL)),
    st.sampled_from(["", "hold", "delete"]),
)
def test_a_settled_delivery_goes_where_it_may_and_keeps_account(
    state: State, failed: frozenset[str], sent: frozenset[str], wish: str
) -> None:
    move = moves.settled(settlement(state, failed, sent), recipients=ALL, done={}, wish=wish)
    assert move.state in NEXT[State.LEASED]
    assert (move.held_by != "") == (move.state is State.HELD)
    assert set(move.done) >= failed | sent
    if move.state not in moves.FINAL:
        assert moves.rest(ALL, move.done)
    if state is State.SENT:
        assert move.state is State.SENT
    assert move.drop_content == (wish == "delete" and move.state is State.FAILED)


def test_recipients_counted_off_before_stay_so() -> None:
    move = moves.settled(
        settlement(State.DEFERRED, frozenset({"b@x.org"}), frozenset()),
        recipients=ALL,
        done={"a@x.org": ""},
        wish="",
    )
    assert (move.state, moves.rest(ALL, move.done)) == (State.DEFERRED, ("c@x.org",))


def test_failing_as_a_whole_names_no_recipient_but_failing_the_rest_does() -> None:
    plain = Settlement(state=State.FAILED, outcome="failed", text="too large")
    assert moves.settled(plain, recipients=ALL, done={}, wish="").done == {}
    after = moves.settled(plain, recipients=ALL, done={"a@x.org": ""}, wish="").done
    assert after == {"a@x.org": "", "b@x.org": "too large", "c@x.org": "too large"}


def test_returned_is_not_counted() -> None:
    back = Settlement(state=State.READY, outcome="returned")
    assert not moves.settled(back, recipients=ALL, done={}, wish="").counted


@pytest.mark.parametrize(
    ("policy", "wish", "state", "held_by"),
    [
        ("retry", "", State.READY, ""),
        ("hold", "", State.HELD, "ambiguous"),
        ("verify", "", State.HELD, "ambiguous"),
        ("retry", "hold", State.HELD, "operator"),
        ("hold", "delete", State.FAILED, ""),
    ],
)
def test_a_dead_holders_delivery(policy: str, wish: str, state: State, held_by: str) -> None:
    move = moves.reclaimed(wish=wish, policy=policy)
    assert (move.state, move.held_by) == (state, held_by)


def test_wishes_lead_only_where_a_move_may() -> None:
    for table in moves.WISHES.values():
        for was, to in table.items():
            assert to is was or to in NEXT[was]


def test_going_back_forgives_failures_and_resending_forgives_all() -> None:
    done = {"a@x.org": "", "b@x.org": "no"}
    assert moves.forgiven(State.FAILED, done) == {"a@x.org": ""}
    assert moves.forgiven(State.SENT, done) == {}
    assert moves.forgiven(State.DEFERRED, done) == done
