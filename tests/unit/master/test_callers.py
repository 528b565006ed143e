"""The master adds up what workers tell of peers, keeps the devices, and shows what fits a frame."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relayd.master.callers import MOST_ROWS, Callers
from relayd.master.frames import MAX_FRAME_BYTES, Frame, Json


def news(ip: str = "192.0.2.5", device: str = "ups", **more: Json) -> Frame:
    return {"ip": ip, "device": device, "user": "", "accepted": 0, "refused": 0, **more}


def refusal(at: str, **more: Json) -> Frame:
    return {"at": at, "code": 550, "transcript": ["C: QUIT"], **more}


def test_workers_are_added_up_and_the_latest_word_counts() -> None:
    callers = Callers()
    callers.hear([news(accepted=2, last={"id": "A"}), news(refused=1, refusal=refusal("1"))])
    callers.hear([news(accepted=1, last={"id": "B"})])
    (row,) = callers.shown("ups")
    assert row == {
        "ip": "192.0.2.5", "device": "ups", "user": "", "accepted": 3, "refused": 1,
        "last": {"id": "B"}, "refusal": refusal("1"),
    }  # fmt: skip


def test_a_name_or_an_address_chooses_and_only_then_there_are_transcripts() -> None:
    callers = Callers()
    callers.hear([news(refusal=refusal("1")), news("192.0.2.9", "")])
    callers.hear([{**news("192.0.2.7", ""), "user": "nas"}])
    assert [row["ip"] for row in callers.shown()] == ["192.0.2.7", "192.0.2.9", "192.0.2.5"]
    assert "transcript" not in json.dumps(callers.shown())
    assert "transcript" in json.dumps(callers.shown(ip="192.0.2.5"))
    assert "transcript" in json.dumps(callers.shown(whole=True))
    assert [row["user"] for row in callers.shown("nas")] == ["nas"]
    assert callers.shown("", "192.0.2.10") == []


def test_strangers_are_forgotten_before_devices() -> None:
    callers = Callers()
    callers.hear([news()])
    for number in range(2 * MOST_ROWS):
        callers.hear([news(f"2001:db8::{number:x}", "")])
    shown = callers.shown()
    assert len(shown) == MOST_ROWS
    assert shown[-1]["device"] == "ups"


def test_guesses_at_a_users_password_do_not_push_out_who_sends() -> None:
    callers = Callers()
    callers.hear([news(), {**news("192.0.2.7", "", accepted=1), "user": "nas"}])
    for number in range(2 * MOST_ROWS):
        callers.hear([{**news(f"2001:db8::{number:x}", "", refused=1), "user": "nas"}])
    shown = callers.shown()
    assert len(shown) == MOST_ROWS
    assert [row["ip"] for row in shown[-2:]] == ["192.0.2.7", "192.0.2.5"]


def test_of_devices_only_that_silent_longest_is_forgotten() -> None:
    callers = Callers()
    for number in range(MOST_ROWS + 1):
        callers.hear([news(f"2001:db8::{number:x}", f"d{number}")])
    assert not callers.shown("d0")
    assert callers.shown("d1")


def test_what_is_shown_fits_a_frame() -> None:
    callers = Callers()
    for number in range(MOST_ROWS):
        callers.hear([news(f"192.0.2.{number}", refusal=refusal("1", reason="x" * 40_000))])
    for rows in (callers.shown(), callers.shown("ups")):
        assert 0 < len(json.dumps({"callers": rows})) < MAX_FRAME_BYTES


@pytest.mark.parametrize("garbage", [None, 3, "x", [3], [None], {}, [{"accepted": "x", "last": 3}]])
def test_garbage_of_a_child_does_no_harm(garbage: Any) -> None:
    callers = Callers()
    callers.hear(garbage)
    assert all(row["accepted"] == 0 for row in callers.shown())
