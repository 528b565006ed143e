"""doctor and token against a running relay: real processes, the sandbox as Microsoft."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.relay_process import RelayProcess, clean_environment, wait_until
from tests.sandbox_process import SandboxProcess, start_sandbox

pytestmark = [pytest.mark.slow(15), pytest.mark.timeout(120)]

BOX = "alerts@contoso.com"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path) as made:
        yield made


@pytest.fixture
def relay(tmp_path: Path, sandbox: SandboxProcess) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path / "relay", sandbox.upstream_toml()) as made:
        yield made


def relayd(relay: RelayProcess, *words: str) -> tuple[int, Any]:
    """Run a command with --json; returns its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "relayd", "--json", "--config", str(relay.path), *words],
        capture_output=True,
        check=False,
        env=clean_environment(),
        timeout=90,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr.decode()


def steps(relay: RelayProcess) -> tuple[int, dict[str, Any]]:
    code, told = relayd(relay, "doctor")
    return code, {step["step"]: step for step in told[0]["steps"]}


def test_a_way_out_that_is_well(relay: RelayProcess, sandbox: SandboxProcess) -> None:
    code, found = steps(relay)
    assert code == 0
    assert {name: step["state"] for name, step in found.items()} == {
        "configuration": "ok", "secret": "ok", "relay": "ok", "dns": "ok", "tcp": "ok",
        "proxy": "skipped", "tls": "ok", "clock": "ok", "tenant": "ok", "token": "ok",
        "roles": "warning", "mailbox": "ok",
    }  # fmt: skip
    assert sandbox.client.counts()["messages"] == 0


def test_a_denial_is_told_once_and_then_exchange_is_left_alone(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    sandbox.client.app(str(sandbox.facts["client_id"]), roles=[])
    code, found = steps(relay)
    assert (code, found["mailbox"]["state"]) == (1, "problem")
    assert "New-ManagementRoleAssignment" in "\n".join(found["mailbox"]["commands"])
    # The running relay still holds a token from before.
    assert found["roles"]["commands"] == ["relayd token refresh lab"]
    asked = sandbox.client.counts()["send_requests"]
    code, found = steps(relay)
    assert (code, "not asked again before" in found["mailbox"]["text"]) == (1, True)
    assert sandbox.client.counts()["send_requests"] == asked


def test_mail_held_for_a_denial_keeps_doctor_silent(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    sandbox.client.mailbox(BOX, denied="ErrorAccessDenied")
    code, told = relayd(relay, "send", "--to", "ops@contoso.com", "--wait")
    assert (code, told["state"]) == (1, "held")
    wait_until(lambda: steps(relay)[1]["relay"]["state"] == "warning", told="no held mail is told")
    asked = sandbox.client.counts()["send_requests"]
    code, found = steps(relay)
    assert "not asked again before" in found["mailbox"]["text"]
    assert "1 message held (ErrorAccessDenied)" in found["relay"]["text"]
    assert sandbox.client.counts()["send_requests"] == asked


def test_a_sender_that_is_refused_is_told_with_what_lets_it(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    upstream = sandbox.upstream_toml(allowed_senders=["ups@contoso.com"])
    with RelayProcess(tmp_path / "relay", upstream) as relay:
        told = relayd(relay, "send", "--to", "a@contoso.com", "--from", "ups@contoso.com", "--wait")
        assert told[1]["state"] == "held"
        wait_until(lambda: steps(relay)[1].get("senders", {}).get("state") == "problem")
        code, found = steps(relay)
    assert (code, found["mailbox"]["state"]) == (1, "ok")
    assert "Add-RecipientPermission" in found["senders"]["commands"][-1]


def test_a_secret_that_expired_is_told_by_doctor_and_by_the_running_relay(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    sandbox.client.app(
        str(sandbox.facts["client_id"]),
        secrets=[{"value": sandbox.facts["client_secret"], "id": "", "expired": True}],
    )
    code, found = steps(relay)
    assert (code, "AADSTS7000222" in found["token"]["text"]) == (1, True)
    code, (row,) = relayd(relay, "token", "refresh")
    assert (code, row["cause"]) == (1, "AADSTS7000222")
    code, (row,) = relayd(relay, "token", "test")
    assert (code, row["state"]) == (0, "ok")  # what was held stays in use to its end


def test_a_refreshed_token_is_used_by_every_worker(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    client_id = str(sandbox.facts["client_id"])
    sandbox.client.app(client_id, roles=[])
    assert relayd(relay, "token", "refresh", "lab")[1][0]["roles"] == []
    sandbox.client.app(client_id, roles=["Mail.Send"])
    code, (row,) = relayd(relay, "token", "refresh", "lab")
    assert (code, row["roles"]) == (0, ["Mail.Send"])
    assert row["app_id"] == client_id
    before = sandbox.client.counts()["token_requests"]
    for _ in range(8):  # the workers take turns
        assert relayd(relay, "token", "test")[1][0]["roles"] == ["Mail.Send"]
    assert sandbox.client.counts()["token_requests"] == before


def test_a_dropped_token_is_asked_for_anew(relay: RelayProcess, sandbox: SandboxProcess) -> None:
    wait_until(lambda: relayd(relay, "token", "test")[0] == 0)
    before = sandbox.client.counts()["token_requests"]
    assert relayd(relay, "token", "drop")[1] == [{"upstream": "lab", "state": "dropped"}]
    assert relayd(relay, "token", "drop")[1] == [{"upstream": "lab", "state": "none"}]
    code, (row,) = relayd(relay, "token", "test", "lab")
    assert (code, row["state"]) == (0, "ok")
    assert sandbox.client.counts()["token_requests"] == before + 1
    assert relayd(relay, "token", "test", "x")[0] == 2


def test_who_cannot_read_the_secret_has_the_relay_asked(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    text = relay.path.read_text()
    secret = f'client_secret = "{sandbox.facts["client_secret"]}"'
    relay.path.write_text(text.replace(secret, 'client_secret_env = "ONLY_THE_UNIT_HAS_IT"'))
    code, found = steps(relay)
    assert code == 0
    assert found["secret"]["state"] == "skipped"
    assert found["token"]["text"].startswith("the running relay has one")
    assert found["mailbox"]["state"] == "ok"
    sandbox.client.mailbox(BOX, denied="ErrorAccessDenied")
    code, found = steps(relay)
    assert (code, found["mailbox"]["state"]) == (1, "problem")
    asked = sandbox.client.counts()["send_requests"]
    assert "not asked again" in steps(relay)[1]["mailbox"]["text"]
    assert sandbox.client.counts()["send_requests"] == asked


@pytest.mark.parametrize(
    ("changes", "step", "words"),
    [
        ({"tenant": "nowhere.example"}, "tenant", "AADSTS90002"),
        ({"client_secret": "wrong"}, "token", "AADSTS7000215"),
        ({"client_id": "11111111-1111-4111-8111-111111111111"}, "token", "AADSTS700016"),
        ({"mailbox": "nobody@contoso.com"}, "mailbox", "ErrorInvalidUser"),
    ],
)
def test_what_is_wrong_in_the_configuration_ends_at_its_step(
    tmp_path: Path, sandbox: SandboxProcess, changes: dict[str, str], step: str, words: str
) -> None:
    relay = RelayProcess(tmp_path / "relay", sandbox.upstream_toml(**changes))
    code, found = steps(relay)
    problems = [name for name, one in found.items() if one["state"] == "problem"]
    assert (code, problems) == (1, [step])
    assert words in found[step]["text"]


def test_a_microsoft_that_is_away_is_told_at_each_of_its_ends(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    relay = RelayProcess(tmp_path / "relay", sandbox.upstream_toml())
    sandbox.client.fault("503", operation="token")
    assert "HTTP 503" in steps(relay)[1]["token"]["text"]
    sandbox.client.fault("503")
    assert "serviceNotAvailable" in steps(relay)[1]["mailbox"]["text"]
    sandbox.kill()
    assert steps(relay)[1]["tcp"]["state"] == "problem"
