"""status shows on one screen what runs, what waits, what is wrong and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from relayd.cli import status
from relayd.master.frames import Frame, Json, done, refused
from tests.control_socket import ControlSocket, Terminal, relayd

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
STATUS: Frame = {
    "version": "0.1.0",
    "pid": 4,
    "state": "running",
    "up_s": 7500.0,
    "config": "/etc/relayd/relayd.toml",
    "reload": {"result": "refused", "problems": ["upstream.a: no\x1b[2J"]},
    "processes": [
        {"kind": "cached", "number": 0, "pid": 5, "state": "ready", "up_s": 60, "connections": 0},
        {"kind": "worker", "number": 1, "pid": 6, "state": "ready", "up_s": 60, "silent_s": 12},
    ],
    "listeners": [{"name": "lan", "address": "0.0.0.0:25", "origin": "bound"}],
    "queue": {"ready": 2, "held": 1, "failed": 0},
    "oldest_s": 130.0,
    "upstreams_configured": 1,
    "upstreams": {
        "contoso": {
            "state": "down",
            "cause": "7000215",
            "token_expires_s": 600,
            "held": {"no such mailbox": 1},
        }
    },
    "warnings": ["device.a: a whole /8 may send"],
    "errors": [{"at": "2026-11-20T10:00:00Z", "event": "child.died", "text": "worker 1"}],
}


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as control:
        control.answers["status"] = [done(STATUS)]
        yield control


def lines(**changes: Json) -> str:
    return "\n".join(status.status_lines({**STATUS, **changes}, now=NOW))


def test_the_status_shows_what_an_operator_needs(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert control.relayd("status") == 0
    out = capsys.readouterr().out
    for wanted in (
        "running, up 2 h 5 min",
        "worker 1",
        "silent for 12 s",
        "0.0.0.0:25",
        "2 ready, 1 held",
        "oldest     2 min",
        "down: 7000215",
        "good for 10 min",
        "no such mailbox",
        "a whole /8 may send",
        "child.died",
        "the last reload was refused",
        "upstream.a: no\\x1b[2J",
    ):
        assert wanted in out
    assert "failed" not in out


def test_the_status_as_json_is_what_the_master_said(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert control.relayd("status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == STATUS
    assert control.asked() == [{"command": "status"}]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({}, "no listener: nobody can send"),
        ({}, "Next step: relayd setup"),
        ({}, "queue      not known yet"),
        ({"queue": {"ready": 0}}, "queue      empty"),
        ({"upstreams_configured": 1}, "upstreams  not known yet"),
        ({"upstreams_configured": 1, "upstreams": {"a": "strange"}}, "strange"),
        (
            {"upstreams_configured": 1, "upstreams": {"a": {"state": "up", "token_expires_s": -1}}},
            "expired",
        ),
        ({"errors": ["only text"]}, "only text"),
        (
            {"upstreams_configured": 1, "upstreams": {"a": {"state": "up", "held_messages": 1}}},
            "1 message",
        ),
        (
            {
                "upstreams_configured": 1,
                "upstreams": {"a": {"state": "up", "held_messages": 7, "held": {"X": 1}}},
            },
            "7 messages: X",
        ),
        (
            {
                "upstreams_configured": 1,
                "upstreams": {"a": {"state": "down", "why": "It is away.", "do": "Look.\x1b[2J"}},
            },
            "  why It is away.\n  do  Look.\\x1b[2J",
        ),
    ],
)
def test_what_is_missing_in_an_answer_is_said_or_left_out(answer: Frame, words: str) -> None:
    assert words in "\n".join(status.status_lines(answer))


def test_workers_that_are_well_share_a_line_and_the_others_have_their_own() -> None:
    rows: list[Frame] = [
        {"kind": "worker", "number": n, "pid": n, "state": "ready", "up_s": 60, "connections": n}
        for n in (1, 2, 3)
    ]
    rows.append({"kind": "worker", "number": 4, "pid": 4, "state": "draining", "up_s": 9})
    text = lines(processes=rows)
    assert "workers 1, 2, 3  1 2 3  ready     1 min  6" in text
    assert "worker 4         4      draining  9 s" in text


def test_a_wrong_clock_and_a_full_disk_stand_above_all_else() -> None:
    text = lines(
        clock={"right": False, "why": "Nothing is sent.", "do": "Set it.\x1b[2J"},
        spool={"ok": False, "text": "disk full", "path": "/s/spool.db", "do": "df -h /s"},
    )
    head = text.partition("PROCESS")[0]
    assert "THE CLOCK IS WRONG\n  why Nothing is sent.\n  do  Set it.\\x1b[2J" in head
    assert "THE SPOOL CANNOT TAKE MAIL\n  why disk full (/s/spool.db)\n  do  df -h /s" in head
    well = lines(clock={"right": True}, spool={"ok": True})
    assert "CLOCK" not in well
    assert "SPOOL" not in well


def test_an_upstream_whose_mailbox_is_refused_is_not_shown_as_up() -> None:
    row: Frame = {"state": "up", "held": {"ErrorInvalidUser": 1}, "held_messages": 2}
    changes: dict[str, Json] = {"upstreams": {"a": row, "b": row}, "blocked": {"a": "X"}}
    text = lines(**changes)
    assert "a         NOTHING LEAVES: X" in text
    assert "b         up " in text


def test_that_nobody_serves_stands_above_all_else_with_the_reason_and_the_log() -> None:
    head = lines(unavailable="worker 1: no\x1b[2J").partition("PROCESS")[0]
    assert "NO WORKER SERVES, NO MAIL IS TAKEN\n  why worker 1: no\\x1b[2J\n  do  Mend" in head
    assert "journalctl -u relayd -n 50" in head
    assert "journalctl" not in lines(unavailable="x", config="/srv/relayd.toml")
    assert "NO WORKER" not in lines(unavailable=None)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("2027-05-20", "ends 2027-05-20, 180 days left"),
        ("2026-12-20", "ENDS 2026-12-20, 29 days left"),
        ("2026-11-01", "ENDED 2026-11-01"),
    ],
)
def test_the_end_of_a_credential_is_loud_when_it_is_near(end: str, words: str) -> None:
    assert words in lines(upstreams={"contoso": {"state": "up", "credential_expires": end}})


def test_a_certificate_stands_with_its_listener() -> None:
    ends: list[Frame] = [{"listener": "lan", "expires_at": "2026-12-20T10:00:00.000Z"}]
    assert "0.0.0.0:25  bound      ends 2026-12-20, 30 days left" in lines(certificates=ends)
    soon: list[Frame] = [{"listener": "lan", "expires_at": "2026-12-01T10:00:00.000Z"}]
    assert "ENDS 2026-12-01, 11 days left" in lines(certificates=soon)


def test_mailboxes_that_send_show_their_quota_and_those_that_rest_do_not() -> None:
    quota: list[Frame] = [
        {"mailbox": "a@contoso.com", "sent_last_minute": 28, "per_minute": 30, "waiting": 2},
        {"mailbox": "b@contoso.com", "sent_last_minute": 3, "per_minute": 0, "waiting": 0},
        {"mailbox": "c@contoso.com", "sent_last_minute": 0, "per_minute": 30, "waiting": 0},
    ]
    text = lines(quota=quota)
    assert "quota      a@contoso.com: 28 of 30 in the last minute, 2 wait for a slot" in text
    assert "           b@contoso.com: 3 in the last minute\n" in text
    assert "c@contoso.com" not in text


def test_an_error_has_its_cause_how_often_and_what_to_do() -> None:
    row: Frame = {
        "at": "2026-11-20T10:00:00.123Z", "event": "upstream.down", "upstream": "contoso",
        "text": "wrong secret", "cause": "7000215", "times": 12, "do": "make a new one",
    }  # fmt: skip
    assert (
        "  2026-11-20 10:00:00  upstream.down contoso: wrong secret (7000215) 12 times\n"
        "    do  make a new one"
    ) in lines(errors=[row])


def test_mail_in_a_former_spool_is_the_first_of_the_warnings() -> None:
    text = lines(left_behind="3 messages wait in /old", warnings=["w"])
    assert "warnings\n  3 messages wait in /old\n  w" in text


def test_many_warnings_do_not_fill_the_screen() -> None:
    text = lines(warnings=[f"w{n}" for n in range(20)])
    assert "and 14 more: relayd check" in text
    assert "w7" not in text


# ---- --watch


class Clock:
    """Stands for time.sleep: does what a test wants at each pause, then Ctrl-C."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        self.steps = list(steps)

    def __call__(self, seconds: float) -> None:
        assert seconds == 2.0
        if not self.steps:
            raise KeyboardInterrupt
        self.steps.pop(0)()


def test_a_watch_draws_again_and_ends_well_with_ctrl_c(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("LINES", "60")
    changed = done({**STATUS, "queue": {"ready": 77}})

    def change() -> None:
        control.answers["status"] = [changed]

    monkeypatch.setattr("relayd.cli.status.time.sleep", Clock(change))
    assert control.relayd("status", "--watch") == 0
    first, second = (one.removesuffix("\033[?7l") for one in screen.getvalue().split("\033[H")[1:])
    assert "2 ready" in first
    assert "77 ready" in second
    assert first.endswith("\033[J\033[?7h"), "what was longer before is wiped out"


def test_a_watch_waits_for_a_relay_that_restarts(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away() -> None:
        control.answers["status"] = [refused("relayd is starting", exit_code=69)]

    def back() -> None:
        control.answers["status"] = [done(STATUS)]

    monkeypatch.setattr("relayd.cli.status.time.sleep", Clock(away, back))
    assert control.relayd("status", "--watch") == 0
    told = capsys.readouterr()
    assert told.out.count("running, up") == 2
    assert "relayd is starting" in told.err


def test_a_watch_of_a_relay_that_is_not_there_ends_at_once(tmp_path: Path) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(f'[server]\nruntime_dir = "{tmp_path}"\n')
    assert relayd("--config", str(config), "status", "--watch") == 69


def test_a_watch_as_json_is_a_line_each_time(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("relayd.cli.status.time.sleep", Clock(lambda: None))
    assert control.relayd("status", "--watch", "--json") == 0
    printed = capsys.readouterr().out.strip().splitlines()
    assert [json.loads(line) for line in printed] == [STATUS, STATUS]


def test_a_small_terminal_gets_the_upper_part(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("LINES", "10")
    monkeypatch.setattr("relayd.cli.status.time.sleep", Clock())
    assert control.relayd("status", "--watch") == 0
    drawn = screen.getvalue().partition("\033[J")[0]
    assert drawn.count("\n") == 9
    assert "lines more" in drawn
