"""The protocol against any bytes at all, however they are cut."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.errors import LocalProtocolError
from relayd.smtp import replies
from relayd.smtp.commands import Auth, Command, Data, Hangup, Mail, Profile, Rcpt, StartTls
from relayd.smtp.replies import Reply
from relayd.smtp.server import (
    MAX_BUFFER,
    MAX_LINE,
    AuthResponse,
    ContentEnd,
    ContentPiece,
    ContentTerms,
    Event,
    LineTooLong,
    ServerProtocol,
    Signal,
)
from relayd.smtp.states import State

OK = replies.RESET
REPLIES = re.compile(rb"([2-5][0-9]{2}-[ -~]*\r\n)*[2-5][0-9]{2} [ -~]*\r\n")

words = st.one_of(
    st.sampled_from(
        [b"EHLO a\r\n", b"MAIL FROM:<a@b.c>\r\n", b"RCPT TO:<c@d.e>\r\n", b"DATA\r\n"]
        + [b"RSET\r\n", b"STARTTLS\r\n", b"QUIT\r\n", b"AUTH PLAIN\r\n", b"AUTH PLAIN AGEAYg==\n"]
        + [b".\r\n", b"..x\r\n", b"\n", b"\r", b"\n.\n", b"x" * 3000, b"x" * 30000, b"\x16\x03"]
        + [b"GET / HTTP/1.1\r\n", b"AUTH " + b"A" * 9000, b"MAIL FROM:<a@b> SMTPUTF8\n"]
    ),
    st.binary(max_size=12),
)

# A transaction's beginning, so that random words get into content as well.
OPEN = b"EHLO a\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<c@d.e>\r\nDATA\r\n"


def answer(protocol: ServerProtocol, event: Event) -> tuple[Reply, ContentTerms | None]:
    """Say yes where that is legal."""
    if isinstance(event, Command):
        refused = protocol.out_of_order(event)
        if refused is not None:
            return refused, None
        if isinstance(event, Data):
            return replies.START_MAIL, ContentTerms(50)
        if isinstance(event, Auth):
            return (replies.challenge(""), None) if event.initial is None else (OK, None)
        if isinstance(event, StartTls):
            return replies.START_TLS, None
        return OK, None
    if isinstance(event, AuthResponse):
        return replies.AUTH_OK, None
    if isinstance(event, ContentEnd):
        return (replies.MESSAGE_TOO_LARGE if event.too_large else OK), None
    assert not isinstance(event, ContentPiece)
    return event.reply or OK, None


def play(chunks: list[bytes], profile: Profile) -> list[str]:
    """Return all events and replies; content is joined, TLS ends the play."""
    protocol, seen, content = ServerProtocol(profile, max_errors=5), list[str](), b""
    for chunk in chunks:
        protocol.receive_data(chunk)
        while (event := protocol.next_event()) is not Signal.NEED_DATA:
            if event is Signal.PAUSED:
                assert protocol.state in (State.CLOSED, State.TLS)
                return [*seen, str(protocol.state)]
            assert not isinstance(event, Signal)
            if isinstance(event, ContentPiece):
                content += event.octets
                continue
            if isinstance(event, ContentEnd):
                if not event.too_large and not (profile == "strict" and event.bare_newline):
                    seen.append(f"content {content!r}")  # else how much came first is chance
                content = b""
            if isinstance(event, Hangup) and event.reply is None:
                return [*seen, repr(event)]
            said = protocol.send(*answer(protocol, event))
            assert REPLIES.fullmatch(said)
            seen.append(f"{event!r} {protocol.line!r} {said!r}")
        assert len(protocol._buffer) - protocol._start <= 12_290
        assert protocol._skipped <= 65_536
    return seen


@given(
    stream=st.lists(words, max_size=12),
    cut=st.one_of(st.integers(1, 40), st.integers(1000, 70_000)),
    opened=st.booleans(),
)
@pytest.mark.parametrize("profile", ["device", "strict"])
def test_events_do_not_depend_on_the_split(
    profile: Profile, stream: list[bytes], cut: int, *, opened: bool
) -> None:
    whole = OPEN * opened + b"".join(stream)
    cut = max(cut, len(whole) // 200)
    pieces = [whole[i : i + cut] for i in range(0, len(whole), cut)]
    blocks = [whole[i : i + 65_536] for i in range(0, len(whole), 65_536)]

    assert play(pieces, profile) == play(blocks, profile)


def run(*chunks: bytes, profile: Profile = "device") -> ServerProtocol:
    """Return a protocol that answered everything with yes."""
    protocol = ServerProtocol(profile, max_errors=50)
    for chunk in chunks:
        protocol.receive_data(chunk)
        while not isinstance(event := protocol.next_event(), Signal):
            if not isinstance(event, ContentPiece):
                protocol.send(*answer(protocol, event))
    return protocol


def next_line(protocol: ServerProtocol, octets: bytes) -> Event | Signal:
    protocol.receive_data(octets)
    return protocol.next_event()


def test_one_reply_is_owed_at_a_time() -> None:
    protocol = ServerProtocol("device", max_errors=50)
    protocol.receive_data(b"NOOP\r\nNOOP\r\n")

    protocol.next_event()

    assert protocol.next_event() is Signal.PAUSED
    protocol.send(OK)
    assert not isinstance(protocol.next_event(), Signal)


def test_a_reply_nobody_is_owed_is_a_bug() -> None:
    with pytest.raises(LocalProtocolError):
        ServerProtocol("device", max_errors=50).send(OK)


def test_a_yes_out_of_order_is_a_bug_and_the_reply_is_still_owed() -> None:
    protocol = ServerProtocol("device", max_errors=50)
    next_line(protocol, b"MAIL FROM:<a@b.c>\r\n")

    with pytest.raises(LocalProtocolError):
        protocol.send(replies.SENDER_OK)

    assert protocol.is_owing


@pytest.mark.parametrize(
    ("octets", "reply"),
    [(b"STARTTLS\r\n", replies.START_TLS), (b"AUTH PLAIN AGEAYg==\r\n", replies.AUTH_OK)],
)
def test_a_second_yes_to_what_may_come_once_is_a_bug(octets: bytes, reply: Reply) -> None:
    protocol = ServerProtocol("device", max_errors=50, secure=True)
    for said in (b"EHLO a\r\n", b"AUTH PLAIN AGEAYg==\r\n"):
        next_line(protocol, said)
        protocol.send(replies.AUTH_OK)
    next_line(protocol, octets)

    with pytest.raises(LocalProtocolError):
        protocol.send(reply)


@pytest.mark.parametrize("line", [b"QUIT", b"RCPT TO:<a@b.c>"])
def test_a_response_that_reads_like_a_command_is_a_response(line: bytes) -> None:
    protocol = ServerProtocol("device", max_errors=50)
    next_line(protocol, b"EHLO a\r\n")
    protocol.send(OK)
    next_line(protocol, b"AUTH PLAIN\r\n")
    protocol.send(replies.challenge(""))

    assert next_line(protocol, line + b"\r\n") == AuthResponse(line)


def test_the_end_of_a_line_too_long_is_no_command() -> None:
    protocol = ServerProtocol("device", max_errors=50)
    assert next_line(protocol, b"NOOP ".ljust(5000, b"x")) is Signal.NEED_DATA

    assert next_line(protocol, b"QUIT\r\n") == LineTooLong(replies.LINE_TOO_LONG)


def test_354_without_terms_is_a_bug() -> None:
    protocol = run(OPEN[:-6])
    next_line(protocol, b"DATA\r\n")

    with pytest.raises(LocalProtocolError):
        protocol.send(replies.START_MAIL)


def test_a_refused_command_moves_nothing() -> None:
    protocol = run(b"EHLO a\r\n")
    next_line(protocol, b"MAIL FROM:<a@b.c>\r\n")
    protocol.send(replies.RATE_LIMITED)

    assert protocol.state is State.READY


def test_refused_recipients_are_remembered_until_one_is_taken() -> None:
    protocol = run(b"EHLO a\r\nMAIL FROM:<a@b.c>\r\n")
    next_line(protocol, b"RCPT TO:<x@y.z>\r\n")
    protocol.send(replies.RELAY_DENIED)

    assert protocol.state is State.UNWANTED
    assert protocol.out_of_order(Data()) is replies.NO_VALID_RECIPIENTS


def test_smtputf8_belongs_to_one_transaction() -> None:
    protocol = run(b"EHLO a\r\nMAIL FROM:<a@b.c> SMTPUTF8\r\n")
    assert isinstance(next_line(protocol, "RCPT TO:<a@\u00fc.c>\r\n".encode()), Rcpt)
    protocol.send(replies.RECIPIENT_OK)

    protocol = run(b"EHLO a\r\nMAIL FROM:<a@b.c> SMTPUTF8\r\nRSET\r\nMAIL FROM:<a@b.c>\r\n")
    assert not isinstance(next_line(protocol, "RCPT TO:<a@\u00fc.c>\r\n".encode()), Rcpt)


def test_octets_behind_starttls_are_gone_before_the_handshake() -> None:
    # CVE-2011-0411
    protocol = run(b"EHLO a\r\nSTARTTLS\r\nMAIL FROM:<evil@b.c>\r\nRCPT")

    assert protocol._buffer == b""
    protocol.tls_started()
    assert protocol.next_event() is Signal.NEED_DATA
    assert protocol.state is State.SECURED


def test_octets_received_during_the_handshake_are_gone_too() -> None:
    protocol = run(b"EHLO a\r\nSTARTTLS\r\n")
    protocol.receive_data(b"NOOP\r\n")

    protocol.tls_started()

    assert protocol.next_event() is Signal.NEED_DATA


def test_tls_forgets_the_login() -> None:
    protocol = run(b"EHLO a\r\nAUTH PLAIN\r\nx\r\nSTARTTLS\r\n")

    protocol.tls_started()

    assert not protocol.authenticated
    assert protocol.secure
    assert protocol.out_of_order(StartTls()) is replies.TLS_ACTIVE


def test_strict_wants_ehlo_again_after_tls() -> None:
    protocol = run(b"EHLO a\r\nSTARTTLS\r\n", profile="strict")
    protocol.tls_started()

    assert protocol.out_of_order(Mail(None)) is replies.NEED_HELLO


def test_tls_without_starttls_is_a_bug() -> None:
    with pytest.raises(LocalProtocolError):
        run(b"EHLO a\r\n").tls_started()


def test_a_login_happens_once() -> None:
    protocol = run(b"EHLO a\r\nAUTH PLAIN\r\nx\r\nEHLO a\r\n")

    assert protocol.out_of_order(Auth("PLAIN", None)) is replies.ALREADY_AUTHENTICATED


def test_a_failed_login_may_be_tried_again() -> None:
    protocol = run(b"EHLO a\r\nAUTH PLAIN\r\n"[:-12])
    next_line(protocol, b"AUTH PLAIN\r\n")
    protocol.send(replies.challenge(""))
    next_line(protocol, b"x\r\n")
    protocol.send(replies.AUTH_FAILED)

    assert protocol.state is State.READY
    assert protocol.out_of_order(Auth("PLAIN", None)) is None


@pytest.mark.parametrize(
    ("length", "too_long"), [(MAX_LINE - 2, False), (MAX_LINE - 1, True), (9000, True)]
)
def test_command_lines_are_bounded(length: int, *, too_long: bool) -> None:
    protocol = ServerProtocol("device", max_errors=50)

    event = next_line(protocol, b"NOOP ".ljust(length, b"x") + b"\r\nNOOP\r\n")

    assert isinstance(event, LineTooLong) is too_long
    protocol.send(replies.LINE_TOO_LONG)
    assert isinstance(protocol.next_event(), Command)


@pytest.mark.parametrize(("length", "too_long"), [(12_288, False), (12_289, True)])
def test_auth_responses_are_bounded_by_their_own_limit(length: int, *, too_long: bool) -> None:
    protocol = ServerProtocol("device", max_errors=50)
    next_line(protocol, b"EHLO a\r\n")
    protocol.send(OK)
    next_line(protocol, b"AUTH PLAIN\r\n")
    protocol.send(replies.challenge(""))

    event = next_line(protocol, b"A" * length + b"\r\n")

    if too_long:
        assert event == LineTooLong(replies.AUTH_TOO_LONG)
        assert protocol.state is State.READY
    else:
        assert isinstance(event, AuthResponse)


def test_an_endless_line_is_hung_up_on() -> None:
    protocol = ServerProtocol("device", max_errors=50)
    fed, event = 0, protocol.next_event()
    while event is Signal.NEED_DATA:
        event = next_line(protocol, b"x" * 4096)
        fed += 4096

    assert event == Hangup("endless-line", replies.LINE_TOO_LONG)
    assert fed <= 65_536 + 4096
    protocol.send(replies.LINE_TOO_LONG)
    assert protocol.state is State.CLOSED


def test_endless_content_is_hung_up_on() -> None:
    protocol = run(OPEN)
    event: Event | Signal = Signal.NEED_DATA
    while event is Signal.NEED_DATA:
        event = next_line(protocol, b"x" * 65_536)
        if isinstance(event, ContentPiece):
            event = protocol.next_event()

    assert event == Hangup("endless-content", replies.MESSAGE_TOO_LARGE)


def test_a_client_hello_closes_without_a_word() -> None:
    protocol = ServerProtocol("device", max_errors=50)

    assert next_line(protocol, b"\x16") is Signal.NEED_DATA
    assert next_line(protocol, b"\x03\x01") == Hangup("tls-on-plain-port", None)
    assert protocol.state is State.CLOSED
    assert not protocol.is_owing


def test_unread_events_may_not_pile_up() -> None:
    protocol = ServerProtocol("device", max_errors=50)
    protocol.receive_data(b"x" * MAX_BUFFER)

    with pytest.raises(LocalProtocolError):
        protocol.receive_data(b"x")


def test_too_many_errors_become_421() -> None:
    protocol = ServerProtocol("device", max_errors=2)
    said = []
    for _ in range(3):
        next_line(protocol, b"XYZZY\r\n")
        said.append(protocol.send(replies.UNKNOWN_COMMAND))

    assert said[-1] == replies.TOO_MANY_ERRORS.octets
    assert protocol.state is State.CLOSED


def test_temporary_refusals_are_no_errors() -> None:
    protocol = run(b"EHLO a\r\n")
    next_line(protocol, b"MAIL FROM:<a@b.c>\r\n")
    protocol.send(replies.RATE_LIMITED)

    assert protocol.errors == 0


def test_a_421_closes() -> None:
    protocol = run(b"EHLO a\r\n")
    next_line(protocol, b"MAIL FROM:<a@b.c>\r\nRCPT TO:<a@b.c>\r\n")
    protocol.send(replies.SHUTTING_DOWN)

    assert protocol.state is State.CLOSED
    assert protocol.next_event() is Signal.PAUSED


def test_farewell_closes_whatever_is_owed() -> None:
    protocol = run(b"EHLO a\r\n")
    next_line(protocol, b"NOOP\r\n")

    assert protocol.farewell(replies.IDLE_TIMEOUT) == replies.IDLE_TIMEOUT.octets
    assert protocol.state is State.CLOSED
    assert not protocol.is_owing


def test_after_a_bare_end_nothing_more_is_read() -> None:
    protocol = run(OPEN[:-6])
    next_line(protocol, b"DATA\r\n")
    protocol.send(replies.START_MAIL, ContentTerms(50, lf_dot=True))
    assert next_line(protocol, b"a\n.\nQUIT\r\n") == ContentPiece(b"a\r\n")
    assert isinstance(protocol.next_event(), ContentEnd)

    assert protocol.send(OK) == OK.octets + replies.BYE.octets
    assert protocol.state is State.CLOSED


def test_secrets_do_not_show() -> None:
    assert "c2VjcmV0" not in repr(AuthResponse(b"c2VjcmV0"))


def test_an_idle_session_owns_next_to_nothing() -> None:
    protocol = run(b"EHLO a\r\n")
    own = [getattr(protocol, name) for name in protocol.__slots__]

    assert sys.getsizeof(protocol) + sum(map(sys.getsizeof, own)) <= 2048
    assert not hasattr(protocol, "__dict__")
