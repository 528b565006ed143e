"""PLAIN and LOGIN as devices speak them, and nothing an attacker can make of them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.smtp import replies, sasl
from relayd.smtp.replies import Reply
from relayd.smtp.sasl import Challenge, Credentials, Step

names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=30)


def b64(text: str) -> bytes:
    return base64.b64encode(text.encode())


def attempt(mechanism: str, *responses: bytes | None) -> Step:
    """Return the last step of one attempt."""
    begun = sasl.begin(mechanism)
    assert begun is not None
    step: Step = Challenge("")
    for response in responses:
        assert isinstance(step, Challenge)
        step = begun.step(response)
    return step


@given(user=names, password=names)
def test_plain_yields_what_was_sent(user: str, password: str) -> None:
    response = b64(f"\0{user}\0{password}")

    assert attempt("PLAIN", response) == Credentials(user, password, "PLAIN")
    assert attempt("PLAIN", None, response) == Credentials(user, password, "PLAIN")


@given(user=names, password=names)
def test_login_yields_what_was_sent(user: str, password: str) -> None:
    want = Credentials(user, password, "LOGIN")

    assert attempt("LOGIN", None, b64(user), b64(password)) == want
    assert attempt("LOGIN", b64(user), b64(password)) == want


@given(response=st.binary(max_size=200))
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_any_response_gives_a_step(mechanism: str, response: bytes) -> None:
    assert isinstance(attempt(mechanism, response), Challenge | Credentials | Reply)


def test_login_asks_to_the_letter() -> None:
    # Xerox gives up on "User Name".
    assert attempt("LOGIN", None) == Challenge("VXNlcm5hbWU6")
    assert attempt("LOGIN", None, b"YQ==") == Challenge("UGFzc3dvcmQ6")
    assert base64.b64decode(sasl.ASK_USER) == b"Username:"
    assert base64.b64decode(sasl.ASK_PASSWORD) == b"Password:"


def test_plain_without_initial_response_gets_an_empty_challenge() -> None:
    assert attempt("PLAIN", None) == Challenge("")


def test_an_equals_sign_is_an_empty_response() -> None:
    assert attempt("LOGIN", b"=", b"=") == Credentials("", "", "LOGIN")


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_star_aborts(mechanism: str) -> None:
    assert attempt(mechanism, None, b"*") is replies.AUTH_ABORTED


@pytest.mark.parametrize("response", [b"!!!!", b"A", b"AAAAA", b"YQ==YQ==", b"\xff\xfe", b"a-b_"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_bad_base64_is_said_to_be(mechanism: str, response: bytes) -> None:
    assert attempt(mechanism, response) is replies.AUTH_BAD_BASE64


@pytest.mark.parametrize("response", [b"AGEAYg", b"AGEA Yg==", b" AGEAYg= ", b"AGEAYg==\t"])
def test_missing_padding_and_stray_blanks_are_forgiven(response: bytes) -> None:
    assert attempt("PLAIN", response) == Credentials("a", "b", "PLAIN")


def test_a_nul_inside_a_name_fails_the_login() -> None:
    assert attempt("PLAIN", b64("\0a\0b\0c")) is replies.AUTH_FAILED
    assert attempt("LOGIN", b64("a\0b")) is replies.AUTH_FAILED
    assert attempt("LOGIN", b64("a"), b64("a\0b")) is replies.AUTH_FAILED


def test_plain_with_too_few_parts_is_malformed() -> None:
    assert attempt("PLAIN", b64("a\0b")) is replies.AUTH_BAD_BASE64
    assert attempt("PLAIN", b"=") is replies.AUTH_BAD_BASE64


def test_nobody_acts_for_somebody_else() -> None:
    assert attempt("PLAIN", b64("boss\0me\0x")) is replies.AUTH_FAILED
    assert attempt("PLAIN", b64("me\0me\0x")) == Credentials("me", "x", "PLAIN")


def test_responses_are_bounded() -> None:
    assert attempt("PLAIN", b"A" * 12_289) is replies.AUTH_TOO_LONG
    assert attempt("LOGIN", b"QUFB" * 3072) == Challenge(sasl.ASK_PASSWORD)


def test_latin_1_passwords_are_read() -> None:
    response = base64.b64encode(b"\0a\0p\xe4ss")

    assert attempt("PLAIN", response) == Credentials("a", "p\xe4ss", "PLAIN")


def test_no_name_is_cut() -> None:
    # OpenSMTPD had a limit of 31 characters.
    user = "x" * 300

    assert attempt("PLAIN", b64(f"\0{user}\0b")) == Credentials(user, "b", "PLAIN")


def test_each_attempt_is_a_new_object() -> None:
    first = sasl.begin("LOGIN")
    assert first is not None
    first.step(b64("a"))

    assert attempt("LOGIN", b64("b")) == Challenge(sasl.ASK_PASSWORD)
    assert sasl.begin("LOGIN") is not first


@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "XOAUTH2", "NTLM", "plain", ""])
def test_other_mechanisms_are_not_spoken(mechanism: str) -> None:
    assert sasl.begin(mechanism) is None


def test_a_password_does_not_show() -> None:
    assert "hunter2" not in repr(Credentials("a", "hunter2"))
