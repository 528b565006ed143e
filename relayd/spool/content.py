"""Content that is too large for a row: written while it is received, read while it is sent.

    receive: unnamed file <- pieces, fdatasync every 8 MiB ... fsync, link, fsync of the folder
    deliver: pieces of 256 KiB, length and checksum judged before the last one is given out

# DURABILITY: the name appears only when all octets are on the disk, and the row is committed
only when the name is. After the row's end is committed the file is unlinked. So a crash
leaves at most a file without a row, which the sweep removes when it is an hour old.

Everything here blocks and is meant for a native thread; `relayd.spool.door` sees to that.

Source: open(2) on O_TMPFILE, linkat(2), fsync(2).
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Final

from relayd.clock import Clock, micros
from relayd.errors import SpoolFull, SpoolUnavailable
from relayd.spool.model import LAST_ID, QueueId, parse_queue_id, queue_id_text

SMALL: Final = 64 * 1024
"""Up to here content lies in its row; beyond, in a file."""
PIECE: Final = 256 * 1024
_SYNC_EVERY: Final = 8 * 1024 * 1024
_ORPHAN_MICROS: Final = 3600 * 1_000_000
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_TMPFILE: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})

Crash = Callable[[str], None]
"""Called with the name of a point between two writes; tests kill the process there."""


def unavailable(error: OSError) -> SpoolUnavailable:
    """Return what a caller is told of an operating system's error."""
    words = f"{error.strerror} ({error.filename or 'spool'})"
    return SpoolFull(words) if error.errno in _NO_ROOM else SpoolUnavailable(words)


class Shelf:
    """The folder of content files and the one where damaged ones are put aside."""

    def __init__(self, folder: str, crash_at: Crash) -> None:
        self.folder = os.path.join(folder, "content")
        self._aside = os.path.join(folder, "corrupt")
        self.crash_at = crash_at
        for one in (self.folder, self._aside):
            os.makedirs(one, mode=0o700, exist_ok=True)
        sync_folder(folder)
        self.has_unnamed = _can_link_unnamed(self.folder)

    def path(self, message: int) -> str:
        """Return where the content of a message lies."""
        return os.path.join(self.folder, queue_id_text(message))

    def remove(self, message: int) -> None:
        """Unlink a message's file, if there is one."""
        try:
            os.unlink(self.path(message))
        except FileNotFoundError:
            return

    def put_aside(self, message: int) -> None:
        """Move a message's file to `corrupt`, if there is one; never deletes."""
        try:
            os.rename(self.path(message), os.path.join(self._aside, queue_id_text(message)))
        except FileNotFoundError:
            return
        sync_folder(self._aside)
        sync_folder(self.folder)

    def old_files(self, clock: Clock) -> list[int]:
        """Return messages whose files are over an hour old; unfinished ones of the dead go."""
        before = micros(clock.utcnow()) - _ORPHAN_MICROS
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    old = entry.stat().st_mtime_ns // 1000 < before
                except FileNotFoundError:
                    continue
                if old and entry.name.startswith("."):
                    os.unlink(entry.path)
                elif old:
                    found += _queue_id(entry.name)
        return found


def _can_link_unnamed(folder: str) -> bool:
    """Tell whether O_TMPFILE and linking by /proc work here (not on NFS, some overlays)."""
    name = f".probe-{os.getpid()}"
    try:
        descriptor = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        return error.errno not in _NO_TMPFILE  # a full disk says nothing about it
    try:
        _link(descriptor, folder, name)
        os.unlink(os.path.join(folder, name))
        return True
    except (FileNotFoundError, FileExistsError, PermissionError):
        return False
    finally:
        os.close(descriptor)


def _link(descriptor: int, folder: str, name: str) -> None:
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # dst_dir_fd makes Python call linkat, which follows /proc's link; link() does not.
        os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=place, follow_symlinks=True)
    finally:
        os.close(place)


def _queue_id(name: str) -> list[int]:
    try:
        number = parse_queue_id(name)
    except ValueError:
        return []  # not ours to judge
    return [number] if number <= LAST_ID else []


def sync_folder(folder: str) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FileWriter:
    """One message's content on its way to a file. Every method may raise OSError; then only
    `abandon` makes sense: after a failed fsync the kernel calls lost pages clean.
    """

    def __init__(self, shelf: Shelf, message: QueueId) -> None:
        self._shelf = shelf
        self._message = message
        self._temporary = ""
        self._descriptor = -1  # opened by the first write
        self._unsynced = 0
        self._linked = False
        self.size = 0
        self.crc = 0

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        if self._shelf.has_unnamed:
            return os.open(self._shelf.folder, flags | os.O_TMPFILE, 0o600)
        self._temporary = os.path.join(self._shelf.folder, "." + queue_id_text(self._message))
        return os.open(self._temporary, flags | os.O_CREAT | os.O_EXCL, 0o600)

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append `pieces`."""
        if self._descriptor < 0:
            self._descriptor = self._open()
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(self._descriptor, view) :]
            self.crc = zlib.crc32(piece, self.crc)
            self.size += len(piece)
            self._unsynced += len(piece)
        if self._unsynced >= _SYNC_EVERY:  # else the dot pays for all of it at once
            os.fdatasync(self._descriptor)
            self._unsynced = 0

    def finish(self) -> None:
        """Make content and name durable."""
        crash_at = self._shelf.crash_at
        crash_at("content-written")
        os.fsync(self._descriptor)
        crash_at("content-synced")
        path = self._shelf.path(self._message)
        if self._temporary:
            os.rename(self._temporary, path)
            self._temporary = ""
        else:
            _link(self._descriptor, self._shelf.folder, os.path.basename(path))
        self._linked = True
        crash_at("content-linked")
        sync_folder(self._shelf.folder)
        os.close(self._descriptor)
        self._descriptor = -1
        crash_at("content-named")

    def abandon(self) -> None:
        """Remove all traces; never raises."""
        try:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            if self._temporary:
                os.unlink(self._temporary)
            if self._linked:
                self._shelf.remove(self._message)
        except OSError:
            return  # the sweep finds it


class FileReader:
    """One message's content on its way out. size, crc: what was stored."""

    def __init__(self, path: str, *, size: int, crc: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._left = size
        self._crc = crc
        self._seen = 0

    def read(self) -> bytes:
        """Return the next piece, b"" at the end.

        raises: EOFError - the file is not what was stored; said before its last piece is
                given out, so that a damaged message is never sent whole.
        """
        if not self._left:
            return b""
        piece = self._read(min(PIECE, self._left))
        self._left -= len(piece)
        self._seen = zlib.crc32(piece, self._seen)
        if not self._left and (self._seen != self._crc or self._file.read(1)):
            raise EOFError("its content is damaged")
        return piece

    def _read(self, count: int) -> bytes:
        piece = self._file.read(count)
        if not piece:
            raise EOFError("its content is cut short")
        return piece

    def close(self) -> None:
        """Close the file."""
        self._file.close()
