"""What goes over control.sock: length-prefixed JSON objects, and nothing about their meaning.

A frame is four octets of length (big endian, 2..1048576) and that many of JSON, an object.
One request for each connection; then one reply, or several of which all but the last bear
"more": true; then the server closes. docs/control.md lists the commands.

    {"v": 1, "command": "reload", …}
    {"v": 1, "ok": true, "result": {…}}
    {"v": 1, "ok": false, "error": "text", "exit": 1, "problems": ["…"]}

Anything else is garbage and costs the sender its connection, nobody else anything.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
Frame: TypeAlias = Mapping[str, Json]

VERSION: Final = 1
MAX_FRAME_BYTES: Final = 1024 * 1024
_LENGTH: Final = struct.Struct("!I")


class Garbage(ValueError):
    """Octets that are no frame; the connection cannot go on."""


def done(result: Frame | None = None, *, more: bool = False) -> Frame:
    """Return the reply to a request that was carried out."""
    reply: dict[str, Json] = {"v": VERSION, "ok": True, "result": dict(result or {})}
    return reply | {"more": True} if more else reply


def refused(error: str, *, exit_code: int = 1, problems: Sequence[str] = ()) -> Frame:
    """Return the reply to a request that was not; `exit_code` is what the command exits with."""
    reply: dict[str, Json] = {"v": VERSION, "ok": False, "error": error, "exit": exit_code}
    return reply | {"problems": list(problems)} if problems else reply


def encode(frame: Frame) -> bytes:
    """Return the octets of a frame; raises Garbage when they would be too many."""
    octets = json.dumps(frame, separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(octets) > MAX_FRAME_BYTES:
        raise Garbage(f"frame of {len(octets)} octets")
    return _LENGTH.pack(len(octets)) + octets


def parse_object(octets: bytes) -> dict[str, Json]:
    """Return the JSON object in `octets`; raises Garbage for anything else."""
    try:
        members = json.loads(octets)
    except (ValueError, RecursionError) as error:
        raise Garbage("not JSON") from error
    if not isinstance(members, dict):
        raise Garbage("not an object")
    return members


class Decoder:
    """Turns received octets into frames, whatever way they were split."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Json]]:
        """Take received octets and return the frames they complete.

        raises: Garbage - close the connection. Holds at most one frame's octets and `data`.
        """
        self._held += data
        frames: list[dict[str, Json]] = []
        while len(self._held) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._held)
            if length > MAX_FRAME_BYTES:
                raise Garbage(f"a length of {length}")
            end = _LENGTH.size + length
            if len(self._held) < end:
                break
            frames.append(parse_object(bytes(self._held[_LENGTH.size : end])))
            del self._held[:end]
        return frames
