"""The table itself: total, closed, and as RFC 5321 draws it."""

from __future__ import annotations

import pytest

from relayd.smtp import replies
from relayd.smtp.commands import (
    Auth,
    Command,
    Data,
    Ehlo,
    Helo,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Rset,
    StartTls,
    Unknown,
)
from relayd.smtp.replies import Reply
from relayd.smtp.states import AFTER_REFUSAL, BETWEEN, NEXT, State, out_of_order

SILENT = {State.SASL, State.CONTENT, State.TLS, State.CLOSED}  # no command can come


def test_every_state_has_a_row() -> None:
    assert set(NEXT) == set(State)


def test_every_state_can_be_reached() -> None:
    by_command = {to for row in NEXT.values() for to in row.values()}
    by_refusal = {to for row in AFTER_REFUSAL.values() for to in row.values()}
    by_protocol = {State.HELLO, State.SECURED, State.SASL}  # start, tls_started, 334
    assert by_command | by_refusal | by_protocol == set(State)


def test_no_command_comes_in_silent_states() -> None:
    assert all(not NEXT[state] for state in SILENT)


@pytest.mark.parametrize("state", [state for state in State if state not in SILENT])
def test_some_commands_are_always_taken(state: State) -> None:
    assert NEXT[state][Quit] is State.CLOSED
    assert NEXT[state][Noop] is state
    assert NEXT[state][Unknown] is state
    assert NEXT[state][Ehlo] is NEXT[state][Helo] is State.READY


def test_mail_is_only_legal_with_no_transaction_open() -> None:
    assert {s for s, row in NEXT.items() if Mail in row} == {State.READY, State.SECURED}


def test_auth_and_starttls_are_never_legal_inside_a_transaction() -> None:
    assert {s for s, row in NEXT.items() if Auth in row} == {State.READY, State.SECURED}
    assert {s for s, row in NEXT.items() if StartTls in row} == BETWEEN


def test_content_needs_a_recipient() -> None:
    assert {s for s, row in NEXT.items() if Data in row} == {State.RECIPIENTS}


def test_rset_never_forgets_the_greeting_nor_invents_one() -> None:
    for state in BETWEEN:
        assert NEXT[state][Rset] is state


@pytest.mark.parametrize(
    ("state", "command", "reply"),
    [
        (State.HELLO, Mail, replies.NEED_HELLO),
        (State.HELLO, Auth, replies.NEED_HELLO),
        (State.READY, Rcpt, replies.NEED_MAIL),
        (State.READY, Data, replies.NEED_MAIL),
        (State.SENDER, Mail, replies.NESTED_MAIL),
        (State.SENDER, Data, replies.NEED_RECIPIENT),
        (State.UNWANTED, Data, replies.NO_VALID_RECIPIENTS),
        (State.RECIPIENTS, Auth, replies.NOT_IN_TRANSACTION),
        (State.RECIPIENTS, StartTls, replies.NOT_IN_TRANSACTION),
        (State.CLOSED, Quit, replies.BAD_SEQUENCE),
        (State.RECIPIENTS, Data, None),
    ],
)
def test_what_comes_too_early_is_told_what_is_missing(
    state: State, command: type[Command], reply: Reply | None
) -> None:
    assert out_of_order(state, command) == reply
