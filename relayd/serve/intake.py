"""One message's content on its way into the spool: head kept aside, body hashed, all written.

    DATA -> Intake(draft, trace) -> write(piece)* -> finish() -> Draft.commit

The head (up to the first empty line) is needed at the dot, to read From and to count
Received; it is kept up to HEAD_LIMIT octets and a piece. The hash is over the body, so that a
test or an operator can compare what arrived with what was sent, whatever headers were added.

Writing never raises: what went wrong is remembered and raised by `finish`, because the
rest of the content must be read from the client before a reply may be given.

Source: RFC 5321 §4.4 (trace first), RFC 5322 §2.1 (head and body).
"""

from __future__ import annotations

import hashlib
from typing import Final

from relayd.errors import SpoolUnavailable
from relayd.message.headers import HEAD_LIMIT
from relayd.spool.store import Draft

_EMPTY_LINE: Final = b"\r\n\r\n"


class Intake:
    """Content of one transaction. draft: where it goes; trace: our Received line, CRLF.

    The trace goes out together with the first piece: for most messages that is one write, and the
    draft has nothing to join.
    """

    __slots__ = ("_body_hash", "_error", "_head", "_in_body", "_trace", "draft", "size_bytes")

    def __init__(self, draft: Draft, trace: bytes) -> None:
        self.draft = draft
        self.size_bytes = 0
        self._trace = trace  # b"" once it is written
        self._head = b""
        self._in_body = False
        self._body_hash = hashlib.sha256()
        self._error: SpoolUnavailable | None = None

    def write(self, octets: bytes) -> None:
        """Take a piece of content, canonical CRLF; never raises."""
        self.size_bytes += len(octets)
        if self._in_body:
            self._body_hash.update(octets)
        else:
            self._grow_head(octets)
        self._store(octets)

    def finish(self) -> tuple[bytes, str]:
        """Return the head (with its empty line, if there was one) and the body's SHA-256, hex.

        raises: SpoolUnavailable, SpoolFull - a write failed; discard the draft.
        """
        if self._trace:  # no content at all
            self._store(b"")
        if self._error is not None:
            raise self._error
        return self._head, self._body_hash.hexdigest()

    def _grow_head(self, octets: bytes) -> None:
        searched = len(self._head)
        block = self._head + octets if searched else octets
        cut = _end_of_head(block, searched)
        if cut is None:
            self._head = block
            return
        self._head = block[:cut]
        self._in_body = True
        self._body_hash.update(block[cut:])

    def _store(self, octets: bytes) -> None:
        if self._error is not None:
            return
        if self._trace:
            octets, self._trace = self._trace + octets, b""
        try:
            self.draft.write(octets)
        except SpoolUnavailable as error:
            self._error = error


def _end_of_head(block: bytes, searched: int) -> int | None:
    """Return where the body starts; None while more octets must tell."""
    if block.startswith(b"\r\n"):  # opens with the empty line: no header at all
        return 2
    end = block.find(_EMPTY_LINE, max(0, searched - len(_EMPTY_LINE) + 1))
    if end >= 0:
        return end + len(_EMPTY_LINE)
    return HEAD_LIMIT if len(block) > HEAD_LIMIT else None
