"""Threads for files: errors are values until somebody waits."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import pytest

from relayd.clock import SYSTEM
from relayd.errors import SpoolFull
from relayd.spool.files import Files


@pytest.fixture
def files() -> Iterator[Files]:
    made = Files(SYSTEM)
    yield made
    made.close()


def no_room() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "x")


def test_a_job_is_done_in_another_thread(files: Files) -> None:
    assert files.call(threading.get_ident) != threading.get_ident()


def test_an_error_comes_back_as_a_value_or_as_ours(files: Files) -> None:
    assert isinstance(files.start(no_room).get(), OSError)
    with pytest.raises(SpoolFull, match="No space left on device"):
        files.call(no_room)
