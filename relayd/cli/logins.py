"""`relayd user`: names and passwords for devices that log in; kept in state_dir/users.toml.

Workers look at the file at each AUTH, so a change is in force at once, without a reload. Needs
to be root or the relay's own user, because it writes a file of theirs; what root makes is given
to the relay's user, or workers could not read it.

A password is asked for twice on a terminal, read from standard input (--stdin), or made up
(--generate). It is never an argument: everybody could see it in the list of processes.
"""

from __future__ import annotations

import argparse
import functools
import getpass
import os
import pwd
import secrets
import string
import sys
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from relayd.access.passwords import hash_password
from relayd.access.users import UsersFile, path_in
from relayd.cli import main as command_line
from relayd.cli import terminal
from relayd.config.load import load
from relayd.config.model import Config, Secret, User
from relayd.errors import ConfigError, Unavailable

_LENGTH: Final = 16
_LETTERS: Final = string.ascii_letters + string.digits
"""Devices mishandle anything else in passwords, and many allow no more than 16."""

_RELAY_USER: Final = "relayd"
_WRONG_USAGE: Final = 2


def _with_users(
    action: Callable[[argparse.Namespace, Config, UsersFile], int],
) -> Callable[[argparse.Namespace], int]:
    """Return the action with what all of them need, its failures in words."""

    @functools.wraps(action)
    def act(options: argparse.Namespace) -> int:
        config = load(options.config)
        try:
            return action(options, config, _file(config))
        except Unavailable as error:
            terminal.complain(str(error))
            return command_line.TEMPORARY
        except PermissionError as error:
            terminal.complain(
                f"{error.filename}: {error.strerror}; only root and the relay's own user keep"
                " users: say it again with sudo"
            )
            return command_line.FAILED

    return act


# ---- the actions


@_with_users
def add(options: argparse.Namespace, config: Config, file: UsersFile) -> int:
    """Make a user."""
    taken = [one.name for one in file.list()]
    problem = _problem(config, options)
    if options.name in taken:
        problem = f"user {options.name} exists already; relayd user passwd {options.name}"
    if problem:
        terminal.complain(problem)
        return command_line.FAILED
    _look_writable(config)
    password = _password(options)
    user = User(
        name=options.name,
        upstream=options.upstream,
        from_=options.from_,
        default_from=options.default_from,
        allow_from=tuple(options.allow_from),
        allow_to=tuple(options.allow_to),
        priority=options.priority,
        password_hash=Secret(hash_password(password)),
    )
    try:
        is_added = file.add(user)
    except ConfigError as error:  # the file was readable a moment ago: it is what was asked for
        for one in error.problems:
            terminal.complain(one.removeprefix(f"{path_in(config)}: "))
        return _WRONG_USAGE
    if not is_added:
        terminal.complain(f"user {user.name} was added meanwhile by somebody else")
        return command_line.FAILED
    code = _told(options, password, "added")
    if not options.json:
        itself = command_line.itself(options.config)
        print(f"then try it: {itself} send --device {user.name} --to ADDRESS --wait")
    return code


def _problem(config: Config, options: argparse.Namespace) -> str:
    if _is_configured(config, options.name):
        return f"user {options.name} is in {config.source}; change it there"
    names = [one.name for one in config.upstream]
    if options.upstream and options.upstream not in names:
        return f"no upstream named {options.upstream}: {', '.join(names) or 'none is configured'}"
    if not options.upstream and len(names) > 1:
        return f"say which upstream: --upstream {' | '.join(names)}"
    return ""


@_with_users
def passwd(options: argparse.Namespace, config: Config, file: UsersFile) -> int:
    """Give a user a new password."""
    is_configured = _is_configured(config, options.name)
    if not is_configured and options.name not in [one.name for one in file.list()]:
        terminal.complain(_unknown(config, options.name, file))
        return command_line.FAILED
    if not is_configured:
        _look_writable(config)
    password = _password(options)
    password_hash = hash_password(password)
    if is_configured:
        terminal.complain(
            f"user {options.name} is in {config.source}; put the new password there, then"
            f' relayd reload: password_hash = "{password_hash}"'
        )
        if options.generate:
            terminal.complain(f"the password, shown this once: {password}")
        return command_line.FAILED
    if not file.set_password(options.name, password_hash):
        terminal.complain(f"user {options.name} was deleted meanwhile")
        return command_line.FAILED
    return _told(options, password, "changed")


@_with_users
def show(options: argparse.Namespace, config: Config, file: UsersFile) -> int:
    """Show all users."""
    rows = [(one, config.source) for one in config.user]
    rows += [(one, path_in(config)) for one in file.list()]
    if options.json:
        terminal.print_json(
            [
                {
                    "name": one.name, "upstream": one.upstream, "from": one.from_,
                    "default_from": one.default_from, "allow_from": list(one.allow_from),
                    "allow_to": list(one.allow_to), "priority": one.priority, "file": source,
                }
                for one, source in rows
            ]
        )  # fmt: skip
        return command_line.OK
    cells = [
        (
            one.name,
            one.upstream or "(the only one)",
            one.from_ or one.default_from or "(the mailbox)",
            " ".join(one.allow_to) or "(own domains)",
            source,
        )
        for one, source in rows
    ]
    heads = ("NAME", "UPSTREAM", "FROM", "MAY WRITE TO", "FILE")
    print(terminal.table(cells, heads) if cells else "no users; make one: relayd user add NAME")
    return command_line.OK


@_with_users
def delete(options: argparse.Namespace, config: Config, file: UsersFile) -> int:
    """Remove a user."""
    if _is_configured(config, options.name):
        terminal.complain(f"user {options.name} is in {config.source}; remove it there")
        return command_line.FAILED
    if options.name not in [one.name for one in file.list()]:
        terminal.complain(_unknown(config, options.name, file))
        return command_line.FAILED
    _look_writable(config)
    file.delete(options.name)
    return _told(options, "", "deleted")


def _is_configured(config: Config, name: str) -> bool:
    return name.lower() in [one.name.lower() for one in config.user]


def _unknown(config: Config, name: str, file: UsersFile) -> str:
    known = [one.name for one in (*config.user, *file.list())]
    told = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return f"no user named {name}; there are: {told or 'none yet (relayd user add NAME)'}"


# ---- the file and whose it is


def _file(config: Config) -> UsersFile:
    return UsersFile(path_in(config), owner=_relay(config) if os.geteuid() == 0 else None)


def _look_writable(config: Config) -> None:
    """Make state_dir if it is not there; raises PermissionError before anything is asked."""
    folder = config.server.state_dir
    if not os.path.isdir(folder):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        owner = _relay(config)
        if os.geteuid() == 0 and owner is not None:
            os.chown(folder, *owner, follow_symlinks=False)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(0, "not yours to change", folder)


def _relay(config: Config) -> tuple[int, int] | None:
    """Return (uid, gid) of the relay's user: who has its state or its spool, else by name."""
    spool = os.path.dirname(urlsplit(config.spool.url).path)
    for folder in (config.server.state_dir, spool):
        try:
            found = os.stat(folder)
        except OSError:
            continue
        if found.st_uid != 0:
            return found.st_uid, found.st_gid
    try:
        user = pwd.getpwnam(_RELAY_USER)
    except KeyError:
        return None
    return user.pw_uid, user.pw_gid


# ---- passwords


def _password(options: argparse.Namespace) -> str:
    """Return the password: made, read, or asked twice; raises SystemExit with words."""
    if options.generate:
        return "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))
    if options.stdin:
        # Octets: what a device sends later need not be UTF-8 either.
        line = sys.stdin.buffer.readline().rstrip(b"\r\n")
        password = line.decode("utf-8", "surrogateescape")
    elif sys.stdin.isatty():
        password = _asked_twice()
    else:
        terminal.complain("no terminal to ask on; use --generate or --stdin")
        raise SystemExit(_WRONG_USAGE)
    if not password:
        terminal.complain("the password is empty; nothing changed")
        raise SystemExit(command_line.FAILED)
    return password


def _asked_twice() -> str:
    try:
        password = getpass.getpass("Password: ")
        again = getpass.getpass("Again: ")
    except EOFError:
        again = password = ""
    except UnicodeDecodeError:
        terminal.complain("that is no text in this terminal's encoding; nothing changed")
        raise SystemExit(command_line.FAILED) from None
    if again != password:
        terminal.complain("the two differ; nothing changed")
        raise SystemExit(command_line.FAILED)
    return password


def _told(options: argparse.Namespace, password: str, verb: str) -> int:
    if options.json:
        answer = {"name": options.name}
        if password and options.generate:
            answer["password"] = password
        terminal.print_json(answer)
    elif password and options.generate:
        print(f"{verb} {options.name}; the password, shown this once: {password}")
    else:
        print(f"{verb} {options.name}")
    return command_line.OK
