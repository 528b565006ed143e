"""The small SMTP client: what it says, what it makes of refusals, and of a relay that goes away."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from relayd.cli import submit
from relayd.cli.submit import Away, Mail, Place, Refused, Reply

EHLO = b"250-relay\r\n250-SIZE 1000\r\n250 8BITMIME\r\n"
MAIL = Mail("root", ["a@b.c"], b"Subject: x\r\n\r\n.one\r\n..\r\n")


class Relay:
    """Answers each line by `answer`; keeps what was said. The content is one line of `said`."""

    def __init__(
        self, answer: Callable[[bytes], bytes | None], banner: bytes = b"220 hi\r\n"
    ) -> None:
        self.said: list[bytes] = []
        self._answer = answer
        self._banner = banner
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.place = Place("127.0.0.1", self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client, client.makefile("rb") as lines, contextlib.suppress(OSError):
                client.sendall(self._banner)
                self._talk(client, lines)

    def _talk(self, client: socket.socket, lines: Iterator[bytes]) -> None:
        for line in lines:
            said = line.rstrip(b"\r\n")
            self.said.append(said)
            answer = self._answer(said)
            if answer is None:
                return
            client.sendall(answer)
            if answer.startswith(b"354"):
                content = b""
                for each in lines:
                    if each == b".\r\n":
                        break
                    content += each
                self.said.append(content)
                answer = self._answer(content)
                if answer is None:
                    return
                client.sendall(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()


def usual(said: bytes) -> bytes | None:
    if said.startswith(b"EHLO"):
        return EHLO
    if said == b"DATA":
        return b"354 go\r\n"
    if said.endswith(b"\n"):
        return b"250 2.0.0 Ok: queued as 1JV7SEQSLMJCW\r\n"
    return b"250 2.0.0 Ok\r\n"


def but(start: bytes, reply: bytes | None) -> Callable[[bytes], bytes | None]:
    """Return a relay that answers what begins so with `reply`."""
    return lambda said: reply if said.startswith(start) else usual(said)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_PATIENCE_S", 0.0)


def test_a_mail_is_handed_in_with_its_dots_doubled() -> None:
    with Relay(usual) as relay:
        outcome = submit.submit([relay.place], MAIL)
    assert outcome.ids == ["1JV7SEQSLMJCW"]
    assert outcome.refused == {}
    assert relay.said[1:5] == [
        b"MAIL FROM:<root> SIZE=24", b"RCPT TO:<a@b.c>", b"DATA",
        b"Subject: x\r\n\r\n..one\r\n...\r\n",
    ]  # fmt: skip


def test_8bit_is_announced_where_it_is_offered() -> None:
    mail = Mail("", ["a@b.c"], b"\r\n\xc3\xbc\r\n", is_8bit=True)
    with Relay(usual) as relay:
        submit.submit([relay.place], mail)
    assert relay.said[1] == b"MAIL FROM:<> BODY=8BITMIME SIZE=6"
    with Relay(but(b"EHLO", b"250 relay\r\n")) as relay:
        submit.submit([relay.place], mail)
    assert relay.said[1] == b"MAIL FROM:<>"


def test_others_get_it_where_one_is_refused() -> None:
    mail = Mail("root", ["bad@b.c", "a@b.c"], MAIL.content)
    with Relay(but(b"RCPT TO:<bad", b"550 5.1.1 No\r\n")) as relay:
        outcome = submit.submit([relay.place], mail)
    assert outcome.ids == ["1JV7SEQSLMJCW"]
    assert outcome.refused == {"bad@b.c": Reply(550, "5.1.1 No")}


def test_nothing_is_sent_where_all_are_refused() -> None:
    with Relay(but(b"RCPT", b"550 5.7.1 No\r\n")) as relay:
        outcome = submit.submit([relay.place], MAIL)
    assert (outcome.ids, list(outcome.refused)) == ([], ["a@b.c"])
    assert b"DATA" not in relay.said


def test_nothing_is_sent_while_one_is_refused_for_now() -> None:
    mail = Mail("root", ["a@b.c", "busy@b.c"], MAIL.content)
    with (
        Relay(but(b"RCPT TO:<busy", b"451 4.3.0 later\r\n")) as relay,
        pytest.raises(Refused) as refused,
    ):
        submit.submit([relay.place], mail)
    assert refused.value.reply.is_temporary
    assert b"DATA" not in relay.said


def test_too_many_recipients_go_in_another_transaction() -> None:
    count = 0

    def at_most_two(said: bytes) -> bytes | None:
        nonlocal count
        if said.startswith(b"MAIL"):
            count = 0
        if said.startswith(b"RCPT"):
            count += 1
            if count > 2:
                return b"452 4.5.3 Too many\r\n"
        return usual(said)

    mail = Mail("root", [f"{n}@b.c" for n in range(5)], MAIL.content)
    with Relay(at_most_two) as relay:
        outcome = submit.submit([relay.place], mail)
    assert len(outcome.ids) == 3
    assert [said for said in relay.said if said == b"DATA"] == [b"DATA"] * 3


@pytest.mark.parametrize("second", [b"451 4.3.0 later\r\n", None])
def test_who_has_it_does_not_get_it_again_for_those_who_have_not(second: bytes | None) -> None:
    transactions = 0

    def at_most_one(said: bytes) -> bytes | None:
        nonlocal transactions
        if said.startswith(b"MAIL"):
            transactions += 1
            return second if transactions == 2 else usual(said)
        if said.startswith(b"RCPT TO:<2"):
            return b"452 4.5.3 Too many\r\n"
        return usual(said)

    with Relay(at_most_one) as relay:
        outcome = submit.submit([relay.place], Mail("root", ["1@b.c", "2@b.c"], MAIL.content))
    assert outcome.ids == ["1JV7SEQSLMJCW"]
    assert {one: reply.code for one, reply in outcome.refused.items()} == {"2@b.c": 451}


@pytest.mark.parametrize(
    ("start", "reply", "about"),
    [
        (b"EHLO", b"550 no\r\n", "relay"),
        (b"MAIL", b"530 5.7.0 Authentication required\r\n", "sender"),
        (b"DATA", b"451 4.3.0 later\r\n", "message"),
        (b"Subject", b"552 5.3.4 too big\r\n", "message"),
        (b"RCPT", b"421 4.3.2 leaving\r\n", "relay"),
    ],
)
def test_a_refusal_says_what_it_was_about(start: bytes, reply: bytes, about: str) -> None:
    with Relay(but(start, reply)) as relay, pytest.raises(Refused) as refused:
        submit.submit([relay.place], MAIL)
    assert refused.value.about == about
    assert str(refused.value.reply) == reply.decode().strip()


def test_a_banner_that_refuses_is_a_refusal() -> None:
    with Relay(usual, b"421 4.3.2 Too busy\r\n") as relay, pytest.raises(Refused) as refused:
        submit.submit([relay.place], MAIL)
    assert refused.value.reply == Reply(421, "4.3.2 Too busy")


@pytest.mark.parametrize(
    ("start", "maybe"), [(b"EHLO", False), (b"MAIL", False), (b"DATA", False), (b"Subject", True)]
)
def test_a_relay_that_leaves_is_away_and_it_is_known_whether_it_had_all(
    start: bytes, *, maybe: bool
) -> None:
    with Relay(but(start, None)) as relay, pytest.raises(Away) as away:
        submit.submit([relay.place], MAIL)
    assert away.value.maybe_taken is maybe


@pytest.mark.parametrize("banner", [b"hello there\n", b"x" * 6000])
def test_what_speaks_no_smtp_is_no_relay(banner: bytes) -> None:
    with Relay(usual, banner) as relay, pytest.raises(Away, match="no SMTP"):
        submit.submit([relay.place], MAIL)


def test_a_reply_cannot_steer_a_terminal() -> None:
    with Relay(but(b"MAIL", b"550 \x1b[2Jno\xff\r\n")) as relay, pytest.raises(Refused) as refused:
        submit.submit([relay.place], MAIL)
    assert refused.value.reply.text.isprintable()
    assert "\x1b" not in str(refused.value)


def closed_place() -> Place:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return Place("127.0.0.1", port)


def test_the_places_are_tried_in_order() -> None:
    with Relay(usual) as relay:
        assert submit.submit([closed_place(), relay.place], MAIL).ids


def test_where_nobody_answers_every_place_is_named() -> None:
    one, other = closed_place(), Place("::1", 1)
    with pytest.raises(Away, match=rf"{one}: .*; \[::1\]:1: "):
        submit.submit([one, other], MAIL)


def test_a_relay_that_is_being_restarted_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "_PATIENCE_S", 30.0)
    monkeypatch.setattr(submit, "_AGAIN_S", 0.0)
    tries = 0
    with Relay(usual) as relay:
        real = socket.create_connection

        def flaky(*words: object) -> socket.socket:
            nonlocal tries
            tries += 1
            if tries < 4:
                raise ConnectionRefusedError(111, "Connection refused")
            return real(relay.place, 5)

        monkeypatch.setattr(socket, "create_connection", flaky)
        assert submit.submit([relay.place], MAIL).ids
    assert tries == 4


def test_verifying_sends_nothing() -> None:
    with Relay(but(b"RCPT TO:<bad", b"550 5.1.1 No\r\n")) as relay:
        answers = submit.verify([relay.place], "root", ["a@b.c", "bad@b.c"])
    assert [answers["a@b.c"].code, answers["bad@b.c"].code] == [250, 550]
    assert b"DATA" not in relay.said
