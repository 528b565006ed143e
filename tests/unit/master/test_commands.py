"""What is in the table is done, what is not goes to a worker, what makes no sense is refused."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relayd.clock import FakeClock
from relayd.config.model import Config
from relayd.master.callers import Callers
from relayd.master.checker import Loaded
from relayd.master.commands import Commands
from relayd.master.control import Client, Peer
from relayd.master.crew import Crew, Life
from relayd.master.frames import Frame, Garbage, Json
from relayd.master.house import House, Phase
from relayd.master.report import Troubles
from relayd.master.settings import select

CLIENT = cast("Client", SimpleNamespace(peer=Peer(pid=9, uid=1000)))


class Loop:
    """Remembers what it was asked to do; `worker` says whether one takes a packet."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.replies: list[Frame] = []
        self.worker: bool | Exception = True
        self.children: list[object] = []
        self.why = ""
        loaded = Loaded(select(Config()), fd=-1)
        self.house = cast("House", self._house(loaded))

    def _house(self, loaded: Loaded) -> Any:
        return SimpleNamespace(
            control=SimpleNamespace(
                reply=lambda _client, frame: self.replies.append(frame),
                hand_over=lambda _client, send: send(77),
            ),
            household=SimpleNamespace(send_to_worker=self._send, children=lambda: self.children),
            current=Crew("worker", 1, loaded, (), 2),
            phase=Phase.RUNNING,
            clock=FakeClock(),
            troubles=Troubles(),
        )

    def _send(self, _crew: Crew, packet: Frame, fds: tuple[int, ...]) -> bool:
        if isinstance(self.worker, Exception):
            raise self.worker
        self.done.append((packet, fds))
        return self.worker

    def state(self) -> str:
        return "running"

    def unavailable(self) -> str:
        return self.why

    def last_reload(self) -> Frame:
        return {}

    def ask_reload(self, client: Client) -> None:
        self.done.append("reload")

    def ask_upgrade(self, client: Client) -> None:
        self.done.append("upgrade")

    def ask_stop(self, client: Client, *, fast: bool) -> None:
        self.done.append(("stop", fast))

    def act_on(self, number: int) -> None:
        self.done.append(number)

    def resize(self, change: int) -> int:
        return 2 + change


@pytest.fixture
def loop() -> Loop:
    return Loop()


def ask(loop: Loop, **request: Json) -> Frame | None:
    Commands(loop).answer(CLIENT, dict(request))
    return loop.replies[-1] if loop.replies else None


def test_reopen_is_what_a_signal_is(loop: Loop) -> None:
    reply = ask(loop, command="reopen")
    assert reply is not None
    assert reply["ok"] is True
    assert loop.done == [signal.SIGUSR1]


def test_a_ping_tells_who_is_there(loop: Loop) -> None:
    reply = ask(loop, command="ping")
    assert reply is not None
    assert cast("Frame", reply["result"])["pid"] == os.getpid()


def test_who_called_is_told_by_name_or_address(loop: Loop) -> None:
    callers = Callers()
    callers.hear([{"ip": "192.0.2.5", "device": "ups", "refused": 1, "refusal": {"code": 550}}])
    household = SimpleNamespace(callers=callers)
    loop.house = cast("House", SimpleNamespace(**{
        **vars(loop.house), "household": household, "started_at": 900.0, "now": lambda: 1000.0,
    }))  # fmt: skip
    for request, count in (({}, 1), ({"ip": "192.0.2.5"}, 1), ({"name": "nas"}, 0)):
        reply = ask(loop, command="callers", **request)
        assert reply is not None
        result = cast("dict[str, Any]", reply["result"])
        assert (result["up_s"], len(result["callers"])) == (100.0, count)


def test_a_stop_is_answered_later_and_fast_only_when_true(loop: Loop) -> None:
    assert ask(loop, command="stop", fast=True) is None
    assert ask(loop, command="stop", fast="yes") is None
    assert loop.done == [("stop", True), ("stop", False)]


@pytest.mark.parametrize("command", ["reload", "upgrade"])
def test_some_commands_are_answered_later_but_not_while_stopping(loop: Loop, command: str) -> None:
    assert ask(loop, command=command) is None
    loop.house.phase = Phase.STOPPING
    reply = ask(loop, command=command)
    assert reply is not None
    assert reply["exit"] == 69
    assert loop.done == [command]


@pytest.mark.parametrize("change", [0, 2, "1", None, 1.5])
def test_workers_come_and_go_one_by_one(loop: Loop, change: Json) -> None:
    reply = ask(loop, command="workers", change=change)
    assert reply is not None
    assert reply["ok"] is False
    reply = ask(loop, command="workers", change=-1)
    assert reply is not None
    assert reply["result"] == {"workers": 1}


@pytest.mark.parametrize("command", [None, 3, ["status"], {}])
def test_a_request_without_a_command_is_refused(loop: Loop, command: Json) -> None:
    reply = ask(loop, command=command)
    assert reply is not None
    assert reply["error"] == '"command" is missing'


def test_what_the_master_does_not_know_goes_to_a_worker_with_who_asks(loop: Loop) -> None:
    assert ask(loop, command="queue.list") is None
    packet = {
        "do": "control",
        "request": {"command": "queue.list"},
        "peer": {"uid": 1000, "pid": 9},
    }
    assert loop.done == [(packet, (77,))]


def test_a_worker_is_told_what_another_found_down(loop: Loop) -> None:
    figures: Frame = {"upstreams": {"a": {"state": "down", "cause": "dns-failed"}}}
    loop.children = [SimpleNamespace(kind="worker", life=Life.READY, serial=1, figures=figures)]
    ask(loop, command="queue.list")
    ((packet, _),) = cast("list[Any]", loop.done)
    assert packet["down"]["a"]["cause"] == "dns-failed"


@pytest.mark.parametrize(
    ("worker", "words"), [(False, "no worker serves"), (Garbage("too large"), "too large")]
)
def test_what_no_worker_takes_is_refused_with_words(
    loop: Loop, *, worker: bool | Exception, words: str
) -> None:
    loop.worker = worker
    reply = ask(loop, command="queue.list")
    assert reply is not None
    assert words in str(reply["error"])


def test_while_nobody_serves_the_reason_is_told_to_whoever_needs_a_worker(loop: Loop) -> None:
    loop.worker, loop.why = False, "worker 1: /var/spool/relayd is open to others"
    reply = ask(loop, command="queue.list")
    assert reply is not None
    assert "no worker serves: worker 1: /var/spool/relayd is open" in str(reply["error"])
