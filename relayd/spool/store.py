"""The spool as the two halves see it: `Door` for a worker, `Draft` for one message.

One worker holds one Door. Its methods block the calling greenlet only; the disk is touched
in native threads. Promises every implementation keeps (tests/store holds them to it):

    after `Draft.commit` returns, the message survives a power cut
    a delivery has at most one holder; a stale holder's `settle` raises LeaseLost
    lease and intent are one commit; settle and its journal row are one commit
    nothing here raises anything but SpoolUnavailable, SpoolFull and LeaseLost

Source: docs/flow.md; the order of writes stands beside each `# DURABILITY:`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol, TypeAlias

from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.spool.model import (
    Lease,
    MailboxRef,
    NewDelivery,
    NewMessage,
    QueueId,
    Settlement,
)
from relayd.values import frozen


class Draft(Protocol):
    """One message while it is received. Memory stays flat whatever the message weighs."""

    @property
    def id(self) -> QueueId:
        """The id the message will have; known before the first octet."""
        ...

    def write(self, octets: bytes) -> None:
        """Add content, canonical CRLF; raises SpoolUnavailable, SpoolFull."""
        ...

    def commit(self, message: NewMessage, *, deadline: float) -> None:
        """Make content and message durable; 250 may be said once this returns.

        deadline: monotonic; passed before the commit began: nothing is kept; passed while
                  it ran: a compensating delete follows in the next batch.
        raises:   SpoolUnavailable, SpoolFull - NOT accepted.
        """
        ...

    def discard(self) -> None:
        """Forget all; never raises, may be called twice and after `commit`."""
        ...


class Taker(Protocol):
    """Who delivers in this worker; the Door asks it while accepting, so that a message may be
    born leased (accept, lease and intent in one commit).
    """

    def wants(self, delivery: NewDelivery, priority: int) -> bool:
        """Tell whether a free slot for it is at hand now, and set it aside; never blocks.

        Called on the hub, once for each new delivery, just before its commit. True is a
        promise kept by `take` or given back by `spare`.
        """
        ...

    def take(self, lease: Lease) -> None:
        """Deliver this; called on the hub right after the commit."""
        ...

    def spare(self, delivery: NewDelivery) -> None:
        """The commit failed: the slot set aside by `wants` is free again."""
        ...

    def offer(self, mailboxes: Sequence[MailboxRef]) -> None:
        """These mailboxes have work in the spool; called on the hub, never blocks."""
        ...


@frozen
class Hold:
    """A (mailbox, From) that Microsoft refuses for now; its deliveries are HELD.

    cause:    the remote's code ("ErrorSendAsDenied"); it is also their `held_by`.
    probe_at: when one of them is tried again.
    """

    mailbox: MailboxRef
    header_from: str
    cause: str
    text: str
    since: datetime
    probe_at: datetime


@frozen
class Work:
    """What waits. mailboxes: with READY or due rows, best priority first; next_due_at: the
    earliest later moment at which a row or a probe comes due, None if none.
    """

    mailboxes: tuple[MailboxRef, ...]
    next_due_at: datetime | None


@frozen(kw_only=True)
class Expired:
    """A delivery that was given up because its time was over; for the log and for reports."""

    delivery: int
    message: QueueId
    mailbox: MailboxRef
    held_by: str
    attempts: int
    recipients: tuple[str, ...]
    sender: str
    device: str
    session: str
    accepted_at: datetime


Told: TypeAlias = Callable[[LeaseLost | SpoolUnavailable | None], None]
"""Hears that a settlement is durable (None), or why it is not; runs on the hub, never blocks."""


class Door(Protocol):
    """A worker's spool. Every method may be called from any greenlet."""

    def draft(self, *, priority: int = 1) -> Draft:
        """Begin a message; raises SpoolUnavailable, SpoolFull (too little free space).

        priority: as far as known at MAIL; where space runs short, 2 is refused first, 0 last.
        """
        ...

    def set_taker(self, taker: Taker) -> None:
        """Name who delivers here."""
        ...

    def work(self) -> Work:
        """Return the mailboxes with work; DEFERRED rows that are due count."""
        ...

    def lease(self, mailbox: MailboxRef, *, limit: int) -> list[Lease]:
        """Lease the best rows of `mailbox`: priority, then age; intent journalled.

        Skips rows whose (mailbox, From) has a Hold, except one probe when it is due.
        """
        ...

    def renew(self, lease: Lease) -> Lease:
        """Return the lease with a later expiry; raises LeaseLost."""
        ...

    def settle(self, lease: Lease, settlement: Settlement) -> None:
        """Record what became of it.

        SENT releases what is held for the same (mailbox, From). HELD by a cause other than
        "operator" makes or refreshes that Hold. An operator's wish made while it was leased
        (hold, delete) is obeyed. raises: LeaseLost, SpoolUnavailable (then try again).
        """
        ...

    def settle_soon(self, lease: Lease, settlement: Settlement, told: Told) -> None:
        """Do the same without waiting; `told` hears how it went, and what would have been raised.

        Settlements of one caller are done in their order.
        """
        ...

    def content(self, message: QueueId) -> AbstractContextManager[Iterator[bytes]]:
        """Open the content in pieces of 1..262144 octets; raises SpoolUnavailable."""
        ...

    def holds(self) -> tuple[Hold, ...]:
        """Return the Holds in force."""
        ...

    def reclaim(self, *, pid: int | None = None) -> int:
        """Return dead holders' leases to READY (or as `ambiguous` says, by `maybe_sent`).

        pid: only this process's; None: every holder that is no longer alive, and every
             expired lease. returns: how many.
        """
        ...

    def sweep(self) -> tuple[Expired, ...]:
        """Expire what is too old, drop old history and content, remove orphaned files.

        returns: what was given up, to be logged and reported by the caller.
        """
        ...

    def follow_clock(self) -> None:
        """Make due again what a clock that was set back would keep; `sweep` does it too.

        For while the clock is not to be trusted with expiry.
        """
        ...

    def close(self) -> None:
        """Finish the batch under way and close; later calls raise SpoolUnavailable."""
        ...
