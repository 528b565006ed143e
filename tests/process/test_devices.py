"""A device's way in, with a real relay: knocked, refused, shown with why, added, let in.

What is remembered of a peer outlives the workers that met it; and what one worker knows of an
outage, every worker tells.
"""

from __future__ import annotations

import os
import signal
import smtplib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.relay_process import RelayProcess, wait_until
from tests.sandbox_process import SandboxProcess, start_sandbox

pytestmark = [pytest.mark.slow(20), pytest.mark.timeout(180)]

ADDRESS = "127.0.0.44"
CONTENT = "From: ups@nas.local\r\nSubject: on battery\r\n\r\n17 minutes\r\n"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path / "sandbox") as sandbox:
        yield sandbox


@pytest.fixture
def relay(tmp_path: Path, sandbox: SandboxProcess) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path / "relay", sandbox.upstream_toml(messages_per_minute=0)) as relay:
        yield relay


def knock(relay: RelayProcess, recipient: str = "ops@contoso.com") -> int:
    """Send as the device would; returns the code of the reply that decided."""
    with smtplib.SMTP("127.0.0.1", relay.port, "ups", 30, (ADDRESS, 0)) as client:
        try:
            client.sendmail("ups@nas.local", [recipient], CONTENT)
        except smtplib.SMTPRecipientsRefused as error:
            return error.recipients[recipient][0]
        except smtplib.SMTPResponseException as error:
            return error.smtp_code
        return 250


def shown(relay: RelayProcess, name: str = ADDRESS) -> dict[str, Any]:
    done = relay.cli("device", "show", name, "--json", check=False)
    return dict(relay.json("device", "show", name)) if done.returncode == 0 else {}


def test_a_device_that_was_refused_is_shown_with_why_and_let_in_by_one_command(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    assert knock(relay) == 530
    wait_until(lambda: shown(relay), told="nobody remembers it")
    story = shown(relay)
    assert "no [[device]] has this address" in story["refusal"]["reason"]
    assert f"relayd device add {ADDRESS}" in story["refusal"]["do"]
    assert "C: mail FROM:<ups@nas.local>" in " ".join(story["refusal"]["transcript"])

    told = relay.json("device", "add", ADDRESS, "--name", "ups", "--from", "alerts@contoso.com")
    assert told["running"] == "reloaded"
    assert told["settings"][0]["port"] == relay.port
    assert knock(relay) == 250
    (mail,) = sandbox.client.wait_for(1)
    assert mail.addresses == {"ops@contoso.com"}

    assert knock(relay, "ceo@fabrikam.com") == 550
    wait_until(lambda: shown(relay, "ups").get("refused"), told="nobody remembers it")
    story = shown(relay, "ups")
    assert (story["accepted"], story["last"]["ip"]) == (1, ADDRESS)
    assert 'allow_to = ["contoso.com", "ceo@fabrikam.com"]' in story["refusal"]["do"]

    relay.cli("device", "delete", "ups")
    assert knock(relay) == 530


def test_what_is_remembered_outlives_reloads_and_workers(relay: RelayProcess) -> None:
    knock(relay)
    wait_until(lambda: shown(relay).get("refused") == 1, told=lambda: shown(relay))
    relay.cli("reload")
    before = relay.pids("worker")
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    # Of those killed some were leaving already, and have no successor.
    wait_until(lambda: len(set(relay.pids("worker")) - set(before)) >= 2)
    wait_until(relay.is_up)
    assert shown(relay)["refused"] == 1
    knock(relay)
    wait_until(lambda: shown(relay).get("refused") == 2, told=lambda: shown(relay))


def test_every_worker_tells_why_ready_mail_waits(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    relay.upstream = sandbox.upstream_toml(messages_per_minute=0, client_secret="wrong")
    relay.configure()
    relay.cli("reload")
    relay.cli("send", "--to", "a@contoso.com")
    wait_until(lambda: relay.status()["upstreams"]["lab"]["state"] != "up", told=relay.status)
    reasons = {row["reason"] for _ in range(6) for row in relay.queue()}
    assert reasons == {"lab is down (AADSTS7000215)"}
    (error,) = [row for row in relay.status()["errors"] if row["event"] == "upstream.down"]
    assert error["cause"] == "7000215"
    assert "Value (not the Secret ID)" in error["do"]
    assert relay.cli("status", "--nagios", check=False).returncode == 1
