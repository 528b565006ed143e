"""What an attempt's result makes of a delivery: (result, lease, policy, now) -> Settlement.

Pure: the courier does what is decided here. One table:

    Sent                     SENT
    Deferred                 DEFERRED by the message's schedule, or as the server wishes;
                             FAILED when its time is up, or its code allows no more tries
      the whole upstream     READY, no attempt counted: the circuit waits, not the message
    Failed                   FAILED
    Misconfigured            HELD by its code, one probe after 30 min
      the whole upstream     READY likewise
    Ambiguous, policy retry  DEFERRED by the schedule; FAILED when its time is up
      policy hold, verify    HELD "ambiguous" until an operator decides
    Divided                  what was sent and what failed is recorded; the rest follows the
                             outcome that comes soonest, but is HELD if some of it is "ambiguous"
                             and to be held
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final, Literal

from relayd.deliver import catalogue, retry
from relayd.deliver.outcome import (
    Ambiguous,
    Answer,
    Deferred,
    Divided,
    Failed,
    Misconfigured,
    Outcome,
    Result,
    Sent,
)
from relayd.deliver.wallclock import EARLIEST
from relayd.spool.model import Lease, Settlement, State
from relayd.values import frozen

EXPIRED: Final = "expired"
AMBIGUOUS: Final = "ambiguous"
RETURNED: Final = "returned"
_EXPIRED_STATUS: Final = "5.4.7"
_NAMES_SHOWN: Final = 20


@frozen(kw_only=True)
class Policy:
    """What the configuration says about trying again.

    schedule:   seconds between tries, at least one.
    ambiguous:  what to do with mail that may have gone.
    may_expire: False while the clock is not trusted: then nothing is given up for its age.
    transport:  "graph", for the journal.
    """

    schedule: tuple[float, ...]
    ambiguous: Literal["retry", "hold", "verify"] = "retry"
    may_expire: bool = True
    transport: str = "graph"


def decide(
    result: Result, lease: Lease, policy: Policy, now: datetime, *, dice: float = 0.5
) -> Settlement:
    """Return what to settle. dice: 0..1, random; spreads the next tries."""
    if isinstance(result, Divided):
        return _divided(result, lease, policy, now, dice)
    return _single(result, lease, policy, now, dice)


def returned(reason: str, *, transport: str = "graph") -> Settlement:
    """Return the settlement that gives a lease back untried."""
    return Settlement(state=State.READY, outcome=RETURNED, text=reason, transport=transport)


def describe(answer: Answer) -> str:
    """Return the answer for people: what it means, then Microsoft's own words."""
    words = catalogue.entry_for(answer).words
    return f"{words} ({answer.text})" if answer.text else words


def _single(
    outcome: Outcome, lease: Lease, policy: Policy, now: datetime, dice: float
) -> Settlement:
    answer = outcome.answer
    match outcome:
        case Sent():
            return _settlement(State.SENT, "sent", answer, policy)
        case Failed(enhanced=enhanced):
            return _failed(answer, enhanced, lease, policy)
        case Misconfigured(whole_upstream=True) | Deferred(whole_upstream=True):
            # Not the message's fault and no attempt of its own: with the upstream's first
            # success it goes at once, wherever its schedule stands.
            word = "misconfigured" if isinstance(outcome, Misconfigured) else "deferred"
            if _is_over(lease, policy, now):
                return _expired(answer, lease, policy)
            return _settlement(State.READY, word, answer, policy)
        case Misconfigured():
            held = _settlement(State.HELD, "misconfigured", answer, policy)
            return replace(
                held,
                held_by=answer.code or f"HTTP {answer.status}",
                due_at=now + timedelta(seconds=retry.DENIAL_PROBE_S),
            )
        case Deferred(retry_after_s=wish):
            row = catalogue.entry_for(answer)
            if row.tries and lease.attempt >= row.tries:
                return _failed(answer, row.enhanced, lease, policy)
            return _later("deferred", answer, wish, lease, policy, now, dice)
        case Ambiguous():
            if policy.ambiguous == "retry":
                return _later(AMBIGUOUS, answer, None, lease, policy, now, dice)
            held = _settlement(State.HELD, AMBIGUOUS, answer, policy)
            return replace(held, held_by=AMBIGUOUS)


def _settlement(state: State, word: str, answer: Answer, policy: Policy) -> Settlement:
    return Settlement(
        state=state,
        outcome=word,
        transport=policy.transport,
        http_status=answer.status,
        code=answer.code,
        request_id=answer.request_id,
        text="" if state is State.SENT else describe(answer),
    )


def _failed(answer: Answer, enhanced: str, lease: Lease, policy: Policy) -> Settlement:
    failed = _settlement(State.FAILED, "failed", answer, policy)
    reason = f"{enhanced} {failed.text}"
    return replace(failed, failed_recipients=dict.fromkeys(lease.recipients, reason))


def _expired(answer: Answer, lease: Lease, policy: Policy) -> Settlement:
    row = catalogue.explain(EXPIRED)
    words = row.words if row else EXPIRED
    text = f"{words} The last try: {describe(answer)}"
    return replace(
        _failed(answer, _EXPIRED_STATUS, lease, policy),
        code=EXPIRED,
        text=text,
        failed_recipients=dict.fromkeys(lease.recipients, f"{_EXPIRED_STATUS} {text}"),
    )


def _is_over(lease: Lease, policy: Policy, now: datetime) -> bool:
    # Accepted under a clock that was plainly wrong, its end is wrong too: the sweep gives it
    # its whole time, from when the clock is right.
    return policy.may_expire and now >= lease.expires_at and lease.accepted_at >= EARLIEST


def _later(
    word: str,
    answer: Answer,
    wish: float | None,
    lease: Lease,
    policy: Policy,
    now: datetime,
    dice: float,
) -> Settlement:
    if _is_over(lease, policy, now):
        return _expired(answer, lease, policy)
    delay_s = retry.message_delay_s(policy.schedule, lease.attempt, dice=dice)
    if wish is not None:
        wish = retry.obeyed_s(wish, lease.attempt)
    due = retry.due_at(now, lease.expires_at, delay_s=delay_s, retry_after_s=wish)
    if due is None:  # past its end, but the clock is not trusted
        due = now + timedelta(seconds=delay_s)
    return replace(_settlement(State.DEFERRED, word, answer, policy), due_at=due)


_RANK: Final = {State.READY: 0, State.DEFERRED: 1, State.HELD: 2, State.FAILED: 3, State.SENT: 4}


def _divided(
    result: Divided, lease: Lease, policy: Policy, now: datetime, dice: float
) -> Settlement:
    """Record what is final for each recipient; the rest follows the part that moves first.

    The rest is one delivery with one state. What may have been sent and is to be held holds all
    of it, and the text says who has certainly got nothing.
    """
    sent: list[str] = []
    failed: dict[str, str] = {}
    rest: list[Settlement] = []
    unsent: list[str] = []
    last_sent: Settlement | None = None
    for recipients, outcome in result.parts:
        part = _single(outcome, replace(lease, recipients=recipients), policy, now, dice)
        if part.state is State.SENT:
            sent += recipients
            last_sent = part
        elif part.state is State.FAILED:
            failed.update(part.failed_recipients or {})
            rest.append(part)
        else:
            rest.append(part)
            unsent += recipients if part.held_by != AMBIGUOUS else ()
    first = _first(rest)
    if first is not None and first.held_by == AMBIGUOUS and unsent:
        first = replace(first, text=f"{first.text} Certainly not sent to: {_names(unsent)}")
    if first is not None and first.state is not State.FAILED:
        return replace(first, sent_recipients=tuple(sent), failed_recipients=failed or None)
    if last_sent is not None:
        # Nobody waits any more: the message went to those it could go to.
        return replace(last_sent, failed_recipients=failed or None, text=_text(first))
    if first is None:
        raise ValueError("a divided result without parts")
    return replace(first, failed_recipients=failed)


def _first(parts: Sequence[Settlement]) -> Settlement | None:
    return min(parts, key=_turn, default=None)


def _turn(part: Settlement) -> int:
    # What is held because it may have gone must not go again with those that wait.
    return -1 if part.held_by == AMBIGUOUS else _RANK[part.state]


def _names(recipients: Sequence[str]) -> str:
    more = len(recipients) - _NAMES_SHOWN
    return ", ".join(recipients[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _text(part: Settlement | None) -> str:
    return part.text if part is not None else ""
