"""The Received line we put on top of what we accept, and what those lines tell about loops.

Ours has always three lines, so that `message.headers` knows where it ends even if the
client's first line begins with a space:

    Received: from HELO ([192.0.2.7])
    <tab>by relay.example.lan (relayd) with ESMTP id 0123456789ABC
    <tab>for <rcpt@example.com>; Fri, 20 Nov 2026 10:00:00 +0000

`for` stands only where there is one recipient, or the line would tell of a Bcc.

Source: RFC 5321 §4.4, §6.3 (loops), RFC 3848 (protocol names), RFC 5322 §3.3 (dates).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from relayd.message.envelope import Origin
from relayd.message.headers import value_of

MAX_RECEIVED: Final = 50
"""Received lines from which on a message goes round: 554 5.4.0."""
_NAME_LIMIT: Final = 128
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_ALL_NEUTRAL: Final = re.compile(rf"[A-Za-z0-9._:\[\]-]{{0,{_NAME_LIMIT}}}").fullmatch
_HEADER_SAFE: Final = re.compile(r"[ -'*-:=?-~]+").fullmatch  # printable but ( ) ; < >


def received_line(
    origin: Origin, recipient: str | None, *, queue_id: str, hostname: str, now: datetime
) -> bytes:
    """Return our Received field, CRLF at the end; O(1), whatever the client called itself.

    recipient: the only one, as `str(Address)`; None where there are several.
    """
    ip = f"IPv6:{origin.ip}" if ":" in origin.ip else origin.ip
    to = f"for <{recipient}>; " if recipient and _HEADER_SAFE(recipient) else ""
    semicolon = "" if to else ";"
    names = [origin.helo, ip, hostname, origin.protocol, queue_id]
    if not _ALL_NEUTRAL("".join(names)):
        names = [neutral(name) for name in names]
    helo, ip, hostname, protocol, queue_id = names
    return (
        f"Received: from {helo or 'unknown'} ([{ip}])\r\n"
        f"\tby {hostname} (relayd) with {protocol} id {queue_id}{semicolon}\r\n"
        f"\t{to}{date_text(now)}\r\n"
    ).encode("ascii")


def neutral(text: str) -> str:
    """Return a peer's name for itself, bounded, with "?" for all that is no part of a name."""
    # SECURITY: brackets, parentheses, semicolons and line ends would let it forge the rest.
    return _UNSAFE.sub("?", text[:_NAME_LIMIT])


def date_text(moment: datetime) -> str:
    """Return an aware moment as RFC 5322 has it, in UTC."""
    at = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return "%s, %02d %s %04d %02d:%02d:%02d +0000" % (  # noqa: UP031 - an f-string takes twice as long
        _DAYS[at.weekday()], at.day, _MONTHS[at.month - 1], at.year, at.hour, at.minute, at.second
    )  # fmt: skip


def count_ours(ways: Iterable[bytes], hostname: str) -> int:
    """Return how many of the Received fields, raw, were written by the relay called `hostname`."""
    by_us = b"by %s (relayd) with " % neutral(hostname).encode("ascii")
    return sum(1 for raw in ways if by_us in value_of(raw))
