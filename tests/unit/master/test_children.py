"""A child is told all of its birth, and its configuration is its own to read."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from pathlib import Path

import pytest

from relayd.config import codec
from relayd.config.model import Config, Limits
from relayd.master import spawn
from relayd.master.board import Board
from relayd.master.channel import Channel
from relayd.master.checker import Loaded, sealed
from relayd.master.child import ChildContext
from relayd.master.children import give_birth
from relayd.master.crew import Crew
from relayd.master.frames import Json
from relayd.master.settings import parse
from relayd.master.sockets import Bound
from relayd.observe import metrics

PATIENCE_S = 20.0


def tell(context: ChildContext) -> int:
    """Be a child: say over the channel what it was told."""
    config = codec.loads(os.read(context.config_fd, 1 << 20))
    with socket.socket(fileno=context.channel_fd) as sock:
        names = []
        for name, fd in context.listeners:
            with socket.socket(fileno=fd) as listener:
                names.append([name, listener.getsockname()[1], os.get_blocking(fd)])
        Channel(sock).send(
            {
                "kind": context.kind,
                "number": context.number,
                "serial": context.serial,
                "limit": config.limits.max_connections,
                "listeners": names,
                "entered": [context.pulse.enter("ups"), context.pulse.enter("ups")],
                "title": Path("/proc/self/cmdline").read_text().rstrip("\0"),
                "counted": len(metrics.snapshot()),
            }
        )
    return 4


def test_a_worker_knows_its_number_listeners_limits_and_configuration() -> None:
    octets = codec.dumps(Config(limits=Limits(max_connections=9, max_connections_per_device=1)))
    loaded = Loaded(parse(octets), sealed(octets))
    board = Board()
    metrics.count("relayd_worker_restarts_total")  # by the master: not the child's to tell
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        crew = Crew("worker", 1, loaded, (Bound("lan", "x", listener),), 2)
        for serial in (5, 6):
            child = give_birth(
                crew,
                2,
                serial=serial,
                row=3,
                board=board,
                entry=f"{__name__}:tell",
                now=0.0,
                mine=[],
            )
            assert os.waitstatus_to_exitcode(spawn.wait(child.pid, PATIENCE_S)) == 4
            packet = child.channel.receive()
            assert packet is not None
            assert packet.members == {
                "kind": "worker",
                "number": 2,
                "serial": serial,
                "limit": 9,
                "listeners": [["lan", listener.getsockname()[1], False]],
                "entered": [True, False],
                "title": "relayd: worker 2",
                "counted": 0,
            }
            assert board.connections(3) == 1
            board.clear(3)
            child.channel.close()
    loaded.close()


def said(kind: str, entry: str, limits: Limits | None = None) -> dict[str, Json]:
    """Have an only child and return what it says."""
    octets = codec.dumps(Config(limits=limits or Limits()))
    loaded = Loaded(parse(octets), sealed(octets))
    child = give_birth(
        Crew(kind, 1, loaded, (), 1), 0, serial=1, row=0, board=Board(),
        entry=f"{__name__}:{entry}", now=0.0, mine=[],
    )  # fmt: skip
    spawn.wait(child.pid, PATIENCE_S)
    packet = child.channel.receive()
    child.channel.close()
    loaded.close()
    assert packet is not None
    return packet.members


def test_cached_gets_no_listener() -> None:
    told = said("cached", "tell")
    assert (told["listeners"], told["title"]) == ([], "relayd: cached")


def configurations() -> list[int]:
    """Return the descriptors of configurations that are open here."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if "relayd-config" in os.readlink(f"/proc/self/fd/{name}"):
                found.append(int(name))
    return found


def tell_configurations(context: ChildContext) -> int:
    """Be a child: say which of them it has."""
    with socket.socket(fileno=context.channel_fd) as sock:
        Channel(sock).send({"open": configurations(), "own": context.config_fd})
    return 0


def test_admin_has_no_descriptor_of_the_configuration_but_the_one_it_will_close() -> None:
    others = configurations()  # other tests' in this process
    told = said("admin", "tell_configurations")
    opened = told["open"]
    assert isinstance(opened, list)
    assert [one for one in opened if one not in others] == [told["own"]]


def test_no_more_connections_are_let_in_than_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = Limits(max_connections=9, max_connections_per_device=9)
    for soft, entered in ((2, [True, False]), (resource.RLIM_INFINITY, [True, True])):
        openable = (soft, resource.RLIM_INFINITY)
        monkeypatch.setattr(resource, "getrlimit", lambda _, openable=openable: openable)
        assert said("cached", "tell", limits)["entered"] == entered
