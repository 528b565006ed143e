"""Our Received line: three lines, whatever the client calls itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

from hypothesis import given
from hypothesis import strategies as st

from relayd.message.envelope import Origin
from relayd.message.headers import Head
from relayd.message.trace import count_ours, date_text, received_line

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
ORIGIN = Origin(
    session="s", listener="l", ip="192.0.2.7", helo="ups", device="", user="", protocol="ESMTPS"
)


def line(origin: Origin = ORIGIN, recipient: str | None = None) -> bytes:
    return received_line(
        origin, recipient, queue_id="0123456789ABC", hostname="relay.example", now=NOW
    )


def test_it_reads_as_rfc_5321_wants() -> None:
    assert line(recipient="a@b") == (
        b"Received: from ups ([192.0.2.7])\r\n"
        b"\tby relay.example (relayd) with ESMTPS id 0123456789ABC\r\n"
        b"\tfor <a@b>; Fri, 20 Nov 2026 10:00:00 +0000\r\n"
    )


def test_several_recipients_are_not_told() -> None:
    assert b"for" not in line()
    assert line().endswith(b"id 0123456789ABC;\r\n\tFri, 20 Nov 2026 10:00:00 +0000\r\n")


def test_ipv6_and_silence_are_written_down() -> None:
    assert line(replace(ORIGIN, ip="fe80::1", helo="")).startswith(
        b"Received: from unknown ([IPv6:fe80::1])\r\n"
    )


@given(helo=st.text(max_size=300), recipient=st.text(max_size=50))
def test_nothing_a_client_says_breaks_out(helo: str, recipient: str) -> None:
    octets = line(replace(ORIGIN, helo=helo), recipient)

    assert octets.count(b"\r\n") == octets.count(b"\n") == octets.count(b"\r") == 3
    assert octets.count(b"(") == octets.count(b")") == 2
    assert octets.count(b";") == 1
    assert len(Head.parse(octets + b"A: b\r\n\r\n").fields) == 2
    assert max(map(len, octets.split(b"\r\n"))) < 300


@given(st.datetimes(min_value=datetime(1900, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - hypothesis adds it
def test_dates_are_read_by_another_hand(moment: datetime) -> None:
    assert parsedate_to_datetime(date_text(moment)) == moment.replace(microsecond=0)


def test_dates_are_in_utc() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=5)))

    assert date_text(moment) == "Thu, 01 Jan 2026 22:04:05 +0000"


def test_ways_gone_are_counted() -> None:
    folded = line().replace(b"\tby ", b"\tby\r\n ")
    ways = [line(), line(), folded, b"Received: from a by b\r\n"]

    assert count_ours(ways, "relay.example") == 3
    assert count_ours(ways, "other.example") == 0
