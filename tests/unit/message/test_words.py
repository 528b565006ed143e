"""Header text: raw octets read kindly, encoded words short, safe and reversible."""

from __future__ import annotations

import warnings
from email.header import decode_header, make_header

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relayd.message.words import decode_words, encode_words, flat, is_plain_phrase, text_of


@given(text=st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=200))
@example(text="=?¡")  # it was read as "=? ¡ "
def test_encoded_words_read_back_by_another_hand(text: str) -> None:
    octets = encode_words(text)

    assert str(make_header(decode_header(octets.decode("ascii")))) == decode_words(text)
    assert all(len(line) <= 76 for line in octets.split(b"\r\n"))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Wert=?°C", "Wert=?°C"),
        ("é=?utf-8?q?=C5=82?=é", "éłé"),
        ("été =?utf-8?q?=C5?= =?utf-8?q?=82?= aéb", "été ł aéb"),
        ("=?utf-8?b?gebrochen!?= =? =?utf-8?q?ja?=", "=?utf-8?b?gebrochen!?= =? ja"),
        ("=?utf-8?q?é?=", "=?utf-8?q?é?="),
    ],
)
def test_only_encoded_words_are_read(text: str, read: str) -> None:
    assert decode_words(text) == read


@given(text=st.text(max_size=100))
def test_encoding_any_text_gives_folded_ascii(text: str) -> None:
    octets = encode_words(text)

    assert octets.isascii()
    assert b"\n" not in octets.replace(b"\r\n ", b"")


@given(octets=st.binary(max_size=100))
def test_reading_never_raises(octets: bytes) -> None:
    text = text_of(octets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd charsets warn; nobody sees it in a daemon
        decode_words(text)
        decode_words("=?utf-8?b?" + text + "?=")
        decode_words("=?" + text + "?q?x?=")


def test_octets_are_utf8_or_western() -> None:
    assert text_of("Tył".encode()) == "Tył"
    assert text_of(b"caf\xe9 \x80") == "café €"


def test_broken_words_stay_as_they_are() -> None:
    assert decode_words("=?no-such-charset?q?x?=") == "=?no-such-charset?q?x?="
    assert decode_words("=?utf-8?b?A?=") == "=?utf-8?b?A?="


def test_words_between_raw_text_are_read() -> None:
    assert decode_words("ż =?utf-8?q?=C5=82?=") == "ż ł"


def test_nothing_is_encoded_twice() -> None:
    assert encode_words("=?utf-8?q?=C5=82?=") == encode_words("ł")


def test_flat_has_one_line() -> None:
    assert flat(" a\r\n\tb\0\x85c ") == "a b c"


def test_a_plain_phrase_is_atoms_and_whole_words() -> None:
    assert is_plain_phrase("UPS Rack-3 =?utf-8?q?x?=")
    assert not is_plain_phrase("=?utf-8?q?x,?=")
    assert not is_plain_phrase("a, b")
    assert not is_plain_phrase("x" * 201)


@pytest.mark.parametrize(
    "word",
    ["=?unicode_escape?q?=5Cud800?=", "=?utf-7?q?+2AA-?=", "=?raw_unicode_escape?q?=5CuDFFF?="],
)
def test_what_is_read_can_be_written(word: str) -> None:
    assert decode_words(word) == "?"


def test_words_are_not_looked_for_in_a_text_nobody_reads() -> None:
    text = "é " * 20_000 + "=?utf-8?q?a?="

    assert decode_words(text) is text
