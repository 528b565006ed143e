"""The admin process beside a real relay: right numbers through deaths, reloads and upgrades, and
nothing that is done to it, or by it, touches mail.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.relay_process import RelayProcess, free_port, wait_until
from tests.sandbox_process import SandboxProcess, start_sandbox

pytestmark = [pytest.mark.slow(20), pytest.mark.timeout(180)]

SENT = 'relayd_messages_sent_total{upstream="lab"}'
REPLIES = 'relayd_smtp_replies_total{code="250"}'
RESTARTS = "relayd_worker_restarts_total"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path / "sandbox") as sandbox:
        yield sandbox


@pytest.fixture
def relay(tmp_path: Path, sandbox: SandboxProcess) -> Iterator[RelayProcess]:
    upstream = sandbox.upstream_toml(messages_per_minute=0)
    admin = f"127.0.0.1:{free_port()}"
    with RelayProcess(tmp_path / "relay", upstream, admin=admin) as relay:
        yield relay


def get(relay: RelayProcess, path: str, **headers: str) -> tuple[int, str]:
    """Return status and body; (0, "") while nobody listens."""
    request = urllib.request.Request(f"http://{relay.admin}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310  our own
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def figures(relay: RelayProcess) -> dict[str, float]:
    """Return every series of /metrics; {} while nobody listens."""
    _, text = get(relay, "/metrics")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def is_ready(relay: RelayProcess) -> Any:
    status, text = get(relay, "/readyz")
    return json.loads(text) if status in (200, 503) else {"ok": None}


def lacking(relay: RelayProcess) -> set[str]:
    """Return the checks that keep it from being ready."""
    checks = is_ready(relay).get("checks", {})
    return {name for name, one in checks.items() if not one["ok"]}


def send(relay: RelayProcess, count: int = 1) -> None:
    for number in range(count):
        with smtplib.SMTP("127.0.0.1", relay.port, timeout=60) as client:
            client.sendmail("a@contoso.com", ["b@contoso.com"], f"Subject: {number}\r\n\r\nhi\r\n")


def test_what_was_sent_is_counted_through_a_reload_a_kill_and_an_upgrade(
    relay: RelayProcess,
) -> None:
    send(relay, 5)
    wait_until(lambda: figures(relay).get(SENT) == 5, told=lambda: (figures(relay), relay.log()))
    found = figures(relay)
    assert found["relayd_workers"] == 2
    assert found["relayd_accept_seconds_count"] == 5
    assert found['relayd_send_seconds_count{upstream="lab"}'] == 5
    assert found['relayd_upstream_up{upstream="lab"}'] == 1
    assert found['relayd_queue_messages{state="ready",upstream="lab"}'] == 0
    assert found["relayd_spool_free_bytes"] > found["relayd_spool_reserve_bytes"] > 0
    assert found['relayd_token_expiry_timestamp_seconds{upstream="lab"}'] > 1e9

    send(relay, 3)
    before = figures(relay)
    relay.cli("reload")
    # At once: what the old workers counted last must not be lost, nor anything go back.
    lowest = figures(relay)
    assert all(lowest[name] >= before[name] for name in (SENT, REPLIES))
    wait_until(lambda: figures(relay).get(SENT) == 8, told=lambda: figures(relay))

    wait_until(lambda: figures(relay).get("relayd_workers") == 2)
    os.kill(relay.pids("worker")[0], signal.SIGKILL)
    os.kill(relay.pids("cached")[0], signal.SIGKILL)
    wait_until(lambda: figures(relay).get(RESTARTS) == 1 and relay.is_up())
    assert figures(relay)[SENT] == 8
    tokens = 'relayd_token_requests_total{result="ok",upstream="lab"}'
    assert [value for name, value in figures(relay).items() if name.startswith("relayd_token_req")]
    assert figures(relay).get(tokens, 1) >= 1

    before = figures(relay)
    admins = relay.pids("admin")
    os.kill(relay.pid, signal.SIGUSR2)
    wait_until(lambda: relay.lines("upgrade.done") or relay.lines("upgrade.refused"))
    assert relay.lines("upgrade.done"), relay.log()[-2000:]
    wait_until(lambda: relay.pids("admin") and relay.pids("admin") != admins)
    wait_until(lambda: figures(relay).get("relayd_workers") == 2)
    after = figures(relay)
    assert after[RESTARTS] == before[RESTARTS]
    assert after[SENT] == 8
    assert after[REPLIES] >= before[REPLIES]


def test_it_can_die_hang_or_be_hammered_and_mail_does_not_notice(relay: RelayProcess) -> None:
    wait_until(lambda: relay.pids("admin") and get(relay, "/healthz")[0] == 200)
    (first,) = relay.pids("admin")
    os.kill(first, signal.SIGSTOP)  # a scrape that hangs
    host, _, port = relay.admin.rpartition(":")
    with ExitStack() as stack:
        for number in range(100):
            sock = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            sock.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            if number == 30:
                send(relay)
                os.kill(first, signal.SIGCONT)
        send(relay)
        # Those who trickle hold all places, and give way to one who asks.
        wait_until(lambda: get(relay, "/healthz")[0] == 200)
    os.kill(first, signal.SIGKILL)
    send(relay)
    wait_until(lambda: relay.pids("admin") and get(relay, "/healthz")[0] == 200)
    assert relay.pids("admin") != [first]
    assert figures(relay)[RESTARTS] == 0
    wait_until(lambda: figures(relay).get(SENT) == 3)


def test_ready_says_why_not(relay: RelayProcess, sandbox: SandboxProcess) -> None:
    wait_until(lambda: is_ready(relay)["ok"], told=lambda: is_ready(relay))
    assert set(is_ready(relay)["checks"]) == {
        "master", "workers", "listeners", "spool", "upstreams",
    }  # fmt: skip
    sandbox.stop()
    send(relay)
    told = "lab: down"
    wait_until(lambda: told in is_ready(relay)["checks"]["upstreams"]["text"])
    assert is_ready(relay)["ok"] is True
    wait_until(lambda: figures(relay).get('relayd_upstream_up{upstream="lab"}') == 0)

    os.kill(relay.pid, signal.SIGSTOP)
    try:
        status, text = get(relay, "/healthz")
        assert (status, json.loads(text)["ok"]) == (503, False)
        assert get(relay, "/metrics")[0] == 503
    finally:
        os.kill(relay.pid, signal.SIGCONT)
    wait_until(lambda: get(relay, "/healthz")[0] == 200)


def test_a_relay_that_is_not_configured_is_alive_and_not_ready(tmp_path: Path) -> None:
    admin = f"127.0.0.1:{free_port()}"
    with RelayProcess(tmp_path, "", admin=admin) as relay:
        wait_until(lambda: get(relay, "/healthz")[0] == 200)
        wait_until(lambda: lacking(relay) == {"upstreams"}, told=lambda: is_ready(relay))
        assert get(relay, "/readyz")[0] == 503


def test_a_port_in_use_is_told_and_a_reload_moves_it_away(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        with RelayProcess(tmp_path, "", admin=taken) as relay:
            wait_until(
                lambda: any("another process has it" in w for w in relay.status()["warnings"])
            )
            assert len(relay.lines("admin.unbound")) == 1
            assert relay.status()["admin"]["listening"] is False
            relay.admin = f"127.0.0.1:{free_port()}"
            relay.configure()
            relay.cli("reload")
            wait_until(lambda: get(relay, "/healthz")[0] == 200)
            wait_until(lambda: not any("[admin]" in w for w in relay.status()["warnings"]))
            relay.admin = ""
            relay.configure()
            relay.cli("reload")
            wait_until(lambda: not relay.pids("admin"))
            assert relay.status()["admin"] is None
            assert relay.is_up()
            assert relay.stop() == 0


@pytest.mark.skipif(
    not (shutil.which("promtool") or (Path(sys.executable).parent / "promtool").exists()),
    reason="promtool is not here: sh tools/clients.sh takes it from Debian's package",
)
def test_prometheus_finds_nothing_to_say_against_the_page(relay: RelayProcess) -> None:
    send(relay)
    wait_until(lambda: figures(relay).get(SENT) == 1)
    tool = shutil.which("promtool") or str(Path(sys.executable).parent / "promtool")
    page = get(relay, "/metrics")[1]
    done = subprocess.run(
        [tool, "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    asked = get(relay, "/metrics", Accept="application/openmetrics-text;version=1.0.0")
    assert asked[1].endswith("# EOF\n")
