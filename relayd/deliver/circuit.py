"""Whether an upstream is up: one value for each, asked before every lease.

    UP --failed--> DOWN --probe time--> PROBING --succeeded--> UP
                     ^                     |
                     +------ failed -------+

While it is down nothing is leased, so that no message burns its tries, and one delivery at
a time finds out whether it is back. Answers that leave it open whether the request was acted
on (502, 504, no answer) are doubts: three in a row count as down, or an outage would make a
whole queue "maybe sent". Pure: the courier says what happened and when.
"""

from __future__ import annotations

import enum
from typing import Final

from relayd.deliver import retry

DOUBTS_ALLOWED: Final = 3
_PROBE_LIMIT_S: Final = 300.0
"""A probe that says nothing for so long is forgotten, and another may go."""


class State(enum.Enum):
    """Where an upstream stands."""

    UP = "up"
    DOWN = "down"
    PROBING = "probing"


class Circuit:
    """One upstream's state; owned by the courier, times are monotonic seconds.

    cause, text: why it is down; "" while it is up.
    """

    __slots__ = ("_doubts", "_probe_at", "_strikes", "cause", "down_since", "state", "text")

    def __init__(self) -> None:
        self.state = State.UP
        self.cause = ""
        self.text = ""
        self.down_since = 0.0
        self._probe_at = 0.0
        self._strikes = 0
        self._doubts = 0

    @property
    def probe_at(self) -> float:
        """When it may be asked next; 0 while it is up."""
        return self._probe_at

    def is_up(self) -> bool:
        """Tell whether mail may flow."""
        return self.state is State.UP

    def may_probe(self, now: float) -> bool:
        """Take the right to try once; the taker must report or `spare` it."""
        if self.state is State.UP or now < self._probe_at:
            return False
        self.state = State.PROBING
        self._probe_at = now + _PROBE_LIMIT_S
        return True

    def spare(self, now: float) -> None:
        """The probe found nothing to send: another may go at once."""
        if self.state is State.PROBING:
            self.state = State.DOWN
            self._probe_at = now

    def failed(
        self,
        now: float,
        *,
        cause: str,
        text: str,
        retry_after_s: float | None = None,
        by_configuration: bool = False,
    ) -> bool:
        """Note a failure of the whole upstream; return whether that is news: it has just gone
        down, or is down for another cause now.

        by_configuration: the credential is refused; probe once a minute.
        """
        was_up = self.state is State.UP
        if self.state is State.DOWN and now < self._probe_at:
            return False  # one of those that were in flight when it broke
        self._strikes += 1
        rest_s = (
            retry.CREDENTIAL_PROBE_S if by_configuration else retry.upstream_rest_s(self._strikes)
        )
        if retry_after_s is not None:
            rest_s = max(retry_after_s, 1.0)
        self.state = State.DOWN
        self._probe_at = now + rest_s
        is_news = was_up or cause != self.cause
        self.cause, self.text = cause, text
        if was_up:
            self.down_since = now
        return is_news

    def doubt(self, now: float, *, cause: str, text: str) -> bool:
        """Note an answer that leaves all open; return what `failed` does."""
        self._doubts += 1
        if self.state is State.UP and self._doubts < DOUBTS_ALLOWED:
            return False
        return self.failed(now, cause=cause, text=text)

    def succeeded(self) -> bool:
        """Note that it answers for itself; return True when it has just come back."""
        self._doubts = 0
        if self.state is State.UP:
            return False
        self.state = State.UP
        self._strikes = 0
        self._probe_at = 0.0
        self.cause = self.text = ""
        return True
