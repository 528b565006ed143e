"""Messages, takers and ways to open a spool, for all tests of the spool."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

from relayd.clock import Clock, FakeClock
from relayd.config.model import Spool
from relayd.spool.accepting import Accept, Birth, message_row
from relayd.spool.door import SqliteDoor, no_crash, open_spool
from relayd.spool.holders import name_of
from relayd.spool.ids import Ids
from relayd.spool.memory import Keeping, MemoryDoor, MemorySpool
from relayd.spool.model import (
    Lease,
    MailboxRef,
    NewDelivery,
    NewMessage,
    QueueId,
    Settlement,
    State,
)
from relayd.spool.queries import Filter, Reader
from relayd.spool.sqlite import Core
from relayd.spool.transaction import Operation, Policy

T = TypeVar("T")

ALERTS = MailboxRef("contoso", "alerts@contoso.com")
SCANS = MailboxRef("contoso", "scans@contoso.com")
OTHER = MailboxRef("fabrikam", "relay@fabrikam.com")

SENT = Settlement(state=State.SENT, outcome="sent", http_status=202, request_id="r-1")
RETURNED = Settlement(state=State.READY, outcome="returned")
FAILED = Settlement(state=State.FAILED, outcome="failed", code="ErrorInvalidRecipients", text="no")

Store = SqliteDoor | MemoryDoor


def way(
    mailbox: MailboxRef = ALERTS,
    *recipients: str,
    header_from: str = "ups@contoso.com",
) -> NewDelivery:
    return NewDelivery(
        mailbox=mailbox,
        recipients=recipients or ("admin@contoso.com",),
        header_from=header_from,
    )


def new_message(
    clock: Clock,
    *ways: NewDelivery,
    octets: bytes = b"",
    priority: int = 1,
    max_age_s: float = 432_000.0,
    helo: str = "ups.local",
) -> NewMessage:
    now = clock.utcnow()
    return NewMessage(
        sender="ups@contoso.com",
        priority=priority,
        accepted_at=now,
        expires_at=now + timedelta(seconds=max_age_s),
        size_bytes=len(octets),
        body_sha256=hashlib.sha256(octets).hexdigest(),
        message_id="<1@ups.local>",
        subject="",
        session="S1",
        listener="lan",
        ip="192.0.2.5",
        helo=helo,
        device="ups",
        user="",
        deliveries=ways or (way(),),
    )


def put(
    door: Store,
    clock: Clock,
    *ways: NewDelivery,
    octets: bytes = b"Subject: x\r\n\r\nhello\r\n",
    priority: int = 1,
    max_age_s: float = 432_000.0,
) -> QueueId:
    """Accept one message."""
    draft = door.draft()
    draft.write(octets)
    message = new_message(clock, *ways, octets=octets, priority=priority, max_age_s=max_age_s)
    draft.commit(message, deadline=clock.monotonic() + 8)
    return draft.id


def deferred(clock: Clock, seconds: float = 60.0) -> Settlement:
    return Settlement(
        state=State.DEFERRED,
        outcome="deferred",
        due_at=clock.utcnow() + timedelta(seconds=seconds),
        http_status=503,
        text="busy",
    )


def denied(clock: Clock, seconds: float = 1800.0, cause: str = "ErrorSendAsDenied") -> Settlement:
    return Settlement(
        state=State.HELD,
        outcome="misconfigured",
        held_by=cause,
        due_at=clock.utcnow() + timedelta(seconds=seconds),
        http_status=403,
        code=cause,
        text="may not send as",
    )


class Taker:
    """Takes what `wanted` says, and remembers all it is told."""

    def __init__(self, *, wanted: bool = True) -> None:
        self.wanted = wanted
        self.set_aside = 0
        self.taken: list[Lease] = []
        self.spared: list[NewDelivery] = []
        self.offered: list[MailboxRef] = []

    def wants(self, delivery: NewDelivery, priority: int) -> bool:
        self.set_aside += self.wanted
        return self.wanted

    def take(self, lease: Lease) -> None:
        self.taken.append(lease)

    def spare(self, delivery: NewDelivery) -> None:
        self.spared.append(delivery)

    def offer(self, mailboxes: Sequence[MailboxRef]) -> None:
        self.offered += mailboxes


class Backend(Protocol):
    """A kind of store: what is durable, and how a door to it is opened and crashes."""

    clock: FakeClock

    def open(self) -> Store: ...

    def crash(self, door: Store) -> None: ...

    def states(self) -> Mapping[int, tuple[QueueId, State, str]]: ...

    def journal(self, delivery: int) -> Sequence[str]: ...

    def keep_sent(self, seconds: float) -> None:
        """For doors opened from now on."""
        ...

    def close(self) -> None: ...


class MemoryBackend:
    """Everything in one MemorySpool."""

    def __init__(self, folder: Path, *, ambiguous: str = "retry", keep_sent_s: float = 0.0) -> None:
        self.clock = FakeClock()
        self.spool = MemorySpool()
        self._keeping = Keeping(
            ambiguous={"contoso": ambiguous}, keep_sent=timedelta(seconds=keep_sent_s)
        )
        self._opened = 0

    def open(self) -> MemoryDoor:
        self._opened += 1
        return MemoryDoor(
            self.spool, lane=self._opened - 1, clock=self.clock, keeping=self._keeping
        )

    def crash(self, door: Store) -> None:
        assert isinstance(door, MemoryDoor)
        door.crash()

    def states(self) -> Mapping[int, tuple[QueueId, State, str]]:
        return {row.id: (row.message, row.state, row.held_by) for row in self.spool.rows.values()}

    def journal(self, delivery: int) -> Sequence[str]:
        return [note.outcome for note in self.spool.journal if note.delivery == delivery]

    def keep_sent(self, seconds: float) -> None:
        self._keeping = replace(self._keeping, keep_sent=timedelta(seconds=seconds))

    def close(self) -> None:
        pass


class SqliteBackend:
    """A database in a folder. Each door holds leases in the name of a child that sleeps; a
    crash kills the child, so that the holder really is dead.
    """

    def __init__(
        self,
        folder: Path,
        *,
        ambiguous: str = "retry",
        keep_sent_s: float = 0.0,
        crash_at: Callable[[str], None] = no_crash,
        min_free_bytes: int = 0,
    ) -> None:
        self.clock = FakeClock()
        folder.chmod(0o700)
        self.folder = folder
        self.path = str(folder / "spool.db")
        self._ambiguous = {"contoso": ambiguous}
        self.settings = Spool(url=f"sqlite://{self.path}", keep_sent_content=keep_sent_s)
        self._crash_at = crash_at
        self._min_free_bytes = min_free_bytes
        self._doors: list[tuple[SqliteDoor, subprocess.Popen[bytes]]] = []

    def open(self) -> SqliteDoor:
        body = subprocess.Popen(["sleep", "600"])
        try:
            door = open_spool(
                self.settings,
                lane=len(self._doors),
                min_free_bytes=self._min_free_bytes,
                max_message_bytes=0,
                clock=self.clock,
                ambiguous=self._ambiguous,
                holder=name_of(body.pid),
                crash_at=self._crash_at,
            )
        except BaseException:
            _end(body)
            raise
        self._doors.append((door, body))
        return door

    def crash(self, door: Store) -> None:
        for one, body in self._doors:
            if one is door:
                one.close()
                _end(body)

    def states(self) -> Mapping[int, tuple[QueueId, State, str]]:
        with closing(Reader(self.path, self.clock)) as reader:
            found, after = reader.page(Filter())
            while after:
                more, after = reader.page(Filter(), after=after)
                found += more
        return {one.delivery: (one.id, one.state, one.held_by) for one in found}

    def journal(self, delivery: int) -> Sequence[str]:
        with closing(Reader(self.path, self.clock)) as reader:
            journal = reader.trace(QueueId(delivery & -64))
        return [one.outcome for one in journal if one.delivery == delivery]

    def keep_sent(self, seconds: float) -> None:
        self.settings = replace(self.settings, keep_sent_content=seconds)

    def close(self) -> None:
        for door, body in self._doors:
            door.close()
            _end(body)


def _end(body: subprocess.Popen[bytes]) -> None:
    body.kill()
    body.wait()


FUTURE: Final = (
    "CREATE TABLE later (id INTEGER PRIMARY KEY, what TEXT NOT NULL) STRICT",
    "CREATE INDEX message_later ON message (accepted_at)",
    "CREATE INDEX delivery_later ON delivery (message, state)",
    *(
        f"ALTER TABLE {table} ADD COLUMN later TEXT NOT NULL DEFAULT 'x'"
        for table in ("message", "content", "delivery", "attempt", "hold", "holder", "meta")
    ),
    "ALTER TABLE delivery ADD COLUMN later_still INTEGER",
    "INSERT INTO meta (name, value) VALUES ('later', 0)",
)
"""What a release to come may do to the tables while this one works on them."""


class FutureBackend(SqliteBackend):
    """A database that newer code changed as soon as ours had it open."""

    def open(self) -> SqliteDoor:
        door = super().open()
        if len(self._doors) == 1:
            with closing(sqlite3.connect(self.path, timeout=20, isolation_level=None)) as newer:
                for statement in FUTURE:
                    newer.execute(statement)
        return door


DAY: Final = 86_400 * 1_000_000

POLICY: Final = Policy(
    keep_sent=0,
    keep_failed=30 * DAY,
    history=90 * DAY,
    max_step=3_600_000_000,
    due_limit=DAY,
    ambiguous={},
)


class Bench:
    """The synchronous core alone: no gevent, one operation at a time."""

    def __init__(
        self, folder: Path, *, policy: Policy = POLICY, crash_at: Callable[[str], None] = no_crash
    ) -> None:
        folder.chmod(0o700)
        self.clock = FakeClock()
        self.path = str(folder / "spool.db")
        self.core = Core(
            self.path, policy, self.clock, holder=name_of(os.getpid()), crash_at=crash_at
        )
        self.core.open()
        self.ids = Ids(0, self.clock)

    def do(self, operation: Operation[T]) -> T:
        (outcome,) = self.core.apply([operation]).outcomes
        return cast("T", outcome)

    def accept(
        self,
        *ways: NewDelivery,
        octets: bytes = b"a: b\r\n\r\nc\r\n",
        state: State = State.READY,
        held_by: str = "",
    ) -> Accept:
        """Return what inserts one message."""
        message = new_message(self.clock, *ways, octets=octets)
        number = self.ids.next()
        births = [
            Birth(
                id=number + at, message=number, way=one, state=state, held_by=held_by, until=1240.0
            )
            for at, one in enumerate(message.deliveries)
        ]
        row = message_row(number, message)
        return Accept(
            number,
            row,
            (number, len(octets), zlib.crc32(octets), octets),
            [one.row(row, self.core.holder) for one in births],
            tuple(one.id for one in births if state is State.LEASED),
            tuple(births if state is State.HELD else ()),
        )

    def put(self, *ways: NewDelivery, octets: bytes = b"a: b\r\n\r\nc\r\n") -> QueueId:
        accept = self.accept(*ways, octets=octets)
        assert self.do(accept) is None
        return accept.id

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database itself."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as connection:
            return connection.execute(sql, values).fetchall()
