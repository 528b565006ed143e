"""Looking after the spool: what waits, what is too old, what may be forgotten.

Everything goes in parts of a few hundred rows, each a batch of its own, so that upkeep never
keeps mail waiting; an operation returns None or an empty result when nothing is left.
"""

from __future__ import annotations

from typing import Final

from relayd.clock import from_micros
from relayd.spool import moves
from relayd.spool.model import PRIORITIES, MailboxRef, QueueId, recipients_in
from relayd.spool.store import Expired, Work
from relayd.spool.transaction import (
    SIBLINGS,
    Operation,
    Transaction,
    marks,
    nothing_left,
    sibling_values,
)
from relayd.values import frozen

_PART: Final = 500
_LOOKED_AT: Final = 4000
_BUILT_AT: Final = 1_767_225_600_000_000
"""2026-01-01 in microseconds: a clock that shows less is wrong."""

BOXES: Final = """
    WITH RECURSIVE box (upstream, mailbox) AS (
      SELECT * FROM (SELECT upstream, mailbox FROM delivery WHERE state <= 1
        ORDER BY upstream, mailbox LIMIT 1)
      UNION ALL
      SELECT d.upstream, d.mailbox FROM box CROSS JOIN delivery AS d
      WHERE d.id = coalesce(
        (SELECT n.id FROM delivery AS n WHERE n.state <= 1 AND n.upstream = box.upstream
          AND n.mailbox > box.mailbox ORDER BY n.mailbox LIMIT 1),
        (SELECT n.id FROM delivery AS n WHERE n.state <= 1 AND n.upstream > box.upstream
          ORDER BY n.upstream, n.mailbox LIMIT 1))
    )
    """
"""The mailboxes with waiting rows, one index seek for each: never a scan of the rows."""

_FIRST: Final = (
    "(SELECT min(due) FROM delivery AS d WHERE d.state <= 1 AND d.upstream = box.upstream"
    " AND d.mailbox = box.mailbox AND d.priority = {priority})"
)
_LATER: Final = _FIRST.replace("= {priority})", "= {priority} AND d.due > ?)")
_LAST: Final = _FIRST.replace("min(due)", "max(due)")
_RANKS: Final = tuple(sorted(PRIORITIES.values()))


def _columns(template: str) -> str:
    return ", ".join(template.format(priority=rank) for rank in _RANKS)


@frozen
class ReadWork(Operation[Work]):
    """Find which mailboxes have work, and when the next comes due."""

    writes = False

    def run(self, batch: Transaction) -> Work:
        """Return it; O(mailboxes), whatever waits."""
        rows = batch.rows(
            f"{BOXES} SELECT json_group_array(json_array(upstream, mailbox,"
            f" {_columns(_FIRST)}, {_columns(_LATER)})) FROM box",
            *[batch.now] * len(_RANKS),
        )
        best: dict[MailboxRef, tuple[int, int]] = {}
        later: list[int] = []
        for upstream, mailbox, *moments in rows:
            first, after = moments[: len(_RANKS)], moments[len(_RANKS) :]
            later += [int(one) for one in after if one is not None]
            ready = [
                (rank, int(due))
                for rank, due in zip(_RANKS, first, strict=True)
                if due is not None and int(due) <= batch.now
            ]
            if ready:
                best[MailboxRef(str(upstream), str(mailbox))] = ready[0]
        for mailbox_ref, probe_at in _probes(batch):
            if probe_at > batch.now:
                later.append(probe_at)
            else:
                best.setdefault(mailbox_ref, (_RANKS[-1] + 1, probe_at))
        return Work(
            mailboxes=tuple(sorted(best, key=lambda one: (*best[one], one))),
            next_due_at=from_micros(min(later)) if later else None,
        )


def _probes(batch: Transaction) -> list[tuple[MailboxRef, int]]:
    rows = batch.rows(
        "SELECT json_group_array(json_array(upstream, mailbox, probe_at))"
        " FROM hold WHERE releasing = 0"
    )
    return [(MailboxRef(str(up), str(box)), int(at or 0)) for up, box, at in rows]


@frozen
class Expire(Operation[tuple[Expired, ...]]):
    """Give up what was not delivered in its time; () when none is left."""

    def run(self, batch: Transaction) -> tuple[Expired, ...]:
        """Return what moved to FAILED, for the log and the reports."""
        rows = batch.rows(
            "SELECT json_group_array(json_array(d.id, d.message, d.upstream, d.mailbox, d.held_by,"
            " d.attempts, d.recipients, m.sender, m.device, m.session, m.accepted_at))"
            " FROM delivery AS d JOIN message AS m ON m.id = d.message WHERE d.id IN"
            f" (SELECT id FROM delivery WHERE state <= 2 AND expires_at < ?"
            f"  AND held_by NOT IN ({marks(len(moves.STICKY))}) LIMIT {_PART})",
            batch.now,
            *moves.STICKY,
        )
        # Accepted under a clock that was plainly wrong: its time begins when that is known.
        early = [int(row[0] or 0) for row in rows if int(row[10] or 0) < _BUILT_AT]
        _grant_time(batch, early)
        gone = [row for row in rows if int(row[0] or 0) not in set(early)]
        _give_up(batch, [int(row[0] or 0) for row in gone])
        return tuple(
            Expired(
                delivery=int(row[0] or 0),
                message=QueueId(int(row[1] or 0)),
                mailbox=MailboxRef(str(row[2]), str(row[3])),
                held_by=str(row[4]),
                attempts=int(row[5] or 0),
                recipients=recipients_in(str(row[6])),
                sender=str(row[7]),
                device=str(row[8]),
                session=str(row[9]),
                accepted_at=from_micros(int(row[10] or 0)),
            )
            for row in gone
        )


def _grant_time(batch: Transaction, deliveries: list[int]) -> None:
    ids = marks(len(deliveries))
    batch.run(
        "UPDATE delivery SET expires_at = ? + expires_at - (SELECT accepted_at FROM message"
        f" WHERE message.id = delivery.message) WHERE id IN ({ids})",
        batch.now,
        *deliveries,
    )
    batch.run(
        "UPDATE message SET accepted_at = ? WHERE id IN"
        f" (SELECT message FROM delivery WHERE id IN ({ids}))",
        batch.now,
        *deliveries,
    )


def _give_up(batch: Transaction, deliveries: list[int]) -> None:
    ids = marks(len(deliveries))
    batch.run(
        "INSERT INTO attempt (delivery, serial, number, transport, finished_at, outcome, code,"
        " text) SELECT id, fence + 1, attempts, '', ?, 'failed', 'expired',"
        f" 'not delivered within its time' FROM delivery WHERE id IN ({ids})",
        batch.now,
        *deliveries,
    )
    batch.run(
        "UPDATE delivery SET state = 5, held_by = '', fence = fence + 1, settled_at = ?"
        f" WHERE id IN ({ids})",
        batch.now,
        *deliveries,
    )


@frozen
class ForgetContent(Operation[int | None]):
    """Drop content of some old messages that are over: FAILED after keep_failed, SENT after
    keep_sent. returns: the id to go on from, None: all were looked at.
    """

    after: int

    def run(self, batch: Transaction) -> int | None:
        """Do one part."""
        policy = batch.policy
        shortest = min(policy.keep_failed, policy.keep_sent or policy.keep_failed)
        old = _older(batch, "content", self.after, batch.now - shortest)
        for message in old:
            if _is_over(batch, message):
                batch.run("DELETE FROM content WHERE id = ?", message)
                batch.effects.dropped.append(message)
        return old[-1] if len(old) == _PART else None


@frozen
class ForgetSent(Operation[int | None]):
    """Drop content of some messages that are sent to the last recipient, however young.

    For once, where none is kept: keep_sent_content may have said otherwise until now, and what
    it kept is more than ForgetContent looks for. returns: as there.
    """

    after: int

    def run(self, batch: Transaction) -> int | None:
        """Do one part."""
        if batch.policy.keep_sent:
            return None
        part = batch.rows(
            "SELECT json_group_array(json_array(id, over)) FROM (SELECT id,"
            f" {nothing_left('content.id')} AS over FROM content WHERE id > ? ORDER BY id"
            f" LIMIT {_LOOKED_AT})",
            self.after,
        )
        sent = [int(number or 0) for number, is_over in part if is_over]
        batch.bulk(
            "DELETE FROM content WHERE id IN (SELECT column1 FROM ({values}))",
            [(one,) for one in sent],
        )
        batch.effects.dropped += sent
        return int(part[-1][0] or 0) if len(part) == _LOOKED_AT else None


@frozen
class ForgetHistory(Operation[int | None]):
    """Drop the rows of some messages that are over, have no content and are past `history`.

    returns: the id to go on from, None: all were looked at.
    """

    after: int

    def run(self, batch: Transaction) -> int | None:
        """Do one part."""
        old = _older(batch, "message", self.after, batch.now - batch.policy.history)
        ended = batch.rows(
            "SELECT json_group_array(json_array(id)) FROM message AS m"
            f" WHERE id IN ({marks(len(old))})"
            " AND NOT EXISTS (SELECT 1 FROM content WHERE content.id = m.id)"
            f" AND {nothing_left('m.id', 'd.state <= 3')}",
            *old,
        )
        for (message,) in ended:
            ids = sibling_values(int(message or 0))
            batch.run(f"DELETE FROM attempt WHERE delivery IN {SIBLINGS}", *ids)
            batch.run(f"DELETE FROM delivery WHERE id IN {SIBLINGS}", *ids)
            batch.run("DELETE FROM message WHERE id = ?", message)
        return old[-1] if len(old) == _PART else None


def _older(batch: Transaction, table: str, after: int, until: int) -> list[int]:
    """Return ids of a part of `table`, made before `until` (microseconds)."""
    rows = batch.rows(
        f"SELECT json_group_array(json_array(id)) FROM (SELECT id FROM {table}"
        f" WHERE id > ? AND id < ? ORDER BY id LIMIT {_PART})",
        after,
        max(until, 0) << 12,
    )
    return [int(row[0] or 0) for row in rows]


def _is_over(batch: Transaction, message: int) -> bool:
    rows = batch.rows(
        "SELECT json_group_array(json_array(state, settled_at)) FROM delivery"
        f" WHERE id IN {SIBLINGS}",
        *sibling_values(message),
    )
    keep = {4: batch.policy.keep_sent, 5: batch.policy.keep_failed, 6: 0}
    return all(
        state in keep and int(settled_at or 0) + keep[int(state)] <= batch.now
        for state, settled_at in rows
        if state is not None
    )


@frozen
class Clamp(Operation[int]):
    """Bring back moments that a jumping clock put far ahead; O(mailboxes) if there are none.

    back: how far the clock was set back since the last time, microseconds; what waits does not
          wait so much longer. Each worker sees it for itself, so some is due sooner than it was.
    """

    back: int = 0

    def run(self, batch: Transaction) -> int:
        """Return how many rows and Holds it brought back, to one retry step from now."""
        limit, step = batch.now + batch.policy.due_limit, batch.now + batch.policy.max_step
        rows = batch.rows(
            f"{BOXES} SELECT json_group_array(json_array(upstream, mailbox, {_columns(_LAST)}))"
            " FROM box"
        )
        changed = batch.run("UPDATE hold SET probe_at = ? WHERE probe_at > ?", step, limit)
        for upstream, mailbox, *lasts in rows:
            for rank, last in zip(_RANKS, lasts, strict=True):
                if self.back:
                    changed += batch.run(
                        "UPDATE delivery SET due = max(?, due - ?) WHERE state <= 1"
                        " AND upstream = ? AND mailbox = ? AND priority = ? AND due > ?",
                        batch.now,
                        self.back,
                        upstream,
                        mailbox,
                        rank,
                        batch.now,
                    )
                if last is not None and int(last) > limit:
                    changed += batch.run(
                        "UPDATE delivery SET due = ? WHERE state <= 1 AND upstream = ?"
                        " AND mailbox = ? AND priority = ? AND due > ?",
                        step,
                        upstream,
                        mailbox,
                        rank,
                        limit,
                    )
        return changed


@frozen
class KnownFiles(Operation[frozenset[int]]):
    """Tell which of these messages have content, so that the other files are orphans."""

    messages: tuple[int, ...]
    writes = False

    def run(self, batch: Transaction) -> frozenset[int]:
        """Return those that have."""
        rows = batch.rows(
            "SELECT json_group_array(json_array(id)) FROM content"
            f" WHERE id IN ({marks(len(self.messages))})",
            *self.messages,
        )
        return frozenset(int(row[0] or 0) for row in rows)
