"""Base64 of pieces equals base64 of the whole, and its length is known before."""

from __future__ import annotations

import base64
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.deliver.body import PIECE_BYTES, encode, encode_whole, encoded_bytes


@given(st.lists(st.binary(max_size=100)))
def test_any_pieces_give_the_same_as_the_whole(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    out = list(encode(pieces))

    assert b"".join(out) == base64.b64encode(whole) == encode_whole(whole)
    assert all(out)
    assert sum(map(len, out)) == encoded_bytes(len(whole))


@pytest.mark.parametrize("length", [0, 1, 2, 3, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1])
def test_the_length_is_exact_at_the_edges(length: int) -> None:
    octets = bytes(length)

    assert b"".join(encode([octets])) == base64.b64encode(octets)
    assert encoded_bytes(length) == len(base64.b64encode(octets))


@pytest.mark.slow(2)
def test_memory_stays_flat_whatever_the_message_weighs() -> None:
    piece = bytes(262_144)
    tracemalloc.start()
    total = sum(len(out) for out in encode(piece for _ in range(140)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert total == encoded_bytes(140 * len(piece))
    assert peak < 4 * len(piece)
