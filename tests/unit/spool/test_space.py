"""Room and trust in a file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relayd.clock import FakeClock
from relayd.errors import ConfigError, SpoolFull
from relayd.spool.space import Space, refuse_network

MOUNTS = (
    "21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
    "22 21 0:45 / /srv rw shared:2 - nfs4 server:/export rw\n"
    "23 22 8:2 / /srv/my\\040disk rw - xfs /dev/sdb rw\n"
    "garbage\n"
)


@pytest.fixture
def mounts(tmp_path: Path) -> str:
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTS)
    return str(path)


@pytest.mark.parametrize("folder", ["/", "/var/spool/relayd", "/srvx", "/srv/my disk/spool"])
def test_a_local_disk_is_taken(mounts: str, folder: str) -> None:
    refuse_network(folder, mounts=mounts)


def test_a_network_disk_is_refused_with_words(mounts: str) -> None:
    with pytest.raises(ConfigError, match="/srv/spool is on a nfs4 file system"):
        refuse_network("/srv/spool", mounts=mounts)


def test_where_nobody_says_what_it_is_it_is_taken(tmp_path: Path) -> None:
    refuse_network(str(tmp_path), mounts=str(tmp_path / "none"))


def test_low_priority_is_refused_first_and_high_last(tmp_path: Path) -> None:
    clock = FakeClock()
    look = Space(str(tmp_path), min_free_bytes=0, max_message_bytes=0, clock=clock)
    look.check(2)
    free = look.free_bytes
    for share, refused in ((0.1, set[int]()), (0.75, {2}), (1.5, {1, 2}), (3.0, {0, 1, 2})):
        space = Space(
            str(tmp_path), min_free_bytes=int(free * share), max_message_bytes=0, clock=clock
        )
        for priority in (0, 1, 2):
            if priority in refused:
                with pytest.raises(SpoolFull):
                    space.check(priority)
            else:
                space.check(priority)


def test_the_largest_message_must_fit_one_and_a_half_times(tmp_path: Path) -> None:
    clock = FakeClock()
    look = Space(str(tmp_path), min_free_bytes=0, max_message_bytes=0, clock=clock)
    look.check(1)
    space = Space(
        str(tmp_path), min_free_bytes=0, max_message_bytes=look.free_bytes * 8 // 10, clock=clock
    )
    with pytest.raises(SpoolFull):
        space.check(1)


@pytest.mark.parametrize("asked", [False, True])
def test_the_disk_is_looked_at_once_a_second_at_most_or_when_asked(
    tmp_path: Path, *, asked: bool
) -> None:
    clock = FakeClock()
    folder = tmp_path / "here"
    folder.mkdir()
    space = Space(str(folder), min_free_bytes=0, max_message_bytes=0, clock=clock)
    space.check(1)
    folder.rmdir()
    space.check(1)
    if asked:
        space.look_again()
    else:
        clock.advance(1)
    with pytest.raises(FileNotFoundError):
        space.check(1)


def test_a_file_system_that_was_mounted_anew_read_only_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    space = Space(str(tmp_path), min_free_bytes=0, max_message_bytes=0, clock=clock)
    space.check(1)
    assert not space.is_read_only
    found = list(os.statvfs(tmp_path))
    found[8] |= os.ST_RDONLY
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(found))
    clock.advance(2)
    space.check(1)
    assert space.is_read_only
