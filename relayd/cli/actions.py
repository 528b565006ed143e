"""Commands that have actions of their own: `queue list`, `user add`, `device show`, …

A table of them in, a parser for each out, so that all of them read alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

Act: TypeAlias = Callable[[argparse.Namespace], int]


class Action(NamedTuple):
    """One action. examples: lines; exits: "exit: 0 done, …"; takes: for whoever adds arguments."""

    name: str
    help: str
    examples: str
    exits: str
    takes: str = ""


def add_actions(
    parser: argparse.ArgumentParser, actions: Sequence[Action], acts: Mapping[str, Act]
) -> dict[str, argparse.ArgumentParser]:
    """Give `parser` its actions; return the parser of each, by name, for its own arguments."""
    made = {}
    parsers = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    for action in actions:
        sub = parsers.add_parser(
            action.name,
            help=action.help,
            description=f"{action.help[0].upper()}{action.help[1:]}.",
            epilog=f"examples:\n{action.examples}\n\n{action.exits}",
            formatter_class=parser.formatter_class,
        )
        # Where they stand before the action, these must not be put back to their defaults.
        sub.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS)
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
        sub.set_defaults(act=acts[action.name])
        made[action.name] = sub
    return made
