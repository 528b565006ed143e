"""Every process is killed at random under load: what was answered 250 arrives, whole.

Duplicates are allowed (Graph has no idempotency key, ADR 0004), but each must be explained
by the journal: more than one attempt of that message.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.load import Load
from tests.relay_process import RelayProcess, wait_until
from tests.sandbox_client import Delivered
from tests.sandbox_process import SandboxProcess, start_sandbox

NOBODY_SERVES = 69  # EX_UNAVAILABLE, sysexits.h
CHAOS_S = float(os.environ.get("RELAYD_CHAOS_SECONDS", "60"))


def kill_something(relay: RelayProcess, dice: random.Random) -> str:
    """SIGKILL one process of the relay; returns which kind."""
    kind = dice.choice(["worker", "worker", "worker", "cached", "master"])
    pids = relay.pids(kind)
    if not pids:
        return ""
    os.kill(dice.choice(pids), signal.SIGKILL)
    if kind == "master":
        assert relay.process is not None
        relay.process.wait(10)
        relay.start()  # as systemd would
    return kind


@pytest.mark.slow(100)
@pytest.mark.timeout(400)
def test_what_was_acknowledged_arrives_whatever_is_killed(tmp_path: Path) -> None:
    dice = random.Random(20261120)
    with start_sandbox(tmp_path / "sandbox") as sandbox:
        # A minute of load is more than Exchange takes in five: not what is tried here.
        sandbox.client.knobs(requests_per_window=0, octets_per_window=0, recipients_per_day=0)
        relay = RelayProcess(
            tmp_path / "relay",
            sandbox.upstream_toml(messages_per_minute=0, mailbox="alerts@contoso.com"),
        )
        relay.start()
        load = Load(relay.port)
        try:
            load.start()
            killed = chaos(relay, dice)
            load.stop()
            wait_until_empty(relay)
            judge(sandbox, relay, load, killed)
        finally:
            relay.stop()


def chaos(relay: RelayProcess, dice: random.Random) -> dict[str, int]:
    """Kill for CHAOS_S seconds; returns how many of which."""
    killed: dict[str, int] = {}
    deadline = time.monotonic() + CHAOS_S
    while time.monotonic() < deadline:
        time.sleep(dice.uniform(0.3, 2.5))
        kind = kill_something(relay, dice)
        killed[kind] = killed.get(kind, 0) + 1
    return killed


def wait_until_empty(relay: RelayProcess) -> None:
    """Wait until nothing waits; a message that is stuck is shown."""

    def is_empty() -> bool:
        done = relay.cli("queue", "list", "--state", "waiting", "--json", check=False)
        if done.returncode == NOBODY_SERVES:  # killed a moment ago: the master waits some seconds
            return False
        assert done.returncode == 0, (done.returncode, done.stderr)
        return not json.loads(done.stdout)

    wait_until(is_empty, seconds=120, told=f"still waiting; log ends:\n{relay.log()[-4000:]}")


def judge(sandbox: SandboxProcess, relay: RelayProcess, load: Load, killed: dict[str, int]) -> None:
    """Compare promises with arrivals; every duplicate must have an explanation."""
    arrived: dict[str, list[Delivered]] = {}
    for one in sandbox.client.messages():
        arrived.setdefault(one.x_field("X-Load-Id"), []).append(one)
    lost = [name for name in load.acknowledged if name not in arrived]
    damaged = [
        name
        for name, digest in load.acknowledged.items()
        if any(one.body_sha256 != digest for one in arrived.get(name, []))
    ]
    twice = {name: copies for name, copies in arrived.items() if len(copies) > 1}
    unexplained = [name for name, copies in twice.items() if not is_explained(relay, copies)]
    print(
        f"killed {killed}; {len(load.acknowledged)} acknowledged, {len(arrived)} arrived, "
        f"{len(twice)} twice ({len(unexplained)} unexplained), {len(lost)} lost"
    )
    assert killed.get("worker"), "nothing was killed"
    assert len(load.acknowledged) > 200
    assert lost == []
    assert damaged == []
    assert unexplained == []


def is_explained(relay: RelayProcess, copies: list[Delivered]) -> bool:
    """Tell whether the journal has an attempt for each copy."""
    found = relay.json("queue", "list", "--message-id", copies[0].message_id, "--state", "all")
    if len(found) != 1:
        return False
    trace = relay.json("queue", "trace", found[0]["id"])
    return len(trace["attempts"]) >= len(copies)
