"""What is packaged fits what is written: units, control file, scripts, and files of other programs.

The tools that judge for real (systemd-analyze, apparmor_parser, fail2ban-regex) are asked where
they are installed; `make deb-check` installs them.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest

import relayd
from relayd.cli.main import CONFIG, DEFAULT_CONFIG, UNAVAILABLE
from relayd.config import load
from relayd.config.model import Server, Spool
from relayd.master.control import ADMIN_GROUP
from relayd.master.launch import Timings
from relayd.observe import logfmt
from relayd.spool import schema
from relayd.spool.model import State

ROOT = Path(__file__).parent.parent.parent
DEBIAN = ROOT / "packaging/debian"
README = (DEBIAN / "README.md").read_text()
UNITS = ROOT / "systemd"
MOST_EXPOSURE = 1.5


def settings(unit: str) -> list[str]:
    """Return the lines of a unit that say something, in their order."""
    lines = (UNITS / unit).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def setting(unit: str, key: str) -> str:
    (value,) = [line.partition("=")[2] for line in settings(unit) if line.startswith(f"{key}=")]
    return value


def script(name: str) -> ModuleType:
    """Return a packaged Python script as a module; nothing in it runs."""
    path = DEBIAN / "bin" / name
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


# ---- versions and dependencies


def test_the_changelog_begins_with_this_version() -> None:
    first = (DEBIAN / "changelog").read_text().splitlines()[0]
    assert first.startswith(f"relayd ({relayd.__version__}) ")


def test_the_package_depends_on_what_setup_cfg_asks_for() -> None:
    wanted = re.search(r"install_requires =\n((?:    .*\n)+)", (ROOT / "setup.cfg").read_text())
    assert wanted
    names = {"argon2-cffi": "argon2", "dkimpy": "dkim"}
    asked = {}
    for line in wanted[1].split():
        name, bound = line.split(">=")
        asked["python3-" + names.get(name, name).replace("_", "-")] = bound
    control = (DEBIAN / "control").read_text()
    given = dict(re.findall(r"^ (python3-[a-z0-9-]+) \(>= ([0-9.]+)\)", control, re.MULTILINE))
    assert given == asked
    build = control.partition("Build-Depends:")[2].partition("Standards-Version")[0]
    for package in asked:
        assert package in build
        assert f"| {package} |" in README


# ---- units


def test_an_instance_is_as_the_relay_itself_but_for_its_places() -> None:
    places = {
        "SMTP relay for Microsoft 365": "relayd %i, SMTP relay for Microsoft 365",
        "/usr/bin/relayd": "/usr/bin/relayd --config /etc/relayd/%i/relayd.toml",
        "/etc/relayd/relayd.toml": "/etc/relayd/%i/relayd.toml",
        "/run/relayd": "/run/relayd-%i",
        "Directory=relayd": "Directory=relayd-%i",
    }
    here = []
    for line in settings("relayd.service"):
        moved = line
        for was, now in places.items():
            moved = re.sub(f"(?:relayd, )?{re.escape(was)}(?=$| )", now, moved)
        here.append(moved)
    here.remove("ReadWritePaths=-/var/spool/relayd")  # an instance's lies in its state folder
    there = settings("relayd@.service")
    there.remove("AssertPathExists=/etc/relayd/%i/relayd.toml")
    assert there == here


def test_the_unit_knows_the_defaults_of_the_settings() -> None:
    unit = "relayd.service"
    written = [line for line in settings(unit) if line.startswith("ReadWritePaths=")]
    spool = str(Path(Spool().url.removeprefix("sqlite://")).parent)
    assert written == [f"ReadWritePaths=-{Server().runtime_dir}", f"ReadWritePaths=-{spool}"]
    assert f"/var/lib/{setting(unit, 'StateDirectory')}" == Server().state_dir
    assert setting(unit, "ExecStartPre").endswith(Server().runtime_dir)
    assert f"-g {ADMIN_GROUP} -m 2" in setting(unit, "ExecStartPre")
    ours = Timings()
    longest_s = Server().graceful_timeout + ours.cut_grace_s + ours.fast_grace_s
    assert int(setting(unit, "TimeoutStopSec")) > longest_s
    assert int(setting(unit, "RestartPreventExitStatus")) == CONFIG
    assert int(script("port-holders").CANNOT_LISTEN) == UNAVAILABLE
    assert setting(unit, "ExecStopPost").split()[-1] == DEFAULT_CONFIG


def test_the_socket_unit_is_for_the_listener_of_the_shipped_file() -> None:
    (listener,) = load.load(str(ROOT / "conf/relayd.toml")).listener
    assert setting("relayd.socket", "FileDescriptorName") == listener.name
    assert (setting("relayd.socket", "ListenStream"),) == listener.address


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
@pytest.mark.parametrize("unit", ["relayd.service", "relayd@.service"])
def test_the_exposure_is_low_and_what_is_left_has_its_reason(unit: str) -> None:
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", str(UNITS / unit)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    overall = re.search(r"exposure level for .*?: ([0-9.]+)", said)
    assert overall
    assert float(overall[1]) <= MOST_EXPOSURE
    reasons = README.partition("## What is left of the unit's exposure")[2].partition("\n## ")[0]
    points = re.findall(r"^✗ (\S+)", said, re.MULTILINE)
    assert points
    for point in points:
        name = re.sub(r"=.*", "", point)
        assert name in reasons, f"{point} has no reason in packaging/debian/README.md"


# ---- maintainer scripts and helpers


@pytest.mark.parametrize(
    "path",
    [*DEBIAN.glob("relayd.p*"), DEBIAN / "bin/renew", *sorted((ROOT / "tools").glob("*.sh"))],
    ids=lambda path: path.name,
)
def test_a_shell_script_can_be_read(path: Path) -> None:
    subprocess.run(["sh", "-n", str(path)], check=True)


def test_users_folders_and_groups_are_those_of_the_program() -> None:
    users = (DEBIAN / "relayd.sysusers").read_text()
    assert re.search(rf"^u relayd .* {Server().state_dir}$", users, re.MULTILINE)
    assert f"g {ADMIN_GROUP} -" in users
    folders = (DEBIAN / "relayd.tmpfiles").read_text()
    postinst = (DEBIAN / "relayd.postinst").read_text()
    made = re.findall(r"^d (\S+) +(\d+) (\w+) +(\w+) +-$", folders, re.MULTILINE)
    assert len(made) == 5
    for folder, mode, user, group in made:
        assert f"make_folder {mode} {user} {group} {folder}\n" in postinst


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Return a spool with one delivery in each state."""
    path = tmp_path / "spool.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        schema.migrate(connection)
        for number, code in enumerate(schema.STATES):
            connection.execute(
                "INSERT INTO delivery (id, message, upstream, mailbox, header_from, set_from,"
                " reply_to_original, recipients, priority, expires_at, state, fence, due)"
                " VALUES (?, ?, '', '', '', '', 0, '[]', 1, 0, ?, 0, 0)",
                (number * 64, number * 64, code),
            )
            connection.execute("INSERT INTO content VALUES (?, 1, 0, x'00')", (number * 64,))
    return path


def test_a_removal_counts_what_never_left_and_what_was_given_up(spool: Path) -> None:
    unsent = script("unsent")
    assert unsent.counts(str(spool)) == (len(State) - 3, 1)
    with closing(sqlite3.connect(spool, isolation_level=None)) as connection:
        connection.execute("DELETE FROM delivery WHERE state <> ?", (schema.CODES[State.SENT],))
    assert unsent.counts(str(spool)) == (0, 0)


def test_a_removal_keeps_a_spool_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unsent = script("unsent")
    broken = tmp_path / "spool.db"
    broken.write_text("this is no database, however long one looks at it")
    assert unsent.counts(str(broken)) == ("?", "?")
    assert str(broken) in capsys.readouterr().err
    assert unsent.counts(str(tmp_path / "none.db")) == (0, 0)


def test_the_ports_asked_for_are_found_in_a_configuration_that_is_broken(tmp_path: Path) -> None:
    port_holders = script("port-holders")
    config = tmp_path / "relayd.toml"
    config.write_text('nonsense = 1\n[[listener]]\nname = "a"\naddress = ["0.0.0.0:25"]\n')
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/1.toml").write_text('[[listener]]\naddress = ["[::]:465"]\n')
    (tmp_path / "conf.d/2.toml").write_text("= broken")
    assert port_holders.addresses(str(config)) == ["0.0.0.0:25", "[::]:465"]
    config.write_text("")
    (tmp_path / "conf.d/1.toml").unlink()
    assert port_holders.addresses(str(config)) == [port_holders.DEFAULT]


def test_the_example_of_an_instance_shares_no_folder_with_the_relay(tmp_path: Path) -> None:
    text = (DEBIAN / "etc/instance.toml").read_text().replace("NAME", "lab")
    (tmp_path / "relayd.toml").write_text(text)
    config = load.load(str(tmp_path / "relayd.toml"))
    assert config.server.runtime_dir == "/run/relayd-lab"
    assert config.server.state_dir == "/var/lib/relayd-lab"
    # postrm looks for an instance's mail there.
    assert config.spool.url == "sqlite:///var/lib/relayd-lab/spool/spool.db"
    assert config.admin.address != load.load(str(ROOT / "conf/relayd.toml")).admin.address


# ---- files of other programs

WRONG_LOGINS = (DEBIAN / "etc/fail2ban-filter").read_text()


def reasons() -> list[str]:
    """Return what auth.failed says of a login that was looked at and refused."""
    tree = ast.parse((ROOT / "relayd/access/logins.py").read_text())
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Rejected":
            constants = [one for one in ast.walk(node) if isinstance(one, ast.Constant)]
            texts += [one.value for one in constants if isinstance(one.value, str)]
    return texts


def lines() -> tuple[list[str], list[str]]:
    """Return log lines of attackers, and of others."""
    moment = datetime(2026, 11, 20, 10, 0, 0, 123000, UTC)
    theirs, others = [], []
    for number, reason in enumerate(reasons()):
        ip = ("192.0.2.7", "2001:db8::7")[number % 2]
        fields = {
            "session": "a-1",
            "ip": ip,
            "device": "",
            "user": 'x" ip=6.6.6.6 ',
            "method": "plain",
        }
        fields |= {"reason": reason, "process": "worker 1"}
        theirs.append(logfmt.render("auth.failed", fields, level="warning", moment=moment))
    busy = {"session": "a-1", "ip": "192.0.2.8", "device": "", "user": 'reason="no such user'}
    busy |= {"method": "plain", "reason": "no turn to verify a password within 3 s"}
    others.append(logfmt.render("auth.failed", busy, level="warning", moment=moment))
    fine = {"session": "a-1", "ip": "192.0.2.9", "user": "no such user"}
    others.append(logfmt.render("auth.ok", fine, level="info", moment=moment))
    return theirs, others


@pytest.mark.skipif(not shutil.which("fail2ban-regex"), reason="no fail2ban")
@pytest.mark.slow(1)
def test_fail2ban_finds_who_guesses_and_nobody_else(tmp_path: Path) -> None:
    theirs, others = lines()
    assert len(theirs) >= 4
    (tmp_path / "log").write_text("\n".join([*theirs, *others, ""]))
    (tmp_path / "filter.conf").write_text(WRONG_LOGINS)
    command = ["fail2ban-regex", "-o", "ip", str(tmp_path / "log"), str(tmp_path / "filter.conf")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = set(said.split())
    assert found == {"192.0.2.7", "2001:db8::7"}
    counted = subprocess.run(
        [command[0], *command[3:]], capture_output=True, text=True, check=True
    ).stdout
    assert f"{len(theirs)} matched, {len(others)} missed" in counted


def test_the_filter_has_every_reason_for_refusing_a_login() -> None:
    (known,) = re.findall(r"^_wrong = \(\?:(.*)\)$", WRONG_LOGINS, re.MULTILINE)
    for reason in reasons():
        assert any(reason.startswith(one) for one in known.split("|")), reason


@pytest.mark.skipif(not shutil.which("apparmor_parser"), reason="no AppArmor")
def test_the_apparmor_profile_is_one() -> None:
    profile = str(DEBIAN / "etc/apparmor")
    subprocess.run(["apparmor_parser", "-Q", "-K", profile], check=True, capture_output=True)


def test_the_unit_asks_for_the_profile_by_its_name() -> None:
    profile = (DEBIAN / "etc/apparmor").read_text()
    name = setting("relayd.service", "AppArmorProfile").removeprefix("-")
    assert re.search(rf"^profile {name} flags=", profile, re.MULTILINE)
