"""Heads: every octet accounted for, oddities forgiven, no line end smuggled in."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from relayd.message import headers
from relayd.message.envelope import Origin
from relayd.message.headers import (
    ACCEPTED_LIMIT,
    HEAD_LIMIT,
    Head,
    fold_long,
    is_too_long,
    make_field,
    split_head,
    split_to_send,
    value_of,
)
from relayd.message.trace import received_line

TRACE = received_line(
    Origin(
        session="s", listener="l", ip="10.0.0.5", helo="ups", device="", user="", protocol="SMTP"
    ),
    None,
    queue_id="0123456789ABC",
    hostname="relay.example",
    now=datetime(2026, 11, 20, tzinfo=UTC),
)

pieces = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b"A: b",
        b"To : c",
        b"x",
        b":",
        b"\0",
        b"From ",
        b"\xff",
        TRACE,
    ]
)
heads = st.lists(pieces, max_size=14).map(b"".join)


@given(octets=heads)
@example(octets=TRACE + b" Subject: x\r\n\r\nbody")
def test_head_and_body_are_the_whole(octets: bytes) -> None:
    head, body = split_head(octets)

    assert head + octets[body:] == octets


@given(octets=heads | st.binary(max_size=60))
def test_any_octets_parse_and_render_to_a_head_that_stands(octets: bytes) -> None:
    # What is stored begins with our line; a forged one elsewhere is a field like any other.
    assume(octets.startswith(TRACE) or TRACE not in octets)
    head, body = split_head(octets)
    parsed = Head.parse(head)

    rendered = parsed.render() + octets[body:]

    assert parsed.rest == b""
    again, start = split_head(rendered)
    assert Head.parse(again).fields == parsed.fields  # our own output has one meaning
    assert rendered[start:] == octets[body:]
    assert b"\r\n\r\n" in again or again == b"\r\n"


ordinary = st.lists(
    st.sampled_from(
        [
            b"A: b\r\n",
            b"To:\r\n c\r\n",
            b"X : y\r\n",
            b"F: a\0b\r\n",
            b"D: e\r\n \t\r\n",
            TRACE,
            b" f\r\n",
        ]
    ),
    max_size=6,
).map(b"".join)


@given(start=ordinary, octets=heads)
def test_an_ordinary_head_is_read_as_the_careful_reading_has_it(
    start: bytes, octets: bytes
) -> None:
    content = start + b"\r\n" + octets
    end = headers._end_of_fields(content)
    line_end = headers._LINE_END.match(content, end)
    body = end if line_end is None else line_end.end()
    careful = [
        headers._tidy(*each) for each in headers._slow_fields(headers._canonical(content[:body]))
    ]

    assert split_head(content) == (content[:body], body)
    assert list(Head.parse(content[:body]).fields) == careful


@given(octets=heads | st.binary(max_size=60))
def test_what_is_no_header_comes_out_after_the_empty_line(octets: bytes) -> None:
    parsed = Head.parse(octets)

    assert octets.endswith(parsed.rest)
    assert parsed.render().endswith(b"\r\n" + parsed.rest)


@given(names=st.lists(st.sampled_from(["To", "X-A", "Subject"]), max_size=6))
def test_an_ordinary_head_is_rendered_as_it_came(names: list[str]) -> None:
    head = (
        b"".join(f"{name}: {n}\r\n\tfolded\r\n".encode() for n, name in enumerate(names)) + b"\r\n"
    )

    assert Head.parse(head).render() == head


def fields(octets: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, value_of(raw)) for name, raw in Head.parse(octets).fields]


def test_values_are_unfolded() -> None:
    assert fields(b"Subject: a\r\n b\r\n\tc\r\nTo : x@y\r\n\r\n") == [
        (b"subject", b"a b\tc"),
        (b"to", b"x@y"),
    ]


def test_a_head_without_its_empty_line_is_read() -> None:
    assert fields(b"A: b\r\n") == [(b"a", b"b")]
    assert fields(b"A: b") == [(b"a", b"b")]
    assert fields(b"\r\n") == fields(b"") == []


def test_a_message_without_header_is_all_body() -> None:
    assert split_head(b"Hello\r\n\r\nWorld\r\n") == (b"", 0)
    assert split_head(b"\r\nWorld") == (b"\r\n", 2)
    assert split_head(TRACE + b"Hello\r\n") == (TRACE, len(TRACE))
    assert Head.parse(b"").render() == b"\r\n"


def test_a_line_that_is_no_field_begins_the_body() -> None:
    content = b"Subject: x\r\nno field\r\nTo: a@b\r\n\r\nbody"

    head, body = split_head(content)

    assert head == b"Subject: x\r\n"
    assert Head.parse(content).render() == b"Subject: x\r\n\r\n" + content[body:]


def test_a_first_line_with_a_space_is_no_part_of_our_received() -> None:
    assert fields(TRACE + b" Subject: x\r\nTo: a@b\r\n\r\n")[1:] == [
        (b"subject", b"x"),
        (b"to", b"a@b"),
    ]
    assert fields(b"\tSubject: x\r\n\r\n") == [(b"subject", b"x")]
    assert split_head(TRACE + b" words\r\nTo: a@b\r\n\r\n")[1] == len(TRACE)
    assert split_head(b" words\r\n")[1] == 0


def test_an_mbox_line_is_kept_by_another_name() -> None:
    assert fields(b"From a@b Fri Nov 20\r\nTo: c@d\r\n\r\n") == [
        (b"x-mailbox-line", b"From a@b Fri Nov 20"),
        (b"to", b"c@d"),
    ]
    assert fields(TRACE + b"From a@b x: y\r\nTo: c@d\r\n\r\n")[1][0] == b"x-mailbox-line"
    assert fields(b"From : a@b\r\n") == [(b"from", b"a@b")]


@pytest.mark.parametrize("end", [b"\r", b"\n"])
def test_a_bare_line_end_ends_a_line(end: bytes) -> None:
    # Whoever reads it so at Microsoft must not see a Bcc that was not judged.
    head = b"Subject: x" + end + b"Bcc: victim@example.com\r\n\r\n"

    assert fields(head) == [(b"subject", b"x"), (b"bcc", b"victim@example.com")]
    assert Head.parse(head).remove("Bcc").render() == b"Subject: x\r\n\r\n"


@pytest.mark.parametrize("spaces", [b" ", b"\t", b" \t "])
def test_no_line_of_spaces_is_left_that_others_take_for_the_end(spaces: bytes) -> None:
    # RFC 5322 §3.2.2; whoever reads it as the empty line would miss the Bcc after it.
    head = b"Subject: x\r\n" + spaces + b"\r\n" + spaces + b"y\r\nX:\r\n" + spaces + b"\r\n\r\n"

    assert Head.parse(head).render() == b"Subject: x\r\n" + spaces + b"y\r\nX:\r\n\r\n"
    assert split_head(head + b"body")[0] == head


def test_nul_goes() -> None:
    assert Head.parse(b"Subject: a\0b\r\n\r\n").render() == b"Subject: ab\r\n\r\n"


def test_edits_leave_the_rest_alone() -> None:
    head = Head.parse(b"A: 1\r\nTo: x\r\nB:2\r\nTO: y\r\n\r\n")

    assert head.get("to") == b"x"
    assert head.all("To") == [b"x", b"y"]
    assert head.get("Cc") is None
    assert head.remove("to", "b").render() == b"A: 1\r\n\r\n"
    assert head.replace("To", b"z").render() == b"A: 1\r\nTo: z\r\nB:2\r\n\r\n"
    assert head.replace("Cc", b"z").render().endswith(b"TO: y\r\nCc: z\r\n\r\n")
    assert head.insert("To", b"z").all("to") == [b"x", b"y", b"z"]


@pytest.mark.parametrize("value", [b"a\r\nBcc: b", b"a\rb", b"a\nb", b"a\0b", b"a\r\n"])
def test_a_value_with_a_line_end_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="line end"):
        make_field("Subject", value)


def test_a_folded_value_is_taken() -> None:
    assert make_field("X", b"a\r\n b")[1] == b"X: a\r\n b\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"X: " + b"word " * 400 + b"\r\n",
        b"X: " + b"w" * 2500 + b"\r\n",
        b"X: short\r\n " + b"w" * 1500 + b" end\r\n",
        b"X:" + b" " * 1500 + b"end\r\n",
        b"X:" + b" " * 3500 + b"end\r\n",
        b"X: " + b"y" * 900 + b" " * 1500 + b"\r\n",
        b"X: " + b"y" * 990 + b" \t" * 700 + b"\r\n",
        b"X: " + b"y" * 996 + b" " * 1500 + b"end\r\n",
        b"X: a" + b" " * 1500 + b"\r\n" + b" " * 1500 + b"\r\n b\r\n",
        b"X:" + b" " * 2000 + b"\r\n",
    ],
)
def test_long_lines_are_folded(raw: bytes) -> None:
    folded = fold_long(raw)

    assert all(len(line) <= 998 for line in folded.split(b"\r\n"))
    assert b"".join(folded.split()) == b"".join(raw.split())
    assert all(line.strip() for line in folded.split(b"\r\n")[:-1])
    assert len(Head.parse(folded).fields) == 1


runs = st.tuples(st.sampled_from([b" ", b"\t", b"y", b"y ", b"\r\n "]), st.integers(1, 1200))


@given(parts=st.lists(runs, max_size=6))
def test_a_folded_field_has_no_line_of_spaces_and_keeps_its_text(
    parts: list[tuple[bytes, int]],
) -> None:
    # Whoever takes a line of spaces for the end of the head would miss To and Bcc after it.
    head = b"X:" + b"".join(sign * (1 if b"\r" in sign else n) for sign, n in parts) + b"\r\n\r\n"

    rendered = Head.parse(head).render()

    assert b"".join(rendered.split()) == b"".join(head.split())
    lines = rendered.split(b"\r\n")
    assert all(len(line) <= 998 for line in lines)
    assert all(line.strip() for line in lines[:-2])
    assert lines[-2:] == [b"", b""]


def test_a_long_field_is_folded_when_rendered() -> None:
    rendered = Head.parse(b"X: " + b"y" * 1200 + b"\r\n\r\n").render()

    assert max(map(len, rendered.split(b"\r\n"))) <= 998


def test_fields_beyond_the_limit_are_body() -> None:
    content = b"A: b\r\n" * (HEAD_LIMIT // 6 + 100) + b"\r\nbody"

    _, body = split_head(content)

    assert HEAD_LIMIT - 12 <= body <= HEAD_LIMIT
    assert content[body:].startswith(b"A: b\r\n")


def test_one_field_beyond_the_limit_is_body() -> None:
    assert split_head(b"A: b\r\nX: " + b"y" * 2 * HEAD_LIMIT)[1] == 6


@pytest.mark.parametrize(
    ("start", "line"),
    [
        (b"", b"A: b\r\n"),
        (b"To: a@b,\r\n", b" recipient@contoso.com,\r\n"),
        (b"From a@b\r\n", b"A : b\r\n"),
        (b" X: leading\r\n", b"A: b\r\n"),
        (b"X: ", b"y"),
    ],
)
def test_a_head_too_long_to_be_read_again_is_told(start: bytes, line: bytes) -> None:
    # Beyond the limit To, Content-Type and a Bcc would be text for all to read.
    head = start + line * (ACCEPTED_LIMIT // len(line) + 1)

    for cut in (head + b"\r\n", (head + b"\r\n" + b"z" * 65536)[:HEAD_LIMIT], head * 2):
        assert is_too_long(cut)


@given(
    start=st.sampled_from([b"", b"From a@b\r\n", b" X: leading\r\n"]),
    line=st.sampled_from([b"A: b\r\n", b"To: a@b,\r\n c@d\r\n", b"A : b\r\n"]),
    short=st.integers(2, 20),
)
def test_a_head_that_is_taken_is_read_whole_when_it_is_sent(
    start: bytes, line: bytes, short: int
) -> None:
    head = start + line * ((ACCEPTED_LIMIT - len(start)) // len(line) - short)
    head += b"X: " + b"y" * (ACCEPTED_LIMIT - len(head) - 7) + b"\r\n\r\n"
    assert len(head) == ACCEPTED_LIMIT

    assert not is_too_long(head)
    assert split_head(TRACE + head + b"body" * 2000)[0] == TRACE + head


def test_a_body_without_a_head_may_be_long() -> None:
    words = b"no field\r\n" * (HEAD_LIMIT // 10)

    for start in (b"", b"Subject: x\r\n", b" words\r\n"):
        assert not is_too_long((start + words)[:HEAD_LIMIT])


@given(octets=heads | st.binary(max_size=60))
def test_what_has_no_bcc_line_is_split_to_send_as_ever(octets: bytes) -> None:
    assert split_to_send(octets) == split_head(octets)


@pytest.mark.parametrize("start", [b"Subject: x\r\n", TRACE, TRACE + b"To : a@b\r\n", b""])
@pytest.mark.parametrize("line", [b"disk full\r\n", b" words\r\nTo: a@b\r\n", b"Bcc\r\n"])
@pytest.mark.parametrize(
    "hidden",
    [
        b"Bcc: boss@contoso.com\r\n",
        b"BCC : a@b,\r\n\tboss@contoso.com\r\n c@d\r\n",
        b"resent-bcc:boss@contoso.com\r\nBcc: boss@contoso.com\r\n",
    ],
)
@pytest.mark.parametrize("end", [b"", b"To: c@d\r\n", b"X-Bcc: e\r\n\r\nBcc: in the body\r\n"])
def test_no_bcc_line_behind_a_broken_head_is_read_by_all(
    start: bytes, line: bytes, hidden: bytes, end: bytes
) -> None:
    if line.startswith(b" ") and start != TRACE:
        start += b"no field\r\n"
    content = start + line + hidden + end

    head, body = split_to_send(content)

    sent = Head.parse(head).render() + content[body:]
    assert b"boss" not in sent
    assert sent == Head.parse(split_head(start)[0]).render() + (
        content[split_head(content)[1] :].replace(hidden, b"")
    )


def test_a_bcc_line_after_the_empty_line_is_text() -> None:
    for content in (
        b"Subject: x\r\n\r\nBcc: a@b\r\n",
        b"X : y\r\n\r\nBcc: a@b\r\n",
        b"\r\nBcc: a@b\r\n",
        b"\r\nwords\r\nBcc: a@b\r\n",
        b"Subject: x\n\nwords\nBcc: a@b\n",
        b"Subject: x\r\nno field\r\n\r\nBcc: a@b\r\n",
    ):
        assert split_to_send(content) == split_head(content)


def test_a_head_that_was_too_long_leaves_as_ever() -> None:
    content = b"A: b\r\n" * (HEAD_LIMIT // 6 + 100) + b"Bcc: a@b\r\n\r\nbody"

    assert split_to_send(content) == split_head(content)
