"""A guest with a sandbox Microsoft 365 in it, and the devices outside.

The sandbox runs as a service of the guest; relayd is configured in conf.d, so that the packaged
relayd.toml stays as it came.
"""

from __future__ import annotations

import contextlib
import json
import smtplib
import subprocess
import threading
from collections.abc import Iterator
from typing import Any, Self

from tests.boot.guest import PATIENCE_S, Guest
from tests.load import Load, verdict
from tests.relay_process import wait_until
from tests.sandbox_client import SandboxClient

FACTS = "/srv/lab/facts.json"
SNIPPET = "/etc/relayd/conf.d/10-lab.toml"
DEVICES = """
[[device]]
name = "lan"
networks = ["127.0.0.1/32", "::1/128"]
allow_to = ["*"]
default_from = "alerts@contoso.com"
"""
SIX = """
[[listener]]
name = "six"
address = ["[::1]:25"]
"""
SIZES = (400, 2_000, 20_000, 90_000)


class Lab:
    """guest: has relayd installed, so that it has the sandbox."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.facts: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.forget_sandbox()

    def forget_sandbox(self) -> None:
        """Close our connection to it."""
        if self.facts:
            self.client.close()

    def start_sandbox(self) -> None:
        """Start it as a service of the guest, or again; returns when it serves."""
        self.forget_sandbox()
        self.guest.path("/srv/lab").mkdir(parents=True, exist_ok=True)
        self.guest.path(FACTS).unlink(missing_ok=True)
        command = ["relayd", "sandbox", "--json", "--quiet", "--state-dir", "/srv/lab/state"]
        self.guest.run(
            "systemd-run",
            "--unit=lab",
            "--collect",
            f"--property=StandardOutput=file:{FACTS}",
            *command,
        )
        wait_until(self._is_up, seconds=PATIENCE_S, told=lambda: self.guest.status("lab"))
        self.facts = json.loads(self.guest.path(FACTS).read_text())
        self.client = SandboxClient(
            self.facts["host"],
            self.facts["port"],
            self.facts["control_key"],
            str(self.guest.path(self.facts["ca_file"])),
            client_id=self.facts["client_id"],
            client_secret=self.facts["client_secret"],
            tenant=self.facts["tenant"],
            timeout_s=PATIENCE_S,
        )
        self.client.knobs(requests_per_window=0, octets_per_window=0, recipients_per_day=0)

    def _is_up(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self.guest.path(FACTS).read_text().endswith("\n")
        return False

    def snippet(
        self, *, hostname: str = "relay.test", more: str = "", secret: str = "", **upstream: object
    ) -> str:
        """Return the configuration against the sandbox. secret: TOML in place of the secret's."""
        base = self.facts["base"]
        keys = {"mailbox": self.facts["mailboxes"][0], "messages_per_minute": 0, **upstream}
        lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        secret = secret or f'client_secret = "{self.facts["client_secret"]}"'
        return f"""
[server]
hostname = "{hostname}"
graceful_timeout = "30s"

[cloud.lab]
authority = "{base}"
graph = "{base}/v1.0"
ca_file = "{self.facts["ca_file"]}"

[upstream.lab]
cloud = "lab"
tenant = "{self.facts["tenant"]}"
client_id = "{self.facts["client_id"]}"
{secret}
{lines}
[spool]
retry = ["1s"]
{DEVICES}{more}"""

    def setup(self, *, test_mail: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `relayd setup` as Ansible would, against the sandbox."""
        self.guest.run("chmod", "a+rx", "/srv/lab/state")
        self.guest.put("/etc/setup.secret", self.facts["client_secret"] + "\n", mode=0o600)
        base = self.facts["base"]
        words = ["--name", "lab", "--tenant", self.facts["tenant"], "--mailbox"]
        words += [self.facts["mailboxes"][0], "--client-id", self.facts["client_id"]]
        words += ["--authority", base, "--graph", f"{base}/v1.0"]
        words += ["--ca-file", self.facts["ca_file"], "--secret-file", "/etc/setup.secret"]
        words += ["--network", "127.0.0.1/32", "--network", "::1/128"]
        if test_mail:
            words += ["--test-to", "ops@contoso.com"]
        return self.guest.run("relayd", "setup", "--no-input", *words, check=False)

    def configure(self, **edits: Any) -> None:
        """Write it; see `snippet`. Nothing is reloaded."""
        # The state of the sandbox is root's; its CA is for everybody.
        self.guest.run("chmod", "a+rx", "/srv/lab/state")
        self.guest.put(SNIPPET, self.snippet(**edits), mode=0o640, owner="root:relayd")

    # ── the relay ───────────────────────────────────────────────────────────────────────

    def reload(self) -> subprocess.CompletedProcess[str]:
        """Reload it the administrator's way."""
        return self.guest.run("systemctl", "reload", "relayd", check=False)

    def waiting(self) -> int:
        """Return how many deliveries have not left."""
        return len(self.guest.json("relayd", "queue", "list", "--json"))

    def wait_empty(self) -> None:
        """Wait until everything has left."""
        wait_until(lambda: not self.waiting(), seconds=PATIENCE_S, told=self._what_waits)

    def _what_waits(self) -> str:
        done = self.guest.run("relayd", "queue", "list", check=False)
        return f"{done.stdout}{done.stderr}\n{self.guest.journal()[-4000:]}"

    def status(self) -> dict[str, Any]:
        """Return `relayd status --json`."""
        found: dict[str, Any] = self.guest.json("relayd", "status", "--json")
        return found


def banner(host: str = "127.0.0.1", port: int = 25) -> str:
    """Return the name in the greeting."""
    with contextlib.closing(smtplib.SMTP(local_hostname="looker.test", timeout=60)) as client:
        code, text = client.connect(host, port)
        assert code == 220, (code, text)
        return text.decode().split()[0]


def wait_until_all_greet_as(name: str) -> None:
    """Wait until every worker of both families says this name: old ones leave in a moment."""
    wait_until(
        lambda: {banner(host) for host in ("127.0.0.1", "::1") * 4} == {name},
        told=f"somebody does not greet as {name}",
    )


def replies(*commands: str, host: str = "127.0.0.1", port: int = 25) -> list[tuple[int, str]]:
    """Say EHLO, then each command; return the answers to those."""
    with smtplib.SMTP(host, port, "looker.test", timeout=60) as client:
        client.ehlo()
        return [
            (code, text.decode()) for code, text in (client.docmd(command) for command in commands)
        ]


class Source:
    """Postfix's smtp-source, over and over: one connection for each message.

    It gives up at the first refused or broken session, which `trouble` then tells.
    """

    BATCH = 30

    BURST = 250

    def __init__(self, target: str, recipient: str) -> None:
        self._target = target
        self.recipient = recipient
        self.accepted = 0
        self.trouble: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "smtp-source hangs"

    @contextlib.contextmanager
    def burst(self) -> Iterator[None]:
        """Send as fast as 20 sessions can while the body runs; outside of it nothing else is sent.

        What is hit by a reload is then sure to be in every phase of a session.
        """
        with self._lock:
            child = self._start(20, self.BURST)
            try:
                yield
            finally:
                self._end(child, self.BURST)

    def _start(self, sessions: int, messages: int) -> subprocess.Popen[str]:
        command = ["smtp-source", "-s", str(sessions), "-m", str(messages), "-l", "2000"]
        command += ["-f", "device@contoso.com", "-t", self.recipient, self._target]
        return subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def _end(self, child: subprocess.Popen[str], messages: int) -> None:
        try:
            _, said = child.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            _, said = child.communicate()
        if child.returncode == 0:
            self.accepted += messages
        else:
            self.trouble.append(f"exit {child.returncode}: {said.strip()}")

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                self._end(self._start(3, self.BATCH), self.BATCH)
            # A queue of thousands would only make the wait for its end longer.
            self._stop.wait(0.5)


class Devices:
    """All kinds of devices at once: sessions kept, sessions for one message, and smtp-source.

    name: begins what identifies their mail. hosts: where they connect.
    """

    def __init__(self, name: str, hosts: tuple[str, ...] = ("127.0.0.1", "::1")) -> None:
        self.loads: list[Load] = []
        self.sources: list[Source] = []
        for number, host in enumerate(hosts):
            kept, fresh = f"{name}-kept{number}-", f"{name}-new{number}-"
            self.loads += [
                Load(25, senders=1, host=host, name=kept, sizes=SIZES, pause_s=0.1),
                Load(
                    25, senders=2, host=host, name=fresh, sizes=SIZES, pause_s=0.1,
                    new_connection_each=True,
                ),
            ]  # fmt: skip
            target = f"[{host}]:25" if ":" in host else f"{host}:25"
            self.sources.append(Source(target, f"{name}{number}@contoso.com"))
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for load in self.loads:
            self._stack.enter_context(load)
        for source in self.sources:
            self._stack.enter_context(source)
        self.wait_for_more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def accepted(self) -> int:
        """How many messages were acknowledged so far."""
        mine = sum(len(load.acknowledged) for load in self.loads)
        return mine + sum(source.accepted for source in self.sources)

    def wait_for_more(self) -> None:
        """Wait until every kind of device got another message through."""
        counts = [len(load.acknowledged) for load in self.loads]
        counts += [source.accepted for source in self.sources]

        def has_more() -> bool:
            now = [len(load.acknowledged) for load in self.loads]
            now += [source.accepted for source in self.sources]
            return all(new > old for old, new in zip(counts, now, strict=True))

        wait_until(has_more, seconds=PATIENCE_S, told=lambda: f"no mail: {self.troubles()}")

    def troubles(self) -> list[str]:
        """Return every refusal and every session that broke."""
        return list(self._troubles())

    def _troubles(self) -> Iterator[str]:
        for load in self.loads:
            yield from load.broken
            yield from load.refused
        for source in self.sources:
            yield from source.trouble

    def refused_connections(self) -> list[str]:
        """Return connections that nobody took."""
        return [text for text in self.troubles() if "refused" in text.lower()]

    def assert_delivered(self, client: SandboxClient, *, twice: bool = False) -> None:
        """Fail unless everything acknowledged has come, and come once (or `twice` is allowed)."""
        for load in self.loads:
            told = verdict(load.acknowledged, client)
            assert told.lost == []
            assert told.damaged == []
            assert twice or told.twice == {}
        for source in self.sources:
            came = sum(1 for _ in client.messages(recipient=source.recipient))
            assert came >= source.accepted
            assert twice or source.trouble or came == source.accepted
