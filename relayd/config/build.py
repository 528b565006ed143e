"""The tree of TOML values -> the model, by walking its fields; every problem, not the first.

A field's type says how its text is read, `rules` what else must hold, `later` what has to wait.
A wrong value is noted and its default taken, so that one mistake makes one message.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Final, TypeVar, cast

from relayd.config import clouds, later, rules, units
from relayd.config.codec import hints
from relayd.config.model import AUTO, Cloud, Config, Secret, Server, Upstream, User
from relayd.config.model import Limits as LimitsTable
from relayd.config.places import Path
from relayd.config.read import Problem, Tree

Row = TypeVar("Row")

_AUTO: Final = frozenset({(Server, "workers"), (LimitsTable, "max_message_size")})
_NAMED: Final = frozenset({Upstream, Cloud})  # [upstream.NAME]: the name stands in the header
_FORMS: Final = ("_file", "_env", "_credential")
_HASHES: Final = frozenset({(User, "password_hash")})  # may be seen by others, with a warning
_FOR_OTHERS: Final = 0o004
UNIT_CREDENTIALS: Final = "/run/credentials/relayd.service"
"""Where systemd keeps the unit's credentials while it runs; root may read them."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_CREDENTIAL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_FILE: Final = re.compile(r"[\w./@:+-]{1,4096}")


class Wrong(ValueError):
    """A value cannot be taken; the message says why and what to do."""


def build(
    tree: Tree, environment: Mapping[str, str]
) -> tuple[Config, list[Problem], list[Problem]]:
    """Return the configuration, what is wrong with it, and what is only dangerous.

    environment: for `x_env` and $CREDENTIALS_DIRECTORY; the only place where it is read.
    """
    builder = _Builder(tree, environment)
    return builder.config(), builder.problems, builder.warnings


def key_of(field: str) -> str:
    """Return the key of a field: `from_` is `from`."""
    return field.removesuffix("_")


def keys_of(row: type[object]) -> list[str]:
    """Return every key a table of this class may have, those of later versions included."""
    keys: list[str] = []
    for field, kind in hints(row).items():
        if row in _NAMED and field == "name":
            continue
        keys.append(key_of(field))
        keys += [key_of(field) + form for form in _FORMS if kind is Secret]
    return keys + list(later.KEYS.get(row, {}))


@dataclasses.dataclass(slots=True)
class _Builder:
    tree: Tree
    environment: Mapping[str, str]
    problems: list[Problem] = dataclasses.field(default_factory=list)
    warnings: list[Problem] = dataclasses.field(default_factory=list)

    def config(self) -> Config:
        values: dict[str, object] = {"source": self.tree.root}
        tables = {f: k for f, k in hints(Config).items() if f != "source"}
        for key, raw in self.tree.data.items():
            if key in tables:
                values[key] = self._table((key,), tables[key], raw)
            elif key in later.TABLES:
                self._later_table(key, (key,), raw)
            else:
                self._unknown((key,), [*tables, *later.TABLES])
        return Config(**values)  # type: ignore[arg-type]  # by name and type from Config's own hints

    def _table(self, path: Path, kind: object, raw: object) -> object:
        """Return what stands under one key of the root: a table, or rows of them."""
        if typing.get_origin(kind) is not tuple:
            return self._row(cast("type[object]", kind), path, raw)
        row: type[object] = typing.get_args(kind)[0]
        if row in _NAMED:
            if not isinstance(raw, dict) or any(not isinstance(v, dict) for v in raw.values()):
                self._note(path, f"is no table of tables; write [{path[0]}.NAME]")
                return ()
            return tuple(self._row(row, (*path, name), raw[name], name=name) for name in raw)
        if not isinstance(raw, list) or any(not isinstance(each, dict) for each in raw):
            self._note(path, f"is a list of tables; write [[{path[0]}]] with two brackets")
            return ()
        return tuple(self._row(row, (*path, index), each) for index, each in enumerate(raw))

    def _row(self, row: type[Row], path: Path, raw: object, *, name: str = "") -> Row:
        """Return one table as its class; wrong or missing values are noted and replaced."""
        if not isinstance(raw, dict):
            self._note(path, "is a table, not a single value; write it in brackets as [name]")
            raw = {}
        values = self._defaults(row, name)
        if name and (complaint := rules.name(name)):
            self._note(path, complaint)
        known = {key_of(f): (f, k) for f, k in hints(row).items() if not (name and f == "name")}
        secrets = {key + form: key for key in known for form in _FORMS if known[key][1] is Secret}
        for key, value in raw.items():
            at = (*path, key)
            if key in known and known[key][1] is not Secret:
                field, kind = known[key]
                self._set(row, values, field, kind, at, value)
            elif key in later.KEYS.get(row, {}):
                self._later_key(at, value, later.KEYS[row][key])
            elif key not in known and key not in secrets:
                self._unknown(at, keys_of(row))
        for key, (field, kind) in known.items():
            if kind is Secret:
                self._set_secret(row, values, field, path, raw)
            elif field not in values:
                self._note((*path, key), f"is missing; {_example(row, key)}")
                values[field] = _neutral(kind)
        return row(**values)

    def _defaults(self, row: type[object], name: str) -> dict[str, object]:
        if row is Cloud:
            for cloud in clouds.BUILT_IN:
                if cloud.name == name:
                    return {f: getattr(cloud, f) for f in hints(Cloud)}
        values: dict[str, object] = {"name": name} if name else {}
        for field in dataclasses.fields(cast("type[typing.Any]", row)):  # any dataclass
            if field.default is not dataclasses.MISSING:
                values[field.name] = field.default
            elif field.default_factory is not dataclasses.MISSING:
                values[field.name] = field.default_factory()
        return values

    def _set(
        self,
        row: type[object],
        values: dict[str, object],
        field: str,
        kind: object,
        at: Path,
        raw: object,
    ) -> None:
        if dataclasses.is_dataclass(kind):
            values[field] = self._row(cast("type[object]", kind), at, raw)
            return
        if raw == "" and values.get(field) == 0 and typing.get_origin(kind) is typing.Annotated:
            return  # "" is "not set" where zero is the default
        is_auto = (row, field) in _AUTO
        try:
            value = AUTO if is_auto and raw == "auto" else convert(kind, raw, or_auto=is_auto)
        except Wrong as wrong:
            self._note(at, str(wrong))
            values.setdefault(field, _neutral(kind))
            return
        if not (is_auto and raw == "auto"):
            self._check(row, field, at, value)
        values[field] = value

    def _check(self, row: type[object], field: str, at: Path, value: object) -> None:
        rule = rules.rule_for(row, field)
        complaints = []
        if rule is not None:
            judged = value.reveal() if isinstance(value, Secret) else value
            parts: Iterable[object] = judged if isinstance(judged, tuple) else (judged,)
            complaints = [complaint for part in parts if (complaint := rule(part))]
        now = later.values_now(row, field)
        if now is not None and value not in now:
            complaints = [later.refusal(now)]
        for complaint in complaints:
            self._note(at, complaint)

    def _set_secret(
        self, row: type[object], values: dict[str, object], field: str, path: Path, raw: object
    ) -> None:
        """Read a secret from the one place it is given in."""
        key = key_of(field)
        table = raw if isinstance(raw, dict) else {}
        given = [
            each for each in (key, *(key + form for form in _FORMS)) if table.get(each, "") != ""
        ]
        if not given:
            return
        at = (*path, given[0])
        if len(given) > 1:
            self._note((*path, given[1]), f"{given[0]} is set too; keep one of the two")
        if not isinstance(table[given[0]], str):
            # SECURITY: the value itself is not shown.
            self._note(at, "no text; write the secret in double quotes")
            return
        try:
            secret = self._read_secret(row, field, at, given[0].removeprefix(key), table[given[0]])
        except Wrong as wrong:
            self._note(at, str(wrong))
            secret = Secret("unreadable")  # it is there, so nobody is told that it is missing
        else:
            self._check(row, field, at, secret)
        values[field] = secret

    def _read_secret(self, row: type[object], field: str, at: Path, form: str, word: str) -> Secret:
        if form == "_env":
            if not _VARIABLE.fullmatch(word):
                raise Wrong("no name of an environment variable; write it without $")
            if word not in self.environment:
                raise Wrong(f"${word} is not set; set it in the unit with Environment=")
            return self._not_empty(self.environment[word], f"${word}")
        if form == "_credential":
            folder = self.environment.get("CREDENTIALS_DIRECTORY", "")
            if not folder and os.path.isdir(UNIT_CREDENTIALS):
                folder = UNIT_CREDENTIALS  # a command of root's, beside the running unit
            if not _CREDENTIAL.fullmatch(word):
                raise Wrong("no name of a systemd credential; write it without a path")
            if not folder:
                raise Wrong(f"systemd gave no credentials; add LoadCredential={word}: to the unit")
            return self._from_file(os.path.join(folder, word))
        if form == "_file":
            # SECURITY: a secret pasted here by mistake is not shown as a file's name.
            if not _FILE.fullmatch(word):
                raise Wrong("no name of a file; write its path, letters, digits and ._-/ only")
            path = os.path.join(os.path.dirname(self.tree.root) or ".", word)
            secret = self._from_file(path)
            if os.stat(path).st_mode & _FOR_OTHERS:
                self._warn(at, f"{path} can be read by everybody; chmod 640 {path}")
            return secret
        file = self.tree.place(at).file
        if self.tree.modes.get(file, 0) & _FOR_OTHERS:
            if (row, field) in _HASHES:
                self._warn(at, f"{file} can be read by everybody; chmod 640 {file}")
            else:
                # SECURITY: a secret everybody on the host can read is none.
                raise Wrong(
                    f"a secret in a file everybody can read; chmod 640 {file}, "
                    f"or put it in a file of its own and name that in {key_of(field)}_file"
                )
        return Secret(word)

    def _from_file(self, path: str) -> Secret:
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(65_536)
        except OSError as trouble:
            raise Wrong(
                f"{path} cannot be read ({trouble.strerror}); put the secret there, "
                f"readable by group relayd (chmod 640)"
            ) from trouble
        except UnicodeDecodeError as trouble:
            raise Wrong(f"{path} is no text; put the secret there as UTF-8") from trouble
        return self._not_empty(text.removesuffix("\n").removesuffix("\r"), path)

    def _not_empty(self, text: str, source: str) -> Secret:
        if not text.strip():
            raise Wrong(f"{source} is empty; put the secret there")
        if text != text.strip() or "\n" in text:
            raise Wrong(f"the secret in {source} has blanks or newlines around it; take them out")
        return Secret(text)

    def _later_table(self, table: str, path: Path, raw: object) -> None:
        """Check a table that a later version brings: known keys, values that ask for nothing."""
        rows = list(enumerate(raw)) if isinstance(raw, list) else [(None, raw)]
        for index, each in rows:
            at = path if index is None else (*path, index)
            if not isinstance(each, dict):
                self._note(at, f"is a table; write [{table}]")
                continue
            for key, value in each.items():
                name = key.removesuffix("_file") if key not in later.TABLES[table] else key
                if f"{table}.{key}" in later.TABLES:
                    self._later_table(f"{table}.{key}", (*at, key), value)
                elif name in later.TABLES[table]:
                    self._later_key((*at, key), value, later.TABLES[table][name])
                else:
                    self._unknown((*at, key), list(later.TABLES[table]))

    def _later_key(self, at: Path, value: object, allowed: object) -> None:
        if isinstance(allowed, tuple) and value not in allowed:
            self._note(at, later.refusal(allowed))

    def _unknown(self, path: Path, known: list[str]) -> None:
        key = str(path[-1])
        if key == "name" and len(path) == 3:
            self._note(path, f"unknown key; the name stands in the table's head, [{path[0]}.NAME]")
            return
        what = "table" if isinstance(self.tree.get(path), dict | list) and len(path) == 1 else "key"
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        homes = [] if near else _homes(key)
        if not near and not homes and len(path) == 1:
            near = difflib.get_close_matches(key, _all_keys(), n=1)
            homes = _homes(near[0]) if near else []
        if near and homes:
            remedy = f'did you mean "{near[0]}"? it belongs in {homes[0]}'
        elif near:
            remedy = f'did you mean "{near[0]}"?'
        elif homes:
            remedy = f"it belongs in {' or '.join(homes[:2])}"
        else:
            remedy = "docs/settings.md has all of them"
        self._note(path, f"unknown {what}; {remedy}")

    def _note(self, path: Path, text: str) -> None:
        self.problems.append(Problem(path, text))

    def _warn(self, path: Path, text: str) -> None:
        self.warnings.append(Problem(path, text))


def _homes(key: str) -> list[str]:
    """Return the tables that know `key`."""
    homes = []
    for table, kind in hints(Config).items():
        is_rows = typing.get_origin(kind) is tuple
        row = typing.get_args(kind)[0] if is_rows else kind
        if dataclasses.is_dataclass(row) and key in keys_of(cast("type[object]", row)):
            named = row in _NAMED
            homes.append(
                f"[{table}.NAME]" if named else f"[[{table}]]" if is_rows else f"[{table}]"
            )
    return homes


def _all_keys() -> list[str]:
    """Return the keys of every table, for one that stands outside of them."""
    rows = [typing.get_args(kind)[:1] or (kind,) for kind in hints(Config).values()]
    return [
        key
        for (row,) in rows
        if dataclasses.is_dataclass(row)
        for key in keys_of(cast("type[object]", row))
    ]


def convert(kind: object, raw: object, *, or_auto: bool = False) -> object:
    """Return a TOML value as a field's type wants it.

    raises: Wrong - another type, no such choice, no duration or size.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _measure(args[1], raw)
    if origin is typing.Literal:
        return _choice(args, raw)
    if origin is tuple:
        if not isinstance(raw, list):
            raise Wrong(f"{_kind_of(raw)} where a list is wanted; write [{_as_toml(raw)}]")
        return tuple(convert(args[0], each) for each in raw)
    if kind is str and isinstance(raw, str):
        return raw
    if kind is bool and isinstance(raw, bool):
        return raw
    if kind is int and isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    wanted = {
        str: "a text in quotes",
        bool: "true or false, without quotes,",
        int: "a whole number, without quotes," if not or_auto else 'a whole number or "auto"',
    }[cast("type[object]", kind)]
    raise Wrong(f"{_kind_of(raw)} where {wanted} is wanted; write {_write_instead(kind, raw)}")


def _measure(mark: str, raw: object) -> float | int:
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        example = '"30s"' if mark == "duration" else '"35MB"'
        raise Wrong(f"{_kind_of(raw)} where a {mark} is wanted; write it like {example}")
    try:
        if mark == "duration":
            if isinstance(raw, int):
                raise Wrong(f'{raw} has no unit; write "{raw}s", or "5m", "1h", "5d"')
            return units.seconds(raw)
        if isinstance(raw, int) and raw < 0:
            raise Wrong(f"{raw} is negative; write a size like 35MB")
        return units.octets(str(raw))
    except units.BadUnit as bad:
        raise Wrong(f'"{rules.shown(raw)}" {bad}') from bad


def _choice(choices: tuple[str, ...], raw: object) -> object:
    if isinstance(raw, str) and raw in choices:
        return raw
    shown = ", ".join(f'"{each}"' for each in choices if each)
    if not isinstance(raw, str):
        raise Wrong(f"{_kind_of(raw)} where a text is wanted; choose one of {shown}")
    near = difflib.get_close_matches(raw, [each for each in choices if each], n=1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    raise Wrong(f'"{rules.shown(raw)}" is not a choice; {hint}choose one of {shown}')


def _kind_of(raw: object) -> str:
    if isinstance(raw, bool):
        return f"{_as_toml(raw)} (true or false)"
    if isinstance(raw, str):
        return f'"{rules.shown(raw)}" (a text)'
    if isinstance(raw, int | float):
        return f"{raw} (a number)"
    return "a list" if isinstance(raw, list) else "a table" if isinstance(raw, dict) else "a date"


def _as_toml(raw: object) -> str:
    if isinstance(raw, bool):
        return "true" if raw else "false"
    return f'"{rules.shown(raw)}"' if isinstance(raw, str) else rules.shown(raw)


def _write_instead(kind: object, raw: object) -> str:
    if kind is str and isinstance(raw, int | float | date) and not isinstance(raw, bool):
        return f'"{raw}"'
    if isinstance(raw, str) and kind is int and raw.strip().isdigit():
        return raw.strip()
    if isinstance(raw, str) and kind is bool and raw.lower() in {"true", "yes", "on", "1"}:
        return "true"
    if isinstance(raw, str) and kind is bool:
        return "false"
    return {str: '"…"', int: "a number", bool: "true or false"}[cast("type[object]", kind)]


def _example(row: type[object], key: str) -> str:
    rule = rules.rule_for(row, key)
    complaint = rule("") if rule is not None else None
    return complaint.partition("; ")[2] if complaint else f"add {key} = …"


def _neutral(kind: object) -> object:
    if typing.get_origin(kind) is tuple:
        return ()
    return {str: "", int: 0, bool: False}.get(cast("type[object]", kind), "")
