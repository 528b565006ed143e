"""A clock before this program was made (no battery, no NTP yet): accept, keep, say so, wait.

The relay's processes ask one place for the wall clock, and there they are given another, whose
error stands in a file. (libfaketime 0.9.10 cannot do it: with its own monotonic clock CPython's
locks wait for ever, and without it sleep fails with EINVAL.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load import submit
from tests.relay_process import RelayProcess, wait_until
from tests.sandbox_process import SandboxProcess, start_sandbox

pytestmark = [pytest.mark.slow(8), pytest.mark.timeout(240)]

WITH_ANOTHER_CLOCK = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from relayd import clock
from relayd.__main__ import main

error = Path({path!r})

def utcnow(self):
    return datetime.now(UTC) + timedelta(days=float(error.read_text() or 0))

clock.SystemClock.utcnow = utcnow
sys.exit(main())
"""
FIFTY_YEARS = -50 * 365.25


class Wrong:
    """A relay and the error of its clock, in days."""

    def __init__(self, folder: Path, sandbox: SandboxProcess) -> None:
        self.sandbox = sandbox
        toml = sandbox.upstream_toml(messages_per_minute=0)
        self.relay = RelayProcess(folder / "relay", toml)
        self._error = folder / "error"

    def is_wrong_by(self, days: float) -> None:
        new = self._error.with_suffix(".new")
        new.write_text(str(days))
        new.replace(self._error)

    def start(self) -> None:
        self.relay.start(program=("-c", WITH_ANOTHER_CLOCK.format(path=str(self._error))))

    def keeps(self, count: int) -> list[str]:
        """Have mail accepted that does not leave; returns its IDs."""
        ids = [submit(self.relay.port, f"early-{number}") for number in range(count)]
        assert sorted(one["id"] for one in self.relay.queue()) == sorted(ids)
        assert self.sandbox.client.counts()["send_requests"] == 0
        return ids


@pytest.fixture
def wrong(tmp_path: Path) -> Iterator[Wrong]:
    with start_sandbox(tmp_path / "sandbox") as sandbox:
        wrong = Wrong(tmp_path, sandbox)
        wrong.is_wrong_by(FIFTY_YEARS)
        try:
            yield wrong
        finally:
            wrong.relay.stop(fast=True)


def test_with_a_wrong_clock_mail_is_kept_and_leaves_when_the_clock_is_set(wrong: Wrong) -> None:
    wrong.start()
    relay = wrong.relay
    wait_until(lambda: relay.lines("clock.wrong"), told=relay.log)
    assert "sending waits until the clock is right" in relay.lines("clock.wrong")[0]
    wrong.keeps(5)
    assert all(one["accepted_at"].startswith("1976") for one in relay.queue())
    wrong.is_wrong_by(0)
    wait_until(lambda: relay.lines("clock.right"), told=relay.log)
    wrong.sandbox.client.wait_for_deliveries(5)
    relay.wait_empty()
    # Fifty years old at once, and nobody gave it up.
    assert relay.queue("failed") == []
    submit(relay.port, "later")
    wrong.sandbox.client.wait_for_deliveries(6)


def test_mail_of_a_wrong_clock_leaves_after_a_start_with_the_right_one(wrong: Wrong) -> None:
    wrong.start()
    wrong.keeps(5)
    assert wrong.relay.stop() == 0
    wrong.is_wrong_by(0)
    wrong.start()
    wrong.sandbox.client.wait_for_deliveries(5)
    wrong.relay.wait_empty()
    assert wrong.relay.queue("failed") == []
