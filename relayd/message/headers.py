r"""The head of a message: split into fields as raw octets, edited by the field, put together.

    is_too_long(head)       whether a client's head is more than can be read again when it is sent
    split_head(content)     where the body starts
    split_to_send(content)  the same; where no empty line came first, less the Bcc lines after it
    Head.parse(head)        fields in order; what is not edited is rendered as it came
    Head.render()           fields, empty line, and what was no header after all

Forgiven: a first line that starts with a space, an mbox "From " line, no header at all, a
line that is no field (the body starts there), a space before a colon and a line of spaces
(they go), CR or LF alone (a line end like any other, or a reader at Microsoft might see fields
that we did not judge), lines over 998 octets.
Never raises on octets; time and memory are linear in HEAD_LIMIT.

Source: RFC 5322 §2.1-2.2, §4.5 (space before the colon); Postfix 3.9 cleanup and smtpd.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

from relayd.values import frozen

HEAD_LIMIT: Final = 256 * 1024
"""Octets of head that are read; fields that end beyond belong to the body."""
ACCEPTED_LIMIT: Final = HEAD_LIMIT - 4096
"""Octets of head that are taken from a client: room is left for our Received line."""
LINE_LIMIT: Final = 998

_LINE_END: Final = re.compile(rb"\r\n?|\n")
_FIELD: Final = re.compile(
    rb"([!-9;-~]++)[ \t]*+:[^\r\n]*+(?:(?:\r\n?|\n)[ \t][^\r\n]*+)*(?:\r\n?|\n|\Z)"
)
_FIELDS: Final = re.compile(
    rb"(?:[!-9;-~]++[ \t]*+:[^\r\n]*+(?:(?:\r\n?|\n)[ \t][^\r\n]*+)*(?:\r\n?|\n|\Z))*"
)
# What nearly every head is: fields on canonical octets that need no tidying, an empty line.
_LINE: Final = rb"[^\r\n\0]*+\r\n"
_CANONICAL: Final = rb"([!-9;-~]++):%s(?:[ \t]++[^ \t\r\n\0]%s)*" % (_LINE, _LINE)
_CANONICAL_FIELDS: Final = re.compile(rb"(%s)" % _CANONICAL)
_CANONICAL_HEAD: Final = re.compile(rb"(%s)(?:%s)*\r\n" % (_CANONICAL, _CANONICAL))
# Our own Received (message.trace) is three lines. A continuation after it is the client's
# first line, which began with a space.
_OUR_TRACE: Final = re.compile(
    rb"Received: from [^\r\n]*\r\n\tby [^\r\n]* \(relayd\) with [^\r\n]*\r\n\t[^\r\n]*\r\n"
)
_MBOX: Final = re.compile(rb"From [^\r\n]*+(?:\r\n?|\n|\Z)")
_SPACES: Final = re.compile(rb"[ \t]++(?=[!-9;-~]++[ \t]*+:)")
_BARE_NEWLINE: Final = re.compile(rb"\r\n(?![ \t])|\r(?!\n)|(?<!\r)\n|\x00")
_LINE_OF_SPACES: Final = re.compile(rb"\r\n[ \t]++(?=\r\n)")
_EMPTY_LINE: Final = re.compile(rb"(?:\r\n?+|\n)(?=[\r\n])")
_HIDDEN: Final = re.compile(
    rb"(?<![^\r\n])(?:Resent-)?Bcc[ \t]*+:[^\r\n]*+(?:(?:\r\n?|\n)[ \t][^\r\n]*+)*(?:\r\n?|\n|\Z)",
    re.IGNORECASE,
)
_FOLD: Final = re.compile(rb"\r\n(?=[ \t])")


Field: TypeAlias = tuple[bytes, bytes]
"""One header field: its name in lower case, and all its octets, CRLF at the end."""


def value_of(raw: bytes) -> bytes:
    """Return what follows the colon of a raw field, unfolded and trimmed."""
    value = raw.partition(b":")[2].strip(b" \t\r\n")
    return _FOLD.sub(b"", value) if b"\r" in value else value


def make_field(name: str, value: bytes) -> Field:
    """Return a field of our own.

    value:  may be folded (CRLF and a space).
    raises: ValueError - a line end or NUL that would begin something else.
    """
    # SECURITY: the last gate against header injection; callers clean, this one refuses.
    if (b"\r" in value or b"\n" in value or b"\0" in value) and _BARE_NEWLINE.search(value):
        raise ValueError(f"line end inside the value of {name}")
    return name.lower().encode("ascii"), b"%s: %s\r\n" % (name.encode("ascii"), value)


@frozen
class Head:
    """fields: in order. rest: octets after them that are no header; they go into the body."""

    fields: tuple[Field, ...]
    rest: bytes = b""

    @classmethod
    def parse(cls, octets: bytes) -> Head:
        """Read a head, with or without its empty line; O(len(octets)); never raises."""
        end = len(octets) - 2 if octets.endswith(b"\r\n\r\n") else len(octets)
        found = _CANONICAL_FIELDS.findall(octets, 0, end)
        whole = sum([len(raw) for raw, _ in found]) == end
        if whole and found and not _has_odd_start(found[0][0]):
            return cls(tuple([(name.lower(), raw) for raw, name in found]))
        _, body = split_head(octets)
        return cls(
            tuple([_tidy(*each) for each in _slow_fields(_canonical(octets[:body]))]),
            octets[body:],
        )

    def get(self, wanted: str) -> bytes | None:
        """Return the first value of a name, unfolded and trimmed; None if there is none."""
        return next(iter(self.all(wanted)), None)

    def all(self, wanted: str) -> list[bytes]:
        """Return every value of a name, in order."""
        key = wanted.lower().encode("ascii")
        return [value_of(raw) for name, raw in self.fields if name == key]

    def remove(self, *names: str) -> Head:
        """Return the head without any field of these names."""
        unwanted = {name.lower().encode("ascii") for name in names}
        kept = tuple(field for field in self.fields if field[0] not in unwanted)
        return Head(kept, self.rest)

    def replace(self, name: str, value: bytes) -> Head:
        """Return the head with one `name`, where the first one stood, else at the end."""
        return self.edit({name.lower().encode("ascii"): make_field(name, value)})

    def insert(self, name: str, value: bytes) -> Head:
        """Return the head with a field added at its end."""
        return Head((*self.fields, make_field(name, value)), self.rest)

    def edit(self, new: Mapping[bytes, Field | None]) -> Head:
        """Return the head with every name in `new` (lower-case) occurring as said.

        A Field stands where the first of its name stood, else at the end; the others of
        that name go. None: all go.
        """
        waiting = dict(new)
        out: list[Field] = []
        for field in self.fields:
            if field[0] not in new:
                out.append(field)
            elif (chosen := waiting.pop(field[0], None)) is not None:
                out.append(chosen)
        out += [field for field in waiting.values() if field is not None]
        return Head(tuple(out), self.rest)

    def render(self) -> bytes:
        """Return the head as octets: fields, empty line, `rest`; no line over 998 octets."""
        head = b"".join([raw for _, raw in self.fields])
        if len(head) > LINE_LIMIT:
            head = b"".join([fold_long(raw) for _, raw in self.fields])
        return b"%s\r\n%s" % (head, self.rest)


def is_too_long(head: bytes) -> bool:
    """Tell whether fields of a head go on beyond ACCEPTED_LIMIT; O(len(head)); never raises.

    head: as received, without our Received; may be cut, at HEAD_LIMIT or after it.
    """
    # SECURITY: what lies beyond the limit leaves as body, for all to read, and a Bcc may be there.
    if len(head) <= ACCEPTED_LIMIT:
        return False
    at = _skip_start(head)
    fields = None if at is None else _FIELDS.match(head, at)
    return fields is not None and fields.end() > ACCEPTED_LIMIT


def split_head(octets: bytes) -> tuple[bytes, int]:
    """Return the head (its empty line with it, if there is one) and where the body starts.

    head + octets[body_start:] is always the whole. O(HEAD_LIMIT); never raises.
    """
    ordinary = _CANONICAL_HEAD.match(octets, 0, HEAD_LIMIT)
    if ordinary is not None and not _has_odd_start(ordinary[1]):
        return ordinary[0], ordinary.end()
    body = _end_of_fields(octets)
    line_end = _LINE_END.match(octets, body)
    if line_end is not None:
        body = line_end.end()
    return octets[:body], body


def split_to_send(octets: bytes) -> tuple[bytes, int]:
    """Return the head as `split_head` does, and where the body starts that goes behind it.

    Where a line that is no field ended the head, what follows up to the next empty line is with
    the head, as `Head.rest` of it, if Bcc or Resent-Bcc lines had to be left out of it.

    octets: from the start of the content; where they are not all of it, only they are looked at.
    """
    head, start = split_head(octets)
    if head.endswith(b"\r\n\r\n") or start == len(octets):
        return head, start
    if _end_of_fields(octets) != start or _FIELD.match(octets, start) is not None:
        return head, start  # an empty line ended it; or its length
    # SECURITY: the device took them for its head; as body text they tell everybody who is hidden.
    empty = _EMPTY_LINE.search(octets, start)
    stop = len(octets) if empty is None else empty.end()
    before = octets[start:stop]
    opening = _HIDDEN.sub(b"", before) if b"bcc" in before.lower() else before
    return (head, start) if opening == before else (head + opening, stop)


def _end_of_fields(octets: bytes) -> int:
    limit = min(len(octets), HEAD_LIMIT)
    at = _skip_start(octets)
    if at is None:
        trace = _OUR_TRACE.match(octets)
        return 0 if trace is None else trace.end()
    fields = _FIELDS.match(octets, at, limit)
    end = at if fields is None else fields.end()
    if end == limit < len(octets):  # the last one may have been cut: look where it began
        return _whole_fields(octets, at, limit)
    return end


def _whole_fields(octets: bytes, at: int, limit: int) -> int:
    """Return where the last field that surely ends within `limit` ends."""
    while (field := _FIELD.match(octets, at, limit)) is not None and field.end() < limit:
        at = field.end()
    return at


def _skip_start(octets: bytes) -> int | None:
    """Return where ordinary fields begin; None: there is no header but our own Received."""
    trace = _OUR_TRACE.match(octets)
    at = 0 if trace is None else trace.end()
    if (mbox := _MBOX.match(octets, at)) is not None and _FIELD.match(octets, at) is None:
        at = mbox.end()
    if octets[at : at + 1] in (b" ", b"\t"):
        spaces = _SPACES.match(octets, at, at + LINE_LIMIT)
        return None if spaces is None else spaces.end()
    return at


def _slow_fields(octets: bytes) -> Iterator[Field]:
    """Yield the fields of a canonical head that starts oddly or has no end."""
    start = _skip_start(octets)
    trace = _OUR_TRACE.match(octets)
    if trace is None or start is None:
        at = 0
    else:
        yield b"received", trace[0]
        at = trace.end()
    if start is not None:
        before = octets[at:start].strip(b" \t\r\n")
        if before:
            yield make_field("X-Mailbox-Line", before)
        at = start
    while (field := _FIELD.match(octets, at)) is not None:
        yield field[1].lower(), field[0]
        at = field.end()


def _tidy(name: bytes, raw: bytes) -> Field:
    """Return a field without what obsolete syntax allows (RFC 5322 §4.2, §4.5): a space before
    its colon, lines of spaces.
    """
    # SECURITY: some readers take either for the end of the head, and would miss our Bcc.
    start, colon, rest = raw.partition(b":")
    return name, start.rstrip(b" \t") + colon + _LINE_OF_SPACES.sub(b"", rest)


def _has_odd_start(first: bytes) -> bool:
    """Tell whether a line of the client's continues the first field, our own Received."""
    trace = _OUR_TRACE.match(first) if first.count(b"\n") > 3 else None
    return trace is not None and trace.end() < len(first)


def _canonical(octets: bytes) -> bytes:
    """Return a head with CRLF for every kind of line end, NULs gone, the last line ended."""
    octets = _LINE_END.sub(b"\r\n", octets.replace(b"\0", b""))
    return octets if octets.endswith(b"\r\n") or not octets else octets + b"\r\n"


def fold_long(raw: bytes) -> bytes:
    """Return a raw field with no line over 998 octets, broken at a space where there is one.

    No line of it is only spaces, whatever they were; a long line's last spaces go. O(len(raw)).
    """
    if len(raw) <= LINE_LIMIT:
        return raw
    return (
        b"\r\n".join(piece for line in raw[:-2].split(b"\r\n") for piece in _pieces(line)) + b"\r\n"
    )


def _pieces(line: bytes) -> Iterator[bytes]:
    if len(line) > LINE_LIMIT:
        line = line.rstrip()  # or what is cut off last would be only spaces
        if not line:
            return
    while len(line) > LINE_LIMIT:
        # Where a line may break: before a space that has text on both sides.
        cut = max(line.rfind(b" ", 1, LINE_LIMIT), line.rfind(b"\t", 1, LINE_LIMIT))
        if cut > 0 and line[:cut].strip() and line[cut:].strip():
            yield line[:cut]
            line = line[cut:]
        elif not line[: LINE_LIMIT - 1].strip():  # a line of spaces would look like the end
            line = b" " + line.lstrip(b" \t")
        else:
            yield line[: LINE_LIMIT - 1]
            line = b" " + line[LINE_LIMIT - 1 :]
    yield line
