"""What the spool costs: durable accepts and settles, from greenlets, on this disk.

    python bench/spool.py [--folder DIR] [--messages N] [--greenlets N] [--waiting N]

Each greenlet is a device that sends 2 kB messages one after the other; each message is born
leased, settled SENT at once, and counted when both commits are durable. Then the same beside
a queue of a million waiting rows, and leasing from that queue. Rates are this machine's;
compare them with each other, and the CPU with the budget.
"""

# ruff: noqa: D102, E402, S608 - patched before the rest is imported; SQL from constants

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import timedelta

import gevent

from relayd.clock import SYSTEM
from relayd.config.model import Spool
from relayd.spool.door import SqliteDoor, open_spool
from relayd.spool.model import (
    Lease,
    MailboxRef,
    NewDelivery,
    NewMessage,
    Settlement,
    State,
)

BOX = MailboxRef("contoso", "alerts@contoso.com")
BODY = os.urandom(1024).hex().encode()
SENT = Settlement(state=State.SENT, outcome="sent", http_status=202, request_id="0" * 36)


def new_message() -> NewMessage:
    now = SYSTEM.utcnow()
    return NewMessage(
        sender="ups@contoso.com",
        priority=1,
        accepted_at=now,
        expires_at=now + timedelta(days=5),
        size_bytes=len(BODY),
        body_sha256="a" * 64,
        message_id="<1@ups>",
        subject="",
        session="0ABCDEF",
        listener="lan",
        ip="192.0.2.5",
        helo="ups",
        device="ups",
        user="",
        deliveries=(
            NewDelivery(
                mailbox=BOX, recipients=("admin@contoso.com",), header_from="ups@contoso.com"
            ),
        ),
    )


class Eager:
    """Delivers at once: settles each lease in a greenlet of its own."""

    def __init__(self, door: SqliteDoor, *, wanted: bool) -> None:
        self.door = door
        self.wanted = wanted
        self.settled = 0

    def wants(self, delivery: NewDelivery, priority: int) -> bool:
        return self.wanted

    def take(self, lease: Lease) -> None:
        gevent.spawn(self._settle, lease)

    def _settle(self, lease: Lease) -> None:
        self.door.settle(lease, SENT)
        self.settled += 1

    def spare(self, delivery: NewDelivery) -> None:
        pass

    def offer(self, mailboxes: Sequence[MailboxRef]) -> None:
        pass


def submit(door: SqliteDoor, count: int, latencies: list[float]) -> None:
    for _ in range(count):
        began = time.perf_counter()
        draft = door.draft()
        draft.write(BODY)
        draft.commit(new_message(), deadline=SYSTEM.monotonic() + 8)
        latencies.append(time.perf_counter() - began)


def measure(words: str, door: SqliteDoor, taker: Eager, messages: int, greenlets: int) -> float:
    latencies: list[float] = []
    before = taker.settled
    began, cpu = time.perf_counter(), time.process_time()
    gevent.joinall(
        [gevent.spawn(submit, door, messages // greenlets, latencies) for _ in range(greenlets)],
        raise_error=True,
    )
    count = messages // greenlets * greenlets
    while taker.wanted and taker.settled - before < count:
        gevent.idle()
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    latencies.sort()
    print(
        f"{words:46} {count / elapsed:8.0f} /s  CPU {cpu / count * 1e6:6.1f} us each  "
        f"p50 {latencies[len(latencies) // 2] * 1e3:5.1f} ms  "
        f"p99 {latencies[len(latencies) * 99 // 100] * 1e3:5.1f} ms",
        flush=True,
    )
    return count / elapsed


def drain(words: str, door: SqliteDoor, count: int) -> None:
    """Lease three at a time and settle them, as a courier does for one mailbox."""
    began, cpu = time.perf_counter(), time.process_time()
    done = 0
    while done < count:
        leases = door.lease(BOX, limit=3)
        gevent.joinall(
            [gevent.spawn(door.settle, lease, SENT) for lease in leases], raise_error=True
        )
        done += len(leases)
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(f"{words:46} {done / elapsed:8.0f} /s  CPU {cpu / done * 1e6:6.1f} us each", flush=True)


def timed(words: str, door: SqliteDoor) -> None:
    began = time.perf_counter()
    for _ in range(100):
        door.work()
    print(f"{words:46} {(time.perf_counter() - began) * 10:8.2f} ms each", flush=True)


def fill(path: str, count: int) -> None:
    """Copy one waiting message `count` times, inside SQLite."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("BEGIN")
    numbers = f"WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {count})"
    (last,) = connection.execute("SELECT max(id) FROM message").fetchone()
    for table, more in (("message", ""), ("content", ""), ("delivery", ", message")):
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        rest = ", ".join(one for one in columns if one not in {"id", "message"})
        new = f"id + n * 4096{', message + n * 4096' if more else ''}"
        connection.execute(
            f"{numbers} INSERT INTO {table} (id{more}, {rest}) SELECT {new}, {rest}"
            f" FROM {table}, n WHERE id = {last}"
        )
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    os.sync()  # or what is measured next pays for all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--greenlets", type=int, default=50)
    parser.add_argument("--waiting", type=int, default=1_000_000)
    parser.add_argument("--switch", type=float, default=0.0005)
    options = parser.parse_args()
    sys.setswitchinterval(options.switch)
    folder = tempfile.mkdtemp(prefix="spool-bench-", dir=options.folder)
    path = os.path.join(folder, "spool.db")
    settings = Spool(url=f"sqlite://{path}")
    try:
        door = open_spool(settings, lane=1, min_free_bytes=0, max_message_bytes=0)
        taker = Eager(door, wanted=True)
        door.set_taker(taker)
        measure("warm-up", door, taker, 2000, options.greenlets)
        for greenlets in (1, 10, options.greenlets, 200):
            few = options.messages // (8 if greenlets == 1 else 1)
            measure(f"accept + settle, {greenlets} greenlets", door, taker, few, greenlets)
        taker.wanted = False
        measure("accept only (queued), empty queue", door, taker, 5000, options.greenlets)
        drain("lease + settle, short queue", door, 2000)
        timed("work(), short queue", door)
        if options.waiting:
            door.close()
            fill(path, options.waiting)
            began = time.perf_counter()
            door = open_spool(settings, lane=1, min_free_bytes=0, max_message_bytes=0)
            print(f"{'open beside the waiting':46} {(time.perf_counter() - began) * 1e3:8.1f} ms")
            taker = Eager(door, wanted=True)
            door.set_taker(taker)
            measure("warm-up beside the waiting", door, taker, 5000, options.greenlets)
            measure(
                f"accept + settle, {options.waiting} waiting",
                door,
                taker,
                options.messages,
                options.greenlets,
            )
            drain(f"lease + settle, {options.waiting} waiting", door, 2000)
            timed(f"work(), {options.waiting} waiting", door)
        door.close()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
