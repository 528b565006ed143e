"""What is remembered of a peer is bounded, has no secret and no content, and is told once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relayd.clock import FakeClock
from relayd.master.channel import MAX_PACKET_BYTES
from relayd.serve.callers import LONGEST_LINE, MOST_CALLERS, Callers, Refused, plain

DENIED = Refused(
    code=550, reply="Recipient not allowed", reason="recipient x not in allow_to",
    do="Add it.", sender="ups@nas.local", recipient="x@example.com", session="s1", listener="lan",
    transcript=("C: RCPT TO:<x@example.com>", "S: 550 5.7.1 Recipient not allowed"),
)  # fmt: skip


def rows(callers: Callers) -> list[Any]:
    return [row for part in callers.take() for row in part]


def test_a_peer_has_its_counts_its_last_mail_and_its_last_refusal() -> None:
    clock = FakeClock()
    callers = Callers(clock)
    for queue_id in ("A", "B"):
        callers.accepted(
            "192.0.2.5", "ups", "", queue_id=queue_id, sender="ups@nas.local", at=clock.utcnow()
        )
    clock.advance(1)  # the last mail was at its own time, whenever it is told
    callers.refused("192.0.2.5", "ups", "", DENIED)
    (row,) = rows(callers)
    assert row == {
        "ip": "192.0.2.5",
        "device": "ups",
        "user": "",
        "accepted": 2,
        "refused": 1,
        "last": {"at": "2026-11-20T10:00:00.000Z", "id": "B", "from": "ups@nas.local"},
        "refusal": {
            "at": "2026-11-20T10:00:01.000Z",
            "code": 550,
            "reply": "Recipient not allowed",
            "reason": "recipient x not in allow_to",
            "do": "Add it.",
            "sender": "ups@nas.local",
            "recipient": "x@example.com",
            "login": "",
            "session": "s1",
            "listener": "lan",
            "transcript": ["C: RCPT TO:<x@example.com>", "S: 550 5.7.1 Recipient not allowed"],
        },
    }


def test_news_are_told_once() -> None:
    callers = Callers()
    callers.refused("192.0.2.5", "", "", DENIED)
    assert len(rows(callers)) == 1
    assert rows(callers) == []


def test_a_login_and_its_address_are_apart_from_others_there() -> None:
    callers = Callers()
    now = FakeClock().utcnow()
    callers.accepted("192.0.2.5", "", "nas", queue_id="A", sender="", at=now)
    callers.accepted("192.0.2.5", "", "", queue_id="B", sender="", at=now)
    assert [(row["user"], row["accepted"]) for row in rows(callers)] == [("nas", 1), ("", 1)]


def test_who_walks_through_addresses_fills_no_memory_and_the_latest_stay() -> None:
    callers = Callers()
    for number in range(3 * MOST_CALLERS):
        callers.refused(f"2001:db8::{number:x}", "", "", DENIED)
    told = rows(callers)
    assert len(told) == MOST_CALLERS
    assert told[-1]["ip"] == f"2001:db8::{3 * MOST_CALLERS - 1:x}"


def test_every_part_fits_a_packet_whatever_peers_say() -> None:
    callers = Callers()
    wide = "\U0001f4a5" * 5000  # 12 octets each in JSON
    for number in range(100):
        line = Refused(
            code=550, reply=wide, reason=wide, sender=wide, recipient=wide, login=wide,
            transcript=(f"C: RCPT TO:<{wide}>",) * 40,
        )  # fmt: skip
        callers.refused(f"192.0.2.{number}", "d", "", line)
    parts = list(callers.take())
    assert sum(len(part) for part in parts) == 100
    for part in parts:
        assert len(json.dumps({"event": "callers", "rows": part})) < MAX_PACKET_BYTES


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("C: EHLO printer", "C: EHLO printer"),
        ("C: mail from:<a@b>", "C: mail from:<a@b>"),
        ("C: AUTH <redacted>", "C: AUTH <redacted>"),
        ("C: <redacted>", "C: <redacted>"),
        ("C: <512 octets of content>", "C: <512 octets of content>"),
        ("S: 500 5.5.2 what", "S: 500 5.5.2 what"),
        ("C: Dear Bob, the code is 1234", "C: <26 characters that are no SMTP command>"),
        ("C: cGFzc3dvcmQ=", "C: <12 characters that are no SMTP command>"),
        ("C: Subject: payroll", "C: <16 characters that are no SMTP command>"),
        ("C: " + "EHLO " + "x" * 500, "C: EHLO " + "x" * (LONGEST_LINE - 8) + "..."),
    ],
)
def test_only_commands_are_kept_of_what_a_peer_said(line: str, shown: str) -> None:
    assert list(plain([line])) == [shown]


def test_the_end_of_a_long_dialogue_is_kept() -> None:
    assert list(plain([f"S: 250 {n}" for n in range(50)])) == [f"S: 250 {n}" for n in range(30, 50)]
