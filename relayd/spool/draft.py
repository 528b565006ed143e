"""One message while it is received: small content in memory, large content to a file as it comes.

At most 64 KiB are kept in memory, and of all drafts of a worker at most 32 MiB: beyond that
even small ones spill. Each wait for the disk has an end; a draft that failed once can only
be discarded.

# DURABILITY: file durable, name durable, then `accept` commits the rows (content.py).
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from typing import Final, Protocol

import gevent
from gevent.event import AsyncResult

from relayd.errors import SpoolUnavailable
from relayd.spool.content import SMALL, FileWriter, Shelf, unavailable
from relayd.spool.files import Files
from relayd.spool.model import NewMessage, QueueId
from relayd.spool.transaction import Value

_WRITE_AT: Final = 256 * 1024
_WRITE_S: Final = 30.0
"""Longest wait for a part of a large message to be written."""
_BUFFERED: Final = 32 * 1024 * 1024
_WORTH_A_FILE: Final = 4096


class AcceptDraft(Protocol):
    """Commits the rows of a message whose content is ready."""

    def __call__(
        self, draft: QueueId, message: NewMessage, content: tuple[Value, ...], *, deadline: float
    ) -> None:
        """Make it durable, or see to it that its file goes; raises SpoolUnavailable, SpoolFull."""
        ...


class SqliteDraft:
    """store.Draft on SQLite and files."""

    __slots__ = ("_accept", "_files", "_held", "_open", "_parts", "_shelf", "_writer", "id")

    def __init__(
        self, queue_id: QueueId, *, accept: AcceptDraft, files: Files, shelf: Shelf
    ) -> None:
        self._accept = accept
        self._files = files
        self._shelf = shelf
        self.id = queue_id
        self._parts: list[bytes] = []
        self._held = 0  # octets in _parts
        self._writer: FileWriter | None = None
        self._open = True

    def write(self, octets: bytes) -> None:
        """Add content; blocks while a large message's part goes to the disk."""
        if not self._open:
            raise SpoolUnavailable("the draft is gone")
        self._parts.append(octets)
        self._held += len(octets)
        self._files.buffered += len(octets)
        if self._writer is not None:
            if self._held >= _WRITE_AT:
                self._spill()
        elif self._held > SMALL or (
            self._files.buffered > _BUFFERED and self._held >= _WORTH_A_FILE
        ):
            self._spill()

    def commit(self, message: NewMessage, *, deadline: float) -> None:
        """Make content and message durable."""
        if not self._open:
            raise SpoolUnavailable("the draft is gone")
        if self._writer is not None:
            self._spill(deadline - self._files.clock.monotonic())
            writer = self._writer
            self._step(writer.finish, deadline - self._files.clock.monotonic())
            self._writer = None  # from here on the file goes with its row, come what may
            content: tuple[Value, ...] = (self.id, writer.size, writer.crc, None)
        else:
            octets = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            content = (self.id, len(octets), zlib.crc32(octets), octets)
        try:
            self._accept(self.id, message, content, deadline=deadline)
        finally:
            self._forget()

    def discard(self) -> None:
        """Forget all."""
        self._forget()
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(SpoolUnavailable):  # closed: an unnamed file goes with us
                self._files.start(writer.abandon)

    def _forget(self) -> None:
        self._open = False
        self._files.buffered -= self._held
        self._held = 0
        self._parts = []

    def _spill(self, seconds: float = _WRITE_S) -> None:
        parts, self._parts = self._parts, []
        writer = self._writer = self._writer or FileWriter(self._shelf, self.id)
        try:
            self._step(lambda: writer.write(parts), min(seconds, _WRITE_S))
        finally:
            self._files.buffered -= self._held
            self._held = 0

    def _step(self, job: Callable[[], None], seconds: float) -> None:
        """Do `job` in a thread; a draft that failed once can only be discarded."""
        running: AsyncResult[OSError | None] | None = None
        try:
            with gevent.Timeout(max(seconds, 0.0), SpoolUnavailable("the disk does not answer")):
                running = self._files.start(job)
                outcome = running.get()
        except BaseException:
            self._give_up(running)
            raise
        if isinstance(outcome, OSError):
            self.discard()
            raise unavailable(outcome) from outcome

    def _give_up(self, running: AsyncResult[OSError | None] | None) -> None:
        """Clean up once the thread lets go of the file: not before, it is using it."""
        writer, self._writer = self._writer, None
        self._forget()
        if writer is None:
            return
        start, abandon = self._files.start, writer.abandon
        if running is None:
            gevent.spawn(start, abandon)
        else:
            running.rawlink(lambda _: gevent.spawn(start, abandon))
