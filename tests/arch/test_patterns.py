"""No pattern uses what Python before 3.11.5, as on Debian 12, matches wrongly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pkgutil import walk_packages
from re import _constants as sre  # type: ignore[attr-defined]  # the tree has no public name
from re import _parser as parser  # type: ignore[attr-defined]  # likewise
from typing import Any

import pytest

import relayd

# A possessive repeat of one of these is right in every version.
SINGLE = {sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN, sre.CATEGORY}
# Importing these starts something.
STARTS = {"relayd.worker", "relayd.__main__"}


def patterns() -> Iterator[tuple[str, re.Pattern[Any]]]:
    """Return every pattern a module of relayd keeps, by its name."""
    for module in walk_packages(relayd.__path__, "relayd."):
        if module.name in STARTS:
            continue
        for name, value in vars(import_module(module.name)).items():
            if isinstance(value, re.Pattern):
                yield f"{module.name}.{name}", value


def doubtful(tree: Any) -> Iterator[str]:  # the parser's tree is lists of tuples of anything
    """Return what is doubtful in a parsed pattern: gh-106052, gh-101955."""
    for what, detail in tree:
        if what is sre.ATOMIC_GROUP:
            yield "an atomic group"
        if what is sre.POSSESSIVE_REPEAT:
            body = detail[2]
            if len(body) != 1 or body[0][0] not in SINGLE:
                yield "a possessive group"
        for part in detail if isinstance(detail, tuple) else (detail,):
            for one in part if isinstance(part, list) else (part,):
                if isinstance(one, parser.SubPattern):
                    yield from doubtful(one)


def found(pattern: re.Pattern[Any]) -> list[str]:
    text = pattern.pattern
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    return list(doubtful(parser.parse(text, pattern.flags & ~re.UNICODE)))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"a*+[bc]++.?+\d*+", []),
        (r"(?:ab|c)*+", ["a possessive group"]),
        (rb"x(?:y|(?:ab)++)", ["a possessive group"]),
        (r"(?=(?>a))", ["an atomic group"]),
        (r"((a)(?(2)(?:bc)*+|d))?", ["a possessive group"]),
    ],
)
def test_the_search_itself_finds_them(pattern: str | bytes, expected: list[str]) -> None:
    assert found(re.compile(pattern)) == expected


def test_no_pattern_has_a_possessive_or_an_atomic_group() -> None:
    every = dict(patterns())
    assert "relayd.message.headers._FIELDS" in every
    assert {name: found(one) for name, one in every.items() if found(one)} == {}
