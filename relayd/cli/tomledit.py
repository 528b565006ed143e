"""Changing a few values of a TOML file that belongs to a person: everything else stays as it is.

    text = changed(text, [Change(("upstream", "contoso"), "tenant", "contoso.onmicrosoft.com")])

A value that is there is replaced where it stands, its comment kept; one that stands behind a `#`
in its table (as in the packaged relayd.toml) is uncovered; else a line or a table is added. What
comes out is read back and must differ from what went in by exactly the changes asked for: text
this editor does not understand is refused, never damaged.

Source: https://toml.io/en/v1.0.0
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from relayd.config.places import Path, find_lines
from relayd.errors import RelaydError
from relayd.values import frozen

Value: TypeAlias = "str | Sequence[str]"

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_COVERED_HEADER: Final = re.compile(r"#[ \t]?\[")
_HEADER: Final = re.compile(r"[ \t]*\[")
_LONGEST_VALUE_LINES: Final = 200


class CannotEdit(RelaydError):
    """The file is written in a way that this editor does not follow; nothing was changed."""


@frozen
class Change:
    """One value. table: ("upstream", "contoso"); ("listener", 0) is the first [[listener]]."""

    table: Path
    key: str
    value: Value


def changed(text: str, changes: Iterable[Change]) -> str:
    """Return the text with the changes made; what has its value already stays untouched.

    raises: CannotEdit.
    """
    for change in changes:
        text = _changed(text, change)
    return text


def value_at(data: object, path: Path) -> object:
    """Return what stands at a path of parsed TOML; None for nothing."""
    for part in path:
        try:
            data = data[part]  # type: ignore[index]  # a table by name, a list by number
        except (TypeError, LookupError):
            return None
    return data


def render(value: Value) -> str:
    """Return a value as TOML writes it; a JSON text in ASCII is a TOML basic string."""
    if isinstance(value, str):
        return json.dumps(value)
    return f"[{', '.join(json.dumps(each) for each in value)}]"


def _changed(text: str, change: Change) -> str:
    before = tomllib.loads(text)
    if value_at(before, (*change.table, change.key)) == _plain(change.value):
        return text
    wanted = _wanted(before, change)
    text += "" if not text or text.endswith("\n") else "\n"
    for attempt in (_in_place, _uncovered, _added):
        found = attempt(text, change)
        if found is not None and _reads_as(found, wanted):
            return found
    place = find_lines(text).get((*change.table, change.key), 0)
    raise CannotEdit(
        f"line {place}: {change.key} is written in a way that is not followed here; set it by"
        f" hand: {change.key} = {render(change.value)}"
        if place
        else f"{_shown(change.table)} {change.key} has no place there; write it by hand:"
        f" {change.key} = {render(change.value)}"
    )


def _plain(value: Value) -> object:
    return value if isinstance(value, str) else list(value)


def _wanted(before: dict[str, object], change: Change) -> object:
    """Return what the changed text must be read as."""
    after: object = copy.deepcopy(before)
    at = after
    for part in change.table:
        if isinstance(at, list):
            if not isinstance(part, int) or part > len(at):
                break  # [[upstream]] where [upstream.NAME] belongs
            if part == len(at):
                at.append({})
            at = at[part]
        elif isinstance(at, dict):
            has_rows = change.table[-1:] and isinstance(change.table[-1], int)
            fresh: object = [] if has_rows and part == change.table[-2] else {}
            at = at.setdefault(part, fresh)
    if not isinstance(at, dict):
        raise CannotEdit(f"{_shown(change.table)} is no table")
    at[change.key] = _plain(change.value)
    return after


def _reads_as(text: str, wanted: object) -> bool:
    try:
        return tomllib.loads(text) == wanted
    except tomllib.TOMLDecodeError:
        return False


# ---- where it stands already


def _in_place(text: str, change: Change) -> str | None:
    line = find_lines(text).get((*change.table, change.key))
    if line is None:
        return None
    lines = text.splitlines(keepends=True)
    for length in range(1, _LONGEST_VALUE_LINES):
        old = "".join(lines[line - 1 : line - 1 + length])
        if _is_toml(old):
            lines[line - 1 : line - 1 + length] = [_rewritten(old, change)]
            return "".join(lines)
    return None


def _is_toml(text: str) -> bool:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return False
    return True


def _rewritten(line: str, change: Change) -> str:
    """Return `key = old  # comment` with the new value; the comment stays in its column."""
    assignment = line.rstrip("\r\n")
    column = next(
        (at for at, c in enumerate(assignment) if c == "#" and _is_toml(assignment[:at])), None
    )
    indent = assignment[: len(assignment) - len(assignment.lstrip())]
    new = f"{indent}{change.key} = {render(change.value)}"
    if column is None or "\n" in assignment:
        return f"{new}\n"
    return f"{new.ljust(column - 1)} {assignment[column:]}\n"


# ---- behind a #


def _uncovered(text: str, change: Change) -> str | None:
    lines = text.splitlines(keepends=True)
    header = find_lines(text).get(change.table)
    if header is None:
        found = _covered_header(lines, change.table)
        if found is None:
            return None
        header = found + 1
        lines[found] = f"{_header(change.table)}\n"
    covered = re.compile(rf"#[ \t]?{re.escape(change.key)}[ \t]*=")
    for at in range(header, len(lines)):
        if _HEADER.match(lines[at]) or _COVERED_HEADER.match(lines[at]):
            break
        if covered.match(lines[at]) and _is_toml(bare := lines[at][1:].lstrip()):
            # The # in front is gone; a space keeps the comment behind in its column.
            lines[at] = _shifted(_rewritten(bare, change), bare, lines[at])
            return "".join(lines)
    lines.insert(header, f"{change.key} = {render(change.value)}\n")
    return "".join(lines)


def _shifted(new: str, bare: str, covered: str) -> str:
    """Return the uncovered line with its comment where it stood before the # went."""
    value, separator, comment = new.partition(" #")
    is_fit = separator and len(value) < len(bare.partition(" #")[0]) + 1
    gap = " " * (len(covered) - len(bare))
    return f"{value}{gap}{separator}{comment}" if is_fit else new


def _covered_header(lines: Sequence[str], table: Path) -> int | None:
    """Return the index of the table's example: of any [upstream.*] for ("upstream", …)."""
    if len(table) == 2 and isinstance(table[1], str):
        pattern = rf"#[ \t]?\[{re.escape(str(table[0]))}\.[^\]]+\]"
    elif table[-1:] == (0,):
        pattern = rf"#[ \t]?\[\[{re.escape(str(table[0]))}\]\]"
    else:
        pattern = rf"#[ \t]?\[{re.escape(str(table[0]))}\]"
    found = re.compile(pattern)
    return next((at for at, line in enumerate(lines) if found.match(line)), None)


# ---- at the end


def _added(text: str, change: Change) -> str:
    line = f"{change.key} = {render(change.value)}\n"
    header = find_lines(text).get(change.table)
    if header is not None:
        lines = text.splitlines(keepends=True)
        lines.insert(header, line)
        return "".join(lines)
    gap = "\n" if text else ""
    return f"{text}{gap}{_header(change.table)}\n{line}"


def _header(table: Path) -> str:
    parts = [_part(part) for part in table if isinstance(part, str)]
    name = ".".join(parts)
    return f"[[{name}]]" if isinstance(table[-1], int) else f"[{name}]"


def _part(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name)


def _shown(table: Path) -> str:
    return _header(table)
