"""check, reload, stop and version say what is, and what to do when it is not well."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relayd.cli import daemon
from relayd.cli.main import main
from relayd.config.model import Server, Spool
from relayd.errors import ConfigError
from relayd.master.client import NotRunning
from relayd.master.frames import Decoder, Frame, done, encode, refused


class Master:
    """Answers one control request after another with a fixed reply."""

    def __init__(self, folder: Path) -> None:
        self.reply: Frame = done({"state": "running"})
        self.requests: list[dict[str, object]] = []
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(folder / "control.sock"))
        self._sock.listen()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            with sock:
                for request in Decoder().feed(sock.recv(65536)):
                    self.requests.append(dict(request))
                    sock.sendall(encode(self.reply))

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._sock.close()


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "relayd.toml"
    path.write_text(f'[server]\nruntime_dir = "{tmp_path}"\n')
    return str(path)


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    master = Master(tmp_path)
    yield master
    master.close()


@pytest.mark.parametrize("command", ["status", "reload", "stop"])
def test_not_running_says_how_to_start_it_and_where_its_last_words_are(
    command: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--config", config, command])
    assert leaving.value.code == 69
    err = capsys.readouterr().err
    assert "relayd is not running" in err
    assert f"relayd --config {config} run\n" in err
    assert f"relayd --config {config} check" in err


@pytest.mark.parametrize(
    ("config", "start", "check"),
    [
        ("/etc/relayd/relayd.toml", "systemctl start relayd\n", "relayd check"),
        ("/etc/relayd/b/relayd.toml", "systemctl start relayd@b\n", "/b/relayd.toml check"),
    ],
)
def test_a_service_that_does_not_run_is_started_by_systemctl(
    capsys: pytest.CaptureFixture[str], config: str, start: str, check: str
) -> None:
    assert daemon.not_running(NotRunning("none"), config) == 69
    err = capsys.readouterr().err
    assert f"start it:            {start}" in err
    assert "journalctl -u relayd" in err
    assert err.rstrip().endswith(check)


@pytest.mark.parametrize(
    ("config", "unit"),
    [
        ("/etc/relayd/relayd.toml", "relayd.service"),
        ("/etc/relayd/../relayd/relayd.toml", "relayd.service"),
        ("/etc/relayd/lab/relayd.toml", "relayd@lab.service"),
        ("/etc/relayd/other.toml", ""),
        ("/srv/relayd.toml", ""),
    ],
)
def test_a_configuration_belongs_to_a_unit_by_its_place(config: str, unit: str) -> None:
    assert daemon.unit_of(config) == unit


def hide(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Have opening `path` fail as for another user; tests may run as root."""
    true_open = open

    def opened(file: Any, *more: Any, **named: Any) -> Any:
        if str(file) == path:
            raise PermissionError(13, "Permission denied", path)
        return true_open(file, *more, **named)

    monkeypatch.setattr("builtins.open", opened)


@pytest.mark.parametrize(
    "words", [("status",), ("stop",), ("send", "--to", "x@contoso.com"), ("queue", "list")]
)
def test_who_may_not_read_the_configuration_is_not_told_that_nothing_runs(
    words: tuple[str, ...],
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, spool = Server(runtime_dir=str(tmp_path / "none")), Spool(url="sqlite:///none/spool.db")
    monkeypatch.setattr("relayd.cli.daemon.Server", lambda: server)
    monkeypatch.setattr("relayd.cli.offline.Spool", lambda: spool)
    hide(monkeypatch, config)
    with pytest.raises(SystemExit) as leaving:
        main(["--config", config, *words])
    assert leaving.value.code == 69
    err = capsys.readouterr().err
    assert f"{config} cannot be read (Permission denied): relayd may run elsewhere" in err
    assert "group relayd-admin" in err
    assert "default place" in err
    assert "not running" not in err
    assert "no spool yet" not in err


@pytest.mark.parametrize(
    ("config", "groups", "certain"),
    [
        ("/etc/relayd/relayd.toml", [5], True),
        ("/etc/relayd/relayd.toml", [6], False),
        ("/etc/relayd/b/relayd.toml", [5], False),
        ("/srv/relayd.toml", [5], False),
    ],
)
def test_an_admin_finds_the_installed_relay_without_its_configuration(
    config: str, groups: list[int], monkeypatch: pytest.MonkeyPatch, *, certain: bool
) -> None:
    monkeypatch.setattr("grp.getgrnam", lambda _name: SimpleNamespace(gr_gid=5))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("os.getegid", lambda: 1000)
    monkeypatch.setattr("os.getgroups", lambda: groups)
    assert daemon.is_certain(config) is certain


def test_a_part_of_the_configuration_that_may_not_be_read_counts_too(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert daemon.unread(config) == ""
    assert daemon.unread(f"{config}.none") == ""  # not there: told already
    part = Path(config).parent / "conf.d" / "a.toml"
    part.parent.mkdir()
    part.write_text("")
    hide(monkeypatch, str(part))
    assert daemon.unread(config) == f"{part} cannot be read (Permission denied)"


def test_not_allowed_says_who_may(
    master: Master, config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.master.client.encode", lambda _frame: _no())
    with pytest.raises(SystemExit) as leaving:
        main(["--config", config, "status"])
    assert leaving.value.code == 69
    assert "group relayd-admin" in capsys.readouterr().err


def _no() -> bytes:
    raise PermissionError


def test_a_reload_that_is_taken_says_so(
    master: Master, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    master.reply = done({"generation": 2, "workers": 3})
    assert main(["--config", config, "reload"]) == 0
    assert "3 workers serve with the new configuration" in capsys.readouterr().out


def test_a_reload_that_is_refused_shows_every_problem_and_exits_1(
    master: Master, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    master.reply = refused("the old one stays", problems=["one", "two"])
    assert main(["--config", config, "reload"]) == 1
    assert capsys.readouterr().err == "relayd: the old one stays\n  one\n  two\n"
    assert main(["--config", config, "--json", "reload"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == ["one", "two"]


def test_a_refusal_exits_with_the_code_it_names(master: Master, config: str) -> None:
    master.reply = refused("no worker", exit_code=69)
    with pytest.raises(SystemExit) as leaving:
        main(["--config", config, "status"])
    assert leaving.value.code == 69


def test_a_stop_waits_and_passes_fast_on(
    master: Master, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    master.reply = done()
    assert main(["--config", config, "stop", "--fast"]) == 0
    assert main(["--config", config, "--json", "stop"]) == 0
    assert [request["fast"] for request in master.requests] == [True, False]
    assert capsys.readouterr().out == 'stopped\n{"ok": true}\n'


def test_a_later_file_says_where_the_relay_runs(tmp_path: Path) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text('[server]\nruntime_dir = "/run/one"\n')
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/a.toml").write_text('[server]\nruntime_dir = "/run/two"\n')
    (tmp_path / "conf.d/b.toml").write_text("[limits]\nmax_errors = 3\n")
    assert daemon.runtime_dir_of(str(config)) == ("/run/two", "")


@pytest.mark.parametrize("text", ["[server\n", "server = 3\n", "\xff", "[server]\nruntime_dir = 3"])
def test_a_broken_configuration_blinds_nobody(text: str, tmp_path: Path) -> None:
    config = tmp_path / "relayd.toml"
    config.write_bytes(text.encode("latin-1"))
    runtime_dir, _ = daemon.runtime_dir_of(str(config))
    assert runtime_dir == "/run/relayd"


def test_a_broken_configuration_is_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text("[server\n")
    assert daemon.control_path(str(config)) == "/run/relayd/control.sock"
    err = capsys.readouterr().err
    assert str(config) in err
    assert "looking in /run/relayd" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_configuration_that_may_not_be_read_is_no_trouble(tmp_path: Path) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text("")
    config.chmod(0)
    assert daemon.runtime_dir_of(str(config)) == ("/run/relayd", "")


class Checked:
    def __init__(self, *warnings: str) -> None:
        self.warnings = list(warnings)


def test_a_check_prints_every_problem_and_exits_78(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(path: str) -> Checked:
        raise ConfigError(["a: one\x1b", "b: two"])

    monkeypatch.setattr("relayd.check.check", check)
    assert main(["--config", config, "check"]) == 78
    out = capsys.readouterr().out
    assert "a: one\\x1b" in out
    assert "b: two" in out
    assert "2 problems" in out
    assert main(["--config", config, "check", "--json"]) == 78
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_a_good_check_is_ok_with_its_warnings(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.check.check", lambda _path: Checked("a wide network"))
    assert main(["--config", config, "check"]) == 0
    out = capsys.readouterr().out
    assert "warning  a wide network" in out
    assert f"{config} can be used" in out


def test_several_answers_are_yielded_one_by_one(master: Master, config: str) -> None:
    import argparse  # noqa: PLC0415  only here

    master.reply = done({"n": 1})
    options = argparse.Namespace(config=config)
    assert list(daemon.ask_each(options, {"command": "queue.list"})) == [{"n": 1}]
    master.reply = refused("no")
    with pytest.raises(SystemExit):
        list(daemon.ask_each(options, {"command": "queue.list"}))
