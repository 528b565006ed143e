"""A process that uses the spool is killed between any two writes; what was promised is there.

acknowledged       there, once, whole
not acknowledged   there whole (the reply was lost) or not at all
settled            stays settled; its file is gone, at the latest after the sweep
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from relayd.clock import SYSTEM
from relayd.config.model import Spool
from relayd.spool.door import open_spool
from relayd.spool.model import QueueId, State, queue_id_text
from relayd.spool.queries import Filter, Reader
from tests.spooling import ALERTS

ROOT = Path(__file__).parents[2]

ACCEPTING = ["content-written", "content-synced", "content-linked", "content-named"]
COMMITTING = ["before-commit", "after-commit"]


class Child:
    """tests.spool_child under way, and what it said."""

    def __init__(
        self,
        database: str,
        task: str,
        point: str = "",
        nth: int = 1,
        *,
        under: tuple[str, ...] = (),
    ) -> None:
        self.said: list[list[str]] = []
        self.process = subprocess.Popen(
            [*under, sys.executable, "-m", "tests.spool_child", database, task, point, str(nth)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            pipesize=1 << 20,  # a full pipe must not slow one of two down
        )

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")

    def lines(self) -> Iterator[list[str]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.decode().split())
            yield self.said[-1]

    def finish(self) -> int:
        self.wait_ready()
        self.go()
        for _ in self.lines():
            pass
        return self.end()

    def end(self) -> int:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        return self.process.wait()

    def told(self, word: str) -> list[list[str]]:
        return [words[1:] for words in self.said if words[0] == word]


@pytest.fixture
def database(tmp_path: Path) -> str:
    tmp_path.chmod(0o700)
    return str(tmp_path / "spool.db")


def states(database: str) -> dict[QueueId, State]:
    with closing(Reader(database, SYSTEM)) as reader:
        found, after = reader.page(Filter())
        while after:
            more, after = reader.page(Filter(), after=after)
            found += more
    assert len({one.id for one in found}) == len(found)
    return {one.id: one.state for one in found}


def check(database: str, child: Child) -> None:
    """Open the spool as a new worker would, and hold it to what the child had said."""
    acknowledged = {QueueId(int(number)): digest for number, digest in child.told("ack")}
    sent = {QueueId(int(number)) for (number,) in child.told("sent")}
    door = open_spool(
        Spool(url=f"sqlite://{database}"), lane=0, min_free_bytes=0, max_message_bytes=0
    )
    with closing(door):
        door.reclaim()
        found = states(database)
        assert set(acknowledged) <= set(found)
        assert all(found[message] is State.SENT for message in sent)
        assert all(one in {State.READY, State.SENT} for one in found.values())
        for message in (one for one, state in found.items() if state is State.READY):
            with door.content(message) as pieces:
                digest = hashlib.sha256(b"".join(pieces)).hexdigest()
            assert digest == acknowledged.get(message, digest)
        make_old(database)
        door.sweep()
        waiting = {queue_id_text(one) for one, state in found.items() if state is State.READY}
        assert set(os.listdir(content_folder(database))) <= waiting
        leases = door.lease(ALERTS, limit=100)
        assert len(leases) == len(waiting)


def content_folder(database: str) -> str:
    return os.path.join(os.path.dirname(database), "content")


def make_old(database: str) -> None:
    """Let content files look two hours old, so that the sweep may judge them."""
    folder = content_folder(database)
    for name in os.listdir(folder):
        os.utime(os.path.join(folder, name), (0, 0))


@pytest.mark.slow(0.6)
@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("point", [*ACCEPTING, *COMMITTING])
@pytest.mark.parametrize("task", ["accept", "deliver", "lease"])
def test_killed_between_two_writes(database: str, task: str, point: str, nth: int) -> None:
    child = Child(database, task, point, nth)
    status = child.finish()
    assert status == -9 or (point in ACCEPTING and child.said[-1] == ["done"])
    check(database, child)


@pytest.mark.slow(0.6)
@pytest.mark.parametrize("task", ["deliver", "lease"])
def test_killed_between_the_settle_and_the_unlink(database: str, task: str) -> None:
    child = Child(database, task, "before-unlink", 2)
    assert child.finish() == -9
    check(database, child)


@pytest.mark.slow(0.6)
def test_nobody_killed(database: str) -> None:
    child = Child(database, "deliver")
    assert child.finish() == 0
    assert len(child.told("ack")) == len(child.told("sent")) == 12
    check(database, child)
    assert not os.listdir(content_folder(database))


@pytest.mark.slow(1.5)
def test_killed_at_random_while_two_hammer(database: str) -> None:
    children = [Child(database, "hammer") for _ in range(2)]
    for child in children:
        child.wait_ready()
        child.go()
    for _, _ in zip(children[0].lines(), range(300), strict=False):
        pass
    children[0].process.kill()
    for _ in children[0].lines():
        pass
    children[0].end()
    for _, _ in zip(children[1].lines(), range(300), strict=False):  # the locks went with it
        pass
    stop(children[1])
    together = children[1]
    together.said += children[0].said
    check(database, together)


@pytest.mark.slow(2)
def test_two_processes_get_equal_shares_of_the_turnstile(database: str) -> None:
    children = [Child(database, "hammer") for _ in range(2)]
    for child in children:
        child.wait_ready()
    for child in children:
        child.go()
    for _, _ in zip(children[0].lines(), range(1000), strict=False):
        pass
    for child in children:
        child.go()  # the word to stop; what the pipes still hold is counted
    for child in children:
        finish_reading(child)
    shares = sorted(len(child.told("ack")) for child in children)
    assert shares[1] <= 3 * shares[0]
    children[0].said += children[1].said
    check(database, children[0])


def stop(child: Child) -> None:
    child.go()
    finish_reading(child)


def finish_reading(child: Child) -> None:
    for _ in child.lines():
        pass
    assert child.end() == 0


@pytest.mark.slow(3)
@pytest.mark.parametrize(("call", "nth"), [("fdatasync", 40), ("pwrite64", 200)])
def test_an_error_of_the_disk_refuses_and_what_was_acknowledged_stays(
    database: str, call: str, nth: int
) -> None:
    strace = _strace()
    inject = f"inject={call}:error=EIO:when={nth}..{nth + 1}"
    child = Child(database, "keep-trying", under=(*strace, "-e", f"trace={call}", "-e", inject))
    assert child.finish() == 0
    refused = {QueueId(int(number)) for _, number in child.told("refused")} - {QueueId(0)}
    assert child.told("refused")
    assert not refused & set(states(database))  # taken back once the disk worked again
    check(database, child)


@pytest.mark.slow(1)
def test_everything_is_flushed_in_order_before_it_is_acknowledged(
    database: str, tmp_path: Path
) -> None:
    found, *options = _strace()
    log = tmp_path / "calls"
    calls = "trace=fsync,fdatasync,linkat,write"
    options[options.index("/dev/null")] = str(log)
    child = Child(database, "one-large", under=(found, *options, "-y", "-e", calls))
    assert child.finish() == 0
    lines = log.read_text().splitlines()
    (ready,) = [at for at, line in enumerate(lines) if '"ready' in line]
    (ack,) = [at for at, line in enumerate(lines) if '"ack' in line]
    order = []
    for line in lines[ready:ack]:
        call = line.split("(")[0].split()[-1]
        if "resumed" not in line and call != "write":
            place = "wal" if "spool.db-wal" in line else "folder" if "/content>" in line else "file"
            order.append(f"{call} {place}")
    wanted = ["fsync file", "linkat folder", "fsync folder", "fdatasync wal"]
    assert [one for one in order if one in wanted] == wanted


@pytest.mark.slow(3)
def test_a_full_disk_is_said_to_be_full(database: str) -> None:
    strace = _strace()
    inject = "inject=pwrite64:error=ENOSPC:when=200..201"
    child = Child(database, "keep-trying", under=(*strace, "-e", "trace=pwrite64", "-e", inject))
    assert child.finish() == 0
    assert {word for word, _ in child.told("refused")} == {"SpoolFull"}
    check(database, child)


def _strace() -> tuple[str, ...]:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed: no way to make this disk fail honestly")
    tried = subprocess.run([found, "-o", "/dev/null", "true"], check=False, capture_output=True)
    if tried.returncode:
        pytest.skip("strace may not trace here: no way to make this disk fail honestly")
    return (found, "-f", "-qq", "-o", "/dev/null")


@pytest.mark.slow(0.6)
def test_a_content_file_that_may_not_grow_is_refused_as_full_and_leaves_nothing(
    database: str,
) -> None:
    child = Child(database, "limited")
    assert child.finish() == 0
    assert [words[0] for words in child.said] == ["refused", "ack", "done"]
    assert child.told("refused")[0][0] == "SpoolFull"
    check(database, child)
