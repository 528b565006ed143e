"""One line, an exit code, the worst news first; whatever happens, nothing else is printed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from relayd.cli.nagios import Level, Limits, verdict
from relayd.master.frames import Frame, Json, done, refused
from tests.control_socket import ControlSocket, relayd

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
LIMITS = Limits((900.0, 3600.0), (200, 2000), 300.0, (30, 7))
WELL: Mapping[str, Json] = {
    "state": "running",
    "up_s": 7500,
    "workers": 2,
    "connections": 4,
    "processes": [
        {"kind": "cached", "state": "ready"},
        {"kind": "worker", "number": 1, "state": "ready"},
        {"kind": "worker", "number": 2, "state": "ready"},
    ],
    "listeners": [{"name": "lan"}],
    "certificates": [{"listener": "lan", "expires_at": "2027-02-01T00:00:00.000Z"}],
    "queue": {"ready": 2, "deferred": 1, "failed": 90, "sent": 1000},
    "oldest_s": 40.0,
    "upstreams_configured": 1,
    "upstreams": {"contoso": {"state": "up", "credential_expires": "2027-05-20"}},
    "clock": {"right": True},
    "spool": {"ok": True},
}


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as control:
        yield control


def test_all_is_well_on_one_line_with_figures() -> None:
    level, words, figures = verdict(WELL, LIMITS, NOW)
    assert (level, words) == (Level.OK, "3 waiting, up 2 h 5 min")
    assert figures == (
        "queue=3;200;2000;0 held=0;1;;0 oldest=40s;900;3600;0 connections=4;;;0 workers=2;;;0"
        " 'credential_days_contoso'=180;31:;8:"
    )


DOWN: Frame = {"state": "down", "down_s": 299, "cause": "7000215"}


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"oldest_s": 899.9}, Level.OK, ""),
        ({"oldest_s": 900}, Level.WARNING, "oldest message waits for 15 min"),
        ({"oldest_s": 3600}, Level.CRITICAL, "oldest message waits for 1 h"),
        ({"queue": {"ready": 199}}, Level.OK, ""),
        ({"queue": {"ready": 100, "leased": 100}}, Level.WARNING, "200 messages wait"),
        ({"queue": {"deferred": 2000}}, Level.CRITICAL, "2000 messages wait"),
        ({"queue": {"failed": 9999, "sent": 9999}}, Level.OK, ""),
        ({"queue": {"held": 1}}, Level.WARNING, "1 message held"),
        ({"queue": None}, Level.WARNING, "the queue is not known yet"),
        ({"upstreams": {"a": DOWN}}, Level.WARNING, "upstream a down for 4 min (7000215)"),
        ({"upstreams": {"a": {**DOWN, "down_s": 300}}}, Level.CRITICAL, "upstream a down for 5"),
        ({"upstreams": {"a": {"state": "probing"}}}, Level.WARNING, "upstream a down"),
        (
            {"upstreams": {"a": {"state": "up", "credential_expires": "2026-12-21"}}},
            Level.WARNING,
            "credential of a ends in 30 days",
        ),
        ({"upstreams": {"a": {"state": "up", "credential_expires": "2026-12-22"}}}, Level.OK, ""),
        (
            {"upstreams": {"a": {"state": "up", "credential_expires": "2026-11-28"}}},
            Level.CRITICAL,
            "credential of a ends in 7 days",
        ),
        (
            {"upstreams": {"a": {"state": "up", "credential_expires": "2026-11-01"}}},
            Level.CRITICAL,
            "credential of a has ended",
        ),
        (
            {"certificates": [{"listener": "lan", "expires_at": "2026-11-30T10:00:00Z"}]},
            Level.WARNING,
            "certificate of listener lan ends in 10 days",
        ),
        (
            {"certificates": [{"listener": "lan", "expires_at": "2026-11-21T10:00:00Z"}]},
            Level.CRITICAL,
            "certificate of listener lan ends in 1 days",
        ),
        ({"clock": {"right": False}}, Level.CRITICAL, "the clock is wrong"),
        ({"spool": {"ok": False, "text": "disk full"}}, Level.CRITICAL, "disk full"),
        ({"upstreams_configured": 0, "upstreams": {}}, Level.CRITICAL, "relayd setup"),
        ({"listeners": []}, Level.CRITICAL, "no listener"),
        ({"workers": 3}, Level.WARNING, "2 of 3 workers serve"),
        ({"processes": []}, Level.CRITICAL, "0 of 2 workers serve"),
        ({"state": "stopping"}, Level.CRITICAL, "relayd is stopping"),
        ({"state": "starting", "processes": []}, Level.WARNING, "relayd is starting"),
        (
            {"state": "starting", "processes": [], "queue": None, "unavailable": "worker 1: why"},
            Level.CRITICAL,
            "no worker serves, no mail is taken: worker 1: why",
        ),
        ({"state": "starting", "unavailable": None}, Level.WARNING, "relayd is starting"),
        ({"left_behind": "3 messages wait in X: nobody. Set it"}, Level.WARNING, "3 messages wait"),
        ({"left_behind": None}, Level.OK, ""),
        ({"state": "reload: checking"}, Level.OK, ""),
        ({"reload": {"result": "refused"}}, Level.WARNING, "the last reload was refused"),
        ({"reload": {"result": "done"}}, Level.OK, ""),
    ],
)
def test_what_is_not_well_is_said_at_its_level(changes: Frame, level: Level, words: str) -> None:
    found, told, _ = verdict({**WELL, **changes}, LIMITS, NOW)
    assert (found, words in told) == (level, True), told


def test_what_follows_from_no_worker_is_not_told_beside_it() -> None:
    changes: Frame = {"state": "running", "processes": [], "queue": None, "unavailable": "why"}
    _, words, _ = verdict({**WELL, **changes}, LIMITS, NOW)
    assert words == "no worker serves, no mail is taken: why"


def test_held_mail_names_its_causes() -> None:
    changes: Frame = {
        "queue": {"held": 2},
        "upstreams": {"a": {"state": "up", "held": {"ErrorSendAsDenied": 1}}, "b": {"held": {}}},
    }
    assert "2 messages held (ErrorSendAsDenied)" in verdict({**WELL, **changes}, LIMITS, NOW)[1]


BLOCKED: Final = (
    "nothing leaves through upstream a, its mailbox is refused: ErrorInvalidUser, 3 messages held"
)


@pytest.mark.parametrize(
    ("held", "blocked", "level", "words"),
    [
        (3, {"a": "ErrorInvalidUser"}, Level.CRITICAL, BLOCKED),
        (
            5,
            {"a": "ErrorInvalidUser"},
            Level.CRITICAL,
            f"{BLOCKED}; 2 messages held (ErrorSendAsDenied)",
        ),
        (5, {}, Level.WARNING, "5 messages held (ErrorInvalidUser, ErrorSendAsDenied)"),
    ],
)
def test_an_outage_by_a_hold_is_critical_and_other_held_mail_is_not(
    held: int, blocked: Frame, level: Level, words: str
) -> None:
    changes: Frame = {
        "queue": {"held": held},
        "blocked": blocked,
        "upstreams": {
            "a": {"state": "up", "held": {"ErrorInvalidUser": 1}, "held_messages": 3},
            "b": {"state": "up", "held": {"ErrorSendAsDenied": 1}, "held_messages": held - 3},
        },
    }
    assert verdict({**WELL, **changes}, LIMITS, NOW)[:2] == (level, words)


def test_a_mailbox_that_was_refused_and_has_no_mail_is_no_outage() -> None:
    changes: Frame = {"blocked": {"contoso": "ErrorAccessDenied"}}
    assert verdict({**WELL, **changes}, LIMITS, NOW)[0] is Level.OK


def test_the_worst_news_comes_first() -> None:
    changes: Frame = {"queue": {"held": 1}, "clock": {"right": False}, "oldest_s": 1000}
    level, words, _ = verdict({**WELL, **changes}, LIMITS, NOW)
    assert level is Level.CRITICAL
    assert words.startswith("the clock is wrong")
    assert "1 message held" in words


def test_nothing_at_all_in_an_answer_is_no_crash() -> None:
    level, _, figures = verdict({}, LIMITS, NOW)
    assert level is Level.CRITICAL
    assert figures.startswith("queue=0;")


# ---- the command


def test_the_line_has_the_form_and_the_exit_code(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile: Frame = {**WELL, "spool": {"ok": False, "text": "a | b=1\x1b[2J\nRELAYD OK"}}
    control.answers["status"] = [done(hostile)]
    assert control.relayd("status", "--nagios") == 2
    out = capsys.readouterr().out
    assert re.fullmatch(r"RELAYD CRITICAL - [^|\n]+ \| [^|\n]+\n", out)
    assert "\x1b" not in out


def test_thresholds_are_the_operators_to_set(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["status"] = [done({**WELL, "certificates": [], "upstreams": {}})]
    assert control.relayd("status", "--nagios") == 0
    assert control.relayd("status", "--nagios", "--warn-age", "30s") == 1
    assert control.relayd("status", "--nagios", "--crit-queue", "3") == 2
    assert "oldest=40s;30;3600;0" in capsys.readouterr().out
    assert control.relayd("status", "--nagios", "--warn-age", "soon") == 2
    assert control.relayd("status", "--nagios", "--crit-queue", "-1") == 2
    assert "write 90s, 15m or 1h" in capsys.readouterr().err


def test_a_relay_that_is_down_is_critical_on_the_same_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(f'[server]\nruntime_dir = "{tmp_path}"\n')
    assert relayd("--config", str(config), "status", "--nagios") == 2
    out, err = capsys.readouterr()
    assert out.startswith("RELAYD CRITICAL - relayd does not answer (")
    assert (out.count("\n"), err) == (1, "")


@pytest.mark.parametrize(("certain", "code"), [(False, 3), (True, 2)])
def test_who_may_not_read_the_configuration_knows_no_more_than_the_default_place(
    code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, *, certain: bool,
) -> None:  # fmt: skip
    config = tmp_path / "relayd.toml"
    config.write_text(f'[server]\nruntime_dir = "{tmp_path}"\n')
    monkeypatch.setattr("relayd.cli.daemon.unread", lambda path: f"{path} cannot be read (no)")
    monkeypatch.setattr("relayd.cli.daemon.is_certain", lambda _config: certain)
    assert relayd("--config", str(config), "status", "--nagios") == code
    out = capsys.readouterr().out
    assert (f"UNKNOWN - {config} cannot be read (no), nobody answers at" in out) is not certain


@pytest.mark.parametrize("unread", ["", "relayd.toml cannot be read (no)"])
def test_a_user_who_may_not_ask_is_told_so_and_nobody_is_woken(
    control: ControlSocket,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    unread: str,
) -> None:
    monkeypatch.setattr("relayd.cli.daemon.unread", lambda _path: unread)
    control.answers["status"] = []  # the master closes on strangers without a word
    assert control.relayd("status", "--nagios") == 3
    out = capsys.readouterr().out
    assert "may not ask relayd" in out
    assert "relayd-admin" in out


def test_an_answer_that_is_none_is_unknown(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["status"] = [refused("not now")]
    assert control.relayd("status", "--nagios") == 3
    assert capsys.readouterr().out == "RELAYD UNKNOWN - no status: not now\n"
