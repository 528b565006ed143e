"""The arguments of `relayd user`: each action shows what it takes and leads to its own code."""

from __future__ import annotations

import pytest

from relayd.cli import logins, user
from relayd.cli.main import parser_for
from tests.control_socket import relayd


def test_every_action_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for action in user._ACTIONS:
        assert relayd("user", action.name, "--help") == 0
        out = capsys.readouterr().out
        assert f"user {action.name}" in out.partition("examples:")[2]
        assert "exit: 0" in out


def test_every_action_is_there_to_be_run() -> None:
    assert {action.name for action in user._ACTIONS} == set(user._ACTS)
    for name in user._ACTS.values():
        assert callable(getattr(logins, name))


@pytest.mark.parametrize("words", [["add", "nas", "--generate", "--stdin"], ["passwd"], ["add"]])
def test_what_makes_no_sense_is_wrong_usage(words: list[str]) -> None:
    assert relayd("user", *words) == 2


def test_settings_have_their_defaults_and_may_be_given_again() -> None:
    words = ["user", "add", "nas", "--allow-to", "a@b.c", "--allow-to", "d@e.f"]
    options = parser_for("user").parse_args(words)
    assert options.allow_to == ["a@b.c", "d@e.f"]
    assert (options.upstream, options.from_, options.priority) == ("", "", "normal")
