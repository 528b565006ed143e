"""The rules of settling: recipients, wishes, duplicates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.spool import moves
from relayd.spool.model import NEXT, Course, MailboxRef, QueueId, Redirect, Settlement, State

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
    assert move.drop_content == (wish == "delete")
    assert (move.state is State.DELETED) == (wish == "delete" and move.state is not State.SENT)


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
        ("hold", "delete", State.DELETED, ""),
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


# ---- another way out

OLD, NEW = MailboxRef("contoso", "old@contoso.com"), MailboxRef("acs", "relay@fabrikam.com")


def course(state: State, held_by: str = "") -> Course:
    return Course(
        delivery=64,
        message=QueueId(64),
        state=state,
        held_by=held_by,
        mailbox=OLD,
        header_from="old@contoso.com",
        set_from="old@contoso.com",
        reply_to_original=False,
        device="ups",
        user="",
    )


@pytest.mark.parametrize(
    ("state", "held_by", "by_configuration", "by_operator"),
    [
        (State.READY, "", State.READY, State.READY),
        (State.DEFERRED, "", State.DEFERRED, State.READY),
        (State.HELD, "ErrorInvalidUser", State.READY, State.READY),
        (State.HELD, "HTTP 403", State.READY, State.READY),
        (State.HELD, "operator", State.HELD, State.HELD),
        (State.HELD, "corrupt", State.HELD, State.HELD),
        (State.HELD, "ambiguous", State.HELD, State.HELD),
        (State.HELD, "upstream contoso not configured", State.HELD, State.READY),
        (State.HELD, "upstream another not configured", State.READY, State.READY),
        (State.FAILED, "", State.FAILED, State.FAILED),
    ],
)
def test_another_way_out_frees_what_only_the_old_one_held(
    state: State, held_by: str, by_configuration: State, by_operator: State
) -> None:
    for why, to in (("configuration", by_configuration), ("operator", by_operator)):
        turned = moves.turned(course(state, held_by), why)  # type: ignore[arg-type]  # they are
        assert turned.state is to
        assert to is state or to in NEXT[state]
        assert turned.held_by == (held_by if to is State.HELD else "")
        assert turned.is_due == (to is not state)
    assert moves.turned(course(state, held_by), "wish") == (state, held_by, False)


def test_nobody_redirects_what_is_being_sent() -> None:
    assert not any(State.LEASED in states for states in moves.TURNED_BY.values())


@pytest.mark.parametrize(
    ("state", "held_by", "is_turned"),
    [
        (State.READY, "", True),
        (State.HELD, "operator", True),
        (State.HELD, "ErrorInvalidUser", True),
        (State.HELD, "ambiguous", False),
        (State.HELD, "corrupt", False),
        (State.FAILED, "", False),
        (State.SENT, "", False),
        (State.LEASED, "", False),
    ],
)
def test_a_change_of_the_configuration_moves_what_waits(
    state: State, held_by: str, *, is_turned: bool
) -> None:
    assert moves.is_turned(course(state, held_by)) is is_turned


def test_the_journal_says_from_where_to_where() -> None:
    redirect = Redirect(
        course=course(State.READY), mailbox=NEW, set_from="Relay@b.org", reply_to_original=True
    )
    words = moves.turned_words(redirect, "operator")
    assert words == (
        "contoso/old@contoso.com -> acs/relay@fabrikam.com, by an operator;"
        " From relay@b.org, was old@contoso.com"
    )
    assert moves.turned_from(words) == OLD
    same = Redirect(
        course=course(State.READY), mailbox=NEW, set_from="Old@contoso.com", reply_to_original=True
    )
    assert moves.turned_words(same, "wish").endswith("fabrikam.com, as the configuration says now")
    assert moves.turned_from("something else") is None
