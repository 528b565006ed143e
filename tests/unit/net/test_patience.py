"""Waits with deadlines and one alarm: none ends too early, none is too long, none hits another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import gevent
import pytest
from gevent import get_hub
from gevent.event import Event

from relayd.clock import SYSTEM
from relayd.net.patience import Patience


class Pipe:
    """A descriptor to wait for, and the wait for it."""

    def __init__(self) -> None:
        self.end, self._other = os.pipe()
        self._watcher = get_hub().loop.io(self.end, 1)
        self.until_readable: Callable[[], object] = partial(get_hub().wait, self._watcher)

    def write(self) -> None:
        os.write(self._other, b"x")

    def close(self) -> None:
        self._watcher.close()
        os.close(self.end)
        os.close(self._other)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


@pytest.fixture
def patience() -> Iterator[Patience]:
    made = Patience()
    yield made
    made.close()


def soon(seconds: float = 10.0) -> float:
    return SYSTEM.monotonic() + seconds


def test_what_is_waited_for_ends_the_wait(pipe: Pipe, patience: Patience) -> None:
    pipe.write()

    assert patience.wait(pipe.until_readable, soon())


def test_the_deadline_ends_it_too(pipe: Pipe, patience: Patience) -> None:
    deadline = soon(0.01)

    assert not patience.wait(pipe.until_readable, deadline)
    assert SYSTEM.monotonic() >= deadline


def test_a_deadline_that_is_over_still_lets_the_hub_look(pipe: Pipe, patience: Patience) -> None:
    assert not patience.wait(pipe.until_readable, soon(-1.0))
    pipe.write()
    assert patience.wait(pipe.until_readable, soon())


def test_an_alarm_set_for_an_earlier_wait_does_not_end_a_later_one(
    pipe: Pipe, patience: Patience
) -> None:
    pipe.write()
    assert patience.wait(pipe.until_readable, soon(0.02))
    os.read(pipe.end, 1)
    first = patience._rings_at
    waiting = gevent.spawn(patience.wait, pipe.until_readable, soon())
    while patience._rings_at <= first:  # it rings, and is set for the wait under way
        gevent.idle()
        get_hub().wait(get_hub().loop.timer(0.001))

    assert not waiting.ready()
    pipe.write()
    assert waiting.get(timeout=10)


def test_an_alarm_that_rings_before_the_deadline_is_set_again(
    pipe: Pipe, patience: Patience
) -> None:
    waiting = gevent.spawn(patience.wait, pipe.until_readable, soon())
    gevent.idle()
    patience._ring()  # as if it had been set for an older deadline
    gevent.idle()

    assert not waiting.ready()
    assert patience._rings_at == patience._deadline
    pipe.write()
    assert waiting.get(timeout=10)


def test_a_sooner_deadline_is_kept_while_the_alarm_is_set_for_a_later_one(
    pipe: Pipe, patience: Patience
) -> None:
    pipe.write()
    assert patience.wait(pipe.until_readable, soon(3600))
    os.read(pipe.end, 1)

    assert not patience.wait(pipe.until_readable, soon(0.01))


def test_waits_of_the_same_kind_share_one_alarm(pipe: Pipe, patience: Patience) -> None:
    alarms = set[int]()
    for _ in range(3):
        pipe.write()
        assert patience.wait(pipe.until_readable, soon())
        os.read(pipe.end, 1)
        alarms.add(id(patience._alarm))

    assert len(alarms) == 1


def test_an_alarm_that_rings_while_nobody_waits_harms_nobody(
    pipe: Pipe, patience: Patience
) -> None:
    pipe.write()
    assert patience.wait(pipe.until_readable, soon(0.01))
    get_hub().wait(get_hub().loop.timer(0.03))

    assert patience.wait(pipe.until_readable, soon())


def test_whoever_waits_can_be_interrupted_and_nobody_else(pipe: Pipe, patience: Patience) -> None:
    is_elsewhere = Event()

    def wait() -> str:
        try:
            patience.wait(pipe.until_readable, soon())
        except KeyError:
            is_elsewhere.wait(10)
            return "interrupted"
        return "not"

    waiting = gevent.spawn(wait)
    gevent.idle()
    for _ in range(2):  # the second finds it elsewhere
        get_hub().loop.run_callback(patience.interrupt, KeyError())
        gevent.idle()
    is_elsewhere.set()

    assert waiting.get(timeout=10) == "interrupted"
