"""Upkeep looks at few rows, and does nothing rash when a clock was wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.clock import from_micros, micros
from relayd.spool import upkeep
from relayd.spool.upkeep import (
    Clamp,
    Expire,
    ForgetContent,
    ForgetHistory,
    ForgetSent,
    KnownFiles,
    ReadWork,
)
from tests.spooling import ALERTS, DAY, OTHER, POLICY, SCANS, Bench, way


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.core.close()


def test_finding_work_seeks_and_never_scans_what_waits(bench: Bench) -> None:
    columns = ", ".join(map(upkeep._columns, (upkeep._FIRST, upkeep._LATER, upkeep._LAST)))
    sql = f"{upkeep.BOXES} SELECT {columns} FROM box"  # noqa: S608 - constants
    lines = [row[3] for row in bench.rows(f"EXPLAIN QUERY PLAN {sql}", 0, 0, 0)]
    assert not [one for one in lines if one in {"SCAN d", "SCAN n", "SCAN delivery"}]
    scans = [one for one in lines if one.startswith("SCAN delivery")]
    assert scans in ([], ["SCAN delivery USING COVERING INDEX delivery_waiting"])  # LIMIT 1


def test_work_of_many_mailboxes(bench: Bench) -> None:
    for box in (SCANS, OTHER, ALERTS, SCANS):
        bench.put(way(box))
    work = bench.do(ReadWork())
    assert set(work.mailboxes) == {ALERTS, SCANS, OTHER}


def test_a_moment_far_ahead_is_brought_back_one_step_from_now(bench: Bench) -> None:
    near, far = bench.put(), bench.put()
    due = bench.rows("SELECT due FROM delivery WHERE id = ?", near)[0][0]
    bench.rows("UPDATE delivery SET state = 1, due = ? WHERE id = ?", due + DAY // 2, near)
    bench.rows("UPDATE delivery SET state = 1, due = ? WHERE id = ?", due + 900 * DAY, far)
    assert bench.do(Clamp()) == 1
    assert bench.do(Clamp()) == 0
    rows = dict(bench.rows("SELECT id, due FROM delivery"))
    assert rows[near] == due + DAY // 2
    assert rows[far] == due + 3_600_000_000


def test_a_clock_that_is_set_back_makes_nothing_wait_longer(bench: Bench) -> None:
    ready, soon, deferred = bench.put(), bench.put(), bench.put()
    due = bench.rows("SELECT due FROM delivery WHERE id = ?", ready)[0][0]
    minute = 60_000_000
    bench.rows("UPDATE delivery SET state = 1, due = ? WHERE id = ?", due + minute, soon)
    bench.rows("UPDATE delivery SET state = 1, due = ? WHERE id = ?", due + DAY // 2, deferred)
    now = due - DAY // 4
    bench.clock.now = from_micros(now)

    assert bench.do(Clamp()) == 0
    assert bench.do(Clamp(back=DAY // 4)) == 3

    rows = dict(bench.rows("SELECT id, due FROM delivery"))
    assert rows == {ready: now, soon: now + minute, deferred: now + DAY // 2}


def test_a_second_worker_that_saw_the_clock_set_back_makes_nothing_due_before_now(
    bench: Bench,
) -> None:
    soon = bench.put()
    due = bench.rows("SELECT due FROM delivery WHERE id = ?", soon)[0][0]
    bench.rows("UPDATE delivery SET state = 1, due = ? WHERE id = ?", due + 60_000_000, soon)
    bench.clock.now = from_micros(due - DAY // 4)

    bench.do(Clamp(back=DAY // 4))
    bench.do(Clamp(back=DAY // 4))

    assert bench.rows("SELECT due FROM delivery") == [(due - DAY // 4,)]


def test_mail_taken_in_under_a_wrong_clock_gets_its_whole_time(bench: Bench) -> None:
    right = bench.clock.now
    bench.clock.now = from_micros(0)
    message = bench.put()
    bench.clock.now = right
    assert bench.do(Expire()) == ()
    (expires,) = bench.rows("SELECT expires_at FROM delivery WHERE id = ?", message)[0]
    assert from_micros(expires) > right
    bench.clock.advance(6 * 86_400)
    assert len(bench.do(Expire())) == 1


def test_a_damaged_row_keeps_no_other_from_its_end_or_its_turn(bench: Bench) -> None:
    bad, good = bench.put(), bench.put()
    bench.rows("UPDATE delivery SET recipients = '[not json' WHERE id = ?", bad)
    bench.rows("UPDATE delivery SET state = 1, due = 9223372036854775807 WHERE id = ?", bad)
    assert bench.do(ReadWork()).next_due_at is not None
    bench.clock.advance(365 * 86_400)
    given_up = bench.do(Expire())
    assert {one.message: one.recipients for one in given_up} == {
        bad: ("[not json",),
        good: ("admin@contoso.com",),
    }


def test_corrupt_mail_never_expires(bench: Bench) -> None:
    bench.put()
    bench.rows("UPDATE delivery SET state = 2, held_by = 'corrupt'")
    bench.clock.advance(365 * 86_400)
    assert bench.do(Expire()) == ()
    assert bench.do(ForgetContent(0)) is None
    assert bench.do(ForgetHistory(0)) is None
    assert bench.rows("SELECT count(*) FROM content") == [(1,)]


def test_forgetting_goes_in_parts_and_passes_over_what_lives(bench: Bench) -> None:
    for _ in range(3):
        bench.core.apply([bench.accept() for _ in range(250)])
    bench.rows("UPDATE delivery SET state = 5, settled_at = due WHERE id % 8192 = 0")
    bench.clock.advance(100 * 86_400)
    for operation, table in ((ForgetContent, "content"), (ForgetHistory, "message")):
        after, parts = bench.do(operation(0)), 1
        while after is not None:
            after, parts = bench.do(operation(after)), parts + 1
        assert parts == 2
        left = bench.rows(f"SELECT count(*) FROM {table}")  # noqa: S608 - of two
        assert left == bench.rows("SELECT count(*) FROM delivery WHERE state = 0")


def test_history_waits_for_content_that_is_kept_longer(tmp_path: Path) -> None:
    bench = Bench(tmp_path, policy=dataclasses.replace(POLICY, history=DAY))
    bench.put()
    bench.rows("UPDATE delivery SET state = 5, settled_at = due")
    for days, left in ((2, 1), (30, 0)):
        bench.clock.advance(days * 86_400)
        bench.do(ForgetContent(0))
        bench.do(ForgetHistory(0))
        assert bench.rows("SELECT count(*) FROM message") == [(left,)]
    bench.core.close()


def test_what_was_deleted_keeps_no_content_of_others_that_are_over(bench: Bench) -> None:
    bench.put(way(ALERTS), way(SCANS))
    bench.rows("UPDATE delivery SET state = 5, settled_at = due WHERE mailbox = ?", ALERTS.mailbox)
    bench.clock.advance(31 * 86_400)
    deleted = "UPDATE delivery SET state = 6, settled_at = ? WHERE mailbox = ?"
    bench.rows(deleted, micros(bench.clock.utcnow()), SCANS.mailbox)
    bench.do(ForgetContent(0))
    assert bench.rows("SELECT count(*) FROM content") == [(0,)]


def test_files_without_content_rows_are_orphans(bench: Bench) -> None:
    message = bench.put()
    assert bench.do(KnownFiles((message, message + 4096))) == frozenset({message})


def test_what_was_kept_of_sent_mail_goes_once_nothing_is_kept_any_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_LOOKED_AT", 2)
    sent, half, waits, last = bench.put(), bench.put(way(), way(SCANS)), bench.put(), bench.put()
    for message in (sent, half, last):
        bench.rows("UPDATE delivery SET state = 4, settled_at = 0 WHERE id = ?", message)
    assert bench.do(ForgetSent(0)) == half
    assert bench.do(ForgetSent(half)) == last
    assert bench.do(ForgetSent(last)) is None
    assert bench.rows("SELECT id FROM content ORDER BY id") == [(half,), (waits,)]


def test_what_is_to_be_kept_of_sent_mail_is_not_looked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, policy=dataclasses.replace(POLICY, keep_sent=DAY))
    bench.put()
    bench.rows("UPDATE delivery SET state = 4, settled_at = 0")
    assert bench.do(ForgetSent(0)) is None
    assert len(bench.rows("SELECT 1 FROM content")) == 1
    bench.core.close()
