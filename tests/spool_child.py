"""A process that uses a spool and may be killed at any named point; for tests/process.

    python -m tests.spool_child DATABASE TASK POINT NTH

It works on sys.stdin's word "go" and says on sys.stdout what it knows to be durable:
"ack ID SHA256", "sent ID", "refused CLASS", "step", "done". POINT "" kills nowhere.
"""

from __future__ import annotations

import hashlib
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from datetime import timedelta

import gevent

from relayd.clock import SYSTEM
from relayd.config.model import Spool
from relayd.errors import SpoolUnavailable
from relayd.spool.door import SqliteDoor, open_spool
from relayd.spool.model import Lease, NewDelivery
from tests.spooling import ALERTS, SENT, Taker, new_message, way

SMALL = 2000
LARGE = 300_000


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def killer(point: str, nth: int) -> Callable[[str], None]:
    seen = [0]

    def crash_at(name: str) -> None:
        if name == point:
            seen[0] += 1
            if seen[0] == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    return crash_at


def accept(door: SqliteDoor, size: int, *, wait_s: float = 8.0) -> bool:
    octets = b"Subject: x\r\n\r\n" + os.urandom(size // 2).hex().encode()
    draft = None
    try:
        draft = door.draft()
        for at in range(0, len(octets), 50_000):
            draft.write(octets[at : at + 50_000])
        message = new_message(SYSTEM, way(), octets=octets)
        draft.commit(message, deadline=SYSTEM.monotonic() + wait_s)
    except SpoolUnavailable as error:
        if draft is not None:
            draft.discard()
        say("refused", type(error).__name__, draft.id if draft else 0)
        return False
    say("ack", draft.id, hashlib.sha256(octets).hexdigest())
    return True


class Deliverer(Taker):
    """Settles at once what it takes."""

    def __init__(self, door: SqliteDoor) -> None:
        super().__init__()
        self.door = door
        self.running: list[gevent.Greenlet[..., None]] = []

    def take(self, lease: Lease) -> None:
        self.running.append(gevent.spawn(self.settle, lease))

    def settle(self, lease: Lease) -> None:
        self.door.settle(lease, SENT)
        say("sent", lease.message)

    def wants(self, delivery: NewDelivery, priority: int) -> bool:
        return True


def accept_all(door: SqliteDoor) -> None:
    """Accept small and large ones from several greenlets."""
    sizes = [SMALL, LARGE, SMALL, SMALL, LARGE, SMALL]
    gevent.joinall([gevent.spawn(accept, door, size) for size in sizes], raise_error=True)
    for size in sizes:
        accept(door, size)


def deliver_all(door: SqliteDoor) -> None:
    """Accept, born leased, and settle."""
    taker = Deliverer(door)
    door.set_taker(taker)
    accept_all(door)
    gevent.joinall(taker.running, raise_error=True)


def lease_all(door: SqliteDoor) -> None:
    """Lease what waits, settle it."""
    accept_all(door)
    while leases := door.lease(ALERTS, limit=3):
        for lease in leases:
            door.settle(lease, SENT)
            say("sent", lease.message)


def hammer(door: SqliteDoor) -> None:
    """Accept and settle until told to stop."""
    door.set_taker(Deliverer(door))
    stopped = False

    def run() -> None:
        while not stopped:
            accept(door, SMALL)

    greenlets = [gevent.spawn(run) for _ in range(5)]
    while not select.select([0], [], [], 0)[0]:
        gevent.idle()
    stopped = True
    gevent.joinall(greenlets, raise_error=True)


def keep_trying(door: SqliteDoor) -> None:
    """Accept until ten in a row went well after a refusal, or fifty in all."""
    well = refused = 0
    for _ in range(5000):
        if accept(door, SMALL):
            well += 1
        else:
            well, refused = 0, refused + 1
        if well >= (10 if refused else 50):
            return


def one_large(door: SqliteDoor) -> None:
    """Accept one."""
    accept(door, LARGE)


def limited(door: SqliteDoor) -> None:
    """Accept a large one while files may not grow past 100 kB, then again when they may."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    accept(door, LARGE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    accept(door, LARGE)


def main() -> None:
    database, task, point, nth = sys.argv[1:5]
    settings = Spool(url=f"sqlite://{database}", max_age=timedelta(days=5).total_seconds())
    door = open_spool(
        settings,
        lane=os.getpid(),
        min_free_bytes=0,
        max_message_bytes=0,
        crash_at=killer(point, int(nth)),
    )
    say("ready")
    sys.stdin.readline()
    tasks: dict[str, Callable[[SqliteDoor], None]] = {
        "accept": accept_all,
        "deliver": deliver_all,
        "lease": lease_all,
        "hammer": hammer,
        "keep-trying": keep_trying,
        "limited": limited,
        "one-large": one_large,
    }
    tasks[task](door)
    door.close()
    say("done")


if __name__ == "__main__":
    main()
