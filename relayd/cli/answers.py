"""Reading what the relay answered; it may be of another version, so nothing is taken on trust.

Each function returns something of the shape it names, empty where the answer has another.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from relayd.master.frames import Frame, Json


def list_of(value: Json) -> list[Json]:
    """Return a list."""
    return list(value) if isinstance(value, list | tuple) else []


def rows_of(value: Json) -> list[Frame]:
    """Return the objects of a list."""
    return [row for row in list_of(value) if isinstance(row, Mapping)]


def mapping_of(value: Json) -> Frame:
    """Return an object."""
    return value if isinstance(value, Mapping) else {}


def number_of(value: Json) -> float:
    """Return a number; 0 for what is none."""
    return float(value) if isinstance(value, int | float) else 0.0


def text_of(value: Json) -> str:
    """Return a text; "" for null."""
    return "" if value is None else str(value)


def moment_of(value: Json) -> datetime | None:
    """Return an RFC 3339 moment or an ISO date (its beginning, UTC); None for what is none."""
    try:
        moment = datetime.fromisoformat(text_of(value))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
