"""The commands of relayd as argparse has them, for what is made from them.

leaves()    every command that does something: `relayd status`, `relayd queue list`, ...
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from relayd.cli.main import COMMANDS, parser_for

EVERYWHERE: Final = ("-h", "--config", "--json")
"""Options that every command has."""


class Argument(NamedTuple):
    """An option, or what stands without one. metavar: "" for a switch."""

    options: Sequence[str]
    metavar: str
    help: str
    choices: Sequence[str]
    is_required: bool = False
    is_many: bool = False


class Leaf(NamedTuple):
    """One command. name: with "relayd" in front. examples: lines of a shell, as in its help."""

    name: str
    description: str
    arguments: Sequence[Argument]
    examples: Sequence[str]


class Branch(NamedTuple):
    """A name that may follow, and its line of help. path: the names before it."""

    path: Sequence[str]
    name: str
    help: str


def leaves() -> Iterator[Leaf]:
    """Yield every command in the order of the help."""
    for command in COMMANDS:
        yield from _leaves((command.name,), _of(command.name))


def branches() -> Iterator[Branch]:
    """Yield every name of a command or of one below it, in the order of the help."""
    for command in COMMANDS:
        yield Branch((), command.name, command.help)
        yield from _branches((command.name,), _of(command.name))


def _of(name: str) -> argparse.ArgumentParser:
    return _below(parser_for(name))[name][0]


def _leaves(path: Sequence[str], parser: argparse.ArgumentParser) -> Iterator[Leaf]:
    inner = _below(parser)
    for name, (sub, _) in inner.items():
        yield from _leaves((*path, name), sub)
    if not inner:
        yield Leaf(
            " ".join(("relayd", *path)),
            parser.description or "",
            [_argument(one) for one in _own(parser)],
            _examples(parser.epilog or ""),
        )


def _branches(path: Sequence[str], parser: argparse.ArgumentParser) -> Iterator[Branch]:
    for name, (sub, text) in _below(parser).items():
        yield Branch(path, name, text)
        yield from _branches((*path, name), sub)


def _below(parser: argparse.ArgumentParser) -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Return the subcommands of a parser with their lines of help."""
    for action in parser._actions:  # noqa: SLF001  argparse has no other way to ask
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            texts = {one.dest: one.help or "" for one in action._choices_actions}  # noqa: SLF001
            return {name: (sub, texts.get(name, "")) for name, sub in action.choices.items()}
    return {}


def _own(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # noqa: SLF001
        if not set(EVERYWHERE) & set(action.option_strings) and action.help != argparse.SUPPRESS:
            yield action


def _argument(action: argparse.Action) -> Argument:
    metavar = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    is_optional = action.nargs in ("?", "*")
    return Argument(
        tuple(action.option_strings),
        metavar,
        (action.help or "").replace("%%", "%"),
        tuple(str(choice) for choice in action.choices or ()),
        action.required if action.option_strings else not is_optional,
        action.nargs in ("+", "*"),
    )


def _examples(epilog: str) -> list[str]:
    """Return the lines that stand below "examples:", without their indent."""
    found = re.search(r"examples:\n((?:  .*\n?)*)", epilog)
    return [line[2:] for line in (found[1] if found else "").splitlines()]
