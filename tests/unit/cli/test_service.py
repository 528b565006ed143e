"""Which unit runs which configuration, and what systemctl is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.cli import service
from relayd.cli.service import Service

SYSTEMCTL = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
cat) [ "$2" = relayd.service ] || {{ echo "No files found for $2." >&2; exit 1; }} ;;
restart) echo "Job for relayd.service failed." >&2; exit 1 ;;
esac
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin/systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL.format(log=tmp_path / "log"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return tmp_path / "log"


def test_the_unit_is_started_now_and_at_each_boot(log: Path, tmp_path: Path) -> None:
    found = Service("/etc/relayd/relayd.toml", str(tmp_path))
    assert found.unit == "relayd.service"
    assert found.enable_and_start() == ""
    assert found.restart() == "Job for relayd.service failed."
    assert log.read_text().splitlines() == [
        "cat relayd.service",
        "enable --now relayd.service",
        "restart relayd.service",
    ]


@pytest.mark.usefixtures("log")
def test_without_systemd_or_the_unit_there_is_none(tmp_path: Path) -> None:
    assert Service("/etc/relayd/relayd.toml", str(tmp_path / "nowhere")).unit == ""
    assert Service("/etc/relayd/lab/relayd.toml", str(tmp_path)).unit == ""
    assert Service("/srv/relayd.toml", str(tmp_path)).unit == ""


def test_a_systemctl_that_is_not_there_is_no_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Service("/etc/relayd/relayd.toml", str(tmp_path)).unit == ""


def test_systemctl_is_waited_for_longer_than_a_start_may_take() -> None:
    unit = Path(__file__).parents[3] / "systemd/relayd.service"
    line = next(line for line in unit.read_text().splitlines() if "TimeoutStartSec" in line)
    assert int(line.partition("=")[2]) < service._WITHIN_S
