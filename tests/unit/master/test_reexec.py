"""The code on disk takes over only when it says that it can; else nothing has changed."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.masters import Master, a_master

pytestmark = [pytest.mark.slow(1), pytest.mark.timeout(60)]


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    for master in a_master(tmp_path):
        master.start()
        yield master


def look_with(master: Master, code: str, check_within_s: float = 20.0) -> None:
    timings = dataclasses.replace(master.house.timings, check_within_s=check_within_s)
    master.house.launch = dataclasses.replace(
        master.house.launch, preflight=(sys.executable, "-c", code), timings=timings
    )
    master.arbiter.act_on(signal.SIGUSR2)


def test_a_look_that_says_no_is_quoted(master: Master) -> None:
    look_with(master, "exit('line 3: no such key')")
    master.until(lambda: master.arbiter._reexec.is_busy)
    assert master.arbiter.state() == "upgrade: checking"
    master.until(lambda: "upgrade.refused" in master.log())
    assert "line 3: no such key" in master.log()
    assert master.arbiter.state() == "running"


def test_a_look_that_takes_too_long_is_ended(master: Master) -> None:
    look_with(master, "import signal; signal.pause()", check_within_s=0.05)
    master.until(lambda: "upgrade.refused" in master.log())
    assert "SIGKILL" in master.log()


def test_a_command_that_is_not_there_changes_nothing(master: Master) -> None:
    before = master.pids()
    look_with(master, "")
    master.until(lambda: "upgrade.refused" in master.log())
    assert "No such file" in master.log()
    assert master.pids() == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_a_signal_that_was_taken_is_obeyed_first(master: Master) -> None:
    reexec = master.arbiter._reexec
    with master.house.signals.handled():
        os.kill(os.getpid(), signal.SIGUSR1)
        reexec._replace()
    assert reexec.is_wanted
    assert "upgrade.replacing" not in master.log()


def test_a_stop_ends_the_look(master: Master) -> None:
    look_with(master, "import signal; signal.pause()")
    master.until(lambda: master.arbiter._reexec.is_busy)
    master.arbiter.act_on(signal.SIGTERM)
    master.until(master.arbiter._is_over)
    assert not master.arbiter._reexec.is_wanted
