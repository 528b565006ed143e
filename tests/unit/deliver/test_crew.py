"""A crew's greenlets are used again, and keep nothing of what they did."""

from __future__ import annotations

import weakref

import gevent
import pytest
from gevent import getcurrent
from gevent.event import Event
from greenlet import greenlet

from relayd.deliver.crew import Crew


def settle() -> None:
    for _ in range(5):
        gevent.idle()


def test_a_job_is_done_in_a_turn_to_come_with_what_it_is_given() -> None:
    done: list[tuple[int, str]] = []

    def job(number: int, word: str) -> None:
        done.append((number, word))

    Crew().start(job, 1, word="x")
    assert not done
    settle()
    assert done == [(1, "x")]


def test_a_greenlet_that_is_done_does_the_next_job() -> None:
    crew = Crew()
    who: list[object] = []
    for _ in range(3):
        crew.start(lambda: who.append(getcurrent()))
        settle()
    assert len(set(map(id, who))) == 1


def test_jobs_that_wait_do_not_wait_for_each_other() -> None:
    crew = Crew()
    gate = Event()
    who: list[object] = []

    def job() -> None:
        who.append(getcurrent())
        gate.wait()

    for _ in range(3):
        crew.start(job)
    settle()
    assert len(set(map(id, who))) == 3
    gate.set()
    settle()


def test_only_so_many_are_kept() -> None:
    crew = Crew(most_idle=2)
    gate = Event()
    for _ in range(5):
        crew.start(gate.wait)
    settle()
    gate.set()
    settle()
    assert len(crew._idle) == 2


def test_who_is_idle_keeps_nothing_of_the_last_job() -> None:
    class Mail:
        pass

    crew = Crew()
    mail = Mail()
    gone = weakref.ref(mail)
    crew.start(lambda _: None, mail)
    settle()
    del mail
    assert gone() is None


def test_a_job_that_fails_is_told_of_and_takes_its_greenlet_along(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise ValueError("a bug")

    crew = Crew()
    crew.start(fail)
    settle()
    assert "ValueError: a bug" in capsys.readouterr().err
    done: list[int] = []
    crew.start(done.append, 1)
    settle()
    assert done == [1]


def test_a_wake_up_meant_for_the_job_before_disturbs_nobody() -> None:
    crew = Crew()
    hub = gevent.get_hub()
    who: list[greenlet] = []
    crew.start(lambda: who.append(getcurrent()))
    settle()
    hub.loop.run_callback(who[0].switch)
    settle()
    assert len(crew._idle) == 1
    crew.start(lambda: who.append(getcurrent()))
    settle()
    assert who[0] is who[1]


@pytest.mark.parametrize("when", ["idle", "on its way"])
def test_a_greenlet_killed_while_it_is_idle_loses_no_job(when: str) -> None:
    crew = Crew()
    who: list[greenlet] = []
    crew.start(lambda: who.append(getcurrent()))
    settle()
    done: list[int] = []
    if when == "idle":
        gevent.get_hub().loop.run_callback(who[0].throw)
        settle()
        assert crew._idle == []
        crew.start(done.append, 1)
    else:
        gevent.get_hub().loop.run_callback(who[0].throw)
        crew.start(done.append, 1)
    settle()
    assert done == [1]
