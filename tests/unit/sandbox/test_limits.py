"""relayd.sandbox.limits: Microsoft's throttles, with the time handed in."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from relayd.sandbox.knobs import Knobs
from relayd.sandbox.limits import Limiter, Ticket

KNOBS = Knobs(concurrency=2, requests_per_window=0, octets_per_window=0)


def enter(limiter: Limiter, knobs: Knobs = KNOBS, now: float = 0.0, app: str = "app") -> Ticket:
    return limiter.enter(app, "a@b.c", knobs, now)


def test_the_third_at_once_is_throttled_and_does_not_take_a_place() -> None:
    limiter = Limiter()
    first, second, third = (enter(limiter) for _ in range(3))
    assert first.refused is None
    assert second.refused is None
    assert third.refused is not None
    assert "MailboxConcurrency" in third.refused.text
    limiter.leave(third, KNOBS, 0)
    limiter.leave(first, KNOBS, 0)
    assert enter(limiter).refused is None


def test_another_application_has_places_of_its_own() -> None:
    limiter = Limiter()
    for _ in range(2):
        enter(limiter)
    assert enter(limiter, app="other").refused is None


def test_what_was_seen_at_once_counts_refused_requests_too() -> None:
    limiter = Limiter()
    tickets = [enter(limiter) for _ in range(5)]
    for ticket in tickets:
        limiter.leave(ticket, KNOBS, 0)
    seen = limiter.seen["a@b.c"]
    assert (seen.in_flight, seen.in_flight_max, seen.throttled) == (0, 5, 3)


def test_an_answered_request_lingers() -> None:
    limiter, knobs = Limiter(), replace(KNOBS, linger_s=3.0)
    for ticket in [enter(limiter, knobs), enter(limiter, knobs)]:
        limiter.leave(ticket, knobs, 10.0)
    late = enter(limiter, knobs, 12.9)
    assert late.refused is not None
    limiter.leave(late, knobs, 12.9)
    assert enter(limiter, knobs, 13.0).refused is None


def test_a_window_of_requests_says_how_long_to_wait() -> None:
    limiter, knobs = Limiter(), replace(KNOBS, requests_per_window=3, requests_window_s=60.0)
    for _ in range(3):
        limiter.leave(enter(limiter, knobs, 5.0), knobs, 5.0)
    refused = enter(limiter, knobs, 25.0).refused
    assert refused is not None
    assert refused.wait_s == 40.0
    assert enter(limiter, knobs, 65.0).refused is None


def test_octets_are_counted_by_window() -> None:
    limiter, knobs = Limiter(), replace(KNOBS, octets_per_window=100, octets_window_s=10.0)
    ticket = enter(limiter, knobs)
    assert limiter.take_octets(ticket, 60, knobs, 0.0) is None
    throttled = limiter.take_octets(ticket, 60, knobs, 0.0)
    assert throttled is not None
    assert "IncomingBytes" in throttled.text
    assert limiter.take_octets(ticket, 60, knobs, 10.0) is None


def test_what_never_fits_still_says_a_time() -> None:
    limiter, knobs = Limiter(), replace(KNOBS, octets_per_window=100, octets_window_s=10.0)
    throttled = limiter.take_octets(enter(limiter), 101, knobs, 0.0)
    assert throttled is not None
    assert throttled.wait_s == 10.0


def test_recipients_are_counted_by_day_and_mailbox() -> None:
    limiter, knobs = Limiter(), replace(KNOBS, recipients_per_day=10)
    assert limiter.take_recipients("a@b.c", 10, knobs, 0.0) == 0.0
    assert limiter.take_recipients("a@b.c", 1, knobs, 3600.0) == 82_800.0
    assert limiter.take_recipients("other@b.c", 1, knobs, 3600.0) == 0.0
    assert limiter.take_recipients("a@b.c", 1, replace(knobs, recipients_exceeded="accept"), 0) == 0


def test_transport_moves_mail_at_its_own_pace() -> None:
    limiter, knobs = Limiter(), replace(KNOBS, drain_per_minute=30)
    assert [limiter.drained_at("a", knobs, 0.0) for _ in range(3)] == [0.0, 2.0, 4.0]
    assert limiter.drained_at("a", knobs, 100.0) == 100.0
    assert limiter.drained_at("a", KNOBS, 1.0) == 1.0


def test_a_reset_forgets_windows_but_not_what_is_under_way() -> None:
    limiter, knobs = Limiter(), replace(KNOBS, requests_per_window=2)
    tickets = [enter(limiter, knobs) for _ in range(2)]
    limiter.reset()
    assert limiter.seen["a@b.c"].in_flight_max == 2
    for ticket in tickets:
        limiter.leave(ticket, knobs, 0)
    assert limiter.seen["a@b.c"].in_flight == 0
    assert enter(limiter, knobs).refused is None


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5)), max_size=60))
def test_no_window_lets_more_through_than_its_limit(steps: list[tuple[float, int]]) -> None:
    limiter, knobs = Limiter(), replace(KNOBS, octets_per_window=12, octets_window_s=60.0)
    ticket, passed = enter(limiter), list[tuple[float, int]]()
    for now, amount in sorted(steps):
        if limiter.take_octets(ticket, amount, knobs, now) is None:
            passed.append((now, amount))
        # A bucket is a sixtieth wide, so the window may be short by that much.
        assert sum(a for at, a in passed if now - 59.0 < at <= now) <= 12
