"""Users: those in the configuration, and those `relayd user` keeps in state_dir/users.toml.

    Users      a worker's view; the file's stat is looked at on each login
    UsersFile  what the command line reads and writes

The file holds [[user]] tables as relayd.toml does. A broken file keeps the users known
before and is logged once; a name in both places is the configuration's (and `check` says so).

Source: rename(2), fsync(2).
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import secrets
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Final, TypeAlias, cast

import structlog

from relayd.access import passwords
from relayd.access.patterns import address_problems, pattern_problems
from relayd.config.build import Wrong, convert, key_of
from relayd.config.codec import hints
from relayd.config.model import Config, Secret, User
from relayd.config.rules import rule_for
from relayd.config.units import show_seconds
from relayd.errors import ConfigError, Unavailable

log = structlog.get_logger()

FILE_NAME: Final = "users.toml"
_SIZE_LIMIT: Final = 8 * 1024 * 1024
_KEPT: Final = (
    "name", "password_hash", "upstream", "from_", "default_from", "allow_from", "allow_to",
    "priority", "hide", "lf_dot", "reply", "max_age",
)  # fmt: skip
_SECRETS: Final = frozenset({"password_hash"})
_OPENING: Final = "# Written by `relayd user`; comments in here are not kept.\n"

Stamp: TypeAlias = "tuple[int, int, int, int] | None"

_PASSING: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN, errno.EINTR, errno.ESTALE}
)
"""Why a file may be unreadable now and not be refused for it: nothing in it has changed."""


def path_in(config: Config) -> str:
    """Return where the users of this configuration are kept."""
    return os.path.join(config.server.state_dir, FILE_NAME)


class Users:
    """Looks users up by name; one for each worker. Never raises."""

    __slots__ = ("_complained", "_configured", "_kept", "_path", "_stamp")

    def __init__(self, config: Config) -> None:
        self._configured = {user.name: user for user in config.user}
        self._path = path_in(config)
        self._kept: dict[str, User] = {}
        self._stamp: Stamp = None
        self._complained = False
        self.refresh()

    def find(self, name: str) -> User | None:
        """Return the user; the file as last read."""
        return self._configured.get(name) or self._kept.get(name)

    def all(self) -> tuple[User, ...]:
        """Return everybody who may log in; the file as last read."""
        return tuple((self._kept | self._configured).values())

    def refresh(self) -> None:
        """Read the file again if it is another than before; call before judging a login.

        What cannot be read just now (no descriptor left, a disk error) leaves the users known
        before in force, and is tried again at the next login.
        """
        try:
            stamp = _stamp(self._path)
        except OSError as error:
            self._complain([f"{self._path} cannot be looked at: {error.strerror}"])
            return
        if stamp == self._stamp:
            return
        try:
            users = read_users(self._path) if stamp is not None else ()
        except ConfigError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in _PASSING:
                self._complain(error.problems)
                return
            self._stamp = stamp
            log.warning("users.refused", path=self._path, problems=error.problems)
            return
        self._stamp = stamp
        self._complained = False
        for name in sorted(self._configured.keys() & {user.name for user in users}):
            log.warning("users.hidden", user=name, path=self._path)
        self._kept = {user.name: user for user in users}

    def _complain(self, problems: Sequence[str]) -> None:
        """Log what may pass, once until it has passed."""
        if not self._complained:
            log.warning("users.refused", path=self._path, problems=problems)
        self._complained = True


def _stamp(path: str) -> Stamp:
    """Return what tells one version of the file from the next; None if there is none.

    raises: OSError - it cannot be seen whether there is one.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    # The change time too: a chown that lets us read it again changes nothing else.
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


# ---- reading ---------------------------------------------------------------------------


def read_users(path: str) -> tuple[User, ...]:
    """Return the users in a file, in its order; none if there is no file.

    raises: ConfigError - it cannot be read, or something in it is wrong; all problems.
    """
    try:
        # SECURITY: no link: root reads this in a folder of relayd's, and shows what is wrong in it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            octets = file.read(_SIZE_LIMIT + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from error
    if len(octets) > _SIZE_LIMIT:
        raise ConfigError([f"{path} is larger than {_SIZE_LIMIT} octets"])
    return parse_users(octets, path)


def parse_users(octets: bytes, path: str) -> tuple[User, ...]:
    """Return the users in the text of a file; raises ConfigError with all problems."""
    try:
        data = tomllib.loads(octets.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{path} is no TOML: {error}"]) from error
    rows = data.pop("user", [])
    problems = [f'{path}: unknown table "{key}"; only [[user]] stands here' for key in data]
    users: list[User] = []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError([*problems, f"{path}: write [[user]] with two brackets"])
    for row in rows:
        user, complaints = _parse_user(row)
        problems += [f'{path}: user "{user.name}": {complaint}' for complaint in complaints]
        if any(other.name == user.name for other in users):
            problems.append(f'{path}: user "{user.name}" is there twice')
        users.append(user)
    if problems:
        raise ConfigError(problems)
    return tuple(users)


def _parse_user(row: Mapping[str, object]) -> tuple[User, list[str]]:
    kinds = {key_of(field): (field, kind) for field, kind in hints(User).items() if field in _KEPT}
    values: dict[str, object] = {"name": str(row.get("name", ""))}
    complaints = [f"unknown key {key}" for key in row if key not in kinds]
    for key, (field, kind) in kinds.items():
        if key not in row and field != "name":
            continue
        try:
            value = _value(field, kind, row.get(key, ""))
        except Wrong as wrong:
            complaints.append(f"{key}: {wrong}")
            continue
        values[field] = value
    user = User(**values)  # type: ignore[arg-type]  # by name and type from its hints
    for key in ("from_", "default_from"):
        complaints += address_problems(key.rstrip("_"), getattr(user, key))
    for key in ("allow_from", "allow_to"):
        complaints += pattern_problems(key, getattr(user, key))
    return user, complaints


def _value(field: str, kind: object, raw: object) -> object:
    """Return one value as the model has it; raises Wrong."""
    if field in _SECRETS:
        if not isinstance(raw, str):
            raise Wrong("is no text")
        complaint = passwords.complaint(raw)
        if complaint is not None:
            raise Wrong(complaint)
        return Secret(raw)
    value = convert(kind, raw)
    rule = rule_for(User, field)
    for part in value if isinstance(value, tuple) else (value,):
        complaint = rule(part) if rule is not None else None
        if complaint is not None:
            raise Wrong(complaint)
    return value


# ---- writing ---------------------------------------------------------------------------


class UsersFile:
    """state_dir/users.toml in the hands of the command line.

    Each change reads, edits and replaces the file whole, under a lock on its folder; a
    reader sees the old file or the new one. All methods raise ConfigError (the file is
    broken: nothing is changed) and Unavailable (somebody else is changing it, or the disk
    refuses).

    owner: (uid, gid) to whom the file goes where it, or its folder when it is new, is root's:
           workers must be able to read it. None: it stays root's.
    """

    __slots__ = ("_owner", "_path")

    def __init__(self, path: str, *, owner: tuple[int, int] | None = None) -> None:
        self._path = path
        self._owner = owner

    def list(self) -> tuple[User, ...]:
        """Return all users, in the order they were added."""
        return read_users(self._path)

    def add(self, user: User) -> bool:
        """Add a user; False: the name is taken. raises: ConfigError - a value is no good."""
        return self._change(
            lambda users: (
                None if any(other.name == user.name for other in users) else (*users, user)
            )
        )

    def set_password(self, name: str, password_hash: str) -> bool:
        """Give a user another password; False: there is no such user."""

        def change(users: tuple[User, ...]) -> tuple[User, ...] | None:
            if not any(user.name == name for user in users):
                return None
            secret = Secret(password_hash)
            return tuple(
                dataclasses.replace(user, password_hash=secret) if user.name == name else user
                for user in users
            )

        return self._change(change)

    def delete(self, name: str) -> bool:
        """Remove a user; False: there is none of that name."""

        def change(users: tuple[User, ...]) -> tuple[User, ...] | None:
            rest = tuple(user for user in users if user.name != name)
            return None if len(rest) == len(users) else rest

        return self._change(change)

    def _change(self, change: Callable[[tuple[User, ...]], tuple[User, ...] | None]) -> bool:
        folder, name = os.path.split(self._path)
        try:
            with _locked(folder) as descriptor:
                users = change(read_users(self._path))
                if users is None:
                    return False
                text = render_users(users).encode("utf-8")
                parse_users(text, self._path)  # what could not be read back is not written
                _replace(descriptor, name, text, self._owner)
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be changed: {error.strerror}") from error
        return True


@contextmanager
def _locked(folder: str) -> Iterator[int]:
    """Hold the folder's lock; gives its descriptor. raises: Unavailable, OSError."""
    descriptor = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unavailable("another `relayd user` is changing the file; try again") from error
        yield descriptor
    finally:
        os.close(descriptor)


def _replace(folder: int, name: str, octets: bytes, owner: tuple[int, int] | None = None) -> None:
    """Put `octets` in place of the file `name`, mode 0600; for the owner see UsersFile."""
    # SECURITY: root may run this in a folder that belongs to relayd, so no link is followed.
    temporary = f".{name}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb") as file:
            _give(descriptor, _owner(folder, name, owner))
            file.write(octets)
            file.flush()
            # DURABILITY: content, then name, then the folder that holds the name; a power cut
            # between any two leaves the old file or the new one.
            os.fsync(descriptor)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def _owner(folder: int, name: str, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Return (uid, gid) of the file to replace, its folder or `wanted`: the first not root's."""
    found = [os.fstat(folder)]
    with suppress(FileNotFoundError):
        found.insert(0, os.stat(name, dir_fd=folder, follow_symlinks=False))
    owners = [(one.st_uid, one.st_gid) for one in found]
    return next((one for one in (*owners, wanted) if one is not None and one[0] != 0), owners[0])


def _give(descriptor: int, owner: tuple[int, int]) -> None:
    mine = os.fstat(descriptor)
    # Only root can give away, and only root would keep the relay from its own file.
    if (mine.st_uid, mine.st_gid) != owner:
        os.fchown(descriptor, *owner)


def render_users(users: Iterable[User]) -> str:
    """Return the text of the file; defaults are left out."""
    return _OPENING + "".join(_render(user) for user in users)


def _render(user: User) -> str:
    lines = ["", "[[user]]"]
    plain = User(name="")
    for field in _KEPT:
        value = getattr(user, field)
        if value == getattr(plain, field) and field != "name":
            continue
        if isinstance(value, Secret):
            value = value.reveal()
        elif isinstance(value, float):
            value = show_seconds(value)
        lines.append(f"{key_of(field)} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(part) for part in cast("tuple[object, ...]", value)) + "]"
    return '"' + "".join(_toml_character(character) for character in str(value)) + '"'


def _toml_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    # TOML 1.0: controls must be escaped. A surrogate has no escape: reading back refuses it.
    return character if character.isprintable() else f"\\U{ord(character):08X}"


# ---- check -----------------------------------------------------------------------------


def problems(config: Config) -> list[str]:
    """Return what is wrong with users, in the configuration and in the file."""
    found = [problem for user in config.user for problem in _password_problems(user)]
    path = path_in(config)
    try:
        kept = read_users(path) if os.access(path, os.R_OK) else ()
    except ConfigError as error:
        return found + error.problems
    configured = {user.name.lower() for user in config.user}
    upstreams = {upstream.name for upstream in config.upstream}
    for user in kept:
        if user.name.lower() in configured:
            found.append(
                f'[[user]] "{user.name}" is in {path} too; '
                f"remove one of them (relayd user delete {user.name})"
            )
        if user.upstream and user.upstream not in upstreams:
            found.append(
                f'{path}: user "{user.name}": no [upstream.{user.upstream}] there is; add it'
            )
    return found


def _password_problems(user: User) -> list[str]:
    if not user.password_hash:
        return []  # the loader says so
    complaint = passwords.complaint(user.password_hash.reveal())
    return [] if complaint is None else [f'[[user]] "{user.name}" password_hash: {complaint}']
