"""A table of actions becomes parsers that all read alike."""

from __future__ import annotations

import argparse

import pytest

from relayd.cli.actions import Action, add_actions

TABLE = (
    Action("show", "one thing, whole", "  relayd x show A", "exit: 0 shown"),
    Action("drop", "forget it", "  relayd x drop A", "exit: 0 done, 1 refused", "id"),
)


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--config", default="default.toml")
    subs = add_actions(made, TABLE, {"show": lambda _: 0, "drop": lambda _: 1})
    subs["drop"].add_argument("id")
    return made


def test_each_has_its_own_act_and_arguments(parser: argparse.ArgumentParser) -> None:
    assert parser.parse_args(["show"]).act(None) == 0
    dropped = parser.parse_args(["drop", "A"])
    assert (dropped.act(None), dropped.id) == (1, "A")


def test_what_stands_before_the_action_is_not_put_back(parser: argparse.ArgumentParser) -> None:
    assert parser.parse_args(["--config", "mine.toml", "show"]).config == "mine.toml"
    assert parser.parse_args(["show", "--config", "mine.toml"]).config == "mine.toml"
    assert parser.parse_args(["show"]).config == "default.toml"


def test_no_action_is_wrong_usage(parser: argparse.ArgumentParser) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args([])
    assert stopped.value.code == 2


def test_the_help_has_examples_and_exit_codes(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args(["drop", "--help"])
    out = capsys.readouterr().out
    assert "Forget it." in out
    assert "examples:\n  relayd x drop A\n\nexit: 0 done, 1 refused" in out
