"""What one code leaves, the next finds: crews, children, sockets, figures."""

from __future__ import annotations

import json
import math
import os
import socket
import sys

import pytest

from relayd.config import codec
from relayd.config.model import Config, Server
from relayd.master import checker, upgrade
from relayd.master.board import Board
from relayd.master.channel import Channel, pair
from relayd.master.checker import Loaded
from relayd.master.crew import Child, Crew, Life
from relayd.master.settings import parse
from relayd.master.sockets import Bound


def a_state() -> upgrade.State:
    octets = codec.dumps(Config(server=Server(workers=2, runtime_dir="/run/x")))
    loaded = Loaded(parse(octets), checker.sealed(octets))
    listener = socket.create_server(("127.0.0.1", 0))
    crew = Crew("worker", 3, loaded, (Bound("lan", "127.0.0.1:0", listener),), 2)
    former = Crew("worker", 2, loaded, (), 1)
    former.dismiss()
    cached = Crew("cached", 1, loaded, (), 1)
    for one, number, life in ((crew, 2, Life.READY), (former, 1, Life.DRAINING)):
        ours, theirs = pair()
        theirs.close()
        child = Child(
            pid=100 + number,
            kind="worker",
            number=number,
            serial=7,
            row=number,
            generation=one.generation,
            channel=Channel(ours),
            born_at=5.0,
            life=life,
            deadline=math.inf if life is Life.READY else 99.0,
        )
        one.adopt(child)
    control, _ = socket.socketpair(socket.AF_UNIX)
    _.close()
    return upgrade.State(
        serial=7,
        crews=(cached, former, crew),
        board_fd=Board().fd,
        control_fd=control.detach(),
        retired={"relayd_sessions_total": {"a": 1}},
        unclaimed=(55,),
        started_at=3.0,
    )


def passed_on(state: dict[str, object]) -> dict[str, str]:
    """Return the environment of the next code, with `state` behind it."""
    return {upgrade.VARIABLE: str(checker.sealed(json.dumps(state).encode()))}


def close(state: upgrade.State) -> None:
    for crew in state.crews:
        for one in crew.listening:
            one.sock.close()
        for child in crew.children():
            child.channel.close()


def release(state: upgrade.State) -> None:
    """Let go of the objects whose descriptors have been taken over."""
    for crew in state.crews:
        for one in crew.listening:
            one.sock.detach()
        for child in crew.children():
            child.channel.sock.detach()


def test_the_next_code_finds_everything() -> None:
    state = a_state()
    environ = passed_on(upgrade._encode(state))
    resumed = upgrade.resume(environ)
    assert resumed is not None
    assert environ == {}
    assert (resumed.serial, resumed.unclaimed, resumed.started_at) == (7, (55,), 3.0)
    assert resumed.retired == state.retired
    cached, former, crew = resumed.crews
    assert (cached.kind, cached.size, cached.is_gone) == ("cached", 1, True)
    assert former.is_leaving
    (leaving,) = former.children()
    assert (leaving.life, leaving.deadline) == (Life.DRAINING, 99.0)
    (child,) = crew.children()
    assert (child.pid, child.number, child.life, child.born_at) == (102, 2, Life.READY, 5.0)
    assert math.isinf(child.deadline)
    assert crew.size == 2
    assert crew.config.settings.runtime_dir == "/run/x"
    where = crew.listening[0].where()
    assert where == state.crews[2].listening[0].where()
    with socket.create_connection(("127.0.0.1", int(where.rpartition(":")[2]))):
        pass
    release(state)
    for one in crew.listening:
        one.sock.close()
    for each in (child, leaving):
        each.channel.close()
    resumed.control.close()


def test_a_configuration_of_another_version_still_leads_the_old_children() -> None:
    state = a_state()
    row = upgrade._encode_crew(state.crews[2])
    row["config"] = checker.sealed(b'{"another": "version"}')
    loaded = upgrade._decode_config(row)
    assert loaded.settings.runtime_dir == "/run/x"
    loaded.close()
    close(state)


@pytest.mark.parametrize(
    "state",
    [{}, {"v": 1, "pid": 1}, {"v": 99, "pid": os.getpid()}, [], "text", {"v": 1, "pid": None}],
)
def test_a_strangers_variable_is_not_believed(state: object) -> None:
    fd = checker.sealed(json.dumps(state).encode())
    assert upgrade.resume({upgrade.VARIABLE: str(fd)}) is None
    os.close(fd)


@pytest.mark.parametrize("text", ["", "99999", "-1", "memfd"])
def test_a_variable_without_a_memfd_is_an_ordinary_start(text: str) -> None:
    assert upgrade.resume({upgrade.VARIABLE: text}) is None
    assert upgrade.resume({}) is None


def test_an_exec_that_fails_leaves_everything_as_it_was() -> None:
    state = a_state()
    fds = upgrade._descriptors(state)
    with pytest.raises(FileNotFoundError):
        upgrade.replace(("/nonexistent/python",), state)
    assert not any(os.get_inheritable(fd) for fd in fds)
    close(state)


@pytest.mark.slow(1)
def test_a_look_that_says_no_is_quoted() -> None:
    preflight = upgrade.start_preflight((sys.executable, "-c", "exit('line 3: no')"), ())
    assert os.waitstatus_to_exitcode(os.waitpid(preflight.pid, 0)[1]) == 1
    assert preflight.said() == "line 3: no"
