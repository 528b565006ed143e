"""The running relay, as doctor asks it: what it knows of an upstream, and its own token.

`Relay` is a Protocol because the command line owns the control socket; `Away` is the relay that
does not run, or does not answer this user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from relayd.master.frames import Json

Row: TypeAlias = Mapping[str, Json]


class Relay(Protocol):
    """One running relay, or the lack of one; no method raises."""

    @property
    def away(self) -> str:
        """Why nobody answers; "" while it runs."""
        ...

    @property
    def remedy(self) -> str:
        """What mends that."""
        ...

    @property
    def unavailable(self) -> str:
        """Why none of its workers serves; "" while one does, or starts."""
        ...

    @property
    def is_starting(self) -> bool:
        """True before a worker has told anything."""
        ...

    def upstream(self, name: str) -> Row | None:
        """Return its row of `status`; None: the running relay has no such upstream."""
        ...

    def token(self, name: str) -> Row | None:
        """Return the row of token.test; None: no answer."""
        ...

    def mailbox(self, name: str, mailbox: str) -> Row | None:
        """Return the row of mailbox.test; None: no answer."""
        ...

    def holds(self, name: str) -> Sequence[Row]:
        """Return the rows of upstream.holds."""
        ...

    def mailboxes(self, name: str) -> Sequence[str]:
        """Return the mailboxes it sends through."""
        ...


class Away:
    """Nobody answers."""

    unavailable = ""
    is_starting = False

    def __init__(self, why: str, remedy: str = "") -> None:
        self.away = why
        self.remedy = remedy

    def upstream(self, _name: str) -> Row | None:
        """Know nothing."""
        return None

    def token(self, _name: str) -> Row | None:
        """Have none."""
        return None

    def mailbox(self, _name: str, _mailbox: str) -> Row | None:
        """Ask nobody."""
        return None

    def holds(self, _name: str) -> Sequence[Row]:
        """Hold nothing."""
        return ()

    def mailboxes(self, _name: str) -> Sequence[str]:
        """Name none."""
        return ()
