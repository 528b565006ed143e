"""Everything `run` would trip over, found before it runs: the whole check of a configuration.

    Checked = check("/etc/relayd/relayd.toml")

The loader judges keys and values; here the host is looked at (folders, file systems, room,
certificates) and each room is asked for its `problems(config)` and `warnings(config)`. Nothing is
changed and nothing outside this host is asked. A problem reads
`file:line: [table] key: what is wrong; what to do`.

Root looks at certificates with the eyes of the relay's own user, who has to read them.

The master forks a child for this (`run_checker`), so that it never imports what the rooms need.

Source: unix(7) (length of a socket's path), proc_pid_mountinfo(5), sysexits.h
"""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import json
import os
import pwd
import re
import shlex
import stat
import traceback
from collections.abc import Container, Iterator
from typing import Final

from relayd.config import codec, load, units, whole
from relayd.config.model import Config
from relayd.config.places import Path
from relayd.config.read import Problem, Tree
from relayd.config.resolve import spool_path
from relayd.errors import ConfigError
from relayd.master import files, upgrade
from relayd.spool import fit, former
from relayd.values import frozen

ROOMS: Final = ("relayd.net.tls", "relayd.access.plan", "relayd.spool.fit")
"""Rooms with `problems(config) -> list[str]`, or `warnings(config) -> list[str]`, or both."""

SERVICE_USER: Final = "relayd"
INSTALLED: Final = "/etc/relayd"
LONGEST_SOCKET_PATH: Final = 107
_NETWORKED: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "9p"})
_PASSING: Final = frozenset({"tmpfs", "ramfs"})
_FEW_INODES: Final = 0.01
_TLS_ROOM: Final = "relayd.net.tls"
_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108  not written to
"""What ProtectHome and PrivateTmp of the unit keep from the relay."""
_BOOTED: Final = "/run/systemd/system"
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_SHORT_FORM: Final = re.compile(r"\[(device|user|listener)\.([^\]]+)\]")


@frozen
class Checked:
    """A configuration that can be run with, and what its owner should know of it."""

    config: Config
    warnings: list[str]


class Host:
    """What is asked of this machine; tests give their own."""

    def is_root(self) -> bool:
        """Say whether this process may write everywhere."""
        return os.geteuid() == 0

    def may_write(self, folder: str) -> bool:
        """Say whether this process may make files in `folder`."""
        return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)

    def is_read_only(self, folder: str) -> bool:
        """Say whether nobody may write here: so mounted, or the unit shows it to us so."""
        try:
            return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
        except OSError:
            return False

    def service_may_write(self, folder: str) -> bool | None:
        """Say the same of the service's user, by owner and mode; None without such a user."""
        try:
            user = pwd.getpwnam(SERVICE_USER)
            status = os.stat(folder)
        except (KeyError, OSError):
            return None
        groups = os.getgrouplist(SERVICE_USER, user.pw_gid)
        return mode_allows(status, uid=user.pw_uid, groups=groups)

    def hides(self, config: str, file: str) -> str:
        """Return the folder that the unit of a configuration keeps `file` in; "" for none."""
        if not is_installed(config) or not os.path.isdir(_BOOTED):
            return ""
        path = os.path.realpath(file)
        return next((each for each in _HIDDEN if path.startswith(f"{each}/")), "")

    def file_system(self, path: str) -> str:
        """Return the kind of file system `path` is or would be on; "" when not told."""
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                return kind_of_mount(os.path.realpath(_existing(path)), file.read())
        except OSError:
            return ""

    def open_files(self) -> int:
        """Return how many files each process of a relay that is started from here may open."""
        return files.most()

    def room(self, folder: str) -> Room:
        """Return how much the file system of `folder` takes."""
        found = os.statvfs(folder)
        inodes = found.f_favail / found.f_files if found.f_files else 1.0
        return Room(found.f_bavail * found.f_frsize, inodes)


@frozen
class Room:
    """free: octets this user may still write; inodes: part of them free, 1 when not counted."""

    free: int
    inodes: float


THIS_HOST: Final = Host()


def check(path: str, host: Host = THIS_HOST, *, is_relay: bool = False) -> Checked:
    """Return the configuration in `path`, checked against this host.

    is_relay: this process is the relay, so what it may read is what counts.
    raises: ConfigError - all problems.
    """
    loaded = load.examine(path)
    config, tree = loaded.config, loaded.tree
    user = None if is_relay else relay_user(path, config.server.state_dir)
    problems = [tree.word(each) for each in _host_problems(config, host)]
    problems += [tree.word(each) for each in _ca_problems(config, path, user, host)]
    warnings = [tree.word(each) for each in _host_warnings(config, host)]
    if not is_relay:  # a worker tells it
        left = former.would_leave(config.server.state_dir, spool_path(config.spool.url))
        warnings += [f"[spool] url: {left}"] if left else []
    if is_relay or not is_installed(path):  # the unit has limits of its own
        warnings += [tree.word(each) for each in _file_warnings(config, host)]
    for name in ROOMS:
        room = importlib.import_module(name)
        with seen_by(user if name == _TLS_ROOM else None):
            problems += [_placed(tree, text) for text in _asked(room, "problems", config)]
            warnings += [_placed(tree, text) for text in _asked(room, "warnings", config)]
    if problems:
        raise ConfigError(problems)
    return Checked(config, loaded.warnings + warnings)


def needs_restart(config: Config, form: int) -> str:
    """Return why a running relay cannot become this code in place; "" if it can.

    form: how the running one would hand over (master.upgrade).
    """
    if form not in upgrade.READS:
        return upgrade.objection(form)
    return fit.standstill(config)


def run_checker(path: str, out_fd: int) -> int:
    """Check, and write the verdict to `out_fd` as one JSON object; for the master's child.

    {"ok": bool, "config": the codec's object or null, "problems": […], "warnings": […]}
    returns: the exit status, 0 or 78.
    """
    verdict: dict[str, object] = {"ok": False, "config": None, "problems": [], "warnings": []}
    try:
        checked = check(path, is_relay=True)
    except ConfigError as wrong:
        verdict["problems"] = wrong.problems
    except Exception as bug:  # noqa: BLE001  # the master waits for a verdict, not for a traceback
        traceback.print_exc()
        verdict["problems"] = [
            f"{path}: the check itself failed ({type(bug).__name__}); the traceback is in the log"
        ]
    else:
        config = json.loads(codec.dumps(checked.config))
        verdict |= {"ok": True, "config": config, "warnings": checked.warnings}
    octets = json.dumps(verdict).encode()
    while octets:
        octets = octets[os.write(out_fd, octets) :]
    return os.EX_OK if verdict["ok"] else os.EX_CONFIG


def _asked(room: object, question: str, config: Config) -> list[str]:
    answer = getattr(room, question, None)
    return list(answer(config)) if answer is not None else []


def _placed(tree: Tree, text: str) -> str:
    """Return a room's `[table] key: …` with file and line in front, as far as they are known."""
    wanted = _SHORT_FORM.sub(r'[[\1]] "\2"', text)
    found: Path = ()
    for path in tree.places:
        where = tree.where(path)
        if wanted.startswith((f"{where}:", f"{where} ")) and len(where) > len(tree.where(found)):
            found = path
    return f"{tree.place(found)}: {text}"


def _host_problems(config: Config, host: Host) -> Iterator[Problem]:
    yield from _folder_problems(config, host)
    for name in ("control.sock", "cache.sock"):
        path = os.path.join(config.server.runtime_dir, name)
        if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
            text = (
                f"{path} is longer than the {LONGEST_SOCKET_PATH} octets a socket's path may have; "
                "choose a shorter folder"
            )
            yield Problem(("server", "runtime_dir"), text)
    kind = host.file_system(spool_folder(config))
    if kind in _NETWORKED or kind.startswith("fuse.ssh"):
        text = f"lies on {kind}, where SQLite can lose mail; choose a folder on a local disk"
        yield Problem(("spool", "url"), text)


def _ca_problems(
    config: Config, path: str, user: pwd.struct_passwd | None, host: Host
) -> Iterator[Problem]:
    files: list[tuple[Path, str]] = [(("http", "ca_file"), config.http.ca_file)]
    files += [(("cloud", each.name, "ca_file"), each.ca_file) for each in config.cloud]
    for place, file in files:
        if file and (text := ca_problem(file, path, user, host)):
            yield Problem(place, text)


def ca_problem(
    file: str, config: str, user: pwd.struct_passwd | None, host: Host = THIS_HOST
) -> str:
    """Return why the relay could not trust the certificates in `file`, and what to do; or "".

    config: the configuration's path; user: whom the relay runs as (`relay_user`), None: as we do.
    """
    remedy = f"the relay's own user must be able to: install -m 644 {shlex.quote(file)}"
    remedy += f" {INSTALLED}/tls/, and name it there"
    try:
        with seen_by(user), open(file, "rb") as opened:
            is_pem = b"-----BEGIN CERTIFICATE-----" in opened.read(4_194_304)
    except OSError as trouble:
        advice = remedy if isinstance(trouble, PermissionError) else "name a PEM file"
        return f"{file} cannot be read ({trouble.strerror}); {advice}"
    if not is_pem:
        return f"{file} holds no certificate; name a PEM file"
    if user is not None and (folder := host.hides(config, file)):
        return f"{file} cannot be read by the service, which does not see {folder}; {remedy}"
    return ""


def is_installed(config: str) -> bool:
    """Say whether a configuration is the package's."""
    return os.path.abspath(config).startswith(f"{INSTALLED}/")


def relay_user(config: str, state_dir: str) -> pwd.struct_passwd | None:
    """Return whom the relay runs as; None: root, or nobody in particular.

    config: the configuration's path. The owner of state_dir, where it is somebody's; else
    "relayd", for an installed relay.
    """
    try:
        owner = os.stat(state_dir)
    except OSError:
        owner = None
    if owner is not None and owner.st_uid:
        return _by_number(owner)
    try:
        return pwd.getpwnam(SERVICE_USER) if is_installed(config) else None
    except KeyError:
        return None


def _by_number(owner: os.stat_result) -> pwd.struct_passwd:
    uid, gid = owner.st_uid, owner.st_gid
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        # SECURITY: of a container, which nobody named; that is no reason to stay root.
        return pwd.struct_passwd((str(uid), "x", uid, gid, "", "/", ""))


@contextlib.contextmanager
def seen_by(user: pwd.struct_passwd | None) -> Iterator[None]:
    """See files as `user` does, if we are root; all threads do meanwhile.

    Real and saved ids stay root's, so nobody else may touch this process meanwhile.
    """
    if user is None or user.pw_uid == 0 or os.geteuid() != 0:
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    try:
        os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
        os.setegid(user.pw_gid)
        os.seteuid(user.pw_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def _folders(config: Config) -> list[tuple[Path, str]]:
    folders: list[tuple[Path, str]] = [
        (("server", "runtime_dir"), config.server.runtime_dir),
        (("server", "state_dir"), config.server.state_dir),
        (("spool", "url"), spool_folder(config)),
    ]
    if config.log.file:
        folders.append((("log", "file"), os.path.dirname(config.log.file)))
    return folders


def _folder_problems(config: Config, host: Host) -> Iterator[Problem]:
    """Find folders that neither this user nor the service's could use or make."""
    for path, folder in _folders(config):
        there = _existing(folder)
        if not os.path.isdir(there):
            yield Problem(path, f"{there} is no folder; choose another or move the file away")
        elif host.is_read_only(there):
            text = (
                f"{there} is read-only: its file system is mounted so (dmesg may say why; "
                f"mount -o remount,rw), or the unit makes it so (ReadWritePaths={folder} "
                "by systemctl edit relayd)"
            )
            yield Problem(path, text)
        elif not host.may_write(there) and not host.service_may_write(there):
            text = f"{there} is not writable for uid {os.geteuid()}; chown it, or choose another"
            yield Problem(path, text)


def _host_warnings(config: Config, host: Host) -> Iterator[Problem]:
    for path, folder in _folders(config):
        is_there = os.path.isdir(folder) and host.is_root()
        if is_there and host.service_may_write(folder) is False:
            text = f"not writable for user {SERVICE_USER}; chown {SERVICE_USER} {folder}"
            yield Problem(path, text)
    kind = host.file_system(spool_folder(config))
    if kind in _PASSING:
        text = f"lies on {kind}: accepted mail does not survive a restart of this host"
        yield Problem(("spool", "url"), text)
    yield from _room_warnings(config, host)
    if not os.path.exists(os.path.join(config.server.state_dir, "users.toml")):
        yield from whole.nobody_may_send(config)
    yield from _admin_warnings(config)


def _admin_warnings(config: Config) -> Iterator[Problem]:
    address = config.admin.address
    if not address:
        return
    host = ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    if not host.is_loopback:
        text = (
            f"{address} can be asked by whoever reaches it, without a login: /metrics names "
            "devices, upstreams and mailboxes; let only the monitoring host through the firewall"
        )
        yield Problem(("admin", "address"), text)
    same_port = [
        one.name
        for one in config.listener
        if any(each.rpartition(":")[2] == address.rpartition(":")[2] for each in one.address)
    ]
    if same_port:
        text = f'[[listener]] "{same_port[0]}" has this port: no metrics; choose another here'
        yield Problem(("admin", "address"), text)


def _room_warnings(config: Config, host: Host) -> Iterator[Problem]:
    folder = _existing(spool_folder(config))
    room = host.room(folder)
    wanted = config.limits.min_free_disk + config.limits.max_message_size * 3 // 2
    if room.free < wanted:
        text = (
            f"{units.show_octets(room.free)} are free in {folder}, less than the "
            f"{units.show_octets(wanted)} wanted: mail is refused with 452; make room"
        )
        yield Problem(("spool", "url"), text)
    if room.inodes < _FEW_INODES:
        yield Problem(("spool", "url"), f"hardly any inodes are free in {folder}; make room")


def _file_warnings(config: Config, host: Host) -> Iterator[Problem]:
    wanted, openable = config.limits.max_connections, host.open_files()
    most = files.for_connections(wanted, openable)
    if most < wanted:
        text = (
            f"{wanted} may need more than the {openable} files that may be open here, two each: "
            f"more than {most} at once are refused with 421; raise LimitNOFILE of the unit, or "
            "ulimit -Hn"
        )
        yield Problem(("limits", "max_connections"), text)


def spool_folder(config: Config) -> str:
    """Return the folder the spool's database lies in."""
    return os.path.dirname(spool_path(config.spool.url))


def _existing(path: str) -> str:
    """Return `path`, or the nearest folder above it that is there."""
    path = os.path.abspath(path)
    while path != "/" and not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def mode_allows(status: os.stat_result, *, uid: int, groups: Container[int]) -> bool:
    """Say whether owner, group and mode let a user make files in a folder."""
    if status.st_uid == uid:
        wanted = stat.S_IWUSR | stat.S_IXUSR
    elif status.st_gid in groups:
        wanted = stat.S_IWGRP | stat.S_IXGRP
    else:
        wanted = stat.S_IWOTH | stat.S_IXOTH
    return status.st_mode & wanted == wanted


def kind_of_mount(path: str, mountinfo: str) -> str:
    """Return the kind of file system a real path lies on, from /proc/self/mountinfo."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        point = _OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[4])
        is_above = point in {"/", path} or path.startswith(point + "/")
        if is_above and len(point) >= len(best):  # a later mount covers an earlier one
            best, kind = point, fields[fields.index("-") + 1]
    return kind
