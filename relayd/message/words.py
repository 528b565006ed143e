"""Text in headers: raw octets to text, text to encoded words and back.

Devices write names and subjects in whatever bytes they have; readers need RFC 2047. Encoded
words are only looked into for people (logs, subjects), never to decide who gets the mail.

Source: RFC 2047 §2 (75 characters), §5 (where), RFC 5322 §2.1.1 (998 octets a line).
"""

from __future__ import annotations

import re
from base64 import b64encode
from email.errors import MessageError
from email.header import decode_header
from typing import Final

_CHUNK_BYTES: Final = 45  # base64 of 45 octets and "=?utf-8?b??=" make 72 characters
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS: Final = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029]+")
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/^_`{|}~-]+"  # no "=" or "?": never half an encoded word
_ENCODED: Final = r"=\?[A-Za-z0-9_.*-]{1,40}\?[BbQq]\?[A-Za-z0-9!*+/=_-]{0,75}\?="
_WORD: Final = r"=\?[!->@-~]+\?[BbQq]\?[ -~]*?\?="  # as badly as the library reads them
_WORDS: Final = re.compile(rf"{_WORD}(?:\s*{_WORD})*")
_PLAIN_PHRASE: Final = re.compile(rf"(?:{_ATOM}|{_ENCODED})(?: (?:{_ATOM}|{_ENCODED}))*")
_PLAIN_PHRASE_LIMIT: Final = 200  # characters on one line
READ_LIMIT: Final = 8192
"""Characters that are looked through: the library's reading is quadratic, and runs on the hub."""


def text_of(octets: bytes) -> str:
    """Return raw header octets as text: UTF-8 if it is, else Western European; never raises.

    What a head declares its charset to be was heeded before (message.charsets).
    """
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        return octets.decode("cp1252", "replace")


def flat(text: str) -> str:
    """Return `text` on one line: runs of controls and spaces become one space, ends trimmed."""
    return _CONTROLS.sub(" ", text).strip(" ")


def without_controls(text: str) -> str:
    """Return `text` with a space for each control; spaces stay as many as they are."""
    return _CONTROL.sub(" ", text)


def is_plain_phrase(text: str) -> bool:
    """Tell whether `text` may stand in a phrase as it is: atoms and encoded words."""
    return len(text) <= _PLAIN_PHRASE_LIMIT and _PLAIN_PHRASE.fullmatch(text) is not None


def encode_words(text: str) -> bytes:
    """Return `text` as UTF-8 encoded words, folded; b"" for none. Encoded words in it are read
    first, so that nothing is encoded twice.
    """
    out: list[bytes] = []
    octets = flat(decode_words(text)).encode("utf-8", "replace")
    start = 0
    while start < len(octets):
        end = min(start + _CHUNK_BYTES, len(octets))
        while end < len(octets) and octets[end] & 0xC0 == 0x80:  # not inside a character
            end -= 1
        out.append(b"=?utf-8?b?" + b64encode(octets[start:end]) + b"?=")
        start = end
    return b"\r\n ".join(out)


def decode_words(text: str) -> str:
    """Return `text` with its encoded words read; those that are broken stay, as does a text
    that is too long. What lies between is left alone.

    Characters that UTF-8 cannot say become "?".
    """
    if "=?" not in text or len(text) > READ_LIMIT:
        return text
    return _WORDS.sub(_read, text)


def _read(words: re.Match[str]) -> str:
    """Return a run of encoded words read: a character may be cut between two of them."""
    try:
        read = "".join(
            part if isinstance(part, str) else part.decode(charset or "latin-1", "replace")
            for part, charset in decode_header(words[0])
        )
        # UTF-7 and Python's own charsets know halves of characters; the spool refuses those.
        return read.encode("utf-8", "replace").decode("utf-8")
    except (MessageError, LookupError, ValueError):
        return words[0]
