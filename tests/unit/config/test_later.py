"""Keys of later versions: their tables agree with the model, their words say the way out."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from relayd.config import later, model
from relayd.config.codec import hints


def test_every_row_names_a_field_of_the_model() -> None:
    for row, fields in later.VALUES.items():
        assert set(fields) <= set(hints(row)), row


def test_the_default_can_always_be_had() -> None:
    for row, fields in later.VALUES.items():
        for field in dataclasses.fields(typing.cast("type[typing.Any]", row)):
            if field.name not in fields:
                continue
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            assert default in fields[field.name], field.name


def test_a_table_of_the_model_is_none_of_later() -> None:
    assert not set(later.TABLES) & set(hints(model.Config))
    for row, keys in later.KEYS.items():
        assert not set(keys) & set(hints(row))


def test_a_childs_field_is_judged_like_its_parents() -> None:
    assert later.values_now(model.Device, "expect_every") == (0.0,)
    assert later.values_now(model.Device, "networks") is None


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (("queued",), 'write "queued"'),
        ((False,), "write false"),
        ((True,), "write true"),
        ((0.0,), 'write "0"'),
        ((10_000, 0), "write 10000 or 0"),
        (((),), "write []"),
        (([],), "write []"),
        ((model.Secret(),), 'write ""'),
    ],
)
def test_a_refusal_says_what_may_be_written(allowed: later.Allowed, words: str) -> None:
    assert later.refusal(allowed) == f"not available yet; leave it out or {words}"
