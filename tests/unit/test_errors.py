"""Every error tells a client something safe, of the class its digit promises."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from relayd import errors


def tree(kind: type[errors.RelaydError] = errors.RelaydError) -> Iterator[type[errors.RelaydError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from tree(below)


@pytest.mark.parametrize("kind", list(tree()))
def test_code_and_enhanced_code_are_of_one_class(kind: type[errors.RelaydError]) -> None:
    assert 400 <= kind.code < 600
    assert kind.enhanced.startswith(f"{kind.code // 100}.")
    assert kind.public.isascii()
    assert kind.public.isprintable()


@pytest.mark.parametrize("kind", list(tree(errors.Unavailable)))
def test_what_may_come_back_is_never_permanent(kind: type[errors.RelaydError]) -> None:
    assert kind.code < 500


def test_all_problems_of_a_configuration_are_kept() -> None:
    error = errors.ConfigError(["a", "b"])

    assert error.problems == ["a", "b"]
    assert str(error) == "a; b"


def test_a_missing_token_says_who_can_mend_it() -> None:
    error = errors.TokenUnavailable("7000215", "wrong secret", configuration=True)

    assert (error.cause, error.configuration, error.retry_after_s) == ("7000215", True, None)
    assert str(error) == "7000215: wrong secret"
