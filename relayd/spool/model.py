r"""The spool's values: a message, its deliveries, leases, settlements.

message 1-n delivery (one for each upstream and mailbox) 1-n recipient. States belong to
deliveries; a message's state is derived. NEXT is the only table of moves; the same guard
stands in SQL (`WHERE state = … AND fence = …`).

    READY <-> LEASED -> SENT
      ^  \      |  \-> FAILED
      |   HELD <-+              (HELD -> LEASED: the one that probes its Hold)
      +-- DEFERRED <-+        (expired or dead holder: LEASED -> READY)

An operator makes any of them DELETED but what is SENT.

A QueueId is an integer, microseconds since 1970 shifted left by 12, the low bits telling
writers apart; its text is 13 characters of [0-9A-Z], so IDs sort by time.
"""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Final, NamedTuple, NewType

from relayd.values import frozen

QueueId = NewType("QueueId", int)

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WIDTH: Final = 13
_PAIRS: Final = tuple(high + low for high in _DIGITS for low in _DIGITS)
_36_TO_THE_6: Final = 36**6


@functools.lru_cache(maxsize=2048)  # each is asked for half a dozen times
def queue_id_text(value: int) -> str:
    """Return the 13 characters that people see."""
    high, low = divmod(value, _36_TO_THE_6)
    top, high = divmod(high, _36_TO_THE_6)
    a, b = divmod(high, 46656)
    c, d = divmod(low, 46656)
    pairs = _PAIRS
    return (
        f"{_DIGITS[top]}{pairs[a // 36]}{_DIGITS[a % 36]}{pairs[b // 36]}{_DIGITS[b % 36]}"
        f"{pairs[c // 36]}{_DIGITS[c % 36]}{pairs[d // 36]}{_DIGITS[d % 36]}"
    )


LAST_ID: Final = QueueId((1 << 63) - 1)
"""No message can have a greater one, because SQLite has none; 13 characters can show such."""


def parse_queue_id(text: str) -> QueueId:
    """Return the id that `text` shows, any case; raises ValueError.

    It may be greater than LAST_ID: mistyped, and of a message that nobody has.
    """
    if len(text) != _WIDTH or not text.isascii() or not text.isalnum():
        raise ValueError(f"not a queue id: {text!r}")
    return QueueId(int(text, 36))


def recipients_in(text: str) -> tuple[str, ...]:
    """Return the addresses in a row's JSON; of a damaged row what it holds, as it is."""
    try:
        found = json.loads(text)
    except ValueError:
        return (text,)
    if isinstance(found, list) and all(isinstance(one, str) for one in found):
        return tuple(found)
    return (text,)


def done_in(text: str) -> dict[str, str]:
    """Return the recipients counted off in a row's JSON; {} of a damaged row."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return {name: str(why) for name, why in found.items()} if isinstance(found, dict) else {}


class State(enum.Enum):
    """Where a delivery stands."""

    READY = "ready"  #: may be leased as soon as its mailbox has a slot
    LEASED = "leased"  #: one worker is delivering it
    DEFERRED = "deferred"  #: READY again once `due_at` is past
    HELD = "held"  #: waits for an operator, or for its cause to go (`held_by`)
    SENT = "sent"  #: Microsoft took it; kept as history
    FAILED = "failed"  #: given up; content kept until an operator or time deletes it
    DELETED = "deleted"  #: an operator wanted it so; kept as history


NEXT: Final[Mapping[State, frozenset[State]]] = {
    State.READY: frozenset({State.LEASED, State.HELD, State.FAILED, State.DELETED}),
    State.LEASED: frozenset(set(State) - {State.LEASED}),
    State.DEFERRED: frozenset({State.READY, State.LEASED, State.HELD, State.FAILED, State.DELETED}),
    State.HELD: frozenset(  # LEASED: a Hold's probe
        {State.READY, State.LEASED, State.FAILED, State.DELETED}
    ),
    State.SENT: frozenset({State.READY}),  # queue resend
    State.FAILED: frozenset({State.READY, State.DELETED}),  # queue retry
    State.DELETED: frozenset(),
}

PRIORITIES: Final[Mapping[str, int]] = {"high": 0, "normal": 1, "low": 2}


class MailboxRef(NamedTuple):
    """One mailbox at one upstream: what slots, pacing and leases are counted by."""

    upstream: str
    mailbox: str  # as in the Graph URL; lower-case address or object id


@frozen(kw_only=True)
class NewDelivery:
    """One way out for some of the recipients.

    recipients:        addresses as text, at least one.
    header_from:       address that the From header will bear on the way out, lower-case.
    set_from:          address to write into From; "" keeps what the device wrote.
    reply_to_original: the original From goes into Reply-To, unless there is one.
    """

    mailbox: MailboxRef
    recipients: tuple[str, ...]
    header_from: str
    set_from: str = ""
    reply_to_original: bool = False


@frozen(kw_only=True)
class Course:
    """The way out a delivery has as it lies there, and who handed it in; to judge it anew.

    set_from: the From it goes out with, as NewDelivery's; header_from: the same in lower case.
    """

    delivery: int
    message: QueueId
    state: State
    held_by: str
    mailbox: MailboxRef
    header_from: str
    set_from: str
    reply_to_original: bool
    device: str
    user: str


@frozen(kw_only=True)
class Redirect:
    """Another way out for a delivery, if it still stands as `course` says."""

    course: Course
    mailbox: MailboxRef
    set_from: str
    reply_to_original: bool

    @property
    def header_from(self) -> str:
        """Return the From that Holds go by."""
        return self.set_from.lower()


@frozen(kw_only=True)
class NewMessage:
    """A message about to be made durable; its content is in the draft.

    sender:      envelope sender as text; "" for the null sender.
    size_bytes:  content octets as received, the relay's own Received line not counted.
    body_sha256: hex, over the body (what follows the first empty line), as stored.
    message_id:  the Message-ID header, as found, bounded; "" if none.
    subject:     decoded, bounded; only kept when [log] subjects is on, else "".
    """

    sender: str
    priority: int
    accepted_at: datetime
    expires_at: datetime
    size_bytes: int
    body_sha256: str
    message_id: str
    subject: str
    session: str
    listener: str
    ip: str
    helo: str
    device: str
    user: str
    deliveries: tuple[NewDelivery, ...]


@frozen(kw_only=True)
class Lease:
    """The right to deliver, held by one worker until settled, lost or expired.

    fence:    grows with each lease of the delivery; a stale holder's settle is refused.
    attempt:  1 for the first try; this attempt's intent is already in the journal.
    content:  the whole content where it is small and at hand; None: read it in chunks.
    expires_boottime: CLOCK_BOOTTIME seconds; renew before it.
    maybe_sent: an earlier attempt's intent was never completed (a crash, or an ambiguous
              answer): sending again may make a duplicate.
    """

    delivery: int
    message: QueueId
    fence: int
    attempt: int
    mailbox: MailboxRef
    sender: str
    recipients: tuple[str, ...]
    header_from: str
    set_from: str
    reply_to_original: bool
    priority: int
    accepted_at: datetime
    expires_at: datetime
    size_bytes: int
    device: str
    session: str
    content: bytes | None
    expires_boottime: float
    maybe_sent: bool = False


@frozen(kw_only=True)
class Settlement:
    """What became of one attempt; written together with its journal row.

    state:       SENT, DEFERRED, HELD, FAILED, or READY (given back untried: no attempt is
                 counted).
    due_at:      when to try again; for DEFERRED, and for HELD when it probes by itself.
    held_by:     "operator" or the cause ("ErrorAccessDenied"); HELD only.
    outcome:     "sent", "deferred", "failed", "misconfigured", "ambiguous", "returned".
    code:        the remote's own code ("ApplicationThrottled", "7000215"), or "".
    text:        for people; bounded, already free of secrets.
    failed_recipients: those that will never work, with the reason; the rest follows `state`.
    sent_recipients:   those already taken by Microsoft while `state` is not SENT.
    """

    state: State
    outcome: str
    due_at: datetime | None = None
    held_by: str = ""
    transport: str = "graph"
    http_status: int = 0
    code: str = ""
    request_id: str = ""
    text: str = ""
    failed_recipients: Mapping[str, str] | None = None
    sent_recipients: tuple[str, ...] = ()
