"""How the command line prints: tables, colours on a terminal only, durations, JSON.

SECURITY: much of what is shown was chosen by a peer (HELO, From, Graph's texts). `safe`
takes control characters out, so that nobody's mail moves the cursor or renames the window.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final, TextIO

_COLOURS: Final = {
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "grey": "90",
    "bold": "1",
}
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"))
_SIZES: Final = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def safe(text: str) -> str:
    """Return `text` with control and direction-changing characters shown as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def has_colours(stream: TextIO) -> bool:
    """Tell whether `stream` is a terminal that wants colours (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return `text` in a colour of the table where `stream` (standard output) shows them."""
    if not has_colours(stream or sys.stdout):
        return text
    return f"\033[{_COLOURS[colour]}m{text}\033[0m"


def print_json(value: object) -> None:
    """Print a value as JSON in ASCII; one line into a pipe, indented on a terminal."""
    # SECURITY: JSON itself lets C1 controls and direction marks through; ASCII does not.
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(value, indent=indent, default=str))


def complain(text: str) -> None:
    """Print one line on standard error, as relayd."""
    print(f"relayd: {safe(text)}", file=sys.stderr)


def table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Return rows as aligned columns, two spaces between; the last column is not padded."""
    cells = [[safe(cell) for cell in row] for row in rows]
    everything = [list(heads), *cells] if heads else cells
    if not everything:
        return ""
    columns = max(len(row) for row in everything)
    widths = [
        max((_width(row[column]) for row in everything if column < len(row)), default=0)
        for column in range(columns)
    ]
    lines = [_line(row, widths) for row in everything]
    if heads:
        lines[0] = paint(lines[0], "bold")
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=False)]
    return "  ".join(padded).rstrip()


def _width(text: str) -> int:
    """Return how many columns `text` takes on a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def duration(seconds: float) -> str:
    """Return a duration as people say it: "3 s", "12 min", "2 h 5 min", "4 d 3 h"."""
    left = round(seconds)
    parts: list[str] = []
    for size, unit in _UNITS:
        if left >= size or parts:
            parts.append(f"{left // size} {unit}")
            left %= size
        if len(parts) == 2:
            break
    return " ".join(part for part in parts if not part.startswith("0 ")) or f"{left} s"


def size(octets: int) -> str:
    """Return a number of octets as people say it: "512 B", "2.1 MB"."""
    for unit, name in _SIZES:
        if octets >= unit:
            return f"{octets / unit:.1f} {name}"
    return f"{octets} B"


def ask_yes(question: str) -> bool:
    """Ask on the terminal; True only for y or yes. Not a terminal: False."""
    if not sys.stdin.isatty():
        return False
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}
