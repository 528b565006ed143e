"""The errors a process logged of late, for "last errors" of `relayd status`.

Errors of one kind (event, upstream, cause) are one row with a count: a thousand held messages must
not push out the one line that says why. At most MOST_KINDS; what did not come again goes first.
Text is what the log line has, secrets hidden already, cut short.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from relayd.observe import logfmt

MOST_KINDS: Final = 20
_LONGEST: Final = 300
_WORDS: Final = ("text", "error", "why", "reason", "how")

Row = dict[str, "str | int"]
"""at: RFC 3339 of the last; event; cause: a code for `relayd explain` or ""; upstream; text;
do: an advice or ""; times: how often."""


class Recent:
    """Noted by the log, taken by who tells the master; any thread may note."""

    def __init__(self) -> None:
        self._rows: OrderedDict[tuple[str, str, str], Row] = OrderedDict()

    def note(self, event: str, fields: Mapping[str, object], moment: datetime) -> None:
        """Remember one error; never raises."""
        cause = _text(fields, "cause") or _code(_text(fields, "reason"))
        do = _text(fields, "advice")
        words = next((text for name in _WORDS if (text := _text(fields, name))), "")
        words = words.replace(f": {do}", "") if do else words  # said once is enough
        upstream = _text(fields, "upstream")
        key = (event, upstream, cause or words[:40])
        before = self._rows.pop(key, None)
        times = before["times"] if before is not None else 0
        self._rows[key] = {
            "at": logfmt.stamp(moment), "event": event, "cause": cause, "upstream": upstream,
            "text": words, "do": do, "times": int(times) + 1,
        }  # fmt: skip
        while len(self._rows) > MOST_KINDS:
            self._rows.popitem(last=False)

    def take(self) -> list[Row]:
        """Return the rows noted since the last time, the latest last."""
        rows, self._rows = self._rows, OrderedDict()
        return list(rows.values())


def merged(groups: Iterable[Iterable[Mapping[str, object]]]) -> list[Row]:
    """Return rows of several processes as one list, by time; MOST_KINDS at most.

    Rows of one kind are added up, the latest words kept; what is no row is passed over.
    """
    rows: dict[tuple[str, str, str], Row] = {}
    for one in (one for group in groups for one in group):
        times = one.get("times")
        row: Row = {name: _text(one, name) for name in ("at", "event", "cause", "upstream", "text")}
        row |= {"do": _text(one, "do"), "times": times if isinstance(times, int) else 1}
        key = (str(row["event"]), str(row["upstream"]), str(row["cause"] or row["text"])[:40])
        other = rows.get(key)
        if other is not None:
            newest = max(row, other, key=lambda each: str(each["at"]))
            row = {**newest, "times": int(row["times"]) + int(other["times"])}
        rows[key] = row
    return sorted(rows.values(), key=lambda each: str(each["at"]))[-MOST_KINDS:]


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    return "" if value is None else logfmt.text(value)[:_LONGEST]


def _code(reason: str) -> str:
    """Return a reason where it is a code, not words."""
    return reason if reason and " " not in reason else ""
