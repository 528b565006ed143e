"""The loop: who is asked what, which reply leaves when, and every way out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.clock import FakeClock
from relayd.errors import RemoteProtocolError, SpoolFull, SpoolUnavailable
from relayd.serve.session import (
    FIRST_MAIL_S,
    MAX_TRANSCRIPT,
    End,
    Farewell,
    Manners,
    PeerGone,
    PeerSilent,
    Session,
)
from relayd.smtp import replies
from tests.smtp_desk import FakeDesk, FakeWire, codes

HELLO = b"EHLO a\r\n"
OPEN = HELLO + b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
LOGIN = b"AUTH PLAIN AHByaW50ZXIxAHNlY3JldDEy\r\n"


def serve(
    *incoming: bytes | Exception,
    desk: FakeDesk | None = None,
    wire: FakeWire | None = None,
    manners: Manners | None = None,
) -> tuple[Farewell, FakeWire, FakeDesk]:
    desk, wire = desk or FakeDesk(), wire or FakeWire([])
    wire.incoming += incoming
    session = Session(wire, desk, manners or Manners(), clock=wire.clock)
    return session.run(), wire, desk


# --- the order of questions


def test_a_message_is_asked_about_step_by_step() -> None:
    farewell, wire, desk = serve(OPEN, b"hi\r\n.\r\n", b"QUIT\r\n")

    assert desk.calls == [
        "connect", "reset", "hello", "mail", "rcpt", "data", "end", "reset", "drop",
    ]  # fmt: skip
    assert desk.kept == [b"hi\r\n"]
    assert codes(wire.said) == [220, 250, 250, 250, 354, 250, 221]
    assert farewell == Farewell(end=End.QUIT)


def test_the_end_tells_what_was_mended() -> None:
    _, _, desk = serve(OPEN, b"a\nb\0\r\n.\r\n")

    assert (desk.ends[0].bare_newline, desk.ends[0].nuls, desk.ends[0].size) == (True, 1, 6)


def test_illegal_commands_do_not_reach_the_desk() -> None:
    _, _, desk = serve(b"MAIL FROM:<a@example.com>\r\nDATA\r\nAUTH PLAIN\r\n")

    assert desk.calls == ["connect", "drop"]


def test_too_large_content_is_never_given_to_the_desks_end() -> None:
    _, wire, desk = serve(OPEN, b"x" * 99 + b"\r\n.\r\n", desk=FakeDesk(limit=10))

    assert codes(wire.said)[-1] == 552
    assert "end" not in desk.calls
    assert desk.calls[-3:] == ["unfit", "reset", "drop"]
    ((end, reply),) = desk.unfit
    assert (end.size, reply) == (101, replies.MESSAGE_TOO_LARGE)


def test_half_a_message_ends_in_drop_only() -> None:
    farewell, _, desk = serve(OPEN, b"half")

    assert farewell.end is End.LOST
    assert desk.kept == []
    assert desk.calls[-1] == "drop"


def test_the_password_reaches_the_desk_and_nothing_else() -> None:
    farewell, wire, desk = serve(HELLO, LOGIN.replace(b"DEy", b"DEz"), b"QUIT\r\n")

    assert desk.credentials[0].user == "printer1"
    assert codes(wire.said)[-2] == 535
    assert "c2VjcmV0" not in str(farewell)
    assert "AHBy" not in str(farewell)
    assert "C: AUTH <redacted>" in farewell.transcript


def test_a_refused_mechanism_is_refused_before_the_secret_is_sent() -> None:
    _, wire, desk = serve(HELLO, b"AUTH LOGIN\r\n", desk=FakeDesk(auth=False))

    assert codes(wire.said)[-1] == 502
    assert desk.credentials == []


def test_after_tls_the_desk_forgets() -> None:
    _, wire, desk = serve(HELLO, b"STARTTLS\r\n", b"QUIT\r\n")

    assert "tls_started" in desk.calls
    assert wire.is_secure


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"RSET", 250), (b"NOOP", 250), (b"VRFY a", 252), (b"EXPN a", 502), (b"HELP", 214),
        (b"ETRN a", 502), (b"XFOO", 500), (b"MAIL", 501), (b"AUTH XOAUTH2", 504),
        (b"NOOP " + b"x" * 5000, 500),
    ],
)  # fmt: skip
def test_what_needs_no_desk_is_answered_here(line: bytes, code: int) -> None:
    _, wire, _ = serve(HELLO, line + b"\r\n")

    assert codes(wire.said) == [220, 250, code]


def test_strict_refuses_bare_newlines_after_the_end() -> None:
    _, wire, desk = serve(OPEN, b"a\nb\r\n.\r\n", manners=Manners(profile="strict"))

    assert codes(wire.said)[-1] == 550
    assert desk.kept == []


def test_strict_turns_early_talkers_away() -> None:
    wire = FakeWire([HELLO], early=True)

    farewell, wire, _ = serve(wire=wire, manners=Manners(profile="strict"))

    assert (farewell.end, farewell.detail) == (End.NOT_SMTP, "early-talker")
    assert codes(wire.said) == [554]


def test_after_a_bare_end_the_session_is_over() -> None:
    farewell, wire, desk = serve(OPEN, b"a\n.\nNOOP\n", desk=FakeDesk(lf_dot=True))

    assert farewell == Farewell(end=End.QUIT, detail="lf-dot")
    assert codes(wire.said)[-2:] == [250, 221]
    assert desk.kept == [b"a\r\n"]


# --- replies in groups


def test_replies_of_a_pipelined_group_leave_in_one_write() -> None:
    _, wire, _ = serve(HELLO, OPEN[len(HELLO) :], b"hi\r\n.\r\nQUIT\r\n")

    assert [codes(octets) for octets in wire.writes] == [
        [220], [250], [250, 250, 354], [250, 221],
    ]  # fmt: skip


def test_the_ehlo_answer_is_one_write() -> None:
    # clients that read one segment.
    _, wire, _ = serve(HELLO)

    assert wire.writes[1].startswith(b"250-relay.test\r\n")
    assert wire.writes[1].count(b"\r\n") == 8


def test_replies_leave_before_the_handshake() -> None:
    said_before_tls: list[bytes] = []
    wire = FakeWire([HELLO, b"STARTTLS\r\n"])

    def spy(context: object) -> tuple[str, str]:
        said_before_tls.append(wire.said)
        return "TLSv1.3", "x"

    wire.start_tls = spy  # type: ignore[method-assign]  # a spy for one method

    serve(wire=wire)

    assert codes(said_before_tls[0]) == [220, 250, 220]


def test_held_back_replies_are_bounded() -> None:
    _, wire, _ = serve(b"NOOP\r\n" * 10_000)

    assert max(map(len, wire.writes)) < 17 * 1024
    assert len(codes(wire.said)) == 10_001


# --- errors


@pytest.mark.parametrize("call", ["hello", "mail", "rcpt", "data", "end", "auth"])
@pytest.mark.parametrize(("error", "code"), [(SpoolUnavailable("x"), 451), (SpoolFull("x"), 452)])
def test_errors_of_ours_become_their_reply_and_the_session_goes_on(
    call: str, error: Exception, code: int
) -> None:
    login = LOGIN if call == "auth" else b""
    desk = FakeDesk(trouble={call: error})

    farewell, wire, _ = serve(HELLO + login + OPEN[len(HELLO) :] + b".\r\nNOOP\r\n", desk=desk)

    assert code in codes(wire.said)
    assert codes(wire.said)[-1] in (250, 500)
    assert farewell.refusal is not None or call == "auth"


@pytest.mark.parametrize("call", ["hello", "mail", "rcpt", "data", "end"])
def test_unknown_errors_are_answered_451_and_pass_through(call: str) -> None:
    desk = FakeDesk(trouble={call: KeyError("secret detail")})
    wire = FakeWire([OPEN + b".\r\n"])

    with pytest.raises(KeyError):
        Session(wire, desk, Manners(), clock=FakeClock()).run()

    assert codes(wire.said)[-1] == 451
    assert b"secret" not in wire.said
    assert desk.calls[-1] == "drop"


def test_an_unknown_error_in_the_middle_of_content_is_answered_too() -> None:
    desk = FakeDesk(trouble={"piece": KeyError("secret detail")})
    wire = FakeWire([OPEN + b"Subject: x\r\n\r\nhello\r\n"])

    with pytest.raises(KeyError):
        Session(wire, desk, Manners(), clock=FakeClock()).run()

    assert codes(wire.said)[-2:] == [354, 451]
    assert b"secret" not in wire.said
    assert desk.calls[-1] == "drop"


def test_an_unknown_error_in_the_greeting_owes_no_reply() -> None:
    desk, wire = FakeDesk(trouble={"connect": KeyError()}), FakeWire([])

    with pytest.raises(KeyError):
        Session(wire, desk, Manners(), clock=FakeClock()).run()

    assert wire.said == b""
    assert desk.calls[-1] == "drop"


def test_a_known_error_in_the_greeting_is_421() -> None:
    farewell, wire, _ = serve(desk=FakeDesk(trouble={"connect": SpoolUnavailable()}))

    assert codes(wire.said) == [421]
    assert farewell.end is End.REFUSED


def test_a_refused_greeting_ends_the_session() -> None:
    farewell, wire, _ = serve(HELLO, desk=FakeDesk(greeting=replies.TOO_MANY_FROM_YOU))

    assert codes(wire.said) == [421]
    assert farewell.refusal is replies.TOO_MANY_FROM_YOU


def test_an_error_that_closes_closes() -> None:
    class Broken(RemoteProtocolError):
        code = 521

    farewell, wire, _ = serve(HELLO, LOGIN, b"NOOP\r\n", desk=FakeDesk(trouble={"auth": Broken()}))

    assert codes(wire.said)[-1] == 521
    assert farewell.end is End.REFUSED


def test_a_broken_connection_is_no_error() -> None:
    farewell, _, desk = serve(HELLO, PeerGone("Connection reset by peer"))

    assert farewell == Farewell(end=End.LEFT, detail="Connection reset by peer")
    assert desk.calls[-1] == "drop"


def test_a_broken_connection_inside_a_message_is_lost() -> None:
    assert serve(OPEN, PeerGone("reset"))[0].end is End.LOST


def test_a_failed_handshake_says_why() -> None:
    class Refusing(FakeWire):
        def start_tls(self, context: object) -> tuple[str, str]:
            raise PeerGone("TLS handshake: the client does not trust our certificate")

    farewell, _, _ = serve(HELLO, b"STARTTLS\r\n", wire=Refusing([]))

    assert farewell.end is End.TLS_FAILED
    assert "certificate" in farewell.detail


def test_a_client_that_does_not_read_is_given_up() -> None:
    class Deaf(FakeWire):
        def send(self, octets: bytes) -> None:
            raise PeerGone("Broken pipe")

    assert serve(HELLO, wire=Deaf([]))[0] == Farewell(end=End.LEFT, detail="Broken pipe")


def test_a_client_that_stopped_reading_is_left_without_a_word() -> None:
    class Stuck(FakeWire):
        def send(self, octets: bytes) -> None:
            raise PeerSilent("our replies are not read")

    assert serve(HELLO, wire=Stuck([]))[0].end is End.IDLE


@pytest.mark.parametrize(
    ("octets", "reason", "code"),
    [
        (b"GET / HTTP/1.1\r\n", "http", 554),
        (b"Subject: x\r\n", "header", 554),
        (b"BDAT 3\r\n", "bdat", 502),
        (b"\x16\x03\x01", "tls-on-plain-port", 220),
    ],
)
def test_what_is_no_smtp_ends_with_a_reason(octets: bytes, reason: str, code: int) -> None:
    farewell, wire, _ = serve(octets, HELLO)

    assert (farewell.end, farewell.detail) == (End.NOT_SMTP, reason)
    assert codes(wire.said)[-1] == code


def test_too_many_errors_end_the_session() -> None:
    farewell, wire, _ = serve(b"X\r\n" * 9, manners=Manners(max_errors=3))

    assert farewell.end is End.ERRORS
    assert codes(wire.said) == [220, 500, 500, 500, 421]


# --- time


def test_an_idle_client_is_told_and_left() -> None:
    farewell, wire, _ = serve(HELLO, wire=FakeWire([], wait_s=301))

    assert farewell.end is End.IDLE
    assert codes(wire.said) == [220, 421]


def test_dripping_octets_do_not_push_a_lines_deadline_on() -> None:
    wire = FakeWire([b"N", b"O", b"O", b"P"], wait_s=100)

    farewell, wire, _ = serve(wire=wire)

    assert wire.timeouts == [300, 200, 100, 0]
    assert farewell.end is End.IDLE


def test_each_line_has_its_own_deadline() -> None:
    _, wire, _ = serve(b"NOOP\r\n", b"NOOP\r\n", wire=FakeWire([], wait_s=200))

    assert wire.timeouts == [300, 300, 300]


def test_content_may_not_stop_for_data_timeout() -> None:
    def slow_down() -> None:
        wire.wait_s = 181 if len(wire.timeouts) > 2 else 0

    wire = FakeWire([], on_receive=slow_down)

    farewell, wire, _ = serve(OPEN, b"a", b"b", wire=wire)

    assert wire.timeouts == [300, 180, 180]
    assert (farewell.end, codes(wire.said)[-1]) == (End.SLOW, 421)


def test_content_may_not_crawl_after_its_first_minute() -> None:
    wire = FakeWire([OPEN], wait_s=0)
    serve_from = [OPEN] + [b"x" * 4000] * 30

    def crawl() -> None:
        wire.wait_s = 10 if len(wire.timeouts) > 1 else 0

    wire.on_receive = crawl
    wire.incoming = list(serve_from)

    farewell, _, desk = serve(wire=wire)

    assert farewell.end is End.SLOW
    assert farewell.detail == "below min_data_rate"
    assert len(wire.timeouts) == 7  # the sixth block is the one that ends the first minute
    assert desk.kept == []


def test_the_rate_is_judged_for_each_message_anew() -> None:
    wire = FakeWire([OPEN, *[b"x"] * 3, b"\r\n.\r\n" + OPEN, b"x", b"\r\n.\r\n"], wait_s=14)

    assert len(serve(wire=wire)[2].kept) == 2


def test_a_camera_over_a_power_line_is_fast_enough() -> None:
    wire = FakeWire([OPEN, *[b"x" * 20_000] * 300, b"\r\n.\r\n"], wait_s=1)

    assert len(serve(wire=wire)[2].kept) == 1


# --- draining


def draining(wire: FakeWire, when: int) -> tuple[Session, FakeDesk]:
    """Return a session that is told to leave while it waits for the `when`th time."""
    desk = FakeDesk()
    session = Session(wire, desk, Manners(), clock=wire.clock)

    def drain() -> None:
        if len(wire.timeouts) == when:
            session.drain()

    wire.on_receive = drain
    return session, desk


def test_draining_says_421_between_transactions() -> None:
    wire = FakeWire([OPEN, b"hi\r\n.\r\n", HELLO])
    session, desk = draining(wire, 3)  # blocked: the second hello comes too late

    assert session.run().end is End.DRAINED
    assert desk.kept == [b"hi\r\n"]
    assert codes(wire.said)[-2:] == [250, 421]
    assert wire.incoming == [HELLO]


def test_draining_lets_a_transaction_end() -> None:
    wire = FakeWire([OPEN, b"hi\r\n", b".\r\n", OPEN])
    session, desk = draining(wire, 2)

    assert session.run().end is End.DRAINED
    assert desk.kept == [b"hi\r\n"]
    assert codes(wire.said)[-2:] == [250, 421]


def test_draining_waits_for_the_first_message_of_a_session() -> None:
    wire = FakeWire([HELLO, OPEN, b"hi\r\n.\r\n", OPEN])
    session, desk = draining(wire, 2)

    assert session.run().end is End.DRAINED
    assert desk.kept == [b"hi\r\n"]
    assert wire.incoming == [OPEN]


def test_draining_does_not_wait_long_for_a_first_message() -> None:
    wire = FakeWire([HELLO] * 9, wait_s=FIRST_MAIL_S / 3)
    session, _ = draining(wire, 1)

    assert session.run().end is End.DRAINED
    assert codes(wire.said) == [220, 250, 421]


def test_a_silent_session_is_told_of_the_drain() -> None:
    wire = FakeWire([], wait_s=2 * FIRST_MAIL_S)
    session = Session(wire, FakeDesk(), Manners(), clock=wire.clock)
    session.drain()

    assert session.run().end is End.DRAINED
    assert wire.timeouts == [FIRST_MAIL_S]
    assert wire.said.endswith(replies.SHUTTING_DOWN.octets)


def test_a_session_born_while_draining_may_send_one_message() -> None:
    wire = FakeWire([OPEN, b"hi\r\n.\r\n", OPEN])
    desk = FakeDesk()
    session = Session(wire, desk, Manners(), clock=wire.clock)
    session.drain()

    assert session.run().end is End.DRAINED
    assert desk.kept == [b"hi\r\n"]


def test_who_hangs_up_while_draining_has_left() -> None:
    wire = FakeWire([HELLO, b""])
    session, _ = draining(wire, 2)

    assert session.run().end is End.LEFT
    assert codes(wire.said) == [220, 250]


# --- what the log gets


def test_nothing_refused_leaves_no_transcript() -> None:
    farewell, _, _ = serve(OPEN, b"hi\r\n.\r\nQUIT\r\n")

    assert (farewell.refusal, farewell.transcript) == (None, ())


def test_a_refusal_comes_with_what_led_to_it() -> None:
    farewell, _, _ = serve(
        HELLO, b"XFOO\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<x@y.z>\r\nDATA\r\nQUIT\r\n"
    )

    assert farewell.refusal is replies.RELAY_DENIED
    assert farewell.transcript[-2:] == (
        "C: RCPT TO:<x@y.z>",
        "S: 550 5.7.1 Relaying denied",
    )


def test_an_accepted_message_wipes_old_refusals() -> None:
    farewell, _, _ = serve(HELLO, b"XFOO\r\n", OPEN[len(HELLO) :], b".\r\n", b"QUIT\r\n")

    assert farewell.refusal is None


def test_but_not_that_a_recipient_was_left_out() -> None:
    mistyped = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<ops@@example.com>\r\n"
    rest = b"RCPT TO:<b@example.com>\r\nDATA\r\n.\r\nQUIT\r\n"
    farewell, wire, _ = serve(HELLO, b"XFOO\r\n", mistyped, rest)

    assert codes(wire.said)[-2:] == [250, 221]
    assert farewell.refusal is replies.BAD_RECIPIENT
    assert "C: RCPT TO:<ops@@example.com>" in farewell.transcript


def test_nor_that_one_was_refused() -> None:
    farewell, wire, _ = serve(
        HELLO,
        b"XFOO\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nRCPT TO:<x@y.z>\r\n",
        b"DATA\r\n",
        b".\r\nQUIT\r\n",
    )
    assert codes(wire.said)[-2:] == [250, 221]
    assert farewell.refusal is replies.RELAY_DENIED
    assert farewell.transcript[-2] == "C: RCPT TO:<x@y.z>"


def test_a_recipient_out_of_turn_does_not_hide_why_there_is_no_transaction() -> None:
    farewell, _, _ = serve(HELLO, b"XFOO now\r\nRCPT TO:<b@example.com>\r\nQUIT\r\n")
    assert farewell.refusal is not None
    assert farewell.refusal.code == 503  # as heavy as any other, and not for good
    farewell, _, _ = serve(
        HELLO, b"RCPT TO:<b@example.com>\r\n", OPEN[len(HELLO) :], b".\r\n", b"QUIT\r\n"
    )
    assert farewell.refusal is None


def test_transcripts_are_bounded() -> None:
    farewell, _, _ = serve(b"NOOP\r\n" * 500, b"NOOP " + b"x" * 4000 + b"\r\nXFOO\r\n")

    assert 0 < len(farewell.transcript) <= MAX_TRANSCRIPT
    assert max(map(len, farewell.transcript)) < 600


def test_a_password_where_a_command_belongs_is_not_logged() -> None:
    # CPython bpo-27820: a client out of step sends its password as a command.
    farewell, _, _ = serve(HELLO, b"c2VjcmV0MTIzNDU=\r\n")

    assert "C: c2Vj..." in farewell.transcript
    assert "c2VjcmV0" not in str(farewell)


SECRET = b"AHByaW50ZXIxAHNlY3JldDEy"


@pytest.mark.parametrize(
    "line",
    [
        b" AUTH PLAIN " + SECRET,
        b"AUTHENTICATE PLAIN " + SECRET,
        b"AUTH: PLAIN " + SECRET,
        b"AUTH=PLAIN " + SECRET,
        SECRET + b" ",
        b" " + SECRET,
        SECRET + b"\xe4",
        SECRET + b"\0",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_logged(line: bytes) -> None:
    farewell, _, _ = serve(HELLO, line + b"\r\n")

    assert farewell.refusal is not None
    assert SECRET[4:].decode() not in str(farewell)


@pytest.mark.parametrize(
    "response",
    [SECRET + b"\n", SECRET + b" a" * 9000 + b"\r\n", SECRET + b" a" * 90_000, b"a\n"],
)
def test_a_response_that_cannot_be_read_is_not_logged(response: bytes) -> None:
    pieces = [response[i : i + 65_536] for i in range(0, len(response), 65_536)]

    farewell, _, _ = serve(
        HELLO, b"AUTH PLAIN\r\n", *pieces, b"QUIT\r\n", manners=Manners(profile="strict")
    )

    assert farewell.refusal is not None
    assert farewell.transcript[-2] == "C: AUTH <redacted>"
    assert "AHBy" not in str(farewell)


def test_a_password_in_its_place_is_not_logged_either() -> None:
    farewell, _, _ = serve(HELLO, b"AUTH LOGIN\r\n", b"cHJpbnRlcjE=\r\n", b"c2VjcmV0\r\n")

    assert farewell.refusal is replies.AUTH_FAILED
    assert farewell.transcript[-3:] == (
        "S: 334 UGFzc3dvcmQ6",
        "C: <redacted>",
        "S: 535 5.7.8 Authentication failed",
    )
    assert "cHJp" not in str(farewell)


@given(
    chunks=st.lists(
        st.one_of(
            st.sampled_from([OPEN, HELLO, LOGIN, b".\r\n", b"STARTTLS\r\n", b"QUIT\r\n", b"\r\n"]),
            st.binary(max_size=30),
        ),
        max_size=10,
    ),
    strict=st.booleans(),
)
def test_any_octets_end_in_a_farewell(chunks: list[bytes], *, strict: bool) -> None:
    chunks = [chunk for chunk in chunks if chunk]

    farewell, wire, desk = serve(*chunks, manners=Manners(profile="strict" if strict else "device"))

    assert isinstance(farewell, Farewell)
    assert codes(wire.said)[0] == 220
    assert desk.calls.count("drop") == 1
    assert wire.said.endswith(b"\r\n")
