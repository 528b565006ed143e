"""What a value must be beyond its type: one rule for each key that has one.

A rule takes the value and returns what is wrong and, after a semicolon, what to do; None when
it is fine. A rule on a list is asked about each element. Empty text means "not set" and is
asked only of rules that say so (`required`).

Source: RFC 1123 §2.1, RFC 5321 §2.3.5 (names), RFC 4291 §2.2 (addresses)
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from datetime import date
from typing import Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

from relayd.config import model, units

Rule: TypeAlias = "Callable[[object], str | None]"

_LABEL: Final = r"(?!-)[A-Za-z0-9_\u00a1-\uffff-]{1,63}(?<!-)"
_DOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ADDRESS: Final = re.compile(rf"[^\s@\"<>(),:;\[\]\\]{{1,64}}@{_LABEL}(?:\.{_LABEL})*")
_PATTERN: Final = re.compile(rf"\*|(?:[^\s@]{{1,64}}@)?(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_USER: Final = re.compile(r"[^\s\x00-\x1f\x7f]{1,128}")
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")
_KEYWORD: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_HASH: Final = re.compile(
    r"\$argon2(?:id|i|d)\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+"
)


def between(low: int, high: int) -> Rule:
    """Return the rule for a number from `low` to `high`."""

    def rule(value: object) -> str | None:
        if isinstance(value, int) and low <= value <= high:
            return None
        return f"{shown(value)} is out of range; choose {low} to {high}"

    return rule


def lasting(low: str, high: str) -> Rule:
    """Return the rule for a duration from `low` to `high`."""

    def rule(value: object) -> str | None:
        if isinstance(value, float) and units.seconds(low) <= value <= units.seconds(high):
            return None
        told = units.show_seconds(value) if isinstance(value, float) else shown(value)
        return f'{told} is out of range; choose "{low}" to "{high}"'

    return rule


def sized(low: str, high: str) -> Rule:
    """Return the rule for a size from `low` to `high`."""

    def rule(value: object) -> str | None:
        if isinstance(value, int) and units.octets(low) <= value <= units.octets(high):
            return None
        told = units.show_octets(value) if isinstance(value, int) else shown(value)
        return f'{told} is out of range; choose "{low}" to "{high}"'

    return rule


def matching(pattern: re.Pattern[str], wanted: str) -> Rule:
    """Return the rule for text that is empty or matches wholly."""

    def rule(value: object) -> str | None:
        if not value or pattern.fullmatch(str(value)):
            return None
        return f'"{shown(value)}" is no {wanted}'

    return rule


def required(rule: Rule, example: str) -> Rule:
    """Return `rule` with the addition that there must be a value."""

    def both(value: object) -> str | None:
        return rule(value) if value else f"empty; write {example}"

    return both


def shown(value: object) -> str:
    """Return a value for a message: bounded, without control characters."""
    text = str(value)
    clean = "".join(each if each.isprintable() else "?" for each in text[:80])
    return clean + ("…" if len(text) > 80 else "")


def absolute(value: object) -> str | None:
    """Check a path of a file or folder."""
    path = str(value)
    if not path or (path.startswith("/") and "\x00" not in path):
        return None
    return f'"{shown(path)}" is no absolute path; begin it with /'


def host_port(value: object) -> str | None:
    """Check `192.0.2.1:25`, `[::]:25`: where to listen, so an address and never a name."""
    if not value:
        return None
    host, colon, port = str(value).rpartition(":")
    if not colon or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        return f'"{shown(value)}" is no address with port; write "192.0.2.1:25" or "[::]:25"'
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return f'"{shown(host)}" is no IP address; write "0.0.0.0", "[::]" or an own address'
    return _port(port)


def peer_port(value: object) -> str | None:
    """Check `smtp.example.com:587`: whom to call, so a name or an address."""
    if not value:
        return None
    host, colon, port = str(value).rpartition(":")
    if not colon:
        return f'"{shown(value)}" has no port; write "{shown(value)}:587"'
    if not _is_address(host.strip("[]")) and not _DOMAIN.fullmatch(host):
        return f'"{shown(host)}" is no host name; write "smtp.example.com:587"'
    return _port(port)


def _port(port: str) -> str | None:
    if port.isascii() and port.isdigit() and 1 <= int(port) <= 65535:
        return None
    return f'"{shown(port)}" is no port; choose 1 to 65535'


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def network(value: object) -> str | None:
    """Check `192.168.10.0/24`, `192.168.10.5`, `fd00::/64`."""
    text = str(value)
    try:
        parsed = ipaddress.ip_network(text)
    except ValueError:
        pass
    else:
        if isinstance(parsed, ipaddress.IPv6Network) and parsed.network_address.ipv4_mapped:
            return f'"{text}" is an IPv4 network in IPv6 form; write it as IPv4'
        return None
    try:
        whole = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return f'"{shown(text)}" is no network; write "192.168.10.5/32" or "192.168.10.0/24"'
    host = text.partition("/")[0]
    return (
        f'"{shown(text)}" has host bits set; write "{whole}" for the network or '
        f'"{host}/{whole.max_prefixlen}" for the one host'
    )


def https(value: object) -> str | None:
    """Check an https URL without credentials, query or fragment."""
    url = _url(value, {"https"})
    if not value or (url is not None and not url.query and not url.fragment):
        return None
    return f'"{shown(value)}" is no https address; write "https://host/path"'


def proxy(value: object) -> str | None:
    """Check `http://host:port` of a CONNECT proxy."""
    if "@" in str(value):  # SECURITY: not shown, it may be a password
        return "a name and password in the address are not supported; allow this host at the proxy"
    url = _url(value, {"http", "https"})
    if not value or (url is not None and url.port):
        return None
    return f'"{shown(value)}" is no proxy; write "http://proxy.example.com:3128"'


def _url(value: object, schemes: set[str]) -> SplitResult | None:
    """Return the URL's parts; None unless it has a host and no credentials."""
    try:
        url = urlsplit(str(value))
        port_is_one = url.port is None or url.port > 0
    except ValueError:
        return None
    is_whole = url.scheme in schemes and bool(url.hostname) and port_is_one
    return url if is_whole and "@" not in url.netloc and " " not in url.geturl() else None


def spool_url(value: object) -> str | None:
    """Check `sqlite:///path`."""
    text = str(value)
    if text.startswith(("postgresql://", "postgres://")):
        return 'PostgreSQL is not available yet; write "sqlite:///var/spool/relayd/spool.db"'
    path = text.removeprefix("sqlite://")
    if path == text or not path.startswith("/") or path.endswith("/"):
        return f'"{shown(text)}" is no spool; write "sqlite:///var/spool/relayd/spool.db"'
    return None


def day(value: object) -> str | None:
    """Check an ISO date."""
    if not value:
        return None
    try:
        date.fromisoformat(str(value))
    except ValueError:
        return f'"{shown(value)}" is no date; write "2027-05-31"'
    return None


def password_hash(value: object) -> str | None:
    """Check the form of an argon2 hash; access.passwords judges its cost."""
    if not value or _HASH.fullmatch(str(value)):
        return None
    return "no argon2 hash; make one with: relayd user add NAME"


def mailbox(value: object) -> str | None:
    """Check the mailbox sent through."""
    return None if value == "sender" else mail(value)


def host_name(value: object) -> str | None:
    """Check what the banner says: a host name or an address literal."""
    text = str(value)
    if text.startswith("[") and _is_address(text.strip("[]").removeprefix("IPv6:")):
        return None
    if not text or _DOMAIN.fullmatch(text):
        return None
    return f'"{shown(text)}" is no host name; write "relay.example.com"'


mail: Final = matching(_ADDRESS, 'mail address; write "alerts@example.com"')
domain: Final = matching(_DOMAIN, 'domain; write "example.com"')
pattern: Final = matching(
    _PATTERN, 'address pattern; write "a@example.com", "*@example.com", "example.com" or "*"'
)
name: Final = required(
    matching(_NAME, "name; use letters, digits, dot, dash and underscore, 63 at most"),
    'a name, like "lan"',
)
user_name: Final = required(
    matching(_USER, "user name; use no blanks, 128 characters at most"), 'a name, like "printer1"'
)

_FOLDER: Final = required(absolute, "an absolute path")

RULES: Final[Mapping[type[object], Mapping[str, Rule]]] = {
    model.Server: {
        "hostname": host_name,
        "default_domain": domain,
        "workers": between(1, 64),
        "cutthrough_timeout": lasting("100ms", "1m"),
        "graceful_timeout": lasting("1s", "1h"),
        "runtime_dir": _FOLDER,
        "state_dir": _FOLDER,
    },
    model.Listener: {
        "name": name,
        "address": required(host_port, '"127.0.0.1:25"'),
        "proxy_protocol_from": network,
    },
    model.TlsSettings: {
        "certificate": absolute,
        "key": absolute,
        "vault_url": https,
        "poll": lasting("1m", "1d"),
    },
    model.Limits: {
        "max_message_size": sized("64KiB", "150MB"),
        "max_recipients": between(1, 10_000),
        "max_connections": between(1, 100_000),
        "max_connections_per_device": between(1, 100_000),
        "idle_timeout": lasting("1s", "1h"),
        "data_timeout": lasting("1s", "1h"),
        "min_data_rate": between(0, 1_000_000),
        "max_errors": between(1, 1000),
        "min_free_disk": sized("0", "1000GB"),
    },
    model.Spool: {
        "url": spool_url,
        "retry": lasting("1s", "1d"),
        "max_age": lasting("1m", "30d"),
        "warn_after": lasting("0", "30d"),
        "history": lasting("0", "3650d"),
        "keep_sent_content": lasting("0", "365d"),
        "keep_failed_content": lasting("0", "3650d"),
    },
    model.Upstream: {
        "name": name,
        "tenant": matching(_TENANT, 'tenant; write "contoso.onmicrosoft.com" or the tenant ID'),
        "client_id": matching(_TENANT, "application (client) ID; copy it from the registration"),
        "certificate_file": absolute,
        "credential_expires": day,
        "mailbox": mailbox,
        "mailbox_id": matching(_USER, "object ID or user principal name"),
        "allowed_senders": pattern,
        "own_domains": required(domain, '"example.com"'),
        "mime_limit": sized("64KiB", "150MB"),
        "concurrency": between(1, 1000),
        "messages_per_minute": between(0, 10_000),
        "recipients_per_day": between(0, 1_000_000),
        "notify": mail,
        "host": peer_port,
        "mailboxes": mail,
    },
    model.RateLimits: {
        "per_minute": between(0, 1_000_000),
        "per_hour": between(0, 1_000_000),
        "per_day": between(0, 1_000_000),
    },
    model.Submitter: {
        "from_": mail,
        "default_from": mail,
        "allow_from": required(pattern, '"*@example.com"'),
        "allow_to": required(pattern, '"example.com" or "*"'),
        "hide": required(matching(_KEYWORD, "EHLO keyword"), '"STARTTLS"'),
        "max_age": lasting("0", "30d"),
        "expect_every": lasting("0", "365d"),
    },
    model.Device: {"name": name, "networks": network},
    model.User: {
        "name": user_name,
        "password_hash": password_hash,
    },
    model.Cloud: {
        "name": name,
        "authority": required(https, '"https://login.microsoftonline.com"'),
        "graph": required(https, '"https://graph.microsoft.com/v1.0"'),
        "graph_scope": required(https, '"https://graph.microsoft.com/.default"'),
        "smtp": peer_port,
        "smtp_scope": required(https, '"https://outlook.office365.com/.default"'),
        "ca_file": absolute,
    },
    model.Http: {
        "proxy": proxy,
        "ca_file": absolute,
        "connect_timeout": lasting("1s", "2m"),
        "token_timeout": lasting("1s", "2m"),
        "send_timeout": lasting("5s", "10m"),
        "upload_timeout": lasting("5s", "10m"),
    },
    model.Admin: {"address": host_port},
    model.Log: {"file": absolute},
}


def rule_for(row: type[object], field: str) -> Rule | None:
    """Return the rule for a field of a class, its parents' included."""
    for each in row.__mro__:
        if (rule := RULES.get(each, {}).get(field)) is not None:
            return rule
    return None
