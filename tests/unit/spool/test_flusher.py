"""Group commit: who waits together, and what becomes of those who do not wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gevent
import pytest
from gevent.event import Event

from relayd.clock import SYSTEM, FakeClock
from relayd.errors import SpoolFull, SpoolUnavailable
from relayd.spool.flusher import Flusher
from relayd.spool.sqlite import Applied, Latecomers
from relayd.spool.transaction import Operation

LONG_S = 15.0


@dataclass(frozen=True)
class Say(Operation[str]):
    word: str


@dataclass(frozen=True)
class Settled(Operation[str]):
    word: str
    may_wait = True


class Disk:
    """A thread's side that can be made to wait, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.began = threading.Event()
        self.answer: object = None
        self.idle = 0
        self.takes_latecomers = False

    def apply(self, operations: Sequence[Operation[object]], latecomers: Latecomers) -> Applied:
        words = [one.word for one in operations if isinstance(one, Say | Settled)]
        self.batches.append(words)
        self.began.set()
        assert self.may_go.wait(LONG_S)
        if self.takes_latecomers:
            words += [one.word for one in latecomers() if isinstance(one, Say | Settled)]
        if "bug" in words:
            raise ValueError("a bug")
        outcomes = [self.answer or f"{word}!" for word in words]
        return Applied(list(outcomes))


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def late() -> list[tuple[object, object]]:
    return []


@pytest.fixture
def bugs() -> list[str]:
    return []


@pytest.fixture
def flusher(disk: Disk, late: list[tuple[object, object]], bugs: list[str]) -> Iterator[Flusher]:
    made = Flusher(
        disk.apply,
        clock=SYSTEM,
        on_applied=lambda applied: bugs.extend(applied.bugs),
        on_late=lambda operation, outcome: late.append((operation, outcome)),
        wants_idle=lambda: disk.idle == 0,
        idle_work=lambda: setattr(disk, "idle", 1),
    )
    yield made
    disk.may_go.set()
    made.close()
    made.kill()


def wait_until_it_runs(disk: Disk) -> None:
    """Let the hub go on until the thread has the first batch."""
    with gevent.Timeout(LONG_S):
        while not disk.began.is_set():
            gevent.idle()


def test_an_operation_comes_back_with_its_outcome(flusher: Flusher) -> None:
    assert flusher.ask(Say("hello")) == "hello!"


def test_what_comes_while_one_flush_runs_is_one_batch_and_the_hub_goes_on(
    flusher: Flusher, disk: Disk
) -> None:
    disk.may_go.clear()
    greenlets = [gevent.spawn(flusher.ask, Say("0"))]
    wait_until_it_runs(disk)
    greenlets += [gevent.spawn(flusher.ask, Say(str(number))) for number in range(1, 50)]
    gevent.idle()  # the hub is free though the disk is not
    disk.may_go.set()
    gevent.joinall(greenlets, timeout=LONG_S)
    assert [one.value for one in greenlets] == [f"{number}!" for number in range(50)]
    assert [len(one) for one in disk.batches] == [1, 49]


def test_what_comes_while_the_turn_is_waited_for_goes_along(flusher: Flusher, disk: Disk) -> None:
    disk.takes_latecomers = True
    disk.may_go.clear()
    greenlets = [gevent.spawn(flusher.ask, Say("first"))]
    wait_until_it_runs(disk)
    greenlets += [gevent.spawn(flusher.ask, Say(word)) for word in ("late", "too")]
    gevent.idle()
    disk.may_go.set()
    gevent.joinall(greenlets, timeout=LONG_S)
    assert [one.value for one in greenlets] == ["first!", "late!", "too!"]
    assert disk.batches == [["first", "late", "too"]]


def test_who_is_killed_while_the_turn_is_waited_for_does_not_go_along(
    flusher: Flusher, disk: Disk, late: list[tuple[object, object]]
) -> None:
    disk.takes_latecomers = True
    disk.may_go.clear()
    first = gevent.spawn(flusher.ask, Say("first"))
    wait_until_it_runs(disk)
    second = gevent.spawn(flusher.ask, Say("second"))
    gevent.idle()
    second.kill()
    disk.may_go.set()
    assert first.get(timeout=LONG_S) == "first!"
    assert disk.batches == [["first"]]
    assert not late


def test_a_batch_takes_no_more_latecomers_than_a_batch_may_have(
    flusher: Flusher, disk: Disk
) -> None:
    disk.takes_latecomers = True
    disk.may_go.clear()
    many = [gevent.spawn(flusher.ask, Say("first"))]
    wait_until_it_runs(disk)
    many += [gevent.spawn(flusher.ask, Say("late")) for _ in range(300)]
    gevent.idle()
    disk.may_go.set()
    gevent.joinall(many, timeout=LONG_S, raise_error=True)
    assert [len(one) for one in disk.batches] == [256, 45]


def test_a_failure_is_raised_to_everybody_and_is_not_one_shared_exception(
    flusher: Flusher, disk: Disk
) -> None:
    disk.answer = SpoolFull("no room")
    caught = []
    for _ in range(2):
        with pytest.raises(SpoolFull, match="no room") as failure:
            flusher.ask(Say("x"))
        caught.append(failure.value)
    assert caught[0] is not caught[1]


def test_a_bug_in_the_thread_answers_everybody_and_the_next_batch_works(
    flusher: Flusher, bugs: list[str]
) -> None:
    with pytest.raises(SpoolUnavailable, match="see the log"):
        flusher.ask(Say("bug"))
    assert "ValueError: a bug" in bugs[0]
    assert flusher.ask(Say("x")) == "x!"


def test_a_deadline_that_is_over_never_begins(flusher: Flusher, disk: Disk) -> None:
    with pytest.raises(SpoolUnavailable):
        flusher.ask(Say("x"), deadline=SYSTEM.monotonic())
    assert not disk.batches


def test_a_deadline_that_passes_in_the_queue_takes_the_operation_out(
    flusher: Flusher, disk: Disk, late: list[tuple[object, object]]
) -> None:
    disk.may_go.clear()
    first = gevent.spawn(flusher.ask, Say("first"))
    wait_until_it_runs(disk)
    with pytest.raises(SpoolUnavailable, match="in time"):
        flusher.ask(Say("second"), deadline=SYSTEM.monotonic() + 0.01)
    disk.may_go.set()
    assert first.get(timeout=LONG_S) == "first!"
    assert flusher.ask(Say("third")) == "third!"
    assert disk.batches == [["first"], ["third"]]
    assert not late


def test_a_deadline_that_passes_while_it_runs_is_told_of_when_it_was_done(
    flusher: Flusher, disk: Disk, late: list[tuple[object, object]]
) -> None:
    disk.may_go.clear()
    with pytest.raises(SpoolUnavailable, match="in time"):
        flusher.ask(Say("x"), deadline=SYSTEM.monotonic() + 0.02)
    assert not late
    disk.may_go.set()
    flusher.ask(Say("y"))
    assert late == [(Say("x"), "x!")]


def test_an_answer_that_comes_after_the_deadline_is_no_answer(
    disk: Disk, late: list[tuple[object, object]]
) -> None:
    clock = FakeClock()  # so that only the look at the end can notice

    def slowly(batch: Sequence[Operation[object]], latecomers: Latecomers) -> Applied:
        clock.advance(9)
        return disk.apply(batch, latecomers)

    flusher = Flusher(
        slowly,
        clock=clock,
        on_applied=lambda _: None,
        on_late=lambda operation, outcome: late.append((operation, outcome)),
        wants_idle=lambda: False,
        idle_work=lambda: None,
    )
    with pytest.raises(SpoolUnavailable, match="in time"):
        flusher.ask(Say("x"), deadline=clock.monotonic() + 8)
    flusher.close()
    flusher.kill()
    assert late == [(Say("x"), "x!")]


def test_each_deadline_counts_for_itself(flusher: Flusher, disk: Disk) -> None:
    disk.may_go.clear()
    ended: list[str] = []

    def ask(word: str, seconds: float) -> None:
        with pytest.raises(SpoolUnavailable):
            flusher.ask(Say(word), deadline=SYSTEM.monotonic() + seconds)
        ended.append(word)

    gevent.joinall(
        [gevent.spawn(ask, "later", 0.06), gevent.spawn(ask, "sooner", 0.02)],
        timeout=LONG_S,
        raise_error=True,
    )
    assert ended == ["sooner", "later"]


def test_a_caller_killed_in_the_queue_is_forgotten_and_while_it_runs_told_of(
    flusher: Flusher, disk: Disk, late: list[tuple[object, object]]
) -> None:
    disk.may_go.clear()
    running = gevent.spawn(flusher.ask, Say("running"))
    wait_until_it_runs(disk)
    queued = gevent.spawn(flusher.ask, Say("queued"))
    gevent.idle()
    gevent.killall([running, queued])
    disk.may_go.set()
    flusher.ask(Say("x"))
    assert disk.batches == [["running"], ["x"]]
    assert late == [(Say("running"), "running!")]


def test_a_fault_in_the_hub_s_part_stops_no_later_batch(disk: Disk) -> None:
    faults = [ValueError("a fault")]

    def fail_once(applied: Applied) -> None:
        del applied
        while faults:
            raise faults.pop()

    flusher = Flusher(
        disk.apply,
        clock=SYSTEM,
        on_applied=fail_once,
        on_late=lambda *_: None,
        wants_idle=lambda: False,
        idle_work=lambda: None,
    )
    assert flusher.ask(Say("x")) == "x!"
    assert flusher.ask(Say("y")) == "y!"
    flusher.close()
    flusher.kill()


def test_what_greenlets_ask_in_one_turn_of_the_hub_is_one_batch(
    flusher: Flusher, disk: Disk
) -> None:
    greenlets = [gevent.spawn(flusher.ask, Say(str(number))) for number in range(20)]
    gevent.joinall(greenlets, timeout=LONG_S)
    assert [len(one) for one in disk.batches] == [20]


def test_what_is_posted_is_done_though_nobody_waits(flusher: Flusher, disk: Disk) -> None:
    flusher.post(Say("posted"))
    flusher.close()
    assert disk.batches == [["posted"]]


def test_idle_work_follows_a_batch_when_it_is_wanted(flusher: Flusher, disk: Disk) -> None:
    flusher.ask(Say("x"))
    flusher.ask(Say("y"))
    assert disk.idle == 1
    assert flusher.in_thread(threading.get_ident) != threading.get_ident()


def test_closing_finishes_what_is_queued_and_refuses_more(flusher: Flusher, disk: Disk) -> None:
    disk.may_go.clear()
    first = gevent.spawn(flusher.ask, Say("first"))
    wait_until_it_runs(disk)
    second = gevent.spawn(flusher.ask, Say("second"))
    gevent.idle()
    closed = Event()
    closer = gevent.spawn(flusher.close)
    closer.rawlink(lambda _: closed.set())
    gevent.idle()
    with pytest.raises(SpoolUnavailable, match="closed"):
        flusher.ask(Say("third"))
    disk.may_go.set()
    assert closed.wait(LONG_S)
    assert (first.get(), second.get()) == ("first!", "second!")


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may wait never loses patience."""
    monkeypatch.setattr("relayd.spool.flusher._PATIENCE_S", 3600.0)


def test_some_that_may_wait_go_with_the_next_that_may_not(
    endless: None, flusher: Flusher, disk: Disk
) -> None:
    patient = [gevent.spawn(flusher.ask, Settled("patient")) for _ in range(16)]
    gevent.idle()
    assert disk.batches == []
    assert flusher.ask(Say("x")) == "x!"
    gevent.joinall(patient, timeout=LONG_S, raise_error=True)
    assert disk.batches == [["x"] + ["patient"] * 16]


def test_a_few_that_may_wait_wait_until_they_are_some(
    endless: None, flusher: Flusher, disk: Disk
) -> None:
    for _ in range(15):
        flusher.post(Settled("patient"))
    assert flusher.ask(Say("x")) == "x!"
    flusher.post(Settled("patient"))
    assert flusher.ask(Say("y")) == "y!"
    assert disk.batches == [["x"], ["y"] + ["patient"] * 16]


def test_who_lost_patience_goes_along_with_all_that_wait(flusher: Flusher, disk: Disk) -> None:
    disk.may_go.clear()
    first = gevent.spawn(flusher.ask, Say("first"))
    wait_until_it_runs(disk)
    patient = [gevent.spawn(flusher.ask, Settled("patient")) for _ in range(2)]
    with gevent.Timeout(LONG_S):
        while not flusher._is_overdue:
            gevent.idle()
    second = gevent.spawn(flusher.ask, Say("second"))
    gevent.idle()
    disk.may_go.set()
    gevent.joinall([first, second, *patient], timeout=LONG_S, raise_error=True)  # type: ignore[type-var]  # of two kinds
    assert disk.batches == [["first"], ["patient", "patient", "second"]]
    assert not flusher._is_overdue


def test_a_few_are_no_reason_for_a_flush(endless: None, flusher: Flusher, disk: Disk) -> None:
    disk.may_go.clear()
    first = gevent.spawn(flusher.ask, Say("first"))
    wait_until_it_runs(disk)
    for _ in range(20):
        flusher.post(Settled("patient"))
    disk.may_go.set()
    first.get(timeout=LONG_S)
    for _ in range(5):
        gevent.idle()
    assert flusher.ask(Say("x")) == "x!"
    assert disk.batches == [["first"], ["x"] + ["patient"] * 20]


def test_closing_waits_for_no_company(endless: None, flusher: Flusher, disk: Disk) -> None:
    flusher.post(Settled("patient"))
    with gevent.Timeout(LONG_S):
        flusher.close()
    assert disk.batches == [["patient"]]


def test_half_of_a_batch_is_for_those_in_a_hurry(flusher: Flusher, disk: Disk) -> None:
    disk.may_go.clear()
    first = gevent.spawn(flusher.ask, Say("first"))
    wait_until_it_runs(disk)
    for _ in range(300):
        flusher.post(Settled("patient"))
    with gevent.Timeout(LONG_S):
        while not flusher._is_overdue:
            gevent.idle()
    hurried = [gevent.spawn(flusher.ask, Say("x")) for _ in range(300)]
    gevent.idle()
    disk.may_go.set()
    gevent.joinall([first, *hurried], timeout=LONG_S, raise_error=True)
    assert disk.batches[1] == ["patient"] * 128 + ["x"] * 128


def test_patience_that_ends_for_nobody_is_forgotten(flusher: Flusher, disk: Disk) -> None:
    patient = gevent.spawn(flusher.ask, Settled("patient"))
    gevent.idle()
    patient.kill()
    with gevent.Timeout(LONG_S):
        while flusher._patience.active or flusher._is_overdue:  # type: ignore[attr-defined]  # the stubs miss it
            gevent.idle()
    assert disk.batches == []


def test_however_many_are_in_a_hurry_nobody_waits_for_ever(flusher: Flusher, disk: Disk) -> None:
    """600 sessions, each with its next message as soon as the last is written."""
    told: list[object] = []
    is_over = False

    def session() -> None:
        while not is_over:
            flusher.ask(Say("x"))

    sessions = [gevent.spawn(session) for _ in range(600)]
    gevent.idle()
    for _ in range(20):
        flusher.post(Settled("patient"), told.append)
    try:
        with gevent.Timeout(LONG_S):
            while len(told) < 20:
                Event().wait(0.001)
    finally:
        is_over = True
    gevent.joinall(sessions, timeout=LONG_S, raise_error=True)
    assert max(len(one) for one in disk.batches) == 256


def test_who_may_wait_and_is_killed_is_forgotten(
    endless: None, flusher: Flusher, disk: Disk
) -> None:
    patient = gevent.spawn(flusher.ask, Settled("patient"))
    gevent.idle()
    patient.kill()
    flusher.close()
    assert disk.batches == []


def test_what_may_wait_waits_for_nobody_for_ever(flusher: Flusher, disk: Disk) -> None:
    for _ in range(3):
        with gevent.Timeout(LONG_S):
            flusher.ask(Settled("patient"))
    assert len(disk.batches) == 3


def test_many_that_may_wait_wait_no_longer(endless: None, disk: Disk) -> None:
    flusher = Flusher(
        disk.apply,
        clock=SYSTEM,
        on_applied=lambda _: None,
        on_late=lambda *_: None,
        wants_idle=lambda: False,
        idle_work=lambda: None,
    )
    many = [gevent.spawn(flusher.ask, Settled("patient")) for _ in range(40)]
    assert len(gevent.joinall(many[:32], timeout=LONG_S)) == 32
    flusher.close()  # in a hurry itself
    gevent.joinall(many, timeout=LONG_S, raise_error=True)
    flusher.kill()


def test_a_bug_in_hearing_of_the_late_keeps_no_answer_back(disk: Disk) -> None:
    def broken(_operation: object, _outcome: object) -> None:
        raise ValueError("a bug")

    flusher = Flusher(
        disk.apply,
        clock=SYSTEM,
        on_applied=lambda _applied: None,
        on_late=broken,
        wants_idle=lambda: False,
        idle_work=lambda: None,
    )
    disk.may_go.clear()
    flusher.post(Say("first"))
    wait_until_it_runs(disk)
    flusher.post(Say("nobody's"))  # as one whose caller was killed: told as late
    waits = gevent.spawn(flusher.ask, Say("mine"))
    gevent.idle()
    disk.may_go.set()
    assert waits.get(timeout=LONG_S) == "mine!"
    with gevent.Timeout(LONG_S):
        flusher.close()
        flusher.kill()
