"""An SMTP client for load: many clients in one process, times from final dot to reply.

    python -m bench.driver PORT CLIENTS MESSAGES BYTES
        [--new] [--auth USER:PASSWORD] [--hold S] [--every S]

Prints one JSON object: seconds, accepted, refused, and latency in ms (p50, p99, max, final dot
to reply; with --new also the whole session from connect). --hold opens CLIENTS idle connections
after EHLO, prints "held", waits S seconds and leaves. --every: a client begins a message so often.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402  patched first
import base64  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import gevent  # noqa: E402
from gevent import socket  # noqa: E402
from gevent.event import Event  # noqa: E402


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        began = time.perf_counter()
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.read()
        self.banner_s = time.perf_counter() - began

    def read(self) -> bytes:
        """Read one reply, all its lines."""
        octets = b""
        while True:
            chunk = self.socket.recv(4096)
            if not chunk:
                raise ConnectionError(octets)
            octets += chunk
            if octets.endswith(b"\r\n"):
                last = octets[:-2].rpartition(b"\n")[2]
                if last[3:4] == b" ":
                    return last

    def say(self, line: bytes) -> bytes:
        """Send one line and read its reply."""
        self.socket.sendall(line + b"\r\n")
        return self.read()

    def hello(self, auth: str) -> None:
        """Greet, and log in if asked."""
        self.say(b"EHLO bench")
        if auth:
            user, _, password = auth.partition(":")
            plain = base64.b64encode(f"\0{user}\0{password}".encode())
            reply = self.say(b"AUTH PLAIN " + plain)
            if not reply.startswith(b"235"):
                raise ConnectionError(reply)

    def send(self, content: bytes) -> tuple[bytes, float]:
        """Send one message; returns the last reply and seconds from final dot to it."""
        self.say(b"MAIL FROM:<a@b.test>")
        self.say(b"RCPT TO:<c@d.test>")
        self.say(b"DATA")
        self.socket.sendall(content)
        began = time.perf_counter()
        self.socket.sendall(b".\r\n")
        return self.read(), time.perf_counter() - began

    def close(self) -> None:
        """Leave."""
        self.socket.close()


def _quantile(values: list[float], share: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))] * 1000, 2)


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
        self.content = head + line * max(1, (options.bytes - len(head)) // len(line))

    def run_client(self, number: int) -> None:
        """Send until the common count is used up."""
        options, client = self.options, None
        due = time.perf_counter() + options.every * number / options.clients
        while self.left > 0:
            self.left -= 1
            if options.every:
                Event().wait(max(0.0, due - time.perf_counter()))
                due += options.every
            began = time.perf_counter()
            try:
                if client is None:
                    client = Client(options.port)
                    self.banners.append(client.banner_s)
                    client.hello(options.auth)
                reply, dot_s = client.send(self.content)
            except OSError:
                self.refused += 1
                client = None
                continue
            if reply.startswith(b"250"):
                self.dots.append(dot_s)
                self.sessions.append(time.perf_counter() - began)
            else:
                self.refused += 1
            if options.new:
                client.socket.sendall(b"QUIT\r\n")
                client.close()
                client = None


def hold(options: argparse.Namespace) -> None:
    """Keep idle connections open."""
    clients = [Client(options.port) for _ in range(options.clients)]
    for client in clients:
        client.hello("")
    sys.stdout.write("held\n")
    sys.stdout.flush()
    Event().wait(options.hold)
    for client in clients:
        client.close()


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
    gevent.joinall([gevent.spawn(load.run_client, number) for number in range(options.clients)])
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
