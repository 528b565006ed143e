"""Attempts end: the journal's rows and the deliveries' new states, many in two statements.

Most settlements are plain: nobody wished anything meanwhile, no recipient counted off, no
Hold made or lifted. Those go together. If one of the rows is not as its holder believes, the
whole batch is rolled back and done again carefully, one by one.

# DURABILITY: row first, file after: content is unlinked once its row's end is committed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from relayd.clock import micros
from relayd.errors import LeaseLost
from relayd.spool import moves
from relayd.spool.leasing import drop_content
from relayd.spool.model import MailboxRef, QueueId, Settlement, State
from relayd.spool.schema import CODES
from relayd.spool.transaction import Operation, Pair, Transaction, Value, nothing_left
from relayd.values import frozen

_RELEASED_AT_ONCE: Final = 1000

_JOURNAL: Final = """
    INSERT INTO attempt (delivery, serial, number, holder, transport, started_at, finished_at,
      outcome, http_status, code, request_id, text)
    SELECT d.id, d.fence, d.attempts + 1, d.holder, v.column3, d.leased_at, v.column4,
      v.column5, v.column6, v.column7, v.column8, v.column9
    FROM ({values}) AS v JOIN delivery AS d ON d.id = v.column1
    WHERE d.fence = v.column2 AND d.state = 3
    """
_SETTLE: Final = """
    UPDATE delivery SET state = v.column3, due = v.column4, held_by = v.column5,
      attempts = attempts + v.column6, maybe_sent = maybe_sent | v.column7,
      settled_at = v.column8, done = v.column9,
      wish = '', holder = NULL, leased_at = NULL, lease_until = NULL
    FROM ({values}) AS v
    WHERE delivery.id = v.column1 AND delivery.fence = v.column2 AND delivery.state = 3
    """
_PLAIN: Final = _SETTLE.replace("done = v.column9", "done = done") + " AND delivery.wish = ''"
_DROP: Final = (
    "DELETE FROM content WHERE id IN (SELECT column1 FROM ({values})) AND "
    + nothing_left("content.id")
)


class Surprise(Exception):
    """A row was not as its holder believed; the batch must be done again, carefully."""


@frozen
class Settle(Operation[LeaseLost | None]):
    """End an attempt. filed: the content may lie in a file."""

    delivery: int
    fence: int
    message: QueueId
    pair: Pair
    filed: bool
    settlement: Settlement
    may_wait = True

    def run(self, batch: Transaction) -> LeaseLost | None:
        """Settle this one, whatever it takes."""
        row = batch.connection.execute(
            "SELECT recipients, done, wish FROM delivery WHERE id = ? AND fence = ? AND state = 3",
            (self.delivery, self.fence),
        ).fetchone()
        if row is None:
            return LeaseLost(f"delivery {self.delivery}: lease {self.fence} is over")
        move = moves.settled(
            self.settlement,
            recipients=tuple(json.loads(row[0])),
            done=json.loads(row[1] or "{}"),
            wish=row[2],
        )
        batch.bulk(_JOURNAL, [_journal_row(self, batch.now)])
        batch.bulk(_SETTLE, [_settle_row(self, move, batch.now)])
        self._follow(batch, move)
        return None

    def _follow(self, batch: Transaction, move: moves.Move) -> None:
        if move.drop_content:
            drop_content(batch, self.message)
        elif move.state is State.SENT:
            _drop_sent(batch, [self])
        if move.state is State.SENT:
            _lift(batch, self.pair)
        elif move.state is State.HELD and move.held_by == self.settlement.held_by:
            _put_hold(batch, self.pair, self.settlement)

    def is_plain(self, batch: Transaction) -> bool:
        """Tell whether the bulk statements will do, unless the row surprises them."""
        settlement = self.settlement
        if settlement.failed_recipients or settlement.sent_recipients:
            return False
        if settlement.state is State.HELD:
            return False
        return settlement.state is not State.SENT or self.pair not in batch.holds


def settle_all(batch: Transaction, settles: Sequence[Settle]) -> None:
    """Settle plain ones together; raises Surprise."""
    if not settles:
        return
    now = batch.now
    changed = batch.bulk(_JOURNAL, [_journal_row(one, now) for one in settles])
    if changed == len(settles):
        changed = batch.bulk(_PLAIN, [_plain_row(one, now) for one in settles])
    if changed != len(settles):
        raise Surprise
    _drop_sent(batch, [one for one in settles if one.settlement.state is State.SENT])
    batch.effects.pages += len(settles) // 4 + 4


def _drop_sent(batch: Transaction, settles: Sequence[Settle]) -> None:
    if batch.policy.keep_sent or not settles:
        return
    batch.bulk(_DROP, [(one.message,) for one in settles])
    batch.effects.dropped += [one.message for one in settles if one.filed]


def _journal_row(one: Settle, now: int) -> tuple[Value, ...]:
    word = one.settlement
    return (
        one.delivery,
        one.fence,
        word.transport,
        now,
        word.outcome,
        word.http_status,
        word.code,
        word.request_id,
        word.text,
    )


def _plain_row(one: Settle, now: int) -> tuple[Value, ...]:
    word = one.settlement
    return (
        one.delivery,
        one.fence,
        CODES[word.state],
        now if word.due_at is None else micros(word.due_at),
        "",
        int(word.state is not State.READY),
        int(word.outcome == moves.AMBIGUOUS),
        now if word.state in moves.FINAL else None,
        None,
    )


def _settle_row(one: Settle, move: moves.Move, now: int) -> tuple[Value, ...]:
    word = one.settlement
    return (
        one.delivery,
        one.fence,
        CODES[move.state],
        micros(word.due_at) if word.due_at and move.state is State.DEFERRED else now,
        move.held_by,
        int(move.counted),
        int(word.outcome == moves.AMBIGUOUS),
        now if move.state in moves.FINAL else None,
        json.dumps(move.done) if move.done else None,
    )


def _put_hold(batch: Transaction, pair: Pair, word: Settlement) -> None:
    """Make or refresh the Hold. Without a moment to probe at, only this row waits."""
    if word.due_at is None or word.held_by in moves.STICKY:
        return
    batch.run(
        "INSERT INTO hold (upstream, mailbox, header_from, cause, text, since, probe_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " text = excluded.text, probe_at = excluded.probe_at, releasing = 0",
        *pair,
        word.held_by,
        word.text,
        batch.now,
        micros(word.due_at),
    )
    batch.touch_holds()


def _lift(batch: Transaction, pair: Pair) -> None:
    """One got through: the Hold is over. Its rows are set free by ReleaseHeld, in parts."""
    changed = batch.run(
        "UPDATE hold SET releasing = 1"
        " WHERE upstream = ? AND mailbox = ? AND header_from = ? AND releasing = 0",
        *pair,
    )
    if changed:
        batch.touch_holds()
        ReleaseHeld().run(batch)


@frozen
class ReleaseHeld(Operation[int]):
    """Set free rows of Holds that are over; 0 when none is left.

    In parts, because 100,000 rows in one commit would stop everybody's mail for a second;
    the Hold's row stays until the last is free, so a crash in between strands nothing.
    """

    def run(self, batch: Transaction) -> int:
        """Return how many were set free."""
        over = batch.rows(
            "SELECT json_group_array(json_array(upstream, mailbox, header_from, cause))"
            " FROM hold WHERE releasing = 1"
        )
        freed = 0
        for upstream, mailbox, header_from, cause in over:
            changed = batch.run(
                "UPDATE delivery SET state = 0, held_by = '', due = ? WHERE id IN"
                " (SELECT id FROM delivery WHERE state = 2 AND upstream = ? AND mailbox = ?"
                f" AND header_from = ? AND held_by = ? LIMIT {_RELEASED_AT_ONCE})",
                batch.now,
                upstream,
                mailbox,
                header_from,
                cause,
            )
            if changed:
                batch.effects.ready.append(MailboxRef(str(upstream), str(mailbox)))
            if changed < _RELEASED_AT_ONCE:
                batch.run(
                    "DELETE FROM hold"
                    " WHERE upstream = ? AND mailbox = ? AND header_from = ? AND cause = ?",
                    upstream,
                    mailbox,
                    header_from,
                    cause,
                )
            freed += changed
        return freed
