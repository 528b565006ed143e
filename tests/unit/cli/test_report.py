"""A report says what helps and has no secret in it, whatever was planted where."""

from __future__ import annotations

import base64
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from relayd.cli import report
from relayd.master.frames import Frame, done
from tests.control_socket import ControlSocket, pages, relayd

NOBODY = 65_534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
FILED = "filed-secret-0123456789"
CLEAR = "clear secret with blanks"
IN_ENV = "env-secret-0123456789"
PASTED = "pasted-where-a-file-belongs"
UNKNOWN = "Abc8Q~unknown-secret-nobody-told-us-of.x"
TOKEN = "eyJ0eXAiOiJKV1QiLCJhbGci.eyJhdWQiOiJodHRwczovL2dyYXBo.c2lnbmF0dXJl"
SECRETS = (FILED, CLEAR, IN_ENV, PASTED, UNKNOWN, TOKEN, "device-pass-1", "comment-secret")
PRIVATE = (
    "bob", "contoso", "fabrikam", "192.0.2.77", "2001:db8::77", "22222222-3333", "payroll",
    "annslaptop",
)  # fmt: skip

CONFIG = """
# the old one was comment-secret, ask bob@contoso.com
[server]
hostname = "relay.contoso.com"
runtime_dir = "{folder}"
state_dir = "{folder}/state"
[spool]
url = "sqlite:///{folder}/spool.db"
[log]
file = "{folder}/relayd.log"
[upstream.main]
tenant = "contoso.onmicrosoft.com"
client_id = "22222222-3333-4444-5555-666666666666"
client_secret_file = "secret"
next_client_secret = "{clear}"
mailbox = "bob@contoso.com"
allowed_senders = ["*@fabrikam.com"]
[upstream.other]
tenant = "contoso.onmicrosoft.com"
client_id = "22222222-3333-4444-5555-666666666666"
client_secret_env = "RELAYD_TEST_SECRET"
next_client_secret_file = "{pasted}"
mailbox = "bob@contoso.com"
[[device]]
name = "ups"
upstream = "main"
networks = ["192.0.2.77/32", "2001:db8::77/128"]
"""
BASIC = base64.b64encode(f"bob:{CLEAR}".encode()).decode()
PLAIN = base64.b64encode(b"\0bob\0device-pass-1").decode()
LOG = f"""\
message.accepted level=info id=1JV7SEQSLMJCW ip=192.0.2.77 helo=annslaptop sender=bob@contoso.com \
subject="payroll of bob"
token.failed level=warning text="client_secret={FILED} refused, Bearer {TOKEN}"
courier.bug level=error traceback="Authorization: Basic {BASIC}"
library.message level=warning text="https://bob:device-pass-1@proxy/{quote(CLEAR)}"
session.closed transcript="C: AUTH PLAIN {PLAIN} | S: 535 | C: EHLO annslaptop"
strange level=info text="{UNKNOWN} and {json.dumps(CLEAR)[1:-1]} and {IN_ENV} {PASTED}"
stranger text="at host.fabrikam.com"
"""
STATUS: Frame = {
    "version": "0.1.0",
    "errors": [{"event": "upstream.down", "text": f"wrong secret {FILED} of bob@contoso.com"}],
    "upstreams": {"main": {"state": "down", "password": "device-pass-1"}},
}
CALLERS: Frame = {
    "callers": [
        {
            "ip": "192.0.2.77",
            "refusal": {
                "login": "device-pass-1",
                "sender": "bob@contoso.com",
                "transcript": ["C: MAIL FROM:<bob@fabrikam.com>", f"C: AUTH LOGIN {UNKNOWN}"],
            },
        }
    ]
}


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as control:
        monkeypatch.setenv("RELAYD_TEST_SECRET", IN_ENV)
        monkeypatch.chdir(tmp_path)
        control.config.write_text(CONFIG.format(folder=tmp_path, clear=CLEAR, pasted=PASTED))
        control.config.chmod(0o640)
        (tmp_path / "secret").write_text(f"{FILED}\n")
        (tmp_path / "relayd.log").write_text(LOG)
        control.answers["status"] = [done(STATUS)]
        control.answers["metrics"] = [done({"metrics": {"x": {"bob@contoso.com": 1}}})]
        control.answers["callers"] = [done(CALLERS)]
        row = {"id": "1JV7SEQSLMJCW", "from": "bob@contoso.com", "reason": UNKNOWN}
        control.answers["queue.list"] = pages({"messages": [row]})
        yield control


def parts_of(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        found = {one.name: tar.extractfile(one) for one in tar.getmembers()}
        return {name: file.read().decode() for name, file in found.items() if file is not None}


@pytest.mark.slow(1)
def test_nothing_planted_anywhere_is_in_the_bundle(control: ControlSocket, tmp_path: Path) -> None:
    assert control.relayd("report", "--output", str(tmp_path / "r.tar.gz")) == 0
    parts = parts_of(tmp_path / "r.tar.gz")
    assert sorted(parts) == [
        f"relayd-report/{name}"
        for name in (
            "about.txt", "callers.json", "check.txt", "config.txt", "log.txt", "metrics.json",
            "queue.json", "status.json",
        )
    ]  # fmt: skip
    everything = "\n".join(parts.values())
    # The folder of this test is nobody's secret.
    lines = everything.replace(str(tmp_path), "").lower().splitlines()
    for one in (*SECRETS, *PRIVATE):
        assert not [line for line in lines if one.lower() in line], one
    for one in SECRETS:
        assert base64.b64encode(one.encode()).decode()[4:-6] not in everything, one


@pytest.mark.slow(1)
def test_what_helps_is_there(control: ControlSocket, tmp_path: Path) -> None:
    assert control.relayd("report", "--output", str(tmp_path / "r.tar.gz")) == 0
    parts = {name.partition("/")[2]: text for name, text in parts_of(tmp_path / "r.tar.gz").items()}
    assert "relayd 0." in parts["about.txt"]
    assert "gevent" in parts["about.txt"]
    assert (
        f'{control.config}:14: upstream.main.client_secret_file = "secret"' in parts["config.txt"]
    )
    assert "upstream.main.next_client_secret = ***" in parts["config.txt"]
    assert 'upstream.main.mailbox = "u1@d' in parts["config.txt"]
    assert "pasted" not in parts["check.txt"]
    assert "upstream.down" in parts["status.json"]
    assert "message.accepted level=info id=1JV7SEQSLMJCW" in parts["log.txt"]
    assert "1JV7SEQSLMJCW" in parts["queue.json"]
    assert "MAIL FROM:<u2@d" in parts["callers.json"]
    assert {"command": "callers", "whole": True} in control.asked()


@pytest.mark.slow(1)
def test_the_bundle_is_its_owners_only_and_overwrites_nothing(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.tar.gz"
    assert control.relayd("report", "--output", str(path)) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    out = capsys.readouterr().out
    assert f"written to {path}" in out
    assert "log.txt" in out
    assert control.relayd("report", "--output", str(path)) == 1
    assert "File exists" in capsys.readouterr().err
    assert control.relayd("report", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["file"]).parent == tmp_path
    assert [part["name"] for part in told["parts"]][:2] == ["about.txt", "config.txt"]


@pytest.mark.slow(1)
def test_addresses_may_be_kept_secrets_not(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert control.relayd("report", "--stdout", "--keep-addresses") == 0
    out = capsys.readouterr().out
    assert "bob@contoso.com" in out
    assert "192.0.2.77" in out
    for one in SECRETS:
        assert one not in out, one


@pytest.mark.slow(1)
def test_it_works_with_nothing_there_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(
        f'[server]\nruntime_dir = "{tmp_path}"\n[upstream.x]\nclient_secret = "{CLEAR}'
    )
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/a.toml").write_text(f'[server]\nruntime_dir = "{tmp_path}"\n')
    monkeypatch.setenv("PATH", str(tmp_path))
    assert relayd("--config", str(config), "report", "--stdout") == 0
    out = capsys.readouterr().out
    assert "relayd does not answer" in out
    assert "not usable:" in out
    assert "==> log.txt <==" in out
    assert CLEAR not in out


@pytest.mark.slow(1)
def test_only_the_last_lines_of_the_log_are_taken(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "relayd.log").write_text("".join(f"line-{n}\n" for n in range(50)))
    assert control.relayd("report", "--stdout", "--lines", "3") == 0
    log = capsys.readouterr().out.partition("==> log.txt <==\n")[2]
    assert log.split() == ["line-47", "line-48", "line-49"]
    assert control.relayd("report", "--lines", "0") == 2


def test_a_part_that_fails_says_so_and_the_others_come_out() -> None:
    assert report._whatever(lambda: str(1 / 0)) == (
        "not to be had: ZeroDivisionError: division by zero"
    )


@pytest.mark.slow(1)
def test_nothing_is_run_from_the_folder_one_stands_in(
    control: ControlSocket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "where_root_stands"
    (trap / "relayd").mkdir(parents=True)
    (trap / "relayd/__init__.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    monkeypatch.chdir(trap)
    assert control.relayd("report", "--stdout") == 0
    assert not (tmp_path / "sprung").exists()


@pytest.fixture
def somebodys() -> Iterator[Path]:
    """Give a folder of the relay's user, one that it can reach."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        os.chown(folder / "state", NOBODY, NOBODY)
        yield folder


@needs_root
@pytest.mark.slow(1)
def test_root_reads_the_log_as_the_relays_user(
    somebodys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, log = somebodys / "relayd.toml", somebodys / "state/relayd.log"
    config.write_text(f'[server]\nstate_dir = "{somebodys}/state"\n[log]\nfile = "{log}"\n')
    (somebodys / "roots").write_text("for-root-only\n")
    (somebodys / "roots").chmod(0o600)
    log.symlink_to(somebodys / "roots")
    assert relayd("--config", str(config), "report", "--stdout") == 0
    out = capsys.readouterr().out
    assert "for-root-only" not in out
    assert "Permission denied" in out
    log.unlink()
    log.write_text("written.by.the.relay\n")
    log.chmod(0o640)
    os.chown(log, NOBODY, NOBODY)
    assert relayd("--config", str(config), "report", "--stdout") == 0
    assert "written.by.the.relay" in capsys.readouterr().out
