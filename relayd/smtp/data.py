r"""Message content off the wire: its end, its dots, its line ends, its size.

Only CRLF "." CRLF ends the content, however the network cuts it. A server that takes
"\n.\n" for an end lets one message carry a second one ("SMTP smuggling"), so:

    device   LF alone becomes CRLF; CR alone a blank; a line of one dot whose own or previous
             line end was LF alone ends nothing and is dropped. What leaves is canonical.
    strict   CR or LF alone: nothing more is handed out, and the end says `bare_newline`.
    lf_dot   (a device known to need it) such a dot does end the content; what follows in
             the buffer must be thrown away and the session closed.

NUL is taken out and counted. Content past the limit is read to its end and dropped:
stopping early would leave the rest of it to be read as commands.

Source: RFC 5321 §2.3.8 (line ends), §4.5.2 (transparency), §4.5.3.1.7 (limits);
CVE-2023-51764 and its siblings.
"""

from __future__ import annotations

from typing import Final

_END: Final = b"\r\n.\r\n"
_LAST_LINE: Final = b".\r\n"
_DISCARD: Final = 1 << 20


class ContentReader:
    """Turns received octets into content, whatever way they were split.

    limit:        most octets, on the wire and handed out; 1..2**40.
    size:         octets on the wire so far, dropped ones included, the last dot not.
    done:         the end was seen; feed nothing more.
    ended_bare:   it was an end only `lf_dot` takes.
    bare_newline: a CR or LF stood alone.
    nuls:         NUL octets taken out.
    """

    __slots__ = (
        "_context",
        "_given",
        "_lf_dot",
        "_limit",
        "_strict",
        "_tail",
        "bare_newline",
        "done",
        "ended_bare",
        "nuls",
        "size",
    )

    def __init__(self, limit: int, *, strict: bool = False, lf_dot: bool = False) -> None:
        self._limit = limit
        self._strict = strict
        self._lf_dot = lf_dot
        # The line end the next octet stands behind, b"" inside a line; content opens as if
        # a line had just ended. It is put before each block, so that `find` sees it.
        self._context = b"\r\n"
        self._tail = b""  # at most ".\r": what cannot be judged before the next octet
        self._given = 0
        self.size = 0
        self.done = False
        self.ended_bare = False
        self.bare_newline = False
        self.nuls = 0

    @property
    def too_large(self) -> bool:
        """True once the content passed the limit; nothing is handed out any more."""
        return self.size > self._limit or self._given > self._limit

    @property
    def hopeless(self) -> bool:
        """True when so much was thrown away that the session had better end."""
        return self.size > 2 * self._limit + _DISCARD

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """Take received octets; O(len(data)), block operations only.

        data:    1 octet..256 KiB, split anywhere.
        returns: the next piece of content (unstuffed, lines end in CRLF, may be empty),
                 and how many octets of `data` were used; fewer than all only when done.
        """
        if not self.size and not self._tail:  # most messages come in one block
            content = self._whole(data)
            if content:
                return content, len(content) + len(_LAST_LINE)
        before = self._context + self._tail
        block = before + data if before else data
        dotted = block.find(b"\r\n.")
        cut, after = self._end_of_content(block, dotted)
        if after < 0:
            self._tail = _open_end(block)
            cut, after = len(block) - len(self._tail), len(block)
        piece = self._take(block[:cut], has_dots=0 <= dotted < cut)
        return piece, after - len(before)

    def _whole(self, data: bytes) -> bytes:
        """Return all of the content, if it came with its end and nothing in it is to be mended.

        b"" for everything else: then nothing was decided here.
        """
        last = data.find(b"\r\n.")
        if not data.startswith(_END, last) or data.startswith(b"."):  # a dot to be taken out
            return b""
        size = last + 2
        content = data[:size]
        if size > self._limit or not _is_clean(content):
            return b""
        self.size = self._given = size
        self.done = True
        return content

    def _end_of_content(self, block: bytes, dotted: int) -> tuple[int, int]:
        """Return where the last line "." starts and what follows it does; -1 twice if open."""
        if self._lf_dot:
            end = _first_lone_dot(block)
            self.ended_bare = end >= 0 and block[max(0, end - 2) : end + 3] != _END
            self.bare_newline |= self.ended_bare
        else:
            found = block.find(_END, dotted) if dotted >= 0 else -1
            end = found + 2 if found >= 0 else -1
        if end < 0:
            return -1, -1
        self.done = True
        return end, block.index(b"\n", end) + 1

    def _take(self, octets: bytes, *, has_dots: bool) -> bytes:
        """Count `octets` (the context in front), and return them as canonical content."""
        context = self._context
        self.size += len(octets) - len(context)
        self._context = _line_end(octets)
        if len(octets) == len(context):
            return b""
        clean = _is_clean(octets)
        if not clean:
            self._note_faults(octets)  # of dropped content too: any split, the same verdict
        if self.too_large or (self._strict and self.bare_newline):
            return b""
        if not clean:
            content = _mended(octets)
        else:
            content = octets.replace(b"\r\n.", b"\r\n") if has_dots else octets
        if context:
            content = content[2:]
        self._given += len(content)
        return b"" if self._given > self._limit else content

    def _note_faults(self, octets: bytes) -> None:
        self.nuls += octets.count(b"\0")
        pairs = octets.count(b"\r\n")
        if octets.count(b"\n") != pairs or octets.count(b"\r") != pairs:
            self.bare_newline = True


def _is_clean(octets: bytes) -> bool:
    """Tell whether every CR and LF is half of a CRLF, and no octet is NUL."""
    odd = len(octets) - len(octets.translate(None, b"\r\n\0"))
    return odd == 2 * octets.count(b"\r\n")


def _mended(octets: bytes) -> bytes:
    """Return whole or open lines, as the device profile wants them; the end is not in here."""
    text = octets.replace(b"\r\n", b"\n")
    while b"\n.\n" in text:  # each pass takes every second of neighbours: log(n) passes
        text = text.replace(b"\n.\n", b"\n")
    text = text.replace(b"\n.", b"\n")
    # NUL goes after the dots are judged: NUL "." is a line of text, not an end nor stuffing.
    text = text.replace(b"\r", b" ").replace(b"\0", b"")
    return text.replace(b"\n", b"\r\n")


def _first_lone_dot(block: bytes) -> int:
    """Return where the first line "." starts, whatever line ends it has; -1 if none."""
    found = [at + 1 for at in (block.find(b"\n.\n"), block.find(b"\n.\r\n")) if at >= 0]
    return min(found, default=-1)


def _line_end(octets: bytes) -> bytes:
    """Return the line end `octets` close with; b"" inside a line."""
    if octets.endswith(b"\r\n"):
        return b"\r\n"
    return b"\n" if octets.endswith(b"\n") else b""


def _open_end(block: bytes) -> bytes:
    """Return the last octets that mean nothing without the next one: "", ".", CR or "." CR."""
    if block.endswith(b"\n.\r"):
        return b".\r"
    if block.endswith(b"\n."):
        return b"."
    return b"\r" if block.endswith(b"\r") else b""
