"""Ready is: mail would be taken and kept. Each check has a sentence, good or bad."""

from __future__ import annotations

import json

import pytest

from relayd.admin.health import alive, ready, silent
from relayd.master.frames import Frame, Json

WORKERS: list[Json] = [
    {"kind": "cached", "state": "ready"},
    {"kind": "worker", "state": "ready"},
    {"kind": "worker", "state": "starting"},
]
GOOD: Frame = {
    "state": "running",
    "workers": 2,
    "processes": WORKERS,
    "listeners": [{"address": "0.0.0.0:25"}, {"address": "[::]:25"}],
    "spool": {"ok": True, "text": ""},
    "upstreams_configured": 1,
    "upstreams": {"contoso": {"state": "up", "token_expires_s": 3000}},
}


def test_all_well_is_ready_and_says_what_was_looked_at() -> None:
    health = ready(GOOD)
    assert health.ok
    assert json.loads(health.render()) == {
        "ok": True,
        "checks": {
            "master": {"ok": True, "text": "running"},
            "workers": {"ok": True, "text": "1 of 2 serve"},
            "listeners": {"ok": True, "text": "0.0.0.0:25, [::]:25"},
            "spool": {"ok": True, "text": "mail can be kept"},
            "upstreams": {"ok": True, "text": "contoso: up, token good for 3000 s"},
        },
    }


@pytest.mark.parametrize(
    ("changes", "check", "text"),
    [
        ({"state": "starting"}, "master", "starting"),
        ({"state": "stopping"}, "master", "stopping"),
        ({"processes": []}, "workers", "0 of 2 serve"),
        ({"processes": None}, "workers", "0 of 2 serve"),
        ({"processes": WORKERS[:1] + WORKERS[2:]}, "workers", "0 of 2 serve"),
        (
            {"processes": [], "unavailable": "worker 1: no such file"},
            "workers",
            "0 of 2 serve: worker 1: no such file",
        ),
        ({"listeners": []}, "listeners", "none is open"),
        ({"spool": None}, "spool", "no worker has told of it yet"),
        ({"spool": {"ok": False, "text": "disk full"}}, "spool", "disk full"),
        (
            {"upstreams_configured": 0},
            "upstreams",
            "not configured yet, mail is answered 451 4.3.5: relayd setup",
        ),
    ],
)
def test_what_keeps_mail_from_being_taken_is_named(changes: Frame, check: str, text: str) -> None:
    health = ready({**GOOD, **changes})
    assert not health.ok
    bad = {name: one.text for name, one in health.checks.items() if not one.ok}
    assert list(bad) == [check]
    assert bad[check].startswith(text)


@pytest.mark.parametrize("state", ["reload: checking", "reload: starting", "upgrade: checking"])
def test_a_reload_or_upgrade_under_way_is_ready(state: str) -> None:
    assert ready({**GOOD, "state": state}).ok


@pytest.mark.parametrize(
    ("upstreams", "text"),
    [
        ({"a": {"state": "down", "cause": "dns-failed"}}, "a: down (dns-failed), mail is kept"),
        ({"a": {"state": "probing", "cause": ""}}, "a: probing, mail is kept"),
        ({"a": {"state": "up"}, "b": {"state": "down"}}, "a: up, no token yet; b: down, mail"),
        ({}, "not known yet; mail is kept"),
        (None, "not known yet; mail is kept"),
        ({str(n): {"state": "up"} for n in range(7)}, "0: up, no token yet; 1: up"),
    ],
)
def test_an_upstream_that_is_down_is_told_but_mail_is_kept(upstreams: Json, text: str) -> None:
    health = ready({**GOOD, "upstreams": upstreams})
    assert health.ok
    assert health.checks["upstreams"].text.startswith(text)


def test_many_are_not_all_named() -> None:
    upstreams: Json = {str(n): {"state": "up"} for n in range(7)}
    assert ready({**GOOD, "upstreams": upstreams}).checks["upstreams"].text.endswith("and 2 more")


def test_each_check_has_its_own_line_for_who_reads_it_with_curl() -> None:
    lines = ready(GOOD).render().decode().splitlines()
    assert lines[0] == '{"ok": true, "checks": {'
    assert lines[1] == ' "master": {"ok": true, "text": "running"},'
    assert lines[-1] == "}}"


def test_a_master_that_answers_is_alive_and_a_silent_one_is_not() -> None:
    health = alive({"pid": 7, "version": "0.1.0"})
    assert health.ok
    assert health.checks["master"].text == "relayd 0.1.0, pid 7, answers"
    assert json.loads(silent("why").render()) == {
        "ok": False,
        "checks": {"master": {"ok": False, "text": "why"}},
    }
