"""Every reply is well formed, whatever text it is made of, and says what the table says."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from relayd.errors import SpoolFull, SpoolUnavailable
from relayd.smtp import replies
from relayd.smtp.replies import Reply

LINE = re.compile(rb"[2-5][0-9][0-9][ -][ -~]{0,507}\r\n")

CONSTANTS = {name: value for name, value in vars(replies).items() if isinstance(value, Reply)}


@given(
    lines=st.lists(st.text(max_size=600), min_size=1, max_size=4),
    enhanced=st.sampled_from([None, "2.0.0", "5.7.1"]),
)
def test_any_text_gives_a_well_formed_reply(lines: list[str], enhanced: str | None) -> None:
    wire = Reply(250, tuple(lines), enhanced).octets

    parts = wire.split(b"\r\n")
    assert parts.pop() == b""
    assert len(parts) == len(lines)
    assert [part[3:4] for part in parts] == [b"-"] * (len(lines) - 1) + [b" "]
    assert all(LINE.fullmatch(part + b"\r\n") for part in parts)


def test_enhanced_codes_stand_on_every_line_of_their_class() -> None:
    for name, reply in CONSTANTS.items():
        wire = reply.octets
        assert LINE.fullmatch(wire), name
        if reply.code != 354:
            assert reply.enhanced is not None, name
            assert int(reply.enhanced[0]) == reply.code // 100, name


def test_rendering_is_done_once() -> None:
    assert replies.BYE.octets is replies.BYE.octets
    assert replies.hello("a", ("SIZE 1",)) is replies.hello("a", ("SIZE 1",))


def test_multiline_replies_are_one_block() -> None:
    assert replies.hello("a", ("SIZE 1", "STARTTLS")).octets == (
        b"250-a\r\n250-SIZE 1\r\n250 STARTTLS\r\n"
    )


def test_helo_is_answered_without_enhanced_code() -> None:
    assert replies.hello("a").octets == b"250 a\r\n"


def test_an_empty_challenge_keeps_its_blank() -> None:
    assert replies.challenge("").octets == b"334 \r\n"


def test_acceptance_names_the_queue_id() -> None:
    assert replies.queued("01ABC").octets == b"250 2.0.0 Ok: queued as 01ABC\r\n"


def test_a_refusal_says_the_class_and_never_the_text() -> None:
    reply = replies.refusal(SpoolUnavailable("/var/spool: disk on fire"))

    assert reply.octets == b"451 4.3.0 Local error, try again later\r\n"
    assert replies.refusal(SpoolFull("x")).code == 452


def test_the_banner_opens_with_the_host_name() -> None:
    assert replies.banner("relay.test").octets == b"220 relay.test ESMTP relayd\r\n"


def test_only_221_421_and_521_close() -> None:
    assert {name for name, reply in CONSTANTS.items() if reply.closes} == {
        "BYE",
        "TOO_MANY_CONNECTIONS",
        "TOO_MANY_FROM_YOU",
        "SHUTTING_DOWN",
        "UNAVAILABLE",
        "IDLE_TIMEOUT",
        "TOO_SLOW",
        "TOO_MANY_ERRORS",
    }


def test_positive_is_below_400() -> None:
    assert replies.START_MAIL.is_positive
    assert not replies.LOCAL_ERROR.is_positive


def test_the_table_of_situations() -> None:
    # RFC 5321, RFC 3463: what each situation is answered
    table = {
        "TOO_MANY_CONNECTIONS": "421 4.3.2", "TOO_MANY_FROM_YOU": "421 4.7.0",
        "SHUTTING_DOWN": "421 4.3.2", "IDLE_TIMEOUT": "421 4.4.2",
        "TOO_MANY_ERRORS": "421 4.7.0", "SENDER_OK": "250 2.1.0", "RECIPIENT_OK": "250 2.1.5",
        "BAD_SENDER": "501 5.1.7", "BAD_RECIPIENT": "501 5.1.3", "BAD_PARAMETER": "501 5.5.4",
        "UNKNOWN_PARAMETER": "555 5.5.4", "UNKNOWN_COMMAND": "500 5.5.2",
        "LINE_TOO_LONG": "500 5.5.2", "NOT_IMPLEMENTED": "502 5.5.1",
        "BAD_SEQUENCE": "503 5.5.1", "TLS_REQUIRED": "530 5.7.0", "TLS_UNAVAILABLE": "454 4.7.0",
        "AUTH_REQUIRED": "530 5.7.0", "AUTH_FAILED": "535 5.7.8",
        "AUTH_UNAVAILABLE": "454 4.7.0", "AUTH_ABORTED": "501 5.7.0",
        "AUTH_BAD_BASE64": "501 5.5.2", "AUTH_TOO_LONG": "500 5.5.6",
        "AUTH_NEEDS_TLS": "538 5.7.11", "AUTH_UNKNOWN_MECHANISM": "504 5.5.4",
        "RELAY_DENIED": "550 5.7.1", "SENDER_REFUSED": "553 5.7.1",
        "RATE_LIMITED": "450 4.7.1", "TOO_MANY_RECIPIENTS": "452 4.5.3",
        "STORAGE_FULL": "452 4.3.1", "LOCAL_ERROR": "451 4.3.0",
        "MESSAGE_TOO_LARGE": "552 5.3.4", "TOO_MANY_HOPS": "554 5.4.0",
        "BARE_NEWLINE": "550 5.5.2", "NO_VALID_RECIPIENTS": "554 5.5.1",
        "OUT_OF_STEP": "554 5.5.0", "HEAD_TOO_LONG": "554 5.6.0",
        "CONTENT_REFUSED": "550 5.7.1",
        "NEEDS_SMTPUTF8": "553 5.6.7", "NOT_CONFIGURED": "451 4.3.5",
    }  # fmt: skip
    assert {n: f"{CONSTANTS[n].code} {CONSTANTS[n].enhanced}" for n in table} == table
