"""What an operator does to the queue, and what a change of configuration does.

Ids are messages'; a wish goes to each delivery of theirs that is in a state it makes sense
in (moves.WISHES). A LEASED one only remembers it: its holder's settle obeys.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from relayd.spool import moves
from relayd.spool.leasing import drop_content
from relayd.spool.model import MailboxRef, QueueId, Redirect, State, done_in
from relayd.spool.redirecting import redirect_all
from relayd.spool.schema import CODES, STATES
from relayd.spool.transaction import SIBLINGS, Operation, Transaction, marks, sibling_values
from relayd.values import frozen

_MOVED_AT_ONCE: Final = 1000


@frozen
class Ask(Operation[int]):
    """Do what an operator wishes for these messages.

    redirects: of their deliveries, first: what is sent goes as relayd.toml says now.
    upstreams: only what goes through one of these is started; None: all.
    """

    wish: moves.Wish
    messages: tuple[QueueId, ...]
    redirects: tuple[Redirect, ...] = ()
    upstreams: frozenset[str] | None = None

    def run(self, batch: Transaction) -> int:
        """Return how many messages it reached."""
        redirect_all(batch, self.redirects, "wish")
        return sum(self._one(batch, message) for message in dict.fromkeys(self.messages))

    def _one(self, batch: Transaction, message: int) -> bool:
        reached = False
        rows = batch.rows(
            "SELECT json_group_array(json_array(id, state, upstream, mailbox, header_from, held_by,"
            f" done)) FROM delivery WHERE id IN {SIBLINGS}",
            *sibling_values(message),
        )
        for number, code, *rest in rows:
            state = STATES.get(int(code or 0))
            if state is State.LEASED:
                reached |= self._remember(batch, int(number or 0))
            elif state is not None and state in moves.WISHES[self.wish]:
                reached |= self._move(
                    batch, int(number or 0), message, state, [str(x or "") for x in rest]
                )
        return reached

    def _remember(self, batch: Transaction, delivery: int) -> bool:
        if self.wish not in moves.WHILE_LEASED:
            return False
        batch.run(
            "UPDATE delivery SET wish = ? WHERE id = ? AND state = 3",
            moves.WHILE_LEASED[self.wish],
            delivery,
        )
        return True

    def _move(
        self, batch: Transaction, delivery: int, message: int, was: State, row: list[str]
    ) -> bool:
        upstream, mailbox, header_from, held_by, done = row
        if not moves.may_start(self.wish, upstream, self.upstreams):
            return False
        if moves.needs_content(self.wish, was) and not _has_content(batch, message):
            return False
        is_held = self.wish in moves.STARTS and was is State.HELD
        if is_held and _probe_now(batch, (upstream, mailbox, header_from, held_by)):
            # It, or an older one like it, is tried at once; if that works, all go.
            _journal(batch, delivery, moves.WISHED[self.wish])
            batch.run("UPDATE delivery SET fence = fence + 1 WHERE id = ? AND state = 2", delivery)
            return True
        to = moves.WISHES[self.wish][was]
        _journal(batch, delivery, moves.WISHED[self.wish])
        kept = done_in(done)
        if to is State.READY:
            kept = moves.forgiven(was, kept)
        batch.run(
            "UPDATE delivery SET state = ?, fence = fence + 1, held_by = ?, due = ?, done = ?,"
            " settled_at = ?, expires_at = CASE WHEN ? AND expires_at <= ? THEN ? + expires_at -"
            " (SELECT accepted_at FROM message WHERE message.id = delivery.message)"
            " ELSE expires_at END WHERE id = ? AND state = ?",
            CODES[to],
            moves.OPERATOR if to is State.HELD else "",
            batch.now,
            json.dumps(kept) if kept else None,
            batch.now if to in moves.FINAL else None,
            int(to is State.READY),
            batch.now,
            batch.now,
            delivery,
            CODES[was],
        )
        if to is State.READY:
            batch.effects.ready.append(MailboxRef(upstream, mailbox))
        if self.wish == "delete":
            drop_content(batch, message)
        return True


def _has_content(batch: Transaction, message: int) -> bool:
    return batch.scalar("SELECT 1 FROM content WHERE id = ?", message) is not None


def _probe_now(batch: Transaction, key: tuple[str, str, str, str]) -> bool:
    changed = batch.run(
        "UPDATE hold SET probe_at = min(probe_at, ?) WHERE upstream = ? AND mailbox = ?"
        " AND header_from = ? AND cause = ? AND releasing = 0",
        batch.now,
        *key,
    )
    if changed:
        batch.touch_holds()
        batch.effects.ready.append(MailboxRef(key[0], key[1]))
    return changed > 0


def _journal(batch: Transaction, delivery: int, outcome: str) -> None:
    batch.run(
        "INSERT INTO attempt (delivery, serial, number, transport, finished_at, outcome, text)"
        " SELECT id, fence + 1, attempts, '', ?, ?, 'by an operator' FROM delivery WHERE id = ?",
        batch.now,
        outcome,
        delivery,
    )


@frozen
class Hasten(Operation[int]):
    """Make DEFERRED rows of an upstream due now: it answers again. 0 when none is left."""

    upstream: str

    def run(self, batch: Transaction) -> int:
        """Return how many it moved to READY."""
        where = (
            f"FROM delivery WHERE state <= 1 AND upstream = ? AND due > ? LIMIT {_MOVED_AT_ONCE}"
        )
        rows = batch.rows(
            f"SELECT json_group_array(json_array(id, mailbox)) FROM (SELECT id, mailbox {where})",
            self.upstream,
            batch.now,
        )
        ids = [row[0] for row in rows]
        batch.run(
            f"UPDATE delivery SET state = 0, due = ? WHERE id IN ({marks(len(ids))})",
            batch.now,
            *ids,
        )
        batch.effects.ready += [
            MailboxRef(self.upstream, str(box)) for box in dict.fromkeys(row[1] for row in rows)
        ]
        return len(ids)


@frozen
class Adopt(Operation[int]):
    """Hold the mail of upstreams that are gone, free that of those that are back; 0 when done."""

    upstreams: tuple[str, ...]

    def run(self, batch: Transaction) -> int:
        """Return how many rows it moved."""
        return self._hold(batch) + self._free(batch)

    def _hold(self, batch: Transaction) -> int:
        known = set(self.upstreams)
        gone = [one for one in _upstreams(batch, "state <= 1") if one not in known]
        return sum(
            batch.run(
                "UPDATE delivery SET state = 2, held_by = ? WHERE id IN"
                " (SELECT id FROM delivery WHERE state <= 1 AND upstream = ?"
                f" LIMIT {_MOVED_AT_ONCE})",
                moves.missing(one),
                one,
            )
            for one in gone
        )

    def _free(self, batch: Transaction) -> int:
        back = [one for one in _upstreams(batch, "state = 2") if one in set(self.upstreams)]
        return sum(
            batch.run(
                "UPDATE delivery SET state = 0, held_by = '', due = ? WHERE id IN"
                " (SELECT id FROM delivery WHERE state = 2 AND upstream = ? AND held_by = ?"
                f" LIMIT {_MOVED_AT_ONCE})",
                batch.now,
                one,
                moves.missing(one),
            )
            for one in back
        )


def _upstreams(batch: Transaction, condition: str) -> Sequence[str]:
    """Return the upstreams that have rows in a partial index, one seek for each."""
    found: list[str] = []
    last: str | None = ""
    while True:
        value = batch.scalar(
            f"SELECT upstream FROM delivery WHERE {condition} AND upstream > ?"
            " ORDER BY upstream LIMIT 1",
            last,
        )
        if value is None:
            return found
        last = str(value)
        found.append(last)
