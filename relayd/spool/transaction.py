"""What one batch of operations works with inside its transaction, and what it leaves to do.

An Operation is a value that a greenlet queues; `run` is called in the spool's native thread,
inside BEGIN IMMEDIATE, and may call only SQLite and pure code: no log, no import, no gevent.
Files are touched after the commit, from the lists in `Effects`.

Each row a statement returns hands the GIL over once, which costs up to a switch interval
beside a busy hub: so one statement for many rows (`values`), and rows come back as one JSON
text wherever there may be more than one.
"""

from __future__ import annotations

import functools
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import ClassVar, Final, Generic, TypeAlias, TypeVar

from relayd.clock import from_micros
from relayd.spool.ids import DELIVERIES
from relayd.spool.model import MailboxRef, QueueId
from relayd.spool.store import Hold
from relayd.values import frozen

T_co = TypeVar("T_co", covariant=True)
Value: TypeAlias = str | int | float | bytes | None
Pair: TypeAlias = tuple[str, str, str]  # upstream, mailbox, header From: what a Hold is for

_SIZES: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
_LARGEST: Final = _SIZES[-1]


class Operation(Generic[T_co]):
    """One thing to do to the spool.

    writes:   False: may run outside a write transaction.
    may_wait: nobody is kept waiting by it; a few go along with the next that may not.
    """

    __slots__ = ()
    writes: ClassVar[bool] = True
    may_wait: ClassVar[bool] = False

    def run(self, batch: Transaction) -> T_co:
        """Do it; the outcome is the return value. Raises only sqlite3.Error."""
        raise NotImplementedError


@frozen(kw_only=True)
class Policy:
    """What the spool was told of keeping and trying. All times in microseconds.

    ambiguous: upstream -> "retry", "hold", "verify"; "retry" where none is named.
    due_limit: a due moment further ahead than this comes of a clock that jumped.
    """

    keep_sent: int
    keep_failed: int
    history: int
    max_step: int
    due_limit: int
    ambiguous: Mapping[str, str]


@dataclass(slots=True)
class Effects:
    """What a batch leaves to be done once it is committed.

    dropped: messages whose content may lie in a file that is now to be unlinked.
    spoiled: (message, why) found unreadable: file to be moved aside, operator to be told.
    ready:   mailboxes that have work they had not before.
    holds_touched: the Holds are not what they were.
    pages:   pages written, roughly; tells when to checkpoint.
    """

    dropped: list[int] = field(default_factory=list)
    spoiled: list[tuple[QueueId, str]] = field(default_factory=list)
    ready: list[MailboxRef] = field(default_factory=list)
    holds_touched: bool = False
    pages: int = 0


@dataclass(slots=True)
class Transaction:
    """The open transaction.

    now:    wall clock, microseconds. boot: CLOCK_BOOTTIME, seconds.
    holder: this process's row in `holder`.
    holds:  the Holds in force, (upstream, mailbox, From) -> cause; `touch_holds` after a change.
    """

    connection: sqlite3.Connection
    policy: Policy
    now: int
    boot: float
    holder: int
    holds: Mapping[Pair, str]
    effects: Effects = field(default_factory=Effects)

    def run(self, sql: str, *values: Value) -> int:
        """Execute one statement; return how many rows it changed."""
        return self.connection.execute(sql, values).rowcount

    def scalar(self, sql: str, *values: Value) -> Value:
        """Return the first column of the first row; None if there is no row."""
        row = self.connection.execute(sql, values).fetchone()
        return None if row is None else row[0]

    def rows(self, sql: str, *values: Value) -> list[list[Value]]:
        """Return rows from a statement that gives one JSON array of arrays."""
        return json_rows(self.connection, sql, *values)

    def bulk(self, sql: str, rows: Sequence[Sequence[Value]]) -> int:
        """Execute `sql`, its `{values}` replaced, once for all rows; return rows changed.

        The statement must ignore rows whose column1 is NULL: those are padding.
        """
        changed = 0
        for start in range(0, len(rows), _LARGEST):
            part = rows[start : start + _LARGEST]
            width = len(part[0])
            size = next(size for size in _SIZES if size >= len(part))
            flat = list(chain.from_iterable(part))
            flat += (None,) * (width * (size - len(part)))
            changed += self.connection.execute(_expanded(sql, width, size), flat).rowcount
        return changed

    def touch_holds(self) -> None:
        """Tell all workers that the Holds changed, and go on with those there are now.

        What follows in the same transaction must not hold mail by a Hold that is gone: nothing
        would ever set it free.
        """
        self.effects.holds_touched = True
        self.holds = causes(read_holds(self.connection))
        self.run("UPDATE meta SET value = value + 1 WHERE name = 'holds'")


@functools.cache
def _expanded(sql: str, width: int, size: int) -> str:
    row = "(" + ",".join("?" * width) + ")"
    return sql.replace("{values}", "VALUES " + ",".join([row] * size))


def json_rows(connection: sqlite3.Connection, sql: str, *values: Value) -> list[list[Value]]:
    """Return the rows of a statement that gives one JSON array of arrays, or nothing."""
    row = connection.execute(sql, values).fetchone()
    return json.loads(row[0]) if row is not None and row[0] is not None else []


def causes(holds: Sequence[Hold]) -> dict[Pair, str]:
    """Return what holds each (upstream, mailbox, From); the first cause where there are more."""
    return {(*one.mailbox, one.header_from): one.cause for one in reversed(holds)}


def read_holds(connection: sqlite3.Connection) -> tuple[Hold, ...]:
    """Return the Holds in force."""
    rows = json_rows(
        connection,
        "SELECT json_group_array(json_array(upstream, mailbox, header_from, cause, text, since,"
        " probe_at)) FROM hold WHERE releasing = 0",
    )
    return tuple(
        Hold(
            mailbox=MailboxRef(str(row[0]), str(row[1])),
            header_from=str(row[2]),
            cause=str(row[3]),
            text=str(row[4]),
            since=from_micros(int(row[5] or 0)),
            probe_at=from_micros(int(row[6] or 0)),
        )
        for row in rows
    )


def marks(count: int) -> str:
    """Return "?,?,?" for an IN list."""
    return ",".join("?" * count)


SIBLINGS: Final = (
    "(SELECT id FROM delivery WHERE id BETWEEN ? AND ?"
    " UNION ALL SELECT id FROM delivery WHERE message <> (id & -64) AND message = ?)"
)
"""The deliveries of a message, as a subquery; its values come from `sibling_values`."""


def sibling_values(message: int) -> tuple[int, int, int]:
    """Return the values for SIBLINGS."""
    return message, message + DELIVERIES - 1, message


def nothing_left(message: str, live: str = "d.state <> 4") -> str:
    """Return SQL that is true once no delivery `d` of `message` (an expression) is `live`."""
    return (
        f"NOT EXISTS (SELECT 1 FROM delivery AS d WHERE d.id BETWEEN {message}"
        f" AND {message} + {DELIVERIES - 1} AND {live}) AND NOT EXISTS (SELECT 1 FROM delivery AS d"
        f" WHERE d.message <> (d.id & -64) AND d.message = {message} AND {live})"
    )
