"""Client commands as values, and the parser of one command line.

A line becomes a Command with its arguments read, a BadCommand that carries the reply it
earned, or a Hangup: not SMTP at all, and going on would only help an attacker. Nearly all lines
are by the book, and `parse_ordinary` reads those at a quarter of the cost; what it does not know,
`parse_command` judges.

Profiles: "device" forgives what printers, cameras and shell scripts get wrong (no brackets,
blanks after the colon, source routes, no name after HELO, spaces in a sender's local part,
LF for CRLF). "strict" is RFC 5321 to the letter. A missing domain stays missing here; the
desk completes it.

Source: RFC 5321 §4.1.1 and §4.1.2; RFC 1870 (SIZE), RFC 6152 (BODY), RFC 6531 (SMTPUTF8),
RFC 4954 §4 and §5 (AUTH), RFC 3207 (STARTTLS). No DSN, no CHUNKING: RFC 3461's parameters
are refused with 555 and BDAT ends the session, because its payload follows unasked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from relayd.message.address import Address, NeedsSmtputf8, parse_path
from relayd.smtp import replies
from relayd.smtp.replies import Reply
from relayd.values import frozen

Profile: TypeAlias = Literal["device", "strict"]

MAX_NAME: Final = 255
"""Most characters of a HELO name that are kept."""


@frozen
class Command:
    """Base of the commands below."""


@frozen
class Ehlo(Command):
    """EHLO. name: what the client calls itself, untrusted; "" when it said nothing."""

    name: str


@frozen
class Helo(Command):
    """HELO. name: as in Ehlo."""

    name: str


@frozen
class Mail(Command):
    """MAIL FROM.

    reverse_path: None for the null sender; its domain may be "" on the device profile.
    size:         SIZE=, octets; 0 when not said.
    body:         "7BIT", "8BITMIME" or "" when not said.
    smtputf8:     SMTPUTF8 was given.
    auth:         AUTH= as sent (xtext); nothing is ever derived from it.
    """

    reverse_path: Address | None
    size: int = 0
    body: str = ""
    smtputf8: bool = False
    auth: str = ""


@frozen
class Rcpt(Command):
    """RCPT TO. forward_path: its domain may be "" ("postmaster"; others on device)."""

    forward_path: Address


@frozen
class Data(Command):
    """DATA."""


@frozen
class Auth(Command):
    """AUTH. mechanism: upper case. initial: the response sent along, still base64; None: none."""

    mechanism: str
    initial: bytes | None

    def __repr__(self) -> str:
        return f"Auth(mechanism={self.mechanism!r})"


@frozen
class StartTls(Command):
    """STARTTLS."""


@frozen
class Rset(Command):
    """RSET."""


@frozen
class Noop(Command):
    """NOOP; its argument means nothing."""


@frozen
class Vrfy(Command):
    """VRFY."""


@frozen
class Expn(Command):
    """EXPN."""


@frozen
class Help(Command):
    """HELP."""


@frozen
class Quit(Command):
    """QUIT."""


@frozen
class Unknown(Command):
    """No command of ours. is_smtp: one the RFCs know, which we do not offer (502, not 500)."""

    verb: str
    is_smtp: bool


@frozen
class BadCommand:
    """A line that says no command; answer `reply` and go on."""

    reply: Reply


@frozen
class Hangup:
    """The peer cannot be talked to; answer `reply`, if any, and close.

    reason: for the log: "http", "header", "bdat", "tls-on-plain-port", "endless-line",
            "endless-content".
    """

    reason: str
    reply: Reply | None


Line: TypeAlias = (
    Ehlo
    | Helo
    | Mail
    | Rcpt
    | Data
    | Auth
    | StartTls
    | Rset
    | Noop
    | Vrfy
    | Expn
    | Help
    | Quit
    | Unknown
    | BadCommand
    | Hangup
)

_HTTP: Final = frozenset(
    ("GET", "POST", "PUT", "HEAD", "CONNECT", "OPTIONS", "DELETE", "PATCH", "TRACE", "PRI")
)
_NOT_OFFERED: Final = frozenset(("ETRN", "TURN", "ATRN", "SEND", "SOML", "SAML", "BURL"))
_HEADER_LABEL: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]*:")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_FROM: Final = re.compile(r"FROM[ \t]*:[ \t]*", re.IGNORECASE)
_TO: Final = re.compile(r"TO[ \t]*:[ \t]*", re.IGNORECASE)
_IN_QUOTES: Final = r'"(?:[^"\\]++|\\.)*"'
_BRACKETED: Final = re.compile(rf'<((?:[^"<>]++|{_IN_QUOTES})*)>')
_NAKED: Final = re.compile(rf'((?:[^\s"<>]++|{_IN_QUOTES})+)')
_SIZE: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_PLAIN: Final = rb"<([A-Za-z0-9_+.-]{1,64}@[A-Za-z0-9.-]{1,190})>"
_ORDINARY: Final = re.compile(
    rb"RCPT TO:" + _PLAIN + rb"|MAIL FROM:" + _PLAIN + rb"(?: SIZE=([0-9]{1,20}))?"
)
_MECHANISM: Final = re.compile(r"[A-Za-z0-9_-]{1,20}", re.ASCII)


class _Refused(Exception):
    """A line earned `reply`; never leaves this file."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.code)
        self.reply = reply


def parse_ordinary(line: bytes) -> Line | None:
    """Return what `parse_command` would on any profile; None: ask that one.

    line: without its CRLF. MAIL and RCPT to the letter, with a plain address and no more than SIZE,
          and commands that stand alone. Nothing else may get in: it would pass the checks there.
    """
    found = _ORDINARY.fullmatch(line)
    if found is None:
        return _WHOLE_LINES.get(line)
    recipient, sender, size = found.groups()
    try:
        if recipient is not None:
            return Rcpt(_plain_address(recipient))
        return Mail(_plain_address(sender), int(size or 0))
    except ValueError:  # too long
        return None


# A site's devices write as a few to a few.
@lru_cache(maxsize=1024)
def _plain_address(path: bytes) -> Address:
    return parse_path(path.decode("ascii"))


def parse_command(line: bytes, profile: Profile, *, smtputf8: bool = False) -> Line:
    """Return what one line says; O(len(line)), never raises.

    line:     without its line end, split nowhere.
    smtputf8: the open transaction's MAIL asked for it.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return BadCommand(replies.NUL_IN_COMMAND if 0 in line else replies.BAD_CHARACTERS)
    if not text.isprintable() and _CONTROL.search(text):
        return BadCommand(replies.NUL_IN_COMMAND if 0 in line else replies.BAD_CHARACTERS)
    verb, _, rest = text.replace("\t", " ").partition(" ")
    parse = _PARSERS.get(verb.upper())
    if parse is None:
        return _foreign(verb)
    try:
        return parse(rest.strip(), profile, smtputf8)
    except _Refused as refused:
        return BadCommand(refused.reply)


def _foreign(verb: str) -> Line:
    """Return what a first word is that we have no parser for."""
    upper = verb.upper()
    if upper in _HTTP:
        # SECURITY: a browser made to POST here must not get its body read as commands.
        return Hangup("http", replies.NOT_HTTP)
    if upper == "BDAT":
        return Hangup("bdat", replies.NOT_IMPLEMENTED)
    if _HEADER_LABEL.match(verb):
        return Hangup("header", replies.NOT_A_HEADER)
    return Unknown(verb[:MAX_NAME], upper in _NOT_OFFERED)


def _ehlo(rest: str, profile: Profile, _utf8: bool) -> Line:  # noqa: FBT001  the table's form
    return Ehlo(_name(rest, profile))


def _helo(rest: str, profile: Profile, _utf8: bool) -> Line:  # noqa: FBT001  the table's form
    return Helo(_name(rest, profile))


def _name(rest: str, profile: Profile) -> str:
    if profile == "strict" and not rest:
        raise _Refused(replies.NAME_MISSING)
    return rest[:MAX_NAME]


def _mail(rest: str, profile: Profile, _utf8: bool) -> Line:  # noqa: FBT001  the table's form
    path, parameters = _split(rest, profile, _FROM, replies.FROM_MISSING, replies.BAD_SENDER)
    size, body, smtputf8, auth = _mail_parameters(parameters)
    address = None
    if path:
        address = _address(path, profile, replies.BAD_SENDER, smtputf8=smtputf8)
        if profile == "strict" and not address.domain:
            raise _Refused(replies.BAD_SENDER)
    return Mail(address, size, body, smtputf8, auth)


def _rcpt(rest: str, profile: Profile, smtputf8: bool) -> Line:  # noqa: FBT001  the table's form
    path, parameters = _split(rest, profile, _TO, replies.TO_MISSING, replies.BAD_RECIPIENT)
    if parameters:
        raise _Refused(replies.UNKNOWN_PARAMETER)
    if not path:
        raise _Refused(replies.BAD_RECIPIENT)
    address = _address(path, profile, replies.BAD_RECIPIENT, smtputf8=smtputf8)
    if profile == "strict" and not address.domain and address.local.lower() != "postmaster":
        raise _Refused(replies.BAD_RECIPIENT)
    return Rcpt(address)


def _split(
    rest: str, profile: Profile, label: re.Pattern[str], missing: Reply, bad: Reply
) -> tuple[str, list[str]]:
    """Return the path without its brackets ("" for "<>"), and the parameters."""
    found = label.match(rest)
    if found is None or found.end() == len(rest):
        raise _Refused(missing)
    if profile == "strict" and not found[0].endswith(":"):
        raise _Refused(missing)
    start = found.end()
    path = _BRACKETED.match(rest, start)
    if path is None and profile == "device":
        path = _NAKED.match(rest, start)
    if path is None:
        raise _Refused(bad)
    after = rest[path.end() :]
    if after and not after.startswith(" "):  # "<>>>>" is no null sender
        raise _Refused(bad)
    return path[1].strip(" "), after.split()


def _address(path: str, profile: Profile, bad: Reply, *, smtputf8: bool) -> Address:
    if not smtputf8 and not path.isascii():
        raise _Refused(replies.NEEDS_SMTPUTF8)
    lenient = profile == "device" and bad is replies.BAD_SENDER
    try:
        return parse_path(path, lenient=lenient)
    except NeedsSmtputf8:  # Microsoft 365 has no mailbox with such a name
        raise _Refused(replies.NEEDS_SMTPUTF8) from None
    except ValueError:
        raise _Refused(bad) from None


def _mail_parameters(parameters: list[str]) -> tuple[int, str, bool, str]:
    """Return SIZE, BODY, SMTPUTF8 and AUTH."""
    if not parameters:
        return 0, "", False, ""
    given: dict[str, str] = {}
    for parameter in parameters:
        key, equals, value = parameter.partition("=")
        key = key.upper()
        if key not in ("SIZE", "BODY", "SMTPUTF8", "AUTH"):
            raise _Refused(replies.UNKNOWN_PARAMETER)
        if key in given or bool(equals) is (key == "SMTPUTF8"):
            raise _Refused(replies.BAD_PARAMETER)
        given[key] = value
    size, body = given.get("SIZE", "0"), given.get("BODY", "").upper()
    if not _SIZE.fullmatch(size) or ("BODY" in given and body not in ("7BIT", "8BITMIME")):
        raise _Refused(replies.BAD_PARAMETER)
    return int(size), body, "SMTPUTF8" in given, given.get("AUTH", "")


def _auth(rest: str, _profile: Profile, _utf8: bool) -> Line:  # noqa: FBT001  the table's form
    mechanism, _, initial = rest.partition(" ")
    if not mechanism:
        raise _Refused(replies.ARGUMENT_MISSING)
    if not _MECHANISM.fullmatch(mechanism):
        raise _Refused(replies.AUTH_UNKNOWN_MECHANISM)
    initial = initial.strip()
    return Auth(mechanism.upper(), initial.encode() if initial else None)


_Parser: TypeAlias = Callable[[str, Profile, bool], Line]


def _alone(command: Line, *, always: bool = False) -> _Parser:
    """Parse a command that takes no argument; on the device profile one is overlooked."""

    def parse(rest: str, profile: Profile, _utf8: bool) -> Line:  # noqa: FBT001  the table's form
        if rest and (always or profile == "strict"):
            raise _Refused(replies.NO_ARGUMENT)
        return command

    return parse


def _with_text(command: Line) -> _Parser:
    """Parse a command whose argument we do not look at."""
    return lambda _rest, _profile, _utf8: command


_PARSERS: Final[Mapping[str, _Parser]] = {
    "EHLO": _ehlo,
    "HELO": _helo,
    "MAIL": _mail,
    "RCPT": _rcpt,
    "DATA": _alone(Data(), always=True),
    "AUTH": _auth,
    "STARTTLS": _alone(StartTls(), always=True),
    "RSET": _alone(Rset()),
    "QUIT": _alone(Quit()),
    "NOOP": _with_text(Noop()),
    "VRFY": _with_text(Vrfy()),
    "EXPN": _with_text(Expn()),
    "HELP": _with_text(Help()),
}

_WHOLE_LINES: Final[Mapping[bytes, Line]] = {
    b"DATA": Data(),
    b"RSET": Rset(),
    b"QUIT": Quit(),
    b"NOOP": Noop(),
    b"STARTTLS": StartTls(),
}
