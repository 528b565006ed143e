"""`relayd user`: names and passwords for devices that log in; here its arguments.

What it does is in relayd.cli.logins.
"""

from __future__ import annotations

import argparse
from typing import Final, NamedTuple

from relayd.cli.main import later

_EPILOG: Final = """\
examples:
  relayd user add printer1 --generate           shows the password once
  relayd user add nas --from nas@contoso.com --allow-to '*'
  echo s3cret | relayd user passwd nas --stdin
  relayd user list
  relayd user delete nas

In force at once; no reload is needed. Users of relayd.toml are changed there.
exit: 0 done, 1 refused, 2 wrong usage, 75 try again, 78 configuration"""


class _Action(NamedTuple):
    """One action: its line of help, its examples."""

    name: str
    help: str
    examples: str


_ACTIONS: Final = (
    _Action(
        "add",
        "make a user",
        "  relayd user add printer1 --generate\n"
        "  relayd user add nas --from nas@contoso.com --allow-to '*'\n"
        "  echo s3cret | relayd user add ups --stdin --priority high",
    ),
    _Action(
        "passwd",
        "give a user a new password",
        "  relayd user passwd printer1\n"
        "  relayd user passwd printer1 --generate\n"
        "  echo s3cret | relayd user passwd nas --stdin",
    ),
    _Action(
        "list",
        "show all users",
        "  relayd user list\n  relayd --json user list | jq -r '.[].name'",
    ),
    _Action(
        "delete",
        "remove a user",
        "  relayd user delete printer1",
    ),
)
_ACTS: Final = {"add": "add", "passwd": "passwd", "list": "show", "delete": "delete"}
_EXITS: Final = "exit: 0 done, 1 refused, 2 wrong usage, 75 try again, 78 configuration"


def add_user(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `user`."""
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    for action in _ACTIONS:
        sub = actions.add_parser(
            action.name,
            help=action.help,
            description=f"{action.help[0].upper()}{action.help[1:]}.",
            epilog=f"examples:\n{action.examples}\n\n{_EXITS}",
            formatter_class=parser.formatter_class,
        )
        sub.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS)
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
        sub.set_defaults(act=later("relayd.cli.logins", _ACTS[action.name]))
        if action.name != "list":
            sub.add_argument("name", metavar="NAME")
        if action.name in ("add", "passwd"):
            how = sub.add_mutually_exclusive_group()
            how.add_argument("--generate", action="store_true", help="make one up and show it once")
            how.add_argument("--stdin", action="store_true", help="read it from standard input")
        if action.name == "add":
            _add_settings(sub)


def _add_settings(sub: argparse.ArgumentParser) -> None:
    for name, metavar, text in (
        ("--upstream", "NAME", "the way out; default: the only one there is"),
        ("--from", "ADDR", "always set From to this"),
        ("--default-from", "ADDR", "From where the device gives none"),
    ):
        dest = "from_" if name == "--from" else name[2:].replace("-", "_")
        sub.add_argument(name, dest=dest, metavar=metavar, default="", help=text)
    for name, text in (
        ("--allow-from", "senders it may use; may be given again"),
        ("--allow-to", "whom it may write to, '*': anybody; default: the upstream's own domains"),
    ):
        sub.add_argument(name, action="append", default=[], metavar="ADDR", help=text)
    sub.add_argument(
        "--priority",
        metavar="HOW",
        choices=("high", "normal", "low"),
        default="normal",
        help="high, normal or low; high waits for no quota",
    )
