"""What has another shape than it should is nothing, never an error."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from relayd.cli.answers import list_of, mapping_of, moment_of, number_of, rows_of, text_of
from relayd.master.frames import Json


@pytest.mark.parametrize("value", [None, 3, "text", True, {"a": 1}])
def test_what_is_no_list_is_an_empty_one(value: Json) -> None:
    assert list_of(value) == []
    assert rows_of(value) == []


def test_only_the_objects_of_a_list_are_rows() -> None:
    assert rows_of([{"a": 1}, 3, None, "x"]) == [{"a": 1}]


@pytest.mark.parametrize("value", [None, 3, "text", [1]])
def test_what_is_no_object_is_an_empty_one(value: Json) -> None:
    assert mapping_of(value) == {}
    assert mapping_of({"a": 1}) == {"a": 1}


def test_numbers_and_texts_are_read_and_others_are_zero_or_empty() -> None:
    assert [number_of(value) for value in (3, 2.5, "3", None)] == [3.0, 2.5, 0.0, 0.0]
    assert [text_of(value) for value in ("a", 3, None)] == ["a", "3", ""]


def test_moments_are_aware_and_a_date_is_its_beginning() -> None:
    assert moment_of("2026-11-20") == datetime(2026, 11, 20, tzinfo=UTC)
    assert moment_of("2026-11-20T10:00:00.000Z") == datetime(2026, 11, 20, 10, tzinfo=UTC)
    assert [moment_of(value) for value in ("", "soon", None, 3)] == [None] * 4
