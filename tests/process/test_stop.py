"""A stop loses nothing: what was acknowledged has left, or is found by the next start."""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load import Load, submit, verdict
from tests.relay_process import (
    HIGH,
    LOW,
    NORMAL,
    PRIORITIES,
    RelayProcess,
    processes,
    wait_until,
)
from tests.sandbox_process import SandboxProcess, start_sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path / "sandbox") as sandbox:
        sandbox.client.knobs(requests_per_window=0, octets_per_window=0, recipients_per_day=0)
        yield sandbox


def a_relay(folder: Path, sandbox: SandboxProcess, **upstream: object) -> RelayProcess:
    toml = sandbox.upstream_toml("lab", messages_per_minute=0, **upstream)
    return RelayProcess(folder / "relay", toml, more=PRIORITIES)


@pytest.mark.slow(15)
@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "relayd stop"])
def test_after_a_stop_under_load_every_promise_is_kept(
    how: str, tmp_path: Path, sandbox: SandboxProcess
) -> None:
    # Slower than it is accepted, so that some has left and some has not.
    sandbox.client.knobs(graph_latency_s=0.1)
    with contextlib.ExitStack() as stack:
        relay = stack.enter_context(a_relay(tmp_path, sandbox))
        load = stack.enter_context(Load(relay.port, pause_s=0))
        fresh = stack.enter_context(
            Load(relay.port, pause_s=0, new_connection_each=True, name="new-")
        )
        wait_until(
            lambda: len(load.acknowledged) > 100 and len(fresh.acknowledged) > 50,
            told="no mail is accepted",
        )
        assert relay.process is not None
        family = set(processes(relay.pid))
        if how == "relayd stop":
            relay.cli("stop")
        else:
            os.kill(relay.pid, getattr(signal, how))
        assert relay.process.wait(60) == 0
        assert not any(pid in processes(pid) for pid in family), "a process was left behind"
        load.stop()
        fresh.stop()
        if how != "SIGINT":
            # Nobody who had a session was cut off; who comes too late is told by the kernel.
            broken = load.broken + fresh.broken
            assert [one for one in broken if one.startswith("session")] == []
        promised = load.acknowledged | fresh.acknowledged
        ids = load.queue_ids | fresh.queue_ids
        arrived = {one.x_field("X-Load-Id") for one in sandbox.client.messages()}
        # The command line reads the spool of a relay that is stopped.
        kept = {one["id"] for one in relay.json("queue", "list")}
        assert kept
        assert [name for name in promised if name not in arrived and ids[name] not in kept] == []
        sandbox.client.knobs(graph_latency_s=0)
        relay.start()
        relay.wait_empty()
        told = verdict(promised, sandbox.client)
        assert told.lost == []
        assert told.damaged == []
        if how != "SIGINT":
            assert told.twice == {}
        assert relay.stop() == 0


@pytest.mark.slow(10)
@pytest.mark.timeout(180)
def test_while_stopping_high_priority_leaves_and_the_rest_is_kept(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    sandbox.client.knobs(graph_latency_s=1.0)
    with a_relay(tmp_path, sandbox, concurrency=1) as relay:
        for number in range(20):
            submit(relay.port, f"normal-{number}", source=NORMAL)
        for number in range(4):
            submit(relay.port, f"high-{number}", source=HIGH)
        before = {one.x_field("X-Load-Id") for one in sandbox.client.messages()}
        assert relay.stop(seconds=120) == 0
        after = {one.x_field("X-Load-Id") for one in sandbox.client.messages()}
        assert after >= {f"high-{number}" for number in range(4)}
        # Of the others only what was under way, in either worker.
        assert len([name for name in after - before if name.startswith("normal")]) <= 3
        kept = relay.json("queue", "list")
        assert {one["priority"] for one in kept} == {"normal"}
        assert len(kept) == 24 - len(after)
        sandbox.client.knobs(graph_latency_s=0)
        relay.start()
        relay.wait_empty()
        assert sandbox.client.counts()["messages"] == 24


@pytest.mark.slow(6)
@pytest.mark.timeout(120)
def test_a_stop_that_is_hurried_on_its_way_is_obeyed_by_the_workers_themselves(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    """They close the spool in order; before, the master had to kill them 5 s later."""
    with a_relay(tmp_path, sandbox) as relay:
        with smtplib.SMTP("127.0.0.1", relay.port, "device.test", timeout=60) as device:
            device.ehlo()
            device.mail("device@contoso.com")
            os.kill(relay.pid, signal.SIGTERM)
            wait_until(lambda: relay.status().get("state") == "stopping")
            assert relay.lines("process.cut") == []
            os.kill(relay.pid, signal.SIGINT)
            assert relay.process is not None
            assert relay.process.wait(30) == 0
            device.close()
        assert len(relay.lines("process.cut")) == 1
        assert relay.lines("child.killed") == []
        assert relay.lines("child.died") == []


@pytest.mark.slow(6)
@pytest.mark.timeout(180)
def test_a_full_disk_refuses_low_priority_first_and_high_last(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    relay = a_relay(tmp_path, sandbox)
    with relay:
        # The floor is what low priority needs twice of, and high the half.
        for share, taken in ((0.75, {NORMAL, HIGH}), (1.5, {HIGH}), (4.0, set[str]())):
            free = os.statvfs(relay.folder).f_bavail * os.statvfs(relay.folder).f_frsize
            floor = min(int(free * share), 999_000_000_000)
            relay.configure(PRIORITIES, **{'"16MiB"': str(floor)})
            assert "make room" in relay.cli("check").stdout or share < 1
            relay.cli("reload")
            for source in (LOW, NORMAL, HIGH):
                if source in taken:
                    submit(relay.port, f"{share}-{source}", source=source)
                    continue
                with pytest.raises(smtplib.SMTPResponseException) as refused:
                    submit(relay.port, f"{share}-{source}", source=source)
                assert refused.value.smtp_code == 452
        # Room is made: all is taken again.
        relay.configure(PRIORITIES)
        relay.cli("reload")
        submit(relay.port, "again", source=LOW)
        relay.wait_empty()
        assert sandbox.client.counts()["messages"] == 4


@pytest.mark.slow(8)
@pytest.mark.timeout(120)
def test_mail_left_in_a_spool_that_the_next_start_does_not_use_is_told(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    sandbox.client.knobs(graph_latency_s=60.0)
    relay = a_relay(tmp_path, sandbox)
    with relay:
        for number in range(8):
            submit(relay.port, f"left-{number}")
        assert relay.lines("spool.left_behind") == []
        assert relay.stop(fast=True) == 0
        before = relay.path.read_text()
        relay.path.write_text(before.replace("/spool/spool.db", "/other/spool.db"))
        sandbox.client.knobs(graph_latency_s=0)
        relay.start()
        wait_until(lambda: relay.lines("spool.left_behind"), told=relay.log)
        (line,) = relay.lines("spool.left_behind")
        assert "level=error" in line
        assert f"{relay.folder}/spool/spool.db" in line
        wait_until(lambda: "spool.left_behind" in str(relay.status()["errors"]))
        wait_until(lambda: "nobody sends them" in str(relay.status()["left_behind"]))
        assert "nobody sends them" in relay.cli("check").stdout
        assert "nobody sends them" in relay.cli("status").stdout
        assert relay.stop() == 0

        relay.path.write_text(before)
        relay.start()
        relay.wait_empty()
        assert {one.x_field("X-Load-Id") for one in sandbox.client.messages()} >= {
            f"left-{number}" for number in range(8)
        }
