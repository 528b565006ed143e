"""Deliveries go out on lease, and come back when their holder dies.

A lease is three columns of the delivery row (holder, leased_at, lease_until) and its fence,
which grows with each lease and each move made without a holder; so a holder that was
presumed dead can change nothing. The journal's serial is that fence.

# DURABILITY: the lease is committed before the first octet goes to Microsoft; a row still
LEASED by the dead is therefore "maybe sent", and nothing else is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from relayd.clock import from_micros
from relayd.spool import moves
from relayd.spool.holders import is_alive, pid_of
from relayd.spool.model import PRIORITIES, Lease, MailboxRef, QueueId
from relayd.spool.schema import CODES
from relayd.spool.transaction import SIBLINGS, Operation, Transaction, marks, sibling_values
from relayd.values import frozen

_MICROS: Final = 1_000_000
_HELD_AT_ONCE: Final = 256
_ROUNDS: Final = 4
_RECLAIMED_AT_ONCE: Final = 500

_BEST: Final = """
    SELECT json_group_array(json_array(
      d.id, d.message, d.fence, d.attempts, d.header_from, d.set_from, d.reply_to_original,
      d.recipients, d.done, d.priority, d.due, d.expires_at, d.maybe_sent,
      m.sender, m.accepted_at, m.size_bytes, m.device, m.session,
      c.size, c.crc, c.octets IS NULL))
    FROM delivery AS d LEFT JOIN message AS m ON m.id = d.message
      LEFT JOIN content AS c ON c.id = d.message
    WHERE d.id IN ({chosen})
    """
_PICK: Final = """
    SELECT id FROM (SELECT id FROM delivery
      WHERE state <= 1 AND upstream = ? AND mailbox = ? AND priority = {priority} AND due <= ?
      ORDER BY due, id LIMIT ?)
    """
_WAITING: Final = " UNION ALL ".join(
    _PICK.format(priority=priority) for priority in sorted(PRIORITIES.values())
)


class _Row(NamedTuple):
    """What _BEST gives for one delivery, in its order."""

    id: int
    message: int
    fence: int
    attempts: int
    header_from: str
    set_from: str
    reply_to_original: int
    recipients: str
    done: str | None
    priority: int
    due: int
    expires_at: int
    maybe_sent: int
    sender: str | None  # None: the message row is gone, and with it the next four
    accepted_at: int
    size_bytes: int
    device: str
    session: str
    size: int | None
    crc: int
    filed: int


@frozen
class TakeLeases(Operation[list[Lease]]):
    """Lease the best rows of a mailbox, or the probe of one of its Holds."""

    mailbox: MailboxRef
    limit: int

    def run(self, batch: Transaction) -> list[Lease]:
        """Return at most `limit` leases, best first."""
        if self.limit <= 0:
            return []
        if not _has_holds(batch, self.mailbox):
            return _granted(batch, self.mailbox, _waiting(batch, self.mailbox, self.limit))
        chosen = _probes(batch, self.mailbox, self.limit)
        probes = _best(batch, marks(len(chosen)), *chosen)
        return _granted(batch, self.mailbox, [*probes, *self._unheld(batch)][: self.limit])

    def _unheld(self, batch: Transaction) -> list[_Row]:
        """Return waiting rows that no Hold is for; those passed on the way become HELD.

        Only so many in one commit, because 100,000 would stop everybody's mail for a second;
        what is behind them is asked for again at once.
        """
        free: list[_Row] = []
        for _ in range(_ROUNDS):
            waiting = _waiting(batch, self.mailbox, max(self.limit, _HELD_AT_ONCE))
            held = [row for row in waiting if _cause(batch, self.mailbox, row.header_from)]
            free = [row for row in waiting if not _cause(batch, self.mailbox, row.header_from)]
            _hold_back(batch, self.mailbox, held)
            if len(free) >= self.limit or not held:
                return free
        batch.effects.ready.append(self.mailbox)
        return free


def _waiting(batch: Transaction, mailbox: MailboxRef, limit: int) -> list[_Row]:
    """Return the best rows, at most `limit`; looks at no more than that of each priority."""
    pick = (*mailbox, batch.now, limit)
    return _best(batch, _WAITING, *pick, *pick, *pick)[:limit]


def _best(batch: Transaction, chosen: str, *values: str | int) -> list[_Row]:
    rows = [_Row(*row) for row in batch.rows(_BEST.format(chosen=chosen), *values)]  # type: ignore[arg-type]  # as the schema is
    return sorted(rows, key=lambda row: (row.priority, row.due, row.id))


def _cause(batch: Transaction, mailbox: MailboxRef, header_from: str) -> str:
    return batch.holds.get((*mailbox, header_from), "")


def _has_holds(batch: Transaction, mailbox: MailboxRef) -> bool:
    return any(key[:2] == mailbox for key in batch.holds)


def _hold_back(batch: Transaction, mailbox: MailboxRef, rows: Sequence[_Row]) -> None:
    for row in rows:
        batch.run(
            "UPDATE delivery SET state = 2, held_by = ? WHERE id = ? AND state <= 1",
            _cause(batch, mailbox, row.header_from),
            row.id,
        )


def _probes(batch: Transaction, mailbox: MailboxRef, limit: int) -> list[int]:
    """Return a held row for each Hold whose time to be tried has come; a Hold of nothing goes."""
    if not _has_holds(batch, mailbox):
        return []
    due = batch.rows(
        "SELECT json_group_array(json_array(header_from, cause)) FROM hold"
        " WHERE upstream = ? AND mailbox = ? AND probe_at <= ? AND releasing = 0",
        *mailbox,
        batch.now,
    )
    chosen = []
    for header_from, cause in due[:limit]:
        found = batch.scalar(
            "SELECT id FROM delivery WHERE state = 2 AND upstream = ? AND mailbox = ?"
            " AND header_from = ? AND held_by = ? ORDER BY id LIMIT 1",
            *mailbox,
            header_from,
            cause,
        )
        key = (*mailbox, header_from, cause)
        where = "WHERE upstream = ? AND mailbox = ? AND header_from = ? AND cause = ?"
        if found is None:
            batch.run(f"DELETE FROM hold {where}", *key)
        else:  # one probe at a time: the next only when this one's lease has run out
            batch.run(
                f"UPDATE hold SET probe_at = ? {where}",
                batch.now + int(moves.LEASE_S * _MICROS),
                *key,
            )
            chosen.append(int(found))
        batch.touch_holds()
    return chosen


def _granted(batch: Transaction, mailbox: MailboxRef, rows: Sequence[_Row]) -> list[Lease]:
    contents = _contents(
        batch, [row.message for row in rows if row.size is not None and not row.filed]
    )
    leases = []
    for row in rows:
        content = contents.get(row.message)
        why = _unreadable(row, content)
        if why:
            mark_corrupt(batch, row.message, why)
            batch.effects.ready.append(mailbox)  # what waits behind it was not looked at
            continue
        leases.append(_lease(batch, mailbox, row, content))
    batch.bulk(
        "UPDATE delivery SET state = 3, fence = fence + 1, held_by = '', holder = v.column2,"
        " leased_at = v.column3, lease_until = v.column4 FROM ({values}) AS v"
        " WHERE delivery.id = v.column1 AND delivery.state <= 2",
        [(one.delivery, batch.holder, batch.now, one.expires_boottime) for one in leases],
    )
    batch.effects.pages += 2 * len(leases)
    return leases


def _contents(batch: Transaction, messages: Sequence[int]) -> dict[int, bytes]:
    """Return small contents; one row of many columns, because each row costs a hand-over."""
    if not messages:
        return {}
    wanted = list(dict.fromkeys(messages))
    found = []
    for start in range(0, len(wanted), 64):
        part = wanted[start : start + 64]
        columns = ",".join(["(SELECT octets FROM content WHERE id = ?)"] * len(part))
        found += batch.connection.execute(f"SELECT {columns}", part).fetchone()
    return {one: octets for one, octets in zip(wanted, found, strict=True) if octets is not None}


def _unreadable(row: _Row, content: bytes | None) -> str:
    if row.sender is None:
        return "its message row is gone"
    if row.size is None:
        return "its content is gone"
    if not row.filed and (content is None or damage(content, row.size, row.crc)):
        return "its content is damaged"
    return "" if _has_recipients(row) else "its recipients cannot be read"


def _has_recipients(row: _Row) -> bool:
    """Tell whether the row's addresses are what was stored, as far as it shows."""
    # All that was ever stored here is ASCII; what SQLite could not read has marks in it.
    if not (row.recipients.isascii() and row.set_from.isascii()):
        return False
    try:
        recipients, done = json.loads(row.recipients), json.loads(row.done or "{}")
    except ValueError:
        return False
    return (
        isinstance(recipients, list)
        and bool(recipients)
        and all(isinstance(one, str) for one in recipients)
        and isinstance(done, dict)
    )


def damage(content: bytes, size: int, crc: int) -> bool:
    """Tell whether `content` is not what was stored."""
    return len(content) != size or zlib.crc32(content) != crc


def _lease(batch: Transaction, mailbox: MailboxRef, row: _Row, content: bytes | None) -> Lease:
    return Lease(
        delivery=row.id,
        message=QueueId(row.message),
        fence=row.fence + 1,
        attempt=row.attempts + 1,
        mailbox=mailbox,
        sender=row.sender or "",
        recipients=moves.rest(tuple(json.loads(row.recipients)), json.loads(row.done or "{}")),
        header_from=row.header_from,
        set_from=row.set_from,
        reply_to_original=bool(row.reply_to_original),
        priority=row.priority,
        accepted_at=from_micros(row.accepted_at),
        expires_at=from_micros(row.expires_at),
        size_bytes=row.size_bytes,
        device=row.device,
        session=row.session,
        content=content,
        expires_boottime=batch.boot + moves.LEASE_S,
        maybe_sent=bool(row.maybe_sent),
    )


@frozen
class Renew(Operation[float | None]):
    """Push a lease's end back; None when it is no longer ours."""

    delivery: int
    fence: int

    def run(self, batch: Transaction) -> float | None:
        """Return the new end, CLOCK_BOOTTIME."""
        until = batch.boot + moves.LEASE_S
        changed = batch.run(
            "UPDATE delivery SET lease_until = ? WHERE id = ? AND fence = ? AND state = 3",
            until,
            self.delivery,
            self.fence,
        )
        return until if changed else None


@frozen
class Reclaim(Operation[int]):
    """Take back some leases of holders that are dead, and those that ran out; 0 when none is left.

    pid: only leases of (dead) processes that had it; None: of all.
    """

    pid: int | None

    def run(self, batch: Transaction) -> int:
        """Return how many were moved, at most _RECLAIMED_AT_ONCE."""
        holders = batch.rows(
            "SELECT json_group_array(json_array(h.id, h.name)) FROM holder AS h WHERE h.id IN"
            " (SELECT holder FROM delivery WHERE state = 3 GROUP BY holder)"
        )
        dead = [
            number
            for number, name in holders
            if self._may_take(str(name)) and not is_alive(str(name))
        ]
        ended = 0.0 if self.pid is not None else batch.boot
        rows = batch.rows(
            "SELECT json_group_array(json_array(id, fence, upstream, mailbox, wish, message)) FROM"
            " (SELECT * FROM delivery WHERE state = 3 AND"
            f" (holder IN ({marks(len(dead))}) OR lease_until < ?) LIMIT {_RECLAIMED_AT_ONCE})",
            *dead,
            ended,
        )
        for number, fence, upstream, mailbox, wish, message in rows:
            move = moves.reclaimed(
                wish=str(wish), policy=batch.policy.ambiguous.get(str(upstream), "retry")
            )
            _give_back(batch, int(number or 0), int(fence or 0), move)
            batch.effects.ready.append(MailboxRef(str(upstream), str(mailbox)))
            if move.drop_content:
                drop_content(batch, int(message or 0))
        return len(rows)

    def _may_take(self, name: str) -> bool:
        return self.pid is None or pid_of(name) == self.pid


def _give_back(batch: Transaction, delivery: int, fence: int, move: moves.Move) -> None:
    batch.run(
        "INSERT INTO attempt (delivery, serial, number, holder, transport, started_at,"
        " finished_at, outcome, text) SELECT id, fence + 1, attempts + 1, holder, '', leased_at, ?,"
        " 'ambiguous', 'ambiguous: the worker died while sending'"
        " FROM delivery WHERE id = ? AND fence = ? AND state = 3",
        batch.now,
        delivery,
        fence,
    )
    batch.run(
        "UPDATE delivery SET state = ?, held_by = ?, fence = fence + 1, attempts = attempts + 1,"
        " due = ?, maybe_sent = 1, wish = '', holder = NULL, leased_at = NULL, lease_until = NULL,"
        " settled_at = ?"
        " WHERE id = ? AND fence = ? AND state = 3",
        CODES[move.state],
        move.held_by,
        batch.now,
        batch.now if move.state in moves.FINAL else None,
        delivery,
        fence,
    )


@frozen
class MarkCorrupt(Operation[None]):
    """Hold a message that cannot be read, until somebody has looked."""

    message: QueueId
    why: str

    def run(self, batch: Transaction) -> None:
        """Move its live deliveries to HELD."""
        mark_corrupt(batch, self.message, self.why)


def mark_corrupt(batch: Transaction, message: int, why: str) -> None:
    """Move the live deliveries of `message` to HELD by "corrupt", whoever holds them."""
    where = f"id IN {SIBLINGS} AND state <= 3"
    ids = sibling_values(message)
    batch.run(
        "INSERT INTO attempt (delivery, serial, number, holder, transport, started_at,"
        " finished_at, outcome, code, text) SELECT id, fence + 1, attempts, holder, '', leased_at,"
        f" ?, 'held', 'corrupt', ? FROM delivery WHERE {where}",
        batch.now,
        why,
        *ids,
    )
    batch.run(
        "UPDATE delivery SET state = 2, held_by = 'corrupt', fence = fence + 1, wish = '',"
        f" holder = NULL, leased_at = NULL, lease_until = NULL WHERE {where}",
        *ids,
    )
    batch.effects.spoiled.append((QueueId(message), why))


def drop_content(batch: Transaction, message: int) -> None:
    """Forget content at once: an operator deleted the delivery. Others still need theirs."""
    alive = batch.scalar(
        f"SELECT 1 FROM delivery WHERE id IN {SIBLINGS} AND state <= 3 LIMIT 1",
        *sibling_values(message),
    )
    if alive is None:
        batch.run("DELETE FROM content WHERE id = ?", message)
        batch.effects.dropped.append(message)


@frozen
class ReadContent(Operation[tuple[int, int, bytes | None] | None]):
    """Look up content: (size, crc, octets or None: in the file); None: there is none."""

    message: QueueId
    writes = False

    def run(self, batch: Transaction) -> tuple[int, int, bytes | None] | None:
        """Return it."""
        row: tuple[int, int, bytes | None] | None = batch.connection.execute(
            "SELECT size, crc, octets FROM content WHERE id = ?", (self.message,)
        ).fetchone()
        return row
