"""A live worker has nothing loaded that it does not use, and pushes nobody off the CPU."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.relay_process import RelayProcess, wait_until

UNUSED = {"rich", "pygments", "pkg_resources", "msal", "requests"}
TLS_OFF = '\n[tls]\nsource = "off"\n'

pytestmark = [pytest.mark.slow(4), pytest.mark.timeout(120)]


def modules_of_a_worker(relay: RelayProcess) -> set[str]:
    (answer,) = relay.ask("debug.worker")
    return set(answer["modules"])


def test_a_worker_without_tls_has_no_cryptography(tmp_path: Path) -> None:
    with RelayProcess(tmp_path / "relay", "", more=TLS_OFF) as relay:
        modules = modules_of_a_worker(relay)
    assert "relayd.worker" in modules
    assert modules & (UNUSED | {"cryptography"}) == set()


def test_a_worker_whose_certificate_is_good_has_no_cryptography_either(tmp_path: Path) -> None:
    relay = RelayProcess(tmp_path / "relay", "")
    with relay:
        pass  # the first start makes the certificate
    with relay:
        modules = modules_of_a_worker(relay)
    assert "relayd.net.selfsigned" in modules
    assert modules & (UNUSED | {"cryptography"}) == set()


def policies(relay: RelayProcess) -> set[int]:
    """Return the scheduling policies of the workers' threads."""
    tasks = [task for pid in relay.pids("worker") for task in Path(f"/proc/{pid}/task").iterdir()]
    found = set()
    for task in tasks:
        with suppress(ProcessLookupError):  # a thread may end meanwhile
            found.add(os.sched_getscheduler(int(task.name)))
    return found


def test_workers_are_batch_processes_and_so_are_their_threads(tmp_path: Path) -> None:
    with RelayProcess(tmp_path / "relay", "", more=TLS_OFF) as relay:
        wait_until(lambda: policies(relay) == {os.SCHED_BATCH}, told=lambda: str(policies(relay)))


def test_the_units_say_the_same_where_they_forbid_the_call() -> None:
    for unit in Path("systemd").glob("relayd*.service"):
        assert "CPUSchedulingPolicy=batch" in unit.read_text().splitlines()
