"""The admin process: the root that puts the pages, the loop and the master's words together.

It holds nothing and nobody waits for it: killed or hung, it is forked anew, and mail does not
notice. A port that somebody else has is told (`admin.unbound`, `relayd status`) and tried again
until it is free.

    {"do": "drain"}, SIGTERM, end of channel     exit at once
    SIGUSR1                                      open the log file anew
    child -> master  {"event": "status", "admin": {"address", "listening", "text"}, "counters"}

Source: docs/admin.md.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import signal
import socket
from typing import Final

import setproctitle
import structlog

from relayd.admin.http import Request
from relayd.admin.pages import Pages, Question, ask_at
from relayd.admin.server import Answer, Server
from relayd.cache.pool import Pool
from relayd.clock import SYSTEM, Clock
from relayd.config import codec
from relayd.config.model import Config
from relayd.master.channel import Channel
from relayd.master.child import ChildContext, Pulse
from relayd.master.client import CONTROL_SOCKET
from relayd.master.frames import Garbage, Json
from relayd.observe import log as logging
from relayd.observe import metrics

log = structlog.get_logger()

_BEAT_S: Final = 1.0
_STATUS_S: Final = 2.0
_BIND_S: Final = 5.0
_BACKLOG: Final = 64


def main(context: ChildContext) -> int:
    """Serve until told to go; the exit status of the child."""
    setproctitle.setproctitle("relayd: admin")
    config = public_part(context.config_fd)
    logging.configure(config.log, process="admin")
    channel = Channel(socket.socket(fileno=context.channel_fd))
    channel.sock.setblocking(False)
    control = os.path.join(config.server.runtime_dir, CONTROL_SOCKET)
    daemon = Daemon(config, channel, context.pulse, ask_at(control))
    signal.signal(signal.SIGTERM, lambda *_: daemon.leave())
    signal.signal(signal.SIGUSR1, lambda *_: daemon.reopen())
    channel.send({"event": "ready"})
    log.info("process.started", pid=os.getpid(), address=config.admin.address)
    try:
        daemon.run()
    finally:
        daemon.close()
        log.info("process.stopped", pid=os.getpid())
        logging.close()
        channel.close()
    return 0


def public_part(fd: int) -> Config:
    """Return what this process needs of the configuration in `fd`, which is closed.

    SECURITY: who talks to strangers keeps no client secret and no password's hash.
    """
    whole = codec.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    os.close(fd)
    return Config(server=whole.server, admin=whole.admin, log=whole.log)


class Daemon:
    """The loop and what it turns."""

    def __init__(
        self,
        config: Config,
        channel: Channel,
        pulse: Pulse,
        question: Question,
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        self._address = config.admin.address
        self._channel = channel
        self._pulse = pulse
        self._clock = clock
        self._pages = Pages(question, clock=clock)
        # One thread: whoever waits while the master is asked gets the same answer.
        self._pool = Pool(1, "pages")
        self._server = Server(self._ask, names=names(config), clock=clock)
        self._server.watch(channel.fileno(), self._order)
        self._is_leaving = False
        self._bind_at = 0.0
        self._text = "not yet"

    def run(self) -> None:
        """Turn until told to go."""
        beat_at = status_at = self._clock.monotonic()
        while not self._is_leaving:
            now = self._clock.monotonic()
            if now >= beat_at:
                beat_at = now + _BEAT_S
                self._pulse.beat()
            if not self._server.is_listening and now >= self._bind_at:
                self._bind_at = now + _BIND_S
                self._bind()
                status_at = now
            if now >= status_at:
                status_at = now + _STATUS_S
                self._report()
            self._server.turn(beat_at - now)

    def leave(self) -> None:
        """Go; from a signal handler too."""
        self._server.post(self._leave)

    def reopen(self) -> None:
        """Open the log file anew; from a signal handler too."""
        self._server.post(logging.reopen)

    def close(self) -> None:
        """Close the listener and everybody on it."""
        self._server.close()

    def _leave(self) -> None:
        self._is_leaving = True

    def _ask(self, request: Request, answer: Answer) -> None:
        self._pool.submit(lambda: answer(self._pages.answer(request)))

    def _bind(self) -> None:
        try:
            self._server.listen(listen(self._address))
        except OSError as error:
            text = words(self._address, error)
            if text != self._text:
                log.warning("admin.unbound", address=self._address, reason=text)
            self._text = text
        else:
            self._text = ""
            log.info("admin.bound", address=self._address)

    def _report(self) -> None:
        """Send the master our figures; a full channel costs one report."""
        told: dict[str, Json] = {
            "address": self._address,
            "listening": self._server.is_listening,
            "text": self._text,
        }
        with contextlib.suppress(Garbage):
            self._channel.send({"event": "status", "admin": told, "counters": metrics.snapshot()})

    def _order(self) -> None:
        try:
            packet = self._channel.receive()
        except (BlockingIOError, Garbage):
            return
        for fd in packet.fds if packet is not None else ():
            os.close(fd)
        if packet is None or packet.members.get("do") == "drain":
            self._leave()


def listen(address: str) -> socket.socket:
    """Return a listening socket at "127.0.0.1:8025" or "[::1]:8025"; raises OSError."""
    host, port = _parts(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # The one before us in this post may have left connections behind in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def words(address: str, error: OSError) -> str:
    """Return why an address cannot be listened on, and what to do."""
    if error.errno == errno.EADDRINUSE:
        do = f"`ss -ltnp sport = :{_parts(address)[1]}` names who; or set [admin] address"
        return f"{address}: another process has it; {do}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address}: this host has no such address; set [admin] address"
    return f"{address}: {error.strerror or error}; set [admin] address"


def names(config: Config) -> frozenset[str]:
    """Return the host names a client on loopback may call us by; none: any will do."""
    host = ipaddress.ip_address(_parts(config.admin.address)[0])
    if not host.is_loopback:
        return frozenset()
    own = {config.server.hostname, socket.gethostname()}
    return frozenset(name.lower() for name in own if name)


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)
