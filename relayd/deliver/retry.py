"""When to try again.

    a message     its schedule, the last step repeats, ±10 % so that a burst spreads out
    a mailbox     doubling from 10 s to 5 min while Microsoft throttles it
    an upstream   doubling from 2 s to 1 min while it is down; one try each time
    a denial      30 min: Exchange keeps a denial alive as long as it is asked more often
    a credential  1 min: the secret may have been mended
    the spool     longer each time, up to 5 s: it is ours, and all waits for it

The server's own wish (Retry-After) beats all of these and is never cut short. Where it refuses
again and again, a wish of a few seconds is stretched, up to 10 s: no server is asked over and
over each second for days.

Source: learn.microsoft.com/graph/throttling (honour Retry-After); Exchange application
access policies (changes take 30 min to 2 h).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

DENIAL_PROBE_S: Final = 1800.0
CREDENTIAL_PROBE_S: Final = 60.0
SPOOL_PAUSES_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)

_JITTER: Final = 0.1
_WISH_FIRST_S: Final = 1.0
_WISH_MOST_S: Final = 10.0
_MAILBOX_FIRST_S: Final = 10.0
_MAILBOX_MOST_S: Final = 300.0
_UPSTREAM_FIRST_S: Final = 2.0
_UPSTREAM_MOST_S: Final = 60.0
_MAX_DOUBLINGS: Final = 16


def message_delay_s(schedule: Sequence[float], attempt: int, *, dice: float) -> float:
    """Return how long a message waits after its `attempt`-th try (1 is the first), seconds.

    schedule: seconds, at least one; the last repeats.
    dice:     0..1, a random number; 0.5 is the middle.
    """
    step = schedule[min(max(attempt, 1), len(schedule)) - 1]
    return step * (1.0 + _JITTER * (2.0 * dice - 1.0))


def due_at(
    now: datetime,
    expires_at: datetime,
    *,
    delay_s: float,
    retry_after_s: float | None,
) -> datetime | None:
    """Return the next try; None when the message has had its time.

    A step that would lead past the end leads to the end, for one last try there; only the
    server's own wish may lead past it.
    """
    if now >= expires_at:
        return None
    if retry_after_s is not None:
        return now + timedelta(seconds=retry_after_s)
    return min(now + timedelta(seconds=delay_s), expires_at)


def obeyed_s(wish_s: float, refusals: int) -> float:
    """Return how long to wait on the server's wish, after `refusals` in a row (1 is the first).

    At least 1 s, then 2, 4, 8 and 10 s: what says "at once" and refuses again knows no better.
    """
    return max(wish_s, _doubling(refusals, _WISH_FIRST_S, _WISH_MOST_S))


def mailbox_rest_s(strikes: int) -> float:
    """Return how long a mailbox rests after `strikes` refusals in a row (1 is the first)."""
    return _doubling(strikes, _MAILBOX_FIRST_S, _MAILBOX_MOST_S)


def upstream_rest_s(strikes: int) -> float:
    """Return how long a whole upstream is left alone after `strikes` failures in a row."""
    return _doubling(strikes, _UPSTREAM_FIRST_S, _UPSTREAM_MOST_S)


def spool_pause_s(failures: int) -> float:
    """Return how long to leave the spool alone that failed `failures` times before this one."""
    return SPOOL_PAUSES_S[min(failures, len(SPOOL_PAUSES_S) - 1)]


def _doubling(strikes: int, first_s: float, most_s: float) -> float:
    return float(min(first_s * 2 ** min(max(strikes, 1) - 1, _MAX_DOUBLINGS), most_s))
