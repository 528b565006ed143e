"""`relayd setup` on a booted system: a port that is taken, the LAN, another address, the files."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.boot.conftest import offer
from tests.boot.guest import Guest
from tests.boot.lab import Lab

pytestmark = [pytest.mark.slow(30), pytest.mark.timeout(600)]

LAN = "10.9.0.0/24"
HOLDER = """\
[Service]
ExecStart=/usr/bin/python3 -c 'import signal, socket; s = socket.create_server(("127.0.0.1", 25)); \
signal.pause()'
"""


@pytest.fixture(scope="module", autouse=True)
def installed(full: Guest, lab: Lab) -> None:
    """Relayd unconfigured, and somebody else at its port."""
    full.put("/etc/systemd/system/holder.service", HOLDER)
    full.run("systemctl", "enable", "--now", "holder")
    offer(full, "new")
    full.run("apt-get", "install", "-qy", "relayd")
    lab.start_sandbox()
    full.run("chmod", "a+rx", "/srv/lab/state")
    full.put("/etc/setup.secret", f"{lab.facts['client_secret']}\n", mode=0o600)


def setup(lab: Lab, *more: str) -> subprocess.CompletedProcess[str]:
    facts = lab.facts
    words = ["--tenant", facts["tenant"], "--client-id", facts["client_id"]]
    words += ["--mailbox", facts["mailboxes"][0], "--secret-file", "/etc/setup.secret"]
    words += ["--authority", facts["base"], "--graph", f"{facts['base']}/v1.0"]
    words += ["--ca-file", facts["ca_file"], "--network", LAN]
    return lab.guest.run("relayd", "setup", "--no-input", *words, *more, check=False)


def addresses(lab: Lab) -> list[str]:
    return sorted(row["address"] for row in lab.status()["listeners"])


def test_a_port_that_is_taken_is_told_and_freed_it_comes_up_by_itself(
    full: Guest, lab: Lab
) -> None:
    done = setup(lab)
    assert done.returncode == 69
    assert "held by python3 (pid " in done.stderr
    assert "systemctl stop holder && systemctl disable holder" in done.stderr
    assert done.stderr.endswith("relayd: the configuration is written\n")
    full.run("sh", "-c", "systemctl stop holder && systemctl disable holder")
    full.wait_state("active running")
    # A network may send, so it listens for it.
    assert addresses(lab) == ["0.0.0.0:25", "[::]:25"]


def test_the_same_again_changes_nothing_and_sends_a_test_mail(full: Guest, lab: Lab) -> None:
    pid = full.main_pid()
    done = setup(lab, "--json", "--test-to", "ops@contoso.com")
    told = json.loads(done.stdout)
    assert (done.returncode, told["changed"], told["test"]["state"]) == (0, False, "sent")
    assert [one.addresses for one in lab.client.messages()] == [{"ops@contoso.com"}]
    assert full.main_pid() == pid


def test_another_address_of_the_same_port_takes_a_restart(full: Guest, lab: Lab) -> None:
    pid = full.main_pid()
    for listen in (["127.0.0.1:25"], ["0.0.0.0:25", "[::]:25"]):
        done = setup(lab, "--json", *(f"--listen={each}" for each in listen))
        assert json.loads(done.stdout)["running"] == "restarted"
        assert addresses(lab) == listen
    assert full.main_pid() != pid


def test_files_are_for_root_and_the_relay_alone(full: Guest) -> None:
    for name, wanted in {
        "relayd.toml": "640 root:relayd",
        "conf.d/zz-lan.toml": "640 root:relayd",
        "secrets": "750 root:relayd",
        "secrets/contoso": "640 root:relayd",
    }.items():
        assert full.out("stat", "-c", "%a %U:%G", f"/etc/relayd/{name}") == wanted, name


def test_what_setup_wrote_outlives_a_reinstallation_without_a_question(full: Guest) -> None:
    before = full.path("/etc/relayd/relayd.toml").read_bytes()
    full.run("apt-get", "install", "-qy", "--reinstall", "relayd")
    assert full.path("/etc/relayd/relayd.toml").read_bytes() == before
    full.wait_state("active running")
