"""The first run as somebody meets it: the packaged file, relayd setup, and a mail that left."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import smtplib
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.relay_process import RelayProcess, clean_environment, processes, wait_until
from tests.sandbox_process import SandboxProcess, start_sandbox

pytestmark = [pytest.mark.slow(8), pytest.mark.timeout(180)]

PACKAGED = (Path(__file__).parents[2] / "conf/relayd.toml").read_text()
IDS = ("10000000-0000-0000-0000-000000000000", "20000000-0000-0000-0000-000000000000")
SECRET = "s3cret~Value.of-an_application~0123456789"
# Makes the terminal on its standard input its own, so that Ctrl-C reaches what it becomes.
_ON_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "relayd", *sys.argv[1:]])
"""


class Packaged(RelayProcess):
    """relayd as the package installs it, but for folders and the port."""

    def configure(self, more: str = "", **edits: str) -> None:
        text = PACKAGED
        for old, new in (
            ('"127.0.0.1:25"', f'"127.0.0.1:{self.port}"'),
            ("#runtime_dir = ", f'runtime_dir = "{self.folder}/run" #'),
            ("#state_dir = ", f'state_dir = "{self.folder}/state" #'),
            ("#url = ", f'url = "sqlite:///{self.folder}/spool/spool.db" #'),
            ('#address = "127.0.0.1:8025"', 'address = ""'),
            ("#hostname = ", 'hostname = "relay.test" #'),
            ("#min_free_disk = ", 'min_free_disk = "16MiB" #'),
            *edits.items(),
        ):
            assert old in text, old
            text = text.replace(old, new, 1)
        self.path.write_text(text + more)
        self.path.chmod(0o640)


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Packaged]:
    with Packaged(tmp_path / "relay", "") as relay:
        yield relay


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path / "sandbox", mailboxes=("alerts@contoso.com",)) as sandbox:
        yield sandbox


def test_unconfigured_it_runs_refuses_mail_for_now_and_everything_names_the_next_step(
    relay: Packaged,
) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as client:
        client.ehlo()
        code, words = client.mail("ups@nas.local")
    assert (code, words) == (451, b"4.3.5 Relay is not configured yet, try again later")
    wait_until(lambda: relay.lines("config.warning"))
    step = "relayd setup"
    assert step in relay.cli("check").stdout
    assert step in relay.cli("status").stdout
    assert step in "".join(relay.lines("config.warning"))
    assert step in relay.cli("explain", "451 4.3.5").stdout
    nagios = relay.cli("status", "--nagios", check=False)
    assert (nagios.returncode, step in nagios.stdout) == (2, True)
    # This host only, until somebody says otherwise.
    assert [row["address"] for row in relay.status()["listeners"]] == [f"127.0.0.1:{relay.port}"]


def test_by_options_a_relay_is_configured_and_a_test_mail_has_left(
    relay: Packaged, sandbox: SandboxProcess
) -> None:
    secret = relay.folder / "given.secret"
    secret.write_text(sandbox.facts["client_secret"])
    words = (
        "setup", "--no-input", "--tenant", sandbox.facts["tenant"],
        "--client-id", sandbox.facts["client_id"], "--mailbox", "alerts@contoso.com",
        "--secret-file", str(secret), "--network", "192.168.10.0/24",
        "--authority", sandbox.base, "--graph", f"{sandbox.base}/v1.0",
        "--ca-file", sandbox.facts["ca_file"], "--listen", f"127.0.0.1:{relay.port}",
    )  # fmt: skip
    done = relay.cli(*words, "--test-to", "admin@contoso.com")
    assert "the running relay took it over" in done.stdout
    assert re.search(r"^[0-9A-Z]{13}: sent", done.stdout, re.MULTILINE)
    (mail,) = sandbox.client.wait_for(1)
    assert mail.addresses == {"admin@contoso.com"}
    for name in ("secrets/contoso", "relayd.toml", "conf.d/zz-lan.toml"):
        assert stat.S_IMODE((relay.folder / name).stat().st_mode) == 0o640, name
    assert sandbox.facts["client_secret"] not in done.stdout + done.stderr + relay.log()
    # Again: unchanged, and nothing is taken over once more.
    generation = relay.status()["generation"]
    again = relay.cli(*words)
    assert again.stdout.startswith("unchanged: ")
    assert relay.status()["generation"] == generation
    # This host's own mail (sendmail, cron) may leave too, others' devices come in by network.
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as client:
        client.sendmail("root@relay.test", ["admin@contoso.com"], b"Subject: cron\r\n\r\nx\r\n")
    sandbox.client.wait_for(2)
    added = relay.cli("device", "add", "192.168.10.5", "--name", "ups")
    assert "the running relay took it over" in added.stdout
    rows = relay.json("device", "list")
    assert [row["name"] for row in rows if "name" in row][:3] == ["ups", "lan", "localhost"]


def test_a_relay_that_refuses_leaves_the_files_as_they_were(relay: Packaged) -> None:
    secret = relay.folder / "given.secret"
    secret.write_text(SECRET)
    before = relay.path.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = relay.cli(
            "setup", "--tenant", "contoso.com", "--client-id", IDS[0], "--mailbox", "a@contoso.com",
            "--secret-file", str(secret), "--listen", f"127.0.0.1:{taken.getsockname()[1]}",
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"(pid {os.getpid()})" in done.stderr
    assert done.stderr.endswith("relayd: nothing was changed\n")
    assert relay.path.read_bytes() == before
    assert not (relay.folder / "secrets").exists()


# ---- on a terminal


class Session:
    """`relayd setup` on a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.master, slave = os.openpty()
        self.shown = ""
        self._seen = 0
        with open(slave, "rb", buffering=0) as terminal:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _ON_TERMINAL, *words],
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                env=clean_environment() | {"TERM": "dumb"},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self.master)

    def expect(self, words: str) -> None:
        """Read until `words` were shown after those expected before."""
        deadline = time.monotonic() + 60
        while words not in self.shown[self._seen :]:
            assert time.monotonic() < deadline, f"no {words!r} in:\n{self.shown}"
            assert self._read(), f"it ended before {words!r}:\n{self.shown}"
        self._seen = self.shown.index(words, self._seen) + len(words)

    def answer(self, question: str, line: str) -> None:
        """Wait for a question and type the answer."""
        self.expect(question)
        os.write(self.master, f"{line}\n".encode())

    def end(self) -> int:
        """Read to the end; returns the exit status."""
        while self._read():
            pass
        return self.process.wait(30)

    def _read(self) -> bool:
        """Take what is shown within a second; False at the end."""
        if not select.select([self.master], [], [], 1)[0]:
            return True
        try:
            octets = os.read(self.master, 65536)
        except OSError:  # the last one closed the terminal
            return False
        self.shown += octets.decode().replace("\r\n", "\n")
        return bool(octets)


def asked_until_the_secret(session: Session) -> None:
    session.answer("Tenant: ", "contoso")
    session.expect('no tenant; write "contoso.onmicrosoft.com"')
    session.answer("Tenant: ", "contoso.onmicrosoft.com")
    session.answer("Mailbox that sends everything: ", "alerts@contoso.com")
    session.answer("[global]: ", "")
    session.expect("New registration")
    session.answer("Application (client) ID: ", IDS[0])
    session.answer("Object ID of the enterprise application", IDS[1])
    session.expect(f"New-ServicePrincipal -AppId {IDS[0]} -ObjectId {IDS[1]} -DisplayName relayd")
    session.expect("New-ManagementScope")
    session.expect("New-ManagementRoleAssignment")
    session.expect("EVERY mailbox")


def test_on_a_terminal_it_asks_and_the_secret_is_not_shown(tmp_path: Path) -> None:
    relay = Packaged(tmp_path / "relay", "")
    with Session("setup", "--config", str(relay.path), "--no-start") as session:
        asked_until_the_secret(session)
        session.expect("Client secret, its Value (not shown): ")
        argv = processes(session.process.pid)[session.process.pid]
        os.write(session.master, f"{SECRET}\n".encode())
        session.answer("may send without a password", "192.168.10.0/24")
        session.answer("Listen on [0.0.0.0:", "")
        session.answer("Write this? [Y/n]: ", "y")
        assert session.end() == 0
    assert SECRET not in session.shown
    assert SECRET not in argv
    assert (relay.folder / "secrets/contoso").read_text() == f"{SECRET}\n"
    checked = json.loads(relay.cli("check", "--json").stdout)
    assert checked == {"ok": True, "problems": [], "warnings": []}


def test_ctrl_c_leaves_everything_as_it_was(tmp_path: Path) -> None:
    relay = Packaged(tmp_path / "relay", "")
    before = relay.path.read_bytes()
    with Session("setup", "--config", str(relay.path), "--no-start") as session:
        asked_until_the_secret(session)
        session.expect("(not shown): ")
        os.write(session.master, b"half a sec\x03")
        assert session.end() == 130
    assert "interrupted; nothing was changed" in session.shown
    assert [path.name for path in relay.folder.iterdir()] == ["relayd.toml"]
    assert relay.path.read_bytes() == before


def test_a_terminal_that_goes_away_leaves_everything_as_it_was(tmp_path: Path) -> None:
    relay = Packaged(tmp_path / "relay", "")
    with Session("setup", "--config", str(relay.path), "--no-start") as session:
        asked_until_the_secret(session)
        session.process.send_signal(signal.SIGHUP)
        assert session.end() == -signal.SIGHUP
    assert [path.name for path in relay.folder.iterdir()] == ["relayd.toml"]
