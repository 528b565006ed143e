"""The daemon's loop: beats, reports, and ends when it is told to."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relayd.cache.client import Client, socket_path
from relayd.cached import Daemon
from relayd.config.model import Cloud, Config, Server, Upstream
from relayd.errors import TokenUnavailable
from relayd.identity.tokens import TokenClient
from relayd.master.channel import Channel


@dataclass
class Pulse:
    beats: int = 0
    left: list[str] = field(default_factory=list)

    def beat(self) -> None:
        self.beats += 1

    def accept(self, *, does: bool) -> None:
        raise NotImplementedError

    def others(self) -> int:
        raise NotImplementedError

    def is_ahead(self) -> bool:
        raise NotImplementedError

    def enter(self, device: str) -> bool:
        raise NotImplementedError

    def is_full(self) -> bool:
        return False

    def leave(self, device: str) -> None:
        raise NotImplementedError

    def move(self, old: str, new: str) -> bool:
        raise NotImplementedError


@dataclass
class House:
    daemon: Daemon
    master: Channel
    pulse: Pulse


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(10)
    theirs.setblocking(False)
    pulse = Pulse()
    config = Config(server=Server(runtime_dir=str(tmp_path), workers=1))
    made = House(Daemon(config, Channel(theirs), pulse), Channel(ours), pulse)
    yield made
    made.daemon.close()
    ours.close()
    theirs.close()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_it_beats_and_reports_and_goes_when_drained(house: House) -> None:
    house.master.send({"do": "dance"})
    house.master.send({"do": "drain"})
    house.daemon.run()
    assert house.pulse.beats >= 1
    packet = house.master.receive()
    assert packet is not None
    assert packet.members["event"] == "status"
    assert packet.members["tokens"] == []


def test_a_question_goes_to_entra_and_its_outcome_comes_back(house: House, tmp_path: Path) -> None:
    upstream = Upstream(name="contoso", cloud="lab", tenant="t", client_id="app")
    lab = Cloud(name="lab", authority="http://not-https", graph="")
    config = Config(server=Server(runtime_dir=str(tmp_path)), upstream=(upstream,), cloud=(lab,))
    client = Client(socket_path(config))
    tokens = TokenClient(client, config)
    got: list[str] = []

    def ask() -> None:
        with pytest.raises(TokenUnavailable) as caught:
            tokens.token(upstream)
        status = client.call("status", {}, timeout_s=10)
        got.extend([caught.value.cause, str(status["tokens"]), str(status["connections"])])
        house.master.send({"do": "drain"})
        client.close()

    client.start()
    thread = threading.Thread(target=ask)
    thread.start()
    house.daemon.run()
    thread.join(10)
    assert got[0] == "credential"
    assert "contoso" in got[1]
    assert got[2] == "1"


def test_it_goes_when_the_master_has_gone(house: House) -> None:
    house.master.close()
    house.daemon.run()


def test_it_goes_at_once_on_sigterm(house: House) -> None:
    signal.raise_signal(signal.SIGTERM)
    house.daemon.run()


def test_sigusr1_does_not_end_it(house: House) -> None:
    signal.raise_signal(signal.SIGUSR1)
    house.master.send({"do": "drain"})
    house.daemon.run()
