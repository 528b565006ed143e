"""The tables of the SQLite spool, and the way from each version to the next.

message    who handed in what, and when; one row, kept as history
content    the octets (small) or the word that a file holds them (octets NULL); live mail only
delivery   one way out for some recipients: state, lease, fence, due, attempts
attempt    the journal: a row for each finished attempt and each move nobody asked for
hold       a (mailbox, From) that is refused for now
holder     names of processes that ever held a lease; meta: counters

A LEASED delivery row is the intent of its attempt: holder, leased_at and the fence stand in
it from the commit that leased it; settling moves them to `attempt` in one commit.

Every index but one is partial and leaves SENT rows out, so history costs lookups nothing.
A message's deliveries have its id plus 0..63; `delivery_beyond` finds those past 64.
`delivery_waiting` ends in id and state so that picking the best sorts nothing and counting
touches no row.

Source: sqlite.org/partialindex.html, sqlite.org/stricttables.html.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from typing import Final

from relayd.errors import ConfigError
from relayd.spool.model import State

CODES: Final[Mapping[State, int]] = {
    State.READY: 0,
    State.DEFERRED: 1,
    State.HELD: 2,
    State.LEASED: 3,
    State.SENT: 4,
    State.FAILED: 5,
}
"""How states are stored: waiting is <= 1, not yet taken by anybody <= 2, live <= 3."""

STATES: Final[Mapping[int, State]] = {code: state for state, code in CODES.items()}

_VERSION_1: Final = (
    """
    CREATE TABLE message (
      id INTEGER PRIMARY KEY,
      sender TEXT NOT NULL, priority INTEGER NOT NULL,
      accepted_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
      size_bytes INTEGER NOT NULL, body_sha256 TEXT NOT NULL,
      message_id TEXT NOT NULL, subject TEXT NOT NULL,
      session TEXT NOT NULL, listener TEXT NOT NULL, ip TEXT NOT NULL, helo TEXT NOT NULL,
      device TEXT NOT NULL, user TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE content (
      id INTEGER PRIMARY KEY,  -- the message's
      size INTEGER NOT NULL, crc INTEGER NOT NULL,  -- zlib.crc32 of all octets as stored
      octets BLOB  -- NULL: in the file of that name
    ) STRICT
    """,
    """
    CREATE TABLE delivery (
      id INTEGER PRIMARY KEY,
      message INTEGER NOT NULL,
      upstream TEXT NOT NULL, mailbox TEXT NOT NULL,
      header_from TEXT NOT NULL, set_from TEXT NOT NULL, reply_to_original INTEGER NOT NULL,
      recipients TEXT NOT NULL,  -- JSON array
      done TEXT,  -- JSON object {recipient: "" sent, else why it failed}
      priority INTEGER NOT NULL, expires_at INTEGER NOT NULL,
      state INTEGER NOT NULL, fence INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
      due INTEGER NOT NULL,
      held_by TEXT NOT NULL DEFAULT '',
      wish TEXT NOT NULL DEFAULT '',  -- an operator's, while leased: '', 'hold', 'delete'
      maybe_sent INTEGER NOT NULL DEFAULT 0,
      holder INTEGER, leased_at INTEGER, lease_until REAL,  -- CLOCK_BOOTTIME; while LEASED
      settled_at INTEGER  -- while SENT or FAILED
    ) STRICT
    """,
    """
    CREATE INDEX delivery_waiting ON delivery (upstream, mailbox, priority, due, id, state)
      WHERE state <= 1
    """,
    "CREATE INDEX delivery_expiring ON delivery (expires_at) WHERE state <= 2",
    """
    CREATE INDEX delivery_held ON delivery (upstream, mailbox, header_from, held_by)
      WHERE state = 2
    """,
    "CREATE INDEX delivery_leased ON delivery (holder) WHERE state = 3",
    "CREATE INDEX delivery_failed ON delivery (settled_at) WHERE state = 5",
    "CREATE INDEX delivery_beyond ON delivery (message) WHERE message <> (id & -64)",
    """
    CREATE TABLE attempt (
      delivery INTEGER NOT NULL, serial INTEGER NOT NULL,  -- serial: the fence it ended
      number INTEGER NOT NULL, holder INTEGER, transport TEXT NOT NULL,
      started_at INTEGER, finished_at INTEGER NOT NULL,
      outcome TEXT NOT NULL, http_status INTEGER NOT NULL DEFAULT 0,
      code TEXT NOT NULL DEFAULT '', request_id TEXT NOT NULL DEFAULT '',
      text TEXT NOT NULL DEFAULT '',
      PRIMARY KEY (delivery, serial)
    ) WITHOUT ROWID, STRICT
    """,
    """
    CREATE TABLE hold (
      upstream TEXT NOT NULL, mailbox TEXT NOT NULL, header_from TEXT NOT NULL,
      cause TEXT NOT NULL, text TEXT NOT NULL,
      since INTEGER NOT NULL, probe_at INTEGER NOT NULL,
      releasing INTEGER NOT NULL DEFAULT 0,  -- lifted; its rows are being set free
      PRIMARY KEY (upstream, mailbox, header_from, cause)
    ) WITHOUT ROWID, STRICT
    """,
    "CREATE TABLE holder (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID, STRICT",
    "INSERT INTO meta VALUES ('holds', 0), ('probe', 0)",
)

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (_VERSION_1,)
"""MIGRATIONS[n] leads from version n to n + 1. Only additions: the release before must still
be able to work on the new schema (a column with a default, a table, an index)."""

VERSION: Final = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the open database to VERSION in one transaction.

    Call it under the turnstile, with isolation_level None.
    raises: ConfigError - the database is from a newer relayd.
    """
    if _version(connection) == VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = _version(connection)
        if found > VERSION:
            raise ConfigError(
                [
                    (
                        f"[spool] url: the spool has schema version {found}, this relayd knows up "
                        f"to {VERSION}; install the newer relayd again, or name another file"
                    )
                ]
            )
        for step in MIGRATIONS[found:]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)
