"""A secret is put where the relay reads it and nobody else, and is never shown again."""

from __future__ import annotations

import grp
import io
import json
import os
import stat
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from relayd.cli import secret
from tests.control_socket import Terminal, relayd

VALUE = "Abc8Q~planted-secret-value-0123456789-xyz"
GUID = "12345678-1234-1234-1234-123456789abc"
CONFIG = """
[upstream.contoso]
client_secret_file = "secrets/contoso"
next_client_secret_credential = "next"
ca_file = "/etc/ssl/ca.pem"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "relayd.toml"
    path.write_text(CONFIG.format(folder=tmp_path))
    monkeypatch.setattr(secret, "CREDSTORE", str(tmp_path / "credstore"))
    monkeypatch.setattr(secret, "UNIT_FOLDERS", (str(tmp_path / "units"),))
    return path


def run(config: Path, *words: str) -> int:
    return relayd("--config", str(config), "secret", *words)


def given(monkeypatch: pytest.MonkeyPatch, octets: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(octets)))


def test_a_secret_becomes_a_file_only_the_relay_reads(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, f"{VALUE}\r\n".encode())
    assert run(config, "set", "fabrikam", "--stdin") == 0
    path = config.parent / "secrets/fabrikam"
    assert path.read_text() == f"{VALUE}\n"
    assert not path.stat().st_mode & stat.S_IRWXO
    assert not path.parent.stat().st_mode & stat.S_IRWXO
    out, err = capsys.readouterr()
    assert f'client_secret_file = "{path}"' in out
    assert "41 characters" in out
    assert VALUE not in out + err
    assert os.listdir(path.parent) == ["fabrikam"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_gives_the_file_to_the_relays_group(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = grp.struct_group(("relayd", "x", 4321, []))
    monkeypatch.setattr(grp, "getgrnam", lambda _: group)
    given(monkeypatch, VALUE.encode())
    assert run(config, "set", "fabrikam", "--stdin") == 0
    for path, mode in (("secrets", 0o750), ("secrets/fabrikam", 0o640)):
        found = (config.parent / path).stat()
        assert (found.st_uid, found.st_gid) == (0, 4321)
        assert stat.S_IMODE(found.st_mode) == mode


def test_a_new_value_replaces_the_old_and_says_how_it_is_taken_over(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ("old", "new"):
        given(monkeypatch, value.encode())
        assert run(config, "set", "contoso", "--stdin") == 0
    assert (config.parent / "secrets/contoso").read_text() == "new\n"
    assert (
        "used by [upstream.contoso] client_secret_file; have it taken over: relayd reload"
        in capsys.readouterr().out
    )


def test_on_a_terminal_it_is_asked_for_and_not_shown(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda _: VALUE)
    assert run(config, "set", "contoso", "--json") == 0
    out = capsys.readouterr().out
    assert VALUE not in out
    told = json.loads(out)
    assert (told["store"], told["then"]) == ("file", "relayd reload")


def _no_more(_prompt: str) -> str:
    raise EOFError


def test_octets_the_terminal_cannot_mean_are_refused_in_words(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda _: b"caf\xe9".decode("utf-8"))
    assert run(config, "set", "contoso") == 1
    assert "no text" in capsys.readouterr().err


def test_an_end_of_input_is_an_empty_secret(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", _no_more)
    assert run(config, "set", "contoso") == 1


def test_without_a_terminal_it_must_be_said_where_it_comes_from(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, VALUE.encode())
    assert run(config, "set", "contoso") == 2
    assert "--stdin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"one\ntwo\n", "several lines"),
        (b" padded \n", "blanks around"),
        (b"esc\x1b[2J\n", "do not print"),
        (b"\xff\xfe\n", "no text"),
        (GUID.encode(), "looks like the Secret ID"),
        (GUID.upper().encode() + b"\n", "copy its Value"),
    ],
)
def test_what_cannot_be_a_secret_is_refused_and_changes_nothing(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    octets: bytes, words: str,
) -> None:  # fmt: skip
    given(monkeypatch, octets)
    assert run(config, "set", "contoso", "--stdin") == 1
    out, err = capsys.readouterr()
    assert words in err
    assert GUID not in (out + err).lower()
    assert os.listdir(config.parent / "secrets") == []


def test_what_looks_like_an_id_is_taken_when_told_so(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, GUID.encode())
    assert run(config, "set", "contoso", "--stdin", "--force") == 0


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", "", "a b"])
def test_a_name_is_no_path(config: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(config, "set", name, "--stdin") == 2
    assert "is no name" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_who_may_not_write_there_is_told_before_anything_is_asked(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.parent.chmod(0o500)
    try:
        assert run(config, "set", "contoso", "--stdin") == 1
    finally:
        config.parent.chmod(0o700)
    assert "sudo" in capsys.readouterr().err


def test_the_line_to_write_stands_on_a_line_of_its_own(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, VALUE.encode())
    assert run(config, "set", "spare", "--stdin") == 0
    told, line = capsys.readouterr().out.splitlines()[-2:]
    assert told.endswith("relayd reload:")
    assert line == f'  client_secret_file = "{config.parent}/secrets/spare"'


# ---- systemd


CREDS = """#!{python}
import os, sys
if sys.argv[1] == "--version":
    print("systemd 252 (252.39-1~deb12u2)")
else:
    sys.stdin.read()
    print("encrypted:" + sys.argv[2])
"""
SYSTEMCTL = '#!/bin/sh\necho "$@" >> "{folder}/calls"\n'


@pytest.fixture
def systemd(config: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = config.parent / "bin"
    folder.mkdir()
    for name, text in (("systemd-creds", CREDS), ("systemctl", SYSTEMCTL)):
        (folder / name).write_text(text.format(python=sys.executable, folder=folder))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (config.parent / "units").mkdir()
    (config.parent / "units/relayd.service").touch()
    return folder


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="systemd's folders are root's")


@as_root
def test_systemd_gets_it_encrypted_with_a_drop_in_for_the_unit(
    config: Path, systemd: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given(monkeypatch, VALUE.encode())
    assert run(config, "set", "next", "--stdin", "--systemd") == 0
    path = config.parent / "credstore/relayd.next"
    assert path.read_text() == "encrypted:--name=next\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    dropin = config.parent / "units/relayd.service.d/secret-next.conf"
    assert f"LoadCredentialEncrypted=next:{path}" in dropin.read_text()
    assert (systemd / "calls").read_text() == "daemon-reload\n"
    out = capsys.readouterr().out
    assert "used by [upstream.contoso] next_client_secret_credential" in out
    assert "systemctl restart relayd.service" in out
    assert not (config.parent / "secrets").exists()
    assert run(config, "delete", "next", "--force") == 0
    assert not path.exists()
    assert not dropin.exists()


@as_root
def test_without_a_unit_or_with_an_old_systemd_it_says_why_not(
    config: Path, systemd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "units/relayd.service").unlink()
    assert run(config, "set", "next", "--stdin", "--systemd") == 1
    assert "there is no relayd.service" in capsys.readouterr().err
    (systemd / "systemd-creds").write_text("#!/bin/sh\necho systemd 247\n")
    assert run(config, "set", "next", "--stdin", "--systemd") == 1
    assert "systemd 250 or later" in capsys.readouterr().err


@as_root
def test_a_failure_of_systemd_is_told_in_its_words(
    config: Path, systemd: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (systemd / "systemctl").write_text("#!/bin/sh\necho 'no bus' >&2\nexit 1\n")
    given(monkeypatch, VALUE.encode())
    assert run(config, "set", "next", "--stdin", "--systemd") == 1
    assert "systemctl: no bus" in capsys.readouterr().err


# ---- list and delete


def test_a_list_says_who_uses_what_and_what_is_missing_or_open(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("contoso", "old"):
        given(monkeypatch, VALUE.encode())
        run(config, "set", name, "--stdin")
    (config.parent / "secrets/old").chmod(0o644)
    capsys.readouterr()
    assert run(config, "list") == 0
    out, err = capsys.readouterr()
    lines = {line.split()[0]: line for line in out.splitlines()[1:]}
    assert "[upstream.contoso] client_secret_file" in lines["contoso"]
    assert "(nobody)" in lines["old"]
    assert "MISSING" in lines["next"]
    assert "ca.pem" not in out
    assert "everybody may read" in err
    assert VALUE not in out + err
    assert run(config, "list", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["next"]["mode"] == ""
    assert rows["contoso"]["used_by"] == ["[upstream.contoso] client_secret_file"]
    assert rows["contoso"]["changed_at"].endswith("Z")


def test_without_secrets_the_list_says_how_to_make_one(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("")
    assert run(config, "list") == 0
    assert "relayd secret set NAME" in capsys.readouterr().out


def test_a_folder_that_may_not_be_read_is_not_said_to_be_empty(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: str) -> NoReturn:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.path.isdir", lambda _path: False)  # as where it cannot be entered
    monkeypatch.setattr("os.listdir", denied)
    assert relayd("--config", str(config), "secret", "list") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "secrets: Permission denied; say it again with sudo" in err


def test_a_secret_in_use_is_not_deleted_by_mistake(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(monkeypatch, VALUE.encode())
    run(config, "set", "contoso", "--stdin")
    path = config.parent / "secrets/contoso"
    assert run(config, "delete", "contoso") == 1
    assert "is used by [upstream.contoso] client_secret_file" in capsys.readouterr().err
    assert path.exists()
    assert run(config, "delete", "contoso", "--force", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "contoso", "files": [str(path)]}
    assert run(config, "delete", "contoso") == 1


@pytest.mark.parametrize(
    "line",
    [
        'client_secret_file = "./secrets/kept"',
        'client_secret_file = "{folder}/conf.d/../secrets/kept"',
        'certificate_file = "secrets/kept"',
        'client_secret_file = "secrets/kept',  # cannot be read at all
    ],
)
def test_however_the_configuration_names_it_it_is_not_deleted_by_mistake(
    config: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    given(monkeypatch, VALUE.encode())
    run(config, "set", "kept", "--stdin")
    config.write_text(f"[upstream.contoso]\n{line.format(folder=config.parent)}\n")
    assert run(config, "delete", "kept") == 1
    assert (config.parent / "secrets/kept").exists()
    assert run(config, "delete", "kept", "--force") == 0


@as_root
def test_a_deletion_that_fails_half_way_leaves_a_unit_that_starts(
    config: Path, systemd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(monkeypatch, VALUE.encode())
    assert run(config, "set", "old", "--stdin", "--systemd") == 0
    (systemd / "systemctl").write_text("#!/bin/sh\nexit 1\n")
    assert run(config, "delete", "old") == 1
    # A drop-in that names a credential which is gone would keep it from starting.
    assert not (config.parent / "units/relayd.service.d/secret-old.conf").exists()
    assert (config.parent / "credstore/relayd.old").exists()


def test_a_broken_configuration_does_not_keep_a_secret_out(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("[upstream")
    given(monkeypatch, VALUE.encode())
    assert run(config, "set", "contoso", "--stdin") == 0
    assert "not TOML" in capsys.readouterr().err
