"""Content reading must not depend on how the network splits it, and never ends too early."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relayd.smtp.data import ContentReader

ATOMS = [b"\r\n", b"\r\n.\r\n", b"\r\n.", b".\r\n", b"\r", b"\n", b".", b"..", b"a", b"bc", b"\0"]

wires = st.lists(st.sampled_from(ATOMS), max_size=14).map(b"".join)
cuts = st.lists(st.integers(0, 40), max_size=6)

SMUGGLING = [
    b"\n.\n",
    b"\n.\r",
    b"\r.\n",
    b"\r.\r",
    b"\n.\r\n",
    b"\r.\r\n",
    b"\r\n.\n",
    b"\r\n.\r",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\r\n\x00.\r\n",
    b"\r\n.\x00\r\n",
]


@dataclass
class Read:
    """What became of a wire: content, what follows the end (None: still open), faults."""

    content: bytes
    rest: bytes | None
    size: int = 0
    bare: bool = False
    ended_bare: bool = False
    nuls: int = 0


def obvious(wire: bytes, *, lf_dot: bool = False) -> Read:
    """Read line by line, octet by octet: slow, plainly right; what ContentReader must equal."""
    read = Read(b"", None)
    before, line, i = b"\r\n", b"", 0
    while i < len(wire):
        octet = wire[i : i + 1]
        end = wire[i : i + 2] if wire[i : i + 2] == b"\r\n" else octet
        if octet != b"\n" and end != b"\r\n":
            line += octet
            i += 1
            continue
        i += len(end)
        read.bare |= end == b"\n" or b"\r" in line
        is_bare = b"\n" in (before, end)
        if line == b"." and (lf_dot or not is_bare):
            read.rest, read.ended_bare = wire[i:], is_bare
            return read
        if line != b".":
            read.content += shown(line) + b"\r\n"
        read.size += len(line) + len(end)
        read.nuls += line.count(b"\0")
        before, line = end, b""
    read.content += shown(line)
    read.bare |= b"\r" in line[:-1]
    return read


def shown(line: bytes) -> bytes:
    """Return one line as it is stored."""
    return line.removeprefix(b".").replace(b"\r", b" ").replace(b"\0", b"")


def read(wire: bytes, cuts: list[int], reader: ContentReader) -> Read:
    out, edges = b"", sorted({0, len(wire), *(c for c in cuts if c < len(wire))})
    for a, b in itertools.pairwise(edges):
        piece, used = reader.feed(wire[a:b])
        out += piece
        assert len(reader._tail) <= 2
        if reader.done:
            rest = wire[a + used :]
            break
        assert used == b - a
    else:
        return Read(out, None, reader.size, reader.bare_newline, nuls=reader.nuls)
    return Read(out, rest, reader.size, reader.bare_newline, reader.ended_bare, reader.nuls)


@pytest.mark.parametrize("lf_dot", [False, True])
@given(wire=wires, cuts=cuts)
@example(wire=b".\r\n", cuts=[1, 2])
@example(wire=b"a\n.\r\nMAIL\r\n.\r\nQUIT", cuts=[])
@example(wire=b"\n.\n.\n.\n.\r\n.\r\n", cuts=[3])
@example(wire=b".\r\r\n.\r\n", cuts=[1, 2, 3])
@example(wire=b"\0.\r\n..\0\r\n.\0\r\n.\r\n", cuts=[])
def test_any_split_equals_the_obvious_machine(
    wire: bytes, cuts: list[int], *, lf_dot: bool
) -> None:
    want = obvious(wire, lf_dot=lf_dot)

    got = read(wire, cuts, ContentReader(10_000, lf_dot=lf_dot))

    assert got.rest == want.rest
    if want.rest is None:  # the last octets may still be held back
        assert want.content.startswith(got.content) or got.content.startswith(want.content)
        assert abs(len(want.content) - len(got.content)) <= 2
    else:
        want.bare |= want.ended_bare
        assert got == want


@given(wire=wires, cuts=cuts)
def test_what_leaves_is_canonical(wire: bytes, cuts: list[int]) -> None:
    content = read(wire + b"\r\n.\r\n", cuts, ContentReader(10_000)).content

    assert content.count(b"\n") == content.count(b"\r\n") == content.count(b"\r")
    assert b"\0" not in content


@given(wire=wires, cuts=cuts)
def test_strict_hands_out_nothing_once_a_newline_was_bare(wire: bytes, cuts: list[int]) -> None:
    want = obvious(wire)

    got = read(wire, cuts, ContentReader(10_000, strict=True))

    assert got.rest == want.rest
    if want.rest is not None:
        assert got.bare == want.bare
        assert want.content.startswith(got.content)
        assert got.bare or got.content == want.content


@pytest.mark.parametrize("false_end", SMUGGLING)
def test_no_smuggling_sequence_ends_the_content(false_end: bytes) -> None:
    # the union of two published collections.
    wire = b"a" + false_end + b"MAIL FROM:<evil@x>\r\n"

    assert read(wire, [], ContentReader(1000)).rest is None
    assert read(wire, list(range(60)), ContentReader(1000)).rest is None
    assert read(wire + b".\r\nQUIT", [], ContentReader(1000)).rest == b"QUIT"


def test_a_dot_between_bare_newlines_is_dropped() -> None:
    got = read(b"a\n.\nb\n.\r\nc\r\n.\nd\r\n.\r\n", [], ContentReader(1000))

    assert got.content == b"a\r\nb\r\nc\r\nd\r\n"


def test_lf_dot_says_that_the_end_was_bare() -> None:
    got = read(b"a\n.\nMAIL FROM:<evil@x>\n", [], ContentReader(1000, lf_dot=True))

    assert (got.content, got.ended_bare, got.rest) == (b"a\r\n", True, b"MAIL FROM:<evil@x>\n")


def test_lf_dot_takes_a_proper_end_as_proper() -> None:
    assert not read(b"a\r\n.\r\n", [], ContentReader(1000, lf_dot=True)).ended_bare


def test_too_large_content_is_read_to_its_end() -> None:
    reader = ContentReader(3)

    assert reader.feed(b"abcdef\r\n.\r\nQUIT\r\n") == (b"", len(b"abcdef\r\n.\r\n"))
    assert reader.done
    assert reader.too_large
    assert reader.size == 8


def test_content_of_just_the_limit_is_handed_out() -> None:
    assert ContentReader(3).feed(b"a\r\n.\r\n") == (b"a\r\n", 6)
    assert ContentReader(2).feed(b"a\r\n.\r\n") == (b"", 6)


def test_mending_may_not_grow_content_past_the_limit() -> None:
    reader = ContentReader(6)

    assert reader.feed(b"a\nb\n\r\n.\r\n")[0] == b""
    assert reader.size == 6
    assert reader.too_large


def test_endless_content_becomes_hopeless() -> None:
    reader, block = ContentReader(10), b"x" * 65536

    fed = 0
    while not reader.hopeless:
        assert reader.feed(block)[0] == b""
        fed += len(block)

    assert 20 + (1 << 20) < fed < 20 + (1 << 20) + 2 * len(block)


def test_an_endless_stream_of_nuls_becomes_hopeless_too() -> None:
    reader = ContentReader(10)
    for _ in range(17):
        reader.feed(b"\0" * 65536)

    assert reader.hopeless


def test_clean_content_is_not_copied() -> None:
    reader, block = ContentReader(1 << 30), b"x" * 1000
    reader.feed(b"a")

    assert reader.feed(block)[0] is block


class Careful(ContentReader):
    """A reader that knows no short cut."""

    __slots__ = ()

    def _whole(self, data: bytes) -> bytes:
        return b""


lines = st.lists(
    st.sampled_from(
        [b"Subject: x", b"", b"a.b", b".", b"..", b".a", b"a\0", b"a\r", b"\n", b"\n."]
    ),
    max_size=8,
)


@given(lines=lines, behind=st.sampled_from([b"", b".\r\n", b"QUIT\r\n", b"\r\n.\r\n"]))
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("lf_dot", [False, True])
@pytest.mark.parametrize("limit", [11, 12, 13, 100])
def test_content_in_one_block_is_what_the_careful_way_makes_of_it(
    lines: list[bytes], behind: bytes, limit: int, *, strict: bool, lf_dot: bool
) -> None:
    wire = b"".join(line + b"\r\n" for line in lines) + b".\r\n" + behind
    readers = [kind(limit, strict=strict, lf_dot=lf_dot) for kind in (ContentReader, Careful)]

    assert readers[0].feed(wire) == readers[1].feed(wire)

    seen = [
        (one.size, one.done, one.ended_bare, one.bare_newline, one.nuls, one.too_large)
        for one in readers
    ]
    assert seen[0] == seen[1]


def test_ordinary_content_takes_the_short_way() -> None:
    reader = ContentReader(100)

    assert reader._whole(b"Subject: x\r\n\r\na.b\r\n.\r\nQUIT\r\n") == (
        b"Subject: x\r\n\r\na.b\r\n"
    )
    assert reader.done
