"""A device's own file is TOML that reads back, is known as ours, and hides nobody."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from relayd.cli import devicefile
from relayd.config.load import Loaded
from relayd.config.model import Config, Device, User
from relayd.config.places import Place
from relayd.config.read import Tree

LAN = Device(name="lan", networks=("192.168.10.0/24",))
UPS = Device(name="ups", networks=("192.168.20.5/32",))
CONFIG = Config(device=(LAN, UPS), user=(User(name="Printer1"),))


def loaded(config: Config = CONFIG) -> Loaded:
    tree = Tree("/etc/relayd/relayd.toml")
    tree.places = {
        ("device", 0, "name"): Place("/etc/relayd/relayd.toml", 7),
        ("device", 1, "name"): Place("/etc/relayd/conf.d/ups.toml", 3),
    }
    return Loaded(config, [], tree)


def test_what_is_written_reads_back_and_leaves_out_what_is_not_set() -> None:
    octets = devicefile.render(
        {
            "name": "ups", "networks": ["192.0.2.5/32"], "from": 'a"\\b@contoso.com',
            "allow_to": ["*"], "upstream": "", "priority": "",
        }
    )  # fmt: skip
    assert tomllib.loads(octets.decode()) == {
        "device": [
            {
                "name": "ups", "networks": ["192.0.2.5/32"], "from": 'a"\\b@contoso.com',
                "allow_to": ["*"],
            }
        ]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        (lambda text: text, True),
        (lambda text: text + 'max_age = "1d"\n', True),
        (lambda text: text.partition("\n")[2], False),
        (lambda text: text + "[limits]\nmax_errors = 3\n", False),
        (lambda text: text + '[[device]]\nname = "other"\n', False),
        (lambda text: text.replace('"ups"', '"other"'), False),
        (lambda text: text + "][", False),
    ],
)
def test_only_a_file_of_ours_with_this_device_alone_is_ours(
    tmp_path: Path,
    change: object,
    ours: bool,  # noqa: FBT001 - a table
) -> None:
    path = tmp_path / "ups.toml"
    text = devicefile.render({"name": "ups", "networks": ["192.0.2.5/32"]}).decode()
    assert callable(change)
    path.write_text(change(text))
    assert devicefile.is_written(str(path), "ups") is ours
    assert not devicefile.is_written(str(tmp_path / "none.toml"), "ups")


def test_an_address_is_a_network_of_one_and_host_bits_are_refused_with_words() -> None:
    assert devicefile.network_of("192.0.2.5") == ("192.0.2.5/32", "")
    assert devicefile.network_of("2001:db8::5") == ("2001:db8::5/128", "")
    assert devicefile.network_of("192.0.2.0/24") == ("192.0.2.0/24", "")
    assert 'write "192.0.2.0/24"' in devicefile.network_of("192.0.2.5/24")[1]
    assert "no network" in devicefile.network_of("printer.lan")[1]


def test_a_name_or_network_that_exists_is_named_by_its_line() -> None:
    assert devicefile.conflict(loaded(), "new", "192.0.2.5/32") == ""
    taken = devicefile.conflict(loaded(), "LAN", "192.0.2.5/32")
    assert '[[device]] "lan" at /etc/relayd/relayd.toml:7 has this name already' in taken
    there = devicefile.conflict(loaded(), "new", "192.168.20.5/32")
    assert "conf.d/ups.toml:3 has 192.168.20.5/32 already" in there
    assert "[[user]] Printer1" in devicefile.conflict(loaded(), "printer1", "192.0.2.5/32")


def test_a_device_that_would_never_be_reached_is_told_by_whom() -> None:
    new = Device(name="new", networks=("192.168.10.7/32",))
    after = replace(CONFIG, device=(LAN, UPS, new))
    told = devicefile.shadow(CONFIG, after, "new")
    assert told.startswith('192.168.10.7/32 is in 192.168.10.0/24 of [[device]] "lan"')
    first = replace(CONFIG, device=(new, LAN, UPS))
    assert devicefile.shadow(CONFIG, first, "new") == ""


def test_a_device_that_hides_others_is_told_whom() -> None:
    wide = Device(name="all", networks=("192.168.0.0/16",))
    told = devicefile.shadow(CONFIG, replace(CONFIG, device=(wide, LAN, UPS)), "all")
    assert "it comes before lan, ups" in told
    assert devicefile.shadow(CONFIG, replace(CONFIG, device=(LAN, UPS, wide)), "all") == ""


def test_one_that_was_hidden_before_is_not_the_new_ones_fault() -> None:
    hidden = Device(name="hidden", networks=("192.168.10.9/32", "192.168.10.10/32"))
    before = replace(CONFIG, device=(LAN, hidden))
    new = Device(name="new", networks=("2001:db8::/64",))
    assert devicefile.shadowed(before) == {"hidden"}
    assert devicefile.shadow(before, replace(before, device=(LAN, hidden, new)), "new") == ""
