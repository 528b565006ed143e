"""relayd.sandbox.mime: what the standard library says of a message, with names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.sandbox import mime
from relayd.sandbox.mime import BadAddress, Recipient

HEAD = b"From: a@b.c\r\nTo: d@e.f\r\n"


def defects(octets: bytes) -> tuple[str, ...]:
    return mime.examine(octets).defects


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a@b.c", ["a@b.c"]),
        ("a@b.c, d@e.f", ["a@b.c", "d@e.f"]),
        ('"Doe, J" <j@x.y>', ["j@x.y"]),
        ("=?utf-8?Q?J=C3=B6?= <j@x.y>", ["j@x.y"]),
        ("Jö <j@x.y>", ["j@x.y"]),
        ("Dr. John <a@b.c>", ["a@b.c"]),
        ("team: a@b.c, d@e.f;", ["a@b.c", "d@e.f"]),
        ("undisclosed-recipients:;", []),
        ("", []),
        ('"a b"@c.d', ['"a b"@c.d']),
        ('"a."@c.d, <"a..b"@c.d>', ['"a."@c.d', '"a..b"@c.d']),
        ('X <".a"@c.d>, "."@c.d', ['".a"@c.d', '"."@c.d']),
        ('"plain"@c.d, "a\\"b"@c.d', ["plain@c.d", '"a\\"b"@c.d']),
        ("a@[192.0.2.1]", ["a@[192.0.2.1]"]),
        ("j@ö.example", ["j@ö.example"]),
        ("a@nas", ["a@nas"]),
        ("a@b.c (comment)", ["a@b.c"]),
    ],
)
def test_address_lists_are_opened(value: str, expected: list[str]) -> None:
    assert list(mime.addresses(value)) == expected


@pytest.mark.parametrize(
    "value",
    [
        "postmaster",
        "Doe, J <j@x.y>",
        "a@b.c;",
        "a@b.c; d@e.f",
        "<a@b.c",
        "a@b.c>",
        "a b@c.d",
        "a..b@c.d",
        ".a@c.d",
        "a.@c.d",
        'X <""@c.d>',
        "a@-b.d",
        "a@b..c",
        "<>",
        "a@b@c",
        "\x00a@b.c",
        "=?utf-8?Q?j=40x=2Ey?=",
        "x" * 65 + "@b.c",
        "a@" + "b" * 256,
    ],
)
def test_what_is_no_address_is_refused(value: str) -> None:
    with pytest.raises(BadAddress):
        mime.addresses(value)


@given(st.text(max_size=60))
def test_any_text_is_addresses_or_refused(value: str) -> None:
    try:
        found = mime.addresses(value)
    except BadAddress:
        return
    assert all("@" in address for address in found)


@given(st.binary(max_size=400))
def test_any_octets_can_be_examined(octets: bytes) -> None:
    examined = mime.examine(octets)
    head, body = examined.head, examined.body
    assert octets in (head + b"\r\n" + body, head + b"\n" + body, head)


def test_recipients_come_from_all_three_fields_each_once() -> None:
    octets = (
        b"From: a@b.c\r\nTo: D@e.f, g@h.i\r\nCc: d@E.f\r\nBcc: j@k.l,\r\n m@n.o\r\n"
        b"Resent-To: not@counted.x\r\n\r\n"
    )
    assert mime.recipients(mime.examine(octets)) == [
        Recipient("D@e.f", "to"),
        Recipient("g@h.i", "to"),
        Recipient("j@k.l", "bcc"),
        Recipient("m@n.o", "bcc"),
    ]


def test_two_fields_of_a_kind_both_count_and_are_a_defect() -> None:
    examined = mime.examine(b"To: a@b.c\r\nTo: d@e.f\r\n\r\n")
    assert [each.address for each in mime.recipients(examined)] == ["a@b.c", "d@e.f"]
    assert examined.defects == ("duplicate-header",)


def test_the_author_is_one_or_nobody() -> None:
    assert mime.author(mime.examine(b"From: UPS <a@b.c>\r\n\r\n")) == "a@b.c"
    assert mime.author(mime.examine(b"To: a@b.c\r\n\r\n")) == ""
    for several in (b"From: a@b.c, d@e.f\r\n\r\n", b"From: nobody\r\n\r\n"):
        with pytest.raises(BadAddress):
            mime.author(mime.examine(several))


@pytest.mark.parametrize(
    ("octets", "name"),
    [
        (b"\r\nbody\r\n", "no-header"),
        (b"just text\r\n", "no-header"),
        (HEAD + b"no colon here\r\n\r\nx", "bad-header-line"),
        (b" folded\r\n" + HEAD + b"\r\nx", "bad-header-line"),
        (b"Bad Name: x\r\n" + HEAD + b"\r\nx", "bad-header-line"),
        (HEAD + b"From: g@h.i\r\n\r\n", "duplicate-from"),
        (HEAD + b"Subject: a\r\nsubject: b\r\n\r\n", "duplicate-header"),
        (HEAD + b"\r\nline\nline\r\n", "bare-newline"),
        (HEAD + b"\r\nline\rline\r\n", "bare-newline"),
        (HEAD.replace(b"\r\n", b"\n") + b"\nx\n", "bare-newline"),
        (HEAD + b"\r\na\0b\r\n", "nul"),
        (HEAD + b"Subject: \xe4\r\n\r\n", "raw-8bit-header"),
        (HEAD + b"\r\n" + b"x" * 999 + b"\r\n", "line-too-long"),
        (HEAD + b"Content-Type: multipart/mixed\r\n\r\nx", "no-boundary-in-multipart"),
        (
            HEAD + b'Content-Type: multipart/mixed; boundary="B"\r\n\r\nx',
            "start-boundary-not-found",
        ),
        (
            HEAD + b'Content-Type: multipart/mixed; boundary="B"\r\n\r\n--B\r\n\r\nx\r\n',
            "close-boundary-not-found",
        ),
    ],
)
def test_a_defect_has_its_name(octets: bytes, name: str) -> None:
    assert name in defects(octets)


def test_an_ordinary_message_has_no_defect() -> None:
    assert defects(HEAD + b"Subject: =?utf-8?Q?=C3=A4?=\r\n\r\n" + b"x" * 998 + b"\r\n") == ()


def test_an_attached_broken_message_is_the_senders_affair() -> None:
    inner = b"no header at all\r\n\r\nx\r\n"
    octets = (
        HEAD
        + b'Content-Type: multipart/mixed; boundary="B"\r\n\r\n'
        + b"--B\r\nContent-Type: message/rfc822\r\n\r\n"
        + inner
        + b"--B--\r\n"
    )
    assert defects(octets) == ("other",)


@pytest.mark.parametrize(
    ("octets", "head", "body"),
    [
        (b"A: b\r\n\r\nbody\r\n\r\nmore", b"A: b\r\n", b"body\r\n\r\nmore"),
        (b"A: b\n\nbody", b"A: b\n", b"body"),
        (b"A: b\r\n", b"A: b\r\n", b""),
        (b"\r\nbody", b"", b"body"),
        (b"A: b\r\n\r\nx\n\ny", b"A: b\r\n", b"x\n\ny"),
    ],
)
def test_the_first_empty_line_parts_head_and_body(octets: bytes, head: bytes, body: bytes) -> None:
    assert mime.split(octets) == (head, body)


def test_a_field_goes_with_its_folded_lines() -> None:
    head = b"A: 1\r\nBcc: x@y.z,\r\n\tq@r.s\r\nB: 2\r\nbcc: t@u.v\r\n"
    assert mime.without(head, ["bcc"]) == b"A: 1\r\nB: 2\r\n"
    assert b"".join(field for _, field in mime.cut(head)) == head
    assert mime.without(b"A: no line end", ["b"]) == b"A: no line end"


def test_fields_are_unfolded_and_read_as_utf8_or_latin1() -> None:
    examined = mime.examine(b"Subject: a\r\n b\r\nX-U: \xc3\xa4\r\nX-L: \xe4\r\n\r\n")
    assert examined.first("subject") == "a b"
    assert examined.first("x-u") == examined.first("x-l") == "ä"
    assert examined.first("x-none") == ""
