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
import re
import sqlite3
from collections.abc import Mapping
from typing import Final

from relayd import __version__
from relayd.errors import ConfigError
from relayd.spool import backup
from relayd.spool.model import State

CODES: Final[Mapping[State, int]] = {
    State.READY: 0,
    State.DEFERRED: 1,
    State.HELD: 2,
    State.LEASED: 3,
    State.SENT: 4,
    State.FAILED: 5,
    State.DELETED: 6,
}
"""How states are stored: waiting is <= 1, not yet taken by anybody <= 2, live <= 3."""


def text_of(octets: bytes) -> str:
    """Return stored text; for a connection's `text_factory`.

    A damaged one is shown with marks: SQLite's own way is an error, and then one row whose
    octets have changed on the disk stops all that is read with it.
    """
    return octets.decode("utf-8", "replace")


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
      settled_at INTEGER  -- while SENT, FAILED or DELETED
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
"""MIGRATIONS[n] leads from version n to n + 1. Only additions (`is_additive`): while an upgrade
goes on, workers of the release before work on the new schema. What must go goes one release
later, when nobody uses it any more, and that upgrade is a restart."""

_ADDITIVE: Final = re.compile(
    r"""\s*( CREATE \s TABLE \s
         | CREATE \s INDEX \s
         | ALTER \s TABLE \s \w+ \s ADD \s COLUMN \s (?! .* \b (UNIQUE|REFERENCES|CHECK) \b )
         | INSERT \s INTO \s meta \s )""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)


def version() -> int:
    """Return the schema this code works on."""
    return len(MIGRATIONS)


def is_additive(statement: str) -> bool:
    """Tell whether code that does not know of a statement can work on after it.

    A table, an index that is not unique, a column that may be left out, a counter.
    """
    return _ADDITIVE.match(statement) is not None


def stamp(program: str = __version__) -> int:
    """Return a release as the number kept in the database: "1.2.3" is 0x010203."""
    parts = [int(part) for part in re.findall(r"\d+", program)[:3]]
    major, minor, patch = (*parts, 0, 0, 0)[:3]
    return min(major, 127) << 16 | min(minor, 255) << 8 | min(patch, 255)


def too_new(path: str, found: int, program: int) -> str:
    """Return the words for a spool that newer code has changed."""
    release = f"{program >> 16}.{program >> 8 & 255}.{program & 255}"
    by = f" by relayd {release}" if program else ""
    wanted = f"relayd {release}, or newer," if program else "the newer relayd"
    copies = [one for one in backup.found(path) if one[0] <= version()]
    words = (
        f"[spool] url: {path} was brought to schema version {found}{by}; this is relayd "
        f"{__version__}, which knows up to {version()}. Install {wanted} again"
    )
    if copies:
        schema, where = copies[-1]
        words += f"; the copy from before, schema {schema}, is {where} (docs/spool.md says how)"
    return words


def check(connection: sqlite3.Connection, path: str = "", *, newer_is_fine: bool = False) -> int:
    """Return the version of an open database.

    newer_is_fine: it was ours when we began, and changed while an upgrade went on: additions.
    raises: ConfigError - it is a newer relayd's.
    """
    found = _number(connection, "user_version")
    if found > version() and not newer_is_fine:
        raise ConfigError([too_new(path, found, _number(connection, "application_id"))])
    return found


def migrate(connection: sqlite3.Connection, path: str = "") -> bool:
    """Bring the open database to this version in one transaction; False: it was there.

    Call it under the turnstile, with isolation_level None, and after `backup.copy`.
    raises: ConfigError - the database is from a newer relayd.
    """
    if check(connection, path) == version():
        return False
    connection.execute("BEGIN IMMEDIATE")
    try:
        for step in MIGRATIONS[check(connection, path) :]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version()}")
        connection.execute(f"PRAGMA application_id = {stamp()}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
            connection.execute("ROLLBACK")
        raise
    return True


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
