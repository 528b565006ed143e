"""A program's message becomes one fit for SMTP: whatever its line ends, with what it lacks."""

from __future__ import annotations

import dataclasses
import email.utils
import os
import re
import time

import pytest

from relayd.cli.letter import Letter, Origin, finished, read

ORIGIN = Origin(
    sender="root", name="", uid=0, host="nas.example.com", unique="1.2.ab", now_s=1_795_000_000.0
)


def fields(octets: bytes, **changes: object) -> dict[str, str]:
    """Return the head of what `finished` makes of a message, by name."""
    origin = dataclasses.replace(ORIGIN, **changes)  # type: ignore[arg-type]  # by its tests
    head = finished(read(octets, ends_at_dot=False), origin).partition(b"\r\n\r\n")[0]
    rows = re.sub(rb"\r\n[ \t]+", b" ", head).decode().split("\r\n")
    return {row.partition(": ")[0]: row.partition(": ")[2] for row in rows}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r\r\n"])
def test_line_ends_become_crlf(end: bytes) -> None:
    letter = read(end.join([b"Subject: a", b" b", b"", b"one", b"two", b""]), ends_at_dot=False)
    assert letter == Letter((b"Subject: a\r\n b\r\n",), b"one\r\ntwo\r\n")


def test_a_last_line_without_an_end_gets_one_and_a_lone_cr_is_a_blank() -> None:
    assert read(b"\none\rtwo", ends_at_dot=False).body == b"one two\r\n"


@pytest.mark.parametrize(
    ("octets", "is_ended", "rest"),
    [
        (b"\none\n.\ntwo\n", True, b"one\r\n"),
        (b"\none\n.\ntwo\n", False, b"one\r\n.\r\ntwo\r\n"),
        (b"\n.one\n..\n", True, b".one\r\n..\r\n"),
        (b"\none\n.", True, b"one\r\n"),
    ],
)
def test_a_line_of_one_dot_ends_it_only_without_i(
    octets: bytes, *, is_ended: bool, rest: bytes
) -> None:
    assert read(octets, ends_at_dot=is_ended).body == rest


def test_the_dot_ends_it_on_the_first_line_too() -> None:
    assert read(b".\nFrom: x\n", ends_at_dot=True) == Letter((), b"")


def test_a_line_that_is_no_field_begins_the_body() -> None:
    assert read(b"Subject: x\nhello you\nA: b\n", ends_at_dot=False) == Letter(
        (b"Subject: x\r\n",), b"hello you\r\nA: b\r\n"
    )
    assert read(b"hello\n", ends_at_dot=False) == Letter((), b"hello\r\n")
    assert read(b" indented\nA: b\n", ends_at_dot=False) == Letter((), b" indented\r\nA: b\r\n")


def test_a_mailbox_files_first_line_is_not_the_messages() -> None:
    letter = read(b">From x\nFrom root Sat Nov 21\nTo: a@b.c\n\nFrom here\n", ends_at_dot=False)
    assert letter == Letter((b"To: a@b.c\r\n",), b"From here\r\n")


def test_nothing_is_a_message_too() -> None:
    assert read(b"", ends_at_dot=True) == Letter((), b"")


def test_recipients_are_those_of_to_cc_and_bcc_unfolded() -> None:
    letter = read(b"TO: a@b.c,\n\td@e.f\nCc : g@h.i\nbcc: j@k.l\nX-To: no\n\n", ends_at_dot=False)
    assert letter.recipients() == [b"a@b.c, d@e.f", b"g@h.i", b"j@k.l"]


def test_recipients_of_a_resent_message_are_the_resent_ones_only() -> None:
    letter = read(b"To: old@b.c\nResent-To: new@b.c\nResent-Bcc: x@b.c\n\n", ends_at_dot=False)
    assert letter.recipients() == [b"new@b.c", b"x@b.c"]


def test_bcc_and_what_belongs_to_an_envelope_is_taken_out() -> None:
    found = fields(
        b"To: a@b.c\nBcc: secret@b.c,\n more@b.c\nresent-BCC: x\nReturn-Path: <y>\n"
        b"Content-Length: 3\nX: 1\n\nhi\n"
    )
    assert not {name.lower() for name in found} & {
        "bcc", "resent-bcc", "return-path", "content-length"
    }  # fmt: skip
    assert found["To"] == "a@b.c"
    assert found["X"] == "1"


def test_what_is_missing_is_put_in() -> None:
    found = fields(b"Subject: x\n\nhi\n")
    assert found["From"] == "root"
    assert found["Message-ID"] == "<1.2.ab@nas.example.com>"
    assert email.utils.parsedate_to_datetime(found["Date"]).timestamp() == ORIGIN.now_s
    assert found["Received"].startswith("by nas.example.com (relayd sendmail, from userid 0) id ")
    assert "MIME-Version" not in found


def test_what_is_there_stays() -> None:
    said = b"from: a@b.c\nDATE: x\nmessage-id: <1@2>\nReceived: by y\n\nhi\n"
    octets = finished(read(said, ends_at_dot=False), ORIGIN)
    assert octets.partition(b"from:")[2] == said.replace(b"\n", b"\r\n").partition(b"from:")[2]


@pytest.mark.parametrize(
    ("name", "sender", "line"),
    [
        ("CronDaemon", "root", "CronDaemon <root>"),
        ("Cron Daemon", "a@b.c", "Cron Daemon <a@b.c>"),
        ('O"Hara (x)', "a@b.c", '"O\\"Hara (x)" <a@b.c>'),
        ("Jürgen", "a@b.c", "=?utf-8?B?SsO8cmdlbg==?= <a@b.c>"),
        ("a\r\nBcc: x@y.z", "a@b.c", '"a Bcc: x@y.z" <a@b.c>'),
        ("a\x1b[0m", "a@b.c", '"a [0m" <a@b.c>'),
        ("", "", "MAILER-DAEMON"),
    ],
)
def test_the_name_of_f_becomes_a_display_name_and_never_a_field(
    name: str, sender: str, line: str
) -> None:
    assert fields(b"\nhi\n", name=name, sender=sender)["From"] == line


def test_octets_above_ascii_get_a_charset_where_none_is_named() -> None:
    found = fields("\ngrün\n".encode())
    assert found["Content-Type"] == "text/plain; charset=utf-8"
    assert found["Content-Transfer-Encoding"] == "8bit"
    assert fields("Content-Type: text/html\n\ngrün\n".encode())["Content-Type"] == "text/html"


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/New_York"])
def test_the_date_has_this_hosts_zone(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        moment = email.utils.parsedate_to_datetime(fields(b"\n")["Date"])
    finally:
        monkeypatch.undo()
        time.tzset()
    assert moment.timestamp() == ORIGIN.now_s
    assert os.environ.get("TZ") != "Asia/Kolkata"
