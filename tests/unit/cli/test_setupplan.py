"""Which values go into which file: where they stand already, else where a person looks for them."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relayd.cli import setupplan
from relayd.cli.setupplan import LOCAL, Answers, Draft, listen_for, look, plan
from relayd.cli.tomledit import CannotEdit
from relayd.errors import ConfigError

ANSWERS = Answers(
    name="contoso",
    tenant="contoso.onmicrosoft.com",
    client_id="10000000-0000-0000-0000-000000000000",
    mailbox="alerts@contoso.com",
    cloud="global",
    networks=("192.168.10.0/24",),
    listen=("0.0.0.0:25", "[::]:25"),
    secret="s3cret~value",
)

Planned = Callable[..., list[Draft]]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    def planned(text: str = "", more: str = "", **changes: Any) -> list[Draft]:
        if text:
            (tmp_path / "relayd.toml").write_text(text)
        if more:
            (tmp_path / "conf.d").mkdir(exist_ok=True)
            (tmp_path / "conf.d/50-more.toml").write_text(more)
        return plan(look(str(tmp_path / "relayd.toml")), replace(ANSWERS, **changes))

    return planned


def written(drafts: list[Draft]) -> dict[str, Any]:
    """Return the drafts by the name of their file; TOML as it reads."""
    return {
        os.path.basename(draft.path): (
            draft.octets if draft.is_secret else tomllib.loads(draft.octets.decode())
        )
        for draft in drafts
    }


def put(drafts: list[Draft]) -> None:
    for draft in drafts:
        path = Path(draft.path)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(draft.octets)
        path.chmod(0o640)


def test_without_a_file_the_packaged_one_is_filled_in(planned: Planned) -> None:
    drafts = planned()
    assert [os.path.basename(draft.path) for draft in drafts] == [
        "contoso",
        "zz-lan.toml",
        "relayd.toml",
    ]
    assert all(draft.before is None for draft in drafts)
    found = written(drafts)
    assert found["contoso"] == b"s3cret~value\n"
    assert found["relayd.toml"]["upstream"] == {
        "contoso": {
            "tenant": "contoso.onmicrosoft.com",
            "client_id": ANSWERS.client_id,
            "client_secret_file": "secrets/contoso",
            "mailbox": "alerts@contoso.com",
        }
    }
    assert found["relayd.toml"]["listener"] == [
        {"name": "lan", "address": ["0.0.0.0:25", "[::]:25"]}
    ]
    assert found["zz-lan.toml"]["device"] == [
        {"name": "lan", "networks": ["192.168.10.0/24"]},
        {"name": "localhost", "networks": ["127.0.0.0/8", "::1/128"]},
    ]
    assert drafts[-1].octets.decode().count("# ") > 50  # it still teaches


def test_without_a_package_there_is_a_plain_file(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setupplan, "TEMPLATES", ())
    found = written(planned())["relayd.toml"]
    assert set(found) == {"listener", "upstream"}


def test_the_same_again_changes_nothing(planned: Planned) -> None:
    put(planned())
    assert planned() == []
    assert planned(networks=None, listen=None, secret=None) == []


def test_a_secret_that_others_can_read_is_written_again(planned: Planned, tmp_path: Path) -> None:
    put(planned())
    (tmp_path / "secrets/contoso").chmod(0o644)
    assert [draft.is_secret for draft in planned()] == [True]
    assert stat.S_IMODE((tmp_path / "secrets/contoso").stat().st_mode) == 0o644


def test_another_secret_changes_that_file_alone(planned: Planned) -> None:
    put(planned())
    assert written(planned(secret="another")) == {"contoso": b"another\n"}


def test_values_change_where_they_stand(planned: Planned) -> None:
    main = '[[listener]]\nname = "x"\naddress = ["127.0.0.1:25"]\n'
    more = (
        '[upstream.contoso]\ntenant = "old.example"  # since 2020\nclient_secret_env = "S"\n'
        'messages_per_minute = 7\n[[device]]\nname = "lan"\nnetworks = ["192.168.0.0/16"]\n'
    )
    drafts = planned(main, more, secret=None)
    found = written(drafts)
    assert set(found) == {"50-more.toml", "relayd.toml", "zz-lan.toml"}
    assert "# since 2020" in drafts[1].octets.decode()
    assert found["50-more.toml"]["upstream"]["contoso"] == {
        "tenant": "contoso.onmicrosoft.com",
        "client_secret_env": "S",
        "messages_per_minute": 7,
        "client_id": ANSWERS.client_id,
        "mailbox": "alerts@contoso.com",
    }
    assert found["relayd.toml"] == {
        "listener": [{"name": "x", "address": ["0.0.0.0:25", "[::]:25"]}]
    }
    # 192.168.10.0/24 may send already.
    assert [row["name"] for row in found["zz-lan.toml"]["device"]] == ["localhost"]


def test_a_listener_of_conf_d_is_counted_in_its_own_file(planned: Planned) -> None:
    main = '[[listener]]\nname = "smtps"\naddress = ["127.0.0.1:465"]\n'
    more = '[[listener]]\nname = "lan"\naddress = ["127.0.0.1:25"]\n'
    found = written(planned(main, more))
    assert found["50-more.toml"]["listener"][0]["address"] == ["0.0.0.0:25", "[::]:25"]
    assert found["relayd.toml"]["listener"][0]["address"] == ["127.0.0.1:465"]


def test_endpoints_of_ones_own_become_a_cloud(planned: Planned) -> None:
    base = "https://127.0.0.1:8443"
    drafts = planned(cloud="lab", authority=base, graph=f"{base}/v1.0", ca_file="/ca.pem")
    found = written(drafts)["relayd.toml"]
    assert found["cloud"]["lab"] == {
        "authority": base,
        "graph": f"{base}/v1.0",
        "ca_file": "/ca.pem",
    }
    assert found["upstream"]["contoso"]["cloud"] == "lab"
    put(drafts)
    # Back to Microsoft.
    assert written(planned())["relayd.toml"]["upstream"]["contoso"]["cloud"] == "global"


def test_networks_of_the_file_are_changed_and_its_other_settings_stay(
    planned: Planned, tmp_path: Path
) -> None:
    put(planned())
    lan = tmp_path / "conf.d/zz-lan.toml"
    lan.write_text(lan.read_text().replace('"lan"', '"lan"\nallow_to = ["*"]', 1))
    found = written(planned(networks=("192.168.10.0/24", "10.1.0.0/24", "fd00::/64")))
    assert found["zz-lan.toml"]["device"][0] == {
        "name": "lan",
        "allow_to": ["*"],
        "networks": ["192.168.10.0/24", "10.1.0.0/24", "fd00::/64"],
    }


def test_names_that_are_taken_get_a_number(planned: Planned) -> None:
    taken = (
        '[[device]]\nname = "Lan"\nnetworks = ["10.9.9.9/32"]\n'
        '[[device]]\nname = "localhost"\nnetworks = ["10.9.9.8", "no network"]\n'
    )
    found = written(planned(taken))["zz-lan.toml"]["device"]
    assert [row["name"] for row in found] == ["lan-2", "localhost-2"]


def test_networks_that_reach_this_host_are_not_named_twice(planned: Planned) -> None:
    found = written(planned(networks=("127.0.0.0/8",)))["zz-lan.toml"]["device"]
    assert [row["networks"] for row in found] == [["127.0.0.0/8"], ["::1/128"]]
    assert written(planned(networks=("127.0.0.0/8", "::1/128")))["zz-lan.toml"]["device"] == [
        {"name": "lan", "networks": ["127.0.0.0/8", "::1/128"]}
    ]
    assert len(written(planned(networks=()))["zz-lan.toml"]["device"]) == 1


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        ('[upstream.contoso]\nclient_secret = "x"\n', {}, "relayd.toml:2: client_secret is set"),
        ('[upstream.contoso]\nclient_secret_file = "/srv/s"\n', {}, "/srv/s, which is yours"),
        (
            '[[listener]]\nname = "a"\naddress = []\n[[listener]]\nname = "b"\naddress = []\n',
            {},
            'none is named "lan"; set address there by hand: address = ["0.0.0.0:25", "[::]:25"]',
        ),
        ("upstream.contoso = {tenant = 'x'}\n", {"secret": None}, "relayd.toml: "),
    ],
)
def test_what_a_person_must_decide_is_said(
    planned: Planned, text: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(CannotEdit) as caught:
        planned(text, **changes)
    assert words in str(caught.value)


def test_no_network_any_more_is_not_done_silently(planned: Planned) -> None:
    put(planned())
    with pytest.raises(CannotEdit, match="take it out by hand"):
        planned(networks=())


def test_a_file_that_is_no_toml_is_refused(planned: Planned) -> None:
    with pytest.raises(ConfigError, match=r"relayd\.toml:1"):
        planned("[upstream\n")


@pytest.mark.parametrize(
    ("there", "networks", "expected"),
    [
        ("", (), LOCAL),
        ("", ("192.168.10.0/24",), ("0.0.0.0:25", "[::]:25")),
        ("", ("127.0.0.0/8",), LOCAL),
        ('["127.0.0.1:2525", "[::1]:2525"]', ("10.0.0.0/24",), ("0.0.0.0:2525", "[::]:2525")),
        ('["192.168.10.2:25"]', ("10.0.0.0/24",), ("192.168.10.2:25",)),
    ],
)
def test_it_listens_for_the_network_once_a_network_may_send(
    tmp_path: Path, there: str, networks: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(f'[[listener]]\nname = "lan"\naddress = {there}\n' if there else "")
    assert listen_for(look(str(config)), networks) == expected


def test_which_of_several_listeners_is_left_open(tmp_path: Path) -> None:
    config = tmp_path / "relayd.toml"
    row = '[[listener]]\nname = "{}"\naddress = ["127.0.0.1:{}"]\n'
    config.write_text(row.format("a", 25) + row.format("b", 26))
    assert listen_for(look(str(config)), ()) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ('[upstream.contoso]\nclient_secret_credential = "c"\n', True),
        ('[upstream.contoso]\nclient_secret_file = "kept"\n', True),
        ('[upstream.contoso]\nclient_secret_file = "gone"\n', False),
    ],
)
def test_a_secret_is_there_in_any_form(tmp_path: Path, text: str, *, expected: bool) -> None:
    (tmp_path / "relayd.toml").write_text(text)
    (tmp_path / "kept").write_text("s")
    assert look(str(tmp_path / "relayd.toml")).has_secret("contoso") is expected


@pytest.mark.parametrize("text", ["", "localhost:25", "25"])
def test_an_address_that_is_none_is_left_for_check_to_name(tmp_path: Path, text: str) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(f'[[listener]]\naddress = ["{text}"]\n')
    assert listen_for(look(str(config)), ("192.168.10.0/24",)) == (text,)
