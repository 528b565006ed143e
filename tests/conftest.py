"""What holds for every test."""

from __future__ import annotations

import signal

import pytest
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
