"""A child's birth: its row, its channel, its context; then the room's own main function.

ENTRIES is the only place where the master names what runs in children, as text: importing
it here would bring gevent, ssl and the rooms into the one process that must not have them.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Final, cast

from relayd import lean
from relayd.master import files, spawn
from relayd.master.board import Board
from relayd.master.channel import Channel, pair
from relayd.master.child import ChildContext
from relayd.master.crew import Child, Crew
from relayd.master.sockets import by_listener
from relayd.observe import metrics

ENTRIES: Final[Mapping[str, str]] = {
    "worker": "relayd.worker:main",
    "cached": "relayd.cached:main",
    "admin": "relayd.admin.main:main",
    "checker": "relayd.check:run_checker",
}


def give_birth(
    crew: Crew,
    number: int,
    *,
    serial: int,
    row: int,
    board: Board,
    entry: str,
    now: float,
    mine: Iterable[spawn.Closable],
) -> Child:
    """Fork a child for post `number` of `crew`.

    mine: what the child must not keep: other channels, the control sockets, the self-pipe,
          other generations' listeners. Its own listeners and memfd stay open.
    raises: OSError - no process or descriptor to be had; try again later.
    """
    ours, theirs = pair()
    limits = crew.config.settings
    row_of_child = board.row(
        row,
        max_connections=files.for_connections(limits.max_connections, files.allowed()),
        max_per_device=limits.max_connections_per_device,
    )
    listeners = by_listener(crew.listening) if crew.kind == "worker" else ()
    title = f"worker {number}" if crew.kind == "worker" else crew.kind

    def run() -> int:
        # What the master counted would be added to the totals once more for each child.
        metrics.clear()
        lean.leave_out()
        context = ChildContext(
            kind=crew.kind,
            number=number,
            serial=serial,
            config_fd=_own_copy(crew.config.fd),
            listeners=listeners,
            channel_fd=theirs.detach(),
            pulse=row_of_child,
        )
        if crew.kind == "admin" and context.config_fd != crew.config.fd:
            # SECURITY: its own copy it closes when it has read what it needs; secrets are in it.
            with contextlib.suppress(OSError):
                os.close(crew.config.fd)
        for one in crew.listening:
            # From here on the descriptor belongs to the child, not to this object.
            if crew.kind == "worker" and one.fd >= 0:
                one.sock.detach()
        return _entry(entry)(context) or 0

    try:
        pid = spawn.fork(run, title=f"relayd: {title}", mine=[*mine, ours])
    except OSError:
        ours.close()
        raise
    finally:
        # In the child `fork` does not come back.
        theirs.close()
    return Child(
        pid=pid,
        kind=crew.kind,
        number=number,
        serial=serial,
        row=row,
        generation=crew.generation,
        channel=Channel(ours),
        born_at=now,
    )


def _own_copy(fd: int) -> int:
    """Return the memfd opened anew: with a file position that is not shared with siblings."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return fd


def _entry(entry: str) -> Callable[[ChildContext], int | None]:
    module, _, name = entry.partition(":")
    return cast(
        "Callable[[ChildContext], int | None]", getattr(importlib.import_module(module), name)
    )
