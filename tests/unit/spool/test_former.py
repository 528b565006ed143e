"""A spool that [spool] url no longer names: told while mail waits in it, then forgotten."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relayd.spool.former import left_behind, would_leave
from relayd.spool.leasing import TakeLeases
from relayd.spool.settling import Settle
from tests.spooling import ALERTS, SENT, Bench

NOW = "/var/spool/relayd/spool.db"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def old_spool(folder: Path, *, waiting: int, sent: int = 0) -> str:
    """Make a spool as a relay leaves it that was stopped; return its database."""
    folder.mkdir()
    bench = Bench(folder)
    for _ in range(sent):
        bench.put()
        (lease,) = bench.do(TakeLeases(ALERTS, 1))
        pair = (*ALERTS, lease.header_from)
        bench.do(Settle(lease.delivery, lease.fence, lease.message, pair, False, SENT))
    for _ in range(waiting):
        bench.put()
    bench.core.close()
    return bench.core.path


def test_the_first_spool_is_remembered_and_nothing_told(state: Path) -> None:
    assert left_behind(str(state), NOW) == ""
    assert (state / "spool").read_text() == NOW + "\n"
    assert left_behind(str(state), NOW) == ""


def test_another_name_of_the_same_database_is_no_former_one(state: Path, tmp_path: Path) -> None:
    now = old_spool(tmp_path / "old", waiting=1)
    (tmp_path / "link").symlink_to(tmp_path / "old")
    for other in (f"{tmp_path}//old/spool.db", f"{tmp_path}/link/spool.db"):
        (state / "spool").write_text(other + "\n")
        assert left_behind(str(state), now) == ""
        assert (state / "spool").read_text() == now + "\n"


def test_mail_that_waits_in_the_former_spool_is_told_until_it_is_gone(
    state: Path, tmp_path: Path
) -> None:
    old = old_spool(tmp_path / "old", waiting=3, sent=2)
    assert left_behind(str(state), old) == ""
    before = sorted(os.listdir(tmp_path / "old"))

    for _ in range(2):
        words = left_behind(str(state), NOW)
        assert words.startswith(f"3 messages wait in {old}, and [spool] url is {NOW} now")
    assert sorted(os.listdir(tmp_path / "old")) == before, "looking leaves nothing behind"

    Path(old).unlink()
    assert left_behind(str(state), NOW) == ""
    assert (state / "spool").read_text() == NOW + "\n"


def test_a_look_before_the_start_tells_the_same_and_keeps_nothing(
    state: Path, tmp_path: Path
) -> None:
    old = old_spool(tmp_path / "old", waiting=3, sent=2)
    assert would_leave(str(state), NOW) == ""
    left_behind(str(state), old)
    assert would_leave(str(state), old) == ""
    words = would_leave(str(state), NOW)
    assert words == left_behind(str(state), NOW)
    assert "Set the url back and restart the relay until that queue is empty" in words
    assert "new place" not in words, "that has a database of its own by then"
    Path(old).unlink()
    assert would_leave(str(state), NOW) == ""
    assert (state / "spool").read_text() == old + "\n"


def test_a_former_spool_with_history_only_is_forgotten(state: Path, tmp_path: Path) -> None:
    old = old_spool(tmp_path / "old", waiting=0, sent=2)
    left_behind(str(state), old)
    before = sorted(os.listdir(tmp_path / "old"))

    assert left_behind(str(state), NOW) == ""
    assert (state / "spool").read_text() == NOW + "\n"
    assert sorted(os.listdir(tmp_path / "old")) == before, "looking leaves nothing behind"


def test_after_a_crash_its_log_may_know_of_mail(state: Path, tmp_path: Path) -> None:
    old = tmp_path / "spool.db"
    old.write_bytes(b"")
    Path(f"{old}-wal").write_bytes(b"x" * 4096)
    left_behind(str(state), str(old))

    assert left_behind(str(state), NOW).startswith(f"messages may wait in {old}")


@pytest.mark.parametrize("octets", [b"", b"no database", bytes(4096)])
def test_what_is_no_spool_is_no_mail(state: Path, tmp_path: Path, octets: bytes) -> None:
    old = tmp_path / "spool.db"
    old.write_bytes(octets)
    left_behind(str(state), str(old))

    assert left_behind(str(state), NOW) == ""


def test_a_state_that_cannot_be_kept_stops_nothing(tmp_path: Path) -> None:
    assert left_behind(str(tmp_path / "missing"), NOW) == ""
