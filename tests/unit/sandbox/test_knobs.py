"""Knobs, applications and mailboxes are values: swapped whole, never changed under a request."""

from __future__ import annotations

import dataclasses

import pytest

from relayd.sandbox import knobs


def values() -> list[type]:
    return [
        kind
        for kind in vars(knobs).values()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    ]


@pytest.mark.parametrize("kind", values(), ids=lambda kind: kind.__name__)
def test_a_value_cannot_be_changed_in_place(kind: type) -> None:
    params = kind.__dataclass_params__  # type: ignore[attr-defined]  # what dataclass leaves behind

    assert params.frozen


def test_the_defaults_are_microsofts_figures() -> None:
    default = knobs.Knobs()

    assert default.concurrency == 4
    assert default.body_limit == 4 * 1024 * 1024
    assert default.token_lifetime_s == 3599
    assert default.time_factor == 1
