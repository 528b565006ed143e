"""SIGUSR2: the master becomes new code in place; its PID, sockets and children stay.

    preflight (new code reads the configuration) -> replace (execve) -> resume -> reload

execve is called from the main thread, because the children's PDEATHSIG follows it. What the
new code must know stands as JSON in a memfd whose number is in RELAYD_UPGRADE; descriptors
lose CLOEXEC for the exec and get it back on the other side. Signals are blocked meanwhile:
none is lost, and none kills code that has no handlers yet.

The form of that JSON has a number. The old code tells it to the look (`relayd check --preflight
FORM`), so that code which does not read it says so while everything still serves. Members that
are not known are passed over, missing ones have a default; what cannot be read in spite of that
ends the process with words, and the service manager starts it anew.

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
from dataclasses import field
from typing import Any, Final

from relayd import __version__
from relayd.config.model import Config, Log
from relayd.errors import RelaydError
from relayd.master import spawn
from relayd.master.channel import Channel
from relayd.master.checker import Loaded, read_all, sealed
from relayd.master.crew import Child, Crew, Life
from relayd.master.frames import Frame
from relayd.master.settings import Settings, parse, select
from relayd.master.sockets import Bound
from relayd.observe import metrics
from relayd.values import frozen

VARIABLE: Final = "RELAYD_UPGRADE"
VERSION: Final = 1
"""The form this code writes; one more when other code could not lead what it describes."""
READS: Final = frozenset({1})
"""The forms this code can take over from."""
KINDS: Final = frozenset({"worker", "cached", "admin"})
"""The crews this code leads; the children of others are told to go."""
_LONGEST_OUTPUT: Final = 64 * 1024
_LONGEST_TEXT: Final = 2000


class HandoverUnreadable(RelaydError):
    """The code before this one left something that this code cannot go on from."""


@frozen
class Preflight:
    """The new code's look at the configuration, under way in child `pid`."""

    pid: int
    fd: int

    def said(self) -> tuple[str, ...]:
        """Return the problems it printed, bounded; call it once.

        Those of `relayd --json check`; the last lines of anything else, a traceback for one.
        """
        octets = read_all(self.fd)
        os.close(self.fd)
        text = octets[-_LONGEST_OUTPUT:].decode("utf-8", "replace").strip()
        problems = _problems(text) or tuple(text.splitlines()[-3:])
        return tuple(one.strip()[:_LONGEST_TEXT] for one in problems[:20] if one.strip())


def _problems(text: str) -> tuple[str, ...]:
    """Return the problems in what `relayd --json check` printed; () in anything else."""
    try:
        found = json.loads(text[text.index("{") :])["problems"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    return tuple(str(one) for one in found) if isinstance(found, list) else ()


def start_preflight(command: tuple[str, ...], mine: Iterable[spawn.Closable]) -> Preflight:
    """Run `command` in a child; exit 0 means that the upgrade may go on."""
    fd = os.memfd_create("relayd-preflight", os.MFD_CLOEXEC)
    return Preflight(spawn.execute(list(command), fd, mine=mine), fd)


@frozen(kw_only=True)
class State:
    """All that the new code needs.

    upgrade_fds, reload_fds: clients of control.sock that wait for the end of it.
    memory: what operators are shown and nothing depends on: "troubles", "errors", "callers".
    """

    serial: int
    crews: tuple[Crew, ...]
    board_fd: int
    control_fd: int
    retired: metrics.Snapshot
    unclaimed: tuple[int, ...]
    started_at: float
    upgrade_fds: tuple[int, ...] = ()
    reload_fds: tuple[int, ...] = ()
    memory: Frame = field(default_factory=dict)


@frozen(kw_only=True)
class Resumed:
    """What was found on the other side. crews hold their children and sockets again.

    was: the version of the code before this. The clients wait for the reload that follows.
    """

    crews: list[Crew]
    serial: int
    board_fd: int
    control: socket.socket
    retired: metrics.Snapshot
    unclaimed: tuple[int, ...]
    started_at: float
    was: str
    upgrade_clients: tuple[socket.socket, ...]
    reload_clients: tuple[socket.socket, ...]
    memory: Frame


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
    fds = {state.board_fd, state.control_fd, *state.upgrade_fds, *state.reload_fds}
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
        "relayd": __version__,
        "memory": state.memory,
        "upgrade_clients": list(state.upgrade_fds),
        "reload_clients": list(state.reload_fds),
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
                "figures": child.figures,
            }
            for child in crew.children()
        ],
    }


def resume(environ: MutableMapping[str, str]) -> Resumed | None:
    """Return what the code before this one left, or None when this is an ordinary start.

    raises: HandoverUnreadable - it left something else than this code reads.
    """
    text = environ.pop(VARIABLE, "")
    if not text.isdigit():
        return None
    try:
        state: dict[str, Any] = json.loads(read_all(int(text)))
        if state["pid"] != os.getpid():
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    os.close(int(text))
    was = str(state.get("relayd", "an older relayd"))
    if state.get("v") not in READS:
        raise HandoverUnreadable(objection(state.get("v"), was))
    try:
        return _resumed(state, was)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        words = f"{objection(state['v'], was)} ({type(error).__name__}: {error})"
        raise HandoverUnreadable(words) from error


def objection(form: object, was: str = "the running relayd") -> str:
    """Return the words for a form of hand-over that this code does not read."""
    return (
        f"{was} hands over in form {form!r}, which relayd {__version__} cannot go on from; "
        "it needs a restart: systemctl restart relayd"
    )


def _resumed(state: dict[str, Any], was: str) -> Resumed:
    return Resumed(
        crews=[_decode_crew(row) for row in state["crews"]],
        serial=state["serial"],
        board_fd=_cloexec(state["board"]),
        control=socket.socket(fileno=_cloexec(state["control"])),
        retired=state.get("retired", {}),
        unclaimed=tuple(state.get("unclaimed", ())),
        started_at=state["started_at"],
        was=was,
        upgrade_clients=_clients(state.get("upgrade_clients", ())),
        reload_clients=_clients(state.get("reload_clients", ())),
        memory=dict(state.get("memory", {})),
    )


def _clients(fds: Iterable[int]) -> tuple[socket.socket, ...]:
    return tuple(socket.socket(fileno=_cloexec(fd)) for fd in fds)


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
    if row["is_leaving"] or crew.kind not in KINDS:
        crew.dismiss()
    return crew


def _listening_socket(fd: int) -> socket.socket:
    sock = socket.socket(fileno=_cloexec(fd))
    sock.setblocking(False)
    return sock


def _decode_config(row: dict[str, Any]) -> Loaded:
    fd = row["config"]
    if fd < 0:
        return Loaded(_settings(row["settings"]), sealed(b""))
    _cloexec(fd)
    try:
        return Loaded(parse(read_all(fd)), fd)
    except ValueError:
        # Written by another version. Enough to lead the old children; the reload that
        # follows brings the configuration in this version's form.
        return Loaded(_settings(row["settings"]), fd)


def _settings(row: dict[str, Any]) -> Settings:
    """Return what another version knew of its settings; what it did not is the default."""
    known = {one.name for one in dataclasses.fields(Settings)} - {"listeners", "log"}
    defaults = dataclasses.replace(select(Config()), listeners=(), log=Log())
    return dataclasses.replace(defaults, **{k: v for k, v in row.items() if k in known})


def _decode_child(row: dict[str, Any], crew: Crew) -> Child:
    channel = socket.socket(fileno=_cloexec(row["channel"])) if row["channel"] >= 0 else _closed()
    channel.setblocking(False)
    life = Life(row["life"])
    return Child(
        pid=row["pid"],
        kind=crew.kind,
        number=row["number"],
        serial=row["serial"],
        row=row["row"],
        generation=crew.generation,
        channel=Channel(channel),
        born_at=row["born_at"],
        life=life,
        has_served=life is not Life.STARTING,
        deadline=math.inf if row["deadline"] is None else row["deadline"],
        figures=row.get("figures", {}),  # totals do not go back meanwhile
    )


def _closed() -> socket.socket:
    """Return a socket whose other end is gone already."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.close()
    return ours
