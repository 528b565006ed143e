"""Listening sockets: opened once, shared by every generation of workers, named when refused.

    given(environ)              what systemd passed: socket units, and our own fd store
    open_all(wanted, …)         keeps what is open, takes what was given, binds the rest

A reload never closes a socket that stays in the configuration, so no connection is refused.
An address in use is tried again for as long as the caller says (a killed master's children
leave within 5 s); then ListenError names the process that holds it.

Source: listen(2), ip(7), ipv6(7), sd_listen_fds(3), systemd.socket(5), proc_net(5).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Container, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from relayd.clock import SYSTEM
from relayd.config.model import Listener
from relayd.errors import ListenError
from relayd.master.holder import holder_of, unseen

BACKLOG: Final = 1024
KEPT_PREFIX: Final = "kept-"
"""Names in systemd's fd store begin so: they are matched by address, never by name."""

NEEDS_RESTART: Final = "that change needs a restart"
"""In a refusal: 127.0.0.1:25 and 0.0.0.0:25 cannot be had both while one takes over the other."""

_FIRST_FD: Final = 3
_RETRY_S: Final = 0.05
_NO_FAMILY: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class Address(NamedTuple):
    """Where to listen. host: numeric, without brackets; port 0: any."""

    host: str
    port: int
    family: socket.AddressFamily

    def __str__(self) -> str:
        host = f"[{self.host}]" if self.family is socket.AF_INET6 else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Return the address in "192.0.2.1:25", "[::]:25", ":25", "*:25" or "localhost:25".

    raises: ValueError - anything else; names are not looked up, because DNS may be away when
            the relay starts.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is no address: write HOST:PORT, [::]:25 for IPv6")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    host = {"": "0.0.0.0", "*": "0.0.0.0", "localhost": "127.0.0.1"}.get(host, host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        numeric = socket.getaddrinfo(
            host, int(port), family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST
        )
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{text!r} is no address: {host!r} is not numeric") from error
    return Address(str(numeric[0][4][0]), int(port), family)


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """One listening socket.

    listener: the [[listener]] it serves.
    address:  as configured; "" when a socket unit gave it to the listener by name.
    origin:   "bound" or "systemd".
    """

    listener: str
    address: str
    sock: socket.socket
    origin: str = "bound"

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self.sock.fileno()

    @property
    def store_name(self) -> str:
        """Its name in systemd's fd store; no colon may be in it."""
        return KEPT_PREFIX + self.address.translate({ord(c): "-" for c in ":[]%/"})

    def where(self) -> str:
        """Return the address it really listens on."""
        return shown_name(self.sock)


class Given(NamedTuple):
    """A socket passed by systemd. name: FDNAME, "" if none."""

    name: str
    sock: socket.socket


def given(environ: MutableMapping[str, str]) -> list[Given]:
    """Take over what systemd passed, and take its words out of `environ`, as sd_listen_fds(1).

    Sockets that do not listen are left out and closed: datagrams and Accept=yes are not for us.
    """
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for index in range(int(count)):
        name = names[index] if index < len(names) else ""
        sock = _listening(_FIRST_FD + index)
        if sock is not None:
            sockets.append(Given(name, sock))
    return sockets


def _listening(fd: int) -> socket.socket | None:
    """Return `fd` as a socket if it is a listening one; otherwise close it."""
    try:
        os.set_inheritable(fd, False)
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            return None
        sock = socket.socket(fileno=fd)
    except OSError:
        return None
    if sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.setblocking(False)
        return sock
    sock.close()
    return None


def is_wanted(offer: Given, listeners: Iterable[Listener]) -> bool:
    """Tell whether a listener asks for a socket, by its name or by its address."""
    for one in listeners:
        if offer.name == one.name:
            return True
        if any(covers(offer.sock, parse_address(text)) for text in one.address):
            return True
    return False


class Opened(NamedTuple):
    """What `open_all` came to. warnings: texts; fresh: those of `bound` not open before."""

    bound: tuple[Bound, ...]
    fresh: tuple[Bound, ...]
    warnings: tuple[str, ...]


def open_all(
    wanted: Iterable[Listener],
    have: Sequence[Bound] = (),
    offered: Sequence[Given] = (),
    *,
    retry_s: float = 0.0,
    ours: Callable[[int], bool] = lambda _pid: False,
) -> Opened:
    """Open every address of `wanted`; nothing is left behind when one cannot be.

    have:    sockets open already; those still wanted are used on, the others left to the caller.
    offered: what systemd passed; taken by address, else by listener name. A listener with a
             socket of its name binds nothing itself: the unit says where.
    retry_s: for how long an address in use is tried again; blocks, so only at start-up.
    ours:    tells whether a pid is one of us, for the text of the error.
    raises:  ListenError - which address, why, and what to do.
    """
    wanted = tuple(wanted)
    pool = _Pool(have, offered, {one.name for one in wanted})
    deadline = SYSTEM.monotonic() + retry_s
    bound: list[Bound] = []
    fresh: list[Bound] = []
    warnings: list[str] = []
    try:
        for listener in wanted:
            named = pool.named(listener.name)
            bound += named
            for text in () if named else listener.address:
                address = parse_address(text)
                known = _covering(bound, listener, address) or pool.at(listener.name, text, address)
                if known is None:
                    known = _bind(listener.name, text, address, deadline, ours, warnings)
                    if known is None:
                        continue
                    fresh.append(known)
                if known not in bound:
                    bound.append(known)
    except (ListenError, ValueError) as error:
        for one in fresh:
            one.sock.close()
        raise error if isinstance(error, ListenError) else ListenError(str(error)) from error
    known_socks = {one.sock for one in have}
    fresh += [one for one in bound if one.origin == "systemd" and one.sock not in known_socks]
    return Opened(tuple(bound), tuple(fresh), tuple(warnings))


class _Pool:
    """Sockets that are open already, from before or from systemd."""

    def __init__(
        self, have: Sequence[Bound], offered: Sequence[Given], names: Container[str]
    ) -> None:
        self._have = have
        self._offered = list(offered)
        self._names = names

    def named(self, listener: str) -> list[Bound]:
        """Return the sockets that a socket unit gave to a listener by name."""
        kept = [one for one in self._have if one.listener == listener and not one.address]
        new = [one for one in self._offered if one.name == listener]
        self._offered = [one for one in self._offered if one not in new]
        return kept + [Bound(listener, "", one.sock, "systemd") for one in new]

    def at(self, listener: str, text: str, address: Address) -> Bound | None:
        """Return the socket that listens at an address; None if there is none."""
        exact = [one for one in self._have if one.address == text]
        for one in exact or [one for one in self._have if self._is_free(one, listener, address)]:
            # Where it came from, and its name in the store, stay with it.
            return one if one.listener == listener else dataclasses.replace(one, listener=listener)
        for offer in self._offered:
            if covers(offer.sock, address):
                self._offered.remove(offer)
                return Bound(listener, text, offer.sock, "systemd")
        return None

    def _is_free(self, one: Bound, listener: str, address: Address) -> bool:
        """Tell whether a socket serves an address, and is not kept for another listener's name."""
        is_kept = not one.address and one.listener != listener and one.listener in self._names
        return not is_kept and covers(one.sock, address)


def _covering(bound: Sequence[Bound], listener: Listener, address: Address) -> Bound | None:
    """Return the listener's socket that was taken for another address and serves this one too."""
    for one in bound:
        if one.listener == listener.name and covers(one.sock, address):
            return one
    return None


def covers(sock: socket.socket, address: Address) -> bool:
    """Tell whether a listening socket serves `address`."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    host, port = sock.getsockname()[:2]
    if port != address.port or not port:
        return False
    if host == address.host:
        return True
    # A socket unit's ListenStream=25 is one socket for both families.
    both = host == "::" and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    return both and address.host == "0.0.0.0"


def shown_name(sock: socket.socket) -> str:
    """Return where a socket listens, as it is written in the configuration."""
    name = sock.getsockname()
    if not isinstance(name, tuple):
        return str(name)
    return f"[{name[0]}]:{name[1]}" if sock.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"


def _bind(
    listener: str,
    text: str,
    address: Address,
    deadline: float,
    ours: Callable[[int], bool],
    warnings: list[str],
) -> Bound | None:
    """Open one socket; None (and a warning) where the kernel has no IPv6."""
    while True:
        try:
            return Bound(listener, text, _listen(address))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and SYSTEM.monotonic() < deadline:
                time.sleep(_RETRY_S)
                continue
            if address.family is socket.AF_INET6 and _is_without_ipv6(error, address):
                warnings.append(f"{address}: this system has no IPv6; not listening there")
                return None
            raise ListenError(_why(address, listener, error, ours)) from error


def _listen(address: Address) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        # Without it a restart waits for the TIME_WAIT of old sessions.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family is socket.AF_INET6:
            # "0.0.0.0:25" and "[::]:25" stand side by side only so.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(_bindable(address))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _bindable(address: Address) -> tuple[object, ...]:
    """Return what bind() takes: with the scope id for fe80::1%eth0."""
    found = socket.getaddrinfo(
        address.host,
        address.port,
        address.family,
        socket.SOCK_STREAM,
        0,
        socket.AI_NUMERICHOST,
    )
    return tuple(found[0][4])


def _is_without_ipv6(error: OSError, address: Address) -> bool:
    """Tell "no IPv6 here" from "that address is not this machine's"."""
    if error.errno == errno.EAFNOSUPPORT:
        return True
    return error.errno == errno.EADDRNOTAVAIL and address.host in ("::", "::1")


def _why(address: Address, listener: str, error: OSError, ours: Callable[[int], bool]) -> str:
    where = f'cannot listen on {address} (listener "{listener}")'
    if error.errno == errno.EADDRINUSE:
        return f"{where}: {_held(address, ours)}"
    if error.errno == errno.EACCES:
        return f"{where}: a port below 1024 needs root or CAP_NET_BIND_SERVICE"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: this machine does not have that address (see `ip address`)"
    return f"{where}: {error.strerror}"


def _held(address: Address, ours: Callable[[int], bool]) -> str:
    holder = holder_of(address.host, address.port)
    if holder is None:
        return unseen(address.host, address.port)
    if ours(holder.pid):
        return (
            f"held by this relayd under another address of the same port; {NEEDS_RESTART}: "
            "systemctl restart relayd"
        )
    return holder.advice()


def close_all(bound: Iterable[Bound]) -> None:
    """Close sockets, whatever state they are in."""
    for one in bound:
        with contextlib.suppress(OSError):
            one.sock.close()


def by_listener(bound: Iterable[Bound]) -> tuple[tuple[str, int], ...]:
    """Return (listener name, descriptor), as a worker gets them."""
    return tuple((one.listener, one.fd) for one in bound)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a child: nothing of what systemd said to the master alone."""
    private = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_")
    return {name: value for name, value in environ.items() if not name.startswith(private)}
