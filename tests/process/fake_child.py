r"""Tiny children and a tiny checker, so that the master is tested without gevent and SQLite.

The configuration file is JSON: {"hostname": …, "workers": n, "addresses": […], "graceful_s": s,
"behaviour": …, "problems": […], "runtime_dir": …,
"admin": "HOST:PORT"}. A worker greets each connection with
"HOSTNAME PID NUMBER\n" and keeps it until the client closes. Behaviours (default_domain):

    die      exit 3 at birth          fail   say "failed", then exit 69
    mute     never say "ready"        stay   ignore drain and SIGTERM
    slow     say "opening" until there is a file "opened", then "ready"
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time
from pathlib import Path

from relayd.config import codec
from relayd.config.model import Admin, Config, Limits, Listener, Server, Spool, Upstream
from relayd.master.channel import Channel, Packet
from relayd.master.child import ChildContext
from relayd.master.frames import Frame, done, encode

ENTRIES = {
    "worker": "tests.process.fake_child:worker",
    "cached": "tests.process.fake_child:cached",
    "admin": "tests.process.fake_child:admin",
    "checker": "tests.process.fake_child:run_checker",
}


def run_checker(path: str, fd: int) -> int:
    try:
        wanted = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        wanted = {"problems": [f"{path}: {error}"]}
    if wanted.get("check") == "dies":
        os.abort()
    problems = wanted.get("problems", [])
    if problems:
        verdict = {"config": None, "problems": problems, "warnings": []}
    else:
        config = json.loads(codec.dumps(_config(path, wanted)))
        verdict = {"config": config, "problems": [], "warnings": wanted.get("warnings", [])}
    os.write(fd, json.dumps(verdict).encode())
    return 78 if problems else 0


def _config(path: str, wanted: dict[str, object]) -> Config:
    folder = str(wanted["runtime_dir"])
    addresses = wanted.get("addresses", ["127.0.0.1:0"])
    assert isinstance(addresses, list)
    workers = wanted.get("workers", 2)
    assert isinstance(workers, int)
    return Config(
        server=Server(
            hostname=str(wanted.get("hostname", "first")),
            default_domain=str(wanted.get("behaviour", "")),
            workers=workers,
            graceful_timeout=float(str(wanted.get("graceful_s", 5))),
            runtime_dir=folder,
            state_dir=f"{folder}/state",
        ),
        listener=(Listener(name="lan", address=tuple(addresses)),),
        limits=Limits(max_connections=100),
        upstream=(Upstream(name="contoso"),),
        spool=Spool(url=str(wanted.get("spool", f"sqlite://{folder}/spool/spool.db"))),
        admin=Admin(address=str(wanted.get("admin", ""))),
        source=path,
    )


class Fake:
    """What worker and cached share: beats, orders, the end."""

    def __init__(self, context: ChildContext) -> None:
        self.context = context
        self.config = codec.loads(os.pread(context.config_fd, 1 << 20, 0))
        self.folder = Path(self.config.server.runtime_dir)
        self.channel = Channel(socket.socket(fileno=context.channel_fd))
        self.listeners = [socket.socket(fileno=fd) for _, fd in context.listeners]
        self.sessions: list[socket.socket] = []
        self.is_leaving = False
        self.leave_at = float("inf")
        self.is_hanging = False
        self.status_at = 0.0
        self.stays = self.config.server.default_domain == "stay"
        signal.signal(signal.SIGTERM, self._terminated)
        signal.signal(signal.SIGQUIT, self._terminated)
        signal.signal(signal.SIGUSR1, lambda *_: self._note("reopened", os.getpid()))

    def run(self) -> int:
        behaviour = self.config.server.default_domain if self.context.kind == "worker" else ""
        if behaviour == "die":
            return 3
        if behaviour == "fail":
            self.channel.send({"event": "failed", "text": "no spool today"})
            return 69
        if behaviour == "slow":
            while not (self.folder / "opened").exists():
                self.channel.send({"event": "opening"})
                self.context.pulse.beat()
                time.sleep(0.01)
        if behaviour != "mute":
            self.channel.send({"event": "ready"})
        while not (self.is_leaving and not self.sessions) and time.monotonic() < self.leave_at:
            self.turn()
        return 0

    def turn(self) -> None:
        if not self.is_hanging:
            self.context.pulse.beat()
        if time.monotonic() >= self.status_at:
            self.status_at = time.monotonic() + 0.2
            self.channel.send(self._figures())
        # A closed channel is always readable: once it was seen it is not watched again.
        watched = [*self.listeners, *self.sessions]
        if self.leave_at == float("inf") or not self.is_leaving:
            watched.append(self.channel.sock)
        readable, _, _ = select.select(watched, [], [], 0.02)
        for sock in readable:
            if sock is self.channel.sock:
                self._obey(self.channel.receive())
            elif sock in self.listeners:
                self._greet(sock)
            elif not self._listen_to(sock):
                self.sessions.remove(sock)
                self.context.pulse.leave("")
                sock.close()

    def _figures(self) -> Frame:
        if self.context.kind == "cached":
            return {"event": "status"}
        if self.context.kind == "admin":
            told: Frame = {"address": self.config.admin.address, "listening": True, "text": ""}
            return {"event": "status", "admin": told}
        return {
            "event": "status",
            "connections": len(self.sessions),
            "queue": {"ready": 3, "held": 1},
            "oldest_s": 61.0,
            "counters": {"relayd_sessions_total": {"lan\tok": 1}},
            "upstreams": {"contoso": {"state": "up", "token_expires_s": 3000.0}},
            "spool": {"ok": True, "text": ""},
        }

    def _greet(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        self.context.pulse.enter("")
        text = f"{self.config.server.hostname} {os.getpid()} {self.context.number}\n"
        self.sessions.append(sock)
        with contextlib.suppress(OSError):
            sock.sendall(text.encode())

    def _listen_to(self, sock: socket.socket) -> bool:
        try:
            data = sock.recv(100)
        except OSError:
            return False
        if data == b"hang\n":
            self.is_hanging = True
        if data == b"crash\n":
            raise RuntimeError("as asked")
        if data == b"descriptors\n":
            sock.sendall((json.dumps(descriptors()) + "\n").encode())
        if data == b"ping\n":
            sock.sendall(b"pong\n")
        return bool(data)

    def _obey(self, packet: Packet | None) -> None:
        if packet is None:
            self._note("orphaned", os.getpid())
            self._leave(within_s=2.0)
            return
        match packet.members.get("do"):
            case "drain" if not self.stays:
                self._leave(within_s=1000.0)
            case "reclaim":
                self._note("reclaimed", packet.members["pid"])
            case "control":
                with socket.socket(fileno=packet.fds[0]) as client:
                    client.sendall(encode(done({"by": os.getpid(), "asked": packet.members})))
            case _:
                return

    def _terminated(self, *_: object) -> None:
        if not self.stays:
            self._leave(within_s=1.0)

    def _leave(self, within_s: float) -> None:
        for listener in self.listeners:
            listener.close()
        self.listeners = []
        self.is_leaving = True
        self.leave_at = min(self.leave_at, time.monotonic() + within_s)

    def _note(self, name: str, what: object) -> None:
        with (self.folder / name).open("a") as stream:
            stream.write(f"{what}\n")


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def worker(context: ChildContext) -> int:
    return Fake(context).run()


def cached(context: ChildContext) -> int:
    return Fake(context).run()


def admin(context: ChildContext) -> int:
    return Fake(context).run()
