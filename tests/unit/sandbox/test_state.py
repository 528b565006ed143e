"""relayd.sandbox.state: what was pasted yesterday works today."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from relayd.clock import FakeClock
from relayd.net.certificates import make_ca
from relayd.sandbox.state import prepare


def test_a_second_start_has_the_same_authority_and_secrets(tmp_path: Path) -> None:
    folder = str(tmp_path / "state")
    first = prepare(folder, ["127.0.0.1"])
    authority = Path(first.ca_file).read_bytes()
    second = prepare(folder, ["127.0.0.1", "lab.test"])
    assert first == second
    assert Path(second.ca_file).read_bytes() == authority


def test_only_the_owner_may_read_what_is_secret(tmp_path: Path) -> None:
    state = prepare(str(tmp_path / "state"), ["127.0.0.1"])
    folder = Path(state.ca_file).parent
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"ca.pem": 0o644, "ca.key": 0o600, "server.pem": 0o600, "secrets.json": 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.path.isabs(state.server_file)


def test_an_expired_authority_is_made_anew(tmp_path: Path) -> None:
    state = prepare(str(tmp_path), ["127.0.0.1"])
    clock = FakeClock()
    clock.advance(-86_400 * 400)
    old = make_ca("old", days=1, clock=clock)
    Path(state.ca_file).write_bytes(old.certificate_pem)
    (tmp_path / "ca.key").write_bytes(old.key_pem)
    prepare(str(tmp_path), ["127.0.0.1"])
    assert Path(state.ca_file).read_bytes() != old.certificate_pem


@pytest.mark.parametrize("octets", [b"{", b"[]", b'{"client_secret": "x"}'])
def test_broken_secrets_are_said_to_be_broken(octets: bytes, tmp_path: Path) -> None:
    prepare(str(tmp_path), ["127.0.0.1"])
    (tmp_path / "secrets.json").write_bytes(octets)
    with pytest.raises(ValueError, match="delete it"):
        prepare(str(tmp_path), ["127.0.0.1"])


def test_secrets_of_two_sandboxes_differ(tmp_path: Path) -> None:
    one, two = (prepare(str(tmp_path / name), ["127.0.0.1"]).secrets for name in ("a", "b"))
    assert one.client_secret != two.client_secret
    assert one.control_key != two.control_key
