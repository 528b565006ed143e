"""A live worker has nothing loaded that it does not use: each MiB counts once for each CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.relay_process import RelayProcess

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
