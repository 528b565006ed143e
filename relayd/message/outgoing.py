"""The head a message leaves with: what delivery calls, once for each attempt.

    To, Cc, Bcc   made equal to the envelope (message.recipients)
    From          as decided at accept; the display name stays, the original may go to Reply-To,
                  unless the device named one that can be answered
    Date          added where missing or impossible; the device's own is kept as X-Original-Date
    Message-ID    added where missing or malformed: <QUEUEID@domain>
    once only     From, Sender, Reply-To, Subject, Date, Message-ID: the first stays
    gone          Return-Path, Resent-To/Cc/Bcc, a Sender who is not the one in From
    X-Relayd-Hops our mark, to know a message that Microsoft sends back to us

8-bit text in Subject, X-* and names becomes encoded words (message.charsets); a space before a
colon and a line of spaces go. The body is never touched here (`headers.split_to_send` says what
goes of it before), nor is anything in the head that is not named here.

Source: RFC 5322 §3.6; RFC 6409 §8 (what a submission server adds); RFC 2047 §5.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from relayd.message.address import Address, Mailbox, parse_address_list, parse_path, render_mailbox
from relayd.message.charsets import in_utf8
from relayd.message.headers import Field, Head, make_field, value_of
from relayd.message.recipients import PLAIN_ADDRESS, join_folded, recipient_fields
from relayd.message.trace import date_text
from relayd.message.words import READ_LIMIT, decode_words, encode_words, flat, text_of

MARK: Final = "X-Relayd-Hops"
MARK_KEY: Final = MARK.lower().encode("ascii")
_NAME_LIMIT: Final = 256  # characters of a display name that are kept
_FROM_REMEMBERED: Final = 320  # octets of a From field
_FIRST_STAYS: Final = frozenset(
    (b"from", b"sender", b"reply-to", b"subject", b"date", b"message-id", MARK_KEY)
)

_PLAIN_FROM: Final = re.compile(
    rb'[A-Za-z-]++:[ \t]*+(?:(?:("?)([A-Za-z0-9_ -]*+)\1[ \t]*+)?<(%s)>|(%s))\r\n'
    % ((PLAIN_ADDRESS,) * 2)
)
# Of whole fields, which may be folded.
_MESSAGE_ID: Final = re.compile(rb"[^:]*+:[ \t\r\n]*+<[!-;=?A-~]++@[!-;=?A-~]++>[ \t\r\n]*+")
_DATE: Final = re.compile(
    rb"[^:]*+:\s*+(?:[A-Za-z]{3},)?\s*+(0?[1-9]|[12]\d|3[01])\s++([A-Za-z]{3})\s++(\d{4})\s++"
    rb"(?:[01]?\d|2[0-3]):[0-5]\d(?::(?:[0-5]\d|60))?"
    rb"\s++(?:[+-]\d{4}|[A-Z]{1,4})(?:\s*+\([^()]*+\))?[ \t\r\n]*+"
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
    """Return the head to send, its empty line last; O(len(head)).

    head:       as `headers.split_head` gives it; octets in it that are no header come out
                after the empty line.
    recipients: of this delivery, as `str(Address)`, at least one.
    set_from:   address for From; "": the device's own, or `mailbox` if that is no address.
    mailbox:    address or object id that is sent through.
    now:        to tell a Date that lies in the future; accepted_at: what is put instead.
    raises:     ValueError - `recipients` or `set_from` is no address.
    """
    parsed = Head.parse(head)
    if not head.isascii():
        fields = in_utf8(parsed.fields)
        parsed = Head(tuple([_seven_bit(*field) for field in fields]), parsed.rest)
    new = recipient_fields(parsed.fields, recipients)
    new[b"return-path"] = None
    for field in parsed.fields:
        if field[0] in _FIRST_STAYS:
            new.setdefault(field[0], field)
    _choose_from(new, set_from, mailbox, reply_to_original=reply_to_original)
    _choose_date(new, now, accepted_at)
    _choose_message_id(new, queue_id, message_id_domain)
    _choose_mark(new, message_id_domain)
    return parsed.edit(new).render()


# ---- From, Sender, Reply-To -----------------------------------------------------------------


def _choose_from(
    new: dict[bytes, Field | None], set_from: str, mailbox: str, *, reply_to_original: bool
) -> None:
    old = new.get(b"from")
    found = _NOBODY if old is None else from_field(old[1])
    original = found.mailbox
    wanted = set_from or ("" if original is not None and original.address.domain else mailbox)
    if wanted and (set_from or "@" in wanted):
        target = parse_path(wanted, lenient=True)
    elif original is not None:
        target = original.address
    else:
        return  # an object id and nothing to go by: Exchange writes the mailbox's own
    same = original is not None and original.address.key == target.key
    if not (same and found.is_plain):
        display = _bounded_name(_display(old, original))
        new[b"from"] = make_field("From", render_mailbox(display, target))
    if b"sender" in new and not _is_sender(new[b"sender"], target):
        new[b"sender"] = None
    if (
        reply_to_original
        and not same
        and original is not None
        and not _is_answerable(new.get(b"reply-to"))
    ):
        reply = _reply_to(original)
        if reply is not None:
            new[b"reply-to"] = reply


class From(NamedTuple):
    """A From field, read. mailbox: its first, if any. is_plain: nobody can misread it."""

    mailbox: Mailbox | None
    is_plain: bool


_NOBODY: Final = From(None, is_plain=False)


def from_field(raw: bytes) -> From:
    """Read a From field; O(len(raw)); never raises."""
    return _remembered_from(raw) if len(raw) <= _FROM_REMEMBERED else _read_from(raw)


def _read_from(raw: bytes) -> From:
    plain = _PLAIN_FROM.fullmatch(raw)
    if plain is not None:
        try:
            address = parse_path((plain[3] or plain[4]).decode("ascii"), lenient=True)
        except ValueError:
            return _NOBODY
        return From(Mailbox((plain[2] or b"").decode("ascii").strip(), address), is_plain=True)
    mailboxes = parse_address_list(value_of(raw))
    return From(mailboxes[0], is_plain=False) if mailboxes else _NOBODY


# A device says the same in each message.
_remembered_from = functools.lru_cache(maxsize=1024)(_read_from)


def _display(field: Field | None, original: Mailbox | None) -> str:
    """Return the name to show; a From that is no address is a name ("Main Printer", "root")."""
    if original is None:
        return "" if field is None else flat(text_of(value_of(field[1]))).strip('<>" ')
    return original.display or ("" if original.address.domain else original.address.local)


def _bounded_name(display: str) -> str:
    """Return a name of at most _NAME_LIMIT characters; a longer one is decoded before it is cut."""
    if len(display) <= _NAME_LIMIT:
        return display
    return decode_words(display[:READ_LIMIT])[:_NAME_LIMIT]


def _is_sender(field: Field | None, address: Address) -> bool:
    mailboxes = [] if field is None else parse_address_list(value_of(field[1]))
    return len(mailboxes) == 1 and mailboxes[0].address.key == address.key


def _is_answerable(field: Field | None) -> bool:
    """Tell whether a Reply-To is of use: some devices write one that is empty."""
    mailboxes = [] if field is None else parse_address_list(value_of(field[1]))
    return any(_is_reachable(mailbox.address) for mailbox in mailboxes)


def _is_reachable(address: Address) -> bool:
    return bool(address.domain) and not address.is_literal


def _reply_to(original: Mailbox) -> Field | None:
    """Return Reply-To for the device's own address; None if nobody could ever reach it."""
    if not _is_reachable(original.address):
        return None
    display = _bounded_name(original.display)
    return make_field("Reply-To", render_mailbox(display, original.address))


# ---- Date, Message-ID, our mark -------------------------------------------------------------


def _choose_date(new: dict[bytes, Field | None], now: datetime, accepted_at: datetime) -> None:
    old = new.get(b"date")
    if old is not None and _is_date(old[1], now):
        return
    value = b"" if old is None else value_of(old[1])
    new[b"date"] = make_field("Date", date_text(accepted_at).encode("ascii"))
    if value:
        kept = flat(text_of(value[:_NAME_LIMIT])).encode("ascii", "replace")
        new[b"x-original-date"] = make_field("X-Original-Date", kept)


def _is_date(raw: bytes, now: datetime) -> bool:
    found = _DATE.fullmatch(raw)
    if found is None:
        return False
    day, month, year = int(found[1]), _MONTHS.get(found[2].lower(), 0), int(found[3])
    if month == 0 or year < _FIRST_YEAR:
        return False
    if year < now.year:
        return True
    latest = now + _AHEAD
    return (year, month, day) <= (latest.year, latest.month, latest.day)


def _choose_message_id(new: dict[bytes, Field | None], queue_id: str, domain: str) -> None:
    old = new.get(b"message-id")
    if old is None or not _MESSAGE_ID.fullmatch(old[1]):
        new[b"message-id"] = make_field("Message-ID", f"<{queue_id}@{domain}>".encode("ascii"))


def _choose_mark(new: dict[bytes, Field | None], domain: str) -> None:
    old = new.get(MARK_KEY)
    hops = 0 if old is None else min(read_mark(value_of(old[1]), domain), 9998)
    new[MARK_KEY] = _mark(hops + 1, domain)


@functools.lru_cache(maxsize=64)
def _mark(hops: int, domain: str) -> Field:
    return make_field(MARK, f"{hops} {domain}".encode("ascii"))


def read_mark(value: bytes, domain: str) -> int:
    """Return how often the relay of `domain` sent the message before; 0 for another's mark."""
    count, _, name = value.partition(b" ")
    if name.lower() != domain.lower().encode("ascii", "replace"):
        return 0
    return int(count) if count.isdigit() and len(count) <= 4 else 0


# ---- 8-bit octets ---------------------------------------------------------------------------


def _seven_bit(name: bytes, raw: bytes) -> Field:
    """Return a field readers can show; parameters and trace are left as they are."""
    if raw.isascii():
        return name, raw
    title = raw.partition(b":")[0].strip(b" \t").decode("ascii")
    if name in (b"subject", b"comments", b"organization") or name.startswith(b"x-"):
        return make_field(title, encode_words(text_of(value_of(raw))))
    if name == b"reply-to":
        mailboxes = [render_mailbox(*mailbox) for mailbox in parse_address_list(value_of(raw))]
        if mailboxes:
            return make_field(title, join_folded(mailboxes, start=len(title) + 2))
    return name, raw
