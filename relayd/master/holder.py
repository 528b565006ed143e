"""Who holds a TCP port: the process, its systemd unit, and the command that frees the port.

Only root sees the sockets of everybody, and under ProtectProc=invisible nobody sees another
user's processes; the kernel's table of sockets still tells the user, so `unseen` names that one.

Source: proc_net(5), proc_pid_fd(5), proc_pid_cgroup(5), systemd.unit(5).
"""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_LISTENS: Final = "0A"
_UNIT: Final = re.compile(r"/([^/]+)\.service(?:/|$)")
_CONTAINERS: Final = frozenset({"docker", "containerd", "podman"})
_SHELLS: Final = ("user@", "session-")
"""Units of people who logged in: ending one throws its owner out, and frees the port by luck."""


class Holder(NamedTuple):
    """A process with a listening socket. unit: its systemd service, "" if none."""

    pid: int
    name: str
    unit: str

    def advice(self) -> str:
        """Return who it is and what to do, as one clause."""
        if self.pid == 1:
            return "held by systemd for a socket unit: see `systemctl list-sockets`"
        return f"held by {self._title()} (pid {self.pid}): {self.end()}"

    def end(self) -> str:
        """Return the command that frees the port, for good where that can be said."""
        if self.unit in _CONTAINERS or self.name == "docker-proxy":
            return "see `docker ps` for the container that publishes it"
        if not self.unit or self.unit.startswith(_SHELLS):
            return f"kill {self.pid}"
        unit = "postfix" if self._is_postfix() else self.unit
        # Not `disable --now`: systemd 252 then leaves running what /etc/init.d starts, and on
        # Debian 12 that is exim4.
        return f"systemctl stop {unit} && systemctl disable {unit}"

    def _is_postfix(self) -> bool:
        """Tell whether it is Postfix; what counts is postfix.service, which starts postfix@-."""
        return self.unit == "postfix" or self.unit.startswith("postfix@")

    def _title(self) -> str:
        """Return its name; that of Postfix's first process is only "master"."""
        return f"postfix's {self.name}" if self._is_postfix() else self.name


def holder_of(host: str, port: int, proc: Path = Path("/proc")) -> Holder | None:
    """Return the process that keeps `host`:`port` from being bound; None if it is not shown."""
    inodes = {inode for _, inode in _sockets(host, port, proc)}
    if not inodes:
        return None
    wanted = {f"socket:[{inode}]" for inode in inodes}
    # A parent that shares the socket with its children is nearly always the smallest pid.
    for pid in sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()):
        if _has_any(proc / str(pid) / "fd", wanted):
            return Holder(pid, _name(proc / str(pid)), _unit(proc / str(pid)))
    return None


def unseen(host: str, port: int, proc: Path = Path("/proc")) -> str:
    """Return what can be said of a holder that `holder_of` does not find, as one clause."""
    users = sorted({uid for uid, _ in _sockets(host, port, proc)})
    whose = f"a process of {' and '.join(map(_user, users))}" if users else "another process"
    return f"held by {whose}; which one, as root: ss -ltnp 'sport = :{port}'"


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:  # one of a container's own
        return f"uid {uid}"


def _sockets(host: str, port: int, proc: Path) -> Iterator[tuple[int, str]]:
    """Yield uid and inode of listening sockets at the port whose address meets `host`."""
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (proc / table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if len(fields) < 10 or fields[3] != _LISTENS:
                continue
            address, _, hex_port = fields[1].partition(":")
            if int(hex_port, 16) == port and _meets(_dotted(address), host):
                yield int(fields[7]), fields[9]


def _meets(theirs: str, ours: str) -> bool:
    anywhere = ("0.0.0.0", "::")
    return theirs == ours or theirs in anywhere or ours in anywhere


def _dotted(text: str) -> str:
    """Return the address of /proc/net/tcp: 32-bit words in the byte order of the machine."""
    octets = b"".join(
        int(text[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(text), 8)
    )
    return socket.inet_ntop(socket.AF_INET if len(octets) == 4 else socket.AF_INET6, octets)


def _has_any(folder: Path, wanted: set[str]) -> bool:
    try:
        return any(_link(folder / name) in wanted for name in os.listdir(folder))
    except OSError:
        return False


def _link(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _name(folder: Path) -> str:
    try:
        return (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "a process"


def _unit(folder: Path) -> str:
    try:
        found = _UNIT.search((folder / "cgroup").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return ""
    return found[1] if found else ""
