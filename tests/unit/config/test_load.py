"""The whole way from a file to a resolved value, or to every problem in order."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from relayd.config import load as load_room
from relayd.config.load import examine, load
from relayd.errors import ConfigError

SOUND = """
[server]
hostname = "relay.example.com"
workers = 3
[upstream.contoso]
tenant = "contoso.onmicrosoft.com"
client_id = "10000000-0000-0000-0000-000000000000"
client_secret_env = "SECRET"
mailbox = "alerts@contoso.com"
[[device]]
name = "ups"
networks = ["192.168.10.5"]
"""


def put(folder: Path, text: str) -> str:
    path = folder / "relayd.toml"
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def test_a_sound_file_becomes_a_resolved_value(tmp_path: Path) -> None:
    path = put(tmp_path, SOUND)
    config = load(path, {"SECRET": "geheim"})
    assert config.source == path
    assert config.upstream[0].client_secret.reveal() == "geheim"
    assert config.upstream[0].own_domains == ("contoso.com",)
    assert config.device[0].upstream == "contoso"
    assert config.server.workers == 3
    assert [each.name for each in config.listener] == ["local"]
    assert {each.name for each in config.cloud} >= {"global", "dod"}


def test_warnings_come_with_their_places(tmp_path: Path) -> None:
    path = put(tmp_path, SOUND.replace("192.168.10.5", "10.0.0.0/8"))
    loaded = examine(path, {"SECRET": "geheim"})
    (warning,) = loaded.warnings
    assert warning.startswith(f'{path}:12: [[device]] "ups" networks: 10.0.0.0/8 is wide')


def test_all_problems_are_told_in_the_order_of_the_lines(tmp_path: Path) -> None:
    path = put(tmp_path, "[log]\nlevel = 1\n[limits]\nzz = 1\n[server]\nworkers = 0\n")
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/10.toml").write_text('[http]\nproxy = "x"\n')
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    places = [each.split(": ")[0].removeprefix(f"{tmp_path}/") for each in caught.value.problems]
    assert places == ["relayd.toml:2", "relayd.toml:4", "relayd.toml:6", "conf.d/10.toml:2"]


def test_one_mistake_makes_one_message(tmp_path: Path) -> None:
    path = put(tmp_path, SOUND.replace('"SECRET"', '"UNSET"').replace('"alerts@contoso.com"', "5"))
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert len(caught.value.problems) == 2


def test_a_file_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(tmp_path / "relayd.toml"), {})


def test_the_hosts_full_name_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "relay.example.net")
    assert load(put(tmp_path, ""), {}).server.hostname == "relay.example.net"


@pytest.mark.parametrize("answer", ["relay", "localhost.localdomain", ""])
def test_a_name_that_is_none_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: answer)
    monkeypatch.setattr(socket, "gethostname", lambda: "relay")
    loaded = examine(put(tmp_path, ""), {})
    assert loaded.config.server.hostname == "relay"
    assert any('mail will say "relay"; set [server] hostname' in each for each in loaded.warnings)


def test_a_resolver_that_hangs_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(socket, "getfqdn", lambda: str(answered.wait(15)))
    monkeypatch.setattr(socket, "gethostname", lambda: "relay")
    monkeypatch.setattr(load_room, "_NAME_WAIT_S", 0.01)
    assert load(put(tmp_path, ""), {}).server.hostname == "relay"
    answered.set()
