"""The table of events reads like one."""

from __future__ import annotations

import re

from relayd.observe.events import EVENTS

INTERFACE = (
    "process.started listener.bound reload.done reload.refused session.opened session.closed "
    "session.refused auth.ok auth.failed message.accepted message.sent message.deferred "
    "message.failed message.held message.bounced token.acquired token.failed quota.waiting "
    "upstream.down upstream.up"
)


def test_names_are_subject_and_what_happened_in_order() -> None:
    assert all(re.fullmatch(r"[a-z]+\.[a-z_]+", name) for name in EVENTS)
    assert list(EVENTS) == sorted(EVENTS)


def test_meanings_are_one_sentence_for_an_operator() -> None:
    for name, meaning in EVENTS.items():
        assert meaning.endswith("."), name
        assert "|" not in meaning, name
        assert len(meaning) <= 120, name


def test_every_event_of_the_interface_is_there() -> None:
    assert set(INTERFACE.split()) <= set(EVENTS)
