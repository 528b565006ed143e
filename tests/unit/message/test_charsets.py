"""Raw text in a declared charset becomes UTF-8, all of it or nothing, and never a line end."""

from __future__ import annotations

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from relayd.message import charsets
from relayd.message.charsets import declared_codec, in_utf8
from relayd.message.headers import Field, Head

codecs = st.sampled_from(sorted(set(charsets._CODECS.values())))


def fields(octets: bytes) -> tuple[Field, ...]:
    return Head.parse(octets + b"\r\n").fields


@pytest.mark.parametrize(
    ("value", "codec"),
    [
        (b"text/plain; charset=gb2312", "gb18030"),
        (b'text/plain;\r\n\tCharset = "Shift_JIS"', "cp932"),
        (b"text/html; format=flowed; charset=WINDOWS-1251; x=y", "cp1251"),
        (b"text/plain; charset=ISO-8859-2", "iso8859-2"),
        (b"text/plain; charset=utf-8", ""),
        (b"text/plain; charset=utf-16", ""),
        (b"text/plain; charset=utf-7", ""),
        (b"text/plain; charset=unicode_escape", ""),
        (b"text/plain; charset=no-such", ""),
        (b"text/plain; xcharset=gb2312", ""),
        (b"multipart/mixed", ""),
        (b"", ""),
    ],
)
def test_the_charset_is_what_content_type_says(value: bytes, codec: str) -> None:
    assert declared_codec(fields(b"Content-Type: " + value + b"\r\n")) == codec


def test_the_first_content_type_counts() -> None:
    twice = b"Content-Type: text/plain\r\nContent-Type: text/plain; charset=gbk\r\n"

    assert declared_codec(fields(twice)) == declared_codec(()) == ""


@pytest.mark.parametrize(("name", "codec"), sorted(charsets._CODECS.items()))
def test_ascii_is_ascii_in_every_charset_of_the_table(name: str, codec: str) -> None:
    assert bytes(range(128)).decode(codec) == bytes(range(128)).decode("ascii")
    assert name == name.lower().replace("_", "-")


@given(octets=st.binary(max_size=60), codec=codecs)
def test_no_charset_of_the_table_gives_a_control_that_was_none(octets: bytes, codec: str) -> None:
    octets = bytes(octet for octet in octets if octet >= 0x20)
    try:
        text = octets.decode(codec)
    except UnicodeDecodeError:
        reject()

    assert not set(text) & {chr(control) for control in range(0x20)}


def test_text_becomes_utf8_and_what_is_none_stays() -> None:
    raw = "Тест".encode("cp1251")
    head = b"".join(
        name + b": " + raw + b"\r\n"
        for name in (b"Received", b"Subject", b"From", b"X-Place", b"Content-Description")
    )
    declared = b"Content-Type: text/plain; charset=windows-1251; name=" + raw + b"\r\n"

    found = dict(in_utf8(fields(head + declared)))

    for name in (b"subject", b"from", b"x-place"):
        assert found[name].partition(b": ")[2] == "Тест\r\n".encode()
    for name in (b"received", b"content-description"):
        assert raw in found[name]
    assert found[b"content-type"] == declared


def test_utf8_stays_beside_text_that_is_not() -> None:
    head = "Subject: Тест\r\n".encode() + "From: Тест <a@b>\r\n".encode("cp1251")
    declared = b"Content-Type: text/plain; charset=cp1251\r\n"

    found = dict(in_utf8(fields(head + declared)))

    assert found[b"subject"] == "Subject: Тест\r\n".encode()
    assert found[b"from"] == "From: Тест <a@b>\r\n".encode()


def test_what_does_not_fit_stays() -> None:
    head = b"Subject: \xff\xff\r\nContent-Type: text/plain; charset=gb2312\r\n"
    unknown = b"Subject: \xff\r\n"

    assert tuple(in_utf8(fields(head))) == fields(head)
    assert tuple(in_utf8(fields(unknown))) == fields(unknown)


@given(octets=st.binary(max_size=80), name=st.sampled_from(sorted(charsets._CODECS)))
def test_any_octets_stay_one_field(octets: bytes, name: str) -> None:
    head = b"Subject: " + octets.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
    head += b"\r\nContent-Type: text/plain; charset=" + name.encode() + b"\r\n"
    before = fields(head)

    after = in_utf8(before)

    assert [key for key, _ in after] == [key for key, _ in before]
    assert Head.parse(b"".join(raw for _, raw in after) + b"\r\n").fields == tuple(after)
