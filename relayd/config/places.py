"""Where a key stands: file and line, for messages somebody can act on.

tomllib does not say, so the text is scanned once more for headers and keys. The scan follows
only as much of TOML as it needs (strings, brackets, comments); text that tomllib took is
scanned right, and if it ever were not, a message would name a wrong line, nothing worse.

    path: ("device", 1, "networks") is the key `networks` of the second [[device]].

Source: https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from relayd.values import frozen

Path: TypeAlias = "tuple[str | int, ...]"

_PART: Final = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_KEY: Final = re.compile(rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*")
_PARTS: Final = re.compile(_PART)
_HEADER: Final = re.compile(rf"(\[\[?)[ \t]*({_KEY.pattern})[ \t]*\]\]?")
_BLANK: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_EQUALS: Final = re.compile(r"[ \t]*=")
_STRING: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|' + r"'''.*?'{3,5}|" + r""""(?:[^"\\\n]|\\.)*"|'[^'\n]*'""",
    re.DOTALL,
)
_PLAIN: Final = re.compile(r"""[^"'\[\]{}#\n]+""")


@frozen
class Place:
    """A line of a file; line 0 when only the file is known."""

    file: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


def find_lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, of every table header and key in TOML text."""
    lines: dict[Path, int] = {}
    counts: dict[Path, int] = {}
    table: Path = ()
    at, line, counted_to = 0, 1, 0
    while True:
        at = _end(_BLANK.match(text, at), at)
        if at >= len(text):
            return lines
        line, counted_to = line + text.count("\n", counted_to, at), at
        if (header := _HEADER.match(text, at)) is not None:
            table = _table(header[2], counts, is_array=header[1] == "[[")
            lines.setdefault(table, line)
            at = header.end()
        elif (key := _KEY.match(text, at)) is not None:
            lines.setdefault((*table, *_split(key[0])), line)
            at = _value_end(text, _end(_EQUALS.match(text, key.end()), key.end()))
        else:
            at += 1


def _end(match: re.Match[str] | None, otherwise: int) -> int:
    return otherwise if match is None else match.end()


def _split(key: str) -> list[str]:
    return [part[1:-1] if part[0] in "\"'" else part for part in _PARTS.findall(key)]


def _table(key: str, counts: dict[Path, int], *, is_array: bool) -> Path:
    """Return a header's path; inside an array of tables the latest one is meant."""
    parts = _split(key)
    path: Path = ()
    for depth, part in enumerate(parts):
        path = (*path, part)
        if is_array and depth == len(parts) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = (*path, counts[path])
    return path


def _value_end(text: str, at: int) -> int:
    """Return where the value that begins at `at` ends: the end of its last line."""
    depth = 0
    while at < len(text):
        if (string := _STRING.match(text, at)) is not None:
            at = string.end()
        elif (plain := _PLAIN.match(text, at)) is not None:
            at = plain.end()
        elif text[at] == "#":
            newline = text.find("\n", at)
            at = len(text) if newline < 0 else newline
        elif text[at] == "\n":
            if depth <= 0:
                return at
            at += 1
        else:
            depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(text[at], 0)
            at += 1
    return at
