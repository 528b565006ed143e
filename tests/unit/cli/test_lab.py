"""relayd.cli.lab: prints what to paste, says when it is ready, stops when told."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from relayd.cli.lab import snippet
from relayd.cli.main import main
from relayd.sandbox.server import Place
from tests.sandbox_lab import PLAIN
from tests.sandbox_process import start_sandbox


def test_the_snippet_is_toml_with_both_tables() -> None:
    place = Place(
        host="127.0.0.1",
        port=8443,
        inbox_host="127.0.0.1",
        inbox_port=8480,
        ca_file='/a "b"/ca.pem',
        tenant="contoso.onmicrosoft.com",
        tenant_id="t",
        client_id="c",
        client_secret="s",
        control_key="k",
        mailboxes=("alerts@contoso.com",),
    )
    read = tomllib.loads(snippet(place))
    assert read["cloud"]["lab"]["graph"] == "https://127.0.0.1:8443/v1.0"
    assert read["cloud"]["lab"]["ca_file"] == '/a "b"/ca.pem'
    assert read["upstream"]["lab"]["mailbox"] == "alerts@contoso.com"


def test_print_config_needs_fixed_ports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sandbox", "--print-config", "--listen", "127.0.0.1:0"]) == 2
    assert "fixed ports" in capsys.readouterr().err


@pytest.mark.slow(2)
def test_print_config_prints_only_that_and_stays_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "relayd", "sandbox", "--print-config"]
    command += ["--state-dir", str(tmp_path), "--tenant", "fabrikam.com"]
    first, second = (
        subprocess.run(command, capture_output=True, check=True, timeout=20).stdout.decode()
        for _ in range(2)
    )
    assert first == second
    upstream = tomllib.loads(first)["upstream"]["lab"]
    assert (upstream["tenant"], upstream["mailbox"]) == ("fabrikam.com", "alerts@fabrikam.com")


@pytest.mark.slow(2)
def test_a_sandbox_started_again_takes_yesterdays_token(tmp_path: Path) -> None:
    keep = tmp_path / "journal"
    with start_sandbox(tmp_path, keep=keep) as first:
        token, port = first.client.token(), first.port
        assert first.client.send_mime("alerts@contoso.com", PLAIN, token)[0] == 202
        assert "[upstream.lab]" in first.upstream_toml(large="refuse")
    assert first.process.returncode == 0
    with start_sandbox(tmp_path, port=port, keep=keep) as second:
        assert second.client.send_mime("alerts@contoso.com", PLAIN, token)[0] == 202
        with second.new_client() as other:
            assert other.counts()["messages"] == 1
        second.kill()
    assert len(keep.read_bytes().splitlines()) == 2


@pytest.mark.slow(2)
def test_a_taken_port_is_said_and_exits_69(tmp_path: Path) -> None:
    with start_sandbox(tmp_path) as sandbox:
        command = [sys.executable, "-m", "relayd", "sandbox", "--json"]
        command += ["--listen", f"127.0.0.1:{sandbox.port}", "--state-dir", str(tmp_path / "2")]
        done = subprocess.run(command, capture_output=True, check=False, timeout=20)
    assert done.returncode == 69
    assert b"cannot start: 127.0.0.1:%d is held by " % sandbox.port in done.stderr
    assert b"; or another port: --listen 127.0.0.1:PORT" in done.stderr
    assert done.stdout == b""


@pytest.mark.slow(2)
def test_people_see_what_to_paste_and_then_each_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "relayd", "sandbox", "--listen", "127.0.0.1:0"]
    command += ["--inbox", "127.0.0.1:0", "--state-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while "ready\n" not in lines[-1:]:
            lines.append(process.stdout.readline())
            assert lines[-1], "it ended before it was ready"
        assert "[cloud.lab]\n" in lines
        (setup,) = (line for line in lines if line.startswith("relayd setup "))
        assert "--tenant contoso.onmicrosoft.com --client-id " in setup
        process.terminate()
        assert process.wait(10) == 0
