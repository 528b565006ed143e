"""SMTP replies: the value, its wire form, and every fixed reply relayd gives.

Rule 1: text is fixed here; no exception text and nothing a peer said gets into a reply.
Rule 2: a reply is rendered once, when it is made, however many lines it has: one value,
        one write. A client that reads one segment sees the whole EHLO answer.
Rule 3: 421, 221 and 521 close the session; nothing else does by its number.

Source: RFC 5321 §4.2 (syntax), RFC 2034 and RFC 3463 (enhanced codes; not on the greeting,
EHLO, 334 and 354), RFC 4954 §6 (AUTH), RFC 3207 §4 (STARTTLS), RFC 6531 §3.5.
"""

from __future__ import annotations

from dataclasses import field
from functools import lru_cache
from typing import Final

from relayd.errors import RelaydError
from relayd.values import frozen

MAX_TEXT: Final = 480
"""Longest text of one line, octets; RFC 5321 §4.5.3.1.5 allows 512 with code and CRLF."""

_CLOSING: Final = frozenset({221, 421, 521})


@frozen
class Reply:
    """One reply, one or more lines.

    code:        200..599.
    lines:       at least one; what is not printable ASCII leaves as "?".
    enhanced:    "2.1.0" and the like; None where RFC 2034 wants none.
    octets:      the wire form of all lines, CRLF included, as one block.
    is_positive: 2xx and 3xx: the command was accepted (RFC 5321 §4.2.1).
    closes:      the session ends after this reply.
    """

    code: int
    lines: tuple[str, ...]
    enhanced: str | None = None
    octets: bytes = field(init=False, repr=False, compare=False)
    is_positive: bool = field(init=False, repr=False, compare=False)
    closes: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "octets", _render(self.code, self.lines, self.enhanced))
        object.__setattr__(self, "is_positive", self.code < 400)
        object.__setattr__(self, "closes", self.code in _CLOSING)


def _render(code: int, lines: tuple[str, ...], enhanced: str | None) -> bytes:
    prefix = f"{enhanced} " if enhanced else ""
    if len(lines) == 1:
        return f"{code} {prefix}{_printable(lines[0])}\r\n".encode("ascii")
    last = len(lines) - 1
    out = [
        f"{code}{' ' if i == last else '-'}{prefix}{_printable(line)}\r\n"
        for i, line in enumerate(lines)
    ]
    return "".join(out).encode("ascii")


def _printable(text: str) -> str:
    # SECURITY: a CR LF in here would let whoever chose the text speak for the server.
    if text.isascii() and text.isprintable() and len(text) <= MAX_TEXT:
        return text
    return "".join(c if " " <= c <= "~" else "?" for c in text[:MAX_TEXT])


def ok(enhanced: str, text: str) -> Reply:
    """Return a 250 with one line."""
    return Reply(250, (text,), enhanced)


def queued(queue_id: str) -> Reply:
    """Return the one reply that takes responsibility: say it only after `commit`."""
    return Reply(250, (f"Ok: queued as {queue_id}",), "2.0.0")


def refusal(error: RelaydError) -> Reply:
    """Return what the client is told of `error`: its class, never its text."""
    return Reply(error.code, (error.public,), error.enhanced)


@lru_cache(maxsize=8)
def banner(hostname: str) -> Reply:
    """Return the greeting; the name comes first, as clients expect."""
    return Reply(220, (f"{hostname} ESMTP relayd",))


@lru_cache(maxsize=64)
def hello(hostname: str, keywords: tuple[str, ...] = ()) -> Reply:
    """Return the answer to EHLO, or to HELO when there are no keywords."""
    return Reply(250, (hostname, *keywords))


@lru_cache(maxsize=8)
def challenge(text: str) -> Reply:
    """Return a 334 with a base64 challenge; an empty one keeps its blank (RFC 4954 §4)."""
    return Reply(334, (text,))


# --- every session

BYE: Final = Reply(221, ("Bye",), "2.0.0")
RESET: Final = ok("2.0.0", "Ok")
NOOP: Final = ok("2.0.0", "Ok")
HELP: Final = Reply(214, ("EHLO HELO MAIL RCPT DATA RSET NOOP QUIT AUTH STARTTLS VRFY",), "2.0.0")
CANNOT_VERIFY: Final = Reply(252, ("Cannot verify, send some mail and see",), "2.0.0")
TOO_MANY_CONNECTIONS: Final = Reply(421, ("Too many connections, try again later",), "4.3.2")
TOO_MANY_FROM_YOU: Final = Reply(421, ("Too many connections from your address",), "4.7.0")
SHUTTING_DOWN: Final = Reply(421, ("Service shutting down, try again",), "4.3.2")
UNAVAILABLE: Final = Reply(421, ("Service not available, try again later",), "4.3.0")
IDLE_TIMEOUT: Final = Reply(421, ("Timeout waiting for you, closing",), "4.4.2")
TOO_SLOW: Final = Reply(421, ("Content comes too slowly, closing",), "4.4.2")
TOO_MANY_ERRORS: Final = Reply(421, ("Too many errors, closing",), "4.7.0")

# --- the language

UNKNOWN_COMMAND: Final = Reply(500, ("Command not recognized",), "5.5.2")
LINE_TOO_LONG: Final = Reply(500, ("Line too long",), "5.5.2")
NUL_IN_COMMAND: Final = Reply(500, ("NUL in command",), "5.5.2")
BARE_LF_IN_COMMAND: Final = Reply(500, ("Command must end with CRLF",), "5.5.2")
BAD_CHARACTERS: Final = Reply(501, ("Command is not valid UTF-8 text",), "5.5.2")
NAME_MISSING: Final = Reply(501, ("Give your host name",), "5.5.4")
FROM_MISSING: Final = Reply(501, ("Syntax: MAIL FROM:<address>",), "5.5.4")
TO_MISSING: Final = Reply(501, ("Syntax: RCPT TO:<address>",), "5.5.4")
NO_ARGUMENT: Final = Reply(501, ("No argument allowed",), "5.5.4")
ARGUMENT_MISSING: Final = Reply(501, ("Argument missing",), "5.5.4")
BAD_PARAMETER: Final = Reply(501, ("Bad parameter value",), "5.5.4")
BAD_SENDER: Final = Reply(501, ("Bad sender address syntax",), "5.1.7")
BAD_RECIPIENT: Final = Reply(501, ("Bad recipient address syntax",), "5.1.3")
NOT_IMPLEMENTED: Final = Reply(502, ("Command not implemented",), "5.5.1")
UNKNOWN_PARAMETER: Final = Reply(555, ("Parameter not recognized",), "5.5.4")
NEEDS_SMTPUTF8: Final = Reply(553, ("Address needs SMTPUTF8",), "5.6.7")
NOT_HTTP: Final = Reply(554, ("This is SMTP, not HTTP",), "5.5.0")
NOT_A_HEADER: Final = Reply(554, ("Message header where a command belongs",), "5.5.0")
OUT_OF_STEP: Final = Reply(554, ("You talked before the greeting",), "5.5.0")

# --- order

BAD_SEQUENCE: Final = Reply(503, ("Bad sequence of commands",), "5.5.1")
NEED_HELLO: Final = Reply(503, ("Send EHLO first",), "5.5.1")
NESTED_MAIL: Final = Reply(503, ("Sender already given, send RSET first",), "5.5.1")
NEED_MAIL: Final = Reply(503, ("Send MAIL first",), "5.5.1")
NEED_RECIPIENT: Final = Reply(503, ("Send RCPT first",), "5.5.1")
NO_VALID_RECIPIENTS: Final = Reply(554, ("No valid recipients",), "5.5.1")
NOT_IN_TRANSACTION: Final = Reply(503, ("Not during a mail transaction",), "5.5.1")

# --- TLS and AUTH

START_TLS: Final = Reply(220, ("Ready to start TLS",), "2.0.0")
TLS_ACTIVE: Final = Reply(554, ("TLS is already active",), "5.5.1")
TLS_UNAVAILABLE: Final = Reply(454, ("TLS is not available now",), "4.7.0")
TLS_NOT_OFFERED: Final = Reply(502, ("STARTTLS is not offered here",), "5.5.1")
TLS_REQUIRED: Final = Reply(530, ("Send STARTTLS first",), "5.7.0")
AUTH_REQUIRED: Final = Reply(530, ("Authentication required",), "5.7.0")
AUTH_OK: Final = Reply(235, ("Authentication successful",), "2.7.0")
AUTH_FAILED: Final = Reply(535, ("Authentication failed",), "5.7.8")
AUTH_UNAVAILABLE: Final = Reply(454, ("Authentication is not available now",), "4.7.0")
AUTH_ABORTED: Final = Reply(501, ("Authentication aborted",), "5.7.0")
AUTH_BAD_BASE64: Final = Reply(501, ("Response is not valid base64",), "5.5.2")
AUTH_TOO_LONG: Final = Reply(500, ("Authentication response too long",), "5.5.6")
AUTH_NEEDS_TLS: Final = Reply(538, ("Encryption required, send STARTTLS first",), "5.7.11")
AUTH_NOT_OFFERED: Final = Reply(502, ("AUTH is not offered here",), "5.5.1")
AUTH_UNKNOWN_MECHANISM: Final = Reply(504, ("Mechanism not supported",), "5.5.4")
ALREADY_AUTHENTICATED: Final = Reply(503, ("Already authenticated",), "5.5.1")

# --- a transaction

SENDER_OK: Final = ok("2.1.0", "Sender ok")
RECIPIENT_OK: Final = ok("2.1.5", "Recipient ok")
START_MAIL: Final = Reply(354, ("Start mail input; end with <CRLF>.<CRLF>",))
NOT_CONFIGURED: Final = Reply(451, ("Relay is not configured yet, try again later",), "4.3.5")
RELAY_DENIED: Final = Reply(550, ("Relaying denied",), "5.7.1")
SENDER_REFUSED: Final = Reply(553, ("Sender address not allowed for you",), "5.7.1")
RATE_LIMITED: Final = Reply(450, ("Too much mail, slow down",), "4.7.1")
TOO_MANY_RECIPIENTS: Final = Reply(452, ("Too many recipients",), "4.5.3")
STORAGE_FULL: Final = Reply(452, ("Insufficient storage, try again later",), "4.3.1")
LOCAL_ERROR: Final = Reply(451, ("Local error, try again later",), "4.3.0")
MESSAGE_TOO_LARGE: Final = Reply(552, ("Message too large",), "5.3.4")
TOO_MANY_HOPS: Final = Reply(554, ("Too many hops, mail loop",), "5.4.0")
HEAD_TOO_LONG: Final = Reply(554, ("Message header too long",), "5.6.0")
BARE_NEWLINE: Final = Reply(550, ("Bare CR or LF in message",), "5.5.2")
CONTENT_REFUSED: Final = Reply(550, ("Message content refused",), "5.7.1")
