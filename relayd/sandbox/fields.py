"""JSON into frozen dataclasses and back, with every problem named at once.

The control API takes objects whose keys are a dataclass's fields. A key that does not
exist or a value of another type is an error that says what would be right: a test whose
knob has a typing mistake must fail at the knob, not pass for the wrong reason.
"""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_Value = TypeVar("_Value")


class BadFields(ValueError):
    """What was sent does not fit; `problems` lists every reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def changed(current: _Value, patch: Json) -> _Value:
    """Return the dataclass value `current` with the keys of `patch` replaced.

    raises: BadFields - `patch` is no object, or a key or value does not fit.
    """
    return dataclasses.replace(current, **_fitting(type(current), patch))  # type: ignore[type-var]  # a dataclass by contract


def made(shape: type[_Value], source: Json) -> _Value:
    """Return a new `shape` from a JSON object; raises BadFields."""
    given = _fitting(shape, source)
    missing = [
        field.name
        for field in dataclasses.fields(shape)  # type: ignore[arg-type]  # a dataclass by contract
        if field.name not in given
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise BadFields([f"{name}: missing" for name in missing])
    return shape(**given)


def shown(value: object) -> Json:
    """Return `value` (dataclass, tuple, plain) as JSON-able data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: shown(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple | list):
        return [shown(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"no JSON form of {type(value).__name__}")


def _fitting(shape: type, source: Json) -> dict[str, Any]:
    if not isinstance(source, dict):
        raise BadFields(["expected a JSON object"])
    kinds = get_type_hints(shape)
    known = {field.name for field in dataclasses.fields(shape)}
    given: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in source.items():
        if name not in known:
            problems.append(f"{name}: no such key{_nearest(name, known)}")
            continue
        try:
            given[name] = _fit(kinds[name], value)
        except BadFields as error:
            problems += [f"{name}.{problem}" for problem in error.problems]
        except TypeError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise BadFields(problems)
    return given


def _nearest(name: str, known: set[str]) -> str:
    close = get_close_matches(name, known, 1)
    return f", did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(known))}"


def _fit(kind: Any, value: Json) -> Any:
    """Return `value` as `kind`; raises TypeError with what was expected, or BadFields."""
    origin = get_origin(kind)
    if origin is Literal:
        if value in get_args(kind):
            return value
        raise TypeError(f"{value!r} is none of {', '.join(map(repr, get_args(kind)))}")
    if origin in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        (inner,) = [arg for arg in get_args(kind) if arg is not NoneType]
        return _fit(inner, value)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError("expected a list")
        return tuple(_fit(get_args(kind)[0], item) for item in value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return made(kind, value)
    return _plain(kind, value)


def _plain(kind: type, value: Json) -> Json:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python, not to whoever wrote true where 1 was meant.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"expected {kind.__name__}, not {value!r}")
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
        raise TypeError("may not be negative")
    return value
