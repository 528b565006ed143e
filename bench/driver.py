"""An SMTP client for load: many clients in one process, times from final dot to reply.

    python -m bench.driver PORT CLIENTS MESSAGES BYTES
        [--new] [--auth USER:PASSWORD] [--hold S] [--every S]

Prints one JSON object: seconds, accepted, refused, and latency in ms (p50, p99, max, final dot
to reply; with --new also the whole session from connect). --hold opens CLIENTS idle connections
after EHLO, prints "held", waits S seconds and leaves. --every: a client begins a message so often.

One epoll loop and no framework: on two cores what the driver costs is taken from what it measures.
A client is a generator that says what it wants and is sent the replies.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import enum
import heapq
import itertools
import json
import select
import socket
import sys
import time
from collections.abc import Generator
from typing import Final, TypeAlias


class Word(enum.Enum):
    """What a client may want besides saying something."""

    QUIT = enum.auto()  #: take leave and close
    END = enum.auto()  #: nothing, ever again


Wish: TypeAlias = bytes | float | Word
"""Octets to send (b"" connects), a moment to wait for, or a word."""

Talk: TypeAlias = Generator[Wish, bytes, None]
_GONE: Final = b""  # instead of a reply: the connection broke, or there is none to come


class Load:
    """What all clients share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.left = options.messages
        self.refused = 0
        self.dots: list[float] = []
        self.sessions: list[float] = []
        self.banners: list[float] = []
        head = b"From: a@b.test\r\nTo: c@d.test\r\nSubject: bench\r\n\r\n"
        line = b"0123456789" * 7 + b"\r\n"
        self.content = head + line * max(1, (options.bytes - len(head)) // len(line)) + b".\r\n"
        user, _, password = options.auth.partition(":")
        self.login = base64.b64encode(f"\0{user}\0{password}".encode())

    def client(self, number: int) -> Talk:
        """Send until the common count is used up."""
        options = self.options
        due = time.perf_counter() + options.every * number / options.clients
        is_connected = False
        while self.left > 0:
            self.left -= 1
            if options.every:
                yield due
                due += options.every
            began = time.perf_counter()
            is_connected = is_connected or (yield from self.greeted())
            taken_s = (yield from self.sent()) if is_connected else None
            if taken_s is None:
                self.refused += 1
                is_connected = False
            else:
                self.dots.append(taken_s)
                self.sessions.append(time.perf_counter() - began)
            if options.new or not is_connected:
                yield Word.QUIT
                is_connected = False

    def greeted(self) -> Generator[Wish, bytes, bool]:
        """Connect, greet, and log in if asked; tell whether all went well."""
        began = time.perf_counter()
        banner = yield b""
        self.banners.append(time.perf_counter() - began)
        if not banner.startswith(b"220") or not (yield b"EHLO bench\r\n").startswith(b"250"):
            return False
        if not self.options.auth:
            return True
        return (yield b"AUTH PLAIN " + self.login + b"\r\n").startswith(b"235")

    def sent(self) -> Generator[Wish, bytes, float | None]:
        """Send one message; return seconds from the final dot to its 250, None: refused."""
        for line in (b"MAIL FROM:<a@b.test>\r\n", b"RCPT TO:<c@d.test>\r\n"):
            if not (yield line).startswith(b"250"):
                return None
        if not (yield b"DATA\r\n").startswith(b"354"):
            return None
        began = time.perf_counter()
        reply = yield self.content
        return time.perf_counter() - began if reply.startswith(b"250") else None


class Loop:
    """Drives clients until all of them have ended."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._poll = select.epoll()
        self._talks: dict[int, tuple[socket.socket, Talk]] = {}
        self._waits: list[tuple[float, int, Talk]] = []
        self._order = itertools.count()

    def run(self, talks: list[Talk]) -> None:
        """Return when every client has ended."""
        for talk in talks:
            self._go_on(talk, None, next(talk, Word.END))
        while self._talks or self._waits:
            until_s = self._waits[0][0] - time.perf_counter() if self._waits else 60.0
            for number, _ in self._poll.poll(max(0.0, until_s), 256):
                sock, talk = self._talks[number]
                self._go_on(talk, sock, _told(talk, _reply(sock)))
            while self._waits and self._waits[0][0] <= time.perf_counter():
                _, number, talk = heapq.heappop(self._waits)
                kept = self._talks.get(number)
                self._go_on(talk, kept[0] if kept else None, _told(talk, _GONE))

    def _go_on(self, talk: Talk, sock: socket.socket | None, wish: Wish) -> None:
        """Do what a client wants, until it waits for a reply or a moment, or has ended."""
        while wish is not Word.END:
            if isinstance(wish, float):
                number = sock.fileno() if sock is not None else -next(self._order) - 1
                heapq.heappush(self._waits, (wish, number, talk))
                return
            if isinstance(wish, bytes):
                sock = sock or self._connected(talk)
                with contextlib.suppress(OSError):
                    sock.sendall(wish)
                    return
            elif sock is not None:
                self._close(sock)
                sock = None
            wish = _told(talk, _GONE)
        if sock is not None:
            self._close(sock)

    def _connected(self, talk: Talk) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), 60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._talks[sock.fileno()] = sock, talk
        self._poll.register(sock.fileno(), select.EPOLLIN)
        return sock

    def _close(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.sendall(b"QUIT\r\n")
        self._poll.unregister(sock.fileno())
        del self._talks[sock.fileno()]
        sock.close()


def _told(talk: Talk, reply: bytes) -> Wish:
    """Give a client its reply; return what it wants next."""
    try:
        return talk.send(reply)
    except StopIteration:
        return Word.END


def _reply(sock: socket.socket) -> bytes:
    """Return one reply, all its lines; the first octets are here."""
    octets = b""
    while True:
        try:
            chunk = sock.recv(4096)
        except OSError:
            return _GONE
        if not chunk:
            return _GONE
        octets += chunk
        if octets.endswith(b"\r\n"):
            last = octets[:-2].rpartition(b"\n")[2]
            if last[3:4] == b" ":
                return last


def hold(options: argparse.Namespace) -> None:
    """Keep idle connections open."""
    kept = []
    for _ in range(options.clients):
        sock = socket.create_connection(("127.0.0.1", options.port), 60)
        _reply(sock)
        sock.sendall(b"EHLO bench\r\n")
        _reply(sock)
        kept.append(sock)
    sys.stdout.write("held\n")
    sys.stdout.flush()
    time.sleep(options.hold)
    for sock in kept:
        sock.close()


def _quantile(values: list[float], share: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000, 2)


def main() -> None:
    """Run as told on the command line."""
    parser = argparse.ArgumentParser()
    for name in ("port", "clients", "messages", "bytes"):
        parser.add_argument(name, type=int)
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--auth", default="")
    parser.add_argument("--hold", type=float, default=0)
    parser.add_argument("--every", type=float, default=0)
    options = parser.parse_args()
    if options.hold:
        hold(options)
        return
    load = Load(options)
    began = time.perf_counter()
    Loop(options.port).run([load.client(number) for number in range(options.clients)])
    figures = {
        "seconds": round(time.perf_counter() - began, 3),
        "accepted": len(load.dots),
        "refused": load.refused,
    }
    if load.dots:
        figures |= {
            "p50": _quantile(load.dots, 0.5),
            "p99": _quantile(load.dots, 0.99),
            "max": _quantile(load.dots, 1.0),
            "session_p50": _quantile(load.sessions, 0.5),
            "banner_p50": _quantile(load.banners, 0.5),
            "banner_p99": _quantile(load.banners, 0.99),
        }
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
