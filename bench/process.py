"""Processes under measurement: started, watched, stopped by pid; CPU and memory of their trees."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def clean_environment() -> dict[str, str]:
    """Return the environment without what would change TLS trust or proxies."""
    dropped = ("_CA_BUNDLE", "SSL_CERT_", "_proxy", "_PROXY")
    return {k: v for k, v in os.environ.items() if not any(word in k for word in dropped)}


@contextlib.contextmanager
def running(command: list[str], log: Path, **options: object) -> Iterator[int]:
    """Run a server while the block lasts; its output goes to `log`. Yields its pid."""
    with log.open("ab") as out:
        process = subprocess.Popen(  # type: ignore[call-overload]  # options are Popen's own
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=clean_environment(),
            **options,
        )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def wait_for_port(port: int, *, seconds: float = 20) -> None:
    """Return when something listens on 127.0.0.1:port; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on port {port}")


def tree(pid: int) -> list[int]:
    """Return `pid` and all its living descendants."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        found.append(one)
        for task in Path(f"/proc/{one}/task").glob("*"):
            with contextlib.suppress(OSError):
                todo += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_s(pid: int) -> float:
    """Return user and system seconds of `pid`'s tree, reaped children included."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(n) for n in fields[11:15])
    return total / TICKS


def memory_kib(pid: int, field: str = "VmRSS") -> int:
    """Return a /proc/PID/status figure of one process, KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


def titled(pid: int, word: str) -> list[int]:
    """Return the processes of `pid`'s tree whose title has `word`."""
    out = []
    for one in tree(pid):
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode():
                out.append(one)
    return out
