"""What the courier and a way out say to each other.

A transport never raises for remote failures: they are outcomes. It raises what reading the
content raises (SpoolUnavailable, LeaseLost); nothing complete has then been sent. Once a part
of the recipients was answered it does not raise: the rest has an outcome of its own (Divided).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from relayd.deliver.outcome import Result
from relayd.spool.model import Lease

OpenContent: TypeAlias = Callable[[], AbstractContextManager[Iterator[bytes]]]


class Grip(Protocol):
    """One lease in the courier's hand, kept alive while the transport works."""

    @property
    def lease(self) -> Lease:
        """What is delivered."""
        ...

    def seconds_left(self) -> float:
        """Return how long one exchange may take from now; 0 or less: do not begin."""
        ...

    def may_begin(self) -> bool:
        """Tell, just before the first octet, whether the lease still stands."""
        ...


class Transport(Protocol):
    """One way out of one upstream. name: "graph", "smtp"; for the journal."""

    @property
    def name(self) -> str:
        """The word in the journal."""
        ...

    def send(self, grip: Grip, content: OpenContent) -> Result:
        """Try once; blocks the calling greenlet. content: for leases without octets at hand."""
        ...

    def close(self) -> None:
        """Give idle connections up."""
        ...
