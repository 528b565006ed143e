"""The head a message leaves with: what delivery calls, once for each attempt.

    To, Cc, Bcc   made equal to the envelope (message.recipients)
    From          as decided at accept; the display name stays, the original may go to Reply-To
    Date          added where missing or impossible; the device's own is kept as X-Original-Date
    Message-ID    added where missing or malformed: <QUEUEID@domain>
    once only     From, Sender, Reply-To, Subject, Date, Message-ID: the first stays
    gone          Return-Path, Resent-To/Cc/Bcc, a Sender who is not the one in From
    X-Relayd-Hops our mark, to know a message that Microsoft sends back to us

8-bit text in Subject, X-* and names becomes encoded words; a space before a colon goes. The
body is never touched, nor is anything in the head that is not named here.

Source: RFC 5322 §3.6; RFC 6409 §8 (what a submission server adds); RFC 2047 §5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from relayd.message.address import Address, Mailbox, parse_address_list, parse_path, render_mailbox
from relayd.message.headers import Field, Head, make_field
from relayd.message.recipients import PLAIN_ADDRESS, RECIPIENT_FIELDS, join_folded, recipient_fields
from relayd.message.trace import date_text
from relayd.message.words import encode_words, flat, text_of

MARK: Final = "X-Relayd-Hops"
_NAME_LIMIT: Final = 256  # characters of a display name that are kept
_FIRST_STAYS: Final = (b"from", b"sender", b"reply-to", b"subject", b"date", b"message-id")
_TOUCHED: Final = RECIPIENT_FIELDS.union(_FIRST_STAYS) | {
    b"return-path",
    MARK.lower().encode("ascii"),
}

_PLAIN_FROM: Final = re.compile(
    rb'[A-Za-z-]++:[ \t]*+(?:(?:("?)([A-Za-z0-9_ -]*+)\1[ \t]*+)?<(%s)>|(%s))\r\n'
    % ((PLAIN_ADDRESS,) * 2)
)
_MESSAGE_ID: Final = re.compile(rb"<[!-;=?A-~]++@[!-;=?A-~]++>")
_DATE: Final = re.compile(
    rb"(?:[A-Za-z]{3},)?\s*+(\d{1,2})\s++([A-Za-z]{3})\s++(\d{4})\s++"
    rb"(\d{1,2}):(\d\d)(?::(\d\d))?\s++(?:[+-]\d{4}|[A-Z]{1,4})(?:\s*+\([^()]*+\))?"
)
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov",
         b"dec"), start=1,
    )
}  # fmt: skip
_FIRST_YEAR: Final = 2001  # a clock that was never set says 1970, 1980 or 2000
_AHEAD: Final = timedelta(days=2)  # time zones, and no more


def outgoing_head(
    head: bytes,
    *,
    recipients: Sequence[str],
    set_from: str,
    reply_to_original: bool,
    mailbox: str,
    message_id_domain: str,
    queue_id: str,
    now: datetime,
    accepted_at: datetime,
) -> bytes:
    """Return the head to send, its empty line last; O(len(head)), 30 us for an ordinary one.

    head:       as `headers.split_head` gives it; octets in it that are no header come out
                after the empty line.
    recipients: of this delivery, as `str(Address)`, at least one.
    set_from:   address for From; "": the device's own, or `mailbox` if that is no address.
    mailbox:    address or object id that is sent through.
    now:        to tell a Date that lies in the future; accepted_at: what is put instead.
    raises:     ValueError - `recipients` or `set_from` is no address.
    """
    parsed = Head.parse(head)
    if b" :" in head or b"\t:" in head:
        # Some readers take "X :" for the first line of the body, and would miss our Bcc.
        parsed = Head(tuple([_tight(field) for field in parsed.fields]), parsed.rest)
    if not head.isascii():
        parsed = Head(tuple([_seven_bit(field) for field in parsed.fields]), parsed.rest)
    first: dict[bytes, Field] = {}
    naming: list[Field] = []
    for field in parsed.fields:
        if field.name in _TOUCHED:
            if field.name in RECIPIENT_FIELDS:
                naming.append(field)
            else:
                first.setdefault(field.name, field)

    new = recipient_fields(naming, recipients)
    new[b"return-path"] = None
    for name in _FIRST_STAYS:
        if name in first:
            new[name] = first[name]
    _choose_from(new, set_from, mailbox, reply_to_original=reply_to_original)
    _choose_date(new, now, accepted_at)
    _choose_message_id(new, queue_id, message_id_domain)
    _choose_mark(new, first, message_id_domain)
    return parsed.edit(new).render()


def _tight(field: Field) -> Field:
    """Return a field without the space before its colon that RFC 5322 §4.5 still knows."""
    name, colon, rest = field.raw.partition(b":")
    return Field(field.name, name.rstrip(b" \t") + colon + rest)


# ---- From, Sender, Reply-To -----------------------------------------------------------------


def _choose_from(
    new: dict[bytes, Field | None], set_from: str, mailbox: str, *, reply_to_original: bool
) -> None:
    old = new.get(b"from")
    simple, original = _read_from(old)
    wanted = set_from or ("" if original is not None and original.address.domain else mailbox)
    if wanted and (set_from or "@" in wanted):
        target = parse_path(wanted, lenient=True)
    elif original is not None:
        target = original.address
    else:
        return  # an object id and nothing to go by: Exchange writes the mailbox's own
    same = original is not None and original.address.key == target.key
    if not (same and simple):
        display = _display(old, original)[:_NAME_LIMIT]
        new[b"from"] = make_field("From", render_mailbox(display, target))
    if b"sender" in new and not _is_sender(new[b"sender"], target):
        new[b"sender"] = None
    if reply_to_original and not same and original is not None and new.get(b"reply-to") is None:
        reply = _reply_to(original)
        if reply is not None:
            new[b"reply-to"] = reply


def _read_from(field: Field | None) -> tuple[bool, Mailbox | None]:
    """Return whether From is so plain that nobody can misread it, and its first mailbox."""
    if field is None:
        return False, None
    plain = _PLAIN_FROM.fullmatch(field.raw)
    if plain is not None:
        try:
            address = parse_path((plain[3] or plain[4]).decode("ascii"))
        except ValueError:
            return False, None
        return True, Mailbox((plain[2] or b"").decode("ascii").strip(), address)
    mailboxes = parse_address_list(field.value)
    return False, mailboxes[0] if mailboxes else None


def _display(field: Field | None, original: Mailbox | None) -> str:
    """Return the name to show; a From that is no address is a name ("Main Printer", "root")."""
    if original is None:
        return "" if field is None else flat(text_of(field.value)).strip('<>" ')
    return original.display or ("" if original.address.domain else original.address.local)


def _is_sender(field: Field | None, address: Address) -> bool:
    mailboxes = [] if field is None else parse_address_list(field.value)
    return len(mailboxes) == 1 and mailboxes[0].address.key == address.key


def _reply_to(original: Mailbox) -> Field | None:
    """Return Reply-To for the device's own address; None if nobody could ever reach it."""
    if not original.address.domain or original.address.is_literal:
        return None
    return make_field("Reply-To", render_mailbox(original.display[:_NAME_LIMIT], original.address))


# ---- Date, Message-ID, our mark -------------------------------------------------------------


def _choose_date(new: dict[bytes, Field | None], now: datetime, accepted_at: datetime) -> None:
    old = new.get(b"date")
    value = b"" if old is None else old.value
    if value and _is_date(value, now):
        return
    new[b"date"] = make_field("Date", date_text(accepted_at).encode("ascii"))
    if value:
        kept = flat(text_of(value[:_NAME_LIMIT])).encode("ascii", "replace")
        new[b"x-original-date"] = make_field("X-Original-Date", kept)


def _is_date(value: bytes, now: datetime) -> bool:
    found = _DATE.fullmatch(value)
    if found is None:
        return False
    day, month, year = int(found[1]), _MONTHS.get(found[2].lower(), 0), int(found[3])
    return (
        1 <= day <= 31
        and month > 0
        and int(found[4]) < 24
        and int(found[5]) < 60
        and int(found[6] or 0) <= 60
        and year >= _FIRST_YEAR
        and (year < now.year or not _is_ahead(year, month, day, now + _AHEAD))
    )


def _is_ahead(year: int, month: int, day: int, latest: datetime) -> bool:
    return (year, month, day) > (latest.year, latest.month, latest.day)


def _choose_message_id(new: dict[bytes, Field | None], queue_id: str, domain: str) -> None:
    old = new.get(b"message-id")
    if old is None or not _MESSAGE_ID.fullmatch(old.value):
        new[b"message-id"] = make_field("Message-ID", f"<{queue_id}@{domain}>".encode("ascii"))


def _choose_mark(new: dict[bytes, Field | None], first: dict[bytes, Field], domain: str) -> None:
    name = MARK.lower().encode("ascii")
    hops = min(read_mark(first[name].value, domain), 9998) if name in first else 0
    new[name] = make_field(MARK, f"{hops + 1} {domain}".encode("ascii"))


def read_mark(value: bytes, domain: str) -> int:
    """Return how often the relay of `domain` sent the message before; 0 for another's mark."""
    count, _, name = value.partition(b" ")
    if name.lower() != domain.lower().encode("ascii", "replace"):
        return 0
    return int(count) if count.isdigit() and len(count) <= 4 else 0


# ---- 8-bit octets ---------------------------------------------------------------------------


def _seven_bit(field: Field) -> Field:
    """Return a field readers can show; parameters and trace are left as they are."""
    if field.raw.isascii():
        return field
    name = field.raw.partition(b":")[0].strip(b" \t").decode("ascii")
    if field.name in (b"subject", b"comments", b"organization") or field.name.startswith(b"x-"):
        return Field(field.name, make_field(name, encode_words(text_of(field.value))).raw)
    if field.name == b"reply-to":
        mailboxes = [render_mailbox(*mailbox) for mailbox in parse_address_list(field.value)]
        if mailboxes:
            return make_field(name, join_folded(mailboxes, start=len(name) + 2))
    return field
