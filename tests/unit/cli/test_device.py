"""A device is added whole, checked and taken over, or not at all; only ours are deleted."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.cli import device
from relayd.config.model import Config, Listener, Server
from relayd.master.frames import done, refused
from tests.control_socket import ControlSocket, relayd

CONFIG = """
[server]
hostname = "relay.test"
workers = 2
runtime_dir = "{folder}"
state_dir = "{folder}/state"
[spool]
url = "sqlite:///{folder}/spool/spool.db"
[[listener]]
name = "lan"
address = ["0.0.0.0:25", "[::]:25"]
[upstream.contoso]
tenant = "contoso.onmicrosoft.com"
client_id = "00000000-0000-0000-0000-000000000001"
client_secret = "s3cret"
mailbox = "alerts@contoso.com"
[[device]]
name = "lan"
networks = ["192.168.10.0/24"]
"""


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as control:
        control.config.write_text(CONFIG.format(folder=tmp_path))
        control.config.chmod(0o640)
        control.answers["reload"] = [done({"generation": 2, "workers": 2})]
        yield control


def added(control: ControlSocket, *more: str, network: str = "192.0.2.5", name: str = "ups") -> int:
    return control.relayd("device", "add", network, "--name", name, *more)


def test_a_device_is_written_taken_over_and_what_to_type_is_said(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert added(control, "--from", "alerts@contoso.com", "--to", "*", "--priority", "high") == 0
    path = tmp_path / "conf.d/ups.toml"
    assert path.read_text() == (
        "# Made by `relayd device add`; `relayd device delete ups` removes it.\n"
        '[[device]]\nname = "ups"\nnetworks = ["192.0.2.5/32"]\nfrom = "alerts@contoso.com"\n'
        'allow_to = ["*"]\npriority = "high"\n'
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    assert control.asked() == [{"command": "reload"}]
    out = capsys.readouterr().out
    for wanted in (
        "the running relay took it over",
        "relay.test",
        "port        25",
        "encryption  none, or STARTTLS if it can",
        "login       none",
        "sender      alerts@contoso.com",
        "send --device ups --to ADDRESS --wait",
    ):
        assert wanted in out


def test_as_json_a_device_comes_with_what_to_type(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert added(control, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["networks"] == ["192.0.2.5/32"]
    assert told["running"] == "reloaded"
    assert told["settings"][0]["port"] == 25


def test_a_relay_that_is_down_takes_it_when_it_starts(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "control.sock").unlink()
    assert added(control) == 0
    assert "takes it over when it starts" in capsys.readouterr().out
    assert (tmp_path / "conf.d/ups.toml").exists()


def test_a_reload_that_is_refused_takes_the_device_back(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["reload"] = [refused("no", problems=["relayd.toml:3: wrong"])]
    assert added(control) == 1
    assert not (tmp_path / "conf.d").exists()
    assert "relayd.toml:3: wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "network", "name", "code", "words"),
    [
        ((), "192.0.2.5", "lan", 1, "has this name already"),
        ((), "192.168.10.0/24", "ups", 1, "has 192.168.10.0/24 already"),
        ((), "192.168.10.7", "ups", 1, "would never be reached"),
        ((), "192.0.2.5/24", "ups", 2, 'write "192.0.2.0/24"'),
        ((), "printer.lan", "ups", 2, "no network"),
        (("--upstream", "fabrikam"), "192.0.2.5", "ups", 1, "no [upstream.fabrikam]"),
        (("--from", "nonsense"), "192.0.2.5", "ups", 1, "no mail address"),
        (("--to", "a b"), "192.0.2.5", "ups", 1, "no address pattern"),
        ((), "192.0.2.5", "a b", 1, "no name"),
    ],
)
def test_what_cannot_be_is_refused_with_words_and_leaves_nothing(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...], network: str, name: str, code: int, words: str,
) -> None:  # fmt: skip
    assert added(control, *more, network=network, name=name) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "conf.d").exists()
    assert control.asked() == []


@pytest.mark.parametrize(
    "name", ["../evil", "ups/evil", ".evil", "evil\nx = 1", "\N{PRINTER}", "\udcff", "-evil"]
)
def test_a_name_is_no_way_out_of_the_folder(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    # The folder is there: without it the system itself knows no way through it.
    (tmp_path / "conf.d/ups").mkdir(parents=True)
    assert added(control, f"--name={name}") == 1
    assert "is no name" in capsys.readouterr().err
    assert not [*tmp_path.rglob("*evil*"), *tmp_path.rglob(".evil*")]
    assert control.asked() == []


def test_a_file_that_is_there_is_left_alone(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/ups.toml").write_text("# mine\n")
    assert added(control) == 1
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "conf.d/ups.toml").read_text() == "# mine\n"


def test_a_configuration_that_is_wrong_already_is_told_as_that(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    control.config.write_text(CONFIG.format(folder=tmp_path) + "[nonsense]\n")
    assert added(control) == 78
    assert "nonsense" in capsys.readouterr().err
    assert not (tmp_path / "conf.d").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_who_may_not_write_there_is_told_to_use_sudo(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    try:
        assert added(control) == 1
    finally:
        tmp_path.chmod(0o700)
    assert "sudo" in capsys.readouterr().err


def test_who_may_not_write_hears_that_first_and_not_what_a_check_finds(
    control: ControlSocket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert added(control) == 1
    assert "Permission denied; say it again with sudo" in capsys.readouterr().err


# ---- delete


def test_what_was_added_can_be_deleted(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added(control)
    capsys.readouterr()
    assert control.relayd("device", "delete", "ups", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": "ups", "file": str(tmp_path / "conf.d/ups.toml"), "running": "reloaded",
    }  # fmt: skip
    assert not (tmp_path / "conf.d/ups.toml").exists()
    assert control.asked() == [{"command": "reload"}] * 2


def test_what_others_wrote_is_named_by_its_line(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert control.relayd("device", "delete", "lan") == 1
    assert "relayd.toml:18" in capsys.readouterr().err
    added(control)
    path = tmp_path / "conf.d/ups.toml"
    path.write_text(path.read_text() + "[limits]\nmax_errors = 7\n")
    assert control.relayd("device", "delete", "ups") == 1
    assert f"{path}:3" in capsys.readouterr().err
    assert path.exists()


def test_who_is_not_there_cannot_be_deleted(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert control.relayd("device", "delete", "nobody") == 1
    assert "there are: lan" in capsys.readouterr().err


def test_a_deletion_the_relay_refuses_is_undone(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    added(control)
    before = (tmp_path / "conf.d/ups.toml").read_bytes()
    control.answers["reload"] = [refused("relayd is stopping", exit_code=69)]
    assert control.relayd("device", "delete", "ups") == 1
    assert "relayd is stopping" in capsys.readouterr().err
    assert (tmp_path / "conf.d/ups.toml").read_bytes() == before


# ---- what to type


def ways(*listeners: Listener, network: str = "192.0.2.5/32") -> list[tuple[object, ...]]:
    config = Config(server=Server(hostname="relay.test"), listener=listeners)
    rows = device.to_type_in(config, network)
    return [(row["host"], row["port"], row["encryption"], row["login"]) for row in rows]


def test_listeners_the_device_cannot_reach_are_left_out() -> None:
    local = Listener(name="l", address=("127.0.0.1:25", "[::1]:25"))
    assert ways(local) == []
    assert ways(local, network="127.0.0.1/32")[0][0] == "127.0.0.1"
    six = Listener(name="s", address=("[2001:db8::1]:25",))
    assert ways(six) == []
    assert ways(six, network="2001:db8::5/128")[0][:2] == ("2001:db8::1", 25)


def test_the_plainest_way_comes_first() -> None:
    found = ways(
        Listener(name="a", address=("192.0.2.1:25",), auth="required", tls="off"),
        Listener(name="b", address=("192.0.2.1:465",), tls="implicit"),
        Listener(name="c", address=("192.0.2.1:125",), tls="required"),
    )
    assert found == [
        ("192.0.2.1", 125, "STARTTLS", False),
        ("192.0.2.1", 465, "SSL/TLS", False),
        ("192.0.2.1", 25, "none", True),
    ]


def test_without_a_listener_on_its_network_it_is_said_how_to_get_one(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = CONFIG.format(folder=tmp_path).replace('["0.0.0.0:25", "[::]:25"]', '["127.0.0.1:25"]')
    control.config.write_text(text)
    assert added(control) == 0
    assert 'write address = ["0.0.0.0:25"]' in capsys.readouterr().out


def test_help_needs_nothing() -> None:
    assert relayd("device", "--help") == 0
