r"""HTTP/1.1 as a server reads and writes it, without a socket: octets in, requests out.

Incremental: any split of the octets gives the same events. Of a body only `keep` octets are
kept, the rest is counted and dropped, so that a far too large one costs nothing.

    START --line and fields--> HEAD event --body--> Request event --> START

Pipelined octets wait inside until they are asked for.

Source: RFC 9112 (messages, chunked), RFC 9110 §15 (status).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_BODY_BYTES: Final = 1024 * 1024 * 1024
_MAX_CHUNK_LINE_BYTES: Final = 1024


class BadRequest(Exception):
    """The peer does not speak HTTP/1.1; answer 400 and close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Request line and fields. path: percent-decoded. fields: lower-case names, joined by ', '."""

    method: str
    path: str
    query: Mapping[str, str]
    fields: Mapping[str, str]
    keep_alive: bool

    def get(self, name: str) -> str:
        """Return a field's value, "" if there is none; `name` in lower case."""
        return self.fields.get(name, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A whole request. body: at most `keep` octets of it. body_bytes: what was sent."""

    head: Head
    body: bytes
    body_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer; Content-Length is added when it is rendered."""

    status: int
    fields: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def render(self, *, close: bool = False, without_body: bool = False) -> bytes:
        """Return the octets. without_body: the answer to HEAD."""
        lines = [f"HTTP/1.1 {self.status} {_reason(self.status)}"]
        # SECURITY: what a peer sent may be echoed here; a line end in it would forge a field.
        lines += [f"{name}: {_field_text(value)}" for name, value in self.fields]
        lines.append(f"Content-Length: {len(self.body)}")
        if close:
            lines.append("Connection: close")
        head = "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"
        return head if without_body else head + self.body


CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _field_text(value: str) -> str:
    return "".join(c if " " <= c != "\x7f" or c == "\t" else "?" for c in value)


class _Reading(enum.Enum):
    HEAD = "head"
    LENGTH = "body of known length"
    CHUNK_LINE = "chunk size"
    CHUNK = "chunk"
    CHUNK_END = "line end after a chunk"
    TRAILER = "trailer"


@dataclass(slots=True)
class Receiver:
    """One connection's octets. keep: how much of a body is kept."""

    keep: int
    _data: bytearray = field(default_factory=bytearray)
    _reading: _Reading = _Reading.HEAD
    _head: Head | None = None
    _body: bytearray = field(default_factory=bytearray)
    _body_bytes: int = 0
    _left: int = 0

    def feed(self, data: bytes) -> None:
        """Take received octets."""
        self._data += data

    @property
    def waiting_bytes(self) -> int:
        """How many octets wait to be understood."""
        return len(self._data)

    def next_event(self) -> Head | Request | None:
        """Return a Head, then its Request; None when more octets are needed.

        raises: BadRequest - the connection cannot go on.
        """
        if self._reading is _Reading.HEAD:
            return self._read_head()
        while self._step():
            if self._left == 0 and self._reading is _Reading.LENGTH:
                return self._finish()
        return None

    def _read_head(self) -> Head | None:
        while self._data.startswith(b"\r\n"):  # RFC 9112 §2.2: an empty line before is ignored
            del self._data[:2]
        end = self._data.find(b"\r\n\r\n", 0, _MAX_HEAD_BYTES)
        if end < 0:
            if len(self._data) >= _MAX_HEAD_BYTES:
                raise BadRequest("request head too long")
            return None
        lines = bytes(self._data[:end]).decode("latin-1").split("\r\n")
        del self._data[: end + 4]
        self._head = head = _parse_head(lines)
        self._body, self._body_bytes = bytearray(), 0
        coding, length = head.get("transfer-encoding").lower(), head.get("content-length")
        if coding:
            if coding != "chunked" or length:
                raise BadRequest("transfer coding not understood")
            self._reading = _Reading.CHUNK_LINE
        else:
            self._reading, self._left = _Reading.LENGTH, _parse_length(length)
        return head

    def _step(self) -> bool:
        """Go on with the body; False when more octets are needed."""
        if self._reading is _Reading.LENGTH:
            return self._take() or self._left == 0
        if self._reading is _Reading.CHUNK:
            moved = self._take()
            if self._left == 0:
                self._reading = _Reading.CHUNK_END
            return moved or self._left == 0
        line = self._take_line()
        if line is None:
            return False
        if self._reading is _Reading.CHUNK_LINE:
            self._left = _parse_chunk_size(line)
            self._reading = _Reading.CHUNK if self._left else _Reading.TRAILER
        elif self._reading is _Reading.CHUNK_END:
            if line:
                raise BadRequest("chunk longer than it said")
            self._reading = _Reading.CHUNK_LINE
        elif not line:  # the empty line after the trailer
            self._reading, self._left = _Reading.LENGTH, 0
        return True

    def _take(self) -> bool:
        count = min(self._left, len(self._data))
        room = self.keep - len(self._body)
        if room > 0:
            self._body += self._data[: min(count, room)]
        del self._data[:count]
        self._left -= count
        self._body_bytes += count
        if self._body_bytes > _MAX_BODY_BYTES:
            raise BadRequest("body without end")
        return count > 0

    def _take_line(self) -> bytes | None:
        end = self._data.find(b"\r\n", 0, _MAX_CHUNK_LINE_BYTES)
        if end < 0:
            if len(self._data) >= _MAX_CHUNK_LINE_BYTES:
                raise BadRequest("chunk line too long")
            return None
        line = bytes(self._data[:end])
        del self._data[: end + 2]
        return line

    def _finish(self) -> Request:
        if self._head is None:
            raise BadRequest("body without a head")
        request = Request(head=self._head, body=bytes(self._body), body_bytes=self._body_bytes)
        self._head, self._body, self._reading = None, bytearray(), _Reading.HEAD
        return request


def _parse_length(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()) or int(text) > _MAX_BODY_BYTES:
        raise BadRequest("impossible Content-Length")
    return int(text)


def _parse_chunk_size(line: bytes) -> int:
    size = line.partition(b";")[0].strip()
    # int() would also take "+1", "1_0" and "0x1".
    if not size or size.strip(b"0123456789abcdefABCDEF") or len(size) > 8:
        raise BadRequest("not a chunk size")
    return int(size, 16)


def _parse_head(lines: list[str]) -> Head:
    method, _, rest = lines[0].partition(" ")
    target, _, version = rest.rpartition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or not method.isalpha() or not target:
        raise BadRequest("not an HTTP/1.1 request line")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest("not a header field")
        key, value = name.lower(), value.strip()
        if key in fields and key in ("content-length", "host", "authorization", "content-type"):
            raise BadRequest(f"two {name} fields")
        fields[key] = f"{fields[key]}, {value}" if key in fields else value
    if version == "HTTP/1.1" and "host" not in fields:
        raise BadRequest("no Host field")
    wish = fields.get("connection", "").lower()
    path, query = _parse_target(target)
    return Head(
        method=method,
        path=path,
        query=query,
        fields=fields,
        keep_alive="close" not in wish and (version == "HTTP/1.1" or "keep-alive" in wish),
    )


def _parse_target(target: str) -> tuple[str, dict[str, str]]:
    try:
        parts = urlsplit(target)
    except ValueError:
        raise BadRequest("not a request target") from None
    if not parts.path.startswith("/") or (parts.netloc and not parts.scheme):
        raise BadRequest("not a request target")
    query = dict(parse_qsl(parts.query, keep_blank_values=True)) if parts.query else {}
    return unquote(parts.path), query
