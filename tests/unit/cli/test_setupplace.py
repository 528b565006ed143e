"""What setup planned is checked before, put in place whole, and taken back whole."""

from __future__ import annotations

import grp
import os
import signal
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from relayd.check import Checked, check
from relayd.cli import files, setupplace, setupplan
from relayd.cli.setupplace import judged, owner_of, put
from relayd.cli.setupplan import Answers, Draft, Site, look, plan

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
ANSWERS = Answers(
    name="contoso",
    tenant="contoso.onmicrosoft.com",
    client_id="10000000-0000-0000-0000-000000000000",
    mailbox="alerts@contoso.com",
    cloud="global",
    networks=("192.168.10.0/24",),
    listen=("0.0.0.0:25", "[::]:25"),
    secret="s3cret~value",
)
TEXT = """\
[server]
hostname = "relay.test"
runtime_dir = "{folder}/run"
state_dir = "{folder}/state"
[spool]
url = "sqlite:///{folder}/spool/spool.db"
[tls]
source = "off"
[[listener]]
name = "lan"
address = ["127.0.0.1:25"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "relayd.toml").write_text(TEXT.format(folder=folder))
    (folder / "relayd.toml").chmod(0o640)
    (folder / "conf.d").mkdir()
    (folder / "conf.d/ups.toml").write_text(
        '[[device]]\nname = "ups"\nnetworks = ["10.0.0.5/32"]\n'
    )
    return folder


def planned(folder: Path, answers: Answers = ANSWERS) -> tuple[Site, list[Draft]]:
    site = look(str(folder / "relayd.toml"))
    return site, plan(site, answers)


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_would_be_written_is_checked_without_writing_it(folder: Path) -> None:
    before = snapshot(folder)
    problems, warnings = judged(*planned(folder))
    assert problems == []
    assert not any(".setup-" in text for text in warnings)
    problems, _ = judged(*planned(folder, replace(ANSWERS, cloud="nowhere")))
    (problem,) = problems
    assert problem.startswith(f"{folder}/relayd.toml:14: [upstream.contoso] cloud: ")
    assert snapshot(folder) == before
    assert {path.name for path in folder.iterdir()} == {"relayd.toml", "conf.d"}


def test_files_that_do_not_change_are_judged_with_the_rest(folder: Path) -> None:
    (folder / "conf.d/ups.toml").write_text('[[device]]\nname = "lan"\n')
    problems, _ = judged(*planned(folder))
    assert any(f"{folder}/conf.d/ups.toml:1: [[device]]" in text for text in problems)


def test_a_secret_named_by_its_whole_path_is_judged_with_its_new_value(folder: Path) -> None:
    path = f"{folder}/secrets/contoso"
    with (folder / "relayd.toml").open("a") as file:
        file.write(f'[upstream.contoso]\nclient_secret_file = "{path}"\n')
    site, drafts = planned(folder)
    assert judged(site, drafts)[0] == []
    put(site, drafts)
    assert Path(path).read_text() == "s3cret~value\n"


def test_leftovers_of_a_killed_run_go(folder: Path) -> None:
    stale = folder / ".setup-0123456789abcdef"
    (stale / "secrets").mkdir(parents=True)
    (stale / "secrets/contoso").write_text("s")
    (folder / ".setup-notes").mkdir()
    judged(*planned(folder))
    assert not stale.exists()
    assert (folder / ".setup-notes").exists(), "not ours"


def test_a_run_at_work_beside_keeps_its_stage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, drafts = planned(folder)
    begun: list[str] = []

    def check_beside(config: str) -> Checked:
        if not begun:
            begun.append(config)
            assert judged(site, drafts)[0] == []
            assert Path(config).exists()
        return check(config)

    monkeypatch.setattr(setupplace, "check", check_beside)
    assert judged(site, drafts)[0] == []
    assert begun


def test_what_somebody_else_wrote_meanwhile_is_not_lost(folder: Path) -> None:
    site, drafts = planned(folder)
    with (folder / "relayd.toml").open("a") as file:
        file.write("# mine\n")
    before = snapshot(folder)
    with pytest.raises(OSError, match="somebody else changed it meanwhile"):
        put(site, drafts)
    assert snapshot(folder) == before
    assert not (folder / "secrets").exists()


def test_files_come_whole_with_their_modes_and_a_copy_of_what_was_there(folder: Path) -> None:
    site, drafts = planned(folder)
    before = (folder / "relayd.toml").read_bytes()
    placed = put(site, drafts)
    assert stat.S_IMODE((folder / "secrets").stat().st_mode) == 0o750
    for name in ("secrets/contoso", "relayd.toml"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o640, name
    (copy,) = placed.kept
    assert copy.startswith(f"{folder}/relayd.toml.before-setup-20")
    assert Path(copy).read_bytes() == before
    assert judged(*planned(folder)) == judged(site, [])
    assert planned(folder)[1] == []


def test_a_link_stays_one(folder: Path) -> None:
    kept = folder.parent / "kept.toml"
    (folder / "relayd.toml").rename(kept)
    (folder / "relayd.toml").symlink_to(kept)
    before = kept.read_bytes()
    placed = put(*planned(folder))
    assert (folder / "relayd.toml").is_symlink()
    assert b"[upstream.contoso]" in kept.read_bytes()
    placed.take_back()
    assert (folder / "relayd.toml").is_symlink()
    assert kept.read_bytes() == before


def test_a_packaged_file_needs_no_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = folder.parent / "packaged.toml"
    packaged.write_bytes((folder / "relayd.toml").read_bytes())
    monkeypatch.setattr(setupplan, "TEMPLATES", (str(packaged),))
    assert put(*planned(folder)).kept == []


def test_taken_back_everything_is_as_it_was(folder: Path) -> None:
    (folder / "relayd.toml").chmod(0o600)
    before = snapshot(folder)
    placed = put(*planned(folder))
    placed.take_back()
    assert snapshot(folder) == before
    assert not (folder / "secrets").exists()


def test_a_write_that_fails_leaves_everything_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(folder)
    replace_file = files.replace

    def full(path: str, octets: bytes, owner: files.Owner) -> None:
        if path.endswith("relayd.toml") and b"contoso" in octets:
            raise OSError(28, "No space left on device", path)
        replace_file(path, octets, owner)

    monkeypatch.setattr(files, "replace", full)
    with pytest.raises(OSError, match="No space"):
        put(*planned(folder))
    assert snapshot(folder) == before


def test_ctrl_c_while_it_is_written_leaves_everything_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(folder)
    make_folder = files.make_folder

    def pressed(path: str, owner: files.Owner) -> bool:
        # To this thread, as other tests leave threads behind that would take it.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        return make_folder(path, owner)

    assert threading.current_thread() is threading.main_thread()
    monkeypatch.setattr(files, "make_folder", pressed)
    site, drafts = planned(folder)
    with pytest.raises(KeyboardInterrupt):
        put(site, drafts)
    assert snapshot(folder) == before  # which is what setup says then


@needs_root
def test_the_secret_is_roots_and_readable_for_the_relays_group(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, drafts = planned(folder)
    group = grp.struct_group(("relayd", "x", 4242, []))
    monkeypatch.setattr(grp, "getgrnam", lambda _name: group)
    put(site, drafts)
    secret = (folder / "secrets/contoso").stat()
    assert (secret.st_uid, secret.st_gid, stat.S_IMODE(secret.st_mode)) == (0, 4242, 0o640)
    assert (folder / "secrets").stat().st_gid == 4242
    # What was there keeps its owner.
    os.chown(folder / "relayd.toml", 65534, 65534)
    site, drafts = planned(folder, replace(ANSWERS, mailbox="other@contoso.com"))
    put(site, drafts)
    assert (folder / "relayd.toml").stat().st_uid == 65534


@needs_root
def test_without_the_relays_group_it_is_for_whoever_the_configuration_is_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_name: str) -> Callable[[], None]:
        raise KeyError

    monkeypatch.setattr(grp, "getgrnam", unknown)
    os.chown(folder / "relayd.toml", 0, 4243)
    site, drafts = planned(folder)
    assert owner_of(site, drafts[0]).gid == 4243
