"""How one attempt can end, as values: the courier handles every one, and mypy proves it.

    Sent           202: Microsoft took responsibility (queued there, not delivered)
    Deferred       definitely not sent; later may work
    Failed         the server's own permanent word about this message
    Misconfigured  definitely not sent, and only an administrator can mend it: hold
    Ambiguous      the request may have been acted on (504, time-out after the body)

Unknown answers are Deferred or Ambiguous, never Failed. `Divided` is what a transport says
when it had to split a message and its recipients did not fare alike.

Source: Microsoft Graph error responses; Exchange Online NDR and throttling documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the remote said. status: HTTP status, 0 if there was none; code: its own code."""

    status: int = 0
    code: str = ""
    request_id: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """Taken."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not now. retry_after_s: the server's own wish, seconds; None if silent."""

    answer: Answer
    retry_after_s: float | None = None
    whole_upstream: bool = False  # the upstream is down (DNS, TCP, TLS, 503), not this mailbox
    whole_mailbox: bool = False  # the mailbox must rest (429, moving), not only this message


@dataclass(frozen=True, slots=True)
class Failed:
    """Never. enhanced: RFC 3463 status for a report, class 5."""

    answer: Answer
    enhanced: str


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """An administrator must act. whole_upstream: the credential itself is refused."""

    answer: Answer
    whole_upstream: bool = False


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Perhaps sent; the upstream's `ambiguous` setting decides."""

    answer: Answer


Outcome: TypeAlias = Sent | Deferred | Failed | Misconfigured | Ambiguous


@dataclass(frozen=True, slots=True)
class Divided:
    """The recipients fared differently. parts: every recipient once, at least two parts."""

    parts: tuple[tuple[tuple[str, ...], Outcome], ...]


Result: TypeAlias = Outcome | Divided
