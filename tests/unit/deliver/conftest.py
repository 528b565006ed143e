"""The scene that the tests of the courier and its parts play on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from tests.courier_scene import Scene


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A courier with fakes around it, stopped afterwards; `lines` is what it logs."""
    with structlog.testing.capture_logs() as lines:
        made = Scene()
        made.lines = lines  # type: ignore[assignment]  # the same dicts, by another name
        yield made
        made.end()
