"""How durations and sizes are written: "8s", "5m", "1h30m", "5d"; "35MB", "35MiB", 3000000.

Pure. Text in, a number out, or BadUnit with what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_SECONDS: Final[Mapping[str, float]] = {
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
    "w": 604_800.0,
}
_OCTETS: Final[Mapping[str, int]] = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_PART: Final = re.compile(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*(ms|s|m|h|d|w)", re.ASCII)
_SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]{0,3})", re.ASCII)


class BadUnit(ValueError):
    """The text is no duration, or no size; its message says what would be."""


def seconds(text: str) -> float:
    """Return a duration in seconds; "0" is zero, any other number needs its unit.

    raises: BadUnit
    """
    if text.strip() == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(text.rstrip()):
        part = _PART.match(text, at)
        if part is None:
            raise BadUnit('is no duration; write "30s", "5m", "1h" or "5d"')
        total += float(part[1]) * _SECONDS[part[2]]
        at = part.end()
    if at == 0:
        raise BadUnit('is no duration; write "30s", "5m", "1h" or "5d"')
    return total


def octets(text: str) -> int:
    """Return a size in octets; MB is 1000², MiB is 1024², no unit is octets.

    raises: BadUnit
    """
    size = _SIZE.fullmatch(text.strip())
    if size is None or size[2].lower() not in _OCTETS:
        raise BadUnit('is no size; write "35MB", "35MiB" or a number of octets')
    return int(float(size[1]) * _OCTETS[size[2].lower()])


def show_seconds(value: float) -> str:
    """Return a duration as one would write it: 90.0 is "1m30s"."""
    rest = round(value * 1000)
    if rest == 0:
        return "0"
    shown = ""
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        count, rest = divmod(rest, length)
        shown += f"{count}{unit}" if count else ""
    return shown + (f"{rest}ms" if rest else "")


def show_octets(value: int) -> str:
    """Return a size as one would write it: the largest unit that is exact, else rounded."""
    for unit, length in (("GiB", 1024**3), ("GB", 1000**3), ("MiB", 1024**2), ("MB", 1000**2)):
        if value >= length and value % length == 0:
            return f"{value // length}{unit}"
    return f"{value / 1000**2:.1f}MB" if value >= 1000**2 else str(value)
