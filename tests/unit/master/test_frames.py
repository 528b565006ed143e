"""Frames survive any split; anything else is garbage, and holds no more than one frame."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.master.frames import (
    MAX_FRAME_BYTES,
    Decoder,
    Garbage,
    done,
    encode,
    parse_object,
    refused,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=4)


@given(objects=st.lists(OBJECTS, max_size=4), cuts=st.lists(st.integers(1, 30)))
def test_any_split_gives_the_same_frames(objects: list[dict[str, object]], cuts: list[int]) -> None:
    octets = b"".join(encode(each) for each in objects)  # type: ignore[arg-type]  # any JSON
    decoder = Decoder()
    found: list[object] = []
    for cut in cuts:
        found += decoder.feed(octets[:cut])
        octets = octets[cut:]
    found += decoder.feed(octets)
    assert found == objects


@given(octets=st.binary(max_size=200))
def test_any_octets_are_frames_or_garbage(octets: bytes) -> None:
    try:
        Decoder().feed(octets)
    except Garbage:
        return


@pytest.mark.parametrize(
    "octets",
    [
        struct.pack("!I", MAX_FRAME_BYTES + 1),
        struct.pack("!I", 0),
        struct.pack("!I", 4) + b"nope",
        struct.pack("!I", 2) + b"[]",
        struct.pack("!I", 2) + b'"x',
        struct.pack("!I", 2) + b"\xff\xfe",
        struct.pack("!I", 100_000) + b"[" * 100_000,
    ],
)
def test_what_is_no_object_is_garbage(octets: bytes) -> None:
    with pytest.raises(Garbage):
        Decoder().feed(octets)


def test_a_frame_that_would_be_too_large_is_not_made() -> None:
    with pytest.raises(Garbage):
        encode({"text": "x" * MAX_FRAME_BYTES})


def test_replies_have_their_keys_always_and_problems_only_when_there_are_some() -> None:
    assert done() == {"v": 1, "ok": True, "result": {}}
    assert done({"a": 1}, more=True)["more"] is True
    assert refused("no", exit_code=69) == {"v": 1, "ok": False, "error": "no", "exit": 69}
    assert refused("no", problems=["a"])["problems"] == ["a"]


def test_an_object_is_an_object() -> None:
    assert parse_object(json.dumps({"a": [1]}).encode()) == {"a": [1]}
