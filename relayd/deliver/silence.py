"""Until when a mailbox is not to be asked about again, because it answered ErrorAccessDenied.

Exchange remembers a refusal for 30 minutes to 2 hours, and each request meanwhile makes it
remember longer: who tries every minute whether the new permission works keeps it from working.
So whoever asked by hand leaves a note in state_dir, and nobody asks for half an hour.

Mail that is held for the same reason keeps the same half hour (`deliver.decide`); its moment
comes from the spool's Holds, not from here.

Source: learn.microsoft.com/exchange/permissions-exo/application-rbac (limitations).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Final

from relayd.clock import SYSTEM, Clock

FILE_NAME: Final = "refusals.json"
SILENCE: Final = timedelta(minutes=30)
_MAX_BYTES: Final = 1024 * 1024


class Silence:
    """The notes of one relay; any process of the relay's user may use them at any time."""

    __slots__ = ("_clock", "_folder", "_path")

    def __init__(self, state_dir: str, *, clock: Clock = SYSTEM) -> None:
        self._folder = state_dir
        self._path = os.path.join(state_dir, FILE_NAME)
        self._clock = clock

    def until(self, upstream: str, mailbox: str) -> datetime | None:
        """Return when the mailbox may be asked about again; None: now."""
        refused_at = self._read().get(_key(upstream, mailbox))
        if refused_at is None:
            return None
        now, ends = self._clock.utcnow(), refused_at + SILENCE
        # A moment that is still to come was written by a clock that was wrong.
        return ends if refused_at <= now < ends else None

    def note(self, upstream: str, mailbox: str) -> bool:
        """Write down that it was refused just now; False: it cannot be written."""
        return self._change(_key(upstream, mailbox), self._clock.utcnow())

    def lift(self, upstream: str, mailbox: str) -> bool:
        """It was let in: ask again whenever it is wanted; False: it cannot be written."""
        return self._change(_key(upstream, mailbox), None)

    def _change(self, key: str, moment: datetime | None) -> bool:
        try:
            with self._locked():
                notes = self._read()
                if moment is None and key not in notes:
                    return True
                now = self._clock.utcnow()
                kept = {k: at for k, at in notes.items() if k != key and now - at < SILENCE}
                if moment is not None:
                    kept[key] = moment
                self._write(kept)
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep others from writing between our reading and our writing."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _read(self) -> dict[str, datetime]:
        try:
            with open(self._path, "rb") as file:
                members = json.loads(file.read(_MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return {}  # nobody was refused, or nobody can tell: then asking costs little
        return _parsed(members)

    def _write(self, notes: Mapping[str, datetime]) -> None:
        octets = json.dumps({key: at.isoformat() for key, at in notes.items()}).encode("ascii")
        temporary = f"{self._path}.new"
        with open(temporary, "wb", opener=_private) as file:
            file.write(octets)
        os.replace(temporary, self._path)


def _parsed(members: object) -> dict[str, datetime]:
    found: dict[str, datetime] = {}
    for key, text in members.items() if isinstance(members, dict) else ():
        try:
            moment = datetime.fromisoformat(text)
        except (TypeError, ValueError):
            continue
        if moment.tzinfo is not None:
            found[str(key)] = moment
    return found


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _key(upstream: str, mailbox: str) -> str:
    return f"{upstream} {mailbox.lower()}"
