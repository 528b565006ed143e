"""`relayd secret`: client secrets where the relay reads them and others do not.

    file     secrets/NAME beside relayd.toml, 0640 root:relayd; the default
    systemd  --systemd: encrypted for this host by systemd-creds, given to the unit by a drop-in

A file is the default although systemd could encrypt: a new value is taken over by `relayd reload`,
where a credential needs a restart (systemd reads it when the unit starts), and `relayd check`, run
by an administrator, can read a file, and what the unit alone is given not.

SECURITY: a secret is never an argument (everybody sees those), is never shown again, and goes to
systemd-creds by a pipe.
"""

from __future__ import annotations

import argparse
import getpass
import grp
import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypedDict

from relayd.cli import files, terminal
from relayd.cli import main as command_line
from relayd.cli.actions import Action, add_actions
from relayd.cli.files import Owner

_WRONG_USAGE: Final = 2
_GROUP: Final = "relayd"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_MOST_OCTETS: Final = 65_536
_WITHIN_S: Final = 30.0
_OLDEST_SYSTEMD: Final = 250
_SECRET_KEYS: Final = ("secret", "password", "sas", "encryption_key")

CREDSTORE: Final = "/etc/credstore.encrypted"
UNIT_FOLDERS: Final = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
UNIT: Final = "relayd.service"

_EPILOG: Final = """\
examples:
  relayd secret set contoso            asks; paste the secret's Value
  relayd secret set contoso --stdin < value.txt
  relayd secret list
  relayd secret delete contoso-old

exit: 0 done, 1 refused, 2 wrong usage"""


_EXITS: Final = "exit: 0 done, 1 refused, 2 wrong usage"
_ACTIONS: Final = (
    Action(
        "set",
        "put a secret in place, or a new value of it",
        "  relayd secret set contoso\n"
        "  relayd secret set contoso --stdin < value.txt\n"
        "  relayd secret set contoso --systemd",
        _EXITS,
    ),
    Action(
        "list",
        "show which secrets there are and who uses them, never their values",
        "  relayd secret list\n  relayd --json secret list | jq -r '.[].name'",
        _EXITS,
    ),
    Action("delete", "remove a secret nobody uses", "  relayd secret delete contoso-old", _EXITS),
)


class Kept(NamedTuple):
    """A secret that is there. store: "file" or "systemd"."""

    name: str
    store: str
    path: str


def add_secret(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `secret`."""
    parser.epilog = _EPILOG
    subs = add_actions(parser, _ACTIONS, {name: _act(act) for name, act in _ACTS.items()})
    for name in ("set", "delete"):
        subs[name].add_argument("name", metavar="NAME")
    new, old = subs["set"], subs["delete"]
    new.add_argument("--stdin", action="store_true", help="read it from standard input")
    new.add_argument(
        "--systemd", action="store_true", help="encrypt it with systemd-creds for the unit"
    )
    new.add_argument("--force", action="store_true", help="also what looks like the secret's ID")
    old.add_argument("--force", action="store_true", help="also when the configuration uses it")


def _act(action: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return the action with its failures in words."""

    def act(options: argparse.Namespace) -> int:
        name = getattr(options, "name", "x")
        if not _NAME.fullmatch(name):
            terminal.complain(f"{name!r} is no name; use letters, digits, dot, dash, underscore")
            return _WRONG_USAGE
        try:
            return action(options)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            hint = "; say it again with sudo" if isinstance(error, PermissionError) else ""
            terminal.complain(f"{where}{error.strerror or error}{hint}")
            return command_line.FAILED

    return act


# ---- set


def set_(options: argparse.Namespace) -> int:
    """Put a secret in place."""
    if options.systemd and (why := _no_systemd()):
        terminal.complain(f"systemd cannot keep it: {why}; without --systemd it becomes a file")
        return command_line.FAILED
    # Before it is asked for, so that nobody pastes a secret for nothing.
    folder = folder_of(options.config)
    like = _owner(options.config)
    if not options.systemd:
        files.make_folder(folder, like)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", folder)
    value = _value(options)
    complaint = _complaint(value, is_forced=options.force)
    if complaint:
        terminal.complain(complaint)
        return command_line.FAILED
    if options.systemd:
        kept = Kept(options.name, "systemd", _give_to_systemd(options.name, value))
        line = f'client_secret_credential = "{options.name}"'
    else:
        path = os.path.join(folder, options.name)
        files.replace(path, f"{value}\n".encode(), like)
        kept = Kept(options.name, "file", path)
        line = f'client_secret_file = "{path}"'
    users = _used_by(options.config).get(kept, [])
    then = f"systemctl restart {UNIT}" if kept.store == "systemd" else "relayd reload"
    if options.json:
        terminal.print_json(
            {
                "name": kept.name, "store": kept.store, "file": kept.path, "line": line,
                "used_by": users, "then": then,
            }
        )  # fmt: skip
        return command_line.OK
    print(terminal.safe(f"kept {kept.name}, {len(value)} characters, in {kept.path}"))
    if users:
        print(terminal.safe(f"used by {', '.join(users)}; have it taken over: {then}"))
    else:
        print(terminal.safe(f"put this under [upstream.NAME], then {then}:"))
        print(terminal.safe(f"  {line}"))
    return command_line.OK


def _value(options: argparse.Namespace) -> str:
    """Return what was given, without the newline at its end; raises SystemExit with words."""
    if options.stdin:
        octets = sys.stdin.buffer.read(_MOST_OCTETS)
    elif sys.stdin.isatty():
        try:
            octets = getpass.getpass("Secret (not shown): ").encode()
        except EOFError:
            octets = b""
        except UnicodeError:
            octets = b"\xff"  # refused below, in words
    else:
        terminal.complain("no terminal to ask on; use --stdin")
        raise SystemExit(_WRONG_USAGE)
    try:
        return octets.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        terminal.complain("that is no text; nothing changed")
        raise SystemExit(command_line.FAILED) from None


def _complaint(value: str, *, is_forced: bool) -> str:
    """Return why this cannot be a client secret; "" when it can. Never shows it."""
    from relayd.config.whole import is_secret_id  # noqa: PLC0415

    if not value:
        return "it is empty; nothing changed"
    if "\n" in value or "\r" in value:
        return "it has several lines, a client secret has one; nothing changed"
    if value != value.strip() or not value.isprintable():
        return "it has blanks around it, or characters that do not print; nothing changed"
    if is_secret_id(value) and not is_forced:
        return (
            "this looks like the Secret ID, not the secret. Entra shows the Value, in the column"
            " before, only once, when the secret is made: make a new one and copy its Value."
            " If it is the secret all the same: --force"
        )
    return ""


def folder_of(config: str) -> str:
    """Return where secrets are kept as files."""
    return os.path.join(os.path.dirname(os.path.abspath(config)), "secrets")


def _owner(config: str) -> Owner:
    """Return root and the relay's group; as another user: that user alone."""
    if os.geteuid() != 0:
        return Owner(os.geteuid(), os.getegid(), 0o600)
    try:
        return Owner(0, grp.getgrnam(_GROUP).gr_gid, 0o640)
    except KeyError:
        # No such group: whoever may read the configuration.
        found = os.stat(config)
        return Owner(found.st_uid, found.st_gid, 0o640)


# ---- systemd


def _no_systemd() -> str:
    """Return why systemd cannot keep a secret for the relay; "" when it can."""
    if os.geteuid() != 0:
        return "only root may"
    if shutil.which("systemd-creds") is None or _systemd_version() < _OLDEST_SYSTEMD:
        return f"systemd-creds is not there (systemd {_OLDEST_SYSTEMD} or later has it)"
    if not any(os.path.exists(os.path.join(folder, UNIT)) for folder in UNIT_FOLDERS):
        return f"there is no {UNIT}"
    return ""


def _systemd_version() -> int:
    told = _run(["systemd-creds", "--version"], b"")
    number = re.search(rb"systemd (\d+)", told)
    return int(number[1]) if number else 0


def _run(command: list[str], given: bytes) -> bytes:
    """Run a program; returns what it printed. raises: OSError with its last words."""
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, timeout=_WITHIN_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(110, f"no answer within {_WITHIN_S:g} s", command[0]) from error
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise OSError(5, words[-1] if words else f"exit status {done.returncode}", command[0])
    return done.stdout


def _give_to_systemd(name: str, value: str) -> str:
    """Encrypt a secret and name it in a drop-in of the unit; returns where it lies."""
    encrypted = _run(["systemd-creds", "encrypt", f"--name={name}", "-", "-"], value.encode())
    store, dropins = CREDSTORE, os.path.dirname(_dropin(name))
    os.makedirs(store, mode=0o700, exist_ok=True)
    os.makedirs(dropins, mode=0o755, exist_ok=True)
    path = _credential(name)
    files.replace(path, encrypted, Owner(0, 0, 0o600))
    text = f"# Made by `relayd secret set`.\n[Service]\nLoadCredentialEncrypted={name}:{path}\n"
    files.replace(_dropin(name), text.encode(), Owner(0, 0, 0o644))
    _run(["systemctl", "daemon-reload"], b"")
    return path


def _credential(name: str) -> str:
    return os.path.join(CREDSTORE, f"relayd.{name}")


def _dropin(name: str) -> str:
    return os.path.join(UNIT_FOLDERS[0], f"{UNIT}.d", f"secret-{name}.conf")


# ---- list and delete


def list_(options: argparse.Namespace) -> int:
    """Show which secrets there are, never what they are."""
    users = _used_by(options.config)
    everything = sorted({*_kept(options.config), *users})
    rows = [_shown(kept, users.get(kept, [])) for kept in everything]
    if options.json:
        terminal.print_json(rows)
        return command_line.OK
    cells = [
        (
            row["name"],
            row["store"],
            f"{row['mode']} {row['owner']}" if row["mode"] else "MISSING",
            row["changed_at"],
            ", ".join(row["used_by"]) or "(nobody)",
            row["file"],
        )
        for row in rows
    ]
    heads = ("NAME", "KEPT BY", "MODE", "CHANGED", "USED BY", "FILE")
    print(terminal.table(cells, heads) if cells else "no secrets yet: relayd secret set NAME")
    for row in rows:
        if row["mode"] and int(row["mode"], 8) & stat.S_IROTH:
            terminal.complain(f"everybody may read {row['file']}: chmod 640 {row['file']}")
    return command_line.OK


class Shown(TypedDict):
    """A row of `secret list`. mode, owner, changed_at: "" for one that is not there."""

    name: str
    store: str
    file: str
    mode: str
    owner: str
    changed_at: str
    used_by: list[str]


def _shown(kept: Kept, used_by: list[str]) -> Shown:
    row = Shown(
        name=kept.name, store=kept.store, file=kept.path, mode="", owner="", changed_at="",
        used_by=used_by,
    )  # fmt: skip
    try:
        found = os.stat(kept.path)
    except FileNotFoundError:
        return row
    row["mode"] = f"{stat.S_IMODE(found.st_mode):04o}"
    row["owner"] = _names(found)
    row["changed_at"] = f"{datetime.fromtimestamp(found.st_mtime, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return row


def _names(found: os.stat_result) -> str:
    try:
        owner = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        owner = str(found.st_uid)
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return f"{owner}:{group}"


def _kept(config: str) -> Iterator[Kept]:
    folder = folder_of(config)
    for name in _names_in(folder):
        if not name.startswith("."):
            yield Kept(name, "file", os.path.join(folder, name))
    for name in _names_in(CREDSTORE):
        if name.startswith("relayd."):
            short = name.removeprefix("relayd.")
            yield Kept(short, "systemd", os.path.join(CREDSTORE, name))


def _names_in(folder: str) -> Sequence[str]:
    """Return what is in a folder, nothing where there is none.

    raises: PermissionError - there may be one, or more in it, which is not "none".
    """
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _used_by(config: str) -> dict[Kept, list[str]]:
    """Return which key of the configuration names which secret, in the folders of ours or not."""
    from relayd.config import read  # noqa: PLC0415

    tree = read.read(config)
    for trouble in tree.found:
        terminal.complain(trouble)
    folder = folder_of(config)
    found: dict[Kept, list[str]] = {}
    for where, key, value in _texts(tree.data, ""):
        if key.endswith("_credential"):
            kept = Kept(value, "systemd", _credential(value))
        elif key.endswith("_file"):
            path = os.path.normpath(os.path.join(os.path.dirname(folder), value))
            # Whatever is called otherwise may lie there too: a certificate with its key.
            is_ours = os.path.dirname(path) == folder
            if not is_ours and not any(word in key for word in _SECRET_KEYS):
                continue
            kept = Kept(os.path.basename(value), "file", path)
        else:
            continue
        found.setdefault(kept, []).append(f"{where} {key}".strip())
    return found


def _texts(data: object, where: str) -> Iterator[tuple[str, str, str]]:
    """Yield (table, key, text) of everything in a TOML tree."""
    if isinstance(data, list):
        for one in data:
            yield from _texts(one, where)
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        if isinstance(value, str):
            yield f"[{where}]" if where else "", str(key), value
        else:
            yield from _texts(value, f"{where}.{key}" if where else str(key))


def delete(options: argparse.Namespace) -> int:
    """Remove a secret nobody uses."""
    from relayd.config import read  # noqa: PLC0415

    mine = [kept for kept in _kept(options.config) if kept.name == options.name]
    if not mine:
        terminal.complain(f"no secret named {options.name}; relayd secret list shows them")
        return command_line.FAILED
    users = _used_by(options.config)
    used = [where for kept in mine for where in users.get(kept, [])]
    if used and not options.force:
        terminal.complain(
            f"{options.name} is used by {', '.join(used)}: without it the next reload or start is"
            " refused; take it out there first, or --force"
        )
        return command_line.FAILED
    if not options.force and read.read(options.config).found:
        terminal.complain(
            f"so nobody can tell who uses {options.name}; mend that first, or --force"
        )
        return command_line.FAILED
    for kept in mine:
        if kept.store == "systemd":
            # First: a drop-in that names what is gone keeps the unit from starting.
            if os.path.exists(_dropin(kept.name)):
                files.remove(_dropin(kept.name))
            _run(["systemctl", "daemon-reload"], b"")
        files.remove(kept.path)
    if options.json:
        terminal.print_json({"name": options.name, "files": [kept.path for kept in mine]})
    else:
        print(terminal.safe(f"deleted {options.name} ({', '.join(kept.path for kept in mine)})"))
    return command_line.OK


_ACTS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "set": set_,
    "list": list_,
    "delete": delete,
}
