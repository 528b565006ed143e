"""What all parts share: who is ours, what a child must close, what systemd is told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.master.crew import Life
from relayd.master.house import Phase
from tests.masters import Master, a_master

pytestmark = [pytest.mark.slow(1), pytest.mark.timeout(60)]


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


@pytest.fixture
def master(tmp_path: Path, systemd: socket.socket) -> Iterator[Master]:
    yield from a_master(tmp_path, {"NOTIFY_SOCKET": str(tmp_path / "notify")})


def test_a_listener_is_announced_and_left_with_systemd(
    master: Master, systemd: socket.socket
) -> None:
    master.arbiter.announce()
    octets, fds, _, _ = socket.recv_fds(systemd, 500, 1)
    os.close(fds[0])
    assert octets == b"FDSTORE=1\nFDNAME=kept-127.0.0.1-0"
    assert "listener.bound level=info listener=lan" in master.log()


def test_ours_are_the_master_and_its_children(master: Master) -> None:
    master.start()
    assert master.house.is_ours(os.getpid())
    assert all(master.house.is_ours(pid) for pid in master.pids())
    assert not master.house.is_ours(1)


def test_a_checker_closes_everything_and_a_worker_all_but_its_listeners(master: Master) -> None:
    master.start()
    house = master.house
    listener = house.current.listening[0].sock
    channels = {child.channel for child in house.household.children()}
    everything = house.everything()
    assert channels <= set(everything)
    assert {listener, house.selector, house.control.sock} <= set(everything)
    assert listener in house.private()
    assert listener not in house.household._not_for(house.current)
    assert listener in house.household._not_for(house.cached)


def test_phases_and_patience_are_those_of_the_launch(master: Master) -> None:
    assert master.house.phase is Phase.STARTING
    assert master.house.timings is master.house.launch.timings


def admins(master: Master) -> list[int]:
    children = master.house.household.children()
    return [child.pid for child in children if child.kind == "admin"]


def a_reload(master: Master, **changes: object) -> None:
    master.write(**changes)
    generation = master.house.current.generation
    master.arbiter._reload.ask()
    master.until(lambda: master.house.current.generation > generation)


def test_the_admin_process_comes_moves_and_goes_with_its_address(master: Master) -> None:
    master.start()
    assert (master.house.admin, admins(master)) == (None, [])
    a_reload(master, admin="127.0.0.1:8025")
    master.until(lambda: master.house.admin and master.house.admin.is_ready)
    (first,) = admins(master)
    a_reload(master, hostname="another")
    assert admins(master) == [first]
    assert [one.life for one in master.house.household.children() if one.pid == first] == [
        Life.READY
    ]
    a_reload(master, admin="127.0.0.1:8026")
    master.until(lambda: admins(master) and admins(master) != [first])
    crew = master.house.admin
    assert crew is not None
    assert crew.config.settings.admin == "127.0.0.1:8026"
    a_reload(master, admin="")
    master.until(lambda: not admins(master))
    assert master.house.admin is None
    master.until(lambda: crew not in master.house.household.crews)


def test_new_code_gets_a_new_admin_process(master: Master) -> None:
    master.write(admin="127.0.0.1:8025")
    master.start()
    a_reload(master)
    master.until(lambda: admins(master))
    before = admins(master)
    master.arbiter._reload.replaces_cached = True
    a_reload(master)
    master.until(lambda: admins(master) and admins(master) != before)


def test_a_worker_may_end_by_itself_before_it_is_killed(master: Master) -> None:
    """Both had the same moment: the kill took the worker its last words and its tidy end."""
    master.start()
    house = master.house
    grace_s = house.timings.cut_grace_s
    (worker,) = house.current.children()
    before = house.now()
    assert house.drain([worker]) == 5.0 + grace_s
    assert grace_s > 0
    assert before + 5.0 + grace_s <= worker.deadline <= house.now() + 5.0 + grace_s
    assert worker.life is Life.DRAINING
    assert house.drain([]) == 0.0


def test_a_generation_goes_by_the_graceful_timeout_that_it_knows(master: Master) -> None:
    master.start()
    a_reload(master, behaviour="stay", graceful_s=900)
    (old,) = master.house.current.ready()
    a_reload(master, graceful_s=1)
    assert old.life is Life.DRAINING
    assert old.deadline > master.house.now() + 60
