"""Clients that others wrote each deliver one mail: smtplib, swaks, curl, msmtp, s-nail."""

from __future__ import annotations

import shutil
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.relay_process import RelayProcess, clean_environment, wait_until
from tests.sandbox_client import Delivered
from tests.sandbox_process import SandboxProcess, start_sandbox

MESSAGE = (
    "From: device@contoso.com\nTo: ops@contoso.com\nSubject: from {name}\n\nHello from {name}.\n"
)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path_factory.mktemp("sandbox")) as one:
        yield one


@pytest.fixture(scope="module")
def relay(
    tmp_path_factory: pytest.TempPathFactory, sandbox: SandboxProcess
) -> Iterator[RelayProcess]:
    one = RelayProcess(
        tmp_path_factory.mktemp("relay"), sandbox.upstream_toml(messages_per_minute=0)
    )
    done = one.cli("user", "add", "printer1", "--generate", "--allow-to", "*", check=False)
    assert done.returncode == 0, done.stderr
    one.start()
    try:
        yield one
    finally:
        one.stop()


def command_of(name: str, relay: RelayProcess, folder: Path) -> tuple[list[str], str]:
    """Return a client's command line and what it reads on standard input."""
    message = MESSAGE.format(name=name)
    host, port = "127.0.0.1", str(relay.port)
    match name:
        case "swaks":
            return [
                "swaks", "--server", host, "--port", port, "--from", "device@contoso.com",
                "--to", "ops@contoso.com", "--header", "Subject: from swaks", "--tls-optional",
                "--body", "Hello from swaks.",
            ], ""  # fmt: skip
        case "curl":
            return [
                "curl", "-sS", f"smtp://{host}:{port}", "--mail-from", "device@contoso.com",
                "--mail-rcpt", "ops@contoso.com", "--upload-file", "-",
            ], message  # fmt: skip
        case "msmtp":
            return [
                "msmtp", f"--host={host}", f"--port={port}", "--from=device@contoso.com",
                "--auth=off", "--tls=off", "ops@contoso.com",
            ], message  # fmt: skip
        case "s-nail":
            return [
                "s-nail", "-:/", "-S", "v15-compat", "-S", f"mta=smtp://{host}:{port}",
                "-S", "smtp-auth=none", "-S", "sendwait",
                "-r", "device@contoso.com", "-s", "from s-nail", "ops@contoso.com",
            ], "Hello from s-nail.\n"  # fmt: skip
        case _:
            raise AssertionError(name)


@pytest.mark.slow(3)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["swaks", "curl", "msmtp", "s-nail"])
def test_a_foreign_client_delivers_one_mail(
    name: str, relay: RelayProcess, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed here (tools/clients.sh installs it where it may)")
    command, stdin = command_of(name, relay, tmp_path)

    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**clean_environment(), "HOME": str(tmp_path)},
    )

    assert done.returncode == 0, (done.stdout, done.stderr)
    arrived = wait_for_subject(sandbox, f"from {name}")
    assert [one.addresses for one in arrived] == [{"ops@contoso.com"}]


def wait_for_subject(sandbox: SandboxProcess, subject: str) -> list[Delivered]:
    """Return the messages with that subject as soon as there is one."""

    def found() -> list[Delivered]:
        return [one for one in sandbox.client.messages() if one.subject == subject]

    wait_until(found, told=f"no message with subject {subject!r}")
    return found()


@pytest.mark.slow(3)
@pytest.mark.timeout(60)
def test_smtplib_with_starttls_and_login_delivers_one_mail(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    done = relay.json("user", "passwd", "printer1", "--generate")
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=20) as client:
        client.starttls()
        client.login("printer1", done["password"])
        refused = client.sendmail(
            "device@contoso.com",
            ["ops@contoso.com"],
            MESSAGE.format(name="smtplib").replace("\n", "\r\n"),
        )

    assert refused == {}
    assert wait_for_subject(sandbox, "from smtplib")
