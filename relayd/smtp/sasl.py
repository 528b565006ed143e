"""AUTH mechanisms: challenges and responses as values, a new object for each attempt.

    begin("LOGIN").step(None) -> Challenge -> step(b"...") -> Challenge -> ... -> Credentials

A step ends in a Challenge to send as 334, in Credentials to judge, or in the Reply that
ends the attempt. What devices need: PLAIN and LOGIN, both with and without an initial
response; challenge texts to the letter, because some printers give up on any other.

Source: RFC 4954 §4 (exchange), RFC 4616 (PLAIN), draft-murchison-sasl-login (LOGIN).
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Final, Protocol, TypeAlias

from relayd.smtp import replies
from relayd.smtp.replies import Reply
from relayd.values import frozen

MAX_RESPONSE: Final = 12_288
"""Longest response line, octets without CRLF (RFC 4954 §4)."""

ASK_USER: Final = "VXNlcm5hbWU6"  # "Username:"
ASK_PASSWORD: Final = "UGFzc3dvcmQ6"  # noqa: S105  "Password:", the prompt and no secret


@frozen
class Credentials:
    """What a client logs in with; the password does not show in `repr`."""

    user: str
    password: str = field(repr=False)
    mechanism: str = "PLAIN"


@frozen
class Challenge:
    """Send this as 334 and come back with the response. text: base64, may be empty."""

    text: str


Step: TypeAlias = Challenge | Credentials | Reply


class Mechanism(Protocol):
    """One attempt of one mechanism; thrown away with it (CVE-2011-1720)."""

    def step(self, response: bytes | None) -> Step:
        """Take a response line without CRLF; None: the client gave no initial response."""
        ...


class Plain:
    """authzid NUL authcid NUL password, in one response."""

    __slots__ = ()

    def step(self, response: bytes | None) -> Step:
        """Return Credentials, or what is wrong."""
        if response is None:
            return Challenge("")
        octets = _decode(response)
        if isinstance(octets, Reply):
            return octets
        parts = octets.split(b"\0")
        if len(parts) < 3:
            return replies.AUTH_BAD_BASE64
        if len(parts) > 3:  # a NUL inside a name or a password
            return replies.AUTH_FAILED
        on_behalf, user, password = map(_text, parts)
        # SECURITY: nobody may act for somebody else, whatever their own password opens.
        if on_behalf not in ("", user):
            return replies.AUTH_FAILED
        return Credentials(user, password, "PLAIN")


class Login:
    """Name, then password, one response each."""

    __slots__ = ("_user",)

    def __init__(self) -> None:
        self._user: str | None = None

    def step(self, response: bytes | None) -> Step:
        """Return the next challenge, Credentials, or what is wrong."""
        if response is None:
            return Challenge(ASK_USER)
        octets = _decode(response)
        if isinstance(octets, Reply):
            return octets
        if b"\0" in octets:
            return replies.AUTH_FAILED
        if self._user is None:
            self._user = _text(octets)
            return Challenge(ASK_PASSWORD)
        return Credentials(self._user, _text(octets), "LOGIN")


MECHANISMS: Final[Mapping[str, Callable[[], Mechanism]]] = {"PLAIN": Plain, "LOGIN": Login}


def begin(mechanism: str) -> Mechanism | None:
    """Return a new attempt; None for a mechanism we do not speak. mechanism: upper case."""
    made = MECHANISMS.get(mechanism)
    return None if made is None else made()


def _decode(response: bytes) -> bytes | Reply:
    """Return the octets of a base64 response; missing padding and stray blanks forgiven."""
    if response == b"*":
        return replies.AUTH_ABORTED
    if len(response) > MAX_RESPONSE:
        return replies.AUTH_TOO_LONG
    text = b"".join(response.split()).rstrip(b"=")
    try:
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error:
        return replies.AUTH_BAD_BASE64


def _text(octets: bytes) -> str:
    """Return a name or password as text; old devices send Latin-1."""
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        return octets.decode("latin-1")
