"""A configured relay under systemd: mail, reloads, crashes, credentials, operators."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Callable

import pytest

from tests.boot.conftest import offer
from tests.boot.guest import PATIENCE_S, Guest
from tests.boot.lab import SIX, SNIPPET, Devices, Lab, replies, wait_until_all_greet_as
from tests.load import submit
from tests.relay_process import wait_until

pytestmark = [pytest.mark.slow(60), pytest.mark.timeout(900)]
RELOADS = 10


@pytest.fixture(scope="module", autouse=True)
def installed(full: Guest, lab: Lab) -> None:
    offer(full, "new")
    full.run("apt-get", "install", "-qy", "relayd")
    lab.start_sandbox()
    lab.configure(more=SIX)
    assert lab.reload().returncode == 0


def test_mail_of_a_device_is_delivered(lab: Lab) -> None:
    submit(25, "first")
    lab.wait_empty()
    assert [one.x_field("X-Load-Id") for one in lab.client.messages()] == ["first"]


def test_ten_reloads_under_load_refuse_and_break_nothing(
    full: Guest, lab: Lab, note: Callable[[str], None]
) -> None:
    pid = full.main_pid()
    with Devices("reload") as devices:
        for number in range(1, RELOADS + 1):
            name = f"relay-{number}.test"
            lab.configure(hostname=name, more=SIX)
            with devices.sources[number % 2].burst():
                done = lab.reload()
            assert done.returncode == 0, done.stderr
            # Reloaded is reloaded for everybody. Old workers are told, and leave in a moment.
            wait_until_all_greet_as(name)
            devices.wait_for_more()
    lab.wait_empty()
    note(f"{RELOADS} reloads, {devices.accepted} messages")
    assert devices.troubles() == []
    devices.assert_delivered(lab.client)
    assert full.main_pid() == pid
    assert full.show("relayd", "NRestarts") == ["0"]


@pytest.mark.parametrize(
    ("name", "right", "wrong", "reason"),
    [
        ("network", '"127.0.0.1/32"', '"127.0.0.1/33"', "127.0.0.1/33"),
        (
            "read-only",
            "[spool]",
            '[spool]\nurl = "sqlite:///srv/elsewhere/spool.db"',
            "ReadWritePaths=/srv/elsewhere",
        ),
    ],
    ids=["network", "read-only"],
)
def test_a_bad_configuration_is_refused_and_the_reason_is_in_the_status(
    full: Guest, lab: Lab, name: str, right: str, wrong: str, reason: str
) -> None:
    good = lab.snippet(more=SIX)
    bad = good.replace(right, wrong)
    assert bad != good
    with Devices(f"bad-{name}", hosts=("127.0.0.1",)) as devices:
        full.put(SNIPPET, bad, mode=0o640, owner="root:relayd")
        assert lab.reload().returncode != 0
        assert reason in full.status()
        devices.wait_for_more()
        assert full.state() == "active running"
        full.put(SNIPPET, good, mode=0o640, owner="root:relayd")
        assert lab.reload().returncode == 0
    assert reason not in full.show("relayd", "StatusText")[0]
    lab.wait_empty()
    assert devices.troubles() == []
    devices.assert_delivered(lab.client)


def test_kill_9_of_the_main_process_refuses_no_connection_and_loses_nothing(
    full: Guest, lab: Lab, note: Callable[[str], None]
) -> None:
    pid = full.main_pid()
    with Devices("killed") as devices:
        full.run("sh", "-c", f"kill -KILL {pid}")
        wait_until(
            lambda: full.state() == "active running" and full.main_pid() not in (0, pid),
            seconds=PATIENCE_S,
            told=full.status,
        )
        devices.wait_for_more()
    lab.wait_empty()
    note(f"{devices.accepted} messages, {len(devices.troubles())} sessions cut")
    assert full.show("relayd", "NRestarts") == ["1"]
    assert devices.refused_connections() == []
    devices.assert_delivered(lab.client, twice=True)
    # The sockets are the ones that systemd kept, not new ones.
    assert {one["origin"] for one in lab.status()["listeners"]} == {"systemd"}


def test_a_hanging_main_process_is_replaced_by_the_watchdog(full: Guest, lab: Lab) -> None:
    drop_in = "/run/systemd/system/relayd.service.d/watchdog.conf"
    full.run("sh", "-c", "mkdir -p ${0%/*} && printf '[Service]\\nWatchdogSec=3\\n' > $0", drop_in)
    full.run("systemctl", "daemon-reload")
    full.run("systemctl", "restart", "relayd")
    full.run("systemctl", "reset-failed", "relayd")
    pid, before = full.main_pid(), int(full.show("relayd", "NRestarts")[0])
    with Devices("hung") as devices:
        full.run("sh", "-c", f"kill -STOP {pid}")
        wait_until(
            lambda: full.state() == "active running" and full.main_pid() not in (0, pid),
            seconds=PATIENCE_S,
            told=full.status,
        )
        devices.wait_for_more()
    lab.wait_empty()
    assert int(full.show("relayd", "NRestarts")[0]) == before + 1
    assert "watchdog" in full.run("journalctl", "-b", "-u", "relayd", "--no-pager").stdout.lower()
    assert devices.refused_connections() == []
    devices.assert_delivered(lab.client, twice=True)
    full.run("rm", drop_in)
    full.run("systemctl", "daemon-reload")
    full.run("systemctl", "restart", "relayd")


def test_a_secret_comes_by_load_credential(full: Guest, lab: Lab) -> None:
    # Readable by root alone: only systemd can hand it over.
    full.put("/etc/relayd/secrets/lab", lab.facts["client_secret"], mode=0o600)
    full.put(
        "/etc/systemd/system/relayd.service.d/secret.conf",
        "[Service]\nLoadCredential=lab:/etc/relayd/secrets/lab\n",
    )
    full.run("systemctl", "daemon-reload")
    lab.configure(more=SIX, secret='client_secret_credential = "lab"')
    full.run("systemctl", "restart", "relayd")
    submit(25, "by-credential")
    lab.wait_empty()
    assert "by-credential" in {one.x_field("X-Load-Id") for one in lab.client.messages()}
    done = full.run("cat", "/etc/relayd/secrets/lab", user="relayd", check=False)
    assert done.returncode != 0


def test_a_member_of_relayd_admin_may_look_and_others_may_not(full: Guest, lab: Lab) -> None:
    full.run("useradd", "-m", "alice")
    full.run("useradd", "-m", "-G", "relayd-admin", "oscar")
    stranger = full.run("relayd", "status", user="alice", check=False)
    assert stranger.returncode == 69
    assert "relayd-admin" in stranger.stderr
    assert full.json("relayd", "status", "--json", user="oscar")["state"] == "running"
    assert full.json("relayd", "queue", "list", "--json", user="oscar") == []
    assert full.run("relayd", "reload", user="oscar").returncode == 0
    assert full.run("cat", SNIPPET, user="oscar", check=False).returncode != 0


def test_health_and_metrics_answer_on_this_host(lab: Lab) -> None:
    checks = json.loads(page("/readyz"))["checks"]
    assert {name for name, check in checks.items() if not check["ok"]} == set()
    lines = page("/metrics").splitlines()
    sent = [line for line in lines if line.startswith("relayd_messages_sent_total{")]
    assert sum(float(line.rpartition(" ")[2]) for line in sent) > 0


def page(path: str) -> str:
    """Return a page of the admin process; fails unless it is 200."""
    connection = http.client.HTTPConnection("127.0.0.1", 8025, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        text = answer.read().decode()
    assert answer.status == 200, text
    return text


def test_the_hosts_own_mail_goes_by_sendmail(full: Guest, lab: Lab) -> None:
    full.run("apt-get", "install", "-qy", "relayd-mta")
    text = "Subject: of cron\nX-Load-Id: of-cron\n\nhello\n"
    full.run("/usr/sbin/sendmail", "ops@contoso.com", user="alice", give=text)
    lab.wait_empty()
    assert "of-cron" in {one.x_field("X-Load-Id") for one in lab.client.messages()}
    assert "empty" in full.out("mailq").lower()


def test_a_named_instance_runs_beside_it(full: Guest, lab: Lab) -> None:
    """As the head of relayd@.service says."""
    example = "/usr/share/doc/relayd/examples/instance.toml"
    full.run("install", "-d", "-m", "0755", "/etc/relayd/second")
    full.run("install", "-m", "0640", "-g", "relayd", example, "/etc/relayd/second/relayd.toml")
    full.run("sed", "-i", "s/NAME/second/g", "/etc/relayd/second/relayd.toml")
    full.run("systemctl", "enable", "--now", "relayd@second")
    assert replies("MAIL FROM:<a@contoso.com>", port=2525)[0][0] == 451
    assert full.run("systemctl", "reload", "relayd@second").returncode == 0
    # Each is itself: the other's port, spool and control socket are not touched.
    assert lab.status()["config"] == "/etc/relayd/relayd.toml"
    config = "/etc/relayd/second/relayd.toml"
    assert full.json("relayd", "--config", config, "status", "--json")["config"] == config
    full.run("systemctl", "disable", "--now", "relayd@second")
    assert full.state() == "active running"
