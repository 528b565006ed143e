"""Run tests/dialogs/*.txt against the real daemon, over a socket.

One relay: a listener for each kind that the dialogues ask for, and two devices told apart by
their address. Nothing leaves it (its upstream is a closed port), so what was accepted can be
looked at in the spool. Each dialogue comes from an address of its own: back-off after wrong
passwords is kept by peer. What no listener can have (a limit of the whole relay) is reloaded.
"""

from __future__ import annotations

import base64
import itertools
import os
import signal
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

import pytest

from relayd.access.passwords import hash_password
from tests.dialog_script import DIALOGS, Act, Dialog, Expect, Kept, Say, load
from tests.relay_process import RelayProcess, free_port

pytestmark = [pytest.mark.slow(25), pytest.mark.timeout(120)]

PATIENCE_S: Final = 60.0
SMALLEST_LIMIT: Final = 65_536
"""max_message_size may not be less."""

UPSTREAM: Final = """
[cloud.nowhere]
authority = "https://127.0.0.1:{closed}"
graph = "https://127.0.0.1:{closed}/v1.0"

[upstream.nowhere]
cloud = "nowhere"
tenant = "example.onmicrosoft.com"
client_id = "00000000-0000-0000-0000-000000000000"
client_secret = "unused"
mailbox = "a@example.com"
mime_limit = "40MB"
on_foreign_sender = "reject"
"""
LISTENER: Final = """
[[listener]]
name = "{name}"
address = ["127.0.0.1:{port}"]
profile = "{profile}"
auth = "{auth}"
tls = "{tls}"
auth_without_tls = true
"""
SUBMITTERS: Final = """
[[device]]
name = "dots"
networks = ["127.1.0.0/16"]
lf_dot = true
allow_from = ["*@example.com"]
allow_to = ["example.com"]

[[device]]
name = "others"
networks = ["127.2.0.0/16"]
allow_from = ["*@example.com"]
allow_to = ["example.com"]

[[user]]
name = "printer1"
password_hash = "{password_hash}"
allow_from = ["*@example.com"]
allow_to = ["example.com"]
"""


class Host:
    """The relay that all dialogues talk to, and the addresses they come from."""

    def __init__(self, folder: Path) -> None:
        self.ports: dict[tuple[str, str, str], int] = {}
        self._numbers = itertools.count(1)
        listeners = ""
        for kind in sorted({_kind(load(path).settings) for path in DIALOGS}):
            self.ports[kind] = free_port()
            profile, auth, tls = kind
            listeners += LISTENER.format(
                name="-".join(kind), port=self.ports[kind], profile=profile, auth=auth, tls=tls
            )
        password_hash = hash_password("secret12")
        self._more = listeners + SUBMITTERS.format(password_hash=password_hash)
        self._limits = ("10000000", "50")
        self.relay = RelayProcess(folder, UPSTREAM.format(closed=free_port()))
        self._configure()

    def _configure(self) -> None:
        size, errors = self._limits
        wanted = f"[limits]\nmax_message_size = {size}\nmax_errors = {errors}"
        self.relay.configure(self._more, **{"contoso.com": "example.com", "[limits]": wanted})

    def be(self, settings: Mapping[str, str]) -> None:
        """Have the limits of the whole relay that a dialogue wants."""
        limits = (settings["limit"], settings["max_errors"])
        if limits != self._limits:
            self._limits = limits
            self._configure()
            self.relay.cli("reload")

    def connect(self, settings: Mapping[str, str]) -> socket.socket:
        """Connect to the listener that a dialogue wants, as the device it wants."""
        net = 1 if settings["lf_dot"] == "yes" else 2
        source = f"127.{net}.0.{next(self._numbers)}"
        port = self.ports[_kind(settings)]
        return socket.create_connection(("127.0.0.1", port), PATIENCE_S, (source, 0))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the workers for a moment."""
        pids = self.relay.pids("worker")
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def kept(self, queue_id: str) -> bytes:
        """Return a message as the spool has it, without our own Received line."""
        frames = self.relay.ask("queue.export", id=queue_id)
        content = b"".join(base64.b64decode(frame["octets"]) for frame in frames)
        lines = content.splitlines(keepends=True)
        assert lines[0].startswith(b"Received: "), lines[0]
        folded = itertools.takewhile(lambda line: line[:1] in (b" ", b"\t"), lines[1:])
        return content[sum(map(len, (lines[0], *folded))) :]


def _kind(settings: Mapping[str, str]) -> tuple[str, str, str]:
    return settings["profile"], settings["auth"], settings["tls"]


class Client:
    """The device's side of one dialogue."""

    def __init__(self, sock: socket.socket, host: Host) -> None:
        self._sock = sock
        self._host = host
        self._unread = b""
        self._queue_id = ""
        self.is_over = False

    def step(self, step: Say | Expect | Kept | Act) -> None:
        match step:
            case Say(octets):
                self._sock.sendall(octets)
            case Expect():
                lines = self._reply()
                step.check(lines)
                if "queued as" in lines[0]:
                    self._queue_id = lines[0].split()[-1]
            case Kept(body):
                assert self._host.kept(self._queue_id) == body
            case Act("TLS"):
                assert not self._unread
                self._sock = _trusting().wrap_socket(self._sock)
            case Act("LEAVES"):
                self._leave()
            case Act("CLOSED"):
                self._expect_end()
            case _:
                raise AssertionError(f"not for a socket: {step}")

    def _reply(self) -> list[str]:
        lines = list[str]()
        while not lines or lines[-1][3:4] == "-":
            lines.append(self._line().decode("ascii"))
        return lines

    def _line(self) -> bytes:
        while b"\r\n" not in self._unread:
            octets = self._sock.recv(65536)
            assert octets, f"closed after {self._unread!r}"
            self._unread += octets
        line, _, self._unread = self._unread.partition(b"\r\n")
        return line

    def _leave(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)
        self._expect_end()

    def _expect_end(self) -> None:
        """Read to the end: nothing must be left unsaid."""
        while octets := self._sock.recv(65536):
            self._unread += octets
        assert self._unread == b""
        self.is_over = True

    def close(self) -> None:
        self._sock.close()


def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("dialogs"))
    with host.relay:
        yield host


def why_not(dialog: Dialog) -> str:
    """Return why a dialogue cannot be had with a real daemon; "" if it can."""
    if dialog.settings["pure"] == "yes":
        return "needs a clock or a drain of its own"
    if int(dialog.settings["limit"]) < SMALLEST_LIMIT:
        return f"max_message_size is {SMALLEST_LIMIT} at least"
    return ""


@pytest.mark.parametrize(
    "path", [path for path in DIALOGS if not why_not(load(path))], ids=lambda path: path.stem
)
def test_dialog(path: Path, host: Host) -> None:
    dialog = load(path)
    host.be(dialog.settings)
    steps = list(dialog.steps)
    is_early = isinstance(steps[0], Say)
    with host.frozen() if is_early else nullcontext():
        # The kernel makes the connection and keeps what is said, before any worker looks.
        client = Client(host.connect(dialog.settings), host)
        if is_early:
            client.step(steps.pop(0))
    try:
        for step in steps:
            client.step(step)
        if not client.is_over:
            client.step(Act("LEAVES"))
    finally:
        client.close()


def test_few_dialogues_cannot_be_had_live() -> None:
    left_out = [path.stem for path in DIALOGS if why_not(load(path))]
    assert len(left_out) <= 6, left_out


def test_no_worker_met_a_bug(host: Host) -> None:
    assert "Traceback" not in host.relay.log()
