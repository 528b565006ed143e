"""sendmail and mailq against a real relay: as cron, php, mdadm and s-nail call them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.relay_process import RelayProcess, clean_environment
from tests.sandbox_client import Delivered
from tests.sandbox_process import SandboxProcess, start_sandbox

ROOT = Path(__file__).parents[2]
PROGRAM = """\
#!{python}
import sys
sys.path.insert(0, {root!r})
from relayd.cli.sendmail import main
sys.exit(main())
"""
CRON = b"""\
From: root (Cron Daemon)
To: root
Subject: Cron <root@nas> backup
MIME-Version: 1.0
Content-Type: text/plain; charset=UTF-8
X-Cron-Env: <LOGNAME=root>

no space left: \xe2\x82\xac
.
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with sendmail and mailq, as the package installs them."""
    folder = tmp_path_factory.mktemp("sbin")
    program = folder / "sendmail"
    program.write_text(PROGRAM.format(python=sys.executable, root=str(ROOT)))
    program.chmod(0o755)
    (folder / "mailq").symlink_to("sendmail")
    return folder


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path_factory.mktemp("sandbox")) as one:
        yield one


@pytest.fixture(scope="module")
def relay(
    tmp_path_factory: pytest.TempPathFactory, sandbox: SandboxProcess
) -> Iterator[RelayProcess]:
    upstream = sandbox.upstream_toml(messages_per_minute=0)
    with RelayProcess(tmp_path_factory.mktemp("relay"), upstream) as one:
        yield one


class Host:
    """Calls the programs as those of a host do."""

    def __init__(self, programs: Path, home: Path, relay: RelayProcess) -> None:
        self.programs = programs
        self.home = home
        home.chmod(0o700)
        self.environment = {
            **clean_environment(), "HOME": str(home), "RELAYD_CONFIG": str(relay.path),
            "RELAYD_SMTP": f"127.0.0.1:{relay.port}",
        }  # fmt: skip

    def call(self, name: str, *words: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(self.programs / name), *words],
            input=text, capture_output=True, timeout=30, check=False, env=self.environment,
        )  # fmt: skip

    def sends(self, *words: str, text: bytes) -> None:
        done = self.call("sendmail", *words, text=text)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.fixture
def host(programs: Path, tmp_path: Path, relay: RelayProcess) -> Host:
    return Host(programs, tmp_path, relay)


def arrived(sandbox: SandboxProcess, subject: str) -> Delivered:
    """Return the one message with a subject, when it is there."""
    for _ in range(600):
        found = [one for one in sandbox.client.messages(content=True) if one.subject == subject]
        if found:
            (one,) = found
            return one
        sandbox.process.poll()
        sandbox.client.wait_for(1, seconds=0.1)
    raise AssertionError(f"no mail with subject {subject!r}")


@pytest.mark.slow(4)
@pytest.mark.timeout(60)
def test_cron_reaches_root_at_the_default_domain(host: Host, sandbox: SandboxProcess) -> None:
    host.sends("-i", "-FCronDaemon", "-B8BITMIME", "-oem", "root", text=CRON)
    mail = arrived(sandbox, "Cron <root@nas> backup")
    assert mail.addresses == {"root@contoso.com"}
    assert mail.x_field("X-Cron-Env") == "<LOGNAME=root>"
    assert mail.body == b"no space left: \xe2\x82\xac\r\n.\r\n"
    assert b"relayd sendmail, from userid " in (mail.head or b"")


@pytest.mark.slow(1)
@pytest.mark.timeout(60)
def test_php_reaches_everybody_of_the_header_and_bcc_stays_hidden(
    host: Host, sandbox: SandboxProcess
) -> None:
    host.sends(
        "-t", "-i", "-fwww-data@contoso.com",
        text=b"To: Shop <shop@contoso.com>\r\nSubject: php\r\nBcc: boss@contoso.com\r\n"
        b"X-PHP-Originating-Script: 33:a.php\r\n\r\nline one\nline two",
    )  # fmt: skip
    mail = arrived(sandbox, "php")
    assert set(mail.recipients) == {("shop@contoso.com", "to"), ("boss@contoso.com", "bcc")}
    assert mail.body == b"line one\r\nline two\r\n"
    assert b"boss" not in (mail.delivered_head or b"boss")


@pytest.mark.slow(1)
@pytest.mark.timeout(60)
def test_mdadm_gets_through_without_i(host: Host, sandbox: SandboxProcess) -> None:
    host.sends(
        "-t",
        text=b"From: mdadm monitoring <root>\nTo: root\nSubject: DegradedArray event\n\nfaulty\n",
    )
    mail = arrived(sandbox, "DegradedArray event")
    assert mail.addresses == {"root@contoso.com"}
    assert mail.body == b"faulty\r\n"


@pytest.mark.slow(1)
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["s-nail", "mail.mailutils"])
def test_a_mail_program_sends_with_it(name: str, host: Host, sandbox: SandboxProcess) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed here (tools/clients.sh installs s-nail)")
    program = host.programs / "sendmail"
    options = ["-:/", "-S", f"mta=file://{program}", "-S", "sendwait"]
    if name == "mail.mailutils":
        options = [f"--set=sendmail=sendmail:{program}"]
    done = subprocess.run(
        [name, *options, "-s", f"from {name}", "ops@contoso.com"],
        input=b"SMART error\n", capture_output=True, timeout=30, check=False, env=host.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert arrived(sandbox, f"from {name}").addresses == {"ops@contoso.com"}


@pytest.mark.slow(1)
@pytest.mark.timeout(60)
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_any_user_of_the_host_may_send_with_nothing_but_python(
    host: Host, sandbox: SandboxProcess, shared: Path
) -> None:
    python = "/usr/bin/python3"
    if not Path(python).exists():
        pytest.skip("no /usr/bin/python3: the one of the tests may be where nobody may read")
    shutil.copytree(ROOT / "relayd", shared / "relayd", ignore=shutil.ignore_patterns("__pyc*"))
    script = PROGRAM.format(python=python, root=str(shared))
    done = subprocess.run(
        [python, "-S", "-c", script, "-i", "Root <root>"],  # -S: the standard library alone
        input=b"Subject: as nobody\n\nhi\n", capture_output=True, timeout=30, check=False,
        env=host.environment, cwd="/", user=65534, group=65534, extra_groups=[],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"from userid 65534" in (arrived(sandbox, "as nobody").head or b"")


@pytest.mark.slow(1)
@pytest.mark.timeout(60)
def test_bs_is_a_session_with_the_relay(host: Host, relay: RelayProcess) -> None:
    text = b"EHLO x\r\nMAIL FROM:<a@contoso.com>\r\nRCPT TO:<root>\r\nRSET\r\nQUIT\r\n"
    done = host.call("sendmail", "-bs", text=text)
    assert done.returncode == 0, done.stderr
    codes = [line[:4] for line in done.stdout.splitlines() if line[3:4] == b" "]
    assert codes == [b"220 ", b"250 ", b"250 ", b"250 ", b"250 ", b"221 "]


@pytest.mark.slow(1)
@pytest.mark.timeout(60)
def test_bv_asks_and_sends_nothing(host: Host, sandbox: SandboxProcess) -> None:
    before = sandbox.client.counts()["messages"]
    done = host.call("sendmail", "-bv", "root")
    assert (done.returncode, done.stdout) == (0, b"root... deliverable\n")
    assert sandbox.client.counts()["messages"] == before


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.slow(8)
@pytest.mark.timeout(120)
def test_what_the_relay_does_not_take_is_kept_and_can_be_sent_again(
    programs: Path, tmp_path: Path
) -> None:
    nowhere = (
        f'[cloud.lab]\nauthority = "https://127.0.0.1:{closed_port()}"\n'
        f'graph = "https://127.0.0.1:{closed_port()}/v1.0"\n'
        '[upstream.lab]\ncloud = "lab"\ntenant = "t"\nclient_id = "c"\n'
        'client_secret = "s"\nmailbox = "alerts@contoso.com"\n'
    )
    relay = RelayProcess(
        tmp_path / "relay",
        nowhere,
        **{'default_domain = "contoso.com"\n': "", 'allow_to = ["*"]': ""},
    )
    host = Host(programs, tmp_path, relay)
    letter = tmp_path / "dead.letter"

    done = host.call("sendmail", "-i", "ops@contoso.com", text=b"Subject: first\n\nhi\n")
    assert done.returncode == 75
    assert b"is it running?" in done.stderr
    assert f"the message is in {letter}".encode() in done.stderr

    with relay:
        host.sends("-i", "ops@contoso.com", text=letter.read_bytes())
        done = host.call("mailq")
        assert done.stdout.splitlines()[-1].startswith(b"-- 0 Kbytes in 1 Request.")
        assert done.stdout.count(b"ops@contoso.com") == 1

        host.sends("root", text=b"Subject: second\n\nhi\n")  # the domain of the mailbox
        assert b"root@contoso.com" in host.call("mailq").stdout

        done = host.call("sendmail", "x@elsewhere.org", text=b"\nhi\n")
        assert done.returncode == 77
        assert b"allow_to" in done.stderr

        text = relay.path.read_text()
        relay.path.write_text(text.replace("127.0.0.1/32", "192.0.2.1/32"))
        relay.cli("reload")
        done = host.call("sendmail", "ops@contoso.com", text=b"\nhi\n")
        assert done.returncode == 77
        assert b"this host is no [[device]] of the relay yet" in done.stderr
    assert letter.read_bytes().count(b"\nX-Undelivered-To: ") == 3
