"""The cache daemon: tokens and slots for all workers, behind one Unix socket.

The composition root: builds Entra, the token cache, the slot table and the server, and turns
their one loop. It needs no reload: credentials and limits come with each question. It can die at
any time: workers go on with what they hold, the master forks it anew, and the workers tell the
new one what they hold.

    SIGTERM          exit at once; but when the master is dead, as at the channel's end:
    end of channel   serve until the last worker has drained, at most 6 s; exit
    {"do": "drain"}  serve until the last worker has gone, at most graceful_timeout; exit
    SIGUSR1          open the log file anew

SECURITY: holds client secrets and tokens: no core dump, not dumpable, socket 0600.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
from collections.abc import Callable
from typing import Final

import setproctitle
import structlog

from relayd.cache.client import socket_path
from relayd.cache.pool import Pool
from relayd.cache.server import Connection, Request, Server
from relayd.clock import SYSTEM
from relayd.config.codec import loads
from relayd.config.model import Config
from relayd.errors import TokenUnavailable
from relayd.identity.credentials import Credential
from relayd.identity.desk import TokenDesk
from relayd.identity.oauth import Entra
from relayd.identity.tokencache import Fetched, TokenCache
from relayd.master.channel import Channel
from relayd.master.child import ChildContext, Pulse
from relayd.master.frames import Garbage
from relayd.observe import log as logging
from relayd.observe import metrics
from relayd.quota.desk import SlotDesk

log = structlog.get_logger()

CANNOT_SERVE: Final = 69  # EX_UNAVAILABLE

_ENTRA_THREADS: Final = 16
_BEAT_S: Final = 1.0
_STATUS_S: Final = 2.0
_ORPHAN_S: Final = 6.0  # workers drain for 5 s when the master died
_DRAIN_SLACK_S: Final = 5.0
_SHOWN_TO_MASTER: Final = 100
_PR_SET_DUMPABLE: Final = 4


def main(context: ChildContext) -> int:
    """Serve until told to stop; the exit status of the child."""
    setproctitle.setproctitle("relayd: cached")
    _harden()
    config = loads(_whole(context.config_fd))
    logging.configure(config.log, process="cached")
    channel = Channel(socket.socket(fileno=context.channel_fd))
    channel.sock.setblocking(False)
    path = socket_path(config)
    try:
        daemon = Daemon(config, channel, context.pulse)
    except OSError as error:
        words = f"cannot bind {path}: {error.strerror or error}"
        log.error("cache.unbound", path=path, text=words)  # noqa: TRY400 - the words say it all
        channel.send({"event": "failed", "text": words})
        logging.close()
        return CANNOT_SERVE
    channel.send({"event": "ready"})
    log.info("process.started", pid=os.getpid(), socket=path)
    try:
        daemon.run()
    finally:
        daemon.close()
        log.info("process.stopped", pid=os.getpid())
        logging.close()
    return 0


class Daemon:
    """The loop and what it turns; raises OSError when the socket cannot be bound."""

    def __init__(self, config: Config, channel: Channel, pulse: Pulse) -> None:
        self._channel = channel
        self._pulse = pulse
        self._drain_s = config.server.graceful_timeout + _DRAIN_SLACK_S
        self._master = os.getppid()
        self._stop_at = float("inf")  # monotonic
        self._pool = Pool(_ENTRA_THREADS, "entra")
        self._entra = Entra()
        self._tokens = TokenDesk(TokenCache(self._fetch, forgotten=self._entra.forget))
        self._slots = SlotDesk(expected=config.server.workers)
        self._server = Server(
            socket_path(config),
            {**self._tokens.handlers(), **self._slots.handlers(), "status": self._status},
            on_close=self._left,
        )
        self._server.watch(channel.fileno(), self._order)
        signal.signal(signal.SIGTERM, lambda *_: self._server.post(self._terminated))
        signal.signal(signal.SIGUSR1, lambda *_: self._server.post(logging.reopen))

    def run(self) -> None:
        """Turn until it is time to stop."""
        beat_at = status_at = SYSTEM.monotonic()
        while True:
            now = SYSTEM.monotonic()
            if now >= beat_at:
                beat_at = now + _BEAT_S
                self._pulse.beat()
                self._tokens.tick()
            if now >= status_at:
                status_at = now + _STATUS_S
                self._report()
            self._slots.tick()
            is_over = not len(self._server) and self._stop_at < float("inf")
            if is_over or now >= self._stop_at:
                return
            self._server.turn(min(beat_at - now, self._slots.next_due_s()))

    def close(self) -> None:
        """Close the socket and everybody on it."""
        self._server.close()

    def _fetch(self, credential: Credential, landed: Callable[[Fetched], None]) -> None:
        """Ask Entra in a thread; bring the outcome back to the loop."""

        def ask() -> None:
            fetched = _asked(self._entra, credential)
            self._server.post(lambda: landed(fetched))

        self._pool.submit(ask)

    def _left(self, connection: Connection) -> None:
        self._tokens.left(connection)
        self._slots.left(connection)

    def _status(self, request: Request) -> None:
        request.answer(
            {
                "pid": os.getpid(),
                "connections": len(self._server),
                "tokens": self._tokens.status(),
                "slots": self._slots.status(),
            }
        )

    def _report(self) -> None:
        """Send the master our figures; a full channel costs one report."""
        slots = self._slots.status()[:_SHOWN_TO_MASTER]
        self._slots.gauge()
        with contextlib.suppress(Garbage):
            if errors := logging.troubles():
                self._channel.send({"event": "errors", "rows": errors})
            self._channel.send(
                {
                    "event": "status",
                    "counters": metrics.snapshot(),
                    "tokens": self._tokens.status(),
                    "slots": slots,
                }
            )

    def _order(self) -> None:
        try:
            packet = self._channel.receive()
        except (BlockingIOError, Garbage):
            return
        if packet is None:
            self._server.unwatch(self._channel.fileno())
            self._stop_within(_ORPHAN_S)
            return
        for fd in packet.fds:
            os.close(fd)
        if packet.members.get("do") == "drain":
            self._stop_within(self._drain_s)

    def _terminated(self) -> None:
        # PDEATHSIG is SIGTERM too: workers of a dead master still drain, and need their slots.
        self._stop_within(0.0 if os.getppid() == self._master else _ORPHAN_S)

    def _stop_within(self, seconds: float) -> None:
        self._stop_at = min(self._stop_at, SYSTEM.monotonic() + seconds)


def _asked(entra: Entra, credential: Credential) -> Fetched:
    try:
        issued = entra.fetch(credential)
    except TokenUnavailable as error:
        return Fetched(error)
    except Exception:  # a bug must not leave everybody waiting for this token for ever
        log.exception("cache.bug", method="fetch")
        why = TokenUnavailable("internal", "relayd met a bug; see its log", configuration=False)
        return Fetched(why)
    by_next = entra.uses_next_secret(credential.fingerprint())
    return Fetched(issued.value, issued.life_s, by_next_secret=by_next)


def _harden() -> None:
    # SECURITY: a core file, or another process of the same user with ptrace, would hold the
    # client secrets of every tenant.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _whole(fd: int) -> bytes:
    """Return all of a memfd, whatever its position."""
    return os.pread(fd, os.fstat(fd).st_size, 0)
