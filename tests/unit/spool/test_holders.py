"""A holder that died is known to be dead, whoever has its pid now."""

from __future__ import annotations

import os
import subprocess

import pytest

from relayd.spool.holders import is_alive, name_of, pid_of


def test_a_process_is_alive_until_it_is_killed() -> None:
    process = subprocess.Popen(["sleep", "60"])
    name = name_of(process.pid)
    assert is_alive(name)
    assert pid_of(name) == process.pid
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(name)  # dead, though nobody has reaped it
    process.wait()
    assert not is_alive(name)


def test_another_process_with_the_same_pid_is_not_the_holder() -> None:
    boot, pid, start = name_of(os.getpid()).split(":")
    assert is_alive(f"{boot}:{pid}:{start}")
    assert not is_alive(f"{boot}:{pid}:{int(start) + 1}")
    assert not is_alive(f"another-boot:{pid}:{start}")


@pytest.mark.parametrize("name", ["", "x", "a:b:c", ":::", "boot:1"])
def test_a_name_that_makes_no_sense_is_dead(name: str) -> None:
    assert not is_alive(name)
    assert pid_of(name) == 0
