"""Outcomes are values."""

from __future__ import annotations

from relayd.deliver.outcome import Answer, Deferred, Sent


def test_outcomes_are_compared_by_what_they_say() -> None:
    assert Sent(Answer(status=202)) == Sent(Answer(status=202))


def test_a_deferral_concerns_one_message_unless_it_says_more() -> None:
    outcome = Deferred(Answer())

    assert (outcome.retry_after_s, outcome.whole_upstream, outcome.whole_mailbox) == (
        None,
        False,
        False,
    )
