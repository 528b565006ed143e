"""relayd.toml and conf.d/*.toml beside it, read and merged into one tree of plain values.

Tables merge, arrays of tables append, in name order after the main file. A scalar set twice is
an error that names both places: which one wins would be a guess. Every value keeps its place.

Source: https://toml.io/en/v1.0.0 (tomllib)
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from dataclasses import dataclass, field
from typing import Final, TypeGuard

from relayd.config.places import Path, Place, find_lines
from relayd.values import frozen

_AT_LINE: Final = re.compile(r"\s*\(at line (\d+), column \d+\)$|\s*\(at end of document\)$")
_SYNTAX: Final = (
    ("Invalid value", "this is no value; a text stands in double quotes, true in lower case"),
    (
        "Expected newline",
        'something follows the value; quote texts, times, sizes ("5d"), one key a line',
    ),
    ("Expected '='", "a key without a value; write key = value, or [name] for a table"),
    ("Expected ']", "a table's head is not closed; write [name] or [[name]]"),
    ("Cannot overwrite", "the key stands twice in this table; keep one of the two"),
    ("Cannot declare", "the table stands twice; put its keys together"),
    ("Invalid statement", "neither key nor table; write key = value, or [name]"),
    (
        "Illegal character",
        "a text is not closed on its line; put a double quote at its end",
    ),
    ("Unterminated", "a text is not closed; put a double quote at its end"),
    ("Unclosed array", "a list is not closed; put ] at its end"),
    ("Unescaped", "a single backslash; write it twice, or the text in single quotes"),
)


@frozen
class Problem:
    """What is wrong with the key at `path`, and after a semicolon what to do."""

    path: Path
    text: str


@dataclass(slots=True)
class Tree:
    """The merged configuration as TOML has it, with the place of everything in it.

    modes: permission bits of each file read, for `x_in_clear` questions.
    found: problems already worded, with their place.
    """

    root: str
    data: dict[str, object] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    modes: dict[str, int] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    def place(self, path: Path) -> Place:
        """Return where `path` stands, or the nearest table around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return Place(self.root)

    def where(self, path: Path) -> str:
        """Return `path` as people write it: `[tls] key`, `[[device]] "ups" from`."""
        if not path:
            return ""
        table, key = self._split(path)
        return f"{table} {key}".strip()

    def word(self, problem: Problem) -> str:
        """Return `file:line: [table] key: what is wrong; what to do`."""
        where = self.where(problem.path)
        return f"{self.place(problem.path)}: {where + ': ' if where else ''}{problem.text}"

    def _split(self, path: Path) -> tuple[str, str]:
        index = next((i for i, part in enumerate(path) if isinstance(part, int)), 0)
        if index:
            name = self.get((*path[: index + 1], "name"))
            label = f'"{name}"' if isinstance(name, str) and name else f"#{int(path[index]) + 1}"
            rest = ".".join(map(str, path[index + 1 :]))
            return f"[[{'.'.join(map(str, path[:index]))}]] {label}", rest
        if isinstance(self.get(path), dict) or len(path) == 1:
            is_table = isinstance(self.get(path), dict)
            return (f"[{'.'.join(map(str, path))}]", "") if is_table else ("", str(path[0]))
        return f"[{'.'.join(map(str, path[:-1]))}]", str(path[-1])

    def get(self, path: Path) -> object:
        """Return the value at `path`; None if there is none."""
        value: object = self.data
        for part in path:
            try:
                value = value[part]  # type: ignore[index]  # a table by name, a list by number
            except (TypeError, LookupError):
                return None
        return value


def read(path: str) -> Tree:
    """Return all files merged; what could not be read or merged is in `found`."""
    tree = Tree(path)
    _add_file(tree, path)
    folder = os.path.join(os.path.dirname(path), "conf.d")
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return tree
    except OSError as trouble:
        tree.found.append(f"{folder}: cannot be read ({trouble.strerror}); chmod 750, group relayd")
        return tree
    for name in names:
        if name.endswith(".toml") and not name.startswith("."):
            _add_file(tree, os.path.join(folder, name))
    return tree


def _add_file(tree: Tree, path: str) -> None:
    text = ""
    try:
        text = _text(tree, path)
        data = tomllib.loads(text)
    except OSError as trouble:
        tree.found.append(f"{path}: cannot be read ({trouble.strerror}); {_remedy(trouble)}")
    except UnicodeDecodeError as trouble:
        tree.found.append(f"{path}: not UTF-8 at octet {trouble.start}; save it as UTF-8")
    except tomllib.TOMLDecodeError as trouble:
        tree.found.append(_syntax(path, text, str(trouble)))
    except RecursionError:
        tree.found.append(f"{path}: not TOML: nested too deep")
    else:
        lines = {at: Place(path, line) for at, line in find_lines(text).items()}
        _Merge(tree, path, lines).table((), (), tree.data, data)


def _text(tree: Tree, path: str) -> str:
    with open(path, "rb") as file:
        tree.modes[path] = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        return file.read().decode("utf-8-sig")


def _remedy(trouble: OSError) -> str:
    if isinstance(trouble, FileNotFoundError):
        return "name another with --config FILE, or have it written: relayd setup"
    if isinstance(trouble, PermissionError):
        return "run this with sudo; the relay itself needs it readable by group relayd (chmod 640)"
    return "name a readable file with --config FILE"


def _syntax(path: str, text: str, complaint: str) -> str:
    line = _AT_LINE.search(complaint)
    at_end = len(text.rstrip().splitlines()) or 1
    place = Place(path, int(line[1]) if line is not None and line[1] else at_end)
    words = _AT_LINE.sub("", complaint)
    # Our own words: tomllib's differ from one Python to the next.
    ours = next(
        (ours for start, ours in _SYNTAX if words.startswith(start)), f"{words}; see toml.io"
    )
    return f"{place}: not TOML: {ours}"


@frozen
class _Merge:
    """One file on its way into the tree; `old` paths are the file's, `new` the tree's."""

    tree: Tree
    file: str
    lines: dict[Path, Place]

    def table(self, old: Path, new: Path, into: dict[str, object], data: dict[str, object]) -> None:
        self._note(old, new)
        for key, value in data.items():
            self._value((*old, key), (*new, key), into, value)

    def _value(self, old: Path, new: Path, into: dict[str, object], value: object) -> None:
        key = str(new[-1])
        there = into.get(key)
        if isinstance(value, dict):
            if key in into and not isinstance(there, dict):
                self._twice(old, new)
                return
            inner: dict[str, object] = there if isinstance(there, dict) else {}
            into[key] = inner
            self.table(old, new, inner, value)
        elif _is_tables(value) and (key not in into or _is_tables(there)):
            rows = there if _is_tables(there) else []
            into[key] = rows
            self._note((*old, 0), new)
            for index, row in enumerate(value):
                at = len(rows)
                rows.append({})
                self.table((*old, index), (*new, at), rows[at], row)
        elif key in into:
            self._twice(old, new)
        else:
            into[key] = value
            self._note(old, new)

    def _note(self, old: Path, new: Path) -> None:
        if old and old in self.lines:
            self.tree.places.setdefault(new, self.lines[old])
        elif old and isinstance(old[-1], int):
            self.tree.places.setdefault(new, self.lines.get(old[:-1], Place(self.file)))

    def _twice(self, old: Path, new: Path) -> None:
        here = self.lines.get(old, Place(self.file))
        first = self.tree.place(new)
        where = self.tree.where(new)
        self.tree.found.append(f"{here}: {where}: already set at {first}; keep one of the two")


def _is_tables(value: object) -> TypeGuard[list[dict[str, object]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
