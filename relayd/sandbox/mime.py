r"""A message as Exchange sees it: parsed by the standard library, judged, cut into head and body.

This must not share a line with the relay's own `message`: a bug common to both would cancel
out. So recipients come from email.headerregistry, structure from email.parser, and what
either of them dislikes is a defect with a name (knobs.Defect).

The body is what follows the first empty line; its SHA-256 is what tests compare.

Source: RFC 5322 §2.1, §3.4, RFC 2045-2047; NDR 5.1.20 and 5.6.11 of Exchange Online.
"""

from __future__ import annotations

import email.policy
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email import errors
from email.errors import (
    HeaderMissingRequiredValue,
    HeaderParseError,
    MessageDefect,
    ObsoleteHeaderDefect,
)
from email.headerregistry import Address, HeaderRegistry
from email.message import Message
from email.parser import BytesParser
from typing import Final

RECIPIENT_FIELDS: Final = ("to", "cc", "bcc")
_SINGLE_FIELDS: Final = ("to", "cc", "bcc", "subject", "date", "message-id", "reply-to", "sender")
_MAX_LINE_OCTETS: Final = 998  # RFC 5322 §2.1.1
_MAX_LOCAL_OCTETS: Final = 64  # RFC 5321 §4.5.3.1
_MAX_DOMAIN_OCTETS: Final = 255

_PARSER: Final = BytesParser(policy=email.policy.compat32)
_HEADERS: Final = HeaderRegistry()
_FIELD_NAME: Final = re.compile(rb"[!-9;-~]+[ \t]*:")
_FIELD_END: Final = re.compile(rb"\r?\n(?![ \t])")
_SIMPLE: Final = re.compile(r"[A-Za-z0-9._+=-]+@[A-Za-z0-9.-]+\Z")
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+"
_LOCAL: Final = re.compile(rf'{_ATOM}(?:\.{_ATOM})*\Z|"(?:[^"\\\r\n]|\\.)*"\Z')
_ALNUM: Final = r"A-Za-z0-9\u0080-\U0010ffff"
_LABEL: Final = rf"[{_ALNUM}](?:[{_ALNUM}_-]*[{_ALNUM}])?"
_DOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\Z|\[[0-9A-Fa-f.:IPv]+\]\Z")

_DEFECT_NAMES: Final[Mapping[type[MessageDefect], str]] = {
    errors.MissingHeaderBodySeparatorDefect: "bad-header-line",
    errors.FirstHeaderLineIsContinuationDefect: "bad-header-line",
    errors.NoBoundaryInMultipartDefect: "no-boundary-in-multipart",
    errors.StartBoundaryNotFoundDefect: "start-boundary-not-found",
    errors.CloseBoundaryNotFoundDefect: "close-boundary-not-found",
    errors.MultipartInvariantViolationDefect: "multipart-invariant-violation",
    errors.MisplacedEnvelopeHeaderDefect: "misplaced-envelope-header",
    errors.InvalidMultipartContentTransferEncodingDefect: (
        "invalid-multipart-content-transfer-encoding"
    ),
}


class BadAddress(ValueError):
    """A header that should hold addresses holds something else; the text says what."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """address: as written, without display name. field: "to", "cc" or "bcc"."""

    address: str
    field: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A message taken apart. head: with the line end of its last field. defects: sorted names."""

    head: bytes
    body: bytes
    fields: tuple[tuple[str, str], ...]
    defects: tuple[str, ...]

    def first(self, name: str) -> str:
        """Return the first field of that lower-case name, unfolded; "" if there is none."""
        return next((value for key, value in self.fields if key.lower() == name), "")

    def all(self, name: str) -> list[str]:
        """Return every field of that lower-case name, unfolded."""
        return [value for key, value in self.fields if key.lower() == name]


def examine(mime: bytes) -> Examined:
    """Take `mime` apart; never fails, what is wrong stands in `defects`. O(len(mime))."""
    message = _PARSER.parsebytes(mime)
    head, body = split(mime)
    fields = tuple((name, _text(value)) for name, value in message.raw_items())
    defects = set(_structure_defects(message)) | set(_octet_defects(mime, head))
    defects |= set(_field_defects(name.lower() for name, _ in fields))
    if not fields:
        defects.add("no-header")
    return Examined(head=head, body=body, fields=fields, defects=tuple(sorted(defects)))


def split(mime: bytes) -> tuple[bytes, bytes]:
    """Return header block (with its last line end) and body; without an empty line no body."""
    if mime.startswith(b"\r\n"):
        return b"", mime[2:]
    crlf, lf = mime.find(b"\r\n\r\n"), mime.find(b"\n\n")
    if crlf >= 0 and (lf < 0 or crlf < lf):
        return mime[: crlf + 2], mime[crlf + 4 :]
    if lf >= 0:
        return mime[: lf + 1], mime[lf + 2 :]
    return mime, b""


def recipients(examined: Examined) -> list[Recipient]:
    """Return To, Cc and Bcc in this order, each address once.

    raises: BadAddress - one of the three holds what is not an address.
    """
    found: dict[str, Recipient] = {}
    for field in RECIPIENT_FIELDS:
        for value in examined.all(field):
            for address in addresses(value):
                found.setdefault(address.lower(), Recipient(address, field))
    return list(found.values())


def author(examined: Examined) -> str:
    """Return the address in From; "" if there is no From.

    raises: BadAddress - it is no address, or several without a Sender.
    """
    value = examined.first("from")
    if not value.strip():
        return ""
    found = addresses(value)
    if len(found) != 1:
        raise BadAddress(f"From holds {len(found)} addresses: {value!r}")
    return found[0]


@functools.lru_cache(maxsize=8192)
def addresses(value: str) -> tuple[str, ...]:
    """Return the addresses of an address list, groups opened.

    value:  unfolded and decoded from octets, encoded-words still in place.
    raises: BadAddress - the list or an address does not parse.
    """
    if _SIMPLE.match(value):
        return (_checked(value),)
    try:
        header = _HEADERS("to", value)
        # The parser of the standard library is not written for hostile input everywhere.
    except (HeaderParseError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise BadAddress(f"not an address list: {value!r}") from error
    for defect in header.defects:
        if not isinstance(defect, ObsoleteHeaderDefect | HeaderMissingRequiredValue):
            raise BadAddress(f"{defect} in {value!r}")
    # The registry makes a class for each field; that this one has `addresses` is documented.
    found: tuple[Address, ...] = getattr(header, "addresses", ())
    return tuple(_checked(_written(address)) for address in found)


def without(head: bytes, names: Iterable[str]) -> bytes:
    """Return `head` less every field with one of the lower-case `names`."""
    gone = tuple(names)
    return b"".join(field for name, field in cut(head) if name not in gone)


def cut(head: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (lower-case name, whole field with its line end) for each field of `head`."""
    start = 0
    for end in _FIELD_END.finditer(head):
        field = head[start : end.end()]
        yield field.partition(b":")[0].strip().lower().decode("latin-1"), field
        start = end.end()
    if start < len(head):
        yield head[start:].partition(b":")[0].strip().lower().decode("latin-1"), head[start:]


def _written(address: Address) -> str:
    """Return an address with the quotes that it needs: `addr_spec` has none for "a."@x, which
    without them is no address (and has a defect, so that it does not get here).
    """
    local, domain = address.username, address.domain
    if local and domain and '"' not in address.addr_spec and not _LOCAL.match(local):
        return f'"{local}"@{domain}'
    return address.addr_spec


def _checked(address: str) -> str:
    local, at, domain = address.rpartition("@")
    if (
        not at
        or not _LOCAL.match(local)
        or not _DOMAIN.match(domain)
        or len(local.encode()) > _MAX_LOCAL_OCTETS
        or len(domain.encode()) > _MAX_DOMAIN_OCTETS
    ):
        raise BadAddress(f"not an address: {address!r}")
    return address


def _text(value: object) -> str:
    octets = str(value).encode("ascii", "surrogateescape")
    unfolded = octets.replace(b"\r\n", b"").replace(b"\n", b"").replace(b"\r", b"")
    try:
        return unfolded.decode("utf-8")
    except UnicodeDecodeError:
        return unfolded.decode("latin-1")


def _structure_defects(message: Message) -> Iterator[str]:
    yield from (_DEFECT_NAMES.get(type(defect), "other") for defect in message.defects)
    # What an attached message is made of is its own affair.
    if any(part.defects for part in message.walk() if part is not message):
        yield "other"


def _octet_defects(mime: bytes, head: bytes) -> Iterator[str]:
    pairs = mime.count(b"\r\n")
    if mime.count(b"\n") != pairs or mime.count(b"\r") != pairs:
        yield "bare-newline"
    if b"\0" in mime:
        yield "nul"
    if not head.isascii():
        yield "raw-8bit-header"
    if max(map(len, mime.split(b"\n"))) > _MAX_LINE_OCTETS + len(b"\r"):
        yield "line-too-long"
    if any(not _FIELD_NAME.match(field) for _, field in cut(head)):
        yield "bad-header-line"


def _field_defects(names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen and name == "from":
            yield "duplicate-from"
        if name in seen and name in _SINGLE_FIELDS:
            yield "duplicate-header"
        seen.add(name)
