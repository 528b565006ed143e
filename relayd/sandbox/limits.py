"""Microsoft's throttles: requests at once, requests and octets in a window, recipients a day.

Counted for one application and mailbox, as Graph does; recipients for the mailbox alone, as
Exchange does. The caller says what time it is, so that a factor can make it run faster.
What is seen (`in_flight`, `in_flight_max`) counts refused requests too: it is what a client
did, not what was let in.

Source: Microsoft Graph throttling limits (Outlook service); Exchange Online limits.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from relayd.sandbox.knobs import Knobs

_DAY_S: Final = 86_400.0
_BUCKETS: Final = 60


@dataclass(frozen=True, slots=True)
class Throttled:
    """Too much. wait_s: sandbox seconds until it may pass; 0 if nobody can say."""

    text: str
    wait_s: float


@dataclass(slots=True)
class _Window:
    """A sliding sum, kept in sixtieths of the window."""

    _sums: deque[tuple[float, int]] = field(default_factory=deque)
    _total: int = 0

    def over(self, amount: int, *, limit: int, window_s: float, now: float) -> float:
        """Add `amount` and return 0.0, or return how long to wait, seconds, and add nothing."""
        while self._sums and self._sums[0][0] <= now - window_s:
            self._total -= self._sums.popleft()[1]
        if limit and self._total + amount > limit:
            # A single amount over the limit never fits; say the whole window.
            return max(self._sums[0][0] + window_s - now, 1e-3) if self._sums else window_s
        start = now - now % (window_s / _BUCKETS)
        if self._sums and self._sums[-1][0] == start:
            self._sums[-1] = (start, self._sums[-1][1] + amount)
        else:
            self._sums.append((start, amount))
        self._total += amount
        return 0.0


@dataclass(slots=True)
class _Pair:
    """One application and mailbox."""

    admitted: int = 0
    lingering: deque[float] = field(default_factory=deque)
    requests: _Window = field(default_factory=_Window)
    octets: _Window = field(default_factory=_Window)


@dataclass(slots=True)
class Seen:
    """What one mailbox saw. Refused requests count."""

    in_flight: int = 0
    in_flight_max: int = 0
    throttled: int = 0


@dataclass(frozen=True, slots=True)
class Ticket:
    """One request that entered; give it back to `leave`. refused: it must get 429."""

    app: str
    mailbox: str
    refused: Throttled | None


@dataclass(slots=True)
class Limiter:
    """All throttles. seen: by mailbox, for the control API."""

    seen: dict[str, Seen] = field(default_factory=dict)
    _pairs: dict[tuple[str, str], _Pair] = field(default_factory=dict)
    _recipients: dict[str, _Window] = field(default_factory=dict)
    _drain: dict[str, float] = field(default_factory=dict)

    def enter(self, app: str, mailbox: str, knobs: Knobs, now: float) -> Ticket:
        """Count a request in, at its head. Every ticket must `leave`."""
        seen = self.seen.setdefault(mailbox, Seen())
        seen.in_flight += 1
        seen.in_flight_max = max(seen.in_flight_max, seen.in_flight)
        pair = self._pairs.setdefault((app, mailbox), _Pair())
        while pair.lingering and pair.lingering[0] <= now:
            pair.lingering.popleft()
        if knobs.concurrency and pair.admitted + len(pair.lingering) >= knobs.concurrency:
            text = "Application is over its MailboxConcurrency limit."
            return Ticket(app, mailbox, Throttled(text, knobs.concurrency_retry_after_s))
        wait_s = pair.requests.over(
            1, limit=knobs.requests_per_window, window_s=knobs.requests_window_s, now=now
        )
        if wait_s:
            return Ticket(
                app, mailbox, Throttled("Application is over its RequestRate limit.", wait_s)
            )
        pair.admitted += 1
        return Ticket(app, mailbox, None)

    def leave(self, ticket: Ticket, knobs: Knobs, now: float) -> None:
        """Count the request out, just before it is answered."""
        seen = self.seen.setdefault(ticket.mailbox, Seen())
        seen.in_flight -= 1
        if ticket.refused is not None:
            seen.throttled += 1
            return
        pair = self._pairs.setdefault((ticket.app, ticket.mailbox), _Pair())
        pair.admitted -= 1
        if knobs.linger_s:
            pair.lingering.append(now + knobs.linger_s)

    def reset(self) -> None:
        """Forget the windows and what was seen, but not the requests that are under way."""
        for seen in self.seen.values():
            seen.in_flight_max, seen.throttled = seen.in_flight, 0
        for pair in self._pairs.values():
            pair.lingering.clear()
            pair.requests, pair.octets = _Window(), _Window()
        self._recipients.clear()
        self._drain.clear()

    def take_octets(self, ticket: Ticket, count: int, knobs: Knobs, now: float) -> Throttled | None:
        """Count a body of `count` octets; None if it may pass."""
        pair = self._pairs.setdefault((ticket.app, ticket.mailbox), _Pair())
        wait_s = pair.octets.over(
            count, limit=knobs.octets_per_window, window_s=knobs.octets_window_s, now=now
        )
        return Throttled("Application is over its IncomingBytes limit.", wait_s) if wait_s else None

    def take_recipients(self, mailbox: str, count: int, knobs: Knobs, now: float) -> float:
        """Count recipients of a message; 0.0, or how long until they fit, seconds."""
        window = self._recipients.setdefault(mailbox, _Window())
        if knobs.recipients_exceeded == "accept":
            return 0.0
        return window.over(count, limit=knobs.recipients_per_day, window_s=_DAY_S, now=now)

    def drained_at(self, mailbox: str, knobs: Knobs, now: float) -> float:
        """Return when transport will have moved a message accepted `now`."""
        if not knobs.drain_per_minute:
            return now
        at = max(now, self._drain.get(mailbox, -math.inf) + 60.0 / knobs.drain_per_minute)
        self._drain[mailbox] = at
        return at
