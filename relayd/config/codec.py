"""Config <-> JSON, for the sealed memfd between checker, master and children.

The loader turns text into values and resolves them; here they are only carried, so nothing is
defaulted or judged: what was checked is what runs. Lean, because the master reads it: json,
dataclasses and typing.

SECURITY: secrets are in it in clear. The octets go into a memfd that only our own processes
hold, never into a file, a log or the control socket.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import TypeVar, cast

from relayd.config.model import Config, Secret

Row = TypeVar("Row")


def dumps(config: Config) -> bytes:
    """Return the whole configuration, secrets included, as UTF-8 JSON."""
    return json.dumps(_plain(config), separators=(",", ":")).encode()


def loads(octets: bytes) -> Config:
    """Return the configuration `dumps` was given.

    raises: ValueError - not JSON, a key missing or unknown, a value of another shape: written
            by another version, which the master must not run with.
    """
    return _row(Config, json.loads(octets))


def _plain(value: object) -> object:
    if isinstance(value, Secret):
        return value.reveal()
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


def hints(row: type[object]) -> Mapping[str, object]:
    """Return field name -> type of a configuration class, `Annotated` marks kept."""
    return typing.get_type_hints(row, include_extras=True)


def _row(row: type[Row], value: object) -> Row:
    wanted = hints(row)
    if not isinstance(value, dict) or value.keys() != wanted.keys():
        raise ValueError(f"not a {row.__name__} of this version")
    return row(**{name: _typed(kind, value[name]) for name, kind in wanted.items()})


def _typed(kind: object, value: object) -> object:
    if typing.get_origin(kind) is typing.Annotated:
        return _typed(typing.get_args(kind)[0], value)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{value!r:.40} is no list")
        return tuple(_typed(typing.get_args(kind)[0], each) for each in value)
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{value!r:.40} is not a value of this version")
        return value
    if kind is Secret and isinstance(value, str):
        return Secret(value)
    if dataclasses.is_dataclass(kind):
        return _row(cast("type[object]", kind), value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"a value of type {type(value).__name__} where {kind} belongs")
    return value
