"""A [[device]] in a file of its own, conf.d/NAME.toml: written, checked, or taken back.

`Written` is what `relayd device add` makes and `relayd device delete` may remove: it begins with
our mark and holds that one device and nothing else. Whatever else there is belongs to whoever
wrote it, and is named by file and line.
"""

from __future__ import annotations

import ipaddress
import json
import os
import tomllib
from collections.abc import Mapping
from typing import Final, TypeAlias

from relayd.config import rules
from relayd.config.load import Loaded
from relayd.config.model import Config, Device

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MARK: Final = "# Made by `relayd device add`; `relayd device delete {name}` removes it.\n"
_MARK_BEGINS: Final = "# Made by `relayd device add`;"
_KEYS: Final = ("name", "networks", "upstream", "from", "allow_to", "priority")


def path_of(config: str, name: str) -> str:
    """Return where a device's own file is."""
    return os.path.join(os.path.dirname(config), "conf.d", f"{name}.toml")


def render(values: Mapping[str, str | list[str]]) -> bytes:
    """Return the file's octets. values: by key, as in the configuration; empty ones are left."""
    lines = [MARK.format(name=values["name"]), "[[device]]\n"]
    # A JSON text in ASCII is a TOML basic string, its escapes included.
    lines += [f"{key} = {json.dumps(values[key])}\n" for key in _KEYS if values.get(key)]
    return "".join(lines).encode("ascii")


def is_written(path: str, name: str) -> bool:
    """Tell whether a file is ours: our mark, this one device, and nothing else."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        data = tomllib.loads(text)
    except (OSError, ValueError):
        return False
    rows = data.pop("device", None)
    return (
        text.startswith(_MARK_BEGINS)
        and not data
        and isinstance(rows, list)
        and [row.get("name") for row in rows] == [name]
    )


def network_of(text: str) -> tuple[str, str]:
    """Return a network as it is to be written, and what is wrong with it ("" if nothing)."""
    complaint = rules.network(text)
    return ("", complaint) if complaint else (str(ipaddress.ip_network(text)), "")


def conflict(loaded: Loaded, name: str, network: str) -> str:
    """Return why there cannot be such a device; "" when there can."""
    # SECURITY: it becomes a file's name; with ../ in it that file would be anywhere.
    complaint = rules.name(name)
    if complaint:
        return complaint
    new = ipaddress.ip_network(network)
    config, tree = loaded.config, loaded.tree
    for index, each in enumerate(config.device):
        where = f"{shown(each)} at {tree.place(('device', index, 'name'))}"
        if each.name.lower() == name.lower():
            return f"{where} has this name already; choose another, or change it there"
        for text in each.networks:
            theirs = ipaddress.ip_network(text)
            if theirs == new:
                return f"{where} has {network} already; change it there"
    for user in config.user:
        if user.name.lower() == name.lower():
            return f"[[user]] {user.name} has this name already; choose another"
    return ""


def shadowed(config: Config) -> set[str]:
    """Return the names of devices that can never match: earlier ones have all their addresses."""
    found: set[str] = set()
    for index, each in enumerate(config.device):
        mine = [ipaddress.ip_network(text) for text in each.networks]
        earlier = [
            ipaddress.ip_network(text) for one in config.device[:index] for text in one.networks
        ]
        if mine and all(any(_covers(wide, one) for wide in earlier) for one in mine):
            found.add(each.name)
    return found


def shadow(before: Config, after: Config, name: str) -> str:
    """Return who would never be reached any more, or at all, with the device `name`; "" if none."""
    lost = shadowed(after) - shadowed(before)
    if not lost:
        return ""
    if name in lost:
        new = next(each for each in after.device if each.name == name)
        first = next(each for each in after.device if _has(each, new) and each.name != name)
        return (
            f"{', '.join(new.networks)} is in {', '.join(first.networks)} of {shown(first)}, which"
            " comes first and wins: this device would never be reached. Move it above by hand, or"
            " narrow that one"
        )
    others = ", ".join(sorted(lost))
    return f"it comes before {others} and has their addresses: they would never be reached"


def shown(device: Device) -> str:
    """Return a device as its table is written."""
    return f'[[device]] "{device.name}"'


def _has(wide: Device, each: Device) -> bool:
    theirs = [ipaddress.ip_network(text) for text in wide.networks]
    return any(_covers(one, ipaddress.ip_network(text)) for one in theirs for text in each.networks)


def _covers(wide: Network, each: Network) -> bool:
    if isinstance(wide, ipaddress.IPv4Network):
        return isinstance(each, ipaddress.IPv4Network) and each.subnet_of(wide)
    return isinstance(each, ipaddress.IPv6Network) and each.subnet_of(wide)
