"""The process turns, binds when it can, tells the master how it fares, and goes when told."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relayd.admin import main as admin_main
from relayd.admin.main import Daemon, listen, names, public_part, words
from relayd.config import codec
from relayd.config.model import Admin, Config, Log, Secret, Server, Upstream
from relayd.master.channel import Channel
from relayd.master.frames import Frame
from tests.relay_process import free_port, wait_until


@dataclass
class Pulse:
    beats: int = 0

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


class House:
    """A daemon whose loop runs in a thread, and the master's end of its channel."""

    def __init__(self, address: str) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ours.settimeout(20)
        theirs.setblocking(False)
        self.master = Channel(self.ours)
        self.pulse = Pulse()
        config = Config(server=Server(hostname="relay.test"), admin=Admin(address=address))
        self.daemon = Daemon(config, Channel(theirs), self.pulse, answer)
        self._theirs = theirs
        self._thread = threading.Thread(target=self.daemon.run)
        self._thread.start()

    def told(self, wanted: Callable[[Frame], object]) -> Frame:
        """Return the first status of itself that is as wanted."""
        while True:
            packet = self.master.receive()
            assert packet is not None
            admin = packet.members.get("admin")
            if isinstance(admin, dict) and wanted(admin):
                return admin

    def wait_over(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self.daemon.leave()
        self.wait_over()
        self.daemon.close()
        self.ours.close()
        self._theirs.close()


def answer(command: str) -> Frame:
    return {"pid": 7, "version": "0.1.0"} if command == "ping" else {}


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def house(address: str) -> Iterator[House]:
    house = House(address)
    yield house
    house.close()


def test_it_listens_beats_and_answers(house: House, address: str) -> None:
    told = house.told(lambda admin: admin["listening"])
    assert told == {"address": address, "listening": True, "text": ""}
    assert house.pulse.beats
    with urllib.request.urlopen(f"http://{address}/healthz", timeout=10) as reply:
        assert json.load(reply)["ok"] is True
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://{address}/nothing", timeout=10)
    assert caught.value.code == 404
    caught.value.close()


@pytest.mark.slow(3)
def test_a_port_in_use_is_told_once_and_taken_when_it_is_free(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = threading.Semaphore(0)

    def listen_and_count(wanted: str) -> socket.socket:
        tried.release()
        return listen(wanted)

    monkeypatch.setattr(admin_main, "_BIND_S", 0.01)
    monkeypatch.setattr(admin_main, "listen", listen_and_count)
    with capture_logs() as logs:
        with listen(address):
            house = House(address)
            told = house.told(lambda admin: admin["text"])
            assert told["listening"] is False
            assert "another process has it; `ss -ltnp sport = :" in str(told["text"])
            for _ in range(3):
                assert tried.acquire(timeout=20)
        house.told(lambda admin: admin["listening"])
        house.close()
    assert [one["event"] for one in logs] == ["admin.unbound", "admin.bound"]


@pytest.mark.parametrize("how", ["drain", "channel", "leave"])
def test_it_goes_when_told_and_when_its_master_has_gone(house: House, how: str) -> None:
    house.master.send({"do": "dance"})
    match how:
        case "drain":
            house.master.send({"do": "drain"})
        case "channel":
            house.ours.shutdown(socket.SHUT_RDWR)
        case _:
            house.daemon.leave()
    house.wait_over()


SCRIPT = """
import sys
from relayd.admin.main import main
from relayd.master.child import ChildContext

class Pulse:
    def beat(self): pass
    def accept(self, *, does): pass
    def is_ahead(self): return False
    def enter(self, device): return True
    def leave(self, device): pass
    def move(self, old, new): return True

sys.exit(main(ChildContext(kind="admin", number=0, serial=1, config_fd=int(sys.argv[1]),
                           listeners=(), channel_fd=int(sys.argv[2]), pulse=Pulse())))
"""


@pytest.mark.slow(1)
def test_the_main_function_serves_until_sigterm_without_gevent(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config = Config(
        server=Server(runtime_dir=str(tmp_path)),
        admin=Admin(address=f"127.0.0.1:{free_port()}"),
        log=Log(file=str(tmp_path / "log")),
    )
    memfd = os.memfd_create("config")
    os.write(memfd, codec.dumps(config))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(memfd), str(theirs.fileno())],
        pass_fds=(memfd, theirs.fileno()),
    )
    os.close(memfd)
    theirs.close()
    told: list[Frame] = []
    try:
        ours.settimeout(20)
        while not any("admin" in one for one in told):
            told.append(json.loads(ours.recv(65536)))
        mapped = Path(f"/proc/{process.pid}/maps").read_text()
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: "log.reopened" in (tmp_path / "log").read_text())
    finally:
        process.terminate()
        code = process.wait(20)
        ours.close()
    assert code == 0
    assert told[0] == {"event": "ready"}
    assert "gevent" not in mapped
    lines = (tmp_path / "log").read_text()
    assert [line.split()[0] for line in lines.splitlines()] == [
        "process.started", "admin.bound", "log.reopened", "process.stopped",
    ]  # fmt: skip


def test_secrets_are_not_kept() -> None:
    upstream = Upstream(name="contoso", client_secret=Secret("hunter2"))
    config = Config(server=Server(hostname="relay.test"), upstream=(upstream,))
    memfd = os.memfd_create("config")
    os.write(memfd, codec.dumps(config))
    os.lseek(memfd, 0, os.SEEK_SET)
    kept = public_part(memfd)
    assert (kept.server, kept.admin, kept.upstream) == (config.server, config.admin, ())
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(memfd)


def test_ipv6_is_listened_on_without_its_ipv4_twin() -> None:
    try:
        sock = listen("[::1]:0")
    except OSError:
        pytest.skip("no IPv6 here")
    with sock:
        assert sock.getsockname()[0] == "::1"
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


def test_why_an_address_cannot_be_had_is_said_with_what_to_do() -> None:
    with pytest.raises(OSError, match="assign") as caught:
        listen("192.0.2.77:8025")
    text = words("192.0.2.77:8025", caught.value)
    assert text == "192.0.2.77:8025: this host has no such address; set [admin] address"
    denied = OSError(errno.EACCES, "Permission denied")
    assert words("127.0.0.1:80", denied).startswith("127.0.0.1:80: Permission denied; ")


def test_on_loopback_our_names_are_known_and_elsewhere_any_will_do() -> None:
    config = Config(server=Server(hostname="Relay.Test"))
    assert names(config) == {"relay.test", socket.gethostname().lower()}
    assert names(replace(config, admin=Admin(address="[::1]:1"))) == names(config)
    assert names(replace(config, admin=Admin(address="0.0.0.0:8025"))) == frozenset()
