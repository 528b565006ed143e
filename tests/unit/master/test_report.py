"""The status is made of what is known; the counters of the dead still count."""

from __future__ import annotations

import json
import selectors
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd.clock import FakeClock
from relayd.config.model import Config
from relayd.master import report
from relayd.master.board import Board
from relayd.master.channel import Channel, pair
from relayd.master.checker import Loaded
from relayd.master.crew import Child, Crew, Life
from relayd.master.frames import Frame, Json
from relayd.master.household import Household
from relayd.master.launch import Launch
from relayd.master.log import Log
from relayd.master.settings import select
from relayd.master.sockets import Bound

LOADED = Loaded(select(Config()), fd=-1)


@pytest.fixture
def household() -> Iterator[Household]:
    clock = FakeClock()
    selector = selectors.DefaultSelector()
    yield Household(Launch(path="/x"), Board(clock=clock), Log(fd=2), selector, list, clock=clock)
    selector.close()


def a_worker(crew: Crew, number: int, **figures: Json) -> Child:
    ours, theirs = pair()
    ours.close()
    theirs.close()
    child = Child(
        pid=number,
        kind="worker",
        number=number,
        serial=number,
        row=number,
        generation=1,
        channel=Channel(ours),
        born_at=990.0,
        life=Life.READY,
    )
    child.figures = dict(figures)
    crew.adopt(child)
    return child


def a_crew(size: int = 2) -> Crew:
    return Crew("worker", 1, LOADED, (), size)


def test_the_youngest_that_said_something_is_believed(household: Household) -> None:
    crew = a_crew()
    a_worker(crew, 1, queue={"ready": 9}, upstreams={"a": {"state": "down"}, "b": {"state": "up"}})
    a_worker(crew, 2, queue={"ready": 3}, upstreams={"a": {"state": "up"}})
    household.crews = [crew]
    household.board.row(1, max_connections=0, max_per_device=0).enter("")
    status = report.status(household, crew, {"state": "running"}, clock=FakeClock())
    assert status["queue"] == {"ready": 3}
    assert status["upstreams"] == {"a": {"state": "down"}, "b": {"state": "up"}}
    assert status["connections"] == 1
    assert status["state"] == "running"
    rows = status["processes"]
    assert isinstance(rows, list)
    assert rows[0] == {
        "kind": "worker",
        "number": 1,
        "pid": 1,
        "state": "ready",
        "up_s": 10.0,
        "generation": 1,
        "connections": 1,
        "silent_s": 10.0,
    }


def test_one_worker_that_doubts_the_clock_is_believed(household: Household) -> None:
    crew = a_crew()
    household.crews = [crew]
    assert report.status(household, crew, {}, clock=FakeClock())["clock"] is None
    wrong: Frame = {"right": False, "why": "It shows 1970.", "do": "Set it."}
    a_worker(crew, 1, clock=wrong)
    a_worker(crew, 2, clock={"right": True})
    assert report.status(household, crew, {}, clock=FakeClock())["clock"] == wrong
    assert "THE CLOCK IS WRONG" in report.summary(crew, household, "serving", 1)


def test_what_one_worker_found_down_is_told_to_the_others(household: Household) -> None:
    crew = a_crew()
    household.crews = [crew]
    row: Frame = {"state": "down", "cause": "7000215", "text": "x" * 999, "retry_in_s": 5}
    a_worker(crew, 1, upstreams={"a": row, "b": {"state": "up"}, "c": {"state": "probing"}})
    a_worker(crew, 2, upstreams={"a": {"state": "up"}})
    found = report.down(household)
    assert list(found) == ["a", "c"]
    assert found["a"] == {"cause": "7000215", "text": "x" * 320, "retry_in_s": 5}
    a_worker(crew, 3, upstreams={f"u{n}": row for n in range(40)})
    assert len(json.dumps(report.down(household))) < 4096


def test_certificates_are_shown_with_the_end_the_workers_know(household: Household) -> None:
    crew = a_crew()
    household.crews = [crew]
    name = "relayd_certificate_expiry_timestamp_seconds"
    a_worker(crew, 1, counters={name: {"lan": 1_800_000_000.0}})
    a_worker(crew, 2, counters={name: {"lan": 1_700_000_000.0, "wan": 1_900_000_000.0}})
    status = report.status(household, crew, {}, clock=FakeClock())
    assert status["certificates"] == [
        {"listener": "lan", "expires_at": "2023-11-14T22:13:20.000Z"},
        {"listener": "wan", "expires_at": "2030-03-17T17:46:40.000Z"},
    ]


def test_the_quota_is_what_the_youngest_says(household: Household) -> None:
    crew = a_crew()
    household.crews = [crew]
    assert report.status(household, crew, {}, clock=FakeClock())["quota"] == []
    a_worker(crew, 1, quota=[{"mailbox": "a@contoso.com", "sent_last_minute": 3}])
    status = report.status(household, crew, {}, clock=FakeClock())
    assert status["quota"] == [{"mailbox": "a@contoso.com", "sent_last_minute": 3}]


def test_an_upstream_is_shown_as_the_worker_sees_it_that_fares_worst(household: Household) -> None:
    crew = a_crew(3)
    down: Frame = {"state": "down", "cause": "dns-failed", "in_flight": 1}
    a_worker(crew, 1, upstreams={"a": down})
    a_worker(crew, 2, upstreams={"a": {"state": "probing", "cause": "HTTP 503", "in_flight": 2}})
    a_worker(crew, 3, upstreams={"a": {"state": "up", "cause": "", "in_flight": 4}})
    household.crews = [crew]
    shown = report.status(household, crew, {})["upstreams"]
    assert shown == {"a": {"state": "down", "cause": "dns-failed", "in_flight": 7}}


def test_a_worker_that_drains_is_not_asked_about_upstreams(household: Household) -> None:
    crew = a_crew()
    a_worker(crew, 1, upstreams={"a": {"state": "down"}}).life = Life.DRAINING
    a_worker(crew, 2, upstreams={"a": {"state": "up"}})
    household.crews = [crew]
    assert report.status(household, crew, {})["upstreams"] == {"a": {"state": "up"}}


def test_what_nobody_said_is_null(household: Household) -> None:
    crew = a_crew()
    a_worker(crew, 1)
    household.crews = [crew]
    status = report.status(household, crew, {})
    assert (status["queue"], status["oldest_s"], status["upstreams"]) == (None, None, {})


def test_a_closed_listener_is_not_shown(household: Household, tmp_path: Path) -> None:
    ours, theirs = pair()
    theirs.close()
    ours.close()
    crew = Crew("worker", 1, LOADED, (Bound("lan", "x", ours),), 1)
    assert report.status(household, crew, {})["listeners"] == []


def test_totals_add_the_living_and_the_dead(household: Household) -> None:
    crew = a_crew()
    name = "relayd_messages_sent_total"
    a_worker(crew, 1, counters={name: {"a": 2}})
    a_worker(crew, 2, counters={name: {"a": 3, "b": 1}})
    household.crews = [crew]
    household.retired = {name: {"a": 10}}
    totals: Any = report.totals(household)["metrics"]
    # Other tests of this process may have counted under names of their own.
    assert (totals[name]["a"], totals[name]["b"]) == (15, 1)
    assert totals["relayd_workers"] == {"": 2}


def test_the_line_for_systemd_says_how_many_serve_and_what_waits(household: Household) -> None:
    crew = a_crew()
    queue: dict[str, Json] = {"ready": 3, "deferred": 2, "held": 1, "failed": 0, "sent": 99}
    a_worker(crew, 1, queue=queue)
    household.crews = [crew]
    line = report.summary(crew, household, "running", upstreams=1)
    assert line == "serving, 5 queued, 1 held, 1 of 2 workers, 0 connections"
    a_worker(crew, 2, queue={"ready": 0})
    line = report.summary(crew, household, "reload: checking", upstreams=1)
    assert line == "reload: checking, 0 queued, 2 workers, 0 connections"
    line = report.summary(crew, household, "running", upstreams=0)
    assert line == "not configured: relayd setup"


def test_the_line_begins_with_a_refused_reload_until_one_is_done() -> None:
    assert report.refusal({}) == ""
    assert report.refusal({"result": "done", "problems": []}) == ""
    refused: dict[str, Json] = {"result": "refused", "problems": ["relayd.toml:3: x: unknown key"]}
    assert report.refusal(refused) == (
        "configuration refused: relayd.toml:3: x: unknown key; the old one stays: "
    )
    line = report.refusal({"result": "refused", "problems": ["p" * 999, "q"]})
    assert "p… (and 1 more)" in line
    assert len(line) < 300


def test_troubles_outlive_an_upgrade() -> None:
    before, after = report.Troubles(FakeClock()), report.Troubles(FakeClock())
    before.add("child.died", "worker 1")
    garbage: list[Json] = [7, {}, {"at": "yesterday", "event": "x", "text": "y"}, {"at": None}]
    after.restore([*before.shown(), *garbage])
    after.restore(None)
    assert after.shown() == before.shown()


def test_the_last_troubles_are_kept_and_the_oldest_forgotten() -> None:
    troubles = report.Troubles(FakeClock())
    assert troubles.last() == ""
    for number in range(30):
        troubles.add("child.died", str(number))
    shown = troubles.shown()
    assert len(shown) == 20
    assert shown[-1] == {"at": "2026-11-20T10:00:00.000Z", "event": "child.died", "text": "29"}
    assert troubles.last() == "; last trouble: 29"


def test_the_gauges_of_a_worker_that_goes_are_not_believed_while_others_serve(
    household: Household,
) -> None:
    crew = a_crew()
    name = "relayd_credential_expiry_timestamp_seconds"
    sent = "relayd_messages_sent_total"
    old = a_worker(crew, 1, counters={name: {"a": 100.0}, sent: {"x": 1}})
    household.crews = [crew]
    totals: Any = report.totals(household)["metrics"]
    assert totals[name] == {"a": 100.0}
    old.life = Life.DRAINING
    a_worker(crew, 2, counters={name: {"a": 200.0}, sent: {"x": 1}})
    totals = report.totals(household)["metrics"]
    assert totals[name] == {"a": 200.0}
    assert totals[sent]["x"] == 2


def test_the_spool_is_as_the_worker_sees_it_that_fares_worst(household: Household) -> None:
    clock = FakeClock()
    crew = a_crew(3)
    household.crews = [crew]
    assert report.status(household, crew, {}, clock=clock)["spool"] is None
    good: Frame = {"ok": True, "text": ""}
    bad: Frame = {"ok": False, "text": "disk full"}
    for number, told in enumerate((good, bad, good), 1):
        a_worker(crew, number, spool=told).heard_at = clock.monotonic()
    a_worker(crew, 4, spool=bad).life = Life.DRAINING
    assert report.status(household, crew, {}, clock=clock)["spool"] == bad
    for child in crew.children():
        child.figures = {"spool": good}
    assert report.status(household, crew, {}, clock=clock)["spool"] == good
    clock.advance(16)
    silent = report.status(household, crew, {}, clock=clock)["spool"]
    assert silent == {"ok": False, "text": "worker 1 told nothing for 16 s"}


def test_why_nobody_can_ask_for_metrics_is_a_warning(household: Household) -> None:
    crew = Crew("admin", 1, LOADED, (), 1)
    household.crews = [crew]
    assert report.status(household, a_crew(), {})["admin"] is None
    child = a_worker(a_crew(), 1, admin={"address": "127.0.0.1:1", "text": "another has it"})
    child.kind, child.number = "admin", 0
    crew.adopt(child)
    shown: Any = report.status(household, a_crew(), {})["admin"]
    assert shown["address"] == "127.0.0.1:1"
    assert report.admin_troubles(household) == ["[admin] no metrics: another has it"]
    child.figures = {"admin": {"address": "127.0.0.1:1", "listening": True, "text": ""}}
    assert report.admin_troubles(household) == []
