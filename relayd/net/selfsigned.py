"""The self-signed source: is what lies in state_dir/tls still good, and for what names must it be.

The leaf must last a third of its 90 days and name the host and all its addresses; else it is
made anew, by `authority`, which a worker imports only then. Devices may trust ca.crt, beside it.

Source: RFC 6125 §6 (names), netdevice(7).
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
from datetime import timedelta
from typing import Final

from relayd.clock import Clock
from relayd.config.model import Config
from relayd.net.pair import CertificateRefused, Facts, Mark, Pair, facts, marks, words

_FOLDER: Final = "tls"
_LEAF_FILE: Final = "leaf.pem"
_RENEW_BEFORE: Final = timedelta(days=30)
_MOST_NAMES: Final = 100
_MOST_ADDRESSES: Final = 256


class SelfSigned:
    """Our own pair; one for each worker, all share the files."""

    def __init__(self, config: Config, clock: Clock) -> None:
        leaf = os.path.join(config.server.state_dir, _FOLDER, _LEAF_FILE)
        self._pair = Pair(leaf, leaf)
        self._config = config
        self._clock = clock
        self._seen: tuple[tuple[Mark, ...], Facts] | None = None

    def pair(self) -> tuple[Pair, str]:
        """Return it, after making what is missing or ends soon, and any trouble with that.

        raises: CertificateRefused - the folder cannot be written, and there is nothing in it.
        """
        leaf, names = self._pair.certificate, names_of(self._config)
        if not self._is_good(names):
            try:
                self._renew(leaf, names)
            except (OSError, ValueError) as error:
                if not os.path.isfile(leaf):
                    raise CertificateRefused(f"{leaf} cannot be made: {words(error)}") from error
                return self._pair, f"{leaf} not renewed: {words(error)}"
        return self._pair, ""

    def _renew(self, leaf: str, names: frozenset[str]) -> None:
        from relayd.net.authority import renew  # noqa: PLC0415  imports cryptography

        host = self._config.server.hostname
        ordered = sorted(names, key=lambda name: (name != host, name))
        renew(leaf, ordered, hostname=host, is_good=lambda: self._is_good(names), clock=self._clock)

    def _is_good(self, names: frozenset[str]) -> bool:
        """Tell whether the leaf lasts, and names all that devices may call us."""
        try:
            found = self._facts()
        except (OSError, ValueError):
            return False
        return found.end - self._clock.utcnow() > _RENEW_BEFORE and names <= found.names

    def _facts(self) -> Facts:
        """Read the leaf, if it is another than last time: it takes 3 ms of the hub."""
        now = marks(self._pair)
        if self._seen is None or self._seen[0] != now:
            self._seen = now, facts(self._pair)
        return self._seen[1]


def names_of(config: Config) -> frozenset[str]:
    """Return all that devices may call us: host name, localhost, our addresses.

    An address a listener is bound to counts, and for "all addresses" all the host has now,
    but link-local ones; at most a hundred, so that no docker host makes a monster.
    """
    names = {"localhost", "127.0.0.1", "::1"}
    if config.server.hostname and config.server.hostname.isascii():
        names.add(config.server.hostname)
    everywhere = False
    for one in config.listener:
        for text in one.address:
            host = text.rpartition(":")[0].strip("[]")
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(host)
                everywhere |= address.is_unspecified
                if not address.is_unspecified:
                    names.add(str(address))
    if everywhere:
        found = sorted(local_addresses(), key=lambda text: (":" in text, text))
        names |= set(found[: _MOST_NAMES - len(names)])
    return frozenset(names)


def local_addresses() -> set[str]:
    """Return this host's addresses, link-local ones left out; empty where it will not say."""
    return {
        text
        for text in (*_local_ipv4(), *_local_ipv6())
        if not ipaddress.ip_address(text).is_link_local
    }


def _local_ipv4() -> list[str]:
    """Ask the kernel (SIOCGIFCONF): struct ifreq is 40 octets, the address at 20."""
    buffer = array.array("B", bytes(40 * _MOST_ADDRESSES))
    address, _ = buffer.buffer_info()
    request = struct.pack("iL", len(buffer), address)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = fcntl.ioctl(sock.fileno(), 0x8912, request)
    except OSError:
        return []
    used = struct.unpack("iL", answer)[0]
    octets = buffer.tobytes()
    return [socket.inet_ntoa(octets[at + 20 : at + 24]) for at in range(0, used, 40)]


def _local_ipv6() -> list[str]:
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            return [str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))) for line in file]
    except (OSError, ValueError):
        return []
