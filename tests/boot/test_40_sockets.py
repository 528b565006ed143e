"""Socket activation: systemd holds the port, whatever becomes of relayd."""

from __future__ import annotations

import pytest

from tests.boot.conftest import offer
from tests.boot.guest import Guest
from tests.boot.lab import Devices, Lab, banner, wait_until_all_greet_as
from tests.load import submit

pytestmark = [pytest.mark.slow(60), pytest.mark.timeout(900)]
RELOADS = 5
DROP_IN = """\
[Socket]
ListenStream=
ListenStream=127.0.0.1:25
ListenStream=[::1]:25
"""


@pytest.fixture(scope="module", autouse=True)
def activated(full: Guest, lab: Lab) -> None:
    offer(full, "old")
    full.run("apt-get", "install", "-qy", "relayd")
    lab.start_sandbox()
    lab.configure()
    full.put("/etc/systemd/system/relayd.socket.d/addresses.conf", DROP_IN)
    full.run("systemctl", "daemon-reload")
    full.run("systemctl", "stop", "relayd")
    full.run("systemctl", "enable", "--now", "relayd.socket")


def test_the_first_connection_starts_it(full: Guest, lab: Lab) -> None:
    assert full.state() == "inactive dead"
    submit(25, "first")
    full.wait_state("active running")
    lab.wait_empty()
    assert {one["origin"] for one in lab.status()["listeners"]} == {"systemd"}
    assert banner("::1") == "relay.test"


def test_reloads_under_load_refuse_and_break_nothing(full: Guest, lab: Lab) -> None:
    pid = full.main_pid()
    with Devices("reload") as devices:
        for number in range(1, RELOADS + 1):
            name = f"relay-{number}.test"
            lab.configure(hostname=name)
            with devices.sources[number % 2].burst():
                done = lab.reload()
            assert done.returncode == 0, done.stderr
            wait_until_all_greet_as(name)
            devices.wait_for_more()
    lab.wait_empty()
    assert devices.troubles() == []
    devices.assert_delivered(lab.client)
    assert full.main_pid() == pid


def test_an_upgrade_under_load_refuses_and_breaks_nothing(full: Guest, lab: Lab) -> None:
    old, pid = lab.status()["version"], full.main_pid()
    offer(full, "new")
    with Devices("upgrade") as devices:
        full.run("apt-get", "install", "-qy", "relayd")
        assert lab.status()["version"] != old
        devices.wait_for_more()
    lab.wait_empty()
    assert devices.troubles() == []
    devices.assert_delivered(lab.client)
    assert full.main_pid() == pid
    assert full.state("relayd.socket") == "active running"


def test_a_restart_makes_devices_wait_and_refuses_nobody(full: Guest, lab: Lab) -> None:
    with Devices("restart") as devices:
        full.run("systemctl", "restart", "relayd")
        devices.wait_for_more()
    lab.wait_empty()
    assert devices.refused_connections() == []
    devices.assert_delivered(lab.client)


def test_a_purge_of_a_relay_with_a_socket_leaves_the_port_free(full: Guest) -> None:
    full.run("apt-get", "purge", "-qy", "relayd")
    assert full.state("relayd.socket") == "inactive dead"
    with pytest.raises(ConnectionRefusedError):
        banner()
