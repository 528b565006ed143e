"""The live master has nothing loaded that a worker must patch first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.relay import Relay, a_relay

FORBIDDEN = {
    "gevent",
    "greenlet",
    "ssl",
    "_ssl",
    "structlog",
    "logging",
    "threading",
    "asyncio",
    "tomllib",
    "subprocess",
    "concurrent.futures",
    "queue",
    "sqlite3",
    "requests",
    "urllib3",
    "msal",
    "http.client",
    "email",
    "cryptography",
    "setproctitle",
}
ROOMS = {
    "relayd.config",
    "relayd.observe",
    "relayd.master",
    "relayd.clock",
    "relayd.errors",
    "relayd.lean",
    "relayd.values",
}


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    yield from a_relay(tmp_path)


@pytest.mark.slow(1)
@pytest.mark.timeout(120)
def test_a_master_that_served_and_reloaded_is_lean(relay: Relay) -> None:
    relay.start_and_wait()
    assert relay.ask(command="reload")["ok"] is True
    assert relay.ask(command="metrics")["ok"] is True
    modules = set(relay.ask(command="debug.modules")["result"]["modules"])
    assert modules & FORBIDDEN == set()
    ours = {".".join(name.split(".")[:2]) for name in modules if name.startswith("relayd.")}
    assert ours == ROOMS
