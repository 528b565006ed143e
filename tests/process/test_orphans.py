"""kill -9 of the master: its children leave, and its successor finds the port free."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.relay import Relay, a_relay, is_alive

pytestmark = [pytest.mark.slow(3), pytest.mark.timeout(120)]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    yield from a_relay(tmp_path)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _kill_master(relay: Relay) -> list[int]:
    pids = [row["pid"] for row in relay.status()["processes"]]
    relay.signal(signal.SIGKILL)
    assert relay.wait_exit() == -signal.SIGKILL
    return pids


def test_children_of_a_killed_master_leave(relay: Relay) -> None:
    relay.start_and_wait()
    pids = _kill_master(relay)
    relay.until(lambda: not any(is_alive(pid) for pid in pids), "all gone")


def test_children_are_gone_even_when_one_was_stopped(relay: Relay) -> None:
    relay.start_and_wait()
    with relay.connect() as session:
        pids = _kill_master(relay)
        relay.until(lambda: not any(is_alive(pid) for pid in pids if pid != session.pid), "gone")
    relay.until(lambda: not is_alive(session.pid), "and the last, after its session")


def test_a_new_master_binds_the_same_port_at_once(relay: Relay) -> None:
    port = _free_port()
    relay.config |= {"addresses": [f"127.0.0.1:{port}"]}
    relay.start_and_wait()
    pids = _kill_master(relay)
    relay.start_and_wait()
    assert relay.port() == port
    assert relay.greeting(port) == "first"
    relay.until(lambda: not any(is_alive(pid) for pid in pids), "the old ones are gone")


def test_a_master_killed_right_after_a_fork_leaves_no_child(relay: Relay) -> None:
    relay.config |= {"workers": 8}
    relay.start()
    relay.until(lambda: relay.lines("child.forked"), "the first is there")
    relay.signal(signal.SIGKILL)
    relay.wait_exit()
    pids = [int(line.split("pid=")[1].split()[0]) for line in relay.lines("child.forked")]
    relay.until(lambda: not any(is_alive(pid) for pid in pids), "all gone")


def test_the_control_socket_of_a_dead_master_is_taken_over(relay: Relay) -> None:
    relay.start_and_wait()
    _kill_master(relay)
    assert (relay.folder / "control.sock").exists()
    relay.start_and_wait()
    assert relay.status()["pid"] == relay.pid
