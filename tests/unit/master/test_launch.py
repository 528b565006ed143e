"""How this process was started is how it is started again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from relayd.master.children import ENTRIES
from relayd.master.launch import of_this_process


def test_a_relative_configuration_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    launch = of_this_process("relayd.toml")
    assert launch.path == str(tmp_path / "relayd.toml")
    assert launch.preflight == (
        *(sys.executable, "-m", "relayd", "check"),
        *("--config", str(tmp_path / "relayd.toml")),
    )


def test_the_command_is_repeated_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python3", "/usr/bin/relayd", "run"])
    assert of_this_process("/x").again == (sys.executable, "/usr/bin/relayd", "run")


def test_every_kind_of_child_has_its_entry() -> None:
    assert set(ENTRIES) == {"worker", "cached", "checker"}
    assert all(":" in entry for entry in ENTRIES.values())
