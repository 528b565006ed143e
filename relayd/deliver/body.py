"""The body of Graph's MIME sendMail: standard base64 of head and body, no line breaks.

The length is known before the first octet, as HTTP wants it. A small message is encoded at
once; a large one piece by piece, with never more than one piece in memory.

Source: learn.microsoft.com/graph/outlook-send-mime-message; RFC 4648 §4.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable, Iterator
from typing import Final

PIECE_BYTES: Final = 3 * 16 * 1024
"""Content encoded at a time; 64 KiB of base64."""


def encoded_bytes(length: int) -> int:
    """Return how many octets `length` octets become, padding included."""
    return 4 * ((length + 2) // 3)


def encode_whole(octets: bytes) -> bytes:
    """Encode a small message."""
    return b2a_base64(octets, newline=False)


def encode(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the base64 of all pieces as if they were one; none of the yielded is empty."""
    rest = b""
    for piece in pieces:
        octets = rest + piece if rest else piece
        whole = len(octets) - len(octets) % 3
        rest = octets[whole:]
        view = memoryview(octets)
        for start in range(0, whole, PIECE_BYTES):
            yield b2a_base64(view[start : min(start + PIECE_BYTES, whole)], newline=False)
    if rest:
        yield b2a_base64(rest, newline=False)
