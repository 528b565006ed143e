"""Looking at the queue: lists, one message's story, counts; for operators, never for delivery.

A connection of its own, in a thread of its own, that only reads. Lists go by pages of ids,
and no read transaction outlives its page: a long one would pin the log, which then grows
until the disk is full.

The command line may use `Reader` on the spool of a daemon that is not running.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal
from urllib.parse import quote

from relayd.clock import Clock, from_micros, micros
from relayd.errors import SpoolUnavailable
from relayd.spool.ids import accepted_micros
from relayd.spool.model import LAST_ID, PRIORITIES, QueueId, State, done_in, recipients_in
from relayd.spool.schema import CODES, STATES, text_of
from relayd.spool.transaction import SIBLINGS, Value, json_rows, marks, sibling_values
from relayd.values import frozen

PAGE: Final = 200
_SCANNED_AT_ONCE: Final = 5000
_NAMES: Final = {rank: name for name, rank in PRIORITIES.items()}


@frozen(kw_only=True)
class Filter:
    """Which deliveries; what is empty or None does not matter. Texts match anywhere, any case."""

    states: tuple[State, ...] = ()
    sender: str = ""
    recipient: str = ""
    device: str = ""
    upstream: str = ""
    message_id: str = ""
    since: datetime | None = None


@frozen(kw_only=True)
class Listed:
    """One delivery in a list. due_at: when it is tried next, for READY and DEFERRED."""

    id: QueueId
    delivery: int
    state: State
    sender: str
    recipients: tuple[str, ...]
    device: str
    user: str
    upstream: str
    mailbox: str
    priority: int
    size_bytes: int
    accepted_at: datetime
    expires_at: datetime
    due_at: datetime | None
    held_by: str
    attempts: int
    maybe_sent: bool
    done: Mapping[str, str]


@frozen(kw_only=True)
class Tried:
    """One row of the journal. finished_at: None while the attempt is under way."""

    delivery: int
    number: int
    holder: str
    transport: str
    started_at: datetime | None
    finished_at: datetime | None
    outcome: str
    http_status: int
    code: str
    request_id: str
    text: str


@frozen(kw_only=True)
class Story:
    """All that is known of one message. journal: oldest first."""

    id: QueueId
    message_id: str
    subject: str
    session: str
    listener: str
    ip: str
    helo: str
    body_sha256: str
    has_content: bool
    deliveries: tuple[Listed, ...]
    journal: tuple[Tried, ...]


@frozen
class Standing:
    """Where one message stands, as far as it matters for what may be done about it.

    ways: state and upstream of each delivery.
    """

    has_content: bool
    ways: tuple[tuple[State, str], ...]


@frozen(kw_only=True)
class Counts:
    """What is in the queue now; SENT and DELETED are history, not counted.

    by_state:   (state, upstream) -> deliveries.
    oldest:     (upstream, "high" | "normal" | "low") -> when the oldest waiting was accepted.
    """

    by_state: Mapping[tuple[State, str], int]
    oldest: Mapping[tuple[str, str], datetime]


_LISTED: Final = """
    json_array(d.id, d.message, d.state, m.sender, d.recipients, m.device, m.user, d.upstream,
      d.mailbox, d.priority, m.size_bytes, m.accepted_at, d.expires_at, d.due, d.held_by,
      d.attempts, d.maybe_sent, d.done)
    """


class Reader:
    """A connection that reads. Any method raises SpoolUnavailable; none may be called twice at
    once.

    mode: "ro" where it may be the only connection: closing it then moves nothing from the log.
    """

    def __init__(self, path: str, clock: Clock, *, mode: Literal["rw", "ro"] = "rw") -> None:
        self._clock = clock
        try:
            self._connection = sqlite3.connect(
                f"file:{quote(path)}?mode={mode}",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.text_factory = text_of
            self._connection.execute("PRAGMA query_only = ON")
            self._connection.execute("PRAGMA wal_autocheckpoint = 0")
            self._connection.execute("PRAGMA busy_timeout = 1000")
        except sqlite3.Error as error:
            raise SpoolUnavailable(f"{path}: {error}") from error
        self._counts: Counts | None = None
        self._counts_until = float("-inf")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def page(
        self, wanted: Filter, *, after: int = 0, limit: int = PAGE
    ) -> tuple[list[Listed], int]:
        """Return some deliveries, oldest first, and what to pass as `after` for the next page.

        after: 0 for the first page; 0 comes back when there are no more. A page may be short
               or empty and yet not be the last: each looks at a bounded number of rows.
        """
        terms, values = _where(wanted)
        start = max(after, 0 if wanted.since is None else (micros(wanted.since) << 12) - 1)
        end = self._one(
            "SELECT id FROM delivery WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?",
            start,
            _SCANNED_AT_ONCE,
        )
        rows = self._rows(
            f"SELECT json_group_array(json(row)) FROM (SELECT {_LISTED} AS row FROM delivery AS d"
            " JOIN message AS m ON m.id = d.message"
            f" WHERE d.id > ? AND d.id <= ? AND {terms} ORDER BY d.id LIMIT ?)",
            start,
            LAST_ID if end is None else end,
            *values,
            limit,
        )
        listed = [_listed(row) for row in rows]
        if len(listed) == limit:
            return listed, listed[-1].delivery
        return listed, int(end or 0)

    def show(self, message: QueueId) -> Story | None:
        """Return all that is known of a message; None if nothing is."""
        if message > LAST_ID:
            return None
        head = self._rows(
            "SELECT json_group_array(json_array(message_id, subject, session, listener, ip, helo,"
            " body_sha256, EXISTS (SELECT 1 FROM content WHERE content.id = message.id)))"
            " FROM message WHERE id = ?",
            message,
        )
        if not head:
            return None
        ids = sibling_values(message)
        rows = self._rows(
            f"SELECT json_group_array({_LISTED}) FROM delivery AS d"
            f" JOIN message AS m ON m.id = d.message WHERE d.id IN {SIBLINGS}",
            *ids,
        )
        tried = self._rows(
            "SELECT json_group_array(json_array(a.delivery, a.number, h.name, a.transport,"
            " a.started_at, a.finished_at, a.outcome, a.http_status, a.code, a.request_id, a.text))"
            " FROM attempt AS a LEFT JOIN holder AS h ON h.id = a.holder"
            f" WHERE a.delivery IN {SIBLINGS}",
            *ids,
        )
        under_way = self._rows(
            "SELECT json_group_array(json_array(d.id, d.attempts + 1, h.name, '', d.leased_at,"
            " NULL, 'sending', 0, '', '', '')) FROM delivery AS d"
            " LEFT JOIN holder AS h ON h.id = d.holder"
            f" WHERE d.id IN {SIBLINGS} AND d.state = 3",
            *ids,
        )
        journal = [_tried(row) for row in (*tried, *under_way)]
        first = [str(value) for value in head[0][:7]]
        return Story(
            id=message,
            message_id=first[0],
            subject=first[1],
            session=first[2],
            listener=first[3],
            ip=first[4],
            helo=first[5],
            body_sha256=first[6],
            has_content=bool(head[0][7]),
            deliveries=tuple(sorted(map(_listed, rows), key=lambda one: one.delivery)),
            journal=tuple(sorted(journal, key=_moment)),
        )

    def standings(self, messages: Sequence[QueueId]) -> dict[QueueId, Standing]:
        """Return where these messages stand; those that nobody knows are left out."""
        found = {one: self._standing(one) for one in messages if one <= LAST_ID}
        return {one: standing for one, standing in found.items() if standing.ways}

    def _standing(self, message: QueueId) -> Standing:
        rows = self._rows(
            "SELECT json_group_array(json_array(d.state, d.upstream,"
            " EXISTS (SELECT 1 FROM content WHERE content.id = m.id)))"
            " FROM message AS m JOIN delivery AS d ON d.id IN"
            f" {SIBLINGS} WHERE m.id = ?",
            *sibling_values(message),
            message,
        )
        return Standing(
            has_content=any(row[2] for row in rows),
            ways=tuple((STATES.get(int(row[0] or 0), State.HELD), str(row[1])) for row in rows),
        )

    def trace(self, message: QueueId) -> tuple[Tried, ...]:
        """Return a message's journal, oldest first; () if nothing is known of it."""
        story = self.show(message)
        return () if story is None else story.journal

    def counts(self) -> Counts:
        """Return what is in the queue; looked at again only after fifty times what it cost.

        A million waiting rows take about a tenth of a second to count, off the hub.
        """
        began = self._clock.monotonic()
        if self._counts is not None and began < self._counts_until:
            return self._counts
        now = micros(self._clock.utcnow())
        by_state: dict[tuple[State, str], int] = {}
        oldest: dict[tuple[str, str], int] = {}
        for state, upstream, rank, count, first in self._rows(_COUNTS, now, now):
            key = (STATES[int(state or 0)], str(upstream))
            by_state[key] = by_state.get(key, 0) + int(count or 0)
            if int(state or 0) <= CODES[State.DEFERRED] and first is not None:
                name = (str(upstream), _NAMES.get(int(rank or 0), "normal"))
                oldest[name] = min(oldest.get(name, LAST_ID), int(first))
        self._counts = Counts(
            by_state=by_state,
            oldest={key: from_micros(accepted_micros(first)) for key, first in oldest.items()},
        )
        ended = self._clock.monotonic()
        self._counts_until = ended + max(1.0, 50 * (ended - began))
        return self._counts

    def _rows(self, sql: str, *values: Value) -> list[list[Value]]:
        try:
            return json_rows(self._connection, sql, *values)
        except sqlite3.Error as error:
            raise SpoolUnavailable(f"the spool cannot be read: {error}") from error

    def _one(self, sql: str, *values: Value) -> Value:
        try:
            row = self._connection.execute(sql, values).fetchone()
        except sqlite3.Error as error:
            raise SpoolUnavailable(f"the spool cannot be read: {error}") from error
        return None if row is None else row[0]


# What is waiting and due later is DEFERRED; the index need not hold the state for that.
_COUNTS: Final = """
    SELECT json_group_array(json_array(state, upstream, priority, count, first)) FROM (
      SELECT due > ? AS state, upstream, priority, count(*) AS count, min(id) AS first
        FROM delivery INDEXED BY delivery_waiting WHERE state <= 1
        GROUP BY upstream, priority, due > ?
      UNION ALL SELECT 2, upstream, 1, count(*), NULL
        FROM delivery INDEXED BY delivery_held WHERE state = 2 GROUP BY upstream
      UNION ALL SELECT 3, upstream, 1, count(*), NULL
        FROM delivery INDEXED BY delivery_leased WHERE state = 3 GROUP BY upstream
      UNION ALL SELECT 5, upstream, 1, count(*), NULL
        FROM delivery INDEXED BY delivery_failed WHERE state = 5 GROUP BY upstream)
    """


def _where(wanted: Filter) -> tuple[str, list[Value]]:
    terms = ["1"]
    values: list[Value] = []
    if wanted.states:
        terms.append(f"d.state IN ({marks(len(wanted.states))})")
        values += [CODES[state] for state in wanted.states]
    for column, text in (("d.upstream", wanted.upstream), ("m.device", wanted.device)):
        if text:
            terms.append(f"{column} = ?")
            values.append(text)
    for column, text in (
        ("m.sender", wanted.sender),
        ("d.recipients", wanted.recipient),
        ("m.message_id", wanted.message_id),
    ):
        if text:
            terms.append(f"instr(lower({column}), ?) > 0")
            values.append(text.lower())
    return " AND ".join(terms), values


def _moment_of(value: Value) -> datetime | None:
    return None if value is None else from_micros(int(value))


def _listed(row: Sequence[Value]) -> Listed:
    # A damaged state is no reason to hide the message, nor all others with it.
    state = STATES.get(int(row[2] or 0), State.HELD)
    waits = state in {State.READY, State.DEFERRED}
    return Listed(
        delivery=int(row[0] or 0),
        id=QueueId(int(row[1] or 0)),
        state=state,
        sender=str(row[3]),
        recipients=recipients_in(str(row[4])),
        device=str(row[5]),
        user=str(row[6]),
        upstream=str(row[7]),
        mailbox=str(row[8]),
        priority=int(row[9] or 0),
        size_bytes=int(row[10] or 0),
        accepted_at=from_micros(int(row[11] or 0)),
        expires_at=from_micros(int(row[12] or 0)),
        due_at=_moment_of(row[13]) if waits else None,
        held_by=str(row[14]),
        attempts=int(row[15] or 0),
        maybe_sent=bool(row[16]),
        done=done_in(str(row[17] or "")),
    )


def _tried(row: Sequence[Value]) -> Tried:
    return Tried(
        delivery=int(row[0] or 0),
        number=int(row[1] or 0),
        holder=str(row[2] or ""),
        transport=str(row[3]),
        started_at=_moment_of(row[4]),
        finished_at=_moment_of(row[5]),
        outcome=str(row[6]),
        http_status=int(row[7] or 0),
        code=str(row[8]),
        request_id=str(row[9]),
        text=str(row[10]),
    )


def _moment(one: Tried) -> float:
    at = one.started_at or one.finished_at
    return at.timestamp() if at is not None else 0.0
