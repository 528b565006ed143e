"""cached as a real process, and gevent workers beside it, for tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from relayd.config import codec
from relayd.config.model import Config
from relayd.master.channel import Channel
from tests.relay_process import clean_environment

_CACHED = """
import sys
from relayd.cached import main
from relayd.master.child import ChildContext

class Pulse:
    def beat(self):
        pass
    def enter(self, device):
        return True
    def leave(self, device):
        pass
    def move(self, old, new):
        return True

sys.exit(main(ChildContext(
    kind="cached", number=0, serial=1, config_fd=int(sys.argv[1]), listeners=(),
    channel_fd=int(sys.argv[2]), pulse=Pulse(),
)))
"""

_WORKER = """
import gevent.monkey
gevent.monkey.patch_all()
import json, os, sys
import gevent, gevent.pool
from relayd.cache.client import Client, socket_path
from relayd.config import codec
from relayd.errors import TokenUnavailable
from relayd.identity.tokens import TokenClient
from relayd.quota.slots import SlotClient
from relayd.spool.model import MailboxRef

with open(sys.argv[1], "rb") as config_file:
    config = codec.loads(config_file.read())
client = Client(socket_path(config))
tokens = TokenClient(client, config)
slots = SlotClient(client, number=int(sys.argv[2]), away_grace_s=30.0)
client.start()
upstream = config.upstream[0]
box = MailboxRef("contoso", "alerts@contoso.com")
"""

_WORKER_LOOP = """
def one_token(_):
    try:
        return tokens.token(upstream).value
    except TokenUnavailable as error:
        return error.cause

def do(order, number):
    if order == "connected":
        return client.wait_connected(10)
    if order == "tokens":
        return gevent.pool.Pool(number).map(one_token, range(number))
    if order == "drop":
        return tokens.drop(upstream, tokens.token(upstream))
    if order == "acquire":
        return slots.acquire(box, 1, number)
    if order == "release":
        return slots.release(box)
    if order == "status":
        return client.call("status", {}, timeout_s=5)
    if order == "modules":
        return sorted({"msal", "requests"} & set(sys.modules))

threads = gevent.get_hub().threadpool  # a plain readline would stop the hub
for line in iter(lambda: threads.apply(sys.stdin.readline), ""):
    order, number = json.loads(line)
    print(json.dumps(do(order, number)), flush=True)
client.close()
"""


def memfd(config: Config) -> int:
    """Return a memfd with `config`, as the checker leaves it."""
    fd = os.memfd_create("config")
    os.write(fd, codec.dumps(config))
    return fd


class Cached:
    """One life of the daemon; `ready` once the block is entered."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def __enter__(self) -> Self:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fd = memfd(self._config)
        self.channel = Channel(ours)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CACHED, str(fd), str(theirs.fileno())],
            pass_fds=(fd, theirs.fileno()),
            env=clean_environment(),
        )
        theirs.close()
        os.close(fd)
        ours.settimeout(15)
        self.first_word = self.hear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self.channel.close()

    def hear(self) -> dict[str, object]:
        """Return the next packet of the daemon; {} at its end."""
        packet = self.channel.receive()
        return dict(packet.members) if packet is not None else {}

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send a signal and return how the process ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(15)


class Worker:
    """A gevent process with a token client and a slot client; takes orders one by one."""

    def __init__(self, config_path: str, number: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER + _WORKER_LOOP, config_path, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def begin(self, order: str, number: float = 0) -> None:
        """Give an order."""
        assert self._process.stdin is not None
        print(json.dumps([order, number]), file=self._process.stdin, flush=True)

    def result(self) -> object:
        """Return what came of the oldest order; log lines are passed over."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                return json.loads(line)
            except ValueError:
                continue
        raise AssertionError("the worker died")

    def do(self, order: str, number: float = 0) -> object:
        """Give an order and wait for it."""
        self.begin(order, number)
        return self.result()


def all_connected(workers: Sequence[Worker]) -> None:
    """Wait until each has found the daemon."""
    for worker in workers:
        assert worker.do("connected") is True
