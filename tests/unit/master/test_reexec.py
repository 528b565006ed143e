"""The code on disk takes over only when it says that it can; else nothing has changed."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd import __version__
from relayd.master.frames import done, refused
from relayd.observe import metrics
from tests.masters import A_CLIENT, Master, a_master

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


def test_who_asked_hears_the_reason_and_that_the_old_one_stays(master: Master) -> None:
    master.arbiter.ask_upgrade(A_CLIENT)
    look_with(master, "exit('line 3: no such key')")
    master.until(lambda: master.replies)
    (reply,) = master.replies
    assert reply["problems"] == ["line 3: no such key"]
    assert reply["exit"] == 1
    assert "the old one serves on" in str(reply["error"])


@pytest.mark.parametrize("status", [75, 2])
def test_what_only_a_restart_mends_is_told_apart(master: Master, status: int) -> None:
    master.arbiter.ask_upgrade(A_CLIENT)
    look_with(master, f"print('no'); exit({status})")
    master.until(lambda: master.replies)
    assert master.replies[0]["exit"] == 75


def test_who_asks_of_a_relay_that_stops_is_told(master: Master) -> None:
    master.arbiter.ask_upgrade(A_CLIENT)
    master.arbiter.act_on(signal.SIGTERM)
    assert master.replies[0]["exit"] == 69


def test_workers_that_never_serve_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "mute").mkdir()
    master = Master(tmp_path / "mute", {}, behaviour="mute")
    try:
        timings = dataclasses.replace(master.house.timings, ready_within_s=0.1)
        master.house.launch = dataclasses.replace(master.house.launch, timings=timings)
        master.arbiter._begin()
        master.arbiter.ask_upgrade(A_CLIENT)
        master.until(lambda: master.replies)
        assert master.replies[0]["exit"] == 75
        assert "systemctl restart relayd" in str(master.replies[0]["problems"])
    finally:
        master.close()


def test_the_reload_onto_new_workers_is_the_answer(master: Master) -> None:
    reexec = master.arbiter._reexec
    reexec.resumed([A_CLIENT], "0.0.9")
    reexec.tell(done({"generation": 2, "workers": 1}))
    assert master.replies[0]["result"] == {
        "from": "0.0.9", "to": __version__, "pid": os.getpid(), "generation": 2, "workers": 1,
    }  # fmt: skip
    reexec.resumed([A_CLIENT], "0.0.9")
    reexec.tell(refused("no", problems=["worker 1 cannot start"]))
    assert master.replies[1]["problems"] == ["worker 1 cannot start"]
    assert "the old ones serve on" in str(master.replies[1]["error"])


def test_what_this_code_counted_goes_on_being_counted(master: Master) -> None:
    metrics.count("relayd_worker_restarts_total", 3)
    counted = metrics.snapshot()["relayd_worker_restarts_total"][""]
    master.house.household.retired = {"relayd_worker_restarts_total": {"": 4}}
    state = master.arbiter._reexec._state()
    assert isinstance(counted, int)
    assert state.retired["relayd_worker_restarts_total"] == {"": counted + 4}
    assert "relayd_workers" not in state.retired


def test_a_stop_in_the_turn_in_which_the_look_ends_well_is_a_stop(master: Master) -> None:
    reexec = master.arbiter._reexec
    look_with(master, "pass")
    reexec.begin()
    preflight = reexec._preflight
    assert preflight is not None
    os.waitid(os.P_PID, preflight.pid, os.WEXITED | os.WNOWAIT)
    master.arbiter.act_on(signal.SIGTERM)
    master.until(master.arbiter._is_over)
    assert not reexec.is_busy
    assert "upgrade.replacing" not in master.log()


def test_a_stop_leaves_no_deadline_that_would_keep_the_loop_spinning(master: Master) -> None:
    reexec = master.arbiter._reexec
    reexec.deadline = master.house.now() - 1.0
    master.arbiter.act_on(signal.SIGTERM)
    assert reexec.deadline == float("inf")


def test_who_asks_while_new_workers_start_is_not_told_of_the_upgrade_before(
    master: Master,
) -> None:
    reexec = master.arbiter._reexec
    reexec.resumed([], "0.0.9")
    reexec.ask(A_CLIENT)
    reexec.tell(done({"generation": 2, "workers": 1}))
    assert master.replies == []
    assert reexec.is_wanted


def test_who_waits_for_new_workers_at_a_stop_is_told(master: Master) -> None:
    master.arbiter._reexec.resumed([A_CLIENT], "0.0.9")
    master.arbiter.act_on(signal.SIGTERM)
    assert master.replies[0]["exit"] == 69
