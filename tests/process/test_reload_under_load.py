"""Reload while devices send: nobody is turned away, nothing is lost or sent twice.

A session may be told 421 where no transaction of its own is open (RFC 5321 §3.8); a refused
or reset connection is a broken promise.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import smtplib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load import Load, verdict
from tests.relay_process import RelayProcess, free_port, wait_until
from tests.sandbox_process import SandboxProcess, start_sandbox

RELOADS = 10

SECOND = """
[[listener]]
name = "second"
address = ["127.0.0.1:{port}"]
"""
SIX = """
[[listener]]
name = "six"
address = ["[::1]:{port}"]

[[device]]
name = "six"
networks = ["::1/128"]
allow_to = ["*"]
default_from = "alerts@contoso.com"
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path / "sandbox") as sandbox:
        sandbox.client.knobs(requests_per_window=0, octets_per_window=0, recipients_per_day=0)
        yield sandbox


def a_relay(folder: Path, sandbox: SandboxProcess, more: str = "") -> RelayProcess:
    return RelayProcess(folder / "relay", sandbox.upstream_toml(messages_per_minute=0), more=more)


def greeting(port: int, host: str = "127.0.0.1") -> tuple[str, str]:
    """Return the name in the banner, and the SIZE in the answer to EHLO."""
    with contextlib.closing(smtplib.SMTP(local_hostname="looker.test", timeout=60)) as client:
        code, text = client.connect(host, port)
        assert code == 220, (code, text)
        assert client.ehlo()[0] == 250
        return text.decode().split()[0], client.esmtp_features["size"]


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.slow(60)
@pytest.mark.timeout(400)
def test_ten_reloads_under_load_break_no_session_and_lose_nothing(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    six = free_port() if has_ipv6() else 0
    more = SIX.format(port=six) if six else ""
    with a_relay(tmp_path, sandbox, more) as relay:
        loads = [
            Load(relay.port, senders=3, name="kept-"),
            Load(relay.port, senders=3, name="new-", new_connection_each=True),
        ]
        if six:
            loads.append(Load(six, senders=2, name="six-", host="::1", new_connection_each=True))
        with contextlib.ExitStack() as stack:
            for load in loads:
                stack.enter_context(load)
            for number in range(1, RELOADS + 1):
                reload_once(relay, number, more)
                if six:
                    assert greeting(six, "::1")[0] == f"relay-{number}.test"
                wait_for_more(loads)
        relay.wait_empty()
        status = relay.status()
    for load in loads:
        assert load.broken == []
        assert load.refused == []
        told = verdict(load.acknowledged, sandbox.client)
        assert told.lost == []
        assert told.damaged == []
        assert told.twice == {}
    names = {greeting.split()[0] for load in loads for greeting in load.greetings}
    assert names >= {f"relay-{number}.test" for number in range(1, RELOADS + 1)}
    assert status["generation"] == RELOADS + 1
    assert relay.lines("reload.refused") == []
    assert [line for line in relay.lines("child.died") if "how=" in line] == []


def wait_for_more(loads: list[Load]) -> None:
    """Wait until each kind of device got another message through."""
    before = [len(load.acknowledged) for load in loads]

    def has_more() -> bool:
        now = [len(load.acknowledged) for load in loads]
        return all(count > old for count, old in zip(now, before, strict=True))

    wait_until(has_more, seconds=60, told="no mail is accepted")


def is_in_force(relay: RelayProcess, generation: int) -> bool:
    status = relay.status()
    return (status["generation"], status["state"]) == (generation, "running")


def reload_once(relay: RelayProcess, number: int, more: str) -> None:
    """Change name and size; by the command when `number` is even, else by the signal."""
    name, limit = f"relay-{number}.test", 1_000_000 + number
    relay.configure(
        f"\n{more}",
        **{"relay.test": name, "[limits]": f"[limits]\nmax_message_size = {limit}"},
    )
    if number % 2:
        os.kill(relay.pid, signal.SIGHUP)
        wait_until(lambda: is_in_force(relay, number + 1), seconds=60, told=f"{name} not in force")
    else:
        relay.cli("reload")
    # In force means for everybody, not for those who happen to meet a new worker; the old ones
    # were told a moment ago, and on a busy machine that moment may be long.
    wait_until(
        lambda: {greeting(relay.port) for _ in range(8)} == {(name, str(limit))},
        seconds=30,
        told=f"{name} is not in force for everybody",
    )


@pytest.mark.slow(8)
@pytest.mark.timeout(180)
def test_a_bad_configuration_is_refused_and_the_old_one_serves_on(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    with a_relay(tmp_path, sandbox) as relay:
        good = relay.path.read_text()
        with Load(relay.port, senders=2) as load:
            wait_until(lambda: load.acknowledged, told="no mail is accepted")
            workers = sorted(relay.pids("worker"))
            relay.path.write_text(good.replace('"127.0.0.1/32"', '"127.0.0.1/33"') + "\nnonsense=1")
            done = relay.cli("reload", check=False)
            assert done.returncode == 1
            assert "127.0.0.1/33" in done.stderr
            assert "nonsense" in done.stderr
            count = len(load.acknowledged)
            wait_until(lambda: len(load.acknowledged) > count, told="no mail is accepted any more")
            assert sorted(relay.pids("worker")) == workers
            status = relay.json("status")
            assert status["state"] == "running"
            assert status["reload"]["result"] == "refused"
            assert any("127.0.0.1/33" in problem for problem in status["reload"]["problems"])
            assert "the last reload was refused" in relay.cli("status").stdout
            relay.path.write_text(good)
            assert relay.cli("reload").returncode == 0
            assert relay.json("status")["reload"]["result"] == "done"
        relay.wait_empty()
    assert load.broken == []
    assert verdict(load.acknowledged, sandbox.client).lost == []


@pytest.mark.slow(8)
@pytest.mark.timeout(180)
def test_a_listener_comes_and_goes_by_reload(tmp_path: Path, sandbox: SandboxProcess) -> None:
    second = free_port()
    with a_relay(tmp_path, sandbox) as relay, Load(relay.port, senders=2) as load:
        relay.configure(SECOND.format(port=second))
        relay.cli("reload")
        assert greeting(second)[0] == "relay.test"
        names = [one["name"] for one in relay.status()["listeners"]]
        assert sorted(names) == ["lan", "second"]
        with smtplib.SMTP("127.0.0.1", second, "idle.test", timeout=60) as idle:
            assert idle.ehlo()[0] == 250
            relay.configure()
            relay.cli("reload")
            # A session on it is told so, and not cut.
            assert idle.getreply()[0] == 421
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", second)) == errno.ECONNREFUSED
        assert greeting(relay.port)[0] == "relay.test"
        assert [one["name"] for one in relay.status()["listeners"]] == ["lan"]
        wait_until(lambda: load.acknowledged, told="no mail is accepted")
    assert load.broken == []
