"""The loop sleeps as long as there is nothing to do, and no longer."""

from __future__ import annotations

from datetime import timedelta

import gevent
import pytest

from relayd.clock import FakeClock
from relayd.deliver.agenda import Agenda
from relayd.spool.model import State
from relayd.spool.store import Work
from tests.courier_scene import OTHER, Scene
from tests.deliver_fakes import Row

CLOCK_S = FakeClock().monotonic()


def asleep(seconds: float = 60.0, clock: FakeClock | None = None) -> Agenda:
    """Return the agenda of a loop that has found nothing and sleeps."""
    agenda = Agenda(clock or FakeClock())
    agenda.scanning()
    agenda.scanned(None)
    agenda.begin()
    agenda.sleeps_until = CLOCK_S + seconds
    return agenda


def is_rung(agenda: Agenda) -> bool:
    """Tell whether a loop that lies down now gets up at once."""
    until = agenda.sleeps_until
    loop = gevent.spawn(agenda.sleep, 60.0)
    gevent.idle()
    is_up = loop.ready()
    loop.kill()
    agenda.sleeps_until = until
    return bool(is_up)


def test_the_loop_sleeps_until_the_first_due_moment(scene: Scene) -> None:
    scene.door.put(mailbox=OTHER).state = State.DEFERRED
    scene.door.rows[1].due = scene.clock.now + timedelta(seconds=7)
    scene.start()

    assert scene.agenda.sleeps_until == pytest.approx(scene.clock.monotonic() + 7)


def test_who_wakes_the_loop_wakes_it_at_once() -> None:
    agenda = asleep()
    agenda.wake()

    assert is_rung(agenda)
    assert not agenda.must_scan()


def test_news_that_come_while_the_loop_looks_round_want_one_look_more() -> None:
    agenda = asleep()
    agenda.begin()
    agenda.wake()

    assert is_rung(agenda)
    agenda.begin()
    assert not is_rung(agenda)


def test_the_spool_is_asked_at_the_start_and_when_somebody_wants_it() -> None:
    agenda = Agenda(FakeClock())
    assert agenda.must_scan()
    agenda.scanning()
    agenda.scanned(None)
    assert not agenda.must_scan()

    agenda.scan()

    assert agenda.must_scan()
    assert is_rung(agenda)


def test_a_moment_wakes_the_loop_only_if_it_would_sleep_beyond_it() -> None:
    agenda = asleep(60.0)
    agenda.wake_by(CLOCK_S + 60.0)
    assert not is_rung(agenda)

    agenda.wake_by(CLOCK_S + 59.0)
    assert is_rung(agenda)


def test_only_the_first_row_that_comes_due_is_kept_in_mind() -> None:
    clock = FakeClock()
    agenda = asleep(60.0, clock)
    assert agenda.due_in_s() is None

    agenda.due(clock.now + timedelta(seconds=90))
    assert not is_rung(agenda), "it sleeps no longer than that anyway"
    agenda.due(clock.now + timedelta(seconds=30))
    agenda.due(clock.now + timedelta(seconds=50))

    assert is_rung(agenda)
    assert agenda.due_in_s() == 30.0


def test_a_row_that_is_due_has_the_spool_asked_until_it_was() -> None:
    clock = FakeClock()
    agenda = asleep(60.0, clock)
    agenda.due(clock.now + timedelta(seconds=30))
    assert not agenda.must_scan()
    clock.advance(31)
    assert agenda.due_in_s() == -1.0
    assert agenda.must_scan()

    agenda.scanning()
    agenda.scanned(clock.now + timedelta(seconds=5))

    assert not agenda.must_scan()
    assert agenda.due_in_s() == 5.0


def test_what_is_told_while_the_spool_looks_is_kept() -> None:
    clock = FakeClock()
    agenda = asleep(60.0, clock)
    agenda.scanning()
    agenda.scan()
    agenda.due(clock.now + timedelta(seconds=10))

    agenda.scanned(clock.now + timedelta(seconds=20))

    assert agenda.must_scan()
    assert agenda.due_in_s() == 10.0


@pytest.mark.parametrize("what", ["a row that comes due", "work that somebody gave back"])
def test_news_while_the_spool_is_asked_are_not_lost(scene: Scene, what: str) -> None:
    """They were, until the next upkeep a minute later."""
    scene.start()
    real = scene.door.work
    rows: list[Row] = []

    def work_meanwhile() -> Work:
        answer = real()
        if not rows:
            rows.append(scene.door.put(mailbox=OTHER))
            if what == "a row that comes due":
                rows[0].state, rows[0].due = State.DEFERRED, scene.clock.now + timedelta(seconds=5)
                scene.agenda.due(rows[0].due)
            else:
                scene.agenda.scan()
        return answer

    scene.door.work = work_meanwhile  # type: ignore[method-assign]
    scene.agenda.scan()
    scene.settle()
    scene.advance(6)

    assert rows[0].at(State.SENT)
