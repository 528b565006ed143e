"""What accepting needs from a message's head: who it says it is from, its id, its way so far.

Source: RFC 5322 §3.6; RFC 5321 §6.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from relayd.message.address import Address
from relayd.message.charsets import in_utf8
from relayd.message.headers import Field, Head, value_of
from relayd.message.outgoing import MARK_KEY, from_field, read_mark
from relayd.message.trace import MAX_RECEIVED, count_ours
from relayd.message.words import decode_words, flat, text_of
from relayd.values import frozen

_LOOKED_AT: Final = frozenset((b"from", b"subject", b"message-id", MARK_KEY))
_ID_LIMIT: Final = 250
_SUBJECT_LIMIT: Final = 200
_SUBJECT_OCTETS: Final = 2048  # read of a subject before it is decoded
_MAX_OURS: Final = 4  # times that a message may come back to the relay that sent it


@frozen(kw_only=True)
class Glance:
    """A head at a glance.

    header_from: first address of the first From; None: no From, or no address in it.
    message_id:  as found, printable, at most 250 characters; "" if none.
    subject:     decoded, on one line, at most 200 characters; untrusted.
    received:    Received lines, ours of this time not among them.
    ours:        how often this relay had it before, by its lines and its mark.
    """

    header_from: Address | None
    message_id: str
    subject: str
    received: int
    ours: int

    @property
    def is_loop(self) -> bool:
        """True when the message goes round: answer 554 5.4.0."""
        return self.received >= MAX_RECEIVED or self.ours >= _MAX_OURS


def glance(head: bytes, *, hostname: str, subject: bool = True) -> Glance:
    """Read a head as received (not yet with our Received); O(len(head)); never raises.

    hostname: [server] hostname, to know our own lines and mark again.
    subject:  False saves decoding it where nobody keeps it.
    """
    first: dict[bytes, bytes] = {}
    ways: list[bytes] = []
    fields: Sequence[Field] = Head.parse(head).fields
    if not head.isascii():
        fields = in_utf8(fields)
    for name, raw in fields:
        if name == b"received":
            ways.append(raw)
        elif name in _LOOKED_AT:
            first.setdefault(name, raw)
    mailbox = from_field(first[b"from"]).mailbox if b"from" in first else None
    mark = read_mark(value_of(first[MARK_KEY]), hostname) if MARK_KEY in first else 0
    return Glance(
        header_from=None if mailbox is None else mailbox.address,
        message_id=_message_id(first.get(b"message-id", b"")),
        subject=_subject(first.get(b"subject", b"")) if subject else "",
        received=len(ways),
        ours=max(mark, count_ours(ways, hostname)) if ways else mark,
    )


def _message_id(raw: bytes) -> str:
    return flat(text_of(value_of(raw)[: 2 * _ID_LIMIT]))[:_ID_LIMIT]


def _subject(raw: bytes) -> str:
    return flat(decode_words(text_of(value_of(raw)[:_SUBJECT_OCTETS])))[:_SUBJECT_LIMIT]
