"""Everything the sandbox holds, in one place: directory, knobs, faults, tokens, mail, counts.

One event loop owns a Lab; nothing in it locks. Time comes from a clock; `lab_now` is
monotonic and runs `time_factor` times as fast as the wall.
"""

from __future__ import annotations

import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

from relayd.clock import SYSTEM, Clock
from relayd.sandbox.faults import FaultQueue
from relayd.sandbox.fields import Json
from relayd.sandbox.knobs import App, Knobs, Mailbox, Tenant
from relayd.sandbox.limits import Limiter
from relayd.sandbox.store import Store, Stored
from relayd.sandbox.tokens import Mint

_REMEMBERED_REQUESTS: Final = 1000
NAMESPACE: Final = uuid.UUID("7c0e3a52-5d0f-4c43-9b0e-52454c415944")


def stable_id(*words: str) -> str:
    """Return a GUID that is the same whenever the words are."""
    return str(uuid.uuid5(NAMESPACE, "\n".join(words)))


class Watcher:
    """Whoever looks on, e.g. the command line; this one does not."""

    def sent(self, stored: Stored) -> None:
        """A message was delivered."""

    def refused(self, status: int, code: str, reason: str) -> None:
        """A request was answered with an error; status 0: not at all."""


@dataclass(slots=True)
class Directory:
    """Who exists. Keys are lower-case."""

    tenants: list[Tenant] = field(default_factory=list)
    apps: dict[str, App] = field(default_factory=dict)
    mailboxes: dict[str, Mailbox] = field(default_factory=dict)

    def tenant(self, name: str) -> Tenant | None:
        """Return the tenant of that GUID or domain."""
        key = name.lower()
        return next((t for t in self.tenants if key == t.id or key in t.domains), None)

    def put(self, mailbox: Mailbox) -> Mailbox:
        """Add or replace a mailbox; returns it with its object id."""
        key = mailbox.address.lower()
        self.mailboxes[key] = mailbox
        return mailbox

    def mailbox(self, name: str, *, any_mailbox: bool = False) -> Mailbox | None:
        """Return whom `/users/{name}` means: an object id or a sign-in name, not an alias."""
        key = name.lower()
        found = self.mailboxes.get(key)
        if found is not None and found.upn.lower() in ("", key):
            return found
        for mailbox in self.mailboxes.values():
            if key in (mailbox.object_id.lower(), mailbox.upn.lower()):
                return mailbox
        if any_mailbox and "@" in key and found is None:
            return self.put(Mailbox(address=key, object_id=stable_id("mailbox", key)))
        return None

    def owner(self, address: str) -> Mailbox | None:
        """Return the mailbox that has `address` as primary address or alias."""
        key = address.lower()
        return self.mailboxes.get(key) or next(
            (m for m in self.mailboxes.values() if key in (a.lower() for a in m.aliases)), None
        )


@dataclass(slots=True)
class Lab:
    """The whole state. denied_at: when a denied mailbox was last asked for (lab_now)."""

    mint: Mint
    directory: Directory
    knobs: Knobs = field(default_factory=Knobs)
    clock: Clock = SYSTEM
    store: Store = field(default_factory=Store)
    faults: FaultQueue = field(default_factory=FaultQueue)
    limiter: Limiter = field(default_factory=Limiter)
    counts: Counter[str] = field(default_factory=Counter)
    requests: deque[dict[str, Json]] = field(
        default_factory=lambda: deque(maxlen=_REMEMBERED_REQUESTS)
    )
    denied_at: dict[str, float] = field(default_factory=dict)

    def lab_now(self) -> float:
        """Return monotonic seconds as the sandbox counts them."""
        return self.clock.monotonic() * self.knobs.time_factor

    def epoch_s(self) -> int:
        """Return whole seconds since 1970, for tokens."""
        return int(self.clock.utcnow().timestamp())

    def reset(self) -> None:
        """Forget mail, counts and faults; keep knobs, directory and tokens."""
        self.store.clear()
        self.faults.clear()
        self.faults.happened.clear()
        self.limiter.reset()
        self.counts.clear()
        self.requests.clear()
        self.denied_at.clear()
