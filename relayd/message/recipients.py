"""The envelope decides who gets a message; To, Cc and Bcc are made to say the same.

Graph reads recipients from the header fields and from nothing else. So

    a recipient in neither To nor Cc goes into Bcc (Exchange strips it from the copies)
    an address in To, Cc or Bcc that is no recipient goes, or it would get the mail too
    Resent-To, Resent-Cc, Resent-Bcc go
    a field with nobody left goes whole: Exchange refuses an empty one

Fields are written anew, since every way of writing an address that we and Exchange read
differently would be mail to a stranger; only the plainest single address stays as it came.

Source: RFC 5322 §3.6.3, §3.6.6; Microsoft Graph "Send Outlook messages in MIME format".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from relayd.message.address import parse_address_list, parse_path, render_mailbox
from relayd.message.headers import Field, Head, make_field, value_of

RECIPIENT_FIELDS: Final = frozenset(
    (b"to", b"cc", b"bcc", b"resent-to", b"resent-cc", b"resent-bcc")
)
_ALL_GO: Final[dict[bytes, Field | None]] = dict.fromkeys(RECIPIENT_FIELDS)
_WIDTH: Final = 76
_ATOM: Final = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]++"
PLAIN_ADDRESS: Final = rb"%s(?:\.%s)*@[A-Za-z0-9_-]++(?:\.[A-Za-z0-9_-]++)*" % (_ATOM, _ATOM)
_PLAIN: Final = re.compile(PLAIN_ADDRESS)
_PLAIN_FIELD: Final = re.compile(rb"[TtCc][OoCc]: ?(?:(%s)|<(%s)>)\r\n" % ((PLAIN_ADDRESS,) * 2))


def authoritative(head: Head, recipients: Sequence[str]) -> Head:
    """Return `head` with To, Cc and Bcc naming exactly `recipients`.

    recipients: as `str(Address)`; each must have a domain to be of use, none is left out.
    raises:     ValueError - a recipient that is no address.
    """
    return head.edit(recipient_fields(head.fields, recipients))


def recipient_fields(
    fields: Iterable[Field], recipients: Sequence[str]
) -> dict[bytes, Field | None]:
    """Return what each of RECIPIENT_FIELDS becomes; None: it goes.

    fields: of the head, in order, at least those of RECIPIENT_FIELDS.
    raises: ValueError - a recipient that is no address.
    """
    new = _ALL_GO.copy()
    waiting = {recipient.lower(): recipient for recipient in recipients}
    found: dict[bytes, list[bytes]] = {b"to": [], b"cc": []}
    for name, raw in fields:
        if name in found:
            found[name].append(raw)
    for name, same in found.items():
        if same:
            new[name] = _pruned(name, same, waiting)
    if waiting:
        hidden = [_path(recipient) for recipient in waiting.values()]
        new[b"bcc"] = make_field("Bcc", join_folded(hidden, start=len("Bcc: ")))
    return new


def _pruned(name: bytes, same: list[bytes], waiting: dict[str, str]) -> Field | None:
    """Return one field with those of its addresses that wait, and take them off `waiting`."""
    plain = _PLAIN_FIELD.fullmatch(same[0]) if len(same) == 1 else None
    if plain is not None:
        key = (plain[1] or plain[2]).decode("ascii").lower()
        return (name, same[0]) if waiting.pop(key, None) is not None else None
    kept = [
        mailbox
        for raw in same
        for mailbox in parse_address_list(value_of(raw))
        if waiting.pop(str(mailbox.address).lower(), None) is not None
    ]
    if not kept:
        return None
    title = name.decode("ascii").title()
    value = join_folded([render_mailbox(*mailbox) for mailbox in kept], start=len(title) + 2)
    return make_field(title, value)


def _path(recipient: str) -> bytes:
    """Return a recipient for a header. SECURITY: nothing but an address comes out of it."""
    octets = recipient.encode("utf-8", "replace")
    if _PLAIN.fullmatch(octets):
        return octets
    return str(parse_path(recipient, lenient=True)).encode("ascii")


def join_folded(parts: Sequence[bytes], *, start: int) -> bytes:
    """Return `parts` with commas between, folded at 76; start: where on the line it begins."""
    out: list[bytes] = []
    column = start
    for part in parts:
        width = len(part) + 2
        if out and column + width > _WIDTH:
            out.append(b",\r\n ")
            column = 1
        elif out:
            out.append(b", ")
        out.append(part)
        column += width
    return b"".join(out)
