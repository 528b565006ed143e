"""What accepting sees of a head is bounded, and loops are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.message.address import Address
from relayd.message.glance import Glance, glance


def look(head: bytes) -> Glance:
    return glance(head, hostname="relay.example")


def test_an_ordinary_head() -> None:
    head = (
        b"From: UPS <ups@nas.local>\r\nSubject: =?utf-8?q?=C5=82?= on\r\n battery\r\n"
        b"Message-ID: <1@2>\r\n\r\n"
    )

    seen = look(head)

    assert seen.header_from == Address("ups", "nas.local")
    assert (seen.subject, seen.message_id, seen.received, seen.ours) == (
        "ł on battery",
        "<1@2>",
        0,
        0,
    )
    assert not seen.is_loop
    assert glance(head, hostname="h", subject=False).subject == ""


def test_a_head_without_anything() -> None:
    assert (
        look(b"\r\n")
        == look(b"")
        == Glance(header_from=None, message_id="", subject="", received=0, ours=0)
    )


def test_the_first_from_counts() -> None:
    assert look(b"From: a@b\r\nFrom: c@d\r\n\r\n").header_from == Address("a", "b")


def test_a_from_longer_than_is_remembered_is_read_too() -> None:
    name = b'"' + b"x" * 400 + b'" '

    assert look(b"From: " + name + b"<a@b>\r\n\r\n").header_from == Address("a", "b")
    assert look(b"From: " + b"e" * 70 + b"@b\r\n\r\n").header_from == Address("e" * 70, "b")


def test_text_is_read_in_the_charset_that_the_head_declares() -> None:
    # "表" ends with a backslash in Shift_JIS: delivery and this reading must agree on the address.
    head = 'From: "表" <cam@x>\r\nSubject: 印刷エラー\r\n'.encode("shift_jis")

    seen = look(head + b"Content-Type: text/plain; charset=Shift_JIS\r\n\r\n")

    assert seen.subject == "印刷エラー"
    assert seen.header_from == Address("cam", "x")


def test_long_values_are_cut() -> None:
    seen = look(b"Subject: " + b"x" * 9000 + b"\r\nMessage-ID: <" + b"y" * 9000 + b"@z>\r\n\r\n")

    assert len(seen.subject) == 200
    assert len(seen.message_id) == 250


@pytest.mark.parametrize(
    ("head", "loop"),
    [
        (b"Received: x\r\n" * 49, False),
        (b"Received: x\r\n" * 50, True),
        (
            b"Received: from a ([1])\r\n\tby relay.example (relayd) with SMTP id 1;\r\n\tx\r\n" * 3,
            False,
        ),
        (
            b"Received: from a ([1])\r\n\tby relay.example (relayd) with SMTP id 1;\r\n\tx\r\n" * 4,
            True,
        ),
        (b"X-Relayd-Hops: 4 relay.example\r\n", True),
        (b"X-Relayd-Hops: 4 other.example\r\n", False),
        (b"X-Relayd-Hops: many relay.example\r\n", False),
    ],
)
def test_loops_are_known(head: bytes, loop: bool) -> None:  # noqa: FBT001 - a table
    assert look(head + b"\r\n").is_loop is loop


@given(octets=st.binary(max_size=200))
def test_any_octets_can_be_looked_at(octets: bytes) -> None:
    look(octets)
    look(b"Subject: " + octets)
    look(b"From: " + octets)
