"""A new configuration is reloaded, or the relay re- or started; who is in the way is named."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.cli import takeover
from relayd.cli.service import Service
from relayd.cli.takeover import Taken, in_the_way, take_over
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.frames import done, refused
from relayd.master.holder import holder_of
from relayd.master.sockets import NEEDS_RESTART
from tests.control_socket import ControlSocket


class Unit(Service):
    """A unit that does as it is told, or fails with `why`."""

    def __init__(self, unit: str = "relayd.service", why: str = "") -> None:
        self.unit = unit
        self.why = why
        self.done: list[str] = []

    def enable_and_start(self) -> str:
        self.done.append("start")
        return self.why

    def restart(self) -> str:
        self.done.append("restart")
        return self.why


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as control:
        yield control


@pytest.fixture
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def taken(control: ControlSocket, unit: Unit, *listen: str) -> Taken:
    return take_over(str(control.config), listen, lambda _: unit)


def gone(control: ControlSocket) -> None:
    (control.config.parent / "control.sock").unlink()


def test_a_running_relay_takes_it_over(control: ControlSocket) -> None:
    control.answers["reload"] = [done({"workers": 2})]
    unit = Unit()
    assert taken(control, unit) == Taken("reloaded", ("the running relay took it over",))
    assert unit.done == []


def test_what_a_running_relay_objects_to_is_told(control: ControlSocket) -> None:
    control.answers["reload"] = [refused("no", problems=["relayd.toml:3: wrong"])]
    found = taken(control, Unit())
    assert found == Taken("refused", ("relayd.toml:3: wrong",))
    assert not found.is_good
    control.answers["reload"] = [refused("stopping")]
    assert taken(control, Unit()).texts == ("stopping",)


@pytest.mark.usefixtures("_as_root")
def test_listening_elsewhere_on_the_same_port_restarts_the_unit(control: ControlSocket) -> None:
    problem = f"cannot listen on 0.0.0.0:25: held by this relayd; {NEEDS_RESTART}: …"
    control.answers["reload"] = [refused("no", problems=[problem])]
    unit = Unit()
    assert taken(control, unit).state == "restarted"
    assert unit.done == ["restart"]
    found = taken(control, Unit(unit=""))
    assert found.state == "down"
    assert "must stop before it can listen there" in found.texts[0]


@pytest.mark.usefixtures("_as_root")
def test_a_relay_that_is_down_is_started(control: ControlSocket) -> None:
    gone(control)
    unit = Unit()
    assert taken(control, unit).state == "started"
    assert unit.done == ["start"]
    found = taken(control, Unit(unit=""))
    assert (found.state, found.is_good) == ("stopped", True)


def test_who_may_not_ask_the_relay_is_told_and_nothing_is_started(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: str, *_: object, **__: object) -> None:
        raise NotRunning(path, permitted=False)

    monkeypatch.setattr(client, "ask", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    unit = Unit()
    found = taken(control, unit)
    assert (found.state, found.is_good, unit.done) == ("unasked", True, [])


@pytest.mark.usefixtures("_as_root")
@pytest.mark.parametrize("cause", [ConnectionResetError(), TimeoutError()])
def test_a_relay_that_dies_or_falls_silent_over_it_is_not_told_as_well(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch, cause: OSError
) -> None:
    def ask(*_: object, **__: object) -> None:
        raise NotRunning("no answer", permitted=isinstance(cause, TimeoutError)) from cause

    monkeypatch.setattr(client, "ask", ask)
    unit = Unit()
    found = taken(control, unit)
    assert (found.state, found.is_good, unit.done) == ("down", False, [])
    assert found.texts[0] == "no answer"


def test_others_than_root_are_told_what_root_types(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    gone(control)
    assert taken(control, Unit()).texts == (
        "relayd does not run: sudo systemctl enable --now relayd.service",
    )


@pytest.mark.usefixtures("_as_root")
def test_who_holds_the_port_is_named_with_the_command(control: ControlSocket) -> None:
    gone(control)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        found = taken(control, Unit(why="exit 1"), f"0.0.0.0:{port}", f"[::]:{port}")
    assert found.state == "down"
    assert found.texts[0].startswith(f"0.0.0.0:{port} is held by ")
    assert f"(pid {os.getpid()})" in found.texts[0]
    assert len(found.texts) == 2
    assert found.texts[1].startswith("then it goes on by itself")
    assert taken(control, Unit(why="exit 1"), f"0.0.0.0:{port}").texts == (
        "exit 1",
        "why: systemctl status relayd.service; relayd check",
    )


def test_the_relay_itself_is_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = holder_of

    def relayd(host: str, port: int) -> object:
        found = ours(host, port)
        return found and found._replace(unit="relayd")

    monkeypatch.setattr(takeover, "holder_of", relayd)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        assert list(in_the_way([f"127.0.0.1:{holder.getsockname()[1]}"])) == []
