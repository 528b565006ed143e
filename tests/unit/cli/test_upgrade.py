"""`relayd upgrade` waits for the relay's answer and says it; it decides nothing itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.cli import upgrade
from relayd.master.frames import Json, done, refused
from tests.control_socket import ControlSocket

RESULT: dict[str, Json] = {"from": "1.0.0", "to": "1.0.1", "pid": 7, "generation": 2, "workers": 4}


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as control:
        control.answers["ping"] = (done({"pid": 7, "version": "1.0.0"}),)
        yield control


def test_old_and_new_version_are_named(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["upgrade"] = (done(RESULT),)
    assert control.relayd("upgrade") == 0
    assert capsys.readouterr().out == "upgraded: relayd 1.0.0 is now 1.0.1 (pid 7, 4 workers)\n"


def test_the_same_version_is_no_failure(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["upgrade"] = (done(RESULT | {"to": "1.0.0"}),)
    assert control.relayd("upgrade") == 0
    assert "relayd 1.0.0 runs the code on disk" in capsys.readouterr().out


@pytest.mark.parametrize("exit_code", [1, 75])
def test_a_refusal_is_told_with_its_reasons(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], exit_code: int
) -> None:
    control.answers["upgrade"] = (refused("no", exit_code=exit_code, problems=["a\x1b", "b"]),)
    assert control.relayd("upgrade") == exit_code
    assert capsys.readouterr().err == "relayd: no\n  a\\x1b\n  b\n"


def test_json_is_the_reply(control: ControlSocket, capsys: pytest.CaptureFixture[str]) -> None:
    control.answers["upgrade"] = (done(RESULT),)
    assert control.relayd("--json", "upgrade") == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "result": RESULT}
    control.answers["upgrade"] = (refused("no", problems=["a"]),)
    assert control.relayd("--json", "upgrade") == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"ok": False, "error": "no", "exit": 1, "problems": ["a"]}


def test_nobody_there_is_not_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control = ControlSocket(tmp_path)
    control.close()
    assert control.relayd("upgrade") == 69
    assert "relayd is not running" in capsys.readouterr().err


def test_a_master_that_ends_instead_of_answering_is_looked_for(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["upgrade"] = ()
    assert control.relayd("upgrade") == 1
    told = capsys.readouterr().err
    assert "started anew: relayd 1.0.0 answers now" in told
    assert "journalctl" in told


def test_a_master_that_does_not_come_back_is_not_running(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(upgrade, "BACK_WITHIN_S", 0.0)
    control.answers["upgrade"] = ()
    assert control.relayd("upgrade") == 69
    assert "ended while it changed over" in capsys.readouterr().err
