"""What doctor prints, what it exits with, and as whom it looks."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd import check
from relayd.cli import doctor
from relayd.cli.doctor import (
    RunningRelay,
    kept_holds,
    lines,
    running_relay,
    service_user,
    to_do,
    verdict,
    worst,
)
from relayd.doctor.relay import Away
from relayd.doctor.steps import ok, problem, skipped, warning
from relayd.master.frames import Frame, refused
from relayd.wayout import stamp
from tests.control_socket import ControlSocket, pages, relayd
from tests.fake_entra import SECRET, TENANT, FakeEntra
from tests.relay_process import clean_environment
from tests.spooling import ALERTS, SqliteBackend, denied, put

ROOT = Path(__file__).parents[3]
SYSTEM_PYTHON = "/usr/bin/python3"  # one that every user may read, unlike a developer's own
APP = "11111111-1111-4111-8111-111111111111"
ROW: Frame = {"state": "up", "held": {}, "held_messages": 0}
STATUS: Frame = {"upstreams": {"contoso": ROW}, "state": "running"}
TOKEN: Frame = {
    "upstream": "contoso", "state": "ok", "expires_in_s": 3000, "roles": [], "app_id": APP,
    "object_id": "", "tenant": "t", "audience": "", "cause": "", "why": "", "do": "",
}  # fmt: skip


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as made:
        made.answers["status"] = pages(STATUS)
        made.answers["token.test"] = pages(TOKEN)
        made.answers["upstream.holds"] = pages(
            {"holds": [], "mailboxes": {"contoso": ["alerts@contoso.com"]}}
        )
        made.answers["mailbox.test"] = pages({"state": "may send"})
        yield made


@pytest.fixture
def entra(tmp_path: Path) -> Iterator[FakeEntra]:
    with FakeEntra(tmp_path) as made:
        yield made


def configure(
    folder: Path, entra: FakeEntra, *, secret: str = f'client_secret = "{SECRET}"', more: str = ""
) -> Path:
    path = folder / "relayd.toml"
    path.write_text(
        f'[server]\nhostname = "relay.test"\nruntime_dir = "{folder}"\nstate_dir = "{folder}"\n'
        f'[cloud.lab]\nauthority = "{entra.authority}"\ngraph = "{entra.authority}/v1.0"\n'
        f'ca_file = "{entra.ca_file}"\n[upstream.contoso]\ncloud = "lab"\ntenant = "{TENANT}"\n'
        f'client_id = "{APP}"\n{secret}\nmailbox = "alerts@contoso.com"\n{more}'
    )
    path.chmod(0o600)
    return path


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


# ---- printing


def test_a_step_is_a_line_and_what_mends_it_stands_at_the_end() -> None:
    step = problem("tcp", "nobody answers", "Let it through.", ["curl -v x"])
    assert list(lines(step)) == ["  tcp            problem   nobody answers"]
    assert list(to_do([step])) == ["", "  do: Let it through.", "       curl -v x"]


def test_what_stops_mail_is_mended_before_what_only_warns() -> None:
    steps = [
        warning("secret", "it expires in 3 days", "Make a new one.", ["Add-Secret"]),
        ok("dns", "found"),
        problem("token", "refused", "Grant it.", ["Grant-It", "# wait"]),
        problem("roles", "none"),
        skipped("mailbox", "the secret is needed", "sudo relayd doctor contoso"),
    ]
    assert list(to_do(steps)) == [
        "", "  1. token: Grant it.", "       Grant-It", "       # wait",
        "", "  2. secret: Make a new one.", "       Add-Secret",
    ]  # fmt: skip
    assert list(lines(steps[-1]))[1:] == [" " * 27 + "sudo relayd doctor contoso"]
    assert list(to_do(steps[1:2])) == []


def test_commands_that_were_told_already_are_not_told_again() -> None:
    steps = [
        problem("mailbox", "no", "Look.", ["Look-At", "Connect", "Grant"]),
        warning("roles", "wide", "Narrow it.", ["Connect", "Grant"]),
        warning("secret", "old", "Make one.", ["Connect", "Make"]),
    ]
    assert list(to_do(steps))[5:] == [
        "", "  2. roles: Narrow it.", "       by the commands of 1",
        "", "  3. secret: Make one.", "       Connect", "       Make",
    ]  # fmt: skip


def test_what_a_peer_wrote_does_not_steer_the_terminal() -> None:
    step = problem("tls", "by \x1b[2J", "do \x1b", ["\x1b"])
    assert "\x1b" not in "\n".join([*lines(step), *to_do([step])])


def test_the_last_line_says_what_is_left_to_do() -> None:
    assert "blocked at: dns, token." in verdict([problem("dns", ""), problem("token", "")])
    assert "only root can look at: secret." in verdict(
        [ok("dns", ""), skipped("secret", "", "sudo relayd doctor contoso")]
    )
    assert "relayd send --to ADDR --wait" in verdict([ok("dns", "")])
    stopped = skipped("relay", "relayd does not run (none)", "systemctl start relayd")
    assert verdict([ok("dns", ""), stopped]).endswith(
        "open, but relayd does not run. Start it: systemctl start relayd"
    )
    assert "open, but see the warning at: roles." in verdict([warning("roles", "", "")])


def test_the_worst_step_is_the_upstreams_state() -> None:
    assert worst([ok("dns", ""), warning("roles", "", "")]) == "warning"
    assert worst([warning("roles", "", ""), problem("dns", "")]) == "problem"
    assert worst([ok("dns", ""), skipped("proxy", "")]) == "ok"


# ---- running


def test_a_problem_is_exit_1_and_json_has_every_step(
    tmp_path: Path, entra: FakeEntra, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure(tmp_path, entra, secret='client_secret = "wrong"')
    assert relayd("--json", "--config", str(path), "doctor") == 1
    (told,) = printed(capsys)
    assert (told["upstream"], told["state"]) == ("contoso", "problem")
    steps = {step["step"]: step for step in told["steps"]}
    assert "AADSTS7000215" in steps["token"]["text"]
    assert list(steps["token"]) == ["step", "state", "text", "do", "commands"]
    assert steps["mailbox"]["state"] == "skipped"


def test_nothing_wrong_is_exit_0(
    tmp_path: Path, entra: FakeEntra, control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure(tmp_path, entra, secret='client_secret_env = "RELAYD_TEST_NONE"')
    assert relayd("--config", str(path), "doctor") == 0
    out = capsys.readouterr().out
    assert out.startswith("upstream contoso\n")
    assert "the running relay has one, good for 50 min" in out
    assert out.endswith("The way out is open. A real mail: relayd send --to ADDR --wait\n")


def test_only_the_named_upstream_is_looked_at(
    tmp_path: Path, entra: FakeEntra, capsys: pytest.CaptureFixture[str]
) -> None:
    more = '[upstream.other]\ntenant = "t.example"\nclient_id = "x"\nmailbox = "a@x.example"\n'
    path = configure(tmp_path, entra, secret='client_secret = "wrong"', more=more)
    assert relayd("--config", str(path), "doctor", "contoso") == 1
    assert "upstream other" not in capsys.readouterr().out


def test_an_unknown_upstream_is_wrong_usage_and_told_with_those_there_are(
    tmp_path: Path, entra: FakeEntra, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure(tmp_path, entra)
    assert relayd("--config", str(path), "doctor", "x") == 2
    assert "there are: contoso" in capsys.readouterr().err


def test_without_an_upstream_the_next_step_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "relayd.toml"
    path.write_text('[server]\nhostname = "relay.test"\n')
    assert relayd("--config", str(path), "doctor") == 1
    assert "next step: relayd setup" in capsys.readouterr().err


def test_a_configuration_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert relayd("--config", str(tmp_path / "none.toml"), "doctor") == 1
    assert "none.toml" in capsys.readouterr().err


# ---- the running relay


def test_it_is_asked_once_for_each_thing(control: ControlSocket, tmp_path: Path) -> None:
    relay = running_relay(str(tmp_path / "control.sock"), "", "")
    assert isinstance(relay, RunningRelay)
    assert relay.names() == ["contoso"]
    assert relay.upstream("contoso") == ROW
    assert relay.upstream("other") is None
    assert relay.token("contoso") == relay.token("contoso") == TOKEN
    assert (relay.holds("contoso"), relay.mailboxes("contoso")) == ([], ["alerts@contoso.com"])
    assert relay.mailbox("contoso", "alerts@contoso.com") == {"state": "may send"}
    assert [one["command"] for one in control.asked()] == [
        "status", "token.test", "upstream.holds", "mailbox.test",
    ]  # fmt: skip


def test_what_it_refuses_is_no_answer(control: ControlSocket, tmp_path: Path) -> None:
    control.answers["token.test"] = [refused("unknown command: token.test")]
    relay = running_relay(str(tmp_path / "control.sock"), "", "")
    assert relay.token("contoso") is None
    control.answers["status"] = [refused("no")]
    assert "does not answer" in running_relay(str(tmp_path / "control.sock"), "", "").away


def test_what_keeps_its_workers_from_serving_is_known(
    control: ControlSocket, tmp_path: Path
) -> None:
    path = str(tmp_path / "control.sock")
    control.answers["status"] = pages({"queue": None, "unavailable": "worker 1: why"})
    relay = running_relay(path, "", "")
    assert (relay.unavailable, relay.is_starting) == ("worker 1: why", True)
    control.answers["status"] = pages({"queue": {}, "unavailable": None})
    relay = running_relay(path, "", "")
    assert (relay.unavailable, relay.is_starting) == ("", False)


def test_who_may_not_read_the_configuration_hears_why_no_worker_serves(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["status"] = pages({"queue": None, "unavailable": "worker 1: why"})
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "broken.toml").write_text("=")
    assert control.relayd("doctor") == 1
    assert "no worker serves: worker 1: why" in capsys.readouterr().err


def test_one_that_does_not_run_says_how_to_start_it(tmp_path: Path) -> None:
    relay = running_relay(str(tmp_path / "none.sock"), "", "systemctl start relayd")
    assert isinstance(relay, Away)
    assert relay.remedy == "systemctl start relayd"


# ---- as whom


def test_the_relays_user_is_who_owns_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(f'[server]\nstate_dir = "{tmp_path}"\n')
    owner = os.stat(tmp_path).st_uid
    found = service_user(str(config))
    assert (found.pw_uid if found else 0) == owner
    true_stat = os.stat
    nobody = pwd.getpwnam("nobody")
    monkeypatch.setattr(
        os, "stat", lambda path: Owned(nobody.pw_uid) if path == str(tmp_path) else true_stat(path)
    )
    assert service_user(str(config)) == nobody


def test_a_user_without_a_name_is_a_user_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(f'[server]\nstate_dir = "{tmp_path}/state"\n')
    true_stat, state = os.stat, f"{tmp_path}/state"
    monkeypatch.setattr(
        os, "stat", lambda path: Owned(NAMELESS, 7) if path == state else true_stat(path)
    )
    found = service_user(str(config))
    assert found is not None
    assert (found.pw_uid, found.pw_gid) == (NAMELESS, 7)


class Owned:
    """What stat says of a folder, as far as anybody asks."""

    def __init__(self, uid: int, gid: int = 0) -> None:
        self.st_uid = uid
        self.st_gid = gid


NAMELESS = 3_999_999_999


def test_an_installed_relay_has_a_user_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(f'[server]\nstate_dir = "{tmp_path}/none"\n')
    assert service_user(str(config)) is None
    monkeypatch.setattr(check, "INSTALLED", str(tmp_path))
    monkeypatch.setattr(check, "SERVICE_USER", "nobody")
    assert service_user(str(config)) == pwd.getpwnam("nobody")
    monkeypatch.setattr(check, "SERVICE_USER", "no-such-user-here")
    assert service_user(str(config)) is None


def test_others_look_with_their_own_eyes(monkeypatch: pytest.MonkeyPatch) -> None:
    me = pwd.getpwuid(os.geteuid())
    monkeypatch.setattr(doctor, "service_user", lambda _: me)
    assert doctor.become_service("relayd.toml") is True
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert doctor.become_service("relayd.toml") is False


# ---- what a stopped relay held


def test_a_stopped_relays_holds_are_read_from_its_spool(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path)
    door = backend.open()
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, denied(backend.clock, cause="ErrorAccessDenied"))
    backend.close()
    relay = running_relay(str(tmp_path / "none.sock"), backend.path, "")
    (hold,) = relay.holds(ALERTS.upstream)
    assert (hold["mailbox"], hold["cause"]) == (ALERTS.mailbox, "ErrorAccessDenied")
    assert str(hold["probe_at"]) > stamp(backend.clock.utcnow())
    assert relay.holds("another") == []


def test_a_spool_that_is_not_there_or_not_ours_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept_holds(str(tmp_path / "none.db")) == []
    damaged = tmp_path / "spool.db"
    damaged.write_text("no database at all, but long enough to be looked at as if it were one")
    assert kept_holds(str(damaged)) == []
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert kept_holds(str(damaged)) == []


@pytest.mark.slow(2)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.skipif(not os.path.exists(SYSTEM_PYTHON), reason="no Python that nobody can read")
def test_root_sees_what_the_relay_sees_and_finds_the_wrong_mode(entra: FakeEntra) -> None:
    folder = Path(tempfile.mkdtemp(prefix="relayd-test-doctor-"))
    try:
        folder.chmod(0o755)
        state = folder / "state"
        state.mkdir()
        nobody = pwd.getpwnam("nobody")
        os.chown(state, nobody.pw_uid, nobody.pw_gid)
        secret = folder / "secret"
        secret.write_text(SECRET)
        secret.chmod(0o600)
        path = configure(folder, entra, secret=f'client_secret_file = "{secret}"')
        path.write_text(
            path.read_text().replace(f'state_dir = "{folder}"', f'state_dir = "{state}"')
        )
        path.chmod(0o644)
        done = subprocess.run(
            [SYSTEM_PYTHON, "-m", "relayd", "--json", "--config", str(path), "doctor"],
            capture_output=True,
            check=False,
            cwd=ROOT,
            env=clean_environment(),
            timeout=60,
        )
    finally:
        shutil.rmtree(folder)
    if b"No module named" in done.stderr:
        pytest.skip("the system's Python has not what relayd needs, or nobody may not read it")
    assert done.returncode == 1, done.stderr
    steps = {step["step"]: step for step in json.loads(done.stdout)[0]["steps"]}
    assert steps["secret"]["state"] == "problem"
    assert steps["secret"]["commands"][1] == f"chmod 640 {secret}"
    assert steps["token"]["state"] == "skipped"
