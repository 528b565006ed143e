"""Our own authority and its leaf: made under a lock, renewed, never half written."""

from __future__ import annotations

import os
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from relayd.clock import FakeClock
from relayd.net.authority import renew
from relayd.net.certificates import make_ca, not_after
from relayd.net.pair import Pair, facts

NAMES = ("relay.example.lan", "192.0.2.7")


def renewed(folder: Path, clock: FakeClock, *, is_good: bool = False) -> Path:
    leaf = folder / "tls" / "leaf.pem"
    renew(str(leaf), NAMES, hostname=NAMES[0], is_good=lambda: is_good, clock=clock)
    return leaf


def test_folder_authority_and_leaf_are_made_for_us_alone(tmp_path: Path) -> None:
    leaf = renewed(tmp_path, FakeClock())

    assert facts(Pair(str(leaf), str(leaf))).names == set(NAMES)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in leaf.parent.iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "leaf.pem": 0o600, ".lock": 0o600}
    assert stat.S_IMODE(leaf.parent.stat().st_mode) == 0o700


def test_what_another_worker_made_meanwhile_is_left(tmp_path: Path) -> None:
    assert not renewed(tmp_path, FakeClock(), is_good=True).exists()


def test_the_leaf_lasts_ninety_days(tmp_path: Path) -> None:
    clock = FakeClock()
    leaf = renewed(tmp_path, clock)
    assert not_after(leaf.read_bytes()) - clock.now > timedelta(days=89)


def test_the_authority_outlives_its_leaves(tmp_path: Path) -> None:
    clock = FakeClock()
    ca = renewed(tmp_path, clock).parent / "ca.crt"
    first = ca.read_bytes()

    clock.advance(61 * 86_400)
    renewed(tmp_path, clock)
    assert ca.read_bytes() == first

    clock.advance(3600 * 86_400)
    renewed(tmp_path, clock)
    assert ca.read_bytes() != first


@pytest.mark.parametrize("broken", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAA==\n"])
def test_a_broken_authority_is_made_anew(tmp_path: Path, broken: bytes) -> None:
    ca = renewed(tmp_path, FakeClock()).parent / "ca.crt"
    ca.write_bytes(broken)

    renewed(tmp_path, FakeClock())

    assert not_after(ca.read_bytes()) > FakeClock().now


def test_a_key_of_another_authority_is_not_used(tmp_path: Path) -> None:
    key = renewed(tmp_path, FakeClock()).parent / "ca.key"
    other = make_ca("somebody else", days=4000, clock=FakeClock())
    key.write_bytes(other.key_pem)

    renewed(tmp_path, FakeClock())

    assert key.read_bytes() != other.key_pem


def test_nothing_is_left_of_a_file_that_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf = renewed(tmp_path, FakeClock())
    before = {path.name: path.read_bytes() for path in leaf.parent.iterdir()}

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        renewed(tmp_path, FakeClock())

    assert {path.name: path.read_bytes() for path in leaf.parent.iterdir()} == before
