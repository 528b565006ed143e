"""A file is the old one or the new one, and nothing is left beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from relayd import whole


def test_a_file_is_made_and_replaced_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "leaf.pem"
    for octets, mode in ((b"old", 0o600), (b"new", 0o644)):
        whole.replace(str(path), octets, mode=mode)
        assert path.read_bytes() == octets
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["leaf.pem"]


def test_what_goes_wrong_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "leaf.pem"
    path.write_bytes(b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        whole.replace(str(path), b"new", mode=0o600)

    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["leaf.pem"]
