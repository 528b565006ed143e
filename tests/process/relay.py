"""A relay of real processes for tests: start it, ask it, wait for what must become true."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from relayd.master import client

ROOT = Path(__file__).parents[2]
PATIENCE_S = 25.0


class Relay:
    """One master; `folder` is its runtime_dir and holds its configuration and its log."""

    def __init__(self, folder: Path, **config: object) -> None:
        self.folder = folder
        self.config_path = folder / "relayd.json"
        self.log_path = folder / "log"
        self.config: dict[str, object] = {"runtime_dir": str(folder)} | config
        self.options: dict[str, object] = {"timings": {}}
        self.environ: Mapping[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self._known: set[int] = set()

    def write(self, **changes: object) -> None:
        self.config |= changes
        temporary = self.config_path.with_suffix(".new")
        temporary.write_text(json.dumps(self.config))
        temporary.replace(self.config_path)

    def start(self, *, command: list[str] | None = None, **popen: Any) -> None:
        self.write()
        command = command or [
            sys.executable,
            "-m",
            "tests.process.run_master",
            str(self.config_path),
            json.dumps(self.options),
        ]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **self.environ},
                **popen,
            )

    def start_and_wait(self) -> None:
        self.start()
        self.wait_running()

    def wait_running(self) -> None:
        self.until(lambda: self.status().get("state") == "running", "running")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait_exit(self, within_s: float = PATIENCE_S) -> int:
        assert self.process is not None
        return self.process.wait(within_s)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def lines(self, event: str) -> list[str]:
        return [line for line in self.log().splitlines() if line.startswith(f"{event} ")]

    def ask(self, timeout_s: float = PATIENCE_S, /, **request: Any) -> dict[str, Any]:
        return client.ask(str(self.folder / "control.sock"), request, timeout_s=timeout_s)

    def status(self) -> dict[str, Any]:
        """Return the status; {} while nobody answers."""
        try:
            reply = self.ask(command="status")
        except client.NotRunning:
            return {}
        result: dict[str, Any] = reply["result"]
        self._known |= {row["pid"] for row in result["processes"]}
        return result

    def workers(self) -> list[int]:
        """Return the pids of the workers that serve."""
        rows = self.status().get("processes", [])
        return [r["pid"] for r in rows if r["kind"] == "worker" and r["state"] == "ready"]

    def port(self) -> int:
        listeners = self.status()["listeners"]
        return int(listeners[0]["address"].rpartition(":")[2])

    def connect(self, port: int | None = None) -> Session:
        return Session(port or self.port())

    def greeting(self, port: int | None = None) -> str:
        with self.connect(port) as session:
            return session.hostname

    def until_greeted(self, hostname: str, port: int | None = None) -> None:
        """Wait for a greeting by this name: who was told to go a moment ago may take one more."""
        self.until(lambda: self.greeting(port) == hostname, f"{hostname} greets")

    def until(self, what: Callable[[], object], why: str, within_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + within_s
        while not what():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_s:g} s: {why}\n{self.log()}")
            time.sleep(0.01)

    def notes(self, name: str) -> list[str]:
        try:
            return (self.folder / name).read_text().split()
        except FileNotFoundError:
            return []

    def clean_up(self) -> None:
        """End every process of this relay; all were started here."""
        with contextlib.suppress(AssertionError, OSError, KeyError):
            self.status()
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
        for pid in self._known:
            if is_alive(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class Session:
    """A connection to a fake worker."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        try:
            self.hostname, pid, number = self.read_line().split()
        except (OSError, ValueError):
            self.sock.close()
            raise
        self.pid, self.number = int(pid), int(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def read_line(self) -> str:
        line = b""
        while not line.endswith(b"\n"):
            octets = self.sock.recv(4096)
            if not octets:
                raise ConnectionResetError("closed")
            line += octets
        return line.decode()

    def say(self, text: str) -> None:
        self.sock.sendall(f"{text}\n".encode())

    def is_closed(self) -> bool:
        try:
            return self.sock.recv(100) == b""
        except ConnectionError:
            return True


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def a_relay(folder: Path) -> Iterator[Relay]:
    """Yield a relay and leave no process behind; for fixtures."""
    relay = Relay(folder)
    try:
        yield relay
    finally:
        relay.clean_up()
