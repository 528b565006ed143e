"""`python -m relayd` is the command line."""

from __future__ import annotations

import pytest

from relayd import __main__, __version__


def test_the_program_is_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["relayd", "version"])
    assert __main__.main() == 0
    assert __version__ in capsys.readouterr().out
