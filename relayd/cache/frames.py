"""What goes over the cache daemon's socket: length-prefixed JSON, and nothing about its meaning.

A frame is four octets of length (big endian, 2..262144) and that many of JSON, an object:

    {"v": 1, "id": 7, "call": "token", "with": {…}}                client to daemon
    {"v": 1, "id": 7, "ok": {…}}                                   daemon's answer
    {"v": 1, "id": 7, "no": {"cause": …, "text": …, "with": {…}}}  daemon's refusal
    {"v": 1, "push": "recall", "with": {…}}                        daemon to client, unasked

A call with id 0 wants no answer. Answers come in any order. Anything else is garbage, and
the end that sees it closes the connection.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from relayd.errors import RelaydError
from relayd.values import frozen

Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
Payload: TypeAlias = Mapping[str, Json]

VERSION: Final = 1
MAX_FRAME_BYTES: Final = 256 * 1024
NO_ANSWER: Final = 0
_LENGTH: Final = struct.Struct("!I")


class Garbage(ValueError):
    """Octets that are no frame of this version, or a frame without what it must have."""


class Refused(RelaydError):
    """The daemon answered, and the answer is no.

    cause:  one word to branch on ("malformed", "unknown-method", a token's cause).
    detail: what the method's contract promises with a refusal.
    """

    def __init__(self, cause: str, text: str, detail: Payload) -> None:
        super().__init__(f"{cause}: {text}")
        self.cause = cause
        self.text = text
        self.detail = detail


@frozen
class Call:
    """Do `method`; `id` 0: no answer wanted."""

    id: int
    method: str
    payload: Payload


@frozen
class Answer:
    """The call with this id is done."""

    id: int
    payload: Payload


@frozen
class Refusal:
    """The call with this id will not be done."""

    id: int
    cause: str
    text: str
    detail: Payload


@frozen
class Push:
    """Said by the daemon without being asked."""

    topic: str
    payload: Payload


Frame: TypeAlias = Call | Answer | Refusal | Push


def encode(frame: Frame) -> bytes:
    """Return the frame's octets; raises Garbage when it would be too large."""
    octets = json.dumps(_members(frame), separators=(",", ":"), allow_nan=False).encode("ascii")
    if len(octets) > MAX_FRAME_BYTES:
        raise Garbage(f"frame of {len(octets)} octets")
    return _LENGTH.pack(len(octets)) + octets


def _members(frame: Frame) -> Payload:
    match frame:
        case Call(number, method, payload):
            return {"v": VERSION, "id": number, "call": method, "with": payload}
        case Answer(number, payload):
            return {"v": VERSION, "id": number, "ok": payload}
        case Refusal(number, cause, text, detail):
            no: Payload = {"cause": cause, "text": text, "with": detail}
            return {"v": VERSION, "id": number, "no": no}
        case Push(topic, payload):
            return {"v": VERSION, "push": topic, "with": payload}


class Decoder:
    """Turns received octets into frames, whatever way they were split."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take received octets and return the frames they complete.

        raises: Garbage - the connection cannot go on; holds at most one frame's octets and `data`.
        """
        self._held += data
        frames: list[Frame] = []
        at = 0
        while len(self._held) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._held, at)
            if length > MAX_FRAME_BYTES:
                raise Garbage(f"a length of {length}")
            end = at + _LENGTH.size + length
            if len(self._held) < end:
                break
            frames.append(_parse(bytes(self._held[at + _LENGTH.size : end])))
            at = end
        del self._held[:at]
        return frames


def _parse(octets: bytes) -> Frame:
    try:
        members = json.loads(octets)
    except (ValueError, RecursionError) as error:
        raise Garbage("not JSON") from error
    if not isinstance(members, dict) or members.get("v") != VERSION:
        raise Garbage("not an object of this version")
    if "push" in members:
        return Push(text(members, "push"), table(members, "with"))
    number = integer(members, "id")
    if "call" in members:
        return Call(number, text(members, "call"), table(members, "with"))
    if "ok" in members:
        return Answer(number, table(members, "ok"))
    no = table(members, "no")
    return Refusal(number, text(no, "cause"), text(no, "text"), table(no, "with"))


def text(payload: Payload, key: str) -> str:
    """Return a member that must be text; raises Garbage."""
    value = payload.get(key)
    if not isinstance(value, str):
        raise Garbage(f"{key}: text is missing")
    return value


def integer(payload: Payload, key: str) -> int:
    """Return a member that must be a whole number; raises Garbage."""
    value = payload.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Garbage(f"{key}: a whole number is missing")
    return value


def number(payload: Payload, key: str) -> float:
    """Return a member that must be a number; raises Garbage."""
    value = payload.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Garbage(f"{key}: a number is missing")
    return float(value)


def flag(payload: Payload, key: str) -> bool:
    """Return a member that must be true or false; raises Garbage."""
    value = payload.get(key)
    if not isinstance(value, bool):
        raise Garbage(f"{key}: true or false is missing")
    return value


def table(payload: Payload, key: str) -> Payload:
    """Return a member that must be an object; raises Garbage."""
    value = payload.get(key)
    if not isinstance(value, Mapping):
        raise Garbage(f"{key}: an object is missing")
    return value


def items(payload: Payload, key: str) -> Sequence[Json]:
    """Return a member that must be an array; raises Garbage."""
    value = payload.get(key)
    if not isinstance(value, list | tuple):
        raise Garbage(f"{key}: an array is missing")
    return value
