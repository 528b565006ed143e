"""A message as programs write it, made fit for SMTP: what `sendmail` reads and what it sends.

    read(octets)      standard input -> Letter: header fields and body, CRLF at each line's end
    Letter.recipients for -t: To, Cc, Bcc, or their Resent- forms where there are any
    finished(letter)  the octets for DATA: Bcc, Return-Path and Content-Length taken out; From,
                      Date, Message-ID put in where missing; a Received line that says who sent

A line that is no header field ends the header, as if a blank line stood before it. A lone CR is
a blank: SMTP knows CR with LF only. Lines are as long as they are: the relay takes them.

Source: RFC 5322 §3.6, §2.1.1; RFC 2045 §6; sendmail(1) of Postfix for what is taken out.
"""

from __future__ import annotations

import re
import time
from typing import Final

from relayd.values import frozen

_FIELD: Final = re.compile(rb"([!-9;-~]+)[ \t]*:")
_ENDS: Final = re.compile(rb"\r*\n|\r")
_FROM_LINES: Final = re.compile(rb"(?:>?From [^\n]*\n)+")
_LAST_LINE: Final = re.compile(rb"(?:\A|(?<=\n))\.\n")
_GONE: Final = frozenset({b"bcc", b"resent-bcc", b"return-path", b"content-length"})
_TO: Final = (b"to", b"cc", b"bcc")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9 _-]*")
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip


@frozen
class Letter:
    """fields: each with its continuation lines and CRLFs. body: CRLF at the end, or empty."""

    fields: tuple[bytes, ...]
    body: bytes

    def has(self, name: bytes) -> bool:
        """Tell whether a field is there; name: lower case."""
        return any(_name(field) == name for field in self.fields)

    def recipients(self) -> list[bytes]:
        """Return the values of the fields that say to whom it goes, unfolded."""
        prefix = b"resent-" if any(self.has(b"resent-" + name) for name in _TO) else b""
        wanted = [prefix + name for name in _TO]
        return [
            b" ".join(field.partition(b":")[2].split())
            for field in self.fields
            if _name(field) in wanted
        ]

    @property
    def is_8bit(self) -> bool:
        """Tell whether an octet of it is not ASCII."""
        return not (self.body.isascii() and all(field.isascii() for field in self.fields))


@frozen(kw_only=True)
class Origin:
    """Who sends, and from where. sender: "" for none; name: as people read it."""

    sender: str
    name: str
    uid: int
    host: str
    unique: str
    now_s: float


def read(octets: bytes, *, ends_at_dot: bool) -> Letter:
    """Return what a program wrote. ends_at_dot: a line of one dot is the end (no -i)."""
    text = _ENDS.sub(lambda found: b"\n" if found[0].endswith(b"\n") else b" ", octets)
    if text and not text.endswith(b"\n"):
        text += b"\n"
    if ends_at_dot and (end := _LAST_LINE.search(text)) is not None:
        text = text[: end.start()]
    mbox = _FROM_LINES.match(text)
    if mbox is not None:  # a mailbox file's envelope; many programs hand it on
        text = text[mbox.end() :]
    fields, at = _fields(text)
    return Letter(tuple(fields), text[at:].replace(b"\n", b"\r\n"))


def _fields(text: bytes) -> tuple[list[bytes], int]:
    """Return the fields with CRLFs, and where the body begins."""
    fields: list[bytes] = []
    at = 0
    while at < len(text):
        end = text.index(b"\n", at) + 1
        line = text[at:end]
        if line == b"\n":
            return fields, end
        if line[:1] in b" \t" and fields:
            fields[-1] += line[:-1] + b"\r\n"
        elif _FIELD.match(line):
            fields.append(line[:-1] + b"\r\n")
        else:
            break
        at = end
    return fields, at


def _name(field: bytes) -> bytes:
    return field.partition(b":")[0].rstrip(b" \t").lower()


def finished(letter: Letter, origin: Origin) -> bytes:
    """Return the message to hand in."""
    head = [_received(origin), *(field for field in letter.fields if _name(field) not in _GONE)]
    if not letter.has(b"from"):
        head.append(_from(origin))
    if not letter.has(b"date"):
        head.append(f"Date: {_date(origin.now_s)}\r\n".encode("ascii"))
    if not letter.has(b"message-id"):
        head.append(f"Message-ID: <{origin.unique}@{origin.host}>\r\n".encode("ascii"))
    if letter.is_8bit and not (letter.has(b"mime-version") or letter.has(b"content-type")):
        # Without a charset whoever reads it guesses; these programs run in a UTF-8 system.
        head.append(b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n")
        head.append(b"Content-Transfer-Encoding: 8bit\r\n")
    return b"".join((*head, b"\r\n", letter.body))


def _received(origin: Origin) -> bytes:
    return (
        f"Received: by {origin.host} (relayd sendmail, from userid {origin.uid})\r\n"
        f"\tid {origin.unique}; {_date(origin.now_s)}\r\n"
    ).encode("ascii")


def _from(origin: Origin) -> bytes:
    address = origin.sender or "MAILER-DAEMON"
    name = " ".join("".join(c if c.isprintable() else " " for c in origin.name).split())
    if not name:
        return f"From: {address}\r\n".encode("ascii")
    if not name.isascii():
        import base64  # noqa: PLC0415  few names need it, and each start-up would pay

        word = base64.b64encode(name.encode("utf-8", "replace")[:45]).decode("ascii")
        return f"From: =?utf-8?B?{word}?= <{address}>\r\n".encode("ascii")
    if not _PLAIN_NAME.fullmatch(name):
        name = '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    return f"From: {name} <{address}>\r\n".encode("ascii")


def _date(now_s: float) -> str:
    """Return the moment in local time, RFC 5322."""
    moment = time.localtime(now_s)
    east_min = moment.tm_gmtoff // 60
    sign = "-" if east_min < 0 else "+"
    zone = f"{sign}{abs(east_min) // 60:02}{abs(east_min) % 60:02}"
    clock = f"{moment.tm_hour:02}:{moment.tm_min:02}:{moment.tm_sec:02}"
    day = f"{_DAYS[moment.tm_wday]}, {moment.tm_mday:02} {_MONTHS[moment.tm_mon - 1]}"
    return f"{day} {moment.tm_year} {clock} {zone}"
