"""The daemon's end of the cache socket: one thread, many connections, no gevent.

`turn` does what is ready and returns; whoever owns the server calls it in a loop, so a loop
that no longer turns is seen by whoever watches the owner. Handlers run inside `turn` and
must not block: what waits (a token, a slot) keeps its `Request` and answers it later, also
inside a turn (`post` brings work from another thread there). So a slow answer delays nobody
else's, on the same connection or another, and the tables behind the handlers need no locks.

    octets that are no frame        that connection is closed, nobody else's
    a peer that does not read       closed once 1 MiB waits for it
    a peer of another user          closed at once and logged (SO_PEERCRED)

Source: unix(7) for SO_PEERCRED and the permissions of a socket file.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import socket
import stat
import struct
from collections.abc import Callable, Mapping
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
    encode,
)

log = structlog.get_logger()

MAX_CONNECTIONS: Final = 256
_MAX_WAITING_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 65536
_ACCEPTS_IN_A_TURN: Final = 16
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Connection:
    """One client process; made and used by the server's thread only.

    serial: never used twice by one server; what tables know the client by.
    """

    def __init__(self, sock: socket.socket, serial: int, pid: int) -> None:
        self.serial = serial
        self.pid = pid
        self.sock = sock
        self.decoder = Decoder()
        self.waiting = bytearray()
        self.is_open = True
        self.wants_room = False

    def push(self, topic: str, payload: Payload) -> None:
        """Tell the client something unasked; never blocks, never raises."""
        self.send(Push(topic, payload))

    def send(self, frame: Frame) -> None:
        """Send now what the socket takes and keep the rest; never blocks, never raises."""
        if not self.is_open:
            return
        self.waiting += encode(frame)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        try:
            while self.waiting:
                del self.waiting[: self.sock.send(self.waiting)]
        except BlockingIOError:
            self.is_open = len(self.waiting) <= _MAX_WAITING_BYTES
        except OSError:
            self.is_open = False


class Request:
    """One call that wants its answer; answer or refuse it once, inside a turn."""

    def __init__(self, connection: Connection, call: Call) -> None:
        self.connection = connection
        self.payload = call.payload
        self._id = call.id

    def answer(self, payload: Payload) -> None:
        """Send the answer; nothing happens if the client has gone or wants none."""
        if self._id != NO_ANSWER:
            self.connection.send(Answer(self._id, payload))

    def refuse(self, cause: str, text: str, detail: Payload | None = None) -> None:
        """Send a refusal; likewise."""
        if self._id != NO_ANSWER:
            self.connection.send(Refusal(self._id, cause, text, detail or {}))


Handler: TypeAlias = Callable[[Request], None]


def _ignore(_connection: Connection) -> None:
    pass


class Server:
    """A bound socket and its connections.

    handlers: method name -> what is called with each Request; may raise Garbage (refused
              as "malformed").
    on_close: called once for each connection that ended.
    uids:     users that may connect; by default our own and root.
    raises:   OSError when the path cannot be bound.
    """

    def __init__(
        self,
        path: str,
        handlers: Mapping[str, Handler],
        *,
        on_close: Callable[[Connection], None] = _ignore,
        uids: frozenset[int] | None = None,
    ) -> None:
        self._path = path
        self._handlers = handlers
        self._on_close = on_close
        self._uids = frozenset({0, os.geteuid()}) if uids is None else uids
        self._connections: dict[int, Connection] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._posted: collections.deque[Callable[[], None]] = collections.deque()
        self._serial = 0
        self._listener = _bind(path)
        self._inode = os.stat(path).st_ino
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self.watch(self._listener.fileno(), self._accept)
        self.watch(self._wake_fd, self._woken)

    def __len__(self) -> int:
        return len(self._connections)

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call `ready` inside a turn whenever `fd` can be read or has ended."""
        self._watched[fd] = ready
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget a watched descriptor."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def post(self, work: Callable[[], None]) -> None:
        """Have `work` done in the next turn; may be called from any thread."""
        self._posted.append(work)
        with contextlib.suppress(BlockingIOError):  # the counter is full: it will wake anyway
            os.eventfd_write(self._wake_fd, 1)

    def turn(self, timeout_s: float) -> None:
        """Wait for something to do, at most so long; do it."""
        for fd, events in self._epoll.poll(max(0.0, timeout_s)):
            ready = self._watched.get(fd)
            if ready is not None:
                ready()
            elif fd in self._connections:
                self._serve(self._connections[fd], events)
        self._bury()
        for fd, connection in self._connections.items():
            self._listen_for(fd, connection)

    def close(self) -> None:
        """Close everything; the path goes too, unless a successor has bound it already."""
        with contextlib.suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        # Before the connections: who notices their end must not connect to us again.
        self.unwatch(self._listener.fileno())
        self._listener.close()
        for connection in list(self._connections.values()):
            connection.is_open = False
        self._bury()
        self._epoll.close()
        os.close(self._wake_fd)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        for _ in range(len(self._posted)):
            work = self._posted.popleft()
            try:
                work()
            except Exception:  # likewise
                log.exception("cache.bug", method="post")

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_IN_A_TURN):
            try:
                sock, _address = self._listener.accept()
            except OSError:  # nobody more, or out of descriptors: the next turn tries again
                return
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _gid = _CREDENTIALS.unpack(raw)
        # SECURITY: whoever gets in here is handed access tokens.
        if uid not in self._uids:
            log.warning("cache.refused", pid=pid, uid=uid, reason="another user")
            sock.close()
        elif len(self._connections) >= MAX_CONNECTIONS:
            log.warning("cache.refused", pid=pid, uid=uid, reason="too many connections")
            sock.close()
        else:
            sock.setblocking(False)
            self._serial += 1
            self._connections[sock.fileno()] = Connection(sock, self._serial, pid)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _serve(self, connection: Connection, events: int) -> None:
        if events & select.EPOLLOUT:
            connection.flush()
        if not events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            return
        try:
            data = connection.sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            connection.is_open = False
            return
        try:
            frames = connection.decoder.feed(data)
        except Garbage as error:
            log.warning("cache.garbage", pid=connection.pid, text=str(error))
            connection.is_open = False
            return
        for frame in frames:
            self._dispatch(connection, frame)

    def _dispatch(self, connection: Connection, frame: Frame) -> None:
        if not isinstance(frame, Call):
            log.warning("cache.garbage", pid=connection.pid, text="a client that does not call")
            connection.is_open = False
            return
        request = Request(connection, frame)
        handler = self._handlers.get(frame.method)
        if handler is None:
            request.refuse("unknown-method", frame.method[:64])
            return
        try:
            handler(request)
        except Garbage as error:
            request.refuse("malformed", str(error))
        except Exception:  # a bug in one answer must not take everybody's tokens
            log.exception("cache.bug", method=frame.method)
            request.refuse("internal", "the cache daemon met a bug; see its log")

    def _bury(self) -> None:
        """Close what ended; what `on_close` frees may end others, so go on until none is left."""
        while dead := [fd for fd, one in self._connections.items() if not one.is_open]:
            for fd in dead:
                connection = self._connections.pop(fd)
                self._epoll.unregister(fd)
                connection.sock.close()
                self._on_close(connection)

    def _listen_for(self, fd: int, connection: Connection) -> None:
        """Ask to be woken for room to send only while something waits."""
        if connection.wants_room != bool(connection.waiting):
            connection.wants_room = bool(connection.waiting)
            room = select.EPOLLOUT if connection.wants_room else 0
            self._epoll.modify(fd, select.EPOLLIN | room)


def _bind(path: str) -> socket.socket:
    """Return a listening socket, 0600, in the place of whatever a dead daemon left."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(f"{path} is no socket")
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # SECURITY: 0600 from its first moment; a chmod after bind leaves a gap.
    before = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    listener.listen(MAX_CONNECTIONS)
    listener.setblocking(False)
    return listener
