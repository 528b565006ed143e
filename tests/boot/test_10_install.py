"""From nothing: apt install, the first state, what the unit may do, setup, and the way out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.boot.guest import Guest
from tests.boot.lab import Lab, banner, replies
from tests.load import submit

pytestmark = [pytest.mark.slow(60), pytest.mark.timeout(900)]

EXPOSURE = 1.5
LISTENS = "0A"
FREE_IT = "systemctl stop exim4 && systemctl disable exim4"


@pytest.fixture(scope="module")
def lab(bare: Guest) -> Iterator[Lab]:
    with Lab(bare) as lab:
        yield lab


def listening() -> set[str]:
    """Return every address:port with a TCP listener, in hexadecimal as the kernel has it."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS:
                found.add(fields[1])
    return found


SMTP, ADMIN = "0100007F:0019", "0100007F:1F59"  # 127.0.0.1:25, 127.0.0.1:8025


def test_apt_installs_it_beside_a_mail_server_and_says_who_holds_the_port(bare: Guest) -> None:
    bare.run("apt-get", "install", "-qy", "--no-install-recommends", "exim4-daemon-light")
    assert banner()
    done = bare.run("apt-get", "install", "-qy", "relayd")
    said = done.stdout + done.stderr
    assert "held by exim4" in said
    assert FREE_IT in said
    assert bare.out("dpkg-query", "-W", "-f", "${Status}", "relayd") == "install ok installed"


def test_it_comes_up_by_itself_when_the_port_is_free(bare: Guest) -> None:
    bare.run("sh", "-c", FREE_IT)
    bare.wait_state("active running")
    assert bare.out("systemctl", "is-enabled", "relayd") == "enabled"
    assert bare.out("systemctl", "is-system-running") == "running"


def test_unconfigured_it_listens_on_this_host_alone_and_tells_the_next_step(bare: Guest) -> None:
    assert listening() <= {SMTP, ADMIN}
    assert SMTP in listening()
    (code, text), *_ = replies("MAIL FROM:<a@contoso.com>")
    assert (code, text.split()[0]) == (451, "4.3.5")
    status = bare.show("relayd", "StatusText")[0]
    assert "relayd setup" in status
    assert status in bare.status()
    checked = bare.json("relayd", "check", "--json")
    assert checked["ok"] is True
    assert any("relayd setup" in warning for warning in checked["warnings"])
    assert "relayd setup" in bare.out("relayd", "status")


def test_systemd_finds_nothing_to_mend_in_the_units(bare: Guest) -> None:
    units = ("relayd.service", "relayd.socket", "relayd@.service")
    # minbase has no man(1) to look with.
    done = bare.run("systemd-analyze", "verify", "--man=no", *units, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_calls_the_exposure_low(bare: Guest, note: Callable[[str], None]) -> None:
    text = bare.run("systemd-analyze", "security", "--no-pager", "relayd.service").stdout
    found = re.search(r"exposure level for relayd\.service: ([\d.]+)", text)
    assert found is not None, text
    note(f"exposure {found[1]}")
    assert float(found[1]) <= EXPOSURE, text


def in_service(guest: Guest, script: str) -> tuple[int, str]:
    """Run shell where the service lives, as its user; returns exit code and output."""
    pid = guest.main_pid()
    done = guest.run(
        "nsenter", "-t", str(pid), "-m", "--", "setpriv", "--reuid=relayd", "--regid=relayd",
        "--clear-groups", "sh", "-c", script, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_sandbox_is_in_force(bare: Guest) -> None:
    pids = bare.out("cat", f"/sys/fs/cgroup/{cgroup(bare)}/cgroup.procs").split()
    assert len(pids) >= 4
    for pid in pids:
        status = dict(
            line.split(":\t", 1)
            for line in bare.out("cat", f"/proc/{pid}/status").splitlines()
            if ":\t" in line
        )
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert int(status["CapBnd"], 16) == 1 << 10  # CAP_NET_BIND_SERVICE
        assert status["Uid"].split()[0] != "0"
    for folder in ("/usr", "/etc", "/var/lib", "/boot", "/root", "/home"):
        code, said = in_service(bare, f"touch {folder}/x")
        assert code != 0, folder
        assert "Read-only" in said or "Permission denied" in said, said
    assert in_service(bare, "touch /var/spool/relayd/x && rm /var/spool/relayd/x")[0] == 0
    assert in_service(bare, "cat /etc/shadow")[0] != 0
    # Another service's process: ProtectProc=invisible.
    assert in_service(bare, "cat /proc/1/cmdline")[0] != 0


def cgroup(guest: Guest) -> str:
    """Return where the unit's processes are, below /sys/fs/cgroup of the guest."""
    return guest.show("relayd", "ControlGroup")[0].strip("/")


def test_what_holds_secrets_is_closed_to_others(bare: Guest) -> None:
    for path, wanted in {
        "/etc/relayd": "755 root:root",
        "/etc/relayd/relayd.toml": "640 root:relayd",
        "/etc/relayd/secrets": "750 root:relayd",
        "/var/lib/relayd": "700 relayd:relayd",
        "/var/spool/relayd": "700 relayd:relayd",
    }.items():
        assert bare.out("stat", "-c", "%a %U:%G", path) == wanted, path


def test_setup_makes_it_send(bare: Guest, lab: Lab) -> None:
    lab.start_sandbox()
    done = lab.setup()
    assert done.returncode == 0, done.stdout + done.stderr
    assert {one.addresses == {"ops@contoso.com"} for one in lab.client.messages()} == {True}
    again = lab.setup(test_mail=False)
    assert again.returncode == 0
    assert "unchanged" in again.stdout
    submit(25, "of-a-device")
    lab.wait_empty()
    assert "of-a-device" in {one.x_field("X-Load-Id") for one in lab.client.messages()}
    config = bare.path("/etc/relayd/relayd.toml").read_text()
    assert lab.facts["client_secret"] not in config


def test_doctor_finds_nothing_wrong(bare: Guest, lab: Lab) -> None:
    done = bare.run("relayd", "doctor", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_removal_keeps_what_was_configured(bare: Guest, lab: Lab) -> None:
    before = bare.path("/etc/relayd/relayd.toml").read_text()
    bare.run("apt-get", "remove", "-qy", "relayd")
    assert bare.state() in {"inactive dead", "failed failed"}
    assert bare.path("/etc/relayd/relayd.toml").read_text() == before
    bare.run("apt-get", "install", "-qy", "relayd")
    bare.wait_state("active running")
    assert bare.path("/etc/relayd/relayd.toml").read_text() == before
    submit(25, "installed-again")
    lab.wait_empty()


def test_a_purge_keeps_mail_that_was_accepted_and_says_so(bare: Guest, lab: Lab) -> None:
    bare.run("systemctl", "stop", "lab")
    submit(25, "never-sent")
    done = bare.run("apt-get", "purge", "-qy", "relayd")
    said = done.stdout + done.stderr
    assert "kept /var/spool/relayd" in said
    assert "1 waiting or held" in said
    assert left(bare) == {"/var/spool/relayd"}
    bare.run("apt-get", "install", "-qy", "relayd")
    lab.start_sandbox()
    assert lab.setup(test_mail=False).returncode == 0
    lab.wait_empty()
    assert "never-sent" in {one.x_field("X-Load-Id") for one in lab.client.messages()}


def test_a_purge_with_nothing_to_send_leaves_nothing(bare: Guest) -> None:
    bare.run("apt-get", "purge", "-qy", "relayd")
    assert left(bare) == set()
    assert bare.run("getent", "passwd", "relayd", check=False).returncode != 0
    assert bare.run("getent", "group", "relayd-admin", check=False).returncode != 0
    assert bare.run("systemctl", "cat", "relayd.service", check=False).returncode != 0
    assert SMTP not in listening()


def left(guest: Guest) -> set[str]:
    """Return what is left of relayd, by name; the top of each tree only."""
    # The name of its source in apt's lists, and the lab, are ours.
    found = guest.out(
        "find", "/", "-xdev", "(", "-path", "/proc", "-o", "-path", "/sys", "-o", "-path", "/srv",
        "-o", "-path", "/etc/apt", "-o", "-path", "/var/lib/apt", "-o", "-path", "/var/cache/apt",
        "-o", "-path", "/var/log", "-o", "-path", "/var/backups", ")", "-prune",
        "-o", "-iname", "*relayd*", "-print", "-prune",
    )  # fmt: skip
    mine = guest.run("find", "/run", "/var/log", "-iname", "*relayd*", check=False).stdout
    return set(found.split()) | set(mine.split())
