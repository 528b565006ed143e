"""What systemd hears; and that nothing happens, and nothing fails, without it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.clock import FakeClock
from relayd.master.notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def notifier(systemd: socket.socket, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": systemd.getsockname()} | more, clock=FakeClock())


def test_each_word_is_one_datagram(systemd: socket.socket) -> None:
    notify = notifier(systemd)
    notify.ready()
    assert systemd.recv(500).decode().split("\n") == [f"MAINPID={os.getpid()}", "READY=1"]
    notify.reloading()
    assert systemd.recv(500) == b"RELOADING=1\nMONOTONIC_USEC=1000000000"
    notify.stopping()
    assert systemd.recv(500) == b"STOPPING=1"
    notify.watchdog()
    assert systemd.recv(500) == b"WATCHDOG=1"
    notify.extend(float("inf"))
    notify.extend(1.5)
    assert systemd.recv(500) == b"EXTEND_TIMEOUT_USEC=1500000"
    notify.forget("kept-a")
    assert systemd.recv(500) == b"FDSTOREREMOVE=1\nFDNAME=kept-a"


def test_a_status_stays_one_line_and_is_not_repeated(systemd: socket.socket) -> None:
    notify = notifier(systemd)
    notify.status("two workers\nMAINPID=1\x1b[2J")
    notify.status("two workers\nMAINPID=1\x1b[2J")
    notify.status("x" * 5000)
    assert systemd.recv(500) == b"STATUS=two workers MAINPID=1 [2J"
    assert len(systemd.recv(5000)) < 500


def test_a_listener_goes_into_the_store_with_its_name(systemd: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        notifier(systemd).store("kept-lan", listener.fileno())
        octets, fds, _, _ = socket.recv_fds(systemd, 500, 2)
        assert octets == b"FDSTORE=1\nFDNAME=kept-lan"
        with socket.socket(fileno=fds[0]) as kept:
            assert kept.getsockname() == listener.getsockname()


def test_an_abstract_socket_is_found() -> None:
    name = f"relayd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(10)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).stopping()
        assert sock.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("path", ["", "/nonexistent/notify", "vsock:2:1", "@nobody-is-there"])
def test_nobody_there_is_no_error(path: str) -> None:
    notify = Notifier({"NOTIFY_SOCKET": path})
    notify.ready()
    notify.status("fine")
    notify.store("a", 0)


def test_a_manager_that_does_not_read_is_not_waited_for(systemd: socket.socket) -> None:
    notify = notifier(systemd)
    for number in range(5000):
        notify.status(str(number))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_the_watchdog_is_fed_at_half_its_time(environ: dict[str, str], expected: float) -> None:
    assert Notifier(environ).watchdog_s == expected
