"""What each peer last sent and why it was last refused, added up over all workers.

The rows come from the workers as they are (`relayd.serve.callers`); the master only keeps them, so
that a reload, or a worker that dies, forgets nothing. At most MOST_ROWS: what no [[device]] and no
login that sent speaks for goes first, then what was silent longest.

Used by `relayd device list` and `show`; the keys are an interface (docs/control.md).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from relayd.master.frames import Frame, Json

MOST_ROWS: Final = 512
_LONGEST: Final = 80
_ROOM_BYTES: Final = 900_000
"""What is shown must fit a frame."""


class Callers:
    """Owned by the household."""

    def __init__(self) -> None:
        self._rows: OrderedDict[tuple[str, str, str], dict[str, Json]] = OrderedDict()

    def hear(self, rows: Json) -> None:
        """Add what a worker tells; whatever is no row is passed over."""
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, Mapping):
                self._add(row)

    def shown(self, name: str = "", ip: str = "", *, whole: bool = False) -> list[Frame]:
        """Return the rows, last heard first; for one device, user or address with transcripts.

        name: of a [[device]] or [[user]]; ip: an address; "" for any.
        whole: with transcripts in any case.
        """
        rows = [
            row
            for row in reversed(self._rows.values())
            if (not name or name in (row["device"], row["user"])) and (not ip or ip == row["ip"])
        ]
        return list(_fitting(rows if name or ip or whole else map(_short, rows)))

    def _add(self, news: Frame) -> None:
        ip, device, user = (str(news.get(key, ""))[:_LONGEST] for key in ("ip", "device", "user"))
        row = self._rows.setdefault((ip, device, user), {"ip": ip, "device": device, "user": user})
        self._rows.move_to_end((ip, device, user))
        for key in ("accepted", "refused"):
            row[key] = _number(row.get(key)) + _number(news.get(key))
        for key in ("last", "refusal"):
            value = news.get(key)
            if isinstance(value, Mapping):
                row[key] = value
        if len(self._rows) > MOST_ROWS:
            self._forget_one()

    def _forget_one(self) -> None:
        # SECURITY: a login that was only ever refused speaks for nobody: guesses from many
        # addresses must not push out those who send.
        strangers = (
            key
            for key, row in self._rows.items()
            if not key[1] and not (key[2] and row["accepted"])
        )
        del self._rows[next(strangers, next(iter(self._rows)))]


def _fitting(rows: Iterable[Frame]) -> Iterator[Frame]:
    room = _ROOM_BYTES
    for row in rows:
        room -= len(json.dumps(row))
        if room < 0:
            return
        yield row


def _short(row: Frame) -> Frame:
    refusal = row.get("refusal")
    if not isinstance(refusal, Mapping):
        return row
    return {**row, "refusal": {k: v for k, v in refusal.items() if k != "transcript"}}


def _number(value: Json) -> int:
    return value if isinstance(value, int) and value > 0 else 0
