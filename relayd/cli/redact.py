"""Takes secrets and, by default, addresses out of text that leaves the house.

    Redactor(secrets=["…"], domains=["contoso.com"]).text(line)

Two nets, because one has holes: values that are known to be secret are replaced wherever they
stand, also in base64, URL or JSON form; and what looks like a secret is replaced whether it is
known or not. An address becomes `u1@d1.example`, a host of a known domain `h1.d1.example`, an IP
address `ip1`: the same one always the same, so that a reader can still follow a message.

Left alone: loopback and "any" addresses, Microsoft's own hosts, queue ids, request-ids.

SECURITY: this may hide too much, never too little.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, quote_plus

HIDDEN: Final = "***"
_SHORTEST: Final = 4
"""A shorter secret would take half of the text with it; its key hides it all the same."""

_NAMES: Final = (
    r"(?:[\w-]*(?:secret|passw(?:or)?d|passphrase|authorization|assertion|cookie|api_?key"
    r"|private_?key|access_?key|account_?key|password_hash|encryption_key)[\w-]*|(?:access_|refresh_|id_)?token|sas|sig|pwd)"
)
_SHAPES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (
        re.compile(
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [^-]*-----|\Z)", re.DOTALL
        ),
        HIDDEN,
    ),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)?"), HIDDEN),
    (re.compile(r"(?i)\b(bearer|basic|negotiate)\s+[A-Za-z0-9+/=._~-]{6,}"), rf"\1 {HIDDEN}"),
    (re.compile(r"(?i)\b(AUTH\s+[A-Z0-9-]+)\s+[^\s|\"\\]+"), rf"\1 {HIDDEN}"),
    (re.compile(r"\$(?:argon2[a-z]*|2[aby]|[156]|y)\$[^\s\"']+"), HIDDEN),
    (re.compile(r"[A-Za-z0-9_~.-]{3}\dQ~[A-Za-z0-9_~.-]{20,}"), HIDDEN),  # Entra's client secrets
    (re.compile(r"(\w+://)[^\s/\"']+@"), rf"\1{HIDDEN}@"),  # a password may have an @ in it
    (re.compile(r"(?i)\b((?:set-)?cookie\s*:\s*)[^\n|\"]+"), rf"\1{HIDDEN}"),
    (
        re.compile(
            rf"(?i)(\b{_NAMES}[\"']?\s*[=:]\s*)(\"(?:[^\"\\]|\\.)*\"|'[^']*'|\[[^\]]*\]|[^\s\"'}}\]]+)"
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?i)(\b(?:subject|helo)=)(\"(?:[^\"\\]|\\.)*\"|\S+)"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)(\"(?:subject|helo|login)\":\s*)\"(?:[^\"\\]|\\.)*\""), rf'\1"{HIDDEN}"'),
    (re.compile(r"(?i)\b((?:EHLO|HELO|LHLO)\s+)[^\s|\"\\]+"), rf"\1{HIDDEN}"),
)
"""What looks like a secret or like content -> what stands there instead."""

_FORMS: Final = re.compile(r"(_file|_env|_credential|_expires)\b")
_ADDRESS: Final = re.compile(
    r"(?:\"(?:[^\"\\\n]|\\.)+\"|[^\s<>()\[\]\\,;:@\"'=|][^\s<>()\[\]\\,;:@\"=|]*)@((?:[\w-]+\.)+[\w-]+|\[[^\]\s]+\]|[\w-]+)"
)
_V4: Final = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?!\d|\.\d)")
_V6: Final = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f.]{0,15}(?![\w:])")


class Redactor:
    """One bundle's: the same thing gets the same pseudonym wherever it stands.

    secrets: known values. domains: of the house, replaced also where no address is.
    names:   other words that tell who it is (tenant, client id), with what replaces them.
    keeps_addresses: only secrets go.
    """

    def __init__(
        self,
        *,
        secrets: Iterable[str] = (),
        domains: Iterable[str] = (),
        names: Iterable[tuple[str, str]] = (),
        keeps_addresses: bool = False,
    ) -> None:
        self._keeps_addresses = keeps_addresses
        forms = {form for one in secrets if len(one) >= _SHORTEST for form in _forms(one)}
        self._secrets = _any_of(forms)
        self._known: dict[str, dict[str, str]] = {}
        self._domains: set[str] = set()
        self._names = {one.lower(): other for one, other in names if one}
        self._named = _any_of(self._names, whole=True)
        for one in domains:
            self._domain(one)
            self._domains.add(one.lower())

    def text(self, text: str) -> str:
        """Return `text` fit to be sent to somebody."""
        if self._secrets is not None:
            text = self._secrets.sub(HIDDEN, text)
        for shape, instead in _SHAPES:
            text = shape.sub(lambda m, i=instead: _unless_form(m, i), text)  # type: ignore[misc]
        return text if self._keeps_addresses else self._without_addresses(text)

    def _without_addresses(self, text: str) -> str:
        text = _ADDRESS.sub(self._address, text)
        if self._named is not None:
            text = self._named.sub(lambda match: self._names[match[0].lower()], text)
        for domain in sorted(self._domains, key=len, reverse=True):
            pattern = rf"(?i)(?<![\w@.-])((?:[\w-]+\.)*){re.escape(domain)}(?![\w-])"
            text = re.sub(pattern, lambda m, d=domain: self._host(m[1], d), text)  # type: ignore[misc]
        return _V6.sub(self._ip, _V4.sub(self._ip, text))

    def _address(self, match: re.Match[str]) -> str:
        local, _, domain = match[0].rpartition("@")
        if domain.endswith(".example") and re.fullmatch(r"u\d+", local):
            return match[0]
        if "." in domain and not domain.startswith("["):
            self._domains.add(domain.lower())
        if local == "*":
            return f"*@{self._domain(domain)}"
        return f"{self._pseudonym('u', match[0])}@{self._domain(domain)}"

    def _host(self, labels: str, domain: str) -> str:
        host = f"{self._pseudonym('h', labels)}." if labels else ""
        return f"{host}{self._domain(domain)}"

    def _domain(self, domain: str) -> str:
        return f"{self._pseudonym('d', domain)}.example"

    def _ip(self, match: re.Match[str]) -> str:
        try:
            ip = ipaddress.ip_address(match[0])
        except ValueError:
            return match[0]
        if ip.is_loopback or ip.is_unspecified:
            return match[0]
        return self._pseudonym("ip", str(ip))

    def _pseudonym(self, kind: str, value: str) -> str:
        known = self._known.setdefault(kind, {})
        return known.setdefault(value.lower(), f"{kind}{len(known) + 1}")


def _forms(secret: str) -> Iterable[str]:
    """Return a secret as it may stand in a text."""
    octets = secret.encode("utf-8", "surrogateescape")
    yield secret
    yield from (quote(secret, safe=""), quote(secret), quote_plus(secret))
    yield json.dumps(secret)[1:-1]
    # Base64 depends on what stands before: its three shifts, less the octets that are shared.
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + octets).decode()
        start = (0, 2, 3)[shift]
        core = encoded[start:].rstrip("=")[: len(encoded) - start - 4]
        if len(core) >= 2 * _SHORTEST:
            yield core


def _any_of(words: Iterable[str], *, whole: bool = False) -> re.Pattern[str] | None:
    longest_first = sorted(filter(None, words), key=len, reverse=True)
    if not longest_first:
        return None
    pattern = "|".join(map(re.escape, longest_first))
    # Without case: %2f is %2F.
    return re.compile(rf"(?i)(?<![\w-])(?:{pattern})(?![\w-])" if whole else f"(?i){pattern}")


def _unless_form(match: re.Match[str], instead: str) -> str:
    """Replace, but leave names of files and dates that only sound like secrets."""
    if instead == rf"\1{HIDDEN}" and _FORMS.search(match[1]):
        return match[0]
    return match.expand(instead)
