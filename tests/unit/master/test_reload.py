"""A reload is done, or refused with every reason and nothing changed; several become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.master.frames import refused
from relayd.master.reload import Step
from tests.masters import A_CLIENT, Master, a_master

pytestmark = [pytest.mark.slow(1), pytest.mark.timeout(60)]


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    for master in a_master(tmp_path):
        master.start()
        yield master


def test_it_goes_through_its_steps_and_the_new_generation_is_in_force(master: Master) -> None:
    before, reload = master.house.current, master.arbiter._reload
    reload.ask(A_CLIENT)
    steps: list[Step] = []

    def is_done() -> bool:
        if not steps or steps[-1] is not reload.step:
            steps.append(reload.step)
        return bool(master.replies)

    master.until(is_done)
    seen = [step for step in steps if step is not Step.IDLE]
    assert seen == sorted(seen, key=list(Step).index)
    assert master.replies[0]["result"] == {"generation": 2, "workers": 1}
    assert master.house.current is not before
    assert before.is_leaving
    assert master.arbiter.last_reload()["result"] == "done"
    master.until(lambda: len(master.pids()) == 2)


def test_a_bad_configuration_is_refused_with_every_problem(master: Master) -> None:
    before = master.house.current
    master.write(problems=["one", "two"])
    master.arbiter.ask_reload(A_CLIENT)
    master.until(lambda: master.replies)
    assert master.replies[0]["problems"] == ["one", "two"]
    assert master.house.current is before
    assert master.arbiter.last_reload()["result"] == "refused"
    assert master.arbiter._reload.step is Step.IDLE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runtime_dir": "/run/elsewhere"}, "needs a restart"),
        ({"spool": "sqlite:///var/elsewhere/spool.db"}, "its mail stays behind"),
        ({"addresses": ["192.0.2.77:25"]}, "does not have that address"),
        ({"behaviour": "fail"}, "no spool today"),
        ({"behaviour": "die"}, "ended at once (exit 3)"),
    ],
)
def test_what_cannot_be_put_in_force_is_refused(
    master: Master, changes: dict[str, object], words: str
) -> None:
    before = master.house.current
    master.write(**changes)
    master.arbiter.ask_reload(A_CLIENT)
    master.until(lambda: master.replies)
    assert words in str(master.replies[0]["problems"])
    assert master.house.current is before
    master.until(lambda: len(master.pids()) == 2)


def test_a_spool_written_in_another_way_is_the_same(master: Master) -> None:
    url = master.house.current.config.settings.spool_url
    master.write(spool=url.replace("sqlite:///", "sqlite:////"))
    master.arbiter.ask_reload(A_CLIENT)
    master.until(lambda: master.replies)
    assert master.replies[0]["result"] == {"generation": 2, "workers": 1}


def test_who_asks_meanwhile_hears_of_the_next(master: Master) -> None:
    reload = master.arbiter._reload
    reload.ask(A_CLIENT)
    master.until(lambda: reload.step is Step.CHECKING)
    reload.ask(A_CLIENT)
    reload.ask(A_CLIENT)
    master.until(lambda: len(master.replies) == 3)
    assert master.house.current.generation == 3


@pytest.mark.slow(5)
def test_workers_that_copy_a_large_spool_are_waited_for(master: Master) -> None:
    # Long enough for the child to say that it copies, on a busy machine too.
    timings = dataclasses.replace(master.house.timings, ready_within_s=2.0)
    master.house.launch = dataclasses.replace(master.house.launch, timings=timings)
    master.write(behaviour="slow")
    reload = master.arbiter._reload
    reload.ask(A_CLIENT)
    master.until(lambda: reload.step is Step.RISING)
    late = reload.deadline + 0.2
    master.until(lambda: master.house.now() > late)
    assert master.replies == []
    (master.folder / "opened").touch()
    master.until(lambda: master.replies)
    assert master.replies[0]["ok"] is True


def test_but_not_for_ever(master: Master) -> None:
    timings = dataclasses.replace(master.house.timings, ready_within_s=0.1)
    master.house.launch = dataclasses.replace(master.house.launch, timings=timings)
    master.write(behaviour="slow")
    reload = master.arbiter._reload
    reload.ask(A_CLIENT)
    master.until(lambda: reload.step is Step.RISING)
    reload._patience_ends = master.house.now()
    master.until(lambda: master.replies)
    assert "not ready within" in str(master.replies[0]["problems"])


def test_a_stop_answers_all_who_wait(master: Master) -> None:
    master.arbiter.ask_reload(A_CLIENT)
    master.until(lambda: master.arbiter._reload.step is Step.CHECKING)
    master.arbiter.ask_reload(A_CLIENT)
    master.arbiter._reload.abandon(refused("relayd is stopping"))
    assert [reply["error"] for reply in master.replies] == ["relayd is stopping"] * 2
    assert not master.arbiter._reload.is_wanted
