"""What becomes of a delivery: the rules of settling, reclaiming and wishing, as pure values.

Every store asks here, so that they agree; which moves exist at all is model.NEXT.

    settled   an attempt ended: recipients are counted off, the operator's wish is obeyed
    reclaimed the holder died: back to READY, or HELD where a duplicate would be worse
    WISHES    what an operator may ask for, from which state, and where it leads
    turned    it got another way out: what only its old one held is free
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Final, Literal, NamedTuple

from relayd.spool.model import Course, MailboxRef, Redirect, Settlement, State
from relayd.values import frozen

LEASE_S: Final = 240.0
"""Length of a lease: longer than the longest whole send (120 s), renewed by the courier."""

OPERATOR: Final = "operator"
CORRUPT: Final = "corrupt"
AMBIGUOUS: Final = "ambiguous"

Wish = Literal["retry", "hold", "release", "delete", "resend"]

WISHES: Final[Mapping[Wish, Mapping[State, State]]] = {
    "retry": {
        State.DEFERRED: State.READY,
        State.HELD: State.READY,
        State.FAILED: State.READY,
    },
    "hold": {State.READY: State.HELD, State.DEFERRED: State.HELD},
    "release": {State.HELD: State.READY},
    "delete": {
        State.READY: State.DELETED,
        State.DEFERRED: State.DELETED,
        State.HELD: State.DELETED,
        State.FAILED: State.DELETED,
        State.SENT: State.SENT,  # its content goes, where it was kept
    },
    "resend": {State.SENT: State.READY},
}

WISHED: Final[Mapping[Wish, str]] = {
    "retry": "retried",
    "hold": "held",
    "release": "released",
    "delete": "deleted",
    "resend": "resent",
}
"""What the journal calls them."""

WHILE_LEASED: Final[Mapping[Wish, str]] = {
    "hold": "hold",
    "delete": "delete",
    "release": "",
    "retry": "",
}
"""What a wish leaves in a LEASED row for the holder's settle to obey; "" takes one back."""

STARTS: Final[frozenset[Wish]] = frozenset({"retry", "release", "resend"})
"""Wishes that lead to sending."""

FINAL: Final = frozenset({State.SENT, State.FAILED, State.DELETED})
STICKY: Final = frozenset({OPERATOR, CORRUPT})
"""HELD by these never expires: a person said so, or must look."""


Why = Literal["configuration", "operator", "wish"]
"""Who gives a delivery another way out: relayd.toml says another mailbox now, an operator moves
it to another upstream, or a wish is about to send it by what relayd.toml says now."""

MOVED: Final = "moved"
"""What the journal calls it."""

TURNED_BY: Final[Mapping[Why, frozenset[State]]] = {
    "configuration": frozenset({State.READY, State.DEFERRED, State.HELD}),
    "operator": frozenset({State.READY, State.DEFERRED, State.HELD, State.FAILED}),
    "wish": frozenset({State.READY, State.DEFERRED, State.HELD, State.FAILED, State.SENT}),
}
"""From which states; never LEASED: its holder is sending it."""

_TURNED: Final = re.compile(r"([^/ ]+)/(.+?) -> ")


@frozen(kw_only=True)
class Move:
    """Where a LEASED delivery goes.

    done:         {recipient: "" sent, else why it failed}, those that are not to be tried again.
    counted:      the attempt counts.
    drop_content: whatever else is kept, an operator deleted this one.
    """

    state: State
    held_by: str = ""
    done: Mapping[str, str]
    counted: bool = True
    drop_content: bool = False


def rest(recipients: tuple[str, ...], done: Mapping[str, str]) -> tuple[str, ...]:
    """Return the recipients still to be tried."""
    return tuple(one for one in recipients if one not in done) if done else recipients


def forgiven(was: State, done: Mapping[str, str]) -> dict[str, str]:
    """Return the recipients that stay counted off when a delivery goes back to READY.

    From FAILED those that were sent; from SENT (send it all again) none; else all.
    """
    if was is State.SENT:
        return {}
    if was is State.FAILED:
        return {one: why for one, why in done.items() if not why}
    return dict(done)


def needs_content(wish: Wish, was: State) -> bool:
    """Tell whether a wish comes to nothing without content: none to send, or none to drop."""
    return wish in STARTS or (wish == "delete" and was is State.SENT)


def may_start(wish: Wish, upstream: str, configured: Collection[str] | None) -> bool:
    """Tell whether a wish that sends has a way out to send by. configured: None: not known."""
    return wish not in STARTS or configured is None or upstream in configured


def is_reached(wish: Wish, was: State, *, has_content: bool) -> bool:
    """Tell whether a wish does anything about a delivery in this state."""
    if was is State.LEASED:
        return wish in WHILE_LEASED
    return was in WISHES[wish] and (has_content or not needs_content(wish, was))


def settled(
    settlement: Settlement, *, recipients: tuple[str, ...], done: Mapping[str, str], wish: str
) -> Move:
    """Return where the holder's word, the recipients left and an operator's wish lead."""
    known = {
        **done,
        **{one: why or "failed" for one, why in (settlement.failed_recipients or {}).items()},
        **dict.fromkeys(settlement.sent_recipients, ""),
    }
    state, held_by = settlement.state, settlement.held_by
    if state is State.FAILED:
        if known:  # else all failed alike, and the state says it
            why = settlement.text or settlement.code or "failed"
            known.update(dict.fromkeys(rest(recipients, known), why))
    elif state is not State.SENT and not rest(recipients, known):
        state = State.SENT if "" in known.values() else State.FAILED
    state, held_by, drop = _obeyed(wish, state, held_by)
    return Move(
        state=state,
        held_by=held_by if state is State.HELD else "",
        done=known,
        counted=settlement.state is not State.READY,
        drop_content=drop,
    )


def reclaimed(*, wish: str, policy: str) -> Move:
    """Return where a delivery goes whose holder died. policy: "retry", "hold", "verify"."""
    held = policy != "retry"  # "verify" needs somebody who can look: held until then
    state, held_by, drop = _obeyed(
        wish, State.HELD if held else State.READY, AMBIGUOUS if held else ""
    )
    return Move(state=state, held_by=held_by, done={}, drop_content=drop)


def _obeyed(wish: str, state: State, held_by: str) -> tuple[State, str, bool]:
    if wish == "delete":
        return (state if state is State.SENT else State.DELETED), "", True
    if wish == "hold" and state not in FINAL:
        return State.HELD, OPERATOR, False
    return state, held_by, False


# ---- another way out


class Turned(NamedTuple):
    """Where a redirected delivery stands. is_due: it is to be tried at once."""

    state: State
    held_by: str
    is_due: bool


def missing(upstream: str) -> str:
    """Return what rows of an upstream that is not configured are held by."""
    return f"upstream {upstream} not configured"


def is_turned(course: Course) -> bool:
    """Tell whether a change of relayd.toml alone moves a delivery.

    Not what may have gone through the mailbox it has: the one to look into is that one. Nor
    what cannot be read. Both are moved when an operator releases them.
    """
    if course.state is State.HELD and course.held_by in {AMBIGUOUS, CORRUPT}:
        return False
    return course.state in TURNED_BY["configuration"]


def turned(course: Course, why: Why) -> Turned:
    """Return where a delivery stands once it has another way out.

    What Microsoft refused on the old one is free, what a person or the disk keeps is not. Mail
    of an upstream that was gone is freed by `adopt`, or when an operator moves it away.
    """
    state, held_by = course.state, course.held_by
    stays = {OPERATOR, CORRUPT, AMBIGUOUS}
    if why == "configuration":
        stays.add(missing(course.mailbox.upstream))
    is_free = state is State.HELD and held_by not in stays
    if why == "wish" or not (is_free or (why == "operator" and state is State.DEFERRED)):
        return Turned(state, held_by, is_due=False)
    return Turned(State.READY, "", is_due=True)


def turned_words(redirect: Redirect, why: Why) -> str:
    """Return the journal's text; `turned_from` reads it again."""
    was, now = redirect.course, redirect.mailbox
    by = "by an operator" if why == "operator" else "as the configuration says now"
    words = f"{was.mailbox.upstream}/{was.mailbox.mailbox} -> {now.upstream}/{now.mailbox}, {by}"
    if redirect.header_from != was.header_from:
        words += f"; From {redirect.header_from}, was {was.header_from}"
    return words


def turned_from(text: str) -> MailboxRef | None:
    """Return the way out a delivery had before the journal's row with this text."""
    found = _TURNED.match(text)
    return MailboxRef(found[1], found[2]) if found else None
