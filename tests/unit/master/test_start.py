"""Before the loop: folders are made where they may be, and every trouble has its words."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from relayd.config.model import Config
from relayd.errors import ConfigError
from relayd.master import start
from relayd.master.launch import Launch
from relayd.master.settings import Settings, select
from tests.process.fake_child import ENTRIES


def settings(folder: Path) -> Settings:
    return dataclasses.replace(
        select(Config()),
        runtime_dir=str(folder / "run"),
        state_dir=str(folder / "state"),
        spool_dir=str(folder / "spool/deep"),
    )


def test_missing_folders_are_made_and_private_ones_are_private(tmp_path: Path) -> None:
    start.make_folders(settings(tmp_path))
    assert stat.S_IMODE(os.stat(tmp_path / "state").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(tmp_path / "spool/deep").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(tmp_path / "run").st_mode) == 0o755
    start.make_folders(settings(tmp_path))


def test_every_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        start.make_folders(settings(tmp_path / "file"))
    keys = [problem.split(":")[0] for problem in caught.value.problems]
    assert keys == ["server.runtime_dir", "server.state_dir", "spool.url"]


def test_the_pid_file_is_written_whole_and_nothing_depends_on_it(tmp_path: Path) -> None:
    start.write_pid_file(str(tmp_path))
    assert (tmp_path / "relayd.pid").read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path) == ["relayd.pid"]
    start.write_pid_file("/nonexistent")


def test_a_configuration_that_cannot_be_used_is_raised_with_its_problems(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"problems": ["a", "b"]}')
    with pytest.raises(ConfigError) as caught:
        start._checked(Launch(path=str(path), entries=ENTRIES))
    assert caught.value.problems == ["a", "b"]
