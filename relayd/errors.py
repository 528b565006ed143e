"""Every exception relayd raises on purpose.

An exception class answers one question: what must the caller do now?
Not: which library failed. A class is added only when a caller branches on it.

    RelaydError
      ConfigError            refuse to start              exit 78 (EX_CONFIG)
      ListenError            cannot bind                  exit 69 (EX_UNAVAILABLE)
      RemoteProtocolError    reply, then close            the peer broke SMTP
        BareNewline          550 or 521 on a strict listener
      LocalProtocolError     a bug in relayd              we broke SMTP
      Unavailable            try again later              421/451, spool row deferred
        SpoolUnavailable     the message was NOT accepted
        SpoolFull            likewise, and say 452
        CacheUnavailable     no answer from the cache daemon; use what is at hand
        TokenUnavailable     no access token now; hold the mail, not the sender's fault
      LeaseLost              drop the work, touch nothing

Anything else that reaches a room's edge is a bug: answered 451 to a client,
deferred in the queue, logged with its traceback, counted. Never 5xx, never
bounced, and its text never crosses the wire.
"""

from __future__ import annotations

from typing import ClassVar


class RelaydError(Exception):
    """Base of everything below; what a client is told of it stands in three constants.

    code:     SMTP reply code, 3 digits (RFC 5321 §4.2).
    enhanced: enhanced status (RFC 3463), same class digit as `code`.
    public:   fixed text; never the exception's own.
    """

    code: ClassVar[int] = 451
    enhanced: ClassVar[str] = "4.3.0"
    public: ClassVar[str] = "Local error, try again later"


class ConfigError(RelaydError):
    """The configuration cannot be used; `problems` lists all of them, not the first."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class ListenError(RelaydError):
    """An address cannot be bound; the text names the process that holds it, if known."""


class RemoteProtocolError(RelaydError):
    """The peer broke the protocol in a way we cannot go on from; close after replying."""

    code = 554
    enhanced = "5.5.0"
    public = "Protocol error, closing"


class BareNewline(RemoteProtocolError):
    """CR or LF alone inside message content (RFC 5321 §2.3.8): possible smuggling."""

    code = 521
    enhanced = "5.5.2"
    public = "Bare CR or LF in message"


class LocalProtocolError(RelaydError):
    """relayd tried something SMTP forbids here: a bug, never the peer's fault."""


class Unavailable(RelaydError):
    """Something we need is not there now; the same request may succeed later."""


class SpoolUnavailable(Unavailable):
    """The message was NOT made durable; the client must keep it."""


class SpoolFull(SpoolUnavailable):
    """No room for the message; NOT made durable."""

    code = 452
    enhanced = "4.3.1"
    public = "Insufficient storage, try again later"


class CacheUnavailable(Unavailable):
    """The cache daemon did not answer within the deadline."""


class TokenUnavailable(Unavailable):
    """No access token to be had now.

    cause:         "entra-unreachable", "throttled", or an AADSTS number as text ("7000215").
    configuration: True when only an administrator can mend it (a wrong secret); False when
                   time may.
    retry_after_s: the server's own wish, seconds; None if silent.
    """

    def __init__(
        self, cause: str, text: str, *, configuration: bool, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{cause}: {text}")
        self.cause = cause
        self.text = text
        self.configuration = configuration
        self.retry_after_s = retry_after_s


class LeaseLost(RelaydError):
    """Somebody else holds, or has settled, the delivery: touch nothing."""
