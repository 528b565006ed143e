"""A process's end of the cache socket: one connection, many callers at once.

Works the same with gevent's monkey patching and without: it uses `socket` and `threading`
only, which are greenlets where they are patched. A reader thread owns the connection: it
connects, runs the `on_connect` hooks (which say what this process holds), hands answers to
whoever waits for them, and connects again, with back-off, when the daemon has gone.

Every wait has a deadline. What the daemon owed when a connection ended is CacheUnavailable.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final, TypeAlias

import structlog

from relayd.cache.frames import (
    NO_ANSWER,
    Answer,
    Call,
    Decoder,
    Frame,
    Garbage,
    Payload,
    Push,
    Refusal,
    Refused,
    encode,
)
from relayd.clock import SYSTEM, Clock
from relayd.config.model import Config
from relayd.errors import CacheUnavailable

log = structlog.get_logger()

SOCKET_NAME: Final = "cache.sock"
CALL_TIMEOUT_S: Final = 0.25
_SEND_TIMEOUT_S: Final = 1.0
_PAUSES_S: Final = (0.02, 0.05, 0.1, 0.2, 0.4)
_READ_BYTES: Final = 65536
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid

Tell: TypeAlias = Callable[[str, Payload], None]


def socket_path(config: Config) -> str:
    """Return where cached listens and everybody connects."""
    return os.path.join(config.server.runtime_dir, SOCKET_NAME)


class _Waiting:
    """A caller's place to wait; the reader fills `frame` (None: the connection ended)."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.frame: Answer | Refusal | None = None


class Client:
    """The connection of this process. Make it after the fork; `start` it once.

    Hooks run in the reader thread: they may `tell` (the one they are given), and must not
    call or block.
    """

    def __init__(self, path: str, *, clock: Clock = SYSTEM) -> None:
        self._path = path
        self._clock = clock
        self._numbers = itertools.count(NO_ANSWER + 1)
        self._waiting: dict[int, _Waiting] = {}
        self._sock: socket.socket | None = None
        self._sending = threading.Lock()
        self._connected = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._away_since: float | None = clock.monotonic()
        self._connect_hooks: list[Callable[[Tell], None]] = []
        self._lost_hooks: list[Callable[[], None]] = []
        self._push_hooks: dict[str, Callable[[Payload], None]] = {}

    def on_connect(self, hook: Callable[[Tell], None]) -> None:
        """Have `hook` run on each new connection before anybody's call goes out on it."""
        self._connect_hooks.append(hook)

    def on_lost(self, hook: Callable[[], None]) -> None:
        """Have `hook` run when a connection has ended, before the next is tried."""
        self._lost_hooks.append(hook)

    def on_push(self, topic: str, hook: Callable[[Payload], None]) -> None:
        """Have `hook` run for each push of `topic`."""
        self._push_hooks[topic] = hook

    @property
    def away_s(self) -> float:
        """How long the daemon has been away, seconds; 0 while connected."""
        since = self._away_since
        return 0.0 if since is None else self._clock.monotonic() - since

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._thread = threading.Thread(target=self._run, name="cache-client", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave; what waits gets CacheUnavailable."""
        self._closing.set()
        sock = self._sock
        if sock is not None:
            _shut(sock)
        if self._thread is not None:
            self._thread.join(_SEND_TIMEOUT_S + 1.0)

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait for the connection; False when the time is over first."""
        return self._connected.wait(timeout_s)

    def call(self, method: str, payload: Payload, *, timeout_s: float = CALL_TIMEOUT_S) -> Payload:
        """Ask and wait for the answer.

        timeout_s: for all of it, waiting for a connection included.
        raises:    CacheUnavailable - away, lost or too slow; Refused - the daemon says no.
        """
        deadline = self._clock.monotonic() + timeout_s
        if not self._connected.is_set() and not self._connected.wait(
            min(timeout_s, CALL_TIMEOUT_S)
        ):
            raise CacheUnavailable("the cache daemon is away")
        number, place = next(self._numbers), _Waiting()
        self._waiting[number] = place
        try:
            self._send(self._sock, Call(number, method, payload))
            if not place.done.wait(max(0.0, deadline - self._clock.monotonic())):
                raise CacheUnavailable(f"no answer to {method} within {timeout_s:g} s")
        finally:
            self._waiting.pop(number, None)
        match place.frame:
            case Answer(_, answer):
                return answer
            case Refusal(_, cause, text, detail):
                raise Refused(cause, text, detail)
            case None:
                raise CacheUnavailable("the cache daemon went away")

    def tell(self, method: str, payload: Payload) -> None:
        """Say something that wants no answer; raises CacheUnavailable."""
        self._send(self._sock, Call(NO_ANSWER, method, payload))

    def _send(self, sock: socket.socket | None, frame: Frame) -> None:
        if sock is None:
            raise CacheUnavailable("the cache daemon is away")
        octets = encode(frame)
        try:
            with self._sending:
                sock.sendall(octets)
        except OSError as error:
            # Half a frame may be out: nothing more can be said on this connection.
            _shut(sock)
            raise CacheUnavailable(f"the cache daemon does not listen: {error}") from error

    def _run(self) -> None:
        """Connect, read until it ends, again; the reader thread."""
        failures = 0
        while not self._closing.is_set():
            sock = self._connect()
            if sock is None:
                self._closing.wait(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
                failures += 1
                continue
            failures = 0
            try:
                self._read(sock)
            except Exception:  # a bug in a hook must not leave the process without tokens
                log.exception("cache.bug", method="client")
            finally:
                self._lose(sock)

    def _connect(self) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(_SEND_TIMEOUT_S)
        try:
            sock.connect(self._path)
            _check_peer(sock)
            self._sock = sock  # `tell` works from here on, `call` once the hooks are done
            for hook in self._connect_hooks:
                hook(self.tell)
        except (OSError, CacheUnavailable):
            self._lose(sock)
            return None
        self._away_since = None
        self._connected.set()
        log.debug("cache.connected")
        return sock

    def _read(self, sock: socket.socket) -> None:
        decoder = Decoder()
        while not self._closing.is_set():
            try:
                data = sock.recv(_READ_BYTES)
            except TimeoutError:
                continue
            except OSError:
                return
            if not data:
                return
            try:
                frames = decoder.feed(data)
            except Garbage as error:
                log.warning("cache.garbage", text=str(error))
                return
            for frame in frames:
                self._take(frame)

    def _take(self, frame: Frame) -> None:
        match frame:
            case Answer(number) | Refusal(number):
                place = self._waiting.pop(number, None)
                if place is not None:
                    place.frame = frame
                    place.done.set()
            case Push(topic, payload):
                hook = self._push_hooks.get(topic)
                if hook is not None:
                    hook(payload)
            case Call():
                log.warning("cache.garbage", text="a daemon that calls")

    def _lose(self, sock: socket.socket) -> None:
        if self._connected.is_set():
            self._away_since = self._clock.monotonic()
        was_connected = self._sock is not None
        self._connected.clear()
        self._sock = None
        with self._sending:  # nobody may be writing to a descriptor that gets another meaning
            sock.close()
        for number in list(self._waiting):
            place = self._waiting.pop(number, None)
            if place is not None:
                place.done.set()
        if not was_connected:
            return
        if not self._closing.is_set():
            log.info("cache.lost")
        for hook in self._lost_hooks:
            hook()


def _check_peer(sock: socket.socket) -> None:
    """Raise PermissionError unless the daemon is ours or root's."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(raw)
    # SECURITY: whoever listens there is sent client secrets.
    if uid not in {0, os.geteuid()}:
        log.error("cache.refused", uid=uid, reason="the socket is another user's")
        raise PermissionError(f"the socket belongs to uid {uid}")


def _shut(sock: socket.socket) -> None:
    """End the connection for both sides; its reader then sees the end and closes it."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
