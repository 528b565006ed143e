"""What is looked at on the host, how rooms are asked, and what the master is told."""

from __future__ import annotations

import errno
import json
import os
import pwd
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from relayd import check as check_room
from relayd.check import (
    THIS_HOST,
    Checked,
    Host,
    Room,
    check,
    kind_of_mount,
    mode_allows,
    run_checker,
)
from relayd.config import codec
from relayd.errors import ConfigError
from relayd.master import files

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has others' eyes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("run", "state", "spool"):
        (tmp_path / name).mkdir(mode=0o700)
    return tmp_path


def put(folder: Path, more: str = "", **changed: str) -> str:
    where = {"run": folder / "run", "state": folder / "state", "spool": folder / "spool"} | changed
    path = folder / "relayd.toml"
    path.write_text(
        f"""
        [server]
        hostname = "relay.example.com"
        runtime_dir = "{where["run"]}"
        state_dir = "{where["state"]}"
        [spool]
        url = "sqlite://{where["spool"]}/spool.db"
        {more}
        """
    )
    path.chmod(0o600)
    return str(path)


def problems_of(path: str, host: Host = THIS_HOST) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(path, host)
    return caught.value.problems


def host_warnings(path: str, host: Host | None = None) -> list[str]:
    found = check(path, host or Odd()).warnings
    return [each for each in found if "nothing can be sent" not in each]


def test_a_sound_configuration_is_returned_with_its_warnings(folder: Path) -> None:
    checked = check(put(folder))
    assert isinstance(checked, Checked)
    assert checked.config.server.hostname == "relay.example.com"
    assert any("nothing can be sent yet" in each for each in checked.warnings)


def test_folders_that_can_be_made_are_no_problem(folder: Path) -> None:
    check(put(folder, run=str(folder / "a/b/c")))
    assert not (folder / "a").exists()


def test_a_folder_that_is_a_file_is_told_with_its_line(folder: Path) -> None:
    (folder / "state").rmdir()
    (folder / "state").touch()
    (problem,) = problems_of(put(folder))
    assert problem.endswith(
        f":5: [server] state_dir: {folder}/state is no folder; choose another or move the file away"
    )


class Odd(Host):
    """This host, but for what a test says."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers

    def is_root(self) -> bool:
        return bool(self.answers.get("is_root", False))

    def may_write(self, folder: str) -> bool:
        return "spool" not in folder or bool(self.answers.get("may_write", True))

    def is_read_only(self, folder: str) -> bool:
        return "spool" in folder and bool(self.answers.get("is_read_only", False))

    def service_may_write(self, folder: str) -> bool | None:
        answer = self.answers.get("service_may_write")
        return None if answer is None or "spool" not in folder else bool(answer)

    def file_system(self, path: str) -> str:
        return str(self.answers.get("file_system", "ext4"))

    def open_files(self) -> int:
        files = self.answers.get("open_files", 65_536)
        assert isinstance(files, int)
        return files

    def room(self, folder: str) -> Room:
        room = self.answers.get("room", Room(10**12, 1.0))
        assert isinstance(room, Room)
        return room


def test_a_folder_nobody_may_write_is_told(folder: Path) -> None:
    (problem,) = problems_of(put(folder), Odd(may_write=False))
    assert f"[spool] url: {folder}/spool is not writable for uid" in problem
    assert problems_of(put(folder), Odd(may_write=False, service_may_write=False))


def test_a_read_only_folder_is_told_whoever_may_write_there(folder: Path) -> None:
    odd = Odd(is_read_only=True, may_write=False, service_may_write=True, is_root=True)
    (problem,) = problems_of(put(folder), odd)
    assert f"[spool] url: {folder}/spool is read-only: its file system is mounted so" in problem
    assert f"ReadWritePaths={folder}/spool" in problem


def test_the_mount_says_what_is_read_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Host().is_read_only(str(folder))
    assert not Host().is_read_only(str(folder / "missing"))
    flags = os.ST_RDONLY | os.ST_NOSUID
    found = os.statvfs_result((4096, 4096, 9, 9, 9, 9, 9, 9, flags, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert Host().is_read_only(str(folder))


def test_more_slashes_than_needed_are_not_shown(folder: Path) -> None:
    (problem,) = problems_of(put(folder, spool=f"/{folder}/spool"), Odd(is_read_only=True))
    assert f"[spool] url: {folder}/spool is read-only" in problem


def test_more_connections_than_files_may_be_open_are_warned_of(folder: Path) -> None:
    path = put(folder, "[limits]\nmax_connections = 900")
    (warning,) = host_warnings(path, Odd(open_files=1024))
    assert "[limits] max_connections: 900 may need more than the 1024 files" in warning
    assert "more than 384 at once are refused with 421" in warning
    assert host_warnings(path, Odd(open_files=2056)) == []


def test_mail_in_a_former_spool_is_told_before_the_start_and_by_the_relay_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.spool.former.would_leave", lambda _state, path: f"left by {path}")
    path = put(folder)
    told = f"[spool] url: left by {folder}/spool/spool.db"
    assert any(told in each for each in check(path).warnings)
    assert not any(told in each for each in check(path, is_relay=True).warnings)


def test_the_files_a_shell_may_open_say_nothing_of_the_unit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(folder, "[limits]\nmax_connections = 900")
    monkeypatch.setattr(check_room, "INSTALLED", str(folder))
    monkeypatch.setattr(check_room, "relay_user", lambda *_: None)
    assert host_warnings(path, Odd(open_files=1024)) == []
    warnings = check(path, Odd(open_files=1024), is_relay=True).warnings
    assert any("max_connections" in each for each in warnings)


def test_what_a_relay_from_here_may_open_is_asked_of_the_system() -> None:
    assert Host().open_files() == files.most()


def test_an_operator_need_not_be_able_to_write_what_the_service_can(folder: Path) -> None:
    check(put(folder), Odd(may_write=False, service_may_write=True))


def test_root_is_warned_of_what_the_service_cannot_write(folder: Path) -> None:
    (warning,) = host_warnings(put(folder), Odd(is_root=True, service_may_write=False))
    assert f"not writable for user relayd; chown relayd {folder}/spool" in warning
    assert host_warnings(put(folder), Odd(is_root=True, service_may_write=True)) == []
    assert host_warnings(put(folder), Odd(is_root=True)) == []
    not_there = put(folder, spool=str(folder / "spool/new"))
    assert host_warnings(not_there, Odd(is_root=True, service_may_write=False)) == []


@pytest.mark.parametrize(
    ("owner", "group", "mode", "may"),
    [
        ("same", "other", 0o700, "yes"),
        ("same", "same", 0o070, "no"),
        ("other", "same", 0o070, "yes"),
        ("other", "same", 0o707, "no"),
        ("other", "other", 0o007, "yes"),
        ("other", "other", 0o770, "no"),
    ],
)
def test_owner_group_and_mode_say_who_may_write(
    folder: Path, owner: str, group: str, mode: int, may: str
) -> None:
    (folder / "spool").chmod(mode)
    status = os.stat(folder / "spool")
    (folder / "spool").chmod(0o700)
    uid = status.st_uid if owner == "same" else status.st_uid + 1
    groups = [status.st_gid if group == "same" else status.st_gid + 1]
    assert mode_allows(status, uid=uid, groups=groups) is (may == "yes")


def test_this_host_answers(folder: Path) -> None:
    host = Host()
    assert host.is_root() is (os.geteuid() == 0)
    assert host.may_write(str(folder))
    assert host.service_may_write("/nonexistent") is None
    assert host.service_may_write(str(folder)) in {None, True, False}
    assert host.file_system("/proc/self") == "proc"
    assert host.file_system(f"{folder}/a/b") == host.file_system(str(folder)) != ""
    assert host.room(str(folder)).free > 0
    assert 0 <= host.room(str(folder)).inodes <= 1


def test_a_socket_has_107_octets_for_its_path(folder: Path) -> None:
    room = 107 - len(str(folder)) - len("//control.sock")
    check(put(folder, run=f"{folder}/{'x' * room}"))
    (problem,) = problems_of(put(folder, run=f"{folder}/{'x' * (room + 1)}"))
    assert "control.sock is longer than the 107 octets" in problem


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_a_spool_on_the_network_is_refused(folder: Path, kind: str) -> None:
    (problem,) = problems_of(put(folder), Odd(file_system=kind))
    assert f"[spool] url: lies on {kind}, where SQLite can lose mail" in problem


def test_a_spool_in_memory_is_warned_of(folder: Path) -> None:
    (warning,) = host_warnings(put(folder), Odd(file_system="tmpfs"))
    assert "does not survive a restart" in warning


def test_too_little_room_is_warned_of(folder: Path) -> None:
    space, inodes = host_warnings(put(folder), Odd(room=Room(40960, 0.009)))
    assert "40960 are free" in space
    assert "452" in space
    assert "hardly any inodes" in inodes


MOUNTS = r"""22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
23 22 0:21 / /proc rw - proc proc rw
40 22 0:30 / /srv/my\040mail rw shared:5 master:2 - nfs4 host:/x rw
41 22 0:31 / /srv/over rw - ext4 /dev/a rw
42 41 0:32 / /srv/over rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/spool/relayd", "ext4"),
        ("/srv/my mail", "nfs4"),
        ("/srv/my mail/not/there/yet", "nfs4"),
        ("/srv/my mailbox", "ext4"),
        ("/srv/over/x", "tmpfs"),
        ("/", "ext4"),
    ],
)
def test_the_last_and_longest_mount_tells_the_kind(path: str, kind: str) -> None:
    assert kind_of_mount(path, MOUNTS) == kind


def test_a_ca_file_the_relay_may_not_read_says_where_to_put_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: str, *how: Any, **more: Any) -> Any:
        if file == "/srv/ca.pem":
            raise PermissionError(errno.EACCES, "Permission denied")
        return Path(file).open(*how, **more)

    path = put(folder, '[http]\nca_file = "/srv/ca.pem"')
    monkeypatch.setattr("relayd.check.open", refused, raising=False)
    (told,) = problems_of(path)
    assert "/srv/ca.pem cannot be read (Permission denied)" in told
    assert "install -m 644 /srv/ca.pem /etc/relayd/tls/" in told


@needs_root
def test_root_looks_at_certificates_with_the_relays_eyes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_room, "relay_user", lambda *_: pwd.getpwnam("nobody"))
    kept = folder / "kept"
    kept.mkdir(mode=0o700)
    (kept / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    tls = f'[tls]\nsource = "file"\ncertificate = "{kept}/ca.pem"\nkey = "{kept}/ca.pem"\n'
    path = put(folder, f'[http]\nca_file = "{kept}/ca.pem"\n{tls}{LAN}')
    before = (os.geteuid(), os.getegid(), os.getgroups())
    told = problems_of(path)
    assert [each.partition("] ")[2].partition(":")[0] for each in told] == [
        "ca_file", "certificate", "key",
    ]  # fmt: skip
    assert all("ermission denied" in each for each in told)
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before, "and is itself again"
    # What everybody may read, it may.
    (told_of_passwd,) = problems_of(put(folder, '[http]\nca_file = "/etc/passwd"'))
    assert "holds no certificate" in told_of_passwd
    # The relay's own check goes by what it can read itself.
    check(put(folder, f'[http]\nca_file = "{kept}/ca.pem"'), is_relay=True)


def test_what_the_units_sandbox_hides_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(check_room, "INSTALLED", str(folder))
    monkeypatch.setattr(check_room, "relay_user", lambda *_: me)
    monkeypatch.setattr(check_room, "_BOOTED", str(folder))
    monkeypatch.setattr(check_room, "_HIDDEN", (str(folder / "home"),))
    for name in ("home", "tls"):
        (folder / name).mkdir(mode=0o700)
        (folder / name / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    check(put(folder, f'[http]\nca_file = "{folder}/tls/ca.pem"'))
    path = put(folder, f'[http]\nca_file = "{folder}/home/ca.pem"')
    (told,) = problems_of(path)
    assert f"by the service, which does not see {folder}/home; " in told
    check(path, is_relay=True)
    monkeypatch.setattr(check_room, "_BOOTED", str(folder / "none"))
    check(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot be read"), (b"", "holds no certificate")],
)
def test_a_ca_file_must_hold_certificates(folder: Path, content: bytes | None, told: str) -> None:
    if content is not None:
        (folder / "ca.pem").write_bytes(content)
    more = f"""
        [http]
        ca_file = "{folder}/ca.pem"
        [cloud.lab]
        authority = "https://127.0.0.1"
        graph = "https://127.0.0.1/v1.0"
        ca_file = "{folder}/ca.pem"
    """
    http, lab = problems_of(put(folder, more))
    assert "[http] ca_file" in http
    assert "[cloud.lab] ca_file" in lab
    assert told in http
    (folder / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    check(put(folder, more))


def test_the_folder_of_the_log_is_looked_at(folder: Path) -> None:
    (problem,) = problems_of(put(folder, '[log]\nfile = "/dev/null/relayd.log"'))
    assert "[log] file: /dev/null is no folder" in problem


@pytest.mark.parametrize("address", ["0.0.0.0:8025", "[::]:8025", "192.0.2.1:8025"])
def test_metrics_that_others_can_read_are_told(folder: Path, address: str) -> None:
    (warning,) = host_warnings(put(folder, f'[admin]\naddress = "{address}"'))
    assert f"[admin] address: {address} can be asked" in warning
    assert "without a login" in warning


def test_metrics_on_the_port_of_a_listener_are_told(folder: Path) -> None:
    (folder / "state/users.toml").touch()
    (warning,) = host_warnings(put(folder, LAN + '[admin]\naddress = "127.0.0.1:25"'))
    assert '[admin] address: [[listener]] "lan" has this port' in warning


@pytest.mark.parametrize("address", ["", "127.0.0.1:9", "127.9.9.9:8025", "[::1]:8025"])
def test_metrics_on_loopback_or_none_are_fine(folder: Path, address: str) -> None:
    assert host_warnings(put(folder, f'[admin]\naddress = "{address}"')) == []


LAN = """
        [[listener]]
        name = "lan"
        address = ["0.0.0.0:25"]
"""


def test_a_listener_nobody_may_send_to_is_told_unless_there_are_users(folder: Path) -> None:
    (warning,) = host_warnings(put(folder, LAN))
    assert '[[listener]] "lan": nobody may send here' in warning
    (folder / "state/users.toml").touch()
    assert host_warnings(put(folder, LAN)) == []


DEVICES = """
        [[device]]
        name = "ups"
        networks = ["10.0.0.5"]
        from = "a@b.example"
"""


def test_rooms_are_asked_and_their_words_get_a_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ['[[device]] "ups" from: is odd; mend it', "[device.ups] networks: x; y", "whole: z; y"]
    room = ModuleType("room")
    room.__dict__.update(problems=lambda _: texts, warnings=lambda _: ["[server]: w"])
    monkeypatch.setitem(sys.modules, "relayd.room_of_a_test", room)
    monkeypatch.setattr(check_room, "ROOMS", ("relayd.room_of_a_test",))
    path = put(folder, DEVICES)
    assert problems_of(path) == [
        f"{path}:12: {texts[0]}",
        f"{path}:11: {texts[1]}",
        f"{path}: {texts[2]}",
    ]
    texts.clear()
    assert f"{path}:2: [server]: w" in check(path).warnings


def verdict_of(path: str) -> tuple[int, dict[str, object]]:
    with os.fdopen(os.memfd_create("verdict"), "r+b", buffering=0) as file:
        status = run_checker(path, file.fileno())
        file.seek(0)
        verdict: dict[str, object] = json.loads(file.read())
    return status, verdict


def test_the_master_gets_what_was_checked(folder: Path) -> None:
    path = put(folder)
    status, verdict = verdict_of(path)
    assert status == 0
    assert verdict["ok"] is True
    assert verdict["problems"] == []
    assert codec.loads(json.dumps(verdict["config"]).encode()) == check(path).config


def test_the_master_gets_every_problem(folder: Path) -> None:
    status, verdict = verdict_of(put(folder, "zzz = 1"))
    assert status == 78
    assert verdict["ok"] is False
    assert verdict["config"] is None
    assert "unknown key" in str(verdict["problems"])


def test_a_bug_in_the_check_is_a_verdict_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(path: str, *, is_relay: bool) -> Checked:
        assert is_relay, "the master's child is the relay: what it reads itself counts"
        raise LookupError("geheim")

    monkeypatch.setattr(check_room, "check", broken)
    status, verdict = verdict_of(put(folder))
    assert status == 78
    assert "the check itself failed (LookupError)" in str(verdict["problems"])
    assert "geheim" not in str(verdict["problems"])
    assert "Traceback" in capsys.readouterr().err
