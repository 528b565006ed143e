"""The spool on SQLite: a batch of operations in, one transaction, their outcomes out.

Synchronous, knows nothing of gevent, used by one native thread at a time. Nothing is logged
or raised here: what went wrong comes back as values (`Applied`).

    batch -> turnstile -> latecomers -> BEGIN IMMEDIATE -> statements -> COMMIT (one flush) -> files

# DURABILITY: WAL with synchronous=FULL: COMMIT returns after the log is flushed. After any
I/O error the connection is dropped, because SQLite acknowledges the commit after a failed
flush: the batch fails, a new connection must pass a probe write before anything is accepted
again, and messages whose commit is in doubt are taken back first (their clients heard 451).

Source: sqlite.org/wal.html, sqlite.org/pragma.html, sqlite.org/rescode.html.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from relayd.clock import Clock, micros
from relayd.errors import ConfigError, SpoolFull, SpoolUnavailable
from relayd.spool import backup, schema
from relayd.spool.accepting import Accept, Undo, accept_all
from relayd.spool.content import Crash, Shelf, sync_folder, unavailable
from relayd.spool.settling import Settle, Surprise, settle_all
from relayd.spool.store import Hold
from relayd.spool.transaction import (
    Effects,
    Operation,
    Pair,
    Policy,
    Transaction,
    causes,
    json_rows,
    read_holds,
)
from relayd.spool.turnstile import Turnstile

_PRAGMAS: Final = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 0",  # 3.7.0-3.51.2 lose data when writing beside a checkpoint
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA busy_timeout = 1000",  # the turnstile serialises us; this is for the sqlite3 shell
    "PRAGMA foreign_keys = OFF",
    "PRAGMA cache_size = -4096",  # KiB of each worker; with 60,000 waiting, 16384 was no faster
    "PRAGMA temp_store = MEMORY",
    "PRAGMA mmap_size = 0",  # measured: no gain; and an I/O error would be a SIGBUS, not a code
    "PRAGMA secure_delete = FAST",  # content is overwritten where that costs no extra write
)
_CHECKPOINT_PAGES: Final = 16 * 1024 * 1024 // 4096
_BACK_OFF_S: Final = (0.05, 0.2, 1.0, 2.0, 5.0)

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_IO: Final = frozenset(
    {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_INTERNAL,
    }
)
_PASSING: Final = _BUSY | {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}
"""What may be over later, so that starting is right; anything else is for the operator."""


@dataclass(slots=True)
class Applied:
    """What became of a batch.

    outcomes: one for each operation, in order; SpoolUnavailable where it did not happen.
    holds:    the Holds in force, when they changed since the last batch; else None.
    bugs:     tracebacks of what nobody foresaw; the operations concerned failed.
    """

    outcomes: list[object]
    effects: Effects = field(default_factory=Effects)
    holds: tuple[Hold, ...] | None = None
    bugs: list[str] = field(default_factory=list)


Latecomers: TypeAlias = Callable[[], Sequence[Operation[object]]]
"""Returns what may still go with a batch whose turn has come."""


class Migrated(NamedTuple):
    """A change of the schema that was made here: from, to, and where the copy of before is."""

    was: int
    now: int
    copy: str


class Core:
    """One connection for writing, and the files beside it."""

    def __init__(
        self, path: str, policy: Policy, clock: Clock, *, holder: str, crash_at: Crash
    ) -> None:
        self.path = path  #: the database
        self._policy = policy
        self._clock = clock
        self._crash_at = crash_at
        self._turnstile = Turnstile(path + ".turnstile")
        self._connection: sqlite3.Connection | None = None
        self._holder_name = holder
        self._holder = 0
        self._holds_version = -1
        self._holds: Mapping[Pair, str] = {}
        self._pages = 0
        self._in_doubt: list[Undo] = []
        self._failures = 0
        self._retry_at = 0.0
        self.trouble: SpoolUnavailable | None = None  #: why nothing can be done now
        self._has_worked = False  # newer code may change the schema while we have it open
        self.migrated: Migrated | None = None  #: when this process changed the schema
        self.shelf = Shelf(os.path.dirname(path), crash_at)

    # -- opening and closing ------------------------------------------------------------

    def open(self) -> int:
        """Connect for the first time; return the newest message id, 0 if there is none.

        A full or failing disk is trouble that may pass: then all operations fail until it has,
        and 0 is returned.
        raises: ConfigError - the database cannot be used; words for the operator.
        """
        try:
            connection = self._connect()
            newest = connection.execute("SELECT max(id) FROM message").fetchone()[0]
        except sqlite3.Error as error:
            if _kind(error) in _PASSING:
                self._broken(error)
                return 0
            raise ConfigError(
                [
                    (
                        f"[spool] url: {self.path} cannot be used: {error}. Nothing was changed. "
                        "Restore it, or move it and its -wal file away together to start empty "
                        "(mail in it is then not sent)"
                    )
                ]
            ) from error
        self._connection = connection
        return newest or 0

    def _connect(self) -> sqlite3.Connection:
        """Open, migrate, prepare and probe."""
        connection = sqlite3.connect(
            self.path,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=512,
        )
        connection.text_factory = schema.text_of
        try:
            with self._turnstile:
                for pragma in _PRAGMAS:
                    connection.execute(pragma).fetchall()
                found = schema.check(connection, self.path, newer_is_fine=self._has_worked)
            if 0 < found < schema.version():
                self._migrate(connection)
            with self._turnstile:
                if found <= schema.version():
                    self._to_this_schema(connection)
                sync_folder(os.path.dirname(self.path))
                self._probe(connection)
        except BaseException:
            with self._turnstile:
                connection.close()
            raise
        self._holds_version = -1
        self._has_worked = True
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Copy, then change the schema; once, whoever else starts at the same time.

        Outside of the turnstile, while it is copied: others must not wait for that.
        """
        with backup.turn(self.path):
            found = schema.check(connection, self.path)
            if found == schema.version():
                return
            copy = backup.copy(connection, self.path, found)
            with self._turnstile:
                self._to_this_schema(connection)
            backup.prune(self.path)
        self.migrated = Migrated(found, schema.version(), copy)

    def _to_this_schema(self, connection: sqlite3.Connection) -> None:
        if schema.migrate(connection, self.path):
            # `fit` reads the file, not the log.
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _probe(self, connection: sqlite3.Connection) -> None:
        """Write something durably: a disk that only reads must not accept mail."""
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'probe'")
        name = self._holder_name
        connection.execute("INSERT INTO holder (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
        found = connection.execute("SELECT id FROM holder WHERE name = ?", (name,)).fetchone()
        self._holder = int(found[0])
        connection.execute("COMMIT")

    def close(self) -> None:
        """Empty the log into the database and close."""
        with self._turnstile:
            self._drop(checkpoint=True)
        self._turnstile.close()

    def _drop(self, *, checkpoint: bool = False) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if checkpoint:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.close()
        except sqlite3.Error:
            return  # it is given up for that very reason

    # -- batches ------------------------------------------------------------------------

    @property
    def holder(self) -> int:
        """This process's number in the holder table."""
        return self._holder

    def apply(
        self, operations: Sequence[Operation[object]], latecomers: Latecomers = tuple
    ) -> Applied:
        """Do all of them in one commit; those that cannot be done fail alone if possible.

        latecomers: asked once it is our turn; what it returns goes with them, at the end.
        """
        operations = list(operations)
        failed = self._reopened()
        if failed is not None:
            return Applied([failed] * len(operations))
        try:
            return self._attempt(operations, latecomers)
        except sqlite3.Error as error:
            kind = _kind(error)
            if kind in _IO or kind in _BUSY:
                return Applied([self._fallen(error, operations)] * len(operations))
            return self._one_by_one(operations, traceback.format_exc())
        except OSError as error:  # a file beside the database; the commit was done
            return Applied([self._fallen(error, operations)] * len(operations))
        except Exception:  # noqa: BLE001 - a daemon loop's edge: told to the hub as a value
            return self._one_by_one(operations, traceback.format_exc())

    def _attempt(self, operations: list[Operation[object]], latecomers: Latecomers) -> Applied:
        try:
            return self._committed(operations, latecomers, careful=False)
        except Surprise:
            return self._committed(operations, latecomers, careful=True)

    def _one_by_one(self, operations: Sequence[Operation[object]], bug: str) -> Applied:
        """Find the operation that spoils the batch; the others must not suffer."""
        if len(operations) == 1:
            return Applied([SpoolUnavailable("not understood, see the log")], bugs=[bug])
        parts = [self.apply([one]) for one in operations]
        whole = Applied([part.outcomes[0] for part in parts])
        for part in parts:
            whole.effects.dropped += part.effects.dropped
            whole.effects.spoiled += part.effects.spoiled
            whole.effects.ready += part.effects.ready
            whole.holds = part.holds if part.holds is not None else whole.holds
            whole.bugs += part.bugs
        return whole

    def _committed(
        self,
        operations: list[Operation[object]],
        latecomers: Latecomers = tuple,
        *,
        careful: bool,
    ) -> Applied:
        if not any(one.writes for one in operations):
            return self._read(operations)
        with self._turnstile:
            operations += latecomers()
            connection = self._live()
            connection.execute("BEGIN IMMEDIATE")
            try:
                batch, holds = self._begin(connection)
                outcomes = _run(batch, operations, careful=careful)
                if batch.effects.holds_touched:
                    holds = self._refresh_holds(connection)
                self._crash_at("before-commit")
                connection.execute("COMMIT")
            except BaseException:
                self._holds_version = -1
                with contextlib.suppress(sqlite3.Error):  # the first error is the one to tell
                    connection.execute("ROLLBACK")
                raise
            self._crash_at("after-commit")
            gone = self._gone(connection, batch.effects.dropped)
        self._pages += batch.effects.pages + 1
        self._tidy(gone, batch.effects)
        return Applied(outcomes, batch.effects, holds)

    def _read(self, operations: Sequence[Operation[object]]) -> Applied:
        batch, holds = self._begin(self._live())
        return Applied([one.run(batch) for one in operations], batch.effects, holds)

    def _live(self) -> sqlite3.Connection:
        if self._connection is None:
            raise sqlite3.OperationalError("closed")
        return self._connection

    def _begin(self, connection: sqlite3.Connection) -> tuple[Transaction, tuple[Hold, ...] | None]:
        (version,) = connection.execute("SELECT value FROM meta WHERE name = 'holds'").fetchone()
        holds = None if version == self._holds_version else self._refresh_holds(connection)
        batch = Transaction(
            connection=connection,
            policy=self._policy,
            now=micros(self._clock.utcnow()),
            boot=self._clock.boottime(),
            holder=self._holder,
            holds=self._holds,
        )
        return batch, holds

    def _refresh_holds(self, connection: sqlite3.Connection) -> tuple[Hold, ...]:
        holds = read_holds(connection)
        self._holds = causes(holds)
        (self._holds_version,) = connection.execute(
            "SELECT value FROM meta WHERE name = 'holds'"
        ).fetchone()
        return holds

    # -- files, after the commit ----------------------------------------------------------

    def _gone(self, connection: sqlite3.Connection, dropped: Sequence[int]) -> list[int]:
        if not dropped:
            return []
        marks = ",".join("?" * len(dropped))
        kept = json_rows(
            connection,
            f"SELECT json_group_array(json_array(id)) FROM content WHERE id IN ({marks})",
            *dropped,
        )
        return sorted(set(dropped) - {int(row[0] or 0) for row in kept})

    def _tidy(self, gone: Sequence[int], effects: Effects) -> None:
        for message in gone:
            self._crash_at("before-unlink")
            with contextlib.suppress(OSError):  # then the sweep finds it
                self.shelf.remove(message)
        for message, _ in effects.spoiled:
            with contextlib.suppress(OSError):  # then it stays where it is; the row is HELD
                self.shelf.put_aside(message)

    # -- trouble --------------------------------------------------------------------------

    def _fallen(
        self, error: Exception, operations: Sequence[Operation[object]]
    ) -> SpoolUnavailable:
        """Give up the connection after an error of the disk; return what callers are told."""
        if isinstance(error, sqlite3.Error) and _kind(error) in _BUSY:
            return SpoolUnavailable(f"{self.path}: somebody else has it locked")
        self._in_doubt += [one.undo() for one in operations if isinstance(one, Accept)]
        with self._turnstile:
            self._drop()
        return self._broken(error)

    def _broken(self, error: Exception) -> SpoolUnavailable:
        pause = _BACK_OFF_S[min(self._failures, len(_BACK_OFF_S) - 1)]
        self._failures += 1
        self._retry_at = self._clock.monotonic() + pause
        self.trouble = _told(error, self.path)
        return self.trouble

    def _reopened(self) -> SpoolUnavailable | None:
        """Return None when there is a connection, made anew if its time has come."""
        if self._connection is not None:
            return None
        if self.trouble is not None and self._clock.monotonic() < self._retry_at:
            return self.trouble
        try:
            with self._turnstile:
                _probe_space(os.path.dirname(self.path))
            self._connection = self._connect()
            if self._in_doubt:
                self._committed([*self._in_doubt], careful=True)
        except (sqlite3.Error, OSError, ConfigError) as error:
            with self._turnstile:
                self._drop()
            return self._broken(error)
        self._in_doubt = []
        self._failures = 0
        self.trouble = None
        return None

    # -- the log ----------------------------------------------------------------------------

    @property
    def wants_checkpoint(self) -> bool:
        """True when about 16 MiB were written since the last checkpoint."""
        return self._pages >= _CHECKPOINT_PAGES

    def log_bytes(self) -> int:
        """Return how large the log is on the disk, octets; from any thread."""
        try:
            return os.stat(self.path + "-wal").st_size
        except OSError:
            return 0

    def checkpoint(self, *, truncate: bool = False) -> None:
        """Bring the log's pages into the database. truncate: and make the log empty."""
        mode = "TRUNCATE" if truncate else "PASSIVE"
        self._pages = 0
        if self._connection is None:
            return
        try:
            with self._turnstile:
                self._connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except sqlite3.Error as error:
            self._fallen(error, ())


def _run(
    batch: Transaction, operations: Sequence[Operation[object]], *, careful: bool
) -> list[object]:
    if careful:
        return [one.run(batch) for one in operations]
    accepts: list[Accept] = []
    settles: list[Settle] = []
    others: list[tuple[int, Operation[object]]] = []
    for at, one in enumerate(operations):
        if isinstance(one, Accept):
            accepts.append(one)
        elif isinstance(one, Settle) and one.is_plain(batch):
            settles.append(one)
        else:
            others.append((at, one))
    accept_all(batch, accepts)
    settle_all(batch, settles)
    outcomes: list[object] = [None] * len(operations)
    for at, one in others:
        outcomes[at] = one.run(batch)
    return outcomes


def _kind(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _told(error: Exception, path: str) -> SpoolUnavailable:
    if isinstance(error, OSError):
        return unavailable(error)
    words = f"{path}: {error}"
    full = isinstance(error, sqlite3.Error) and _kind(error) == sqlite3.SQLITE_FULL
    return SpoolFull(words) if full else SpoolUnavailable(words)


def _probe_space(folder: str) -> None:
    """Write a scratch page: SQLite reports a quota as an I/O error, this says which it is."""
    path = os.path.join(folder, f"scratch.{os.getpid()}")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, bytes(4096))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        os.unlink(path)
