"""One log line from an event and its fields; the same form from master, workers and cached.

    message.sent level=info id=8ZK3 upstream=contoso request_id="a b" process=worker-1 ts=…Z

Event first, its level, then key=value as they were given, then who and when. Lean: the master
has no structlog.

SECURITY: half of what is logged was chosen by a peer (HELO, addresses, Graph's texts). Each value
is bounded, and whatever does not print (newlines, escape sequences, bidi marks, lone surrogates)
is escaped, so that nobody writes lines of their own into the log or onto a terminal.

Source: https://brandur.org/logfmt
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

LONGEST_VALUE: Final = 500
LONGEST_TRACEBACK: Final = 8000
"""A traceback keeps its end: there the reason stands."""

_BARE: Final = re.compile(r"[!#-<>-\[\]-~]+").fullmatch  # printable ASCII but space " = \
_NO_ESCAPES: Final = re.compile(r"[ !#-\[\]-~]*").fullmatch  # printable ASCII but " \
_NOT_A_KEY: Final = re.compile(r"[^A-Za-z0-9_.-]")
_SHORT: Final[Mapping[str, str]] = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
_COLOURS: Final[Mapping[str, str]] = {"debug": "2", "info": "32", "warning": "33", "error": "31"}


def render(event: str, fields: Mapping[str, object], *, level: str, moment: datetime) -> str:
    """Return the line as logfmt, without a newline; fields that are None are left out."""
    if None in fields.values():
        fields = {name: value for name, value in fields.items() if value is not None}
    form = _form(event, level, *fields)
    shown = [
        value if type(value) is str else str(value) if type(value) is int else text(value)
        for value in fields.values()
    ]
    together = "".join(shown)
    if len(together) <= LONGEST_VALUE and _NO_ESCAPES(together):  # nearly always, and asked once
        quoted = [
            each if each and " " not in each and "=" not in each else f'"{each}"' for each in shown
        ]
    else:
        quoted = [
            quote(each if len(each) <= LONGEST_VALUE else text(value, _limit(name)))
            for each, (name, value) in zip(shown, fields.items(), strict=True)
        ]
    return form % (*quoted, stamp(moment))


@functools.lru_cache(maxsize=512)
def _form(event: str, level: str, *names: str) -> str:
    """Return the line with a %s in the place of each value; the same few are asked again."""
    places = "".join([f" {_key(name)}=%s" for name in names])
    return f"{_key(event)} level={_key(level)}{places} ts=%s"


def render_json(event: str, fields: Mapping[str, object], *, level: str, moment: datetime) -> str:
    """Return the line as one JSON object in ASCII: event, level, ts, then the fields."""
    row: dict[str, object] = {"event": _key(event), "level": level, "ts": stamp(moment)}
    for name, value in fields.items():
        plain = value is None or isinstance(value, bool | int | float)
        row[_key(name)] = value if plain else text(value, _limit(name))
    return json.dumps(row, separators=(",", ":"))


def render_console(
    event: str,
    fields: Mapping[str, object],
    *,
    level: str,
    moment: datetime,
    colours: bool = False,
) -> str:
    """Return the line for a person at a terminal: time, level, event, fields in columns."""
    shown = " ".join(
        f"{_key(name)}={quote(text(value, _limit(name)))}"
        for name, value in fields.items()
        if value is not None
    )
    clock = moment.astimezone().strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
    if not colours:
        return f"{clock} {level:<7} {_key(event):<20} {shown}".rstrip()
    tint = _COLOURS.get(level, "31")
    return f"{clock} \x1b[{tint}m{level:<7}\x1b[0m \x1b[1m{_key(event):<20}\x1b[0m {shown}".rstrip()


def stamp(moment: datetime) -> str:
    """Return an aware moment as RFC 3339 UTC with milliseconds."""
    at = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    # Half the time of isoformat(), which asks the zone for its offset.
    return "%04d-%02d-%02dT%02d:%02d:%02d.%03dZ" % (  # noqa: UP031 - an f-string takes twice as long
        at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond // 1000
    )  # fmt: skip


def text(value: object, limit: int = LONGEST_VALUE) -> str:
    """Return a field's value as text of at most about `limit` characters, not yet escaped."""
    if isinstance(value, str):
        shown = value
    elif isinstance(value, bool):
        shown = "true" if value else "false"
    elif isinstance(value, float):
        shown = repr(round(value, 3))
    elif isinstance(value, bytes | bytearray | memoryview):
        shown = bytes(value[: limit + 1]).decode("utf-8", "backslashreplace")
    elif isinstance(value, datetime):
        shown = stamp(value)
    elif isinstance(value, tuple | list | set | frozenset):
        shown = ",".join(text(each, limit) for each in list(value)[:20])
        shown += f",… {len(value)} in all" if len(value) > 20 else ""
    elif isinstance(value, BaseException):
        shown = f"{type(value).__name__}: {value}" if str(value) else type(value).__name__
    else:
        shown = str(value)
    if len(shown) <= limit:
        return shown
    return "…" + shown[-limit:] if limit > LONGEST_VALUE else shown[:limit] + "…"


def quote(shown: str) -> str:
    """Return text as a logfmt value: bare when harmless, else quoted with escapes."""
    if _BARE(shown):
        return shown
    return f'"{escape(shown)}"'


def escape(shown: str) -> str:
    r"""Return text that stays on its line and moves no cursor: `\n`, `\x1b`, `\u202e`, `\"`."""
    if shown.isprintable() and '"' not in shown and "\\" not in shown:
        return shown
    return "".join(
        _SHORT.get(each) or (each if each.isprintable() else _numbered(each)) for each in shown
    )


def _numbered(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _limit(name: str) -> int:
    return LONGEST_TRACEBACK if name == "traceback" else LONGEST_VALUE


@functools.lru_cache(maxsize=512)
def _key(name: str) -> str:
    return _NOT_A_KEY.sub("_", name[:80]) or "_"
