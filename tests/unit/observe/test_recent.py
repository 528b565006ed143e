"""Errors of one kind are one row, so that many do not hide the one that says why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from relayd.observe.recent import MOST_KINDS, Recent, merged

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)


def test_a_row_says_when_what_why_and_what_to_do() -> None:
    recent = Recent()
    recent.note(
        "upstream.down",
        {"upstream": "contoso", "cause": "7000215", "text": "wrong secret", "advice": "Mend it."},
        NOW,
    )
    assert recent.take() == [
        {
            "at": "2026-11-20T10:00:00.000Z",
            "event": "upstream.down",
            "cause": "7000215",
            "upstream": "contoso",
            "text": "wrong secret",
            "do": "Mend it.",
            "times": 1,
        }
    ]
    assert recent.take() == []


def test_an_advice_that_stands_in_the_text_is_told_once() -> None:
    recent = Recent()
    fields = {"text": "wrong secret: make a new one (trace 1)", "advice": "make a new one"}
    recent.note("upstream.down", fields, NOW)
    (row,) = recent.take()
    assert (row["text"], row["do"]) == ("wrong secret (trace 1)", "make a new one")


def test_a_thousand_of_one_kind_leave_the_others_their_place() -> None:
    recent = Recent()
    recent.note("spool.unhealthy", {"why": "disk I/O error"}, NOW)
    for second in range(1000):
        fields = {"upstream": "contoso", "reason": "ErrorSendAsDenied", "id": second, "text": "no"}
        recent.note("message.held", fields, NOW + timedelta(seconds=second))
    unhealthy, held = recent.take()
    assert (unhealthy["text"], unhealthy["times"]) == ("disk I/O error", 1)
    assert (held["cause"], held["times"]) == ("ErrorSendAsDenied", 1000)
    assert held["at"] == "2026-11-20T10:16:39.000Z"


def test_kinds_are_bounded_and_the_latest_stay() -> None:
    recent = Recent()
    for number in range(3 * MOST_KINDS):
        recent.note("message.failed", {"reason": f"code{number}"}, NOW)
    causes = [row["cause"] for row in recent.take()]
    assert causes == [f"code{n}" for n in range(2 * MOST_KINDS, 3 * MOST_KINDS)]


def test_a_reason_in_words_is_no_code_and_texts_are_cut() -> None:
    recent = Recent()
    recent.note("session.refused", {"reason": "too many " * 100}, NOW)
    (row,) = recent.take()
    assert row["cause"] == ""
    assert len(str(row["text"])) == 300


def test_processes_are_added_up_by_time_and_the_latest_words_kept() -> None:
    first = {"at": "1", "event": "upstream.down", "cause": "c", "upstream": "a", "text": "old"}
    then = {**first, "at": "3", "text": "new", "times": 4}
    other = {"at": "2", "event": "child.died", "text": "worker 1"}
    rows = merged([[then], [first, other]])
    assert [(row["at"], row["event"], row["text"], row["times"]) for row in rows] == [
        ("2", "child.died", "worker 1", 1),
        ("3", "upstream.down", "new", 5),
    ]


def test_only_the_latest_kinds_are_shown() -> None:
    rows = merged([[{"at": f"{n:03}", "event": f"e{n}"} for n in range(50)]])
    assert [row["event"] for row in rows] == [f"e{n}" for n in range(30, 50)]
