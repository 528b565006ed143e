"""Deliveries that are not in anybody's hand get another way out: mailbox and From.

Accepting planned it; meanwhile relayd.toml names another mailbox, or an operator moves mail to
another upstream. Who judges (access.replan) reads Courses, and writes Redirects: each changes its
row only if that still stands as it was read, and leaves a row in the journal.

A Hold that kept the last delivery of its old (mailbox, From) goes with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from relayd.spool import moves
from relayd.spool.model import Course, MailboxRef, QueueId, Redirect, State
from relayd.spool.schema import CODES, STATES
from relayd.spool.transaction import (
    SIBLINGS,
    Operation,
    Pair,
    Transaction,
    Value,
    marks,
    sibling_values,
)
from relayd.values import frozen

AT_ONCE: Final = 500
"""So many in one commit: more would stop everybody's mail for a moment."""

_COURSE: Final = """
    SELECT json_group_array(json_array(d.id, d.message, d.state, d.held_by, d.upstream, d.mailbox,
      d.header_from, d.set_from, d.reply_to_original, m.device, m.user))
    FROM delivery AS d LEFT JOIN message AS m ON m.id = d.message
    WHERE d.id IN ({chosen})
    """
_AS_READ: Final = (
    "delivery.id = v.column1 AND delivery.state = v.column2 AND delivery.held_by = v.column3"
    " AND delivery.upstream = v.column4 AND delivery.mailbox = v.column5"
)
_JOURNAL: Final = f"""
    INSERT INTO attempt (delivery, serial, number, transport, finished_at, outcome, text)
    SELECT delivery.id, delivery.fence + 1, delivery.attempts, '', v.column13, v.column14,
      v.column15
    FROM ({{values}}) AS v JOIN delivery ON {_AS_READ}
    """
_MOVE: Final = f"""
    UPDATE delivery SET upstream = v.column6, mailbox = v.column7, header_from = v.column8,
      set_from = v.column9, reply_to_original = v.column10, state = v.column11,
      held_by = v.column12, fence = fence + 1, due = coalesce(v.column16, due)
    FROM ({{values}}) AS v WHERE {_AS_READ}
    """
_HAS_CONTENT: Final = "EXISTS (SELECT 1 FROM content WHERE content.id = delivery.message)"


@frozen
class ReadCourses(Operation[list[Course]]):
    """Look up the deliveries of these messages that are in one of these states.

    with_content: only those whose content is kept.
    """

    messages: tuple[QueueId, ...]
    states: frozenset[State]
    with_content: bool
    writes = False

    def run(self, batch: Transaction) -> list[Course]:
        """Return them."""
        codes = sorted(CODES[state] for state in self.states)
        chosen = (
            f"SELECT id FROM delivery WHERE id IN {SIBLINGS} AND state IN ({marks(len(codes))})"
        )
        if self.with_content:
            chosen += f" AND {_HAS_CONTENT}"
        return [
            course
            for message in dict.fromkeys(self.messages)
            for course in _courses(batch, chosen, *sibling_values(message), *codes)
        ]


@frozen
class ReadAstray(Operation[list[Course]]):
    """Look up waiting deliveries whose upstream sends through another mailbox; at most AT_ONCE.

    mailboxes: the one mailbox of each upstream that has one.
    """

    mailboxes: tuple[MailboxRef, ...]
    writes = False

    def run(self, batch: Transaction) -> list[Course]:
        """Return them; one seek for each mailbox that an upstream has mail for."""
        for right in self.mailboxes:
            for condition in ("state <= 1", "state = 2"):
                for wrong in _others(batch, right, condition):
                    found = _courses(
                        batch,
                        f"SELECT id FROM delivery WHERE {condition} AND upstream = ?"
                        f" AND mailbox = ? AND held_by NOT IN ('{moves.AMBIGUOUS}',"
                        f" '{moves.CORRUPT}') LIMIT {AT_ONCE}",
                        *wrong,
                    )
                    if found:
                        return found
        return []


def _others(batch: Transaction, right: MailboxRef, condition: str) -> Iterator[MailboxRef]:
    last = ""
    while True:
        value = batch.scalar(
            f"SELECT mailbox FROM delivery WHERE {condition} AND upstream = ? AND mailbox > ?"
            " ORDER BY mailbox LIMIT 1",
            right.upstream,
            last,
        )
        if value is None:
            return
        last = str(value)
        if last != right.mailbox:
            yield MailboxRef(right.upstream, last)


def _courses(batch: Transaction, chosen: str, *values: Value) -> list[Course]:
    return [
        Course(
            delivery=int(row[0] or 0),
            message=QueueId(int(row[1] or 0)),
            state=STATES[int(row[2] or 0)],
            held_by=str(row[3]),
            mailbox=MailboxRef(str(row[4]), str(row[5])),
            header_from=str(row[6]),
            set_from=str(row[7]),
            reply_to_original=bool(row[8]),
            device=str(row[9] or ""),
            user=str(row[10] or ""),
        )
        for row in batch.rows(_COURSE.format(chosen=chosen), *values)
    ]


@frozen
class RedirectAll(Operation[int]):
    """Give deliveries another way out."""

    redirects: tuple[Redirect, ...]
    why: moves.Why

    def run(self, batch: Transaction) -> int:
        """Return how many still stood as they were read, and are redirected now."""
        return redirect_all(batch, self.redirects, self.why)


def redirect_all(batch: Transaction, redirects: Sequence[Redirect], why: moves.Why) -> int:
    """Redirect them in this transaction; returns how many."""
    able = [one for one in redirects if one.course.state in moves.TURNED_BY[why]]
    if not able:
        return 0
    rows = [_row(one, why, batch.now) for one in able]
    batch.bulk(_JOURNAL, rows)
    changed = batch.bulk(_MOVE, rows)
    _drop_holds(batch, {_pair(one.course) for one in able if one.course.state is State.HELD})
    batch.effects.ready += dict.fromkeys(one.mailbox for one in able)
    batch.effects.pages += len(able) // 4 + 4
    return changed


def _row(one: Redirect, why: moves.Why, now: int) -> tuple[Value, ...]:
    was = one.course
    to = moves.turned(was, why)
    return (
        was.delivery,
        CODES[was.state],
        was.held_by,
        *was.mailbox,
        *one.mailbox,
        one.header_from,
        one.set_from,
        int(one.reply_to_original),
        CODES[to.state],
        to.held_by,
        now,
        moves.MOVED,
        moves.turned_words(one, why),
        now if to.is_due else None,
    )


def _pair(course: Course) -> Pair:
    return (*course.mailbox, course.header_from)


def _drop_holds(batch: Transaction, pairs: set[Pair]) -> None:
    """Forget the Holds that hold nothing any more; `status` would show them until their probe."""
    gone = 0
    for pair in sorted(pairs):
        gone += batch.run(
            "DELETE FROM hold WHERE upstream = ? AND mailbox = ? AND header_from = ? AND NOT EXISTS"
            " (SELECT 1 FROM delivery AS d WHERE d.state = 2 AND d.upstream = hold.upstream"
            " AND d.mailbox = hold.mailbox AND d.header_from = hold.header_from"
            " AND d.held_by = hold.cause)",
            *pair,
        )
    if gone:
        batch.touch_holds()
