"""What holds for every test."""

from __future__ import annotations

import contextlib
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.observe import metrics

_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1)

with contextlib.suppress(ModuleNotFoundError):  # where one room is tried with other libraries
    from hypothesis import settings

    # No test may fail because the machine is slow.
    settings.register_profile("relayd", deadline=None)
    settings.load_profile("relayd")


def pytest_configure(config: pytest.Config) -> None:
    """Hear Ctrl-C, and let what we start hear it.

    A shell makes what it does not wait for deaf to SIGINT, and all that it starts: a CI's job
    would find that no program can be stopped by Ctrl-C.
    """
    del config
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _signals_stay_as_they_were() -> Iterator[None]:
    """Undo what a test of a master did to this process: the next may want to hear Ctrl-C."""
    before = {number: signal.getsignal(number) for number in _HANDLED}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _counts_begin_at_nothing() -> None:
    """Forget what the tests before counted: a process has one table of metrics."""
    metrics.clear()


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user may read; pytest keeps its own shut, and shuts it at each start."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
