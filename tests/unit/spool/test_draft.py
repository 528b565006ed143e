"""A draft: little memory whatever comes, nothing left behind whatever fails."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from relayd.clock import SYSTEM
from relayd.errors import SpoolUnavailable
from relayd.spool import draft as room
from relayd.spool.content import SMALL, Shelf
from relayd.spool.draft import SqliteDraft
from relayd.spool.files import Files
from relayd.spool.model import NewMessage, QueueId
from relayd.spool.transaction import Value
from tests.spooling import new_message

MESSAGE = QueueId(1_700_000_000_000_000 << 12)


class Accepted:
    """Takes rows, or fails."""

    def __init__(self) -> None:
        self.content: tuple[Value, ...] = ()
        self.fails = False

    def __call__(
        self, draft: QueueId, message: NewMessage, content: tuple[Value, ...], *, deadline: float
    ) -> None:
        if self.fails:
            raise SpoolUnavailable("no")
        self.content = content


class House:
    def __init__(self, folder: Path) -> None:
        self.files = Files(SYSTEM)
        self.gate = threading.Event()
        self.gate.set()
        self.named = threading.Event()
        self.shelf = Shelf(str(folder), self.at)
        self.accepted = Accepted()

    def at(self, point: str) -> None:
        assert self.gate.wait(15)
        if point == "content-named":
            self.named.set()

    def draft(self) -> SqliteDraft:
        return SqliteDraft(MESSAGE, accept=self.accepted, files=self.files, shelf=self.shelf)

    def names(self) -> list[str]:
        return os.listdir(self.shelf.folder)

    def wait_until_empty(self) -> None:
        """Let the threads finish what was begun; fails after a quarter of a minute."""
        with gevent.Timeout(15):
            while self.names():
                gevent.idle()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.gate.set()
    made.files.close()


def commit(draft: SqliteDraft, seconds: float = 8.0) -> None:
    draft.commit(new_message(SYSTEM), deadline=SYSTEM.monotonic() + seconds)


def test_small_content_goes_into_the_row(house: House) -> None:
    draft = house.draft()
    draft.write(b"a" * SMALL)
    commit(draft)
    assert house.accepted.content[1] == SMALL
    assert house.accepted.content[3] == b"a" * SMALL
    assert not house.names()
    assert house.files.buffered == 0


def test_one_octet_more_goes_to_a_file(house: House) -> None:
    draft = house.draft()
    draft.write(b"a" * SMALL)
    draft.write(b"b")
    commit(draft)
    assert house.accepted.content[1] == SMALL + 1
    assert house.accepted.content[3] is None
    assert len(house.names()) == 1


def test_memory_stays_flat_whatever_the_message_weighs(house: House) -> None:
    draft = house.draft()
    most = 0
    for _ in range(200):
        draft.write(bytes(50_000))
        most = max(most, house.files.buffered)
    assert most < 400_000
    draft.discard()
    assert house.files.buffered == 0


def test_when_all_drafts_together_hold_much_even_small_ones_spill(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_BUFFERED", 20_000)
    drafts = [house.draft() for _ in range(10)]
    for one in drafts:
        one.write(bytes(8000))
    assert house.files.buffered <= 28_000
    for one in drafts:
        one.discard()
    assert house.files.buffered == 0


def test_a_disk_that_is_slow_at_the_dot_has_no_longer_than_the_client(house: House) -> None:
    draft = house.draft()
    draft.write(bytes(100_000))
    draft.write(b"the rest")
    house.gate.clear()
    stuck = [house.files.start(lambda: house.gate.wait(15)) for _ in range(4)]  # all threads
    began = SYSTEM.monotonic()
    with gevent.Timeout(10), pytest.raises(SpoolUnavailable, match="does not answer"):
        commit(draft, seconds=0.05)
    assert SYSTEM.monotonic() - began < 10  # and not _WRITE_S
    house.gate.set()
    for one in stuck:
        one.get()


def test_after_a_refused_commit_the_file_is_left_to_whom_it_was_given(house: House) -> None:
    house.accepted.fails = True
    draft = house.draft()
    draft.write(bytes(500_000))
    with pytest.raises(SpoolUnavailable):
        commit(draft)
    draft.discard()
    house.files.call(lambda: None)
    assert len(house.names()) == 1  # the row may be there, or on its way
    assert house.files.buffered == 0


def test_after_closing_a_draft_refuses_and_can_be_discarded(house: House) -> None:
    draft = house.draft()
    draft.write(bytes(100_000))
    house.files.close()
    with pytest.raises(SpoolUnavailable, match="closed"):
        draft.write(bytes(500_000))
    draft.discard()
    other = house.draft()
    other.write(b"x")
    other.discard()


def test_a_disk_that_fails_ends_the_draft(house: House, tmp_path: Path) -> None:
    os.rename(tmp_path / "content", tmp_path / "away")
    draft = house.draft()
    with pytest.raises(SpoolUnavailable):
        draft.write(bytes(100_000))
    with pytest.raises(SpoolUnavailable, match="gone"):
        draft.write(b"more")
    assert house.files.buffered == 0


def test_a_disk_that_hangs_lets_the_client_go_at_its_deadline(house: House) -> None:
    draft = house.draft()
    draft.write(bytes(100_000))
    house.gate.clear()
    with pytest.raises(SpoolUnavailable, match="does not answer"):
        commit(draft, 0.05)
    assert not house.accepted.content
    house.gate.set()  # the disk comes back: the file gets its name, then what cleans up runs
    with gevent.Timeout(15):
        while not house.named.is_set():
            gevent.idle()
    house.wait_until_empty()
