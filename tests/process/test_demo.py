"""`make demo` and `make run` as a newcomer sees them, also with nothing but Debian's libraries."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.relay_process import clean_environment

ROOT = Path(__file__).parent.parent.parent
DEBIAN = "/usr/bin/python3"
MODULES = "argon2 cryptography gevent msal requests setproctitle structlog urllib3"


def demo(python: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "tools/demo.py", *words],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def judge(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, (done.stdout, done.stderr)
    shown = done.stdout
    assert shown.count("250 2.0.0 Ok: queued as ") == 3
    for mailbox in ("admin@contoso.com", "backup@contoso.com", "office@contoso.com"):
        assert mailbox in shown
    assert "UPS: on battery" in shown
    assert re.search(r"workers 1, 2 .* ready", shown)
    assert "warnings" not in shown
    assert shown.count("sent   ") == 3


@pytest.mark.slow(3)
@pytest.mark.timeout(120)
def test_the_demo_shows_three_devices_mail_and_stops() -> None:
    judge(demo(sys.executable))


@pytest.mark.slow(3)
@pytest.mark.timeout(120)
def test_the_demo_runs_with_debians_own_libraries() -> None:
    wanted = "import " + ", ".join(MODULES.split())
    if subprocess.run([DEBIAN, "-c", wanted], capture_output=True, check=False).returncode:
        pytest.skip("Debian's python3-* packages are not installed (tools/clients.sh does it)")

    judge(demo(DEBIAN))


@pytest.mark.slow(5)
@pytest.mark.timeout(120)
def test_run_stays_up_says_where_to_go_and_stops_at_ctrl_c() -> None:
    with subprocess.Popen(
        [sys.executable, "tools/demo.py", "--stay", "--port", "0"],
        cwd=ROOT,
        env=clean_environment() | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        shown, deadline = b"", time.monotonic() + 60
        while b"Ctrl-C stops it." not in shown and time.monotonic() < deadline:
            if select.select([process.stdout], [], [], 1)[0]:
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    break
                shown += chunk
        process.send_signal(signal.SIGINT)
        code = process.wait(60)

    assert b"The inbox page: http://" in shown, shown.decode()
    assert b"Point a client on this machine at 127.0.0.1:" in shown
    assert code == 0
