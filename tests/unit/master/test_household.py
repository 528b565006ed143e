"""Children are born, heard, watched and buried; the tests of the live master show the rest."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relayd.config import codec
from relayd.config.model import Config, Server
from relayd.master.board import Board
from relayd.master.channel import Packet
from relayd.master.checker import Loaded, sealed
from relayd.master.crew import Child, Crew, Life
from relayd.master.frames import Frame, Json
from relayd.master.household import Household, What, counters
from relayd.master.launch import Launch, Timings
from relayd.master.log import Log
from relayd.master.settings import parse
from tests.process.fake_child import ENTRIES

pytestmark = pytest.mark.slow(1)
PATIENCE_S = 20.0


class Home:
    """A household whose loop is turned by hand."""

    def __init__(self, folder: Path) -> None:
        octets = codec.dumps(Config(server=Server(workers=1, runtime_dir=str(folder))))
        self.loaded = Loaded(parse(octets), sealed(octets))
        self.selector = selectors.DefaultSelector()
        launch = Launch(path="/x", entries=ENTRIES, timings=Timings(silent_s=1000.0))
        self.log_fd = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
        self.household = Household(
            launch, Board(), Log(fd=self.log_fd), self.selector, lambda: [self.selector]
        )
        self.crew = Crew("worker", 1, self.loaded, (), 1)
        self.household.crews = [self.crew]
        self.news: list[What] = []

    def turn(self) -> None:
        for key, events in self.selector.select(0.01):
            key.data(events)
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                self.household.bury(pid, status, time.monotonic())
        self.news += [news.what for news in self.household.tend(time.monotonic())]

    def until(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline
            self.turn()

    @property
    def child(self) -> Child:
        return next(iter(self.household.children()))

    def child_now(self) -> Child:
        self.until(lambda: What.READY in self.news)
        return self.child

    def close(self) -> None:
        self.crew.dismiss()
        for child in self.household.children():
            os.kill(child.pid, signal.SIGKILL)
        self.until(lambda: self.crew.is_gone)
        self.selector.close()
        self.loaded.close()
        os.close(self.log_fd)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path)
    yield home
    home.close()


def test_a_post_is_filled_and_its_child_heard(home: Home) -> None:
    home.until(lambda: What.READY in home.news)
    assert home.child.life is Life.READY
    home.until(lambda: home.child.figures.get("queue") == {"ready": 3, "held": 1})
    assert home.household.board.beat_at(home.child.row) > 0


def test_a_drained_child_goes_and_is_buried(home: Home) -> None:
    home.until(lambda: What.READY in home.news)
    row = home.child.row
    home.crew.dismiss()
    home.household.drain([home.child], time.monotonic() + PATIENCE_S)
    home.until(lambda: home.crew.is_gone)
    assert What.DIED in home.news
    assert home.household.board.beat_at(row) == 0.0
    assert home.household.next_moment() == float("inf")


def test_the_counters_of_the_dead_still_count(home: Home) -> None:
    home.until(lambda: home.news and home.child.figures)
    os.kill(home.child.pid, signal.SIGKILL)
    home.until(lambda: What.DIED in home.news)
    assert home.household.retired["relayd_sessions_total"] == {"lan\tok": 1}


def test_what_cached_counted_counts_on_and_its_leases_are_nobodys(home: Home) -> None:
    home.until(lambda: home.news and home.child.figures)
    home.child.kind = "cached"
    os.kill(home.child.pid, signal.SIGKILL)
    home.until(lambda: What.DIED in home.news)
    assert home.household.retired["relayd_sessions_total"] == {"lan\tok": 1}
    assert home.household.unclaimed == []


def test_counters_may_come_in_parts_and_stay_when_a_status_has_none(home: Home) -> None:
    home.until(lambda: What.READY in home.news)
    child = home.child
    packets: list[dict[str, Json]] = [
        {"event": "counters", "counters": {"relayd_messages_sent_total": {"a": 1}}},
        {"event": "counters", "counters": {"relayd_auth_total": {"b\tok": 2}}},
        {"event": "counters", "counters": "nonsense"},
        {"event": "status", "queue": {"ready": 4}},
    ]
    for members in packets:
        home.household._hear(child, Packet(members, ()))
    assert child.figures["queue"] == {"ready": 4}
    counted = counters(child.figures)
    assert counted["relayd_messages_sent_total"] == {"a": 1}
    assert counted["relayd_auth_total"] == {"b\tok": 2}


def test_upstreams_may_come_in_parts_and_a_status_may_take_them_back(home: Home) -> None:
    home.until(lambda: What.READY in home.news)
    child = home.child
    child.figures = {}
    packets: list[dict[str, Json]] = [
        {"event": "upstreams", "upstreams": {"a": {"state": "down"}}},
        {"event": "upstreams", "upstreams": {"b": {"state": "up"}}},
        {"event": "upstreams", "upstreams": "nonsense"},
        {"event": "upstreams", "upstreams": {"a": {"state": "up"}}},
        {"event": "status", "queue": {"ready": 4}},
    ]
    for members in packets:
        home.household._hear(child, Packet(members, ()))
    assert child.figures["upstreams"] == {"a": {"state": "up"}, "b": {"state": "up"}}
    assert child.figures["queue"] == {"ready": 4}
    home.household._hear(child, Packet({"event": "status", "upstreams": {}}, ()))
    assert child.figures["upstreams"] == {}


def test_it_is_known_when_a_child_told_its_figures(home: Home) -> None:
    home.until(lambda: What.READY in home.news)
    born = home.child.heard_at
    assert born > 0
    home.until(lambda: home.child.figures and home.child.heard_at > born)


def test_a_dead_workers_leases_wait_for_somebody_who_can_take_them(
    home: Home, tmp_path: Path
) -> None:
    home.until(lambda: What.READY in home.news)
    victim = home.child.pid
    os.kill(victim, signal.SIGKILL)
    home.until(lambda: What.DIED in home.news)
    home.until((tmp_path / "reclaimed").exists)
    assert (tmp_path / "reclaimed").read_text() == f"{victim}\n"
    assert home.household.unclaimed == []


def test_what_children_tell_of_peers_and_errors_outlives_them(home: Home) -> None:
    told: list[tuple[str, Json]] = [
        ("callers", [{"ip": "192.0.2.5", "device": "ups", "accepted": 1}]),
        ("errors", [{"at": "1", "event": "upstream.down", "text": "no such host"}, 3]),
        ("callers", "nonsense"),
        ("errors", None),
    ]
    for event, rows in told:
        home.household._hear(home.child_now(), Packet({"event": event, "rows": rows}, ()))
    os.kill(home.child.pid, signal.SIGKILL)
    home.until(lambda: What.DIED in home.news)
    assert [row["accepted"] for row in home.household.callers.shown()] == [1]
    assert [row["text"] for row in home.household.errors] == ["no such host"]


def test_what_operators_are_shown_outlives_an_upgrade(home: Home, tmp_path: Path) -> None:
    told: dict[str, Json] = {
        "callers": [
            {"ip": "192.0.2.5", "device": "ups", "accepted": 2},
            {"ip": "192.0.2.6", "device": "nas", "refused": 1, "refusal": {"code": 550}},
        ],
        "errors": [{"at": "1", "event": "message.held", "text": "x", "times": 3}],
    }
    home.household.remember(told)
    memory = json.loads(json.dumps(home.household.memory()))
    folder = tmp_path / "after"
    folder.mkdir()
    after = Home(folder)
    after.household.remember(memory)
    assert after.household.memory() == home.household.memory()
    assert [row["device"] for row in after.household.callers.shown()] == ["nas", "ups"]
    assert after.household.errors[0]["times"] == 3
    after.household.remember({"callers": 7, "errors": "x"})
    assert len(after.household.callers.shown()) == 2
    after.close()


def test_a_stranger_is_not_buried(home: Home) -> None:
    assert not home.household.bury(1, 0, 0.0)


def test_a_packet_with_a_descriptor_reaches_a_worker(home: Home) -> None:
    packet: Frame = {"do": "control", "request": {"command": "queue.list"}}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not home.household.send_to_worker(home.crew, packet, (theirs.fileno(),))
        home.until(lambda: What.READY in home.news)
        assert home.household.send_to_worker(home.crew, packet, (theirs.fileno(),))
        ours.settimeout(PATIENCE_S)
        assert b"queue.list" in ours.recv(65536)


def test_a_birth_that_fails_is_tried_again_later(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refuse)
        home.turn()
    assert list(home.household.children()) == []
    assert "child.unborn" in (tmp_path / "log").read_text()
    assert home.household.next_moment() > time.monotonic()
    home.until(lambda: What.READY in home.news)
