"""What the master hands each child over the fork, and the words both use on the channel.

One AF_UNIX SOCK_SEQPACKET pair for each child; a packet is one JSON object of at most 64 KiB.

    child -> master  {"event": "ready"}               serving; the reload may go on
                     {"event": "opening"}             not stuck: a large spool is copied
                     {"event": "failed", "text": …}   cannot serve; then it exits
                     {"event": "status", …}           a child's figures, at most every 2 s:
                        worker: {"connections": n, "queue": {"ready": n, …}, "oldest_s": s,
                                 "spool": {"ok": b, …}}
                        admin:  {"admin": {"address": …, "listening": b, "text": …}, …}
                     {"event": "counters", "counters": {…}}    cumulative, in parts, before it
                     {"event": "upstreams", "upstreams": {…}}  likewise; a status with
                                                      "upstreams" has all of them
                     {"event": "callers" or "errors", "rows": […]}  news, of all children
    master -> child  {"do": "drain"}                  graceful stop; then exit 0
                     {"do": "reclaim", "pid": n}      a worker died: take back its leases
                     {"do": "control", "request": {…}, "peer": {"uid": n, "pid": n}} + 1 fd: a
                                                      client of control.sock, its request

Signals: SIGUSR1 reopen logs; SIGQUIT leave at once (SIGKILL 5 s later); SIGTERM the master
died, or cached is to go; SIGABRT no beat for 30 s. All others of a terminal are ignored.

End of file means that the master died: close listeners at once, drain for at most 5 s, go.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from relayd.master.frames import Frame, Json
from relayd.values import frozen

_PART_OCTETS: Final = 32_000
"""Of rows in one packet: half of what fits, for a row may be long."""


class Pulse(Protocol):
    """A child's row on the shared board; only its owner writes it."""

    def beat(self) -> None:
        """Tell the master that the hub is alive; call it from the hub every second."""
        ...

    def accept(self, *, does: bool) -> None:
        """Tell the other rows whether this one accepts connections; at first it does not."""
        ...

    def others(self) -> int:
        """Return the connections of all other processes."""
        ...

    def is_ahead(self) -> bool:
        """Tell whether another that accepts has far fewer connections, and should have the next."""
        ...

    def enter(self, device: str) -> bool:
        """Count one connection in for `device`; False when a limit is reached, none counted."""
        ...

    def is_full(self) -> bool:
        """Tell whether the limit for all connections together is reached."""
        ...

    def leave(self, device: str) -> None:
        """Count one connection out."""
        ...

    def move(self, old: str, new: str) -> bool:
        """Recount a connection whose device became known; False when the limit is reached."""
        ...


@frozen(kw_only=True)
class ChildContext:
    """All that a child needs to know of its birth.

    kind:       "worker" or "cached".
    number:     1.. among workers of its generation (shares the quota when cached is away);
                0 for cached.
    serial:     counts every child this master ever forked, from 1.
    config_fd:  sealed memfd with the checked Config as JSON (config.codec), read from 0.
    listeners:  (listener name, listening socket descriptor), non-blocking, for workers.
    channel_fd: this child's end of the SEQPACKET pair.
    """

    kind: str
    number: int
    serial: int
    config_fd: int
    listeners: tuple[tuple[str, int], ...]
    channel_fd: int
    pulse: Pulse


def status_packets(figures: Frame) -> Iterator[Frame]:
    """Yield what tells the master a worker's figures; each fits a packet.

    figures: as in "status"; its upstreams go ahead in parts, because of hundreds not all fit.
    """
    upstreams = figures.get("upstreams")
    if not isinstance(upstreams, Mapping) or not upstreams:
        # None known, of a worker that cannot tell: what it told before is not true any more.
        yield {"event": "status", "upstreams": {}, **figures}
        return
    for part in _parts(upstreams):
        yield {"event": "upstreams", "upstreams": part}
    yield {"event": "status", **{key: figures[key] for key in figures if key != "upstreams"}}


def _parts(rows: Mapping[str, Json]) -> Iterator[dict[str, Json]]:
    part: dict[str, Json] = {}
    size = 0
    for name, row in rows.items():
        octets = len(json.dumps({name: row}))
        if part and size + octets > _PART_OCTETS:
            yield part
            part, size = {}, 0
        part[name] = row
        size += octets
    yield part
