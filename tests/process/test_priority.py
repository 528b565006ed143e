"""What is urgent does not wait for what is not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.load import submit
from tests.relay_process import HIGH, LOW, NORMAL, PRIORITIES, RelayProcess, wait_until
from tests.sandbox_process import SandboxProcess, start_sandbox


@pytest.mark.slow(12)
@pytest.mark.timeout(180)
def test_high_priority_is_among_the_next_two_to_leave_and_low_is_last(tmp_path: Path) -> None:
    with start_sandbox(tmp_path / "sandbox") as sandbox:
        sandbox.client.knobs(requests_per_window=0, graph_latency_s=2.0)
        toml = sandbox.upstream_toml(messages_per_minute=0, concurrency=1)
        with RelayProcess(tmp_path / "relay", toml, more=PRIORITIES) as relay:
            for number in range(10):
                submit(relay.port, f"low-{number}", source=LOW)
            for number in range(50):
                submit(relay.port, f"normal-{number}", source=NORMAL)
            submit(relay.port, "high", source=HIGH)
            gone = sandbox.client.counts()["messages"]
            assert gone < 30, "they left before they could be overtaken"
            sandbox.client.wait_for_deliveries(gone + 3)
            sandbox.client.knobs(graph_latency_s=0.01)
            sandbox.client.wait_for_deliveries(61, seconds=120)
            order = [one.x_field("X-Load-Id") for one in sandbox.client.messages()]
        assert sandbox.client.in_flight_max("alerts@contoso.com") == 1
    assert order.index("high") - gone <= 1, order
    late = [name.partition("-")[0] for name in order[gone + 3 :]]
    # Two workers look for the best independently: one row may be in hand already.
    assert "normal" not in late[late.index("low") + 3 :], order


@pytest.mark.slow(12)
@pytest.mark.timeout(180)
def test_urgent_mail_takes_no_other_along_past_the_pace(tmp_path: Path) -> None:
    with start_sandbox(tmp_path / "sandbox") as sandbox:
        toml = sandbox.upstream_toml(messages_per_minute=6)
        with RelayProcess(tmp_path / "relay", toml, more=PRIORITIES) as relay:
            began = time.monotonic()
            for number in range(60):
                submit(relay.port, f"normal-{number}", source=NORMAL)
            sandbox.client.wait_for_deliveries(6)
            for number in range(3):
                submit(relay.port, f"high-{number}", source=HIGH)
                wait_until(lambda: f"high-{number}" in arrived(sandbox))  # noqa: B023  called here
            time.sleep(2)  # they used to leave a hundred a second
            others = [name for name in arrived(sandbox) if name.startswith("normal")]
            minutes = 1 + (time.monotonic() - began) // 60
            # With each urgent one may leave that was leased while nobody knew which there are.
            assert len(others) <= 6 * minutes + 3


def arrived(sandbox: SandboxProcess) -> list[str]:
    """Return which messages Microsoft has."""
    return [one.x_field("X-Load-Id") for one in sandbox.client.messages()]
