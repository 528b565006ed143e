"""The loop of the admin process: many slow or hostile clients, one answer each, bounded all round.

    READING -> ASKING -> WRITING -> CLOSING -> gone

One request for each connection, then it is closed: nothing is kept alive. A request must be there
within 5 s as a whole, whatever it trickles; an answer must be taken within 10 s. When all places
are taken, the oldest that has not asked yet gives way, so that clients who only sit there keep
nobody out.

`ask` gets each request with a function for its answer, which any thread may call, once.
Source: RFC 9112 §9.6 (a close that does not take the answer back).
"""

from __future__ import annotations

import collections
import contextlib
import enum
import os
import selectors
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from relayd.admin import http
from relayd.admin.http import Refused, Request, Response
from relayd.clock import SYSTEM, Clock

MOST_CLIENTS: Final = 64
_ACCEPTS_AT_ONCE: Final = 16
_PIECE: Final = 4096

Answer: TypeAlias = Callable[[Response], None]
Ask: TypeAlias = Callable[[Request, Answer], None]


class State(enum.Enum):
    """Where a connection stands."""

    READING = "reading"
    ASKING = "asking"
    WRITING = "writing"
    CLOSING = "closing"


_LONGEST_S: Final[Mapping[State, float]] = {
    State.READING: 5.0,
    State.ASKING: 15.0,
    State.WRITING: 10.0,
    State.CLOSING: 1.0,
}


@dataclass(slots=True, eq=False)
class _Client:
    """deadline: monotonic. outgoing: what is still to be written."""

    sock: socket.socket
    deadline: float
    state: State = State.READING
    incoming: bytes = b""
    outgoing: bytes = b""
    with_body: bool = True


class Server:
    """Owned by the admin process's one loop; `post` alone may be called from other threads.

    names: see `http.parse`.
    """

    def __init__(self, ask: Ask, *, names: Collection[str] = (), clock: Clock = SYSTEM) -> None:
        self._ask = ask
        self._names = names
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._clients: dict[_Client, None] = {}
        self._asking = 0  # questions whose answer has not come, of clients that left too
        self._posted: collections.deque[Callable[[], None]] = collections.deque()
        self._wake_in, self._wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_in, selectors.EVENT_READ, self._woken)

    def __len__(self) -> int:
        """Return how many clients are connected."""
        return len(self._clients)

    @property
    def is_listening(self) -> bool:
        """Tell whether there is a listening socket."""
        return self._listener is not None

    def listen(self, listener: socket.socket) -> None:
        """Serve who connects to `listener`, which is taken over."""
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def watch(self, fd: int, readable: Callable[[], None]) -> None:
        """Call `readable` when `fd` is."""
        self._selector.register(fd, selectors.EVENT_READ, readable)

    def unwatch(self, fd: int) -> None:
        """Stop that."""
        self._selector.unregister(fd)

    def post(self, work: Callable[[], None]) -> None:
        """Have `work` done in the loop; from any thread or signal handler."""
        self._posted.append(work)
        with contextlib.suppress(BlockingIOError, OSError):  # full: it wakes up anyway
            os.write(self._wake_out, b"x")

    def turn(self, longest_s: float) -> None:
        """Do what there is to do; wait for it at most `longest_s` seconds."""
        ends = min((each.deadline for each in self._clients), default=float("inf"))
        patience_s = max(0.0, min(longest_s, ends - self._clock.monotonic()))
        for key, _ in self._selector.select(patience_s):
            key.data()
        while self._posted:
            self._posted.popleft()()
        now = self._clock.monotonic()
        for client in [each for each in self._clients if each.deadline <= now]:
            self._expire(client)

    def close(self) -> None:
        """Close everything."""
        for client in list(self._clients):
            self._drop(client)
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        self._selector.close()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_in, _PIECE)

    def _accept(self) -> None:
        if self._listener is None:
            return
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # taken back, or no descriptor to be had: it is tried again
            if len(self._clients) >= MOST_CLIENTS:
                self._make_room()
            sock.setblocking(False)
            client = _Client(sock, self._clock.monotonic() + _LONGEST_S[State.READING])
            self._clients[client] = None
            self._selector.register(sock, selectors.EVENT_READ, lambda one=client: self._read(one))

    def _make_room(self) -> None:
        """Send away who has not asked yet and came first, else who came first."""
        idle = (each for each in self._clients if each.state is State.READING)
        self._drop(next(idle, next(iter(self._clients))))

    def _read(self, client: _Client) -> None:
        try:
            data = client.sock.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
        elif client.state is State.READING:
            client.incoming += data
            self._look(client)
        # Later octets are nobody's: there is one request for each connection.

    def _look(self, client: _Client) -> None:
        head, end, _ = client.incoming.partition(http.END)
        try:
            if len(head) > http.MOST_OCTETS:
                raise Refused(431, "too long")
            if not end:
                return
            request = http.parse(head + end, names=self._names)
        except Refused as refused:
            self._answer(client, refused.response)
            return
        client.with_body = request.method == "GET"
        if self._asking >= MOST_CLIENTS:
            # Who asks and leaves, over and over, must not fill the memory with questions.
            self._answer(client, Response(503, b"too many questions at once\n"))
            return
        self._asking += 1
        self._go(client, State.ASKING)
        # Not read while it waits: what it sends meanwhile is its own trouble.
        self._selector.unregister(client.sock)
        self._ask(request, lambda response: self.post(lambda: self._answered(client, response)))

    def _answered(self, client: _Client, response: Response) -> None:
        self._asking -= 1
        self._answer(client, response)

    def _answer(self, client: _Client, response: Response) -> None:
        if client not in self._clients or client.state not in (State.READING, State.ASKING):
            return  # it has gone, or waited too long
        client.outgoing = http.render(
            response, now=self._clock.utcnow(), with_body=client.with_body
        )
        if client.state is State.READING:
            self._selector.unregister(client.sock)
        self._go(client, State.WRITING)
        self._selector.register(client.sock, selectors.EVENT_WRITE, lambda: self._write(client))

    def _write(self, client: _Client) -> None:
        try:
            sent = client.sock.send(client.outgoing)
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        client.outgoing = client.outgoing[sent:]
        if not client.outgoing:
            # A close with octets unread would have the kernel take the answer back: we say
            # that this is all, and wait a moment for the client to go.
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_WR)
            self._go(client, State.CLOSING)
            self._selector.modify(client.sock, selectors.EVENT_READ, lambda: self._read(client))

    def _expire(self, client: _Client) -> None:
        match client.state:
            case State.READING if client.incoming:
                self._answer(client, Response(408, b"no request within 5 s\n"))
            case State.ASKING:
                self._answer(client, Response(503, b"no answer in time\n"))
            case _:
                self._drop(client)

    def _go(self, client: _Client, state: State) -> None:
        client.state = state
        client.deadline = self._clock.monotonic() + _LONGEST_S[state]

    def _drop(self, client: _Client) -> None:
        if client not in self._clients:
            return
        del self._clients[client]
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.sock)
        client.sock.close()
