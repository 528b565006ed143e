"""The head is kept, the body is hashed, and every octet reaches the draft, however it is split."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.errors import SpoolFull
from relayd.message.headers import HEAD_LIMIT
from relayd.serve.intake import Intake
from relayd.spool.model import NewMessage, QueueId

TRACE = b"Received: from a\r\n"


class Paper:
    """A draft in memory; refuses after `room` octets."""

    def __init__(self, room: int = 10**9) -> None:
        self.id = QueueId(1)
        self.octets = b""
        self.room = room
        self.writes: list[bytes] = []

    def write(self, octets: bytes) -> None:
        if len(self.octets) + len(octets) > self.room:
            raise SpoolFull
        self.octets += octets
        self.writes.append(octets)

    def commit(self, message: NewMessage, *, deadline: float) -> None:
        raise AssertionError

    def discard(self) -> None:
        self.octets = b""


@given(
    head=st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC: d\r\n e\r\n"]),
    body=st.binary(max_size=40),
    cut=st.integers(1, 9),
)
def test_head_and_hash_do_not_depend_on_the_split(head: bytes, body: bytes, cut: int) -> None:
    content = head + b"\r\n" + body
    draft = Paper()
    intake = Intake(draft, TRACE)

    for i in range(0, len(content), cut):
        intake.write(content[i : i + cut])

    assert intake.finish() == (head + b"\r\n", hashlib.sha256(body).hexdigest())
    assert draft.octets == TRACE + content
    assert intake.size_bytes == len(content)


def test_content_without_an_empty_line_is_all_head() -> None:
    intake = Intake(Paper(), TRACE)

    intake.write(b"Subject: x\r\n")

    assert intake.finish() == (b"Subject: x\r\n", hashlib.sha256(b"").hexdigest())


def test_a_message_without_content_has_its_trace() -> None:
    draft = Paper()

    assert Intake(draft, TRACE).finish() == (b"", hashlib.sha256(b"").hexdigest())
    assert draft.octets == TRACE


def test_trace_and_first_piece_are_one_write() -> None:
    draft = Paper()
    intake = Intake(draft, TRACE)

    intake.write(b"A: b\r\n\r\n")
    intake.write(b"c")

    assert draft.writes == [TRACE + b"A: b\r\n\r\n", b"c"]


def test_an_endless_head_is_cut_at_its_limit() -> None:
    intake = Intake(Paper(), TRACE)

    for _ in range(5):
        intake.write(b"x" * 65536)

    assert len(intake.finish()[0]) == HEAD_LIMIT


def test_a_full_disk_is_told_at_the_end_and_not_before() -> None:
    intake = Intake(Paper(room=len(TRACE) + 3), TRACE)

    intake.write(b"A: b\r\n")
    intake.write(b"more")

    with pytest.raises(SpoolFull):
        intake.finish()
    assert intake.size_bytes == 10
