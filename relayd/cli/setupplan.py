"""What `relayd setup` writes: which values, into which files; nothing is written here.

    site = look("/etc/relayd/relayd.toml")
    drafts = plan(site, answers)        [] when everything stands as wanted

What keeps a single answer from being planned is told beforehand: obstacle, secret_obstacle,
address_clash, look_at.

A value is changed where it stands, be that relayd.toml or a file of conf.d; a new one goes into
relayd.toml. Only networks of devices have a file of their own, conf.d/zz-lan.toml: [[device]]s are
matched in order, so a whole network must come after all single devices, and that name sorts last.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Final

from relayd.cli.devicefile import Network
from relayd.cli.tomledit import CannotEdit, Change, changed, render, value_at
from relayd.config import read, rules, whole
from relayd.config.model import Config, Listener
from relayd.config.places import Path
from relayd.config.read import Tree
from relayd.errors import ConfigError
from relayd.values import frozen

TEMPLATES: Final = (
    "/usr/share/relayd/relayd.toml",
    str(FilePath(__file__).resolve().parents[2] / "conf/relayd.toml"),
)
"""The packaged configuration: of the Debian package, of a checkout."""

LOCAL: Final = ("127.0.0.1:25",)
LOOPBACK: Final = ("127.0.0.0/8", "::1/128")
_BARE: Final = f"""\
# relayd's configuration; every setting there is: docs/settings.md, man relayd.toml.

[[listener]]
name = "lan"
address = {render(LOCAL)}
"""
_LAN_FILE: Final = """\
# Who may send without a password, by network: begun by `relayd setup`, yours to change.
#
# The first [[device]] that matches wins, and this file is read last, so a device of its own
# (relayd device add 192.168.10.5 --name ups) comes before it. Without allow_to they may write to
# your own domains only; allow_to = ["*"] here lets whoever gets into the network write to anybody.
"""
_LAN_NAME: Final = "zz-lan.toml"
_OTHER_FORMS: Final = ("client_secret", "client_secret_env", "client_secret_credential")


@frozen(kw_only=True)
class Answers:
    """What was asked for. None: not said, so it stays as it is.

    secret: the value; never shown, never in a log. authority, graph, ca_file: of [cloud.CLOUD],
    "" for what stays as it is.
    """

    name: str
    tenant: str
    client_id: str
    mailbox: str
    cloud: str
    authority: str = ""
    graph: str = ""
    ca_file: str = ""
    networks: tuple[str, ...] | None = None
    listen: tuple[str, ...] | None = None
    secret: str | None = None


@frozen
class Draft:
    """A file as it is to be. before: what is there now, None for nothing."""

    path: str
    octets: bytes
    before: bytes | None
    is_secret: bool = False


@frozen
class Site:
    """A configuration that is there, or the packaged one in its place."""

    config: str
    tree: Tree
    template: str

    @property
    def folder(self) -> str:
        """Return where it lies."""
        return os.path.dirname(self.config)

    def get(self, *path: str | int) -> object:
        """Return a value as it is written; None for none."""
        return self.tree.get(path)

    def text(self, *path: str | int) -> str:
        """Return a text as it is written; "" for none."""
        found = self.get(*path)
        return found if isinstance(found, str) else ""

    def names(self, table: str) -> list[str]:
        """Return the names in [table.*]."""
        found = self.get(table)
        return sorted(found) if isinstance(found, dict) else []

    def rows(self, table: str) -> list[Mapping[str, object]]:
        """Return the tables of [[table]]."""
        found = self.get(table)
        return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []

    def secret_path(self, name: str) -> str:
        """Return where the client secret of an upstream is or belongs."""
        written = self.text("upstream", name, "client_secret_file")
        return os.path.join(self.folder, written or f"secrets/{name}")

    def has_secret(self, name: str) -> bool:
        """Tell whether an upstream has a client secret already."""
        is_elsewhere = any(self.get("upstream", name, key) for key in _OTHER_FORMS)
        return is_elsewhere or bool(_octets(self.secret_path(name)))

    def listeners(self) -> tuple[str, ...]:
        """Return the addresses of the listener that setup takes care of; () for none."""
        index = _listener(self)
        found = self.get("listener", index, "address") if index is not None else None
        return tuple(map(str, found)) if isinstance(found, list) else ()


def look(config: str) -> Site:
    """Return what is there; raises ConfigError when it is no TOML or cannot be read."""
    config = os.path.abspath(config)
    template = next((_text(path) for path in TEMPLATES if os.path.exists(path)), _BARE)
    if not os.path.lexists(config):
        return Site(config, Tree(config, data=tomllib.loads(template)), template)
    tree = read.read(config)
    if tree.found:
        raise ConfigError(tree.found)
    return Site(config, tree, template)


def plan(site: Site, answers: Answers) -> list[Draft]:
    """Return the files that change, the secret first and relayd.toml last.

    raises: CannotEdit - with what to do by hand.
    """
    drafts: list[Draft] = []
    if answers.secret is not None:
        drafts += _secret_draft(site, answers.name, answers.secret)
    lan = _lan_draft(site, answers.networks)
    drafts += [lan] if lan is not None else []
    texts: dict[str, str] = {site.config: _text(site.config) or site.template}
    for change in _changes(site, answers):
        file, local = _where(site, change.table)
        try:
            texts[file] = changed(
                texts.get(file) or _text(file), [Change(local, change.key, change.value)]
            )
        except CannotEdit as error:
            raise CannotEdit(f"{file}: {error}") from error
    drafts += [Draft(path, text.encode(), _octets(path)) for path, text in texts.items()]
    drafts.sort(key=lambda draft: draft.path == site.config)
    return [draft for draft in drafts if draft.is_secret or draft.octets != draft.before]


def _changes(site: Site, answers: Answers) -> Iterator[Change]:
    upstream: Path = ("upstream", answers.name)
    yield Change(upstream, "tenant", answers.tenant)
    yield Change(upstream, "client_id", answers.client_id)
    if not any(site.get(*upstream, key) for key in (*_OTHER_FORMS, "client_secret_file")):
        yield Change(upstream, "client_secret_file", f"secrets/{answers.name}")
    yield Change(upstream, "mailbox", answers.mailbox)
    if answers.cloud != (site.text(*upstream, "cloud") or "global"):
        yield Change(upstream, "cloud", answers.cloud)
    for key in ("authority", "graph", "ca_file"):
        if value := getattr(answers, key):
            yield Change(("cloud", answers.cloud), key, value)
    yield from _listen_changes(site, answers.listen)


def _listen_changes(site: Site, listen: tuple[str, ...] | None) -> Iterator[Change]:
    if listen is None or listen == site.listeners():
        return
    index = _listener(site)
    if index is None:
        raise CannotEdit(
            'there are several [[listener]] and none is named "lan"; set address there by'
            f" hand: address = {render(listen)}"
        )
    if index == len(site.rows("listener")):
        yield Change(("listener", index), "name", "lan")
    yield Change(("listener", index), "address", listen)


def _listener(site: Site) -> int | None:
    """Return the index of the [[listener]] that is meant; None where that is not clear."""
    rows = site.rows("listener")
    if len(rows) < 2:
        return 0
    named = [index for index, row in enumerate(rows) if row.get("name") == "lan"]
    return named[0] if named else None


def _where(site: Site, table: Path) -> tuple[str, Path]:
    """Return the file a table stands in, and its path there; a new one goes into relayd.toml.

    ("listener", 2) of all files may be ("listener", 0) of the one it stands in.
    """
    places = site.tree.places
    file = places[table].file if table in places else site.config
    if not table or not isinstance(table[-1], int):
        return file, table
    mine = [
        at
        for at in range(table[-1] + 1)
        if (place := places.get((*table[:-1], at))) is None or place.file == file
    ]
    return file, (*table[:-1], len(mine) - 1)


# ---- looked at beforehand


def obstacle(site: Site, change: Change) -> str:
    """Return why a value cannot be written where it belongs, and what to do by hand; or ""."""
    file, local = _where(site, change.table)
    text = _text(file) or (site.template if file == site.config else "")
    try:
        changed(text, [Change(local, change.key, change.value)])
    except CannotEdit as error:
        return f"{file}: {error}"
    return ""


def secret_obstacle(site: Site, name: str) -> str:
    """Return why a client secret of this upstream cannot be written, and what to do; or ""."""
    for key in _OTHER_FORMS:
        if site.get("upstream", name, key):
            place = site.tree.place(("upstream", name, key))
            return f"{place}: {key} is set there; take that line out first"
    path = site.secret_path(name)
    if os.path.dirname(path) != os.path.join(site.folder, "secrets"):
        return f"client_secret_file names {path}, which is yours; put the secret there"
    return ""


def address_clash(site: Site, listen: Sequence[str]) -> str:
    """Return why these addresses cannot be listened on beside each other and the others; or ""."""
    index = _listener(site)
    rows: list[Sequence[str]] = [
        [str(each) for each in found if not rules.host_port(str(each))]
        for at, row in enumerate(site.rows("listener"))
        if at != index and isinstance(found := row.get("address"), list)
    ]
    listeners = tuple(Listener(name=str(at), address=(*row,)) for at, row in enumerate(rows))
    mine = Listener(name="lan", address=(*listen,))
    clashes = whole.address_clashes(Config(listener=(*listeners, mine)))
    return next((each.text for each in clashes), "") or _foreign(listen)


def _foreign(listen: Sequence[str]) -> str:
    """Return which address this host does not have; "" for none."""
    for each in listen:
        host = ipaddress.ip_address(each.rpartition(":")[0].strip("[]"))
        family = socket.AF_INET if host.version == 4 else socket.AF_INET6
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                sock.bind((str(host), 0))
        except OSError as error:
            is_ours = host.is_loopback or host.is_unspecified  # no IPv6 here is only a warning
            if error.errno == errno.EADDRNOTAVAIL and not is_ours:
                return f"this host does not have the address {host}; ip -brief address shows them"
    return ""


def look_at(site: Site, networks: tuple[str, ...] | None, listen: tuple[str, ...] | None) -> None:
    """Raise CannotEdit where these networks, or addresses, could not be written."""
    _lan_draft(site, networks)
    tuple(_listen_changes(site, listen))


def without_upstream(site: Site) -> list[str]:
    """Return the names of devices and users that go out by whichever upstream there is."""
    rows = [*site.rows("device"), *site.rows("user")]
    return [str(row.get("name")) for row in rows if not row.get("upstream")]


def listen_for(site: Site, networks: Sequence[str]) -> tuple[str, ...]:
    """Return where to listen: as it is, but for all when a network beyond this host may send.

    returns: () where several listeners leave it open which is meant.
    """
    there = site.listeners() if site.rows("listener") else LOCAL
    if any(not address or rules.host_port(address) for address in there):
        return there  # no address at all: `check` says so
    hosts = [address.rpartition(":")[0].strip("[]") for address in there]
    is_local = all(ipaddress.ip_address(host).is_loopback for host in hosts)
    if there and is_local and not all(ipaddress.ip_network(each).is_loopback for each in networks):
        port = there[0].rpartition(":")[2]
        return (f"0.0.0.0:{port}", f"[::]:{port}")
    return there


# ---- the secret


def _secret_draft(site: Site, name: str, secret: str) -> Iterator[Draft]:
    if why := secret_obstacle(site, name):
        raise CannotEdit(why)
    path = site.secret_path(name)
    before = _octets(path)
    is_kept = before is not None and before.decode("utf-8", "replace").rstrip("\r\n") == secret
    if not is_kept or os.stat(path).st_mode & stat.S_IRWXO:
        yield Draft(path, f"{secret}\n".encode(), before, is_secret=True)


# ---- networks of devices


def _lan_draft(site: Site, networks: Sequence[str] | None) -> Draft | None:
    """Return conf.d/zz-lan.toml as it is to be; None where nothing is to be said there."""
    path = os.path.join(site.folder, "conf.d", _LAN_NAME)
    before = _octets(path)
    text = "" if before is None else before.decode("utf-8", "replace")
    inside = value_at(tomllib.loads(text), ("device",))
    rows = [row for row in inside if isinstance(row, dict)] if isinstance(inside, list) else []
    others = [row for row in site.rows("device") if row not in rows]
    wanted = tuple(each for each in networks or () if not _is_covered(each, others))
    lines = text or _LAN_FILE
    index = next((at for at, row in enumerate(rows) if row.get("name") == "lan"), None)
    if index is not None and wanted:
        lines = changed(text, [Change(("device", index), "networks", wanted)])
    elif index is not None and networks == ():
        place = f"{path}: [[device]] lan"
        raise CannotEdit(f'{place} lets networks send; take it out by hand, as "none" was said')
    elif wanted:
        lines += _device(_free("lan", others), wanted)
    is_first = before is None and not any(_is_covered(each, others) for each in LOOPBACK)
    if is_first:
        own = tuple(each for each in LOOPBACK if not _is_covered(each, [{"networks": wanted}]))
        lines += _device(_free("localhost", others), own) if own else ""
    return Draft(path, lines.encode(), before) if lines != (text or _LAN_FILE) else None


def _device(name: str, networks: Sequence[str]) -> str:
    return f"\n[[device]]\nname = {render(name)}\nnetworks = {render(networks)}\n"


def _free(name: str, rows: Sequence[Mapping[str, object]]) -> str:
    """Return the name, with a number where somebody has it."""
    taken = {str(row.get("name")).lower() for row in rows}
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return next(each for each in (name, *numbered) if each not in taken)


def _is_covered(text: str, rows: Sequence[Mapping[str, object]]) -> bool:
    """Tell whether devices that are there have this whole network."""
    mine = ipaddress.ip_network(text)
    for row in rows:
        networks = row.get("networks")
        for each in networks if isinstance(networks, list | tuple) else ():
            try:
                wide = ipaddress.ip_network(str(each))
            except ValueError:
                continue  # `check` says so
            if _contains(wide, mine):
                return True
    return False


def _contains(wide: Network, each: Network) -> bool:
    if isinstance(wide, ipaddress.IPv4Network):
        return isinstance(each, ipaddress.IPv4Network) and each.subnet_of(wide)
    return isinstance(each, ipaddress.IPv6Network) and each.subnet_of(wide)


# ---- files


def _octets(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _text(path: str) -> str:
    octets = _octets(path)
    return "" if octets is None else octets.decode("utf-8-sig")
