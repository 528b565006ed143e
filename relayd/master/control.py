"""control.sock: where the command line asks the running relay. docs/control.md has the words.

The server only reads requests and writes replies, and never waits: a client that sends
garbage, nothing, or does not read its reply costs itself the connection and the master a
few kilobytes.

SECURITY: the socket is 0660 and group relayd-admin, and each peer is looked at again by
SO_PEERCRED: root, the relay's own user, or a member of that group. Others are closed
without a word. CVE-2025-62875: garbage on a local control socket killed another mail server.

Source: unix(7) SO_PEERCRED, SO_PEERGROUPS.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import selectors
import socket
import stat
import struct
from collections.abc import Callable
from typing import Final

from relayd.clock import SYSTEM, Clock
from relayd.errors import ListenError
from relayd.master.frames import Decoder, Frame, Garbage, Json, encode, refused
from relayd.values import frozen

ADMIN_GROUP: Final = "relayd-admin"
MOST_CLIENTS: Final = 64
PAUSE_S: Final = 1.0
"""For so long nobody is let in after the system refused a descriptor."""
REQUEST_WITHIN_S: Final = 10.0
REPLY_WITHIN_S: Final = 10.0
LONGEST_PATH_BYTES: Final = 107

_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SO_PEERGROUPS: Final = 59
_CREDENTIALS: Final = struct.Struct("3i")


@frozen
class Peer:
    """Who is at the other end."""

    pid: int
    uid: int


class Client:
    """One connection. It is handed to `on_request` once, then replied to or handed over."""

    def __init__(self, sock: socket.socket, peer: Peer, deadline: float) -> None:
        self.sock = sock
        self.peer = peer
        self.deadline = deadline
        self.decoder = Decoder()
        self.outgoing = b""
        self.has_asked = False
        self.is_answered = False


class Control:
    """The listening socket and its clients; owned by the master's loop."""

    def __init__(
        self,
        sock: socket.socket,
        selector: selectors.BaseSelector,
        on_request: Callable[[Client, dict[str, Json]], None],
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        self.sock = sock
        self._selector = selector
        self._on_request = on_request
        self._clock = clock
        self._clients: set[Client] = set()
        self._admin_gid = admin_gid()
        self._paused_until = float("-inf")
        selector.register(sock, selectors.EVENT_READ, self._accept)

    def closables(self) -> list[socket.socket]:
        """Return what a forked child must close."""
        return [self.sock, *(client.sock for client in self._clients)]

    def adopt(self, sock: socket.socket) -> Client:
        """Take in a client that asked, and was let in, before the re-exec."""
        sock.setblocking(False)
        client = Client(sock, Peer(0, 0), float("inf"))
        client.has_asked = True
        self._watch(client)
        return client

    def reply(self, client: Client, frame: Frame) -> None:
        """Send the one reply and close when it is out; a client that left is no matter."""
        if client not in self._clients or client.is_answered:
            return
        client.is_answered = True
        client.deadline = self._clock.monotonic() + REPLY_WITHIN_S
        try:
            client.outgoing = encode(frame)
        except Garbage:
            client.outgoing = encode(refused("the answer is too large; ask for less"))
        self._write(client)

    def hand_over(self, client: Client, send: Callable[[int], bool]) -> bool:
        """Give the client's descriptor away by `send(fd)`; False when nobody took it."""
        if client not in self._clients:
            return True
        # A worker starts from a blocking socket, as after accept().
        client.sock.setblocking(True)
        if not send(client.sock.fileno()):
            client.sock.setblocking(False)
            return False
        self._drop(client)
        return True

    def expire(self) -> None:
        """Close the clients that ask nothing, or do not read their reply; end a pause."""
        now = self._clock.monotonic()
        for client in [c for c in self._clients if c.deadline <= now]:
            self._drop(client)
        if self._paused_until <= now and self.sock not in self._selector.get_map():
            self._selector.register(self.sock, selectors.EVENT_READ, self._accept)

    def close(self, *, flush_s: float = 1.0) -> None:
        """Close everything; replies still on their way get `flush_s` altogether."""
        deadline = self._clock.monotonic() + flush_s
        for client in list(self._clients):
            if client.outgoing:
                client.sock.settimeout(max(0.01, deadline - self._clock.monotonic()))
                with contextlib.suppress(OSError):
                    client.sock.sendall(client.outgoing)
            self._drop(client)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(self.sock)
        self.sock.close()

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self.sock.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                # Who waits stays readable: without a pause the loop would spin on him.
                self._paused_until = self._clock.monotonic() + PAUSE_S
                self._selector.unregister(self.sock)
            return
        peer = self._permitted(sock)
        if peer is None or len(self._clients) >= MOST_CLIENTS:
            sock.close()
            return
        sock.setblocking(False)
        self._watch(Client(sock, peer, self._clock.monotonic() + REQUEST_WITHIN_S))

    def _watch(self, client: Client) -> None:
        self._clients.add(client)
        self._selector.register(
            client.sock, selectors.EVENT_READ, lambda events: self._serve(client, events)
        )

    def _permitted(self, sock: socket.socket) -> Peer | None:
        try:
            octets = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid, uid, gid = _CREDENTIALS.unpack(octets)
        except OSError:
            return None
        if uid in _own_uids():
            return Peer(pid, uid)
        if self._admin_gid is None or self._admin_gid not in {gid, *_groups(sock)}:
            return None
        return Peer(pid, uid)

    def _serve(self, client: Client, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._write(client)
        if client in self._clients and events & selectors.EVENT_READ:
            self._read(client)

    def _read(self, client: Client) -> None:
        try:
            data = client.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        if client.has_asked:
            # One request for each connection: more of it is garbage.
            self._drop(client)
            return
        try:
            frames = client.decoder.feed(data)
        except Garbage:
            self._drop(client)
            return
        if frames:
            client.has_asked = True
            client.deadline = float("inf")
            try:
                self._on_request(client, frames[0])
            except Exception:
                # Else it would wait for ever, and keep one of the few places.
                self.reply(client, refused("a bug in relayd; its log has the traceback"))
                raise

    def _write(self, client: Client) -> None:
        try:
            sent = client.sock.send(client.outgoing, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(client)
            return
        client.outgoing = client.outgoing[sent:]
        if not client.outgoing:
            self._drop(client)
            return
        key = self._selector.get_key(client.sock)
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        self._selector.modify(client.sock, both, key.data)

    def _drop(self, client: Client) -> None:
        self._clients.discard(client)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.sock)
        client.sock.close()


def _own_uids() -> tuple[int, ...]:
    """Return who may ask without being in the group."""
    return (0, os.geteuid())


def _groups(sock: socket.socket) -> set[int]:
    """Return the peer's supplementary groups, as they were when it connected."""
    try:
        octets = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:
        return set()
    return set(struct.unpack(f"{len(octets) // 4}I", octets))


def admin_gid() -> int | None:
    """Return the number of group relayd-admin; None where there is none."""
    try:
        return grp.getgrnam(ADMIN_GROUP).gr_gid
    except KeyError:
        return None


def listen(path: str) -> socket.socket:
    """Return the listening control socket; a dead master's is taken away first.

    raises: ListenError - a living one answers there, or the path cannot be used.
    """
    if len(os.fsencode(path)) > LONGEST_PATH_BYTES:
        raise ListenError(f"{path}: longer than {LONGEST_PATH_BYTES} octets, too long for a socket")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # SECURITY: never wider than 0660, not even between bind and chmod.
        before = os.umask(0o117)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        gid = admin_gid()
        if gid is not None:
            # Without the right to give it away the group stays the relay's own.
            with contextlib.suppress(PermissionError):
                os.chown(path, -1, gid)
        sock.listen(MOST_CLIENTS)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ListenError(f"cannot listen on {path}: {error.strerror}") from error
    except ListenError:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError as error:
            if error.errno == errno.ECONNREFUSED and stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
            elif error.errno != errno.ENOENT:
                raise
        else:
            octets = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pid = _CREDENTIALS.unpack(octets)[0]
            advice = "`relayd reload` or `relayd stop` are for it"
            raise ListenError(f"relayd is already running: pid {pid} answers at {path}; {advice}")
