"""A file is written whole or not at all, is never half there, and has the owner it should."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from relayd.cli import files
from relayd.cli.files import Owner

MINE = Owner(os.geteuid(), os.getegid(), 0o640)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_its_content_and_mode_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "ups.toml"
    before = os.umask(0o077)
    try:
        files.put(str(path), b"x = 1\n", MINE)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"x = 1\n"
    assert mode(path) == 0o640
    assert os.listdir(tmp_path) == ["ups.toml"]


def test_a_new_file_does_not_replace_another(tmp_path: Path) -> None:
    path = tmp_path / "ups.toml"
    path.write_text("theirs")
    with pytest.raises(FileExistsError):
        files.put(str(path), b"ours", MINE)
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["ups.toml"]


def test_a_file_is_replaced_in_one_step_and_no_link_is_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("theirs")
    path = tmp_path / "secret"
    path.symlink_to(target)
    files.replace(str(path), b"ours", MINE)
    assert target.read_text() == "theirs"
    assert path.read_bytes() == b"ours"
    assert not path.is_symlink()


def test_a_write_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    path.write_text("old")

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    for write in (files.put, files.replace):
        with pytest.raises(OSError, match="No space"):
            write(str(path), b"new", MINE)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["secret"]


def test_a_rename_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "is_a_folder"
    folder.mkdir()
    with pytest.raises(OSError, match="directory"):
        files.replace(str(folder), b"new", MINE)
    assert os.listdir(tmp_path) == ["is_a_folder"]


@pytest.mark.parametrize(("of_file", "of_folder"), [(0o640, 0o750), (0o600, 0o700), (0o644, 0o755)])
def test_a_folder_is_open_to_those_who_may_read_the_file(
    tmp_path: Path, of_file: int, of_folder: int
) -> None:
    like = tmp_path / "relayd.toml"
    like.touch()
    like.chmod(of_file)
    folder = tmp_path / "conf.d"
    assert files.make_folder(str(folder), files.owner_like(str(like)))
    assert mode(folder) == of_folder
    assert not files.make_folder(str(folder), files.owner_like(str(like)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_gives_what_it_makes_to_the_owner(tmp_path: Path) -> None:
    owner = Owner(12345, 23456, 0o640)
    files.put(str(tmp_path / "a"), b"", owner)
    files.make_folder(str(tmp_path / "b"), owner)
    for name in "ab":
        found = (tmp_path / name).stat()
        assert (found.st_uid, found.st_gid) == (12345, 23456)


def test_a_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    files.remove(str(tmp_path / "a"))
    assert os.listdir(tmp_path) == []
