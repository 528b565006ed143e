"""A message that could not be handed in, kept for its sender: dead.letter, as mail programs do.

~/dead.letter of the user who called, in the form of a mailbox file; /var/tmp/dead.letter.UID for
users without a home of their own (www-data, nobody). Never sent by itself: whoever finds it can
send it again with `sendmail RECIPIENT < FILE`, one message at a time.

SECURITY: written only into a folder nobody else could have prepared, or a file that is the
user's own: no link is followed, nobody else may read it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Final

MOST_OCTETS: Final = 64 * 2**20
_SHARED: Final = "/var/tmp"  # noqa: S108  what is made there is looked at before it is written to
_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def keep(content: bytes, *, home: str, stamp: str, recipients: str, why: str) -> str:
    """Append a message and return the file's path; raises OSError when there is no place for it.

    content:    CRLF lines.    stamp: "SENDER Sat Nov 21 10:00:00 2026".
    recipients: one line.      why: one line of words.
    """
    text = b"\n" + content.replace(b"\r\n", b"\n")
    octets = (
        f"From {stamp}\nX-Undelivered-To: {recipients}\nX-Undelivered-Because: {why}".encode(
            "utf-8", "replace"
        )
        + text.replace(b"\nFrom ", b"\n>From ")
        + b"\n"
    )
    places = [os.path.join(home, "dead.letter")] if _is_own(home) else []
    places.append(os.path.join(_SHARED, f"dead.letter.{os.getuid()}"))
    for place in places:
        with contextlib.suppress(OSError):
            _append(place, octets)
            return place
    raise OSError(0, "no folder to keep it in", places[0])


def _is_own(home: str) -> bool:
    """Tell whether a folder is this user's, and only this user's to write in."""
    try:
        found = os.stat(home)
    except OSError:
        return False
    is_folder = stat.S_ISDIR(found.st_mode)
    return is_folder and found.st_uid == os.getuid() and not found.st_mode & _OTHERS


def _append(path: str, octets: bytes) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    try:
        found = os.fstat(file)
        # SECURITY: in a shared folder somebody else may have made it, or linked it to another.
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and found.st_nlink == 1
        if not is_own or found.st_mode & _OTHERS:
            raise PermissionError(0, "not a file of this user alone", path)
        if found.st_size + len(octets) > MOST_OCTETS:
            raise OSError(0, "full", path)
        left = memoryview(octets)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)
