"""Our own pair: looked at, made only when it must be, known by all our names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from relayd.clock import FakeClock
from relayd.config.model import Config, Listener, Server
from relayd.net import selfsigned
from relayd.net.pair import CertificateRefused, Facts, Pair, facts
from relayd.net.selfsigned import SelfSigned, local_addresses, names_of
from tests.listener_tls import LAN, WRAPPED, config_with

ROOT = Path(__file__).parents[3]


def leaf_in(folder: Path) -> bytes:
    return (folder / "tls" / "leaf.pem").read_bytes()


def test_a_pair_is_made_once_for_all_workers(tmp_path: Path) -> None:
    config = config_with(tmp_path, LAN, WRAPPED)

    first, trouble = SelfSigned(config, FakeClock()).pair()
    made = leaf_in(tmp_path)
    second, _ = SelfSigned(config, FakeClock()).pair()

    leaf = str(tmp_path / "tls" / "leaf.pem")
    assert (first, second, trouble) == (Pair(leaf, leaf), Pair(leaf, leaf), "")
    assert leaf_in(tmp_path) == made
    assert facts(first).names == {
        "relay.example.lan", "localhost", "127.0.0.1", "::1", "192.0.2.7", "2001:db8::7",
    }  # fmt: skip


def test_the_leaf_is_renewed_when_a_third_of_its_life_is_left(tmp_path: Path) -> None:
    clock = FakeClock()
    ours = SelfSigned(config_with(tmp_path), clock)
    ours.pair()
    first = leaf_in(tmp_path)

    clock.advance(59 * 86_400)
    ours.pair()
    assert leaf_in(tmp_path) == first

    clock.advance(2 * 86_400)
    ours.pair()
    assert leaf_in(tmp_path) != first


def test_a_new_address_gets_a_new_leaf(tmp_path: Path) -> None:
    SelfSigned(config_with(tmp_path, LAN), FakeClock()).pair()
    first = leaf_in(tmp_path)

    SelfSigned(config_with(tmp_path, LAN, WRAPPED), FakeClock()).pair()

    assert leaf_in(tmp_path) != first


@pytest.mark.parametrize("broken", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAA==\n"])
def test_a_broken_leaf_is_made_anew(tmp_path: Path, broken: bytes) -> None:
    ours = SelfSigned(config_with(tmp_path), FakeClock())
    ours.pair()
    (tmp_path / "tls" / "leaf.pem").write_bytes(broken)

    assert "relay.example.lan" in facts(ours.pair()[0]).names


def test_an_unchanged_leaf_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Pair] = []

    def counting(pair: Pair) -> Facts:
        read.append(pair)
        return facts(pair)

    SelfSigned(config_with(tmp_path), FakeClock()).pair()
    monkeypatch.setattr(selfsigned, "facts", counting)
    ours = SelfSigned(config_with(tmp_path), FakeClock())

    ours.pair()
    ours.pair()
    assert len(read) == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "tls").write_text("in the way")

    with pytest.raises(CertificateRefused, match="cannot be made"):
        SelfSigned(config_with(tmp_path), FakeClock()).pair()


def test_a_leaf_that_cannot_be_renewed_stays(tmp_path: Path) -> None:
    clock = FakeClock()
    ours = SelfSigned(config_with(tmp_path), clock)
    ours.pair()
    first = leaf_in(tmp_path)
    (tmp_path / "tls" / ".lock").unlink()
    (tmp_path / "tls" / ".lock").mkdir()  # root may write everywhere; this stops him too

    clock.advance(61 * 86_400)

    assert "not renewed" in ours.pair()[1]
    assert leaf_in(tmp_path) == first


def test_a_good_pair_is_used_without_cryptography(tmp_path: Path) -> None:
    SelfSigned(config_with(tmp_path), FakeClock()).pair()
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from relayd.clock import FakeClock\n"
        "from relayd.config.model import Config, Listener, Server\n"
        "from relayd.net.tls import ServerTls\n"
        "server = Server(hostname='relay.example.lan', state_dir=sys.argv[1])\n"
        "lan = Listener(name='lan', address=('192.0.2.7:25',), tls='opportunistic')\n"
        "tls = ServerTls(Config(server=server, listener=(lan,)), clock=FakeClock())\n"
        "assert tls.context('lan') is not None\n"
        "assert 'cryptography' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)


def test_a_listener_on_all_addresses_is_known_by_all_of_them(tmp_path: Path) -> None:
    everywhere = Listener(name="all", address=("0.0.0.0:25", "[::]:25"))

    names = names_of(config_with(tmp_path, everywhere))

    assert {"127.0.0.1", "::1", "relay.example.lan"} <= names
    assert local_addresses() <= names or len(names) == 100
    assert not any(name.startswith(("169.254.", "fe80:")) for name in names)


def test_odd_addresses_and_names_are_left_out(tmp_path: Path) -> None:
    config = Config(
        server=Server(hostname="rélai.example", state_dir=os.fspath(tmp_path)),
        listener=(Listener(name="odd", address=("somewhere:25",)),),
    )

    assert names_of(config) == {"localhost", "127.0.0.1", "::1"}
