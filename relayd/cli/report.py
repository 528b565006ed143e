"""`relayd report`: what somebody who helps needs to see, without secrets, in one file.

Nothing is sent anywhere. Works with the relay down, and with a configuration that is broken: each
part that cannot be had says why in its place. Secrets are taken out always, addresses unless
--keep-addresses (`cli.redact`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import json
import os
import platform
import pwd
import re
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

from relayd import __version__
from relayd.cli import daemon, terminal
from relayd.cli import main as command_line
from relayd.cli.redact import HIDDEN, Redactor
from relayd.clock import SYSTEM
from relayd.config.model import Log
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.frames import Json

_FOLDER: Final = "relayd-report"
_ASK_S: Final = 10.0
_RUN_S: Final = 20.0
_LINES: Final = 1000
_LOG_BYTES: Final = 2 * 1024 * 1024
_QUEUE_ROWS: Final = 100
_LIBRARIES: Final = (
    "argon2-cffi", "cryptography", "dkimpy", "gevent", "greenlet", "msal", "prometheus-client",
    "requests", "setproctitle", "structlog", "urllib3",
)  # fmt: skip
_DOMAIN_KEYS: Final = frozenset({"own_domains", "default_domain", "hostname", "domain"})
_NAME_KEYS: Final[Mapping[str, str]] = {"tenant": "tenant", "client_id": "client"}
_SECRET_WORDS: Final = ("secret", "password", "sas", "encryption_key", "hash")
_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_LONG_NAME: Final = 30
_WORDS: Final = frozenset({"relay", "relayd", "localhost", "mail", "smtp", "debian", "ubuntu"})
"""Names of hosts that are words of ours: hidden, they would leave nothing to read."""

_Path: TypeAlias = "tuple[str | int, ...]"

_EPILOG: Final = """\
examples:
  relayd report                        a file in this folder
  relayd report --output /tmp/r.tar.gz
  relayd report --stdout | less        read it first
  relayd report --keep-addresses       for your own people

Nothing is sent. Works when relayd is down; as root it sees the most.
exit: 0 written, 1 it could not be written"""


class Part(NamedTuple):
    """One file of the bundle."""

    name: str
    text: str


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument(
        "--output", metavar="FILE", default="", help="where to write it; default: here, by date"
    )
    parser.add_argument("--stdout", action="store_true", help="print it as text instead")
    parser.add_argument(
        "--keep-addresses", action="store_true", help="leave mail and IP addresses as they are"
    )
    parser.add_argument(
        "--lines",
        metavar="N",
        type=_positive,
        default=_LINES,
        help=f"lines of the log ({_LINES})",
    )
    parser.epilog = _EPILOG
    parser.set_defaults(act=report)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 100_000):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 100000")
    return int(text)


def report(options: argparse.Namespace) -> int:
    """Gather, redact, write, and say what is in it."""
    known = Known(options.config)
    redactor = known.redactor(keeps_addresses=options.keep_addresses)
    gathered = [Part(name, _whatever(gather)) for name, gather in _parts(options, known)]
    for part in gathered:
        redactor.text(part.text)  # to know every domain before the first part is written
    parts = [Part(name, redactor.text(text) + "\n") for name, text in gathered]
    if options.stdout:
        for part in parts:
            print(f"==> {part.name} <==\n{part.text}")
        return command_line.OK
    path = options.output or f"{_FOLDER}-{SYSTEM.utcnow():%Y%m%dT%H%M%SZ}.tar.gz"
    try:
        _write(path, parts)
    except OSError as error:
        terminal.complain(f"{path}: {error.strerror}; name another with --output FILE")
        return command_line.FAILED
    sizes = {part.name: len(part.text.encode()) for part in parts}
    if options.json:
        rows = [{"name": name, "bytes": octets} for name, octets in sizes.items()]
        terminal.print_json({"file": os.path.abspath(path), "parts": rows})
        return command_line.OK
    for name, octets in sizes.items():
        print(f"  {name:22} {terminal.size(octets):>9}  {_WHAT.get(name, '')}".rstrip())
    print(f"written to {terminal.safe(os.path.abspath(path))}; only you may read it")
    print("secrets are taken out; look at it before you send it:")
    print(f"  tar xzOf {terminal.safe(path)} | less")
    return command_line.OK


_WHAT: Final[Mapping[str, str]] = {
    "about.txt": "versions, system, time",
    "config.txt": "every key, secrets hidden",
    "check.txt": "what relayd check says",
    "status.json": "what runs, upstreams, last errors",
    "metrics.json": "counters of all processes",
    "callers.json": "who sent and who was refused, with dialogues",
    "queue.json": "what waits",
    "log.txt": "the last lines",
}


def _whatever(gather: Callable[[], str]) -> str:
    """Return a part's text, or why there is none."""
    try:
        return gather()
    except Exception as error:  # noqa: BLE001  a report must come out whatever is broken
        return f"not to be had: {type(error).__name__}: {error}"


def _parts(options: argparse.Namespace, known: Known) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "about.txt", _about
    yield "config.txt", known.shown
    yield "check.txt", lambda: _check(options.config)
    yield "status.json", lambda: _asked(options.config, "status")
    yield "metrics.json", lambda: _asked(options.config, "metrics")
    yield "callers.json", lambda: _asked(options.config, "callers")
    yield "queue.json", lambda: _queue(options.config)
    yield "log.txt", lambda: _log(options.config, options.lines)


def _write(path: str, parts: list[Part]) -> None:
    """Write the bundle where nothing is yet, for its owner only."""
    # SECURITY: never over a file or through a link that somebody laid there in /tmp.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with (
        open(descriptor, "wb") as file,
        tarfile.open(fileobj=file, mode="w:gz", format=tarfile.PAX_FORMAT) as tar,
    ):
        for part in parts:
            octets = part.text.encode("utf-8", "backslashreplace")
            entry = tarfile.TarInfo(f"{_FOLDER}/{part.name}")
            entry.size = len(octets)
            entry.mtime = int(SYSTEM.utcnow().timestamp())
            tar.addfile(entry, io.BytesIO(octets))


# ---- the configuration, and what it tells of secrets


class Known:
    """What the files of the configuration say, also when they cannot be used."""

    def __init__(self, config: str) -> None:
        from relayd.config import read  # noqa: PLC0415

        self._config = config
        self._tree = read.read(config)
        self._texts = list(_walk(self._tree.data, ()))

    def redactor(self, *, keeps_addresses: bool) -> Redactor:
        """Return what takes out this configuration's secrets and names."""
        secrets = [text for path, text in self._texts if self._hides(path, text)]
        secrets += [text for path, name in self._texts for text in self._from_file(path, name)]
        domains = {
            text.rpartition("@")[2].lstrip("*.")
            for path, text in self._texts
            if "@" in text or any(part in _DOMAIN_KEYS for part in path)
        }
        names = [(one, "this-host") for one in {socket.gethostname()} - _WORDS]
        for key, kind in _NAME_KEYS.items():
            found = dict.fromkeys(text for path, text in self._texts if path[-1] == key)
            names += [(text, f"{kind}-{number}") for number, text in enumerate(found, 1)]
        return Redactor(
            secrets=secrets,
            domains=[one for one in domains if "." in one],
            names=names,
            keeps_addresses=keeps_addresses,
        )

    def _hides(self, path: _Path, value: str) -> bool:
        """Tell whether a value is a secret itself, and not where one is.

        A secret pasted where a file's, a variable's or a credential's name belongs is one too.
        """
        key = str(next((part for part in reversed(path) if isinstance(part, str)), ""))
        if not value or not any(word in key for word in _SECRET_WORDS):
            return False
        if key.endswith("_file"):
            return not os.path.exists(os.path.join(os.path.dirname(self._config), value))
        if key.endswith("_env"):
            return _VARIABLE.fullmatch(value) is None
        return not key.endswith("_credential") or len(value) >= _LONG_NAME

    def _from_file(self, path: _Path, name: str) -> Iterator[str]:
        """Yield the secret a key names by file or environment variable, where it can be read."""
        key = str(path[-1])
        if not any(word in key for word in _SECRET_WORDS):
            return
        if key.endswith("_env") and name in os.environ:
            yield os.environ[name]
        if key.endswith("_file"):
            try:
                with open(os.path.join(os.path.dirname(self._config), name), "rb") as file:
                    yield file.read(65_536).decode("utf-8", "surrogateescape").strip()
            except OSError:
                return  # who cannot read it cannot tell it either

    def shown(self) -> str:
        """Return every key with its place and value; secrets and comments are left out."""
        lines = [f"not usable: {words}" for words in self._tree.found]
        for path, value in _leaves(self._tree.data, ()):
            told = HIDDEN if self._hides(path, str(value)) else json.dumps(value, default=str)
            where = ".".join(map(str, path))
            lines.append(f"{self._tree.place(path)}: {where} = {told}")
        return "\n".join(lines)


def _leaves(data: object, path: _Path) -> Iterator[tuple[_Path, object]]:
    if isinstance(data, dict) and data:
        for key, value in data.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(data, list) and any(isinstance(one, dict) for one in data):
        for index, one in enumerate(data):
            yield from _leaves(one, (*path, index))
    else:
        yield path, data


def _walk(data: object, path: _Path) -> Iterator[tuple[_Path, str]]:
    """Yield every text with its key."""
    for where, value in _leaves(data, path):
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and where:
                yield where, one


# ---- the other parts


def _about() -> str:
    lines = [
        f"relayd {__version__}, Python {platform.python_version()} ({sys.executable})",
        f"now {SYSTEM.utcnow():%Y-%m-%dT%H:%M:%SZ}, uid {os.geteuid()}",
        f"{platform.system()} {platform.release()} {platform.machine()}",
    ]
    try:
        system = platform.freedesktop_os_release()
        lines.append(system.get("PRETTY_NAME", ""))
    except OSError:
        lines.append("no os-release")
    for name in _LIBRARIES:
        try:
            lines.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{name} not found")
    lines.append(_told(["systemctl", "--version"]).partition("\n")[0])
    lines.append(_told(["systemctl", "status", "relayd", "--no-pager", "--lines=0"]))
    lines.append(_told(["timedatectl", "status", "--no-pager"]))
    return "\n".join(lines)


def _told(command: list[str], user: pwd.struct_passwd | None = None) -> str:
    """Return what a program prints, or why it does not. user: as whom; None: as we are."""
    groups = None if user is None else os.getgrouplist(user.pw_name, user.pw_gid)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_RUN_S,
            check=False,
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=groups,
            env={**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    told = (done.stdout or done.stderr).decode("utf-8", "backslashreplace").strip()
    return told or f"{command[0]} printed nothing"


def _check(config: str) -> str:
    from relayd.check import check  # noqa: PLC0415  imports every room
    from relayd.errors import ConfigError  # noqa: PLC0415

    try:
        warnings = check(config).warnings
    except ConfigError as error:
        return "\n".join(f"error    {one}" for one in error.problems)
    return "\n".join(["ok", *(f"warning  {one}" for one in warnings)])


def _asked(config: str, command: str) -> str:
    runtime_dir, _ = daemon.runtime_dir_of(config)
    path = os.path.join(runtime_dir, client.CONTROL_SOCKET)
    request: dict[str, Json] = {"command": command}
    if command == "callers":
        request["whole"] = True
    try:
        reply = client.ask(path, request, timeout_s=_ASK_S)
    except NotRunning as error:
        return f"relayd does not answer: {error}"
    return json.dumps(reply.get("result") or reply, indent=1, sort_keys=True, ensure_ascii=False)


def _queue(config: str) -> str:
    """Return what waits; by a process of its own, which becomes the spool's owner if it must."""
    words = ["queue", "list", "--limit", str(_QUEUE_ROWS), "--json", "--config", config]
    # SECURITY: -P, or a folder named relayd where root happens to stand would be run instead.
    return _told([sys.executable, "-P", "-m", "relayd", *words])


def _log(config: str, lines: int) -> str:
    """Return the end of the log file, else of the journal."""
    path, _ = daemon.setting_of(config, "log", "file", Log().file)
    if not path:
        return _told(
            # The words alone: each has its moment, and this host's name is nobody's business.
            ["journalctl", "-u", "relayd", "-n", str(lines), "--no-pager", "-o", "cat"]
        )
    from relayd.cli.doctor import service_user  # noqa: PLC0415  only here is it asked who it is

    # SECURITY: read as the relay's user. The folder is its own: with root's rights a link laid
    # there would put any file of this host into what is sent away, and a pipe would hold us up.
    user = service_user(config) if os.geteuid() == 0 else None
    text = _told(["tail", "-c", str(_LOG_BYTES), "--", path], user)
    return "\n".join(text.splitlines()[-lines:])
