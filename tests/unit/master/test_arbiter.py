"""The loop starts cached first, obeys signals, survives its own bugs and stops workers first."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from relayd.master.crew import Life, Post
from relayd.master.frames import done
from relayd.master.house import Phase
from relayd.master.turnaway import NOT_AVAILABLE, SHUTTING_DOWN
from tests.masters import A_CLIENT, Master, a_master

pytestmark = [pytest.mark.slow(1), pytest.mark.timeout(60)]


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    yield from a_master(tmp_path)


def test_cached_is_first_and_the_workers_follow(master: Master) -> None:
    master.arbiter._begin()
    assert master.house.household.crews == [master.house.cached]
    assert master.arbiter.state() == "starting"
    master.until(lambda: master.house.current in master.house.household.crews)
    assert master.house.cached.is_ready
    master.until(lambda: master.house.phase is Phase.RUNNING)
    assert master.arbiter.state() == "running"
    assert "relay.ready" in master.log()


def test_workers_do_not_wait_for_a_cached_that_hangs(master: Master) -> None:
    master.arbiter._begin()
    master.arbiter._head_start_until = 0.0
    master.until(lambda: master.house.current in master.house.household.crews)


def test_a_stop_drains_the_workers_and_then_cached(master: Master) -> None:
    master.start()
    (worker,) = master.house.current.children()
    (cached,) = master.house.cached.children()
    master.arbiter.act_on(signal.SIGTERM)
    assert (worker.life, cached.life) == (Life.DRAINING, Life.READY)
    master.until(master.arbiter._is_over)
    assert cached.life is Life.DRAINING


def heard(master: Master) -> bytes:
    """Return what a device hears first."""
    address = master.house.current.listening[0].sock.getsockname()
    with socket.create_connection(address, timeout=20) as device:
        master.until(lambda: select.select([device], [], [], 0)[0])
        return device.recv(1000)


def lose_worker(master: Master, *, failures: int) -> Post:
    """Kill the worker, as if it had failed so often before; returns its post."""
    (post,) = master.house.current.posts.values()
    assert post.child is not None
    post.failures = failures
    os.kill(post.child.pid, signal.SIGKILL)
    master.until(lambda: post.child is None)
    return post


def test_while_no_worker_can_start_who_connects_is_told_so(master: Master) -> None:
    master.start()
    post = lose_worker(master, failures=4)
    assert heard(master) == NOT_AVAILABLE
    assert heard(master) == NOT_AVAILABLE
    assert master.log().count("relay.unavailable") == 1
    assert "SIGKILL" in master.log().partition("relay.unavailable")[2].splitlines()[0]
    post.due_at = 0.0
    master.until(lambda: "relay.turned_away" in master.log())
    assert "connections=2" in master.log().partition("relay.turned_away")[2].splitlines()[0]
    assert heard(master) != NOT_AVAILABLE


def test_where_tls_comes_first_nothing_is_said_in_clear(master: Master) -> None:
    master.start()
    current = master.house.current
    settings = current.config.settings
    implicit = tuple(replace(one, tls="implicit") for one in settings.listeners)
    current.config = replace(current.config, settings=replace(settings, listeners=implicit))
    lose_worker(master, failures=4)
    assert heard(master) == b""
    assert "relay.unavailable" in master.log()
    master.arbiter.act_on(signal.SIGTERM)
    assert heard(master) == b""
    master.until(master.arbiter._is_over)


def test_without_descriptors_it_goes_on_answering_later(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: socket.socket) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    master.start()
    lose_worker(master, failures=4)
    master.until(lambda: "relay.unavailable" in master.log())
    with monkeypatch.context() as scarce:
        scarce.setattr(socket.socket, "accept", none_left)
        tried = socket.create_connection(master.house.current.listening[0].sock.getsockname())
        master.until(lambda: master.arbiter._turn_away._paused_until > 0)
    tried.close()
    assert heard(master) == NOT_AVAILABLE


def test_for_a_worker_that_will_be_back_in_seconds_devices_wait(master: Master) -> None:
    master.start()
    post = lose_worker(master, failures=3)
    master.arbiter._turn()
    post.due_at = 0.0
    assert heard(master) != NOT_AVAILABLE
    assert "relay.unavailable" not in master.log()


def test_a_stop_while_no_worker_can_start_has_the_last_word(master: Master) -> None:
    master.start()
    lose_worker(master, failures=4)
    assert heard(master) == NOT_AVAILABLE
    master.arbiter.act_on(signal.SIGTERM)
    assert heard(master) == SHUTTING_DOWN
    master.until(master.arbiter._is_over)


def test_stopping_twice_or_fast_is_a_matter_of_seconds(master: Master) -> None:
    master.start()
    (worker,) = master.house.current.children()
    master.arbiter.act_on(signal.SIGTERM)
    patient = worker.deadline
    master.arbiter.act_on(signal.SIGTERM)
    assert worker.deadline <= patient
    master.until(master.arbiter._is_over)


def test_who_asked_for_the_stop_hears_at_its_end(master: Master) -> None:
    master.start()
    master.arbiter.ask_stop(A_CLIENT, fast=True)
    master.until(master.arbiter._is_over)
    assert master.replies == []
    master.arbiter._end()
    assert master.replies == [done()]


def test_one_worker_more_and_one_less(master: Master) -> None:
    master.start()
    master.arbiter.act_on(signal.SIGTTIN)
    master.until(lambda: len(master.house.current.ready()) == 2)
    master.arbiter.act_on(signal.SIGTTOU)
    master.until(lambda: len(master.pids()) == 2)
    assert master.house.current.size == 1


def test_a_bug_is_logged_and_the_loop_goes_on(master: Master) -> None:
    master.arbiter._tell_fault(RuntimeError("oh"))
    assert "master.fault" in master.log()
    assert "RuntimeError: oh" in master.log()


def test_nothing_to_do_means_waiting_and_something_wanted_means_none(master: Master) -> None:
    master.start()
    assert master.arbiter._patience_s() >= 0.0
    master.arbiter.act_on(signal.SIGHUP)
    assert master.arbiter._patience_s() == 0.0
