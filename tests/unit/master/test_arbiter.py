"""The loop starts cached first, obeys signals, survives its own bugs and stops workers first."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from relayd.master import sockets, spawn
from relayd.master.crew import Life, Post
from relayd.master.frames import Json, done
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


def lose_worker(master: Master, *, unserved_s: float = 60.0) -> Post:
    """Kill the worker, as if none had served for so long, the next 8 s away; returns its post."""
    (post,) = master.house.current.posts.values()
    assert post.child is not None
    post.failures = 4
    os.kill(post.child.pid, signal.SIGKILL)
    master.until(lambda: post.child is None)
    master.arbiter._served_at -= unserved_s
    return post


def reason(master: Master) -> str:
    """Return why the log says that nobody serves."""
    master.until(lambda: "relay.unavailable" in master.log())
    return master.log().partition("relay.unavailable")[2].splitlines()[0]


def turns(master: Master, seconds: float = 0.5) -> int:
    """Return how often the loop turns meanwhile."""
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        master.arbiter._turn()
        count += 1
    return count


def filled(master: Master, post: Post) -> None:
    """Wait until somebody is at a post, who need not serve."""
    master.until(lambda: post.child is not None)


def reloaded(master: Master) -> None:
    """Wait for the end of a reload."""
    master.until(lambda: master.replies)


def a_port() -> int:
    """Return a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_while_no_worker_can_start_who_connects_is_told_so(master: Master) -> None:
    master.start()
    post = lose_worker(master)
    assert heard(master) == NOT_AVAILABLE
    assert heard(master) == NOT_AVAILABLE
    assert master.log().count("relay.unavailable") == 1
    assert "worker 1: SIGKILL" in reason(master)
    post.due_at = 0.0
    master.until(lambda: "relay.turned_away" in master.log())
    assert "connections=2" in master.log().partition("relay.turned_away")[2].splitlines()[0]
    assert heard(master) != NOT_AVAILABLE


def unavailable(master: Master) -> Json:
    """Return what `status` says of it."""
    master.arbiter._answer(A_CLIENT, {"command": "status"})
    result = master.replies[-1]["result"]
    assert isinstance(result, Mapping)
    return result["unavailable"]


def test_why_nobody_serves_is_in_the_status_until_somebody_does(master: Master) -> None:
    master.start()
    assert unavailable(master) is None
    post = lose_worker(master, unserved_s=5.0)
    assert unavailable(master) is None  # it will be back in seconds
    master.arbiter._served_at -= 55.0
    master.until(lambda: "relay.unavailable" in master.log())
    assert unavailable(master) == "worker 1: SIGKILL"
    post.due_at = 0.0
    master.until(lambda: "relay.turned_away" in master.log())
    assert unavailable(master) is None


def test_a_relay_that_stops_is_not_said_to_lack_workers(master: Master) -> None:
    master.start()
    lose_worker(master)
    reason(master)
    assert unavailable(master)
    master.arbiter.stop(fast=False)
    assert unavailable(master) is None


def test_systemctl_status_does_not_say_serving_while_nobody_does(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(master.house.notifier, "status", lines.append)
    master.start()
    lose_worker(master)
    reason(master)
    master.arbiter._turn()
    assert lines[-1].startswith("NO WORKER SERVES, ")
    assert "SIGKILL" in lines[-1]


def test_where_tls_comes_first_nothing_is_said_in_clear(master: Master) -> None:
    master.start()
    current = master.house.current
    settings = current.config.settings
    implicit = tuple(replace(one, tls="implicit") for one in settings.listeners)
    current.config = replace(current.config, settings=replace(settings, listeners=implicit))
    lose_worker(master)
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
    lose_worker(master)
    master.until(lambda: "relay.unavailable" in master.log())
    with monkeypatch.context() as scarce:
        scarce.setattr(socket.socket, "accept", none_left)
        tried = socket.create_connection(master.house.current.listening[0].sock.getsockname())
        master.until(lambda: master.arbiter._turn_away._paused_until > 0)
    tried.close()
    assert heard(master) == NOT_AVAILABLE


def test_for_a_worker_that_will_be_back_in_seconds_devices_wait(master: Master) -> None:
    master.start()
    master.arbiter._served_at -= 60  # one served all the time since
    master.arbiter._turn()
    post = lose_worker(master, unserved_s=5.0)
    master.arbiter._turn()
    post.due_at = 0.0
    assert heard(master) != NOT_AVAILABLE
    assert "relay.unavailable" not in master.log()


def test_a_stop_while_no_worker_can_start_has_the_last_word(master: Master) -> None:
    master.start()
    lose_worker(master)
    assert heard(master) == NOT_AVAILABLE
    master.arbiter.act_on(signal.SIGTERM)
    assert heard(master) == SHUTTING_DOWN
    master.until(master.arbiter._is_over)


def test_a_worker_that_says_why_it_cannot_serve_is_quoted(tmp_path: Path) -> None:
    for master in a_master(tmp_path, behaviour="fail"):
        master.arbiter._begin()
        while "child.died" not in master.log():
            master.arbiter._turn()
        master.arbiter._served_at -= 60
        assert 'reason="worker 1: no spool today"' in reason(master)


def test_what_was_wrong_is_forgotten_when_a_worker_serves(master: Master) -> None:
    master.start()
    lose_worker(master).due_at = 0.0
    assert master.house.household.trouble == "worker 1: SIGKILL"
    master.until(lambda: "relay.turned_away" in master.log())
    assert master.house.household.trouble == ""


def test_a_worker_that_cannot_be_forked_is_as_one_that_died(
    master: Master, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object, **__: object) -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    master.start()
    with monkeypatch.context() as scarce:
        scarce.setattr(spawn, "fork", none)
        lose_worker(master).due_at = 0.0
        master.until(lambda: "child.unborn" in master.log())
        assert "cannot fork: Resource temporarily unavailable" in master.house.household.trouble
        assert heard(master) == NOT_AVAILABLE


def test_only_workers_that_went_wrong_are_the_reason(master: Master) -> None:
    master.start()
    household = master.house.household
    (cached,) = master.house.cached.children()
    household.trouble = "of a worker"
    os.kill(cached.pid, signal.SIGKILL)
    master.until(lambda: master.house.cached.is_ready and cached not in household.children())
    assert household.trouble == "of a worker"
    (worker,) = master.house.current.children()
    household._abort(worker, time.monotonic(), 30.0)
    assert household.trouble == "worker 1 hangs"
    household.trouble = ""
    master.until(lambda: household.trouble == "worker 1: SIGABRT")


def test_workers_that_a_reload_ends_are_no_reason(master: Master) -> None:
    master.start()
    (worker,) = master.house.current.children()
    master.arbiter.ask_reload(A_CLIENT)
    reloaded(master)
    master.until(lambda: worker not in master.house.household.children())
    assert master.house.household.trouble == ""


def test_without_a_place_for_a_worker_that_is_the_reason(master: Master) -> None:
    master.start()
    household = master.house.household
    post = lose_worker(master, unserved_s=0.0)
    household._free_rows.clear()
    post.due_at = 0.0
    master.until(lambda: "have taken every place" in household.trouble)
    master.arbiter._served_at -= 60
    assert 'reason="those on their way out have taken every place"' in reason(master)


def test_without_a_listener_it_is_said_once_that_nobody_serves(master: Master) -> None:
    master.start()
    sockets.close_all(master.house.current.listening)
    master.house.current.listening = ()
    lose_worker(master)
    reason(master)
    turns(master)
    assert master.log().count("relay.unavailable") == 1


def test_a_listener_that_a_reload_ends_is_not_watched_any_more(tmp_path: Path) -> None:
    opened, old = tmp_path / "opened", a_port()
    opened.touch()
    for master in a_master(tmp_path, behaviour="slow", addresses=[f"127.0.0.1:{old}"]):
        master.start()
        opened.unlink()
        post = lose_worker(master)
        assert heard(master) == NOT_AVAILABLE
        post.due_at = 0.0
        filled(master, post)  # it opens a large spool; the old socket lives on in it
        master.write(behaviour="", addresses=[f"127.0.0.1:{a_port()}"])
        master.arbiter.ask_reload(A_CLIENT)
        reloaded(master)
        with socket.create_connection(("127.0.0.1", old)):
            assert turns(master) < 200, "a loop that sleeps turns 50 times a second"


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
