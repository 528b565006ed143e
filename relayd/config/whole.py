"""What must hold between keys, and what is allowed but dangerous; pure, on the whole Config.

`problems` before defaults are resolved (what was written), `warnings` after.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from itertools import combinations
from typing import Final, TypeAlias

from relayd.config import clouds, rules, units
from relayd.config.model import Config, Device, Listener, Upstream
from relayd.config.read import Problem
from relayd.config.resolve import carried

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"

_GUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_WIDE: Final = {4: 24, 6: 64}
_EXPIRY_NOTICE_DAYS: Final = 30
EXCHANGE_SLOTS: Final = 4
_NEEDED: Final[Mapping[str, str]] = {
    "tenant": 'write "contoso.onmicrosoft.com" or the tenant ID',
    "client_id": "copy the application (client) ID from the app registration",
    "mailbox": 'write the address sent through, "alerts@contoso.com"',
    "client_secret": 'write client_secret_file = "/etc/relayd/secrets/NAME"',
}


def problems(config: Config) -> list[Problem]:
    """Return what makes the configuration unusable though each key by itself is fine."""
    found: list[Problem] = []
    for check in (
        _names,
        _listeners,
        address_clashes,
        _certificate,
        _upstreams,
        _submitters,
        _spool,
    ):
        found += check(config)
    return found


def warnings(config: Config, *, today: date) -> list[Problem]:
    """Return what an administrator should know before it bites."""
    found: list[Problem] = []
    for check in (_nothing_to_do, _open_doors, _wide, _shadowed, _sizes, _slots, _times):
        found += check(config)
    for upstream in config.upstream:
        found += _credential(upstream, today)
        found += _identity(upstream)
    return found


def _names(config: Config) -> Iterator[Problem]:
    rows: dict[str, tuple[str, ...]] = {
        "listener": tuple(each.name for each in config.listener),
        "device": tuple(each.name for each in config.device),
        "user": tuple(each.name for each in config.user),
    }
    for table, names in rows.items():
        seen: dict[str, int] = {}
        for index, name in enumerate(names):
            first = seen.setdefault(name.lower(), index)
            if name and first != index:
                text = f'"{name}" is the name of another [[{table}]] too; give each its own'
                yield Problem((table, index, "name"), text)


def _listeners(config: Config) -> Iterator[Problem]:
    for index, each in enumerate(config.listener):
        path = ("listener", index)
        if not each.address:
            yield Problem((*path, "address"), 'is empty; write ["127.0.0.1:25"]')
        if each.tls in {"required", "implicit"} and config.tls.source == "off":
            text = (
                f'"{each.tls}" needs a certificate, but [tls] source is "off"; write "self-signed"'
            )
            yield Problem((*path, "tls"), text)
        if each.auth == "required" and each.tls == "off" and not each.auth_without_tls:
            text = (
                'nobody could log in: tls is "off" and auth_without_tls is false; '
                'write tls = "opportunistic"'
            )
            yield Problem((*path, "auth"), text)


def address_clashes(config: Config) -> Iterator[Problem]:
    """Find sockets of the listeners that cannot be bound beside each other."""
    bound = [
        (index, address, *_split(address))
        for index, each in enumerate(config.listener)
        for address in each.address
        if _split(address)[1]
    ]
    for (_, one, host, port), (index, other, host2, port2) in combinations(bound, 2):
        alike = host == host2 or (
            host.version == host2.version and (host.is_unspecified or host2.is_unspecified)
        )
        if alike and port == port2:
            what = "is listed twice" if one == other else f"cannot be bound beside {one}"
            yield Problem(
                ("listener", index, "address"), f'"{other}" {what}; keep one or change a port'
            )


def _split(address: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """Return an address that `rules.host_port` took; port 0 for one it did not take."""
    host, _, port = address.rpartition(":")
    try:
        return ipaddress.ip_address(host.strip("[]")), int(port)
    except ValueError:
        return ipaddress.IPv4Address(0), 0


def _certificate(config: Config) -> Iterator[Problem]:
    if config.tls.source != "file":
        return
    for key in ("certificate", "key"):
        if not getattr(config.tls, key):
            yield Problem(("tls", key), 'is missing; source = "file" needs certificate and key')


def _upstreams(config: Config) -> Iterator[Problem]:
    known = {each.name for each in (*config.cloud, *clouds.BUILT_IN)}
    for each in config.upstream:
        path = ("upstream", each.name)
        if each.cloud not in known:
            text = f'"{each.cloud}" is not configured; choose {_listed(known)} or add [cloud.NAME]'
            yield Problem((*path, "cloud"), text)
        for key, remedy in _NEEDED.items():
            if not getattr(each, key) and (key != "client_secret" or each.credential == "secret"):
                yield Problem((*path, key), f"is missing; {remedy}")
        if each.mailbox == "sender" and not each.allowed_senders:
            text = '"sender" needs allowed_senders; list the addresses it may send as'
            yield Problem((*path, "mailbox"), text)


def _submitters(config: Config) -> Iterator[Problem]:
    names = [each.name for each in config.upstream]
    for table, rows in (("device", config.device), ("user", config.user)):
        for index, each in enumerate(rows):
            path = (table, index)
            if each.upstream and each.upstream not in names:
                text = f"there is no [upstream.{each.upstream}]; {_choose(names)}"
                yield Problem((*path, "upstream"), text)
            elif not each.upstream and len(names) > 1:
                yield Problem((*path, "upstream"), f"is missing; {_choose(names)}")
            if isinstance(each, Device) and not each.networks:
                yield Problem((*path, "networks"), 'is missing; write ["192.168.10.5/32"]')
    for index, user in enumerate(config.user):
        if not user.password_hash and not user.cram_md5_password:
            text = "is missing; make one with: relayd user add NAME"
            yield Problem(("user", index, "password_hash"), text)


def _spool(config: Config) -> Iterator[Problem]:
    if not config.spool.retry:
        yield Problem(("spool", "retry"), 'is empty; write retry = ["1m", "5m", "15m", "1h"]')


def _nothing_to_do(config: Config) -> Iterator[Problem]:
    if not config.upstream:
        text = "nothing can be sent yet, MAIL is answered 451 4.3.5; next step: relayd setup"
        yield Problem((), text)


def _open_doors(config: Config) -> Iterator[Problem]:
    for index, each in enumerate(config.listener):
        if _is_local(each):
            continue
        if each.auth != "off" and each.auth_without_tls:
            text = "passwords cross the network in clear; only for devices that know no TLS"
            yield Problem(("listener", index, "auth_without_tls"), text)


def nobody_may_send(config: Config) -> Iterator[Problem]:
    """Find listeners that refuse everybody; only for a host without users of `relayd user`."""
    for index, each in enumerate(config.listener):
        if not config.device and not config.user and not _is_local(each):
            text = "nobody may send here: add a [[device]] with its networks, or relayd user add"
            yield Problem(("listener", index), text)


def _is_local(listener: Listener) -> bool:
    return all(_split(address)[0].is_loopback for address in listener.address)


def _networks(device: Device) -> list[Network]:
    return [ipaddress.ip_network(each) for each in device.networks]


def _wide(config: Config) -> Iterator[Problem]:
    for index, device in enumerate(config.device):
        for each in _networks(device):
            path = ("device", index, "networks")
            anywhere = ', and allow_to = ["*"] lets it write to anybody' * ("*" in device.allow_to)
            if each.prefixlen == 0:
                text = f"{each} is everybody{anywhere}; name the devices' own networks"
                yield Problem(path, text)
            elif each.is_global:
                text = f"{each} is on the public internet{anywhere}; no password is asked there"
                yield Problem(path, text)
            elif each.prefixlen < _WIDE[each.version] and not each.is_loopback:
                text = f"{each} is wide{anywhere}; whoever has an address there may send"
                yield Problem(path, text)


def _shadowed(config: Config) -> Iterator[Problem]:
    """Find devices that can never match, because an earlier one takes their addresses."""
    for index, device in enumerate(config.device):
        mine = _networks(device)
        for earlier in config.device[:index]:
            theirs = _networks(earlier)
            if mine and all(any(_covers(wide, each) for wide in theirs) for each in mine):
                text = f'never matched: "{earlier.name}" above has its addresses; move this up'
                yield Problem(("device", index, "networks"), text)
                break


def _covers(wide: Network, each: Network) -> bool:
    if isinstance(wide, ipaddress.IPv4Network):
        return isinstance(each, ipaddress.IPv4Network) and each.subnet_of(wide)
    return isinstance(each, ipaddress.IPv6Network) and each.subnet_of(wide)


def _sizes(config: Config) -> Iterator[Problem]:
    if config.upstream and config.limits.max_message_size > (limit := carried(config.upstream)):
        text = (
            f"{units.show_octets(config.limits.max_message_size)} is more than any way out "
            f"carries; mail above {units.show_octets(limit)} is refused all the same"
        )
        yield Problem(("limits", "max_message_size"), text)


def _slots(config: Config) -> Iterator[Problem]:
    for upstream in config.upstream:
        if upstream.concurrency > EXCHANGE_SLOTS:
            text = (
                f"{upstream.concurrency} is more than the {EXCHANGE_SLOTS} requests that Exchange "
                "takes at once for a mailbox; the others are answered 429 and wait; write 3"
            )
            yield Problem(("upstream", upstream.name, "concurrency"), text)


def _times(config: Config) -> Iterator[Problem]:
    if config.server.graceful_timeout < config.http.send_timeout:
        text = (
            f"shorter than [http] send_timeout ({units.show_seconds(config.http.send_timeout)}): "
            "a stop may cut off a send, and that mail may arrive twice"
        )
        yield Problem(("server", "graceful_timeout"), text)


def is_secret_id(text: str) -> bool:
    """Tell whether this is the ID Entra shows beside a client secret, and not its value."""
    return _GUID.fullmatch(text) is not None


def _credential(upstream: Upstream, today: date) -> Iterator[Problem]:
    path = ("upstream", upstream.name)
    for key in ("client_secret", "next_client_secret"):
        if is_secret_id(getattr(upstream, key).reveal()):
            text = "looks like the Secret ID; Entra shows the Value, once, in the column before"
            yield Problem((*path, key), text)
    if not upstream.credential_expires:
        return
    left = (date.fromisoformat(upstream.credential_expires) - today).days
    if left < 0:
        text = f"the credential ended {-left} days ago; make a new one and set it"
        yield Problem((*path, "credential_expires"), text)
    elif left <= _EXPIRY_NOTICE_DAYS:
        text = f"the credential ends in {left} days; make a new one, set it as next_client_secret"
        yield Problem((*path, "credential_expires"), text)


def _identity(upstream: Upstream) -> Iterator[Problem]:
    """Find ids that Entra cannot know, before it says so with an AADSTS number."""
    path = ("upstream", upstream.name, "client_id")
    if not _GUID.fullmatch(upstream.client_id):
        text = (
            f'"{rules.shown(upstream.client_id)}" has not the form'
            " 00000000-0000-0000-0000-000000000000; copy the Application (client) ID from the"
            " Overview of the app registration"
        )
        yield Problem(path, text)
    elif upstream.client_id.lower() == upstream.tenant.lower():
        yield Problem(path, "is the tenant ID; the Application (client) ID stands beside it")


def _choose(names: Iterable[str]) -> str:
    listed = _listed(names)
    return f"choose {listed}" if listed else "add it, or leave the key out"


def _listed(names: Iterable[str]) -> str:
    return " or ".join(f'"{name}"' for name in sorted(names))
