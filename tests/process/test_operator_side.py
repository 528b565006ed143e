"""The operator's side against a real relay and a Microsoft 365 on localhost.

Logins made while it runs, a test mail followed to its end, stuck mail in words, and clients of
control.sock that misbehave: they cost themselves their connection and nobody else anything.
"""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from relayd.master.frames import Decoder, Frame, encode
from relayd.spool.model import queue_id_text
from tests.relay_process import RelayProcess, clean_environment, wait_until
from tests.sandbox_process import SandboxProcess, start_sandbox

pytestmark = [pytest.mark.slow(20), pytest.mark.timeout(180)]

ALERTS = "alerts@contoso.com"


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path / "sandbox") as sandbox:
        yield sandbox


@pytest.fixture
def relay(tmp_path: Path, sandbox: SandboxProcess) -> Iterator[RelayProcess]:
    with RelayProcess(tmp_path / "relay", sandbox.upstream_toml(messages_per_minute=0)) as relay:
        yield relay


def control_socket(relay: RelayProcess) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(str(relay.folder / "run" / "control.sock"))
    return sock


def login(relay: RelayProcess, name: str, password: str) -> int:
    """Return the code of the reply to AUTH."""
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as client:
        client.ehlo()
        try:
            return client.login(name, password)[0]
        except smtplib.SMTPAuthenticationError as error:
            return error.smtp_code


def test_a_login_works_the_moment_it_is_made_and_ends_the_moment_it_is_deleted(
    relay: RelayProcess,
) -> None:
    generation = relay.status()["generation"]
    made = relay.json("user", "add", "printer1", "--generate")["password"]
    # Several, so that each worker is asked.
    assert {login(relay, "printer1", made) for _ in range(6)} == {235}
    assert login(relay, "printer1", "wrong") == 535
    another = relay.json("user", "passwd", "printer1", "--generate")["password"]
    assert {login(relay, "printer1", another) for _ in range(6)} == {235}
    assert {login(relay, "printer1", made) for _ in range(2)} == {535}
    assert [one["name"] for one in relay.json("user", "list")] == ["printer1"]
    relay.cli("user", "delete", "printer1")
    assert login(relay, "printer1", another) == 535
    assert relay.status()["generation"] == generation


def test_a_test_mail_is_followed_until_microsoft_has_it(
    relay: RelayProcess, sandbox: SandboxProcess, tmp_path: Path
) -> None:
    # What a member of relayd-admin may not read is not needed.
    only = tmp_path / "only.toml"
    only.write_text(f'[server]\nruntime_dir = "{relay.folder}/run"\n')
    (tmp_path / "scan.pdf").write_bytes(b"%PDF")
    done = subprocess.run(
        [
            sys.executable, "-m", "relayd", "--config", str(only), "--json", "send", "--wait",
            "--to", "admin@contoso.com", "--attach", str(tmp_path / "scan.pdf"),
        ],
        capture_output=True, check=False, env=clean_environment(), text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["state"] == "sent"
    (mail,) = sandbox.client.wait_for(1)
    assert mail.addresses == {"admin@contoso.com"}
    attempt = relay.json("queue", "trace", told["id"])["attempts"][-1]
    assert attempt["http_status"] == 202
    assert attempt["request_id"]


def test_a_refused_test_mail_says_the_reply_and_what_to_do(relay: RelayProcess) -> None:
    done = relay.cli("send", "--to", "a@contoso.com", "--device", "nobody", check=False)
    assert done.returncode == 1
    assert "there are: lan" in done.stderr
    relay.configure(**{'allow_to = ["*"]': 'allow_to = ["ok@contoso.com"]'})
    relay.cli("reload")
    done = relay.cli("send", "--to", "a@contoso.com", check=False)
    assert done.returncode == 1
    assert "lan may not send this: 550 5.7.1" in done.stderr
    done = relay.cli("send", "--to", "a@contoso.com", "--device", "lan", check=False)
    assert done.returncode == 1
    assert "refused as lan: 550 5.7.1" in done.stderr
    assert 'into [[device]] "lan"' in done.stderr


def test_denied_mail_is_held_with_the_reason_until_an_operator_decides(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    sandbox.client.mailbox(ALERTS, denied="ErrorSendAsDenied", heals_after_s=0)
    done = relay.cli("send", "--to", "a@contoso.com", "--wait", "--json", check=False)
    told = json.loads(done.stdout)
    assert (done.returncode, told["state"]) == (1, "held")
    assert "The mailbox may not send as this From address." in told["why"]
    shown = relay.cli("queue", "show", told["id"]).stdout
    assert "held (ErrorSendAsDenied)" in shown
    assert "Give the mailbox Send As" in shown
    assert f"relayd queue release {told['id']}" in shown
    wait_until(lambda: relay.status()["queue"].get("held"), told="status never told of it")
    assert "1 message: ErrorSendAsDenied" in relay.cli("status").stdout
    sandbox.client.mailbox(ALERTS, denied="")
    relay.cli("queue", "release", told["id"])
    relay.wait_empty()
    sandbox.client.wait_for(1)


WRONG = "alert@contoso.com"


def test_mail_held_for_a_wrong_mailbox_goes_once_the_configuration_names_the_right_one(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    right = relay.upstream
    relay.upstream = sandbox.upstream_toml(messages_per_minute=0, mailbox=WRONG)
    relay.configure()
    relay.cli("reload")
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as client:
        for number in range(3):
            text = f"From: UPS <ups@nas.local>\r\nSubject: {number}\r\n\r\nx\r\n"
            client.sendmail("ups@nas.local", ["a@contoso.com"], text)
    wait_until(lambda: len(relay.queue("held")) == 3, told=relay.log)
    queue_id = relay.queue("held")[0]["id"]
    assert "ErrorInvalidUser" in relay.cli("queue", "show", queue_id).stdout
    wait_until(lambda: relay.status()["blocked"] == {"lab": "ErrorInvalidUser"})
    wait_until(lambda: relay.status()["upstreams"]["lab"]["held_messages"] == 3)
    nagios = relay.cli("status", "--nagios", check=False)
    assert nagios.returncode == 2, nagios.stdout
    assert "nothing leaves through upstream lab" in nagios.stdout

    relay.upstream = right
    relay.configure()
    os.kill(relay.pid, signal.SIGHUP)

    relay.wait_empty()
    mails = sandbox.client.wait_for(3)
    assert {mail.mailbox for mail in mails} == {ALERTS}
    assert {mail.header_from for mail in mails} == {ALERTS}
    (line,) = relay.lines("queue.redirected")
    for words in ("deliveries=3", f"was={WRONG}", f"mailbox={ALERTS}"):
        assert words in line
    trace = relay.cli("queue", "trace", queue_id).stdout
    assert f"lab/{WRONG} -> lab/{ALERTS}, as the configuration says now" in trace
    outcomes = [one["outcome"] for one in relay.show(queue_id)["attempts"]]
    assert outcomes[-2:] == ["moved", "sent"]
    assert relay.ask("upstream.holds")[-1]["holds"] == []


def test_mail_of_an_upstream_that_is_gone_is_taken_to_another(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    relay.upstream = sandbox.upstream_toml(messages_per_minute=0, client_secret="wrong")
    relay.configure()
    relay.cli("reload")
    queue_id = relay.json("send", "--to", "a@contoso.com")["id"]
    done = relay.cli("queue", "move", "--upstream", "acs", queue_id, check=False)
    assert (done.returncode, "there are: lab" in done.stderr) == (2, True)
    other = "scans@contoso.com"
    sandbox.client.mailbox(other)
    relay.upstream = sandbox.upstream_toml("acs", messages_per_minute=0, mailbox=other)
    relay.configure(**{f'default_from = "{ALERTS}"': f'default_from = "{other}"'})
    relay.cli("reload")
    wait_until(lambda: relay.queue("held"), told=relay.log)
    assert relay.queue("held")[0]["held_by"] == "upstream lab not configured"
    assert "queue move --upstream OTHER" in relay.cli("queue", "show", queue_id).stdout
    done = relay.cli("queue", "release", queue_id, check=False)
    assert (done.returncode, done.stdout) == (1, "released: 0 messages\n")
    assert "upstream lab not configured: put it back" in done.stderr
    assert "upstream.unknown" in relay.log()
    moving = ("queue", "move", "--upstream", "acs", "--from-upstream", "lab")
    assert relay.cli(*moving, "--dry-run").stdout == "would move: 1 message\n"
    assert relay.cli(*moving, "--yes").stdout == "moved: 1 message\n"
    relay.wait_empty()
    assert len(relay.lines("upstream.unknown")) == 1, "one worker tells of it, once"
    (mail,) = sandbox.client.wait_for(1)
    assert mail.mailbox == other
    assert (
        f"lab/{ALERTS} -> acs/{other}, by an operator"
        in relay.cli("queue", "trace", queue_id).stdout
    )


def test_a_wrong_secret_is_named_and_once_it_is_right_all_goes(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    right = relay.upstream
    relay.upstream = sandbox.upstream_toml(messages_per_minute=0, client_secret="wrong")
    relay.configure()
    relay.cli("reload")
    queue_id = relay.json("send", "--to", "a@contoso.com")["id"]

    def words() -> str:
        row: dict[str, Any] = relay.show(queue_id)["deliveries"][0]
        return f"{row['why']} {row['do']}"

    wait_until(lambda: "AADSTS7000215" in words(), told=words)
    assert "client secret is wrong" in words()
    assert "Make a new secret under Certificates & secrets" in words()
    wait_until(lambda: relay.status()["upstreams"]["lab"]["state"] != "up")
    status = relay.cli("status").stdout
    assert "7000215" in status
    assert "Upstream lab is down (AADSTS7000215): The client secret is wrong" in status
    relay.upstream = right
    relay.configure()
    relay.cli("reload")
    relay.wait_empty()
    assert "relayd is done" in relay.cli("queue", "show", queue_id).stdout


def test_sent_mail_is_sent_again_as_long_as_its_content_is_kept(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    lost = relay.json("send", "--wait", "--to", "a@contoso.com")["id"]
    done = relay.cli("queue", "resend", lost, check=False)
    assert done.returncode == 1
    assert 'its content is not kept any more, [spool] keep_sent_content is "0"' in done.stderr
    relay.configure(**{'retry = ["1s"]': 'retry = ["1s"]\nkeep_sent_content = "1h"'})
    relay.cli("reload")
    kept = relay.json("send", "--wait", "--to", "b@contoso.com")["id"]
    sandbox.client.wait_for(2)
    assert (
        "would resend: 1 message"
        in relay.cli("queue", "resend", "--since", "1d", "--dry-run").stdout
    )
    assert relay.cli("queue", "resend", kept).stdout == "sent again: 1 message\n"
    mails = sandbox.client.wait_for(3)
    assert [sorted(mail.addresses) for mail in mails].count(["b@contoso.com"]) == 2
    wait_until(lambda: relay.show(kept)["deliveries"][0]["state"] == "sent")
    outcomes = [one["outcome"] for one in relay.show(kept)["attempts"]]
    assert outcomes == ["sent", "resent", "sent"]


def test_a_filter_changes_what_it_matches_and_nothing_else(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    sandbox.client.mailbox(ALERTS, denied="ErrorSendAsDenied", heals_after_s=0)
    ids = [relay.json("send", "--to", f"{name}@contoso.com")["id"] for name in ("a", "b", "c")]
    wait_until(lambda: len(relay.queue("held")) == 3)
    assert relay.json("queue", "delete", "--to", "B@contoso", "--dry-run")["count"] == 1
    assert relay.cli("queue", "delete", "--to", "b@contoso", check=False).returncode == 1
    assert relay.json("queue", "delete", "--to", "b@contoso", "--yes")["count"] == 1
    assert [row["id"] for row in relay.queue("held")] == [ids[0], ids[2]]
    assert "Deleted by an operator" in relay.cli("queue", "show", ids[1]).stdout
    exported = relay.cli("queue", "export", ids[0]).stdout
    assert "Subject: Test mail from relayd" in exported
    assert relay.cli("queue", "export", ids[1], check=False).returncode == 1


# ---- the daemon is down


def test_after_a_crash_the_spool_is_read_and_nothing_else_is_done(
    relay: RelayProcess, sandbox: SandboxProcess
) -> None:
    sandbox.client.mailbox(ALERTS, denied="ErrorSendAsDenied", heals_after_s=0)
    queue_id = relay.json("send", "--to", "a@contoso.com")["id"]
    wait_until(lambda: relay.queue("held"))
    pids = [relay.pid, *relay.pids("worker"), *relay.pids("cached")]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert relay.process is not None
    relay.process.wait(10)
    relay.process = None
    done = relay.cli("queue", "list", "--json")
    assert [row["id"] for row in json.loads(done.stdout)] == [queue_id]
    assert "relayd is not running" in done.stderr
    assert "ErrorSendAsDenied" in relay.cli("queue", "show", queue_id).stdout
    assert "misconfigured" in relay.cli("queue", "trace", queue_id).stdout
    for words in (["release", queue_id], ["delete", "--to", "a", "--yes"], ["export", queue_id]):
        refused = relay.cli("queue", *words, check=False)
        assert refused.returncode == 69
        assert "/relayd.toml run\n" in refused.stderr
    # What was read is as it was: the relay goes on with it.
    sandbox.client.mailbox(ALERTS, denied="")
    relay.start()
    assert [row["id"] for row in relay.queue("held")] == [queue_id]
    relay.cli("queue", "release", queue_id)
    relay.wait_empty()


# ---- clients that misbehave


def test_garbage_and_huge_requests_cost_only_their_client(relay: RelayProcess) -> None:
    workers = sorted(relay.pids("worker"))
    for octets in (
        b"\xff" * 64,
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("!I", 5) + b"[1,2]",
        struct.pack("!I", 7) + b'{"a": 1',
        struct.pack("!I", 1 << 20) + b" " * (1 << 20),
        b"",
    ):
        with control_socket(relay) as sock:
            sock.sendall(octets)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b""
    requests: list[Frame] = [
        {"command": "queue.show", "id": "x" * 70_000},
        {"command": "queue.show", "id": "x" * 50_000},
        {"command": "queue.list", "since": ["x"] * 1000},
        {"command": "queue.delete", "ids": [None] * 5000},
        {"command": "smtp", "device": {"a": 1}},
        {"command": "nonsense" * 1000},
    ]
    for request in requests:
        with control_socket(relay) as sock:
            sock.sendall(encode(request))
            frames = Decoder().feed(sock.recv(1 << 20))
            assert frames[0]["ok"] is False, request
    assert sorted(relay.pids("worker")) == workers
    relay.cli("send", "--to", "a@contoso.com", "--wait")


FIRST = 1_700_000_000_000_000 * 4096
FILL = """
    WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :count)
    INSERT INTO message SELECT :first + i * 64, 'a@contoso.com', 1, :at, :at, 100, '', '', '',
      's', 'lan', '127.0.0.1', '', 'lan', '' FROM n
    """
FILL_DELIVERIES = """
    INSERT INTO delivery (id, message, upstream, mailbox, header_from, set_from,
      reply_to_original, recipients, priority, expires_at, state, fence, due, settled_at)
    SELECT id, id, 'lab', 'alerts@contoso.com', '', '', 0, '["b@contoso.com"]', 1, :at, 4, 1, 0,
      :at FROM message WHERE accepted_at = :at
    """


def fill(relay: RelayProcess, count: int) -> None:
    """Put `count` sent messages into the spool of a relay that is stopped."""
    with closing(sqlite3.connect(relay.folder / "spool/spool.db")) as connection, connection:
        values = {"count": count, "first": FIRST, "at": 1_795_000_000_000_000}
        connection.execute(FILL, values)
        connection.execute(FILL_DELIVERIES, values)


LONG = 100_000


@pytest.fixture
def crowded(relay: RelayProcess) -> RelayProcess:
    """A relay whose history has 100,000 messages."""
    relay.stop()
    fill(relay, LONG)
    relay.start()
    return relay


def memory_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_a_long_list_streams_through_little_memory(crowded: RelayProcess) -> None:
    before = [memory_kib(pid) for pid in crowded.pids("worker")]
    read = subprocess.Popen(
        [sys.executable, "-m", "relayd", "queue", "list", "--state", "all",
         "--config", str(crowded.path)],
        stdout=subprocess.PIPE, env=clean_environment(),
    )  # fmt: skip
    assert read.stdout is not None
    lines = used_kib = 0
    for _ in read.stdout:
        lines += 1
        if lines % 5000 == 0:
            used_kib = max(used_kib, memory_kib(read.pid))
    read.stdout.close()
    assert read.wait(30) == 0
    assert lines == LONG + 1
    after = [memory_kib(pid) for pid in crowded.pids("worker")]
    # 100,000 rows as objects are some 200 MB; a page is less than one.
    assert 0 < used_kib < 150_000
    assert sum(after) - sum(before) < 60_000
    assert len(crowded.json("queue", "list", "--state", "all", "--limit", "300")) == 300


def test_a_client_that_does_not_read_is_dropped_and_keeps_nobody_waiting(
    crowded: RelayProcess,
) -> None:
    with control_socket(crowded) as lazy:
        lazy.sendall(encode({"command": "queue.list", "state": "all"}))
        for _ in range(4):  # whichever worker it went to, both answer others
            assert crowded.ask("queue.list", limit=1)
        # 30 s after the kernel's buffers were full the worker gives it up.
        wait_until(
            lambda: not any(has_client(crowded, pid) for pid in crowded.pids("worker")),
            seconds=60,
            told="still connected",
        )
        octets = 0
        while piece := lazy.recv(1 << 20):
            octets += len(piece)
    assert octets < 10_000_000, "it was cut off"
    first = queue_id_text(FIRST)
    assert crowded.show(first)["id"] == first


def has_client(relay: RelayProcess, pid: int) -> bool:
    """Tell whether a worker holds a control client: its socket bears the path of control.sock."""
    inodes = set()
    for line in Path("/proc/net/unix").read_text().splitlines():
        parts = line.split()
        if len(parts) == 8 and parts[7] == str(relay.folder / "run" / "control.sock"):
            inodes.add(parts[6])
    held = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(fd)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            held.add(target[8:-1])
    return bool(inodes & held)
