"""What could not be sent is kept where only its sender can read it, or said to be lost."""

from __future__ import annotations

import contextlib
import mailbox
import os
from pathlib import Path

import pytest

from relayd.cli import deadletter

CONTENT = b"Subject: x\r\n\r\none\r\nFrom here\r\n"


@pytest.fixture(autouse=True)
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o777)
    monkeypatch.setattr(deadletter, "_SHARED", str(folder))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


def keep(home: Path | str) -> str:
    return deadletter.keep(
        CONTENT, home=str(home), stamp="root Sat Nov 21 10:00:00 2026", recipients="a@b.c",
        why="nobody answers",
    )  # fmt: skip


def test_it_is_a_mailbox_file_with_the_reason_in_it(home: Path) -> None:
    assert keep(home) == str(home / "dead.letter")
    keep(home)
    with contextlib.closing(mailbox.mbox(home / "dead.letter")) as kept:
        first, second = kept
    assert first.get_from() == "root Sat Nov 21 10:00:00 2026"
    assert first["X-Undelivered-To"] == "a@b.c"
    assert first["X-Undelivered-Because"] == "nobody answers"
    assert first["Subject"] == second["Subject"] == "x"
    assert first.get_payload() == "one\n>From here\n"


def test_nobody_else_may_read_it(home: Path) -> None:
    before = os.umask(0)
    try:
        path = Path(keep(home))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_user_without_a_home_of_his_own_has_it_in_the_shared_folder(
    tmp_path: Path, shared: Path
) -> None:
    open_to_all = tmp_path / "www"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for home in (tmp_path / "none", open_to_all, ""):
        assert keep(home) == str(shared / f"dead.letter.{os.getuid()}")
    assert not list(open_to_all.iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give a folder away")
def test_a_home_of_somebody_else_is_not_written_into(home: Path, shared: Path) -> None:
    os.chown(home, 1234, 1234)
    assert keep(home).startswith(str(shared))


def test_no_link_is_followed_and_no_strange_file_is_written(
    home: Path, shared: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    (home / "dead.letter").symlink_to(victim)
    (shared / f"dead.letter.{os.getuid()}").hardlink_to(victim)
    with pytest.raises(OSError, match="no folder"):
        keep(home)
    (shared / f"dead.letter.{os.getuid()}").unlink()
    os.mkfifo(shared / f"dead.letter.{os.getuid()}", 0o600)
    reader = os.open(shared / f"dead.letter.{os.getuid()}", os.O_RDWR | os.O_NONBLOCK)
    try:
        with pytest.raises(OSError, match="no folder"):
            keep(home)
        with pytest.raises(BlockingIOError):
            os.read(reader, 1)
    finally:
        os.close(reader)
    assert victim.read_text() == ""


def test_a_file_that_others_may_write_is_not_used(home: Path, shared: Path) -> None:
    (home / "dead.letter").write_text("")
    (home / "dead.letter").chmod(0o666)
    assert keep(home).startswith(str(shared))


def test_it_does_not_grow_without_end(
    home: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadletter, "MOST_OCTETS", 200)
    assert keep(home).startswith(str(home))
    assert keep(home).startswith(str(shared))
    with pytest.raises(OSError, match="no folder"):
        keep(home)
    assert (home / "dead.letter").stat().st_size <= 200
