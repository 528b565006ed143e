"""What accepting needs from a message's head: who it says it is from, its id, its way so far.

Source: RFC 5322 §3.6; RFC 5321 §6.3.
"""

from __future__ import annotations

from typing import Final

from relayd.message.address import Address, parse_address_list
from relayd.message.headers import Head
from relayd.message.outgoing import MARK, read_mark
from relayd.message.trace import MAX_RECEIVED, count_ours, count_received
from relayd.message.words import decode_words, flat, text_of
from relayd.values import frozen

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
    parsed = Head.parse(head)
    mailboxes = parse_address_list(parsed.get("From") or b"")
    message_id = flat(text_of((parsed.get("Message-ID") or b"")[: 2 * _ID_LIMIT]))
    mark = read_mark(parsed.get(MARK) or b"", hostname)
    return Glance(
        header_from=mailboxes[0].address if mailboxes else None,
        message_id=message_id[:_ID_LIMIT],
        subject=_subject(parsed.get("Subject") or b"") if subject else "",
        received=count_received(parsed),
        ours=max(mark, count_ours(parsed, hostname)),
    )


def _subject(value: bytes) -> str:
    text = text_of(value[:_SUBJECT_OCTETS])
    return flat(decode_words(text))[:_SUBJECT_LIMIT]
