"""Mail that waits in a spool nobody looks at any more, because [spool] url names another.

`state_dir/spool` keeps the path of the database in use. While the one it names still has mail
that waits, and another is in use, that is told at every start, and the file stays as it is.

SECURITY, DURABILITY: the former database is read as it lies there (immutable=1): opening it for
real would leave files beside it, perhaps another user's, and could run a recovery. What only
its log knows of, after a crash, is not seen; that there is a log is.

Source: sqlite.org/uri.html.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import Final
from urllib.parse import quote

from relayd import whole

_MARK: Final = "spool"
_LONGEST: Final = 4096
_WAITS: Final = "SELECT count(DISTINCT message) FROM delivery WHERE state <= 3"


def left_behind(state_dir: str, path: str) -> str:
    """Return what to tell of a former spool with mail in it, for people; "" if there is none.

    path: the database in use; remembered once nothing is left behind. Raises nothing: where
    the state cannot be kept, nothing is known and nothing is told.
    """
    mark = os.path.join(state_dir, _MARK)
    if _remembered(mark) == path:
        return ""
    words = would_leave(state_dir, path)
    if not words:
        with contextlib.suppress(OSError):
            whole.replace(mark, os.fsencode(path) + b"\n", mode=0o600)
    return words


def would_leave(state_dir: str, path: str) -> str:
    """Return the same, and keep nothing: for a look before the start.

    path: the database that would be used. Raises nothing.
    """
    former = _remembered(os.path.join(state_dir, _MARK))
    if not former or former == path or _is_same(former, path):
        return ""
    return _words(former, path)


def _is_same(former: str, path: str) -> bool:
    """Tell whether both name one file, as by a link or another spelling."""
    try:
        return os.path.samefile(former, path)
    except OSError:
        return False


def _words(former: str, path: str) -> str:
    waiting = _waiting(former)
    has_log = _size(former + "-wal") > 0
    if not waiting and not has_log:
        return ""
    what = f"{waiting} messages wait" if waiting else "messages may wait"
    return (
        f"{what} in {former}, and [spool] url is {path} now: nobody sends them. Set the url back"
        " and restart the relay until that queue is empty; if they are not wanted, remove"
        f" {former}, then relayd reload"
    )


def _waiting(path: str) -> int:
    """Return how many messages wait in a database that nobody has open; 0 if it cannot be read."""
    if not os.path.isfile(path):
        return 0
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True)
        ) as connection:
            return int(connection.execute(_WAITS).fetchone()[0])
    except sqlite3.Error:
        return 0


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _remembered(mark: str) -> str:
    try:
        with open(mark, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(_LONGEST).rstrip("\n")
    except OSError:
        return ""
