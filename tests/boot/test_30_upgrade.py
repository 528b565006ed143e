"""From the version before to this one and back, while devices send."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest

from tests.boot.conftest import offer
from tests.boot.guest import Guest
from tests.boot.lab import SIX, Devices, Lab
from tests.load import submit

pytestmark = [pytest.mark.slow(60), pytest.mark.timeout(900)]
SPOOL = "/var/spool/relayd/spool.db"


@pytest.fixture(scope="module", autouse=True)
def installed(full: Guest, lab: Lab) -> None:
    offer(full, "old")
    full.run("apt-get", "install", "-qy", "relayd")
    lab.start_sandbox()
    lab.configure(more=SIX)
    assert lab.reload().returncode == 0


def version(guest: Guest, kind: str) -> str:
    """Return a version of the package: "${Version}" of dpkg, or what the running relay says."""
    if kind == "running":
        return str(guest.json("relayd", "status", "--json")["version"])
    return guest.out("dpkg-query", "-W", "-f", "${Version}", "relayd")


def test_an_upgrade_under_load_refuses_and_breaks_nothing(
    full: Guest, lab: Lab, note: Callable[[str], None]
) -> None:
    old = version(full, "running")
    assert old == version(full, "installed")
    pid = full.main_pid()
    offer(full, "new")
    with Devices("upgrade") as devices:
        done = full.run("apt-get", "install", "-qy", "relayd")
        new = version(full, "installed")
        assert (version(full, "running"), new != old) == (new, True), done.stdout + done.stderr
        devices.wait_for_more()
    lab.wait_empty()
    note(f"{old} to {new}, {devices.accepted} messages")
    assert devices.troubles() == []
    devices.assert_delivered(lab.client)
    # The same process: nothing was stopped.
    assert full.main_pid() == pid
    assert full.state() == "active running"


def test_a_downgrade_to_the_same_schema_works_too(full: Guest, lab: Lab) -> None:
    new = version(full, "running")
    with Devices("downgrade") as devices:
        full.run("apt-get", "install", "-qy", "--allow-downgrades", f"relayd={older(full)}")
        assert version(full, "running") == version(full, "installed") == older(full) != new
        devices.wait_for_more()
    lab.wait_empty()
    assert devices.troubles() == []
    devices.assert_delivered(lab.client)
    full.run("apt-get", "install", "-qy", "relayd")
    assert version(full, "running") == new


def older(guest: Guest) -> str:
    """Return the lowest version that apt has."""
    rows = guest.out("apt-cache", "madison", "relayd").splitlines()
    return [row.split("|")[1].strip() for row in rows][-1]


def test_a_spool_of_a_newer_version_is_refused_with_words_and_kept(full: Guest, lab: Lab) -> None:
    full.run("systemctl", "stop", "lab")
    submit(25, "kept")
    full.run("systemctl", "stop", "relayd")
    known = set_schema(full, +1)
    try:
        assert full.run("systemctl", "start", "relayd", check=False).returncode != 0
        full.wait_state("failed failed")
        assert f"schema version {known + 1}" in full.journal()
        done = full.run("relayd", "check", check=False)
        assert done.returncode == 78
        assert f"knows up to {known}" in done.stdout + done.stderr
        # 78 is for good: trying again would not mend it.
        assert full.show("relayd", "ExecMainStatus") == ["78"]
        # An older package installs, says why the relay does not run, and touches nothing.
        done = full.run("apt-get", "install", "-qy", "--allow-downgrades", f"relayd={older(full)}")
        assert f"schema version {known + 1}" in done.stdout + done.stderr
    finally:
        set_schema(full, -1)
    full.run("apt-get", "install", "-qy", "relayd")
    full.run("systemctl", "restart", "relayd")
    lab.start_sandbox()
    lab.wait_empty()
    assert "kept" in {one.x_field("X-Load-Id") for one in lab.client.messages()}


def set_schema(guest: Guest, by: int) -> int:
    """Change the number of the schema as a newer version would; return what it was."""
    connection = sqlite3.connect(guest.path(SPOOL))
    try:
        found: int = connection.execute("PRAGMA user_version").fetchone()[0]
        connection.execute(f"PRAGMA user_version = {found + by}")
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()
    guest.run("sh", "-c", f"chown relayd:relayd {SPOOL}*")
    return found


def test_new_code_that_refuses_the_configuration_leaves_the_running_relay_be(
    full: Guest, lab: Lab
) -> None:
    lab.configure(more=SIX + "\nnonsense = 1\n")
    pid = full.main_pid()
    with Devices("refused") as devices:
        done = full.run("apt-get", "install", "-qy", "--reinstall", "relayd")
        assert "nonsense" in done.stdout + done.stderr
        devices.wait_for_more()
    assert (full.main_pid(), full.state()) == (pid, "active running")
    lab.configure(more=SIX)
    assert lab.reload().returncode == 0
    lab.wait_empty()
    assert devices.troubles() == []
    devices.assert_delivered(lab.client)


def test_a_shutdown_in_order_and_a_power_cut_lose_nothing(
    full: Guest, lab: Lab, note: Callable[[str], None]
) -> None:
    for name, end in (("shutdown", full.power_off), ("power-cut", full.cut_power)):
        # The sandbox forgets with the guest what came, so nothing may come before the end.
        full.run("systemctl", "stop", "lab")
        with Devices(name, hosts=("127.0.0.1",)) as devices:
            end()
        full.boot()
        full.wait_state("active running")
        lab.start_sandbox()
        lab.wait_empty()
        note(f"{name}: {devices.accepted} messages")
        devices.assert_delivered(lab.client, twice=True)
