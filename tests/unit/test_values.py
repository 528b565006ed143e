"""A value is compared, hashed and shown by its fields; nobody may set them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import field, fields, replace
from pathlib import Path

import pytest

from relayd.values import frozen


@frozen
class Point:
    x: int
    y: int = 2


@frozen(kw_only=True)
class Named:
    name: str
    secret: str = field(default="", repr=False)


def test_values_are_compared_hashed_and_shown_by_their_fields() -> None:
    assert Point(1) == Point(1, 2) != Point(1, 3)
    assert {Point(1): "here"}[Point(1, 2)] == "here"
    assert repr(Named(name="ups", secret="x")) == "Named(name='ups')"
    assert [one.name for one in fields(Point)] == ["x", "y"]
    assert replace(Point(1), y=5) == Point(1, 5)


def test_a_value_has_room_for_its_fields_and_nothing_else() -> None:
    assert not hasattr(Point(1), "__dict__")
    with pytest.raises(AttributeError):
        Point(1).z = 3  # type: ignore[attr-defined]  # that is what is tried


def test_only_by_name_means_only_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        Named("ups")  # type: ignore[call-arg]  # that is what is tried


@pytest.mark.slow(10)
def test_the_type_checker_refuses_to_set_a_field(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from relayd.values import frozen\n@frozen\nclass A:\n    x: int\nA(1).x = 2\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", str(tmp_path)]
    told = subprocess.run([*command, str(wrong)], check=False, capture_output=True, text=True)
    assert 'Property "x" defined in "A" is read-only' in told.stdout
