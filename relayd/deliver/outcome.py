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

from typing import TypeAlias

from relayd.values import frozen


@frozen(kw_only=True)
class Answer:
    """What the remote said. status: HTTP status, 0 if there was none; code: its own code."""

    status: int = 0
    code: str = ""
    request_id: str = ""
    text: str = ""


@frozen
class Sent:
    """Taken."""

    answer: Answer


@frozen
class Deferred:
    """Not now. retry_after_s: the server's own wish, seconds, above 0; None if it has none."""

    answer: Answer
    retry_after_s: float | None = None
    whole_upstream: bool = False  # the upstream is down (DNS, TCP, TLS, 503), not this mailbox
    whole_mailbox: bool = False  # the mailbox must rest (429, moving), not only this message


@frozen
class Failed:
    """Never. enhanced: RFC 3463 status for a report, class 5."""

    answer: Answer
    enhanced: str


@frozen
class Misconfigured:
    """An administrator must act. whole_upstream: the credential itself is refused."""

    answer: Answer
    whole_upstream: bool = False


@frozen
class Ambiguous:
    """Perhaps sent; the upstream's `ambiguous` setting decides."""

    answer: Answer


Outcome: TypeAlias = Sent | Deferred | Failed | Misconfigured | Ambiguous


@frozen
class Divided:
    """The recipients fared differently. parts: every recipient once, at least two parts."""

    parts: tuple[tuple[tuple[str, ...], Outcome], ...]


Result: TypeAlias = Outcome | Divided
