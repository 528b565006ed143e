"""How this process was started is how it is started again."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from relayd.master.children import ENTRIES
from relayd.master.launch import of_this_process
from relayd.master.upgrade import VERSION


def test_a_relative_configuration_becomes_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    launch = of_this_process("relayd.toml")
    assert launch.path == str(tmp_path / "relayd.toml")
    assert launch.preflight[-2:] == ("--config", str(tmp_path / "relayd.toml"))


@pytest.mark.parametrize(
    "program", [["/usr/bin/relayd"], ["-m", "relayd"], ["-I", "-X", "dev", "/x/relayd"]]
)
def test_the_program_that_will_be_executed_looks_first(
    monkeypatch: pytest.MonkeyPatch, program: list[str]
) -> None:
    arguments = ["--config", "/x", "run"]
    monkeypatch.setattr("sys.orig_argv", ["python3", *program, *arguments])
    monkeypatch.setattr("sys.argv", [program[-1], *arguments])
    launch = of_this_process("/x")
    assert launch.again == (sys.executable, *program, *arguments)
    look = ("--json", "check", "--preflight", str(VERSION), "--config", "/x")
    assert launch.preflight == (sys.executable, *program, *look)


def test_the_command_is_repeated_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.orig_argv", ["python3", "/usr/bin/relayd", "run"])
    assert of_this_process("/x").again == (sys.executable, "/usr/bin/relayd", "run")


def test_every_kind_of_child_has_its_entry() -> None:
    assert set(ENTRIES) == {"worker", "cached", "checker", "admin"}
    assert all(":" in entry for entry in ENTRIES.values())
