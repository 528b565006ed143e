"""Raw text in a head that is not UTF-8: read in the charset that the head's Content-Type names.

A camera that writes its mail in GB2312 or windows-1251 writes Subject and names in it too,
without encoded words. Where UTF-8 fails and the charset is one of the table and fits to the
last octet, the field becomes UTF-8; else it stays, and `words.text_of` reads it as before.

Source: RFC 2045 §5.1 (charset); WHATWG Encoding §4.2 (what is meant by the names).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from relayd.message.headers import Field

# SECURITY: only charsets in which octets below 0x80 are ASCII and no others become ASCII; with
# UTF-16, UTF-7 or Python's escapes a text would hold line ends that nobody looked for.
# Where one name is used for two, the wider: Python's own reading of gb2312 lacks half of GBK.
_CODECS: Final[Mapping[str, str]] = {
    "gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030", "cp936": "gb18030",
    "gb18030": "gb18030", "big5": "cp950", "big5-hkscs": "big5hkscs",
    "shift-jis": "cp932", "x-sjis": "cp932", "windows-31j": "cp932", "cp932": "cp932",
    "euc-jp": "euc_jp", "euc-kr": "cp949", "ks-c-5601-1987": "cp949", "cp949": "cp949",
    "tis-620": "cp874", "iso-8859-11": "cp874", "windows-874": "cp874", "iso-8859-9": "cp1254",
    "koi8-r": "koi8-r", "koi8-u": "koi8-u", "iso-8859-8-i": "iso8859-8",
    **{f"iso-8859-{n}": f"iso8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
    **{f"windows-{n}": f"cp{n}" for n in range(1250, 1259)},
    **{f"cp{n}": f"cp{n}" for n in (437, 850, 852, 866, *range(1250, 1259))},
}  # fmt: skip
_CHARSET: Final = re.compile(rb';\s*+charset\s*+=\s*+"?([A-Za-z0-9_.:-]{1,40})', re.IGNORECASE)
_TEXTS: Final = frozenset(
    (b"from", b"sender", b"reply-to", b"to", b"cc", b"subject", b"comments", b"organization")
)


def declared_codec(fields: Sequence[Field]) -> str:
    """Return Python's name of the charset in the first Content-Type; "": none, or none of ours."""
    raw = next((raw for name, raw in fields if name == b"content-type"), b"")
    found = _CHARSET.search(raw)
    if found is None:
        return ""
    return _CODECS.get(found[1].decode("ascii").lower().replace("_", "-"), "")


def in_utf8(fields: Sequence[Field]) -> Sequence[Field]:
    """Return the fields with text in the declared charset as UTF-8; for heads that are not ASCII.

    What is UTF-8 already, has parameters or tells the way, or does not fit stays as it is.
    O(octets); never raises.
    """
    if all(_is_utf8(raw) for _, raw in fields):
        return fields
    codec = declared_codec(fields)
    if not codec:
        return fields
    return [(name, _recoded(raw, codec) if _is_text(name) else raw) for name, raw in fields]


def _is_text(name: bytes) -> bool:
    return name in _TEXTS or name.startswith(b"x-")


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _recoded(raw: bytes, codec: str) -> bytes:
    if _is_utf8(raw):
        return raw
    try:
        return raw.decode(codec).encode("utf-8")
    except UnicodeError:
        return raw
