"""Frames survive any split; anything else is garbage and nothing worse."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.cache import frames
from relayd.cache.frames import (
    MAX_FRAME_BYTES,
    Answer,
    Call,
    Decoder,
    Frame,
    Garbage,
    Push,
    Refusal,
    encode,
)

payloads = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text())
any_frame: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Call, st.integers(), st.text(), payloads),
    st.builds(Answer, st.integers(), payloads),
    st.builds(Refusal, st.integers(), st.text(), st.text(), payloads),
    st.builds(Push, st.text(), payloads),
)


@settings(deadline=None)
@given(st.lists(any_frame, max_size=4), st.lists(st.integers(0, 400)))
def test_any_split_gives_the_same_frames(said: list[Frame], cuts: list[int]) -> None:
    wire = b"".join(map(encode, said))
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    decoder, heard = Decoder(), []
    for start, end in itertools.pairwise(edges):
        heard += decoder.feed(wire[start:end])
    assert heard == said


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_octets_are_frames_or_garbage(octets: bytes) -> None:
    try:
        Decoder().feed(octets)
    except Garbage:
        return


@pytest.mark.parametrize(
    "members",
    [
        [],
        {},
        {"v": 2, "id": 1, "call": "token", "with": {}},
        {"v": 1, "id": 1, "call": "token"},
        {"v": 1, "id": True, "call": "token", "with": {}},
        {"v": 1, "id": 1.5, "ok": {}},
        {"v": 1, "ok": {}},
        {"v": 1, "id": 1, "no": {"cause": 1, "text": "", "with": {}}},
        {"v": 1, "push": None, "with": {}},
        {"v": 1, "id": 1, "call": "x", "with": []},
    ],
)
def test_what_lacks_something_is_garbage(members: object) -> None:
    octets = json.dumps(members).encode()
    with pytest.raises(Garbage):
        Decoder().feed(len(octets).to_bytes(4, "big") + octets)


def test_a_length_that_is_too_large_is_refused_before_its_octets_come() -> None:
    with pytest.raises(Garbage):
        Decoder().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


def test_deep_nesting_is_garbage() -> None:
    octets = b"[" * 100_000
    with pytest.raises(Garbage):
        Decoder().feed(len(octets).to_bytes(4, "big") + octets)


def test_a_frame_that_nobody_would_take_is_not_made() -> None:
    with pytest.raises(Garbage):
        encode(Push("x", {"text": "a" * MAX_FRAME_BYTES}))


def test_members_are_read_by_their_type() -> None:
    payload: frames.Payload = {"t": "x", "i": 1, "n": 1.5, "f": True, "o": {}, "a": [1]}
    assert frames.text(payload, "t") == "x"
    assert frames.integer(payload, "i") == 1
    assert frames.number(payload, "i") == 1.0
    assert frames.number(payload, "n") == 1.5
    assert frames.flag(payload, "f") is True
    assert frames.table(payload, "o") == {}
    assert frames.items(payload, "a") == [1]


@pytest.mark.parametrize(
    ("read", "wrong"),
    [
        (frames.text, 1),
        (frames.integer, 1.5),
        (frames.integer, True),
        (frames.number, True),
        (frames.number, "1"),
        (frames.flag, 1),
        (frames.table, []),
        (frames.items, {}),
        (frames.items, "ab"),
    ],
)
def test_members_of_another_type_are_garbage(read: object, wrong: object) -> None:
    assert callable(read)
    with pytest.raises(Garbage):
        read({"x": wrong}, "x")
    with pytest.raises(Garbage):
        read({}, "x")
