"""Signals become numbers in a list; none is lost, and none interrupts anything."""

from __future__ import annotations

import os
import selectors
import signal
import threading
from collections.abc import Iterator

import pytest

from relayd.master.signals import HANDLED, Signals, blocked


@pytest.fixture
def signals() -> Iterator[tuple[Signals, selectors.BaseSelector]]:
    """Yield a pipe and its selector, and leave this process's signals as they were."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    selector = selectors.DefaultSelector()
    signals = Signals(selector)
    yield signals, selector
    for number, handler in before.items():
        signal.signal(number, handler)
    for one in (*signals.closables(), selector):
        one.close()


def test_signals_come_in_order_and_are_taken_once(
    signals: tuple[Signals, selectors.BaseSelector],
) -> None:
    pipe, selector = signals
    with pipe.handled():
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGHUP)
        for key, events in selector.select(10):
            key.data(events)
        assert pipe.take() == [signal.SIGUSR1, signal.SIGHUP]
        assert pipe.take() == []


def test_orders_are_told_from_deaths(signals: tuple[Signals, selectors.BaseSelector]) -> None:
    pipe, _ = signals
    with pipe.handled():
        os.kill(os.getpid(), signal.SIGCHLD)
        assert not pipe.has_orders()
        os.kill(os.getpid(), signal.SIGTERM)
        assert pipe.has_orders()
        assert pipe.take() == [signal.SIGCHLD, signal.SIGTERM]


def test_a_blocked_signal_waits(signals: tuple[Signals, selectors.BaseSelector]) -> None:
    pipe, _ = signals
    with pipe.handled():
        with blocked():
            # To this thread: others, left by other tests, have it unblocked and would take it.
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            assert not pipe.has_orders()
        assert pipe.has_orders()


def test_waiting_ends_with_a_signal(signals: tuple[Signals, selectors.BaseSelector]) -> None:
    pipe, _ = signals
    with pipe.handled():
        os.kill(os.getpid(), signal.SIGUSR1)
        pipe.wait(1000)
        assert pipe.has_orders()
