"""mailq looks as Postfix's does, so that people and plugins read it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.cli import mailq
from relayd.master.frames import Frame, Json
from tests.control_socket import ControlSocket, pages


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as control:
        yield control


def row(**changes: Json) -> Frame:
    return {
        "id": "1JV7SEQSLMJCW", "state": "deferred", "from": "root@contoso.com",
        "to": ["ops@contoso.com", "b@contoso.com"], "bytes": 3072,
        "accepted_at": "2026-11-21T10:00:00Z", "reason": "", "held_by": "", **changes,
    }  # fmt: skip


def shown(control: ControlSocket, capsys: pytest.CaptureFixture[str], *rows: Frame) -> list[str]:
    found: list[Frame] = [{"messages": [one]} for one in rows]
    control.answers["queue.list"] = pages(*(found or [{"messages": []}]))
    assert mailq.show(str(control.config)) == 0
    return capsys.readouterr().out.splitlines()


def test_an_empty_queue_is_said_as_everywhere(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(control, capsys) == ["Mail queue is empty"]
    assert control.asked() == [{"command": "queue.list", "state": "waiting", "limit": 0}]


def test_an_entry_has_id_size_time_sender_reason_and_recipients(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    lines = shown(control, capsys, row(reason="upstream down: 503"))
    assert lines == [
        "-Queue ID-      --Size-- ----Arrival Time---- -Sender/Recipient-------",
        "1JV7SEQSLMJCW       3072 Sat Nov 21 10:00:00   root@contoso.com",
        f"{'(upstream down: 503)':>78}",
        f"{'':46}ops@contoso.com",
        f"{'':46}b@contoso.com",
        "",
        "-- 3 Kbytes in 1 Request.",
    ]


def test_the_last_line_is_what_monitoring_plugins_look_for(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        row(bytes=1_000_000),
        row(to=["c@contoso.com"]),
        row(id="1JV7SEQSLMJCX", **{"from": ""}),
    ]
    lines = shown(control, capsys, *rows)
    assert re.fullmatch(r"-- (\d+) Kbytes in (\d+) Requests?\.", lines[-1])
    assert lines[-1] == "-- 982 Kbytes in 2 Requests."
    assert lines[-5].endswith("MAILER-DAEMON")


@pytest.mark.parametrize(("state", "mark"), [("leased", "*"), ("held", "!"), ("ready", " ")])
def test_a_mark_says_what_is_sent_now_and_what_is_held(
    state: str, mark: str, control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(control, capsys, row(state=state))[1].startswith(f"1JV7SEQSLMJCW{mark} ")


def test_what_a_peer_wrote_does_not_steer_the_terminal(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(control, capsys, row(**{"from": "\x1b[2J", "reason": "\x07", "to": ["\x1b[1m"]}))
    assert "\x1b" not in "".join(lines)
    assert "\x07" not in "".join(lines)


def test_an_answer_of_another_shape_is_not_an_end(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = shown(control, capsys, row(accepted_at="soon", bytes=None, to=None))
    assert lines[-1] == "-- 0 Kbytes in 1 Request."


def test_a_relay_that_is_down_is_said_with_69(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(
        f'[server]\nruntime_dir = "{tmp_path}"\n[spool]\nurl = "sqlite:///{tmp_path}/none.db"\n'
    )
    with pytest.raises(SystemExit) as leaving:
        mailq.show(str(config))
    assert leaving.value.code == 69
    assert "not running" in capsys.readouterr().err
