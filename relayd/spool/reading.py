"""Content on its way out: from its row, or from its file in pieces.

What is missing, cut short or damaged is never given out whole: the message becomes HELD by
"corrupt", its file is put aside, and whoever was reading gets SpoolUnavailable.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NoReturn

from relayd.errors import SpoolUnavailable
from relayd.spool.content import FileReader, Shelf
from relayd.spool.files import Files
from relayd.spool.flusher import Flusher
from relayd.spool.leasing import MarkCorrupt, ReadContent
from relayd.spool.model import QueueId, queue_id_text


class Contents:
    """A context manager over one message's octets; store.Door.content."""

    def __init__(self, message: QueueId, *, flusher: Flusher, files: Files, shelf: Shelf) -> None:
        self._message = message
        self._flusher = flusher
        self._files = files
        self._shelf = shelf
        self._reader: FileReader | None = None

    def __enter__(self) -> Iterator[bytes]:
        found = self._flusher.ask(ReadContent(self._message))
        if found is None:
            self._spoiled("its content is gone")
        size, crc, octets = found
        if octets is not None:
            if len(octets) != size or zlib.crc32(octets) != crc:
                self._spoiled("its content is damaged")
            return iter((octets,) if octets else ())
        try:
            self._reader = self._files.call(
                lambda: FileReader(self._shelf.path(self._message), size=size, crc=crc)
            )
        except SpoolUnavailable as error:
            if isinstance(error.__cause__, FileNotFoundError):
                self._spoiled("its content is gone")
            raise
        return self._pieces(self._reader)

    def _pieces(self, reader: FileReader) -> Iterator[bytes]:
        while True:
            piece = self._files.call(lambda: _piece(reader))
            if isinstance(piece, EOFError):
                self._spoiled(str(piece))
            if not piece:
                return
            yield piece

    def _spoiled(self, why: str) -> NoReturn:
        self._flusher.ask(MarkCorrupt(self._message, why))
        raise SpoolUnavailable(f"{queue_id_text(self._message)}: {why}")

    def __exit__(self, *error: object) -> None:
        if self._reader is not None:
            self._reader.close()


def _piece(reader: FileReader) -> bytes | EOFError:
    try:
        return reader.read()
    except EOFError as error:
        return error
