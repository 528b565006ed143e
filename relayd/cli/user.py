"""`relayd user`: names and passwords for devices that log in; here its arguments.

What it does is in relayd.cli.logins.
"""

from __future__ import annotations

import argparse
from typing import Final

from relayd.cli.actions import Action, add_actions
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


_EXITS: Final = "exit: 0 done, 1 refused, 2 wrong usage, 75 try again, 78 configuration"
_ACTIONS: Final = (
    Action(
        "add",
        "make a user",
        "  relayd user add printer1 --generate\n"
        "  relayd user add nas --from nas@contoso.com --allow-to '*'\n"
        "  echo s3cret | relayd user add ups --stdin --priority high",
        _EXITS,
    ),
    Action(
        "passwd",
        "give a user a new password",
        "  relayd user passwd printer1\n"
        "  relayd user passwd printer1 --generate\n"
        "  echo s3cret | relayd user passwd nas --stdin",
        _EXITS,
    ),
    Action(
        "list",
        "show all users",
        "  relayd user list\n  relayd --json user list | jq -r '.[].name'",
        _EXITS,
    ),
    Action(
        "delete",
        "remove a user",
        "  relayd user delete printer1",
        _EXITS,
    ),
)
_ACTS: Final = {"add": "add", "passwd": "passwd", "list": "show", "delete": "delete"}
"""Each action's function in relayd.cli.logins."""


def add_user(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `user`."""
    parser.epilog = _EPILOG
    subs = add_actions(
        parser, _ACTIONS, {name: later("relayd.cli.logins", act) for name, act in _ACTS.items()}
    )
    for name in ("add", "passwd", "delete"):
        subs[name].add_argument("name", metavar="NAME")
    for name in ("add", "passwd"):
        how = subs[name].add_mutually_exclusive_group()
        how.add_argument("--generate", action="store_true", help="make one up and show it once")
        how.add_argument("--stdin", action="store_true", help="read it from standard input")
    _add_settings(subs["add"])


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
