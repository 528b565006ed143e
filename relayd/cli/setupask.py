"""Questions on a bare terminal: a line each, the default in brackets, wrong answers in words.

No cursor movement, so that a serial console and a screen reader do as well. Each kind of answer is
a function that returns the value as it is kept, or raises Wrong with what is wanted; options of
the command line go through the same functions.
"""

from __future__ import annotations

import argparse
import getpass
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from relayd.cli import terminal
from relayd.config import rules
from relayd.config.clouds import BUILT_IN
from relayd.config.whole import is_secret_id

T = TypeVar("T")

NONE: Final = "none"
_TRIES: Final = 5
_GUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DOMAIN: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_LONGEST_SECRET: Final = 1000
_ROUTE_UP: Final = 1
_VIRTUAL: Final = ("docker", "br-", "virbr", "veth", "lxc", "lxd", "cni", "podman", "tun", "wg")


class Wrong(ValueError):
    """An answer that cannot be taken; the text says what is wanted."""


class GivenUp(Exception):
    """Nobody answers, or only nonsense."""


# ---- kinds of answers


def tenant(text: str) -> str:
    """Return a tenant's domain or id."""
    if _GUID.fullmatch(text) or _DOMAIN.fullmatch(text):
        return text
    raise Wrong('no tenant; write "contoso.onmicrosoft.com", or the Directory (tenant) ID')


def client_id(text: str) -> str:
    """Return an application id."""
    if _GUID.fullmatch(text):
        return text.lower()
    raise Wrong(
        "no Application (client) ID; it has the form 00000000-0000-0000-0000-000000000000 and"
        " stands in the Overview of the app registration"
    )


def object_id(text: str) -> str:
    """Return an object id; "" for none."""
    if not text or _GUID.fullmatch(text):
        return text.lower()
    raise Wrong("no Object ID; it has the form 00000000-0000-0000-0000-000000000000")


def mailbox(text: str) -> str:
    """Return the address of a mailbox."""
    complaint = rules.mail(text) if text else 'write "alerts@contoso.com"'
    if complaint:
        raise Wrong(f"no mailbox: {complaint}")
    return text


def secret(text: str) -> str:
    """Return a client secret. The words never show it."""
    if not text:
        raise Wrong("no secret: it is empty")
    if "\n" in text or "\r" in text or len(text) > _LONGEST_SECRET:
        raise Wrong("no client secret: that is one line, of 40 characters or so")
    if text != text.strip() or not text.isprintable() or not text.isascii():
        raise Wrong("no client secret: there are blanks, or characters that do not print, in it")
    if is_secret_id(text):
        raise Wrong(
            "this is the Secret ID, not the secret. Entra shows the Value, in the column before,"
            " only once, when the secret is made: make a new one and copy its Value"
        )
    return text


def networks(text: str) -> tuple[str, ...]:
    """Return networks of devices, separated by blanks or commas; () for "none"."""
    return () if text.lower() == NONE else tuple(dict.fromkeys(map(network, _split(text))))


def network(text: str) -> str:
    """Return one network, of somebody's own LAN."""
    complaint = rules.network(text)
    if complaint:
        raise Wrong(complaint)
    found = ipaddress.ip_network(text)
    if found.prefixlen == 0:
        raise Wrong(f"{text} is everybody, and no password would be asked; name your own networks")
    if found.is_global:
        raise Wrong(
            f"{text} is on the public internet, and no password would be asked there; if it is"
            " yours all the same: relayd device add"
        )
    return str(found)


def addresses(text: str) -> tuple[str, ...]:
    """Return addresses to listen on, separated by blanks or commas."""
    found = tuple(dict.fromkeys(_split(text)))
    for each in found:
        if complaint := rules.host_port(each):
            raise Wrong(complaint)
    if not found:
        raise Wrong('no address; write "0.0.0.0:25 [::]:25", or "127.0.0.1:25" for this host only')
    return found


def https(text: str) -> str:
    """Return an endpoint."""
    if not text or (complaint := rules.https(text)):
        raise Wrong(complaint if text else 'no address; write "https://host/path"')
    return text.rstrip("/")


def name(text: str) -> str:
    """Return the name of an upstream, of a cloud."""
    if not _NAME.fullmatch(text):
        raise Wrong(f'"{rules.shown(text)}" is no name; use letters, digits, dash, underscore')
    return text


def _split(text: str) -> list[str]:
    return text.replace(",", " ").split()


def clouds() -> list[str]:
    """Return Microsoft's own."""
    return [each.name for each in BUILT_IN]


class Given:
    """The options of the command line, each judged as an answer would be.

    wrong: what cannot be used, by option. "" or None: not given.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.wrong: list[str] = []
        self.tenant = self._one("--tenant", tenant, options.tenant)
        self.client_id = self._one("--client-id", client_id, options.client_id)
        self.mailbox = self._one("--mailbox", mailbox, options.mailbox)
        self.object_id = self._one("--object-id", object_id, options.object_id)
        self.name = self._one("--name", name, options.name)
        self.cloud = self._one("--cloud", name, options.cloud)
        self.authority = self._one("--authority", https, options.authority)
        self.graph = self._one("--graph", https, options.graph)
        self.ca_file = os.path.abspath(options.ca_file) if options.ca_file else ""
        self.networks = self._several("--network", networks, options.network)
        self.listen = self._several("--listen", addresses, options.listen)
        self._one("--test-to", mailbox, options.test_to)
        if options.secret_file and options.secret_stdin:
            self.wrong.append("--secret-file: --secret-stdin is given too; one of them")
        if options.test_to and options.no_start:
            self.wrong.append("--test-to: --no-start leaves nothing that could send it")
        has_endpoints = self.authority or self.graph or self.ca_file
        if self.cloud in clouds() and has_endpoints:
            self.wrong.append(
                f"--cloud: {self.cloud} is Microsoft's; call the one of your own otherwise"
            )

    def _one(self, option: str, kind: Callable[[str], str], text: str) -> str:
        try:
            return kind(text) if text else ""
        except Wrong as wrong:
            self.wrong.append(f"{option} {rules.shown(text)}: {wrong}")
            return ""

    def _several(
        self, option: str, kind: Callable[[str], tuple[str, ...]], texts: list[str]
    ) -> tuple[str, ...] | None:
        try:
            return kind(" ".join(texts)) if texts else None
        except Wrong as wrong:
            self.wrong.append(f"{option}: {wrong}")
            return None


# ---- asking


def ask(question: str, kind: Callable[[str], T], default: str = "") -> T:
    """Ask until the answer can be taken; Enter takes the default.

    raises: GivenUp - after five answers that cannot, or at the end of input.
    """
    shown = f"{question} [{terminal.safe(default)}]: " if default else f"{question}: "
    return _until_right(kind, lambda: _line(shown).strip() or default)


def ask_secret(question: str, kind: Callable[[str], T]) -> T:
    """Ask without showing what is typed; raises GivenUp."""
    return _until_right(kind, lambda: _typed(f"{question} (not shown): "))


def confirm(question: str) -> bool:
    """Ask for yes or no until it is one of them; Enter is yes. raises: GivenUp."""
    return _until_right(_yes_or_no, lambda: _line(f"{question} [Y/n]: ").strip())


def _yes_or_no(text: str) -> bool:
    if text.lower() not in {"", "y", "yes", "n", "no"}:
        raise Wrong("neither yes nor no; write y or n, or press Enter for y")
    return text.lower() in {"", "y", "yes"}


def _until_right(kind: Callable[[str], T], answer: Callable[[], str]) -> T:
    for _ in range(_TRIES):
        try:
            return kind(answer())
        except Wrong as wrong:
            print(f"  {terminal.safe(str(wrong))}")
    raise GivenUp(f"{_TRIES} answers that cannot be taken")


def _line(prompt: str) -> str:
    try:
        return input(prompt)
    except EOFError:
        print()
        raise GivenUp("the input ended") from None
    except UnicodeDecodeError:
        return "\ufffd"  # no kind of answer takes it


def _typed(prompt: str) -> str:
    try:
        return getpass.getpass(prompt).strip()
    except EOFError:
        print()
        raise GivenUp("the input ended") from None
    except UnicodeDecodeError:
        return "\ufffd"


# ---- what can be proposed


def own_networks(proc: Path = Path("/proc")) -> tuple[str, ...]:
    """Return the private IPv4 networks this host is on, those of containers left out.

    Source: /proc/net/route (words of 32 bits in the byte order of the machine).
    """
    try:
        lines = (proc / "net/route").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return ()
    return tuple(dict.fromkeys(_connected(line.split() for line in lines)))


def _connected(rows: Iterable[list[str]]) -> Iterable[str]:
    for row in rows:
        if len(row) < 8 or row[0].startswith(_VIRTUAL) or int(row[2], 16):
            continue
        if not int(row[3], 16) & _ROUTE_UP:
            continue
        found = ipaddress.ip_network(f"{_dotted(row[1])}/{_dotted(row[7])}", strict=False)
        is_lan = found.is_private and not found.is_loopback and not found.is_link_local
        if is_lan and 16 <= found.prefixlen <= 30:
            yield str(found)


def _dotted(word: str) -> str:
    return socket.inet_ntoa(int(word, 16).to_bytes(4, "little"))
