"""relayd as a real process for tests: configured, started, watched, stopped by pid."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from relayd.master import client as control
from relayd.master.client import NotRunning

PYTHON = os.environ.get("RELAYD_PYTHON", sys.executable)
"""What runs relayd and its sandbox; `make test` has some tests once more on Debian's own Python."""

CONFIG = """
[server]
hostname = "relay.test"
default_domain = "contoso.com"
workers = 2
graceful_timeout = "20s"
runtime_dir = "{folder}/run"
state_dir = "{folder}/state"

[[listener]]
name = "lan"
address = ["127.0.0.1:{port}"]
auth_without_tls = true

[limits]
min_free_disk = "16MiB"

[spool]
url = "sqlite:///{folder}/spool/spool.db"
retry = ["1s"]

{upstream}

[[device]]
name = "lan"
networks = ["127.0.0.1/32"]
allow_to = ["*"]
default_from = "alerts@contoso.com"

[admin]
address = "{admin}"

[log]
format = "logfmt"
"""


PRIORITIES = """
[[device]]
name = "ups"
networks = ["127.0.0.2/32"]
allow_to = ["*"]
default_from = "alerts@contoso.com"
priority = "high"

[[device]]
name = "scans"
networks = ["127.0.0.3/32"]
allow_to = ["*"]
default_from = "alerts@contoso.com"
priority = "low"
"""
HIGH, NORMAL, LOW = "127.0.0.2", "127.0.0.1", "127.0.0.3"
"""More devices, and the addresses they and CONFIG's come from."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment() -> dict[str, str]:
    """Return the environment without what would change TLS trust or proxies."""
    dropped = ("_CA_BUNDLE", "SSL_CERT_", "_proxy", "_PROXY", "RELAYD_")
    return {k: v for k, v in os.environ.items() if not any(word in k for word in dropped)}


def wait_until(
    what: Callable[[], object], *, seconds: float = 60, told: str | Callable[[], object] = ""
) -> None:
    """Poll until `what()` is true; an AssertionError names what did not come, or what is there."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            words = told() if callable(told) else told
            raise AssertionError(words or f"{what} did not come in {seconds} s")
        time.sleep(0.03)


def processes(pid: int) -> dict[int, str]:
    """Return pid -> command line of `pid` and its descendants."""
    out: dict[int, str] = {}
    todo = [pid]
    while todo:
        one = todo.pop()
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ")
            out[one] = line.decode(errors="replace").strip()
            for task in Path(f"/proc/{one}/task").glob("*"):
                todo += [int(c) for c in (task / "children").read_text().split()]
    return out


class RelayProcess:
    """One relayd in its own folder. upstream: TOML of [cloud.*] and [upstream.*].

    admin: [admin] address; none unless a test wants it.
    """

    def __init__(
        self, folder: Path, upstream: str, *, more: str = "", admin: str = "", **edits: str
    ) -> None:
        self.folder = folder
        self.admin = admin
        self.port = free_port()
        self.path = folder / "relayd.toml"
        self.log_path = folder / "relayd.log"
        self.upstream = upstream
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(more, **edits)

    def configure(self, more: str = "", **edits: str) -> None:
        """Write the configuration; `edits` replaces text of CONFIG (old=new by keyword pairs)."""
        text = CONFIG.format(
            folder=self.folder, port=self.port, upstream=self.upstream, admin=self.admin
        )
        for old, new in edits.items():
            assert old in text, old
            text = text.replace(old, new)
        self.path.write_text(text + more)
        self.path.chmod(0o600)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(fast=True)

    def start(self, *, program: tuple[str, ...] = ("-m", "relayd")) -> None:
        """Start it and wait until it serves. program: what Python is to run."""
        with self.log_path.open("ab") as out:
            self.process = subprocess.Popen(
                [PYTHON, *program, "run", "--config", str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=clean_environment(),
            )
        wait_until(self.is_up, seconds=60, told="no banner")

    def is_up(self) -> bool:
        """Tell whether a banner comes."""
        assert self.process is not None
        assert self.process.poll() is None, f"exited {self.process.returncode}:\n{self.log()}"
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 2) as client,
        ):
            return client.recv(100).startswith(b"220")
        return False

    @property
    def pid(self) -> int:
        """The master's pid."""
        assert self.process is not None
        return self.process.pid

    def pids(self, word: str) -> list[int]:
        """Return the pids whose title has `word` ("worker", "cached")."""
        return [one for one, line in processes(self.pid).items() if f"relayd: {word}" in line]

    def log(self) -> str:
        """Return all it wrote."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `relayd WORDS --config ours`."""
        done = subprocess.run(
            [PYTHON, "-m", "relayd", *words, "--config", str(self.path)],
            capture_output=True,
            text=True,
            timeout=60,
            env=clean_environment(),
            check=False,
        )
        assert not check or done.returncode == 0, (words, done.returncode, done.stdout, done.stderr)
        return done

    def ask(self, command: str, **more: Any) -> list[dict[str, Any]]:
        """Ask at control.sock, without the price of a process; returns each frame's result.

        A refusal is an AssertionError with its words.
        """
        path = str(self.folder / "run" / "control.sock")
        out: list[dict[str, Any]] = []
        for frame in control.stream(path, {"command": command, **more}, timeout_s=120):
            assert frame["ok"] is True, frame
            result: Any = frame.get("result")
            out.append(result)
        return out

    def status(self) -> dict[str, Any]:
        """Return the status; {} while nobody answers."""
        try:
            return self.ask("status")[-1]
        except NotRunning:
            return {}

    def queue(self, state: str = "waiting", **more: Any) -> list[dict[str, Any]]:
        """Return the rows of `queue list --state STATE`."""
        return [
            row for page in self.ask("queue.list", state=state, **more) for row in page["messages"]
        ]

    def show(self, queue_id: str) -> dict[str, Any]:
        """Return `queue show` of one message."""
        return self.ask("queue.show", id=queue_id)[-1]

    def wait_empty(self, *, seconds: float = 180) -> None:
        """Wait until nothing waits; an AssertionError shows what does."""
        deadline = time.monotonic() + seconds
        while rows := self.queue():
            assert time.monotonic() < deadline, (
                f"{len(rows)} wait, as {rows[:3]}\n{self.log()[-4000:]}"
            )
            time.sleep(0.1)

    def lines(self, event: str) -> list[str]:
        """Return the log's lines of one event."""
        return [line for line in self.log().splitlines() if line.startswith(f"{event} ")]

    def json(self, *words: str) -> Any:
        """Run a command with --json and return what it printed."""
        return json.loads(self.cli(*words, "--json").stdout)

    def stop(self, *, seconds: float = 30, fast: bool = False) -> int:
        """Stop it, gracefully unless `fast`; returns its exit status."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT if fast else signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                for one in processes(self.process.pid):
                    os.kill(one, signal.SIGKILL)
                self.process.wait(5)
                raise
        status = self.process.returncode
        self.process = None
        return status
