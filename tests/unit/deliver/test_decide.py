"""The table of results and what they make of a delivery."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from relayd.clock import FakeClock
from relayd.deliver.decide import Policy, decide, describe, returned
from relayd.deliver.outcome import (
    Ambiguous,
    Answer,
    Deferred,
    Divided,
    Failed,
    Misconfigured,
    Result,
    Sent,
)
from relayd.deliver.wallclock import EARLIEST
from relayd.spool.model import NEXT, Lease, Settlement, State
from tests.deliver_fakes import lease_of

CLOCK = FakeClock()
NOW = CLOCK.utcnow()
LEASE = lease_of(CLOCK, recipients=("a@x", "b@x", "c@x"))
POLICY = Policy(schedule=(60.0, 120.0, 300.0))
HOLDING = replace(POLICY, ambiguous="hold")

BUSY = Answer(status=429, code="ApplicationThrottled", request_id="r", text="over its limit")
DENIED = Answer(status=403, code="ErrorSendAsDenied", text="no right")
GATEWAY = Answer(status=504, text="gateway")
BAD = Answer(status=400, code="ErrorInvalidRecipients")
TAKEN = Answer(status=202, request_id="r")


def settled(result: Result, policy: Policy = POLICY, lease: Lease = LEASE) -> Settlement:
    settlement = decide(result, lease, policy, NOW)
    assert settlement.state in NEXT[State.LEASED], "the spool must allow it"
    return settlement


def in_s(seconds: float) -> object:
    return NOW + timedelta(seconds=seconds)


def test_sent() -> None:
    assert settled(Sent(TAKEN)) == Settlement(
        state=State.SENT, outcome="sent", http_status=202, request_id="r"
    )


def test_deferred_follows_the_schedule_by_the_attempt() -> None:
    for attempt, seconds in ((1, 60), (2, 120), (3, 300), (7, 300)):
        settlement = settled(Deferred(BUSY), lease=replace(LEASE, attempt=attempt))
        assert settlement.state is State.DEFERRED
        assert settlement.due_at == in_s(seconds)
        assert settlement.outcome == "deferred"
        assert settlement.code == "ApplicationThrottled"
        assert settlement.request_id == "r"


def test_deferred_as_the_server_wishes() -> None:
    assert settled(Deferred(BUSY, 17.0)).due_at == in_s(17)


def test_a_wish_of_nearly_nothing_is_stretched_with_each_try() -> None:
    for attempt, seconds in ((1, 1), (3, 4), (50, 10)):
        lease = replace(LEASE, attempt=attempt)
        assert settled(Deferred(BUSY, 0.01), lease=lease).due_at == in_s(seconds)


def test_the_text_says_what_it_means_and_what_microsoft_said() -> None:
    text = settled(Deferred(BUSY)).text

    assert text.startswith("Too many requests at once for the mailbox")
    assert text.endswith("(over its limit)")
    assert describe(Answer(status=504)) == "A gateway gave up waiting; the message may have gone."


@pytest.mark.parametrize(
    "outcome",
    [
        Deferred(Answer(code="dns-failed"), whole_upstream=True),
        Misconfigured(Answer(code="7000215", text="wrong secret"), whole_upstream=True),
    ],
)
def test_a_whole_upstream_down_costs_the_message_no_attempt(outcome: Result) -> None:
    settlement = settled(outcome)

    assert settlement.state is State.READY
    assert settlement.due_at is None
    assert settlement.outcome in ("deferred", "misconfigured")
    assert settlement.text


def test_no_token_is_told_as_such() -> None:
    outcome = Misconfigured(Answer(code="7000215", text="wrong secret"), whole_upstream=True)

    assert settled(outcome).text == "No access token could be had. (wrong secret)"


def test_failed_gives_every_recipient_its_reason() -> None:
    settlement = settled(Failed(BAD, "5.1.3"))

    assert settlement.state is State.FAILED
    assert settlement.failed_recipients is not None
    assert set(settlement.failed_recipients) == set(LEASE.recipients)
    assert all(why.startswith("5.1.3 ") for why in settlement.failed_recipients.values())


def test_a_denial_is_held_by_its_code_and_probed_after_half_an_hour() -> None:
    settlement = settled(Misconfigured(DENIED))

    assert settlement.state is State.HELD
    assert settlement.held_by == "ErrorSendAsDenied"
    assert settlement.due_at == in_s(1800)
    assert settlement.outcome == "misconfigured"


def test_a_denial_without_a_code_is_held_by_its_status() -> None:
    assert settled(Misconfigured(Answer(status=403))).held_by == "HTTP 403"


def test_ambiguous_is_tried_again_or_held_as_configured() -> None:
    again = settled(Ambiguous(GATEWAY))
    assert (again.state, again.outcome, again.due_at) == (State.DEFERRED, "ambiguous", in_s(60))

    for policy in (HOLDING, replace(POLICY, ambiguous="verify")):
        held = settled(Ambiguous(GATEWAY), policy)
        assert (held.state, held.held_by, held.due_at) == (State.HELD, "ambiguous", None)


def test_mail_taken_in_under_a_wrong_clock_is_not_given_up_at_the_first_try() -> None:
    wrong = EARLIEST - timedelta(days=9000)
    lease = replace(LEASE, accepted_at=wrong, expires_at=wrong + timedelta(days=5))

    assert settled(Deferred(BUSY), lease=lease).state is State.DEFERRED
    assert settled(Deferred(BUSY, whole_upstream=True), lease=lease).state is State.READY


@pytest.mark.parametrize("outcome", [Deferred(BUSY), Deferred(BUSY, 5.0), Ambiguous(GATEWAY)])
def test_past_its_end_a_message_is_given_up_with_the_last_reason(outcome: Result) -> None:
    settlement = settled(outcome, lease=replace(LEASE, expires_at=NOW))

    assert settlement.state is State.FAILED
    assert settlement.code == "expired"
    assert settlement.http_status == getattr(outcome, "answer", BUSY).status
    assert "The last try: " in settlement.text
    assert settlement.failed_recipients is not None
    assert set(settlement.failed_recipients) == set(LEASE.recipients)
    assert all(why.startswith("5.4.7 ") for why in settlement.failed_recipients.values())


def test_an_upstream_that_stays_down_ends_a_message_too() -> None:
    outcome = Deferred(Answer(code="dns-failed"), whole_upstream=True)

    assert settled(outcome, lease=replace(LEASE, expires_at=NOW)).state is State.FAILED


def test_a_held_message_is_not_ended_here_but_by_the_sweep() -> None:
    lease = replace(LEASE, expires_at=NOW)

    assert settled(Misconfigured(DENIED), lease=lease).state is State.HELD


def test_nothing_is_given_up_while_the_clock_is_not_believed() -> None:
    policy = replace(POLICY, may_expire=False)
    lease = replace(LEASE, expires_at=NOW - timedelta(days=9))

    settlement = settled(Deferred(BUSY), policy, lease)

    assert settlement.state is State.DEFERRED
    assert settlement.due_at == in_s(60)


def test_a_conversion_that_fails_three_times_is_given_up() -> None:
    answer = Answer(status=500, code="ErrorMimeContentConversionFailed")

    for attempt in (1, 2):
        early = settled(Deferred(answer), lease=replace(LEASE, attempt=attempt))
        assert early.state is State.DEFERRED

    last = settled(Deferred(answer), lease=replace(LEASE, attempt=3))
    assert last.state is State.FAILED
    assert (last.failed_recipients or {})["a@x"].startswith("5.6.0 ")


def test_one_bad_address_does_not_lose_the_others() -> None:
    parts = ((("a@x", "c@x"), Sent(TAKEN)), (("b@x",), Failed(BAD, "5.1.3")))

    settlement = settled(Divided(parts))

    assert settlement.state is State.SENT
    assert set(settlement.failed_recipients or {}) == {"b@x"}
    assert settlement.text


def test_what_is_left_waits_and_what_is_done_is_recorded() -> None:
    parts = (
        (("a@x",), Sent(TAKEN)),
        (("b@x",), Failed(BAD, "5.1.3")),
        (("c@x",), Deferred(BUSY, 30.0)),
    )

    settlement = settled(Divided(parts))

    assert (settlement.state, settlement.due_at) == (State.DEFERRED, in_s(30))
    assert settlement.sent_recipients == ("a@x",)
    assert set(settlement.failed_recipients or {}) == {"b@x"}


def test_all_bad_is_failed_each_with_its_own_reason() -> None:
    other = Failed(Answer(status=400, code="ErrorMimeContentInvalid"), "5.6.0")
    parts = ((("a@x",), Failed(BAD, "5.1.3")), (("b@x", "c@x"), other))

    settlement = settled(Divided(parts))

    assert settlement.state is State.FAILED
    reasons = settlement.failed_recipients or {}
    assert (reasons["a@x"][:5], reasons["c@x"][:5]) == ("5.1.3", "5.6.0")


def test_the_part_that_moves_first_leads() -> None:
    parts = (
        (("a@x",), Misconfigured(DENIED)),
        (("b@x",), Deferred(Answer(code="dns-failed"), whole_upstream=True)),
        (("c@x",), Deferred(BUSY)),
    )

    assert settled(Divided(parts)).state is State.READY


def test_what_may_have_gone_is_held_with_those_who_wait_and_they_are_named() -> None:
    parts = (
        (("a@x",), Ambiguous(GATEWAY)),
        (("b@x", "c@x"), Deferred(Answer(code="not-tried"))),
    )

    held = settled(Divided(parts), HOLDING)
    assert (held.state, held.held_by, held.http_status) == (State.HELD, "ambiguous", 504)
    assert held.text.endswith("Certainly not sent to: b@x, c@x")

    again = settled(Divided(parts))
    assert (again.state, again.outcome, again.http_status) == (State.DEFERRED, "ambiguous", 504)
    assert "b@x" not in again.text


def test_long_lists_of_who_got_nothing_are_cut() -> None:
    names = tuple(f"r{n}@x" for n in range(23))
    parts = ((("a@x",), Ambiguous(GATEWAY)), (names, Deferred(Answer(code="not-tried"))))

    assert settled(Divided(parts), HOLDING).text.endswith("r19@x and 3 more")


def test_a_division_without_parts_is_a_bug() -> None:
    with pytest.raises(ValueError, match="without parts"):
        decide(Divided(()), LEASE, POLICY, NOW)


def test_giving_back_counts_no_attempt() -> None:
    assert returned("the worker stops") == Settlement(
        state=State.READY, outcome="returned", text="the worker stops"
    )
