"""SIGUSR2: the master becomes new code in place; its PID, sockets and children stay.

    preflight (new code reads the configuration) -> replace (execve) -> resume -> reload

execve is called from the main thread, because the children's PDEATHSIG follows it. What the
new code must know stands as JSON in a memfd whose number is in RELAYD_UPGRADE; descriptors
lose CLOEXEC for the exec and get it back on the other side. Signals are blocked meanwhile:
none is lost, and none kills code that has no handlers yet.

SECURITY: the variable is believed only if the memfd says this very PID wrote it.
Source: execve(2).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import socket
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from relayd.config.model import Log
from relayd.master import spawn
from relayd.master.channel import Channel
from relayd.master.checker import Loaded, read_all, sealed
from relayd.master.crew import Child, Crew, Life
from relayd.master.settings import Settings, parse
from relayd.master.sockets import Bound
from relayd.observe import metrics

VARIABLE: Final = "RELAYD_UPGRADE"
VERSION: Final = 1
_LONGEST_OUTPUT: Final = 2000


@dataclass(frozen=True, slots=True)
class Preflight:
    """The new code's look at the configuration, under way in child `pid`."""

    pid: int
    fd: int

    def said(self) -> str:
        """Return what it printed, bounded; call it once."""
        octets = read_all(self.fd)
        os.close(self.fd)
        return octets[-_LONGEST_OUTPUT:].decode("utf-8", "replace").strip()


def start_preflight(command: tuple[str, ...], mine: Iterable[spawn.Closable]) -> Preflight:
    """Run `command` in a child; exit 0 means that the upgrade may go on."""
    fd = os.memfd_create("relayd-preflight", os.MFD_CLOEXEC)
    return Preflight(spawn.execute(list(command), fd, mine=mine), fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that the new code needs."""

    serial: int
    crews: tuple[Crew, ...]
    board_fd: int
    control_fd: int
    retired: metrics.Snapshot
    unclaimed: tuple[int, ...]
    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """What was found on the other side. crews hold their children and sockets again."""

    crews: list[Crew]
    serial: int
    board_fd: int
    control: socket.socket
    retired: metrics.Snapshot
    unclaimed: tuple[int, ...]
    started_at: float


def replace(command: tuple[str, ...], state: State) -> None:
    """Become `command`; comes back only by raising OSError, with everything as it was."""
    fds = _descriptors(state)
    memfd = sealed(json.dumps(_encode(state)).encode())
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, spawn.ALL_SIGNALS)
    try:
        for fd in (memfd, *fds):
            os.set_inheritable(fd, True)
        environment = dict(os.environ) | {VARIABLE: str(memfd)}
        os.execve(command[0], list(command), environment)  # noqa: S606  no shell is wanted
    except OSError:
        for fd in fds:
            os.set_inheritable(fd, False)
        os.close(memfd)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise


def _descriptors(state: State) -> set[int]:
    fds = {state.board_fd, state.control_fd}
    for crew in state.crews:
        fds |= {one.fd for one in crew.listening if one.fd >= 0}
        fds |= {child.channel.fileno() for child in crew.children() if child.channel.fileno() >= 0}
        if not crew.is_leaving:
            fds.add(crew.config.fd)
    return fds


def _encode(state: State) -> dict[str, object]:
    return {
        "v": VERSION,
        "pid": os.getpid(),
        "serial": state.serial,
        "started_at": state.started_at,
        "board": state.board_fd,
        "control": state.control_fd,
        "retired": state.retired,
        "unclaimed": list(state.unclaimed),
        "crews": [_encode_crew(crew) for crew in state.crews],
    }


def _encode_crew(crew: Crew) -> dict[str, object]:
    settings = dataclasses.asdict(crew.config.settings) | {"listeners": [], "log": None}
    return {
        "kind": crew.kind,
        "generation": crew.generation,
        "size": crew.size,
        "is_leaving": crew.is_leaving,
        "config": -1 if crew.is_leaving else crew.config.fd,
        "settings": settings,
        "listening": [
            {
                "listener": one.listener,
                "address": one.address,
                "fd": one.fd,
                "origin": one.origin,
            }
            for one in crew.listening
            if one.fd >= 0 and not crew.is_leaving
        ],
        "children": [
            {
                "pid": child.pid,
                "number": child.number,
                "serial": child.serial,
                "row": child.row,
                "channel": child.channel.fileno(),
                "born_at": child.born_at,
                "life": child.life.value,
                "deadline": None if math.isinf(child.deadline) else child.deadline,
            }
            for child in crew.children()
        ],
    }


def resume(environ: MutableMapping[str, str]) -> Resumed | None:
    """Return what the code before this one left, or None when this is an ordinary start."""
    text = environ.pop(VARIABLE, "")
    if not text.isdigit():
        return None
    try:
        state: dict[str, Any] = json.loads(read_all(int(text)))
        if state["v"] != VERSION or state["pid"] != os.getpid():
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    os.close(int(text))
    crews = [_decode_crew(row) for row in state["crews"]]
    return Resumed(
        crews=crews,
        serial=state["serial"],
        board_fd=_cloexec(state["board"]),
        control=socket.socket(fileno=_cloexec(state["control"])),
        retired=state["retired"],
        unclaimed=tuple(state["unclaimed"]),
        started_at=state["started_at"],
    )


def _cloexec(fd: int) -> int:
    os.set_inheritable(fd, False)
    return fd


def _decode_crew(row: dict[str, Any]) -> Crew:
    listening = tuple(
        Bound(one["listener"], one["address"], _listening_socket(one["fd"]), one["origin"])
        for one in row["listening"]
    )
    crew = Crew(row["kind"], row["generation"], _decode_config(row), listening, row["size"])
    for one in row["children"]:
        crew.adopt(_decode_child(one, crew))
    if row["is_leaving"]:
        crew.dismiss()
    return crew


def _listening_socket(fd: int) -> socket.socket:
    sock = socket.socket(fileno=_cloexec(fd))
    sock.setblocking(False)
    return sock


def _decode_config(row: dict[str, Any]) -> Loaded:
    fd = row["config"]
    fallback = Settings(**(row["settings"] | {"listeners": (), "log": Log()}))
    if fd < 0:
        return Loaded(fallback, sealed(b""))
    _cloexec(fd)
    try:
        return Loaded(parse(read_all(fd)), fd)
    except ValueError:
        # Written by another version. Enough to lead the old children; the reload that
        # follows brings the configuration in this version's form.
        return Loaded(fallback, fd)


def _decode_child(row: dict[str, Any], crew: Crew) -> Child:
    channel = socket.socket(fileno=_cloexec(row["channel"])) if row["channel"] >= 0 else _closed()
    channel.setblocking(False)
    return Child(
        pid=row["pid"],
        kind=crew.kind,
        number=row["number"],
        serial=row["serial"],
        row=row["row"],
        generation=crew.generation,
        channel=Channel(channel),
        born_at=row["born_at"],
        life=Life(row["life"]),
        deadline=math.inf if row["deadline"] is None else row["deadline"],
    )


def _closed() -> socket.socket:
    """Return a socket whose other end is gone already."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    return ours
