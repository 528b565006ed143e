"""Sockets of systemd, and IPv6, through reload, upgrade and the death of the master.

systemd is not needed: descriptors come by number and environment (sd_listen_fds(3)), and the
test keeps what the service manager would keep.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.process.relay import PATIENCE_S, Relay, a_relay, is_alive

pytestmark = [pytest.mark.slow(4), pytest.mark.timeout(120)]

_BECOME = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); "
    "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_FDNAMES': sys.argv[2]}; "
    "os.environ['LISTEN_PID'] = str(os.getpid()); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[3:]])"
)


@dataclass(frozen=True)
class Way:
    """How the relay comes to its socket. name: FDNAME; "": it binds by itself."""

    host: str
    bind: str
    name: str
    addresses: tuple[str, ...]


def _has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this system has no IPv6")
WAYS = [
    pytest.param(Way("127.0.0.1", "127.0.0.1", "lan", ("127.0.0.1:9",)), id="unit, by name"),
    pytest.param(
        Way("127.0.0.1", "127.0.0.1", "kept-x", ("127.0.0.1:{port}",)), id="kept, by address"
    ),
    pytest.param(Way("::1", "::1", "", ("[::1]:{port}",)), id="IPv6 of its own", marks=needs_ipv6),
    pytest.param(
        Way("::1", "::1", "lan", ("[::1]:9",)), id="unit with IPv6, by name", marks=needs_ipv6
    ),
    pytest.param(
        Way("::1", "::1", "kept-x", ("[::1]:{port}",)), id="kept with IPv6", marks=needs_ipv6
    ),
    pytest.param(
        Way("127.0.0.1", "::", "", ("0.0.0.0:{port}", "[::]:{port}")),
        id="both families of its own",
        marks=needs_ipv6,
    ),
    pytest.param(
        Way("::1", "::", "smtp.socket", ("0.0.0.0:{port}", "[::]:{port}")),
        id="one unit socket for both families",
        marks=needs_ipv6,
    ),
]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    yield from a_relay(tmp_path)


@pytest.fixture
def given(request: pytest.FixtureRequest) -> Iterator[tuple[Way, socket.socket]]:
    way: Way = request.param
    family = socket.AF_INET6 if ":" in way.bind else socket.AF_INET
    dual = way.bind == "::"
    with socket.create_server((way.bind, 0), family=family, dualstack_ipv6=dual) as sock:
        yield way, sock


def start(relay: Relay, way: Way, sock: socket.socket) -> int:
    """Start with the socket, or on its port after it is closed; returns the port."""
    port: int = sock.getsockname()[1]
    relay.config["addresses"] = [text.format(port=port) for text in way.addresses]
    relay.write()
    if not way.name:
        sock.close()
        relay.start()
    else:
        again = ["-m", "tests.process.run_master", str(relay.config_path)]
        again.append(json.dumps(relay.options))
        fd = sock.fileno()
        command = [sys.executable, "-c", _BECOME, str(fd), way.name, *again]
        relay.start(command=command, pass_fds=(fd,))
    relay.wait_running()
    return port


def greet(host: str, port: int) -> str:
    """Return the name the worker greets with."""
    with socket.create_connection((host, port), timeout=PATIENCE_S) as sock:
        return sock.recv(200).decode().split()[0]


class Callers:
    """A thread that calls without a pause, and keeps what it met."""

    def __init__(self, host: str, port: int) -> None:
        self.heard: list[str] = []
        self.failures: list[str] = []
        self._where = (host, port)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Callers:  # noqa: PYI034  one class, no subclasses
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                self.heard.append(greet(*self._where))
            except (OSError, IndexError) as error:
                self.failures.append(repr(error))


@pytest.mark.parametrize("given", WAYS, indirect=True)
def test_reload_and_upgrade_keep_the_socket_and_refuse_nobody(
    relay: Relay, given: tuple[Way, socket.socket]
) -> None:
    way, sock = given
    port = start(relay, way, sock)
    before = relay.status()["listeners"]
    assert {one["origin"] for one in before} == {"systemd" if way.name else "bound"}
    with Callers(way.host, port) as callers:
        relay.until(lambda: callers.heard, "somebody is greeted")
        relay.write(hostname="second")
        assert relay.ask(command="reload")["ok"] is True
        relay.until(lambda: callers.heard[-1] == "second", "the new workers greet")
        relay.write(hostname="third")
        reply = relay.ask(command="upgrade")
        assert reply["ok"] is True, reply
        assert reply["result"]["pid"] == relay.pid
        relay.until(lambda: callers.heard[-1] == "third", "the upgraded ones greet")
        relay.write(hostname="fourth")
        assert relay.ask(command="reload")["ok"] is True
        relay.until(lambda: callers.heard[-1] == "fourth", "and those after")
    assert callers.failures == []
    assert relay.status()["listeners"] == before
    relay.signal(signal.SIGTERM)
    assert relay.wait_exit() == 0


@needs_ipv6
@pytest.mark.parametrize("given", WAYS[-1:], indirect=True)
def test_addresses_in_another_order_are_no_reason_to_refuse_a_reload(
    relay: Relay, given: tuple[Way, socket.socket]
) -> None:
    way, sock = given
    port = start(relay, way, sock)
    relay.write(addresses=[f"[::]:{port}", f"0.0.0.0:{port}"], hostname="second")
    assert relay.ask(command="reload")["ok"] is True
    assert greet("127.0.0.1", port) == greet("::1", port) == "second"


@pytest.mark.parametrize("given", WAYS[1:2] + WAYS[4:5], indirect=True)
def test_who_calls_while_a_killed_master_is_replaced_waits_and_is_served(
    relay: Relay, given: tuple[Way, socket.socket]
) -> None:
    """The service manager keeps the socket open; nobody is refused in between."""
    way, sock = given
    port = start(relay, way, sock)
    family = {row["pid"] for row in relay.status()["processes"]}
    relay.signal(signal.SIGKILL)
    relay.wait_exit()
    relay.until(lambda: not any(is_alive(pid) for pid in family), "the orphans have gone")
    with socket.create_connection((way.host, port), timeout=PATIENCE_S) as waiting:
        relay.write(hostname="second")
        start(relay, way, sock)
        assert waiting.recv(200).decode().split()[0] == "second"
    assert os.path.exists(relay.folder / "control.sock")
