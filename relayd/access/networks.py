"""Which [[device]] a peer is, by its address; first match wins.

Source: RFC 4291 §2.5.5.2 (IPv4-mapped addresses).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final, TypeAlias

from relayd.config.model import Device

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Ip: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_REMEMBERED: Final = 4096


def fold_ip(text: str) -> Ip | None:
    """Return an address, its zone dropped, "::ffff:" folded away; None for what is none."""
    try:
        ip = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


class DeviceTable:
    """Looks devices up; one for each worker. devices: networks already checked."""

    __slots__ = ("_known", "_rows")

    def __init__(self, devices: Iterable[Device]) -> None:
        self._rows = [
            (network, device)
            for device in devices
            for text in device.networks
            if (network := _network(text)) is not None
        ]
        self._known: dict[str, Device | None] = {}

    def find(self, ip: str) -> Device | None:
        """Return the device at `ip` (text, as the socket says it); None if none is."""
        try:
            return self._known[ip]
        except KeyError:
            pass
        address = fold_ip(ip)
        found = None
        if address is not None:
            # A network of the other family holds no address: `in` is False, not an error.
            found = next((device for network, device in self._rows if address in network), None)
        if len(self._known) >= _REMEMBERED:  # somebody walks through addresses: start anew
            self._known.clear()
        self._known[ip] = found
        return found


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None  # the checker refuses it; nobody is let in by it
