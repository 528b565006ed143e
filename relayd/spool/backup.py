"""A copy of the database before its schema changes: spool.db.schema1.backup, 1 the schema in it.

Made from a snapshot (VACUUM INTO), so that other workers go on reading and writing meanwhile.
One process copies, the others wait for it at a lock. Content files are not in it: they stay
where they are. The last two copies are kept; mode 0600, as the spool's.

# DURABILITY: copy, fsync, rename, fsync of the folder; only then may the schema change.

Source: sqlite.org/lang_vacuum.html (INTO); flock(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator
from typing import Final

from relayd.errors import ConfigError
from relayd.spool.content import sync_folder

KEPT: Final = 2
_SPARE_BYTES: Final = 16 * 1024 * 1024
"""What must be free besides: the migration itself writes too."""
_NAME: Final = re.compile(r"\.schema(\d+)\.backup")


def backup_path(path: str, schema: int) -> str:
    """Return where the copy of a database with that schema lies."""
    return f"{path}.schema{schema}.backup"


def found(path: str) -> list[tuple[int, str]]:
    """Return (schema, path) of the copies beside a database, the oldest schema first."""
    folder, name = os.path.split(path)
    try:
        names = [one for one in os.listdir(folder) if one.startswith(name)]
    except OSError:
        return []
    matches = ((_NAME.fullmatch(one[len(name) :]), one) for one in names)
    return sorted((int(match[1]), os.path.join(folder, one)) for match, one in matches if match)


def lacking(folder: str, wanted: int) -> str:
    """Return what is wrong with the room for a copy of `wanted` octets; "" if nothing."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    needed = wanted + wanted // 20 + _SPARE_BYTES
    if free >= needed:
        return ""
    return (
        f"the spool's schema must be brought up to date, and the copy made before needs "
        f"{_megabytes(needed)}; {folder} has {_megabytes(free)} free. Nothing was changed. "
        "Make room there, or install the relayd of before"
    )


def _megabytes(octets: int) -> str:
    return f"{max(1, octets // 1_000_000)} MB"


@contextlib.contextmanager
def turn(path: str) -> Iterator[None]:
    """Hold the lock of those who copy and migrate; waits for whoever has it."""
    descriptor = os.open(path + ".migration", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def copy(connection: sqlite3.Connection, path: str, schema: int) -> str:
    """Copy the database behind `connection`, and return where to; call it in one's `turn`.

    raises: ConfigError - no room, or the disk refuses; nothing was changed.
    """
    folder = os.path.dirname(path)
    target = backup_path(path, schema)
    part = target + ".part"
    try:
        if lack := lacking(folder, _size_bytes(connection)):
            raise ConfigError([f"[spool] url: {lack}"])
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        # SECURITY: SQLite fills the empty file it finds; its own would have the umask's mode.
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            connection.execute("VACUUM INTO ?", (part,))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(part, target)
        sync_folder(folder)
    except (OSError, sqlite3.Error) as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        words = f"[spool] url: no copy could be made before the schema changes: {target}: {error}"
        raise ConfigError([f"{words}. Nothing was changed"]) from error
    return target


def _size_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def prune(path: str) -> None:
    """Remove all copies but the last two."""
    for _, old in found(path)[:-KEPT]:
        with contextlib.suppress(OSError):
            os.unlink(old)
