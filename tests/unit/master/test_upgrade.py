"""What one code leaves, the next finds: crews, children, sockets, figures."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import socket
import sys

import pytest

from relayd import __version__
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
            figures={"counters": {"relayd_sessions_total": {"a": number}}},
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
    assert (child.has_served, leaving.has_served) == (True, True)
    assert math.isinf(child.deadline)
    # Or the totals would go back until it tells them again.
    assert child.figures == {"counters": {"relayd_sessions_total": {"a": 2}}}
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


def test_a_child_that_starts_has_not_served() -> None:
    state = a_state()
    row = upgrade._encode_crew(state.crews[2])
    children = row["children"]
    assert isinstance(children, list)
    child = upgrade._decode_child(children[0] | {"life": "starting", "channel": -1}, state.crews[2])
    assert not child.has_served
    child.channel.close()
    close(state)


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
    [{}, {"v": 1, "pid": 1}, {"v": 99, "pid": 1}, [], "text", {"v": 1, "pid": None}],
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
    assert preflight.said() == ("line 3: no",)


def said(octets: bytes) -> tuple[str, ...]:
    fd = os.memfd_create("test")
    os.write(fd, octets)
    return upgrade.Preflight(0, fd).said()


def test_the_problems_of_a_look_are_its_own_words() -> None:
    report = json.dumps({"ok": False, "problems": ["x.toml:3: a", "b"], "warnings": ["c"]})
    assert said(f"some library's warning\n{report}\n".encode()) == ("x.toml:3: a", "b")


@pytest.mark.parametrize("octets", [b"", b"{}", b'{"problems": 7}', b"{" * 3000])
def test_what_is_no_report_is_quoted_and_bounded(octets: bytes) -> None:
    assert sum(map(len, said(octets))) <= 2000


def test_of_a_traceback_the_end_is_quoted() -> None:
    lines = [f"line {number}" for number in range(50)]
    assert said("\n".join(lines).encode()) == ("line 47", "line 48", "line 49")


def mine(**members: object) -> dict[str, str]:
    """Return the environment of code that was executed by this very process."""
    return passed_on({"v": upgrade.VERSION, "pid": os.getpid(), "relayd": "9.9"} | members)


@pytest.mark.parametrize(
    "members",
    [{"v": 99}, {"v": "1"}, {"crews": 7}, {"crews": [{}]}, {"crews": [], "serial": 1}],
)
def test_what_cannot_be_read_is_refused_with_words(members: dict[str, object]) -> None:
    environ = mine(**members)
    with pytest.raises(upgrade.HandoverUnreadable, match=r"9\.9 hands over .* systemctl restart"):
        upgrade.resume(environ)
    assert environ == {}


def test_the_form_that_is_written_can_be_read() -> None:
    assert upgrade.VERSION in upgrade.READS


def test_clients_that_wait_are_handed_over() -> None:
    whole = a_state()
    pairs = [socket.socketpair() for _ in range(2)]
    (one, _), (two, _) = pairs
    state = dataclasses.replace(
        whole,
        upgrade_fds=(one.fileno(),),
        reload_fds=(two.fileno(),),
        crews=(),
        memory={"troubles": ["x"]},
    )
    assert {one.fileno(), two.fileno()} <= upgrade._descriptors(state)
    resumed = upgrade.resume(passed_on(upgrade._encode(state)))
    assert resumed is not None
    assert resumed.was == __version__
    assert resumed.memory == {"troubles": ["x"]}
    for clients, (_, far) in zip(
        (resumed.upgrade_clients, resumed.reload_clients), pairs, strict=True
    ):
        clients[0].sendall(b"done")
        assert far.recv(9) == b"done"
        clients[0].close()
        far.close()
    one.detach()
    two.detach()
    close(whole)
    resumed.control.close()


def test_older_code_that_left_less_is_understood() -> None:
    state = a_state()
    whole = upgrade._encode(state)
    for name in ("relayd", "upgrade_clients", "reload_clients", "retired", "unclaimed", "memory"):
        del whole[name]
    resumed = upgrade.resume(passed_on(whole | {"crews": [], "new": "member"}))
    assert resumed is not None
    assert resumed.was == "an older relayd"
    assert resumed.upgrade_clients == ()
    assert resumed.memory == {}
    close(state)
    resumed.control.close()


def test_settings_of_another_version_are_taken_as_far_as_they_are_known() -> None:
    settings = upgrade._settings({"runtime_dir": "/run/y", "of_tomorrow": 1, "listeners": "x"})
    assert settings.runtime_dir == "/run/y"
    assert settings.graceful_timeout_s > 0
    assert settings.listeners == ()


def test_a_crew_nobody_knows_is_told_to_go() -> None:
    state = a_state()
    row = upgrade._encode_crew(state.crews[2]) | {"kind": "of tomorrow", "listening": []}
    crew = upgrade._decode_crew(row)
    assert crew.is_leaving
    release(state)
    for child in crew.children():
        child.channel.close()
    crew.config.close()
