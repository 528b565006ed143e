"""A peer's address says which device it is."""

from __future__ import annotations

import pytest

from relayd.access.networks import DeviceTable, fold_ip
from relayd.config.model import Device

UPS = Device(name="ups", networks=("192.168.10.5/32", "fd00::5/128"))
LAN = Device(name="lan", networks=("192.168.10.0/24", "fd00::/64"))


@pytest.mark.parametrize(
    ("ip", "name"),
    [
        ("192.168.10.5", "ups"),
        ("::ffff:192.168.10.5", "ups"),
        ("192.168.10.6", "lan"),
        ("fd00::5", "ups"),
        ("fd00::6%eth0", "lan"),
        ("192.168.11.5", None),
        ("::1", None),
        ("", None),
        ("no address", None),
    ],
)
def test_the_first_device_that_has_the_address_wins(ip: str, name: str | None) -> None:
    table = DeviceTable([UPS, LAN])

    for _ in range(2):  # the second answer comes from memory
        found = table.find(ip)
        assert (found.name if found else None) == name


def test_a_walk_through_addresses_does_not_fill_the_memory() -> None:
    table = DeviceTable([UPS])

    for n in range(10_000):
        table.find(f"10.0.{n // 256}.{n % 256}")

    assert len(table._known) <= 4096
    assert table.find("192.168.10.5") == UPS


def test_a_broken_network_lets_nobody_in() -> None:
    assert DeviceTable([Device(name="x", networks=("everybody",))]).find("10.0.0.1") is None


def test_mapped_addresses_are_ipv4() -> None:
    assert str(fold_ip("::ffff:10.0.0.1")) == "10.0.0.1"
    assert fold_ip("10.0.0") is None
