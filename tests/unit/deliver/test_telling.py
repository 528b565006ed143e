"""The lines and counts of deliveries say what an operator needs at night."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from datetime import timedelta
from typing import Any

import pytest
import structlog

from relayd.clock import FakeClock
from relayd.config.model import Upstream
from relayd.deliver import telling
from relayd.deliver.lane import Way
from relayd.deliver.outcome import Answer, Divided, Sent
from relayd.observe import metrics
from relayd.spool.model import QueueId, Settlement, State
from relayd.spool.store import Expired
from tests.courier_scene import BAD, DNS, SECRET, Scene
from tests.deliver_fakes import ALERTS, FakeTransport, lease_of

Lines = list[MutableMapping[str, Any]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    with structlog.testing.capture_logs() as captured:
        yield captured


def total(name: str) -> float:
    """Return what a counter stands at, all labels together."""
    values = metrics.snapshot().get(name, {}).values()
    return sum(value for value in values if isinstance(value, int | float))


def test_the_log_line_of_a_sent_message_is_complete(scene: Scene) -> None:
    scene.start()
    scene.clock.advance(1.5)
    scene.door.accept(accepted_at=scene.clock.now - timedelta(seconds=1.5))
    scene.settle()

    line = scene.line("message.sent")
    assert line["upstream"] == "contoso"
    assert line["mailbox"] == "alerts@contoso.com"
    assert (line["recipients"], line["attempt"], line["queued_s"]) == (1, 1, 1.5)
    assert line["request_id"] == "r"
    assert {"id", "bytes", "session", "device"} <= set(line)


def test_long_lists_of_failed_recipients_are_cut_in_the_log(scene: Scene) -> None:
    names = tuple(f"r{n}@x" for n in range(9))
    parts = ((("a@x",), Sent(Answer(status=202))), (names, BAD))
    scene.transport.default = lambda _: Divided(parts)
    scene.start()
    scene.door.accept(recipients=("a@x", *names))
    scene.settle()

    assert str(scene.line("message.sent")["failed_recipients"]).endswith("and 4 more")
    assert total("relayd_recipients_left_out_total") == 9
    assert total("relayd_messages_failed_total") == 0


def test_the_outage_is_told_with_its_cause_and_what_to_do(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    scene.start()
    scene.door.accept()
    scene.settle()

    line = scene.line("upstream.down")
    assert (line["cause"], line["text"], line["retry_in_s"]) == ("dns-failed", "no such host", 2)
    assert "resolv.conf" in str(line["advice"])
    assert line["log_level"] == "error"
    (contoso, fabrikam) = scene.courier.upstreams()
    assert (contoso.state, contoso.cause, contoso.mailboxes_waiting) == ("down", "dns-failed", 1)
    assert contoso.retry_in_s == 2.0
    assert (fabrikam.state, fabrikam.cause, fabrikam.down_s) == ("up", "", 0.0)


def test_a_cause_that_becomes_another_is_told_once_more(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    scene.start()
    scene.door.accept()
    scene.settle()
    scene.advance(3)
    scene.transport.default = lambda _: SECRET
    for _ in range(3):
        scene.advance(61)

    told = [line["cause"] for line in scene.lines if line["event"] == "upstream.down"]
    assert told == ["dns-failed", "7000215"]
    assert len(scene.transport.sent) >= 4


def test_an_outage_at_entra_says_what_to_do_too(scene: Scene) -> None:
    scene.transport.default = lambda _: SECRET
    scene.start()
    scene.door.accept()
    scene.settle()

    assert "Value (not the Secret ID)" in str(scene.line("upstream.down")["advice"])


@pytest.mark.parametrize(
    ("state", "event", "level", "counted"),
    [
        (State.SENT, "message.sent", "info", "relayd_messages_sent_total"),
        (State.FAILED, "message.failed", "error", "relayd_messages_failed_total"),
        (State.HELD, "message.held", "error", ""),
        (State.READY, "message.deferred", "info", "relayd_messages_deferred_total"),
        (State.DEFERRED, "message.deferred", "warning", "relayd_messages_deferred_total"),
    ],
)
def test_each_change_of_state_is_one_line_and_one_count(
    lines: Lines, state: State, event: str, level: str, counted: str
) -> None:
    clock = FakeClock()
    due = clock.now + timedelta(seconds=60) if state is State.DEFERRED else None
    settlement = Settlement(state=state, outcome="o", due_at=due, http_status=429, code="Slow")
    before = total(counted)

    telling.decided(lease_of(clock), settlement, clock.now)

    (line,) = lines
    assert (line["event"], line["log_level"]) == (event, level)
    assert (line["upstream"], line["mailbox"]) == ALERTS
    assert total(counted) == before + bool(counted)
    assert ("reason" in line) == (state is not State.SENT)
    due_words = {State.READY: "with the upstream", State.DEFERRED: "2026-11-20T10:01:00+00:00"}
    assert line.get("due") == due_words.get(state)


@pytest.mark.parametrize(
    ("code", "status", "reason"), [("Slow", 429, "Slow"), ("", 503, "503"), ("", 0, "returned")]
)
def test_the_reason_is_the_code_or_else_what_there_is(
    lines: Lines, code: str, status: int, reason: str
) -> None:
    clock = FakeClock()
    settlement = Settlement(state=State.READY, outcome="returned", http_status=status, code=code)

    telling.decided(lease_of(clock), settlement, clock.now)

    assert lines[0]["reason"] == reason


def test_five_failed_recipients_are_shown_and_no_more(lines: Lines) -> None:
    clock = FakeClock()
    for number in (5, 6):
        failed = {f"r{n}@x": "550" for n in range(number)}
        settlement = Settlement(state=State.SENT, outcome="sent", failed_recipients=failed)
        telling.decided(lease_of(clock), settlement, clock.now)

    five = "r0@x, r1@x, r2@x, r3@x, r4@x"
    assert [line["failed_recipients"] for line in lines] == [five, f"{five} and 1 more"]


def test_who_failed_is_not_listed_where_all_failed(lines: Lines) -> None:
    clock = FakeClock()
    failed = Settlement(state=State.FAILED, outcome="failed", failed_recipients={"b@x": "550"})

    telling.decided(lease_of(clock), failed, clock.now)

    assert "failed_recipients" not in lines[0]


@pytest.mark.parametrize(
    ("held_by", "text"),
    [("ErrorAccessDenied", "held by ErrorAccessDenied"), ("", "its time was over")],
)
def test_what_expired_is_told_and_counted_as_failed(lines: Lines, held_by: str, text: str) -> None:
    before = total("relayd_messages_failed_total")

    telling.expired(
        Expired(
            delivery=1, message=QueueId(1), mailbox=ALERTS, held_by=held_by, attempts=3,
            recipients=("b@x",), sender="a@x", device="ups", session="S",
            accepted_at=FakeClock().now,
        )
    )  # fmt: skip

    (line,) = lines
    assert (line["event"], line["reason"], line["text"]) == ("message.failed", "expired", text)
    assert (line["attempt"], line["recipients"], line["device"]) == (3, 1, "ups")
    assert total("relayd_messages_failed_total") == before + 1


def test_a_lost_lease_is_told_with_its_outcome_if_it_had_one(lines: Lines) -> None:
    lease = lease_of(FakeClock())
    telling.lease_lost(lease, "corrupt")
    telling.lease_lost(lease, "stale", outcome="sent")

    assert [line.get("outcome") for line in lines] == [None, "sent"]
    assert {line["event"] for line in lines} == {"lease.lost"}
    assert [line["text"] for line in lines] == ["corrupt", "stale"]


def test_what_stays_unwritten_is_told_with_what_became_of_it(lines: Lines) -> None:
    telling.unsettled(lease_of(FakeClock()), Settlement(state=State.SENT, outcome="sent"))

    assert (lines[0]["event"], lines[0]["outcome"]) == ("message.unsettled", "sent")


def test_an_outage_nobody_knows_anything_about_comes_without_advice(lines: Lines) -> None:
    way = Way(Upstream(name="contoso"), FakeTransport())
    way.circuit.failed(100.0, cause="never-heard-of", text="?", retry_after_s=60.0)
    telling.went_down(way, 100.0)
    telling.came_back(way, 130.0)

    assert "advice" not in lines[0]
    assert lines[0]["retry_in_s"] == 60
    assert (lines[1]["event"], lines[1]["down_s"]) == ("upstream.up", 30)


def test_the_clock_is_told_of_in_plain_words(lines: Lines) -> None:
    telling.clock_leaped(-864_000.4)
    telling.clock_wrong(FakeClock().now)
    telling.clock_right()

    assert [line["event"] for line in lines] == ["clock.leaped", "clock.wrong", "clock.right"]
    assert lines[0]["seconds"] == -864_000
    assert lines[1]["now"] == "2026-11-20T10:00:00+00:00"
