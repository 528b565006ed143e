"""The command line: one program with subcommands, each of which imports only what it needs.

A command is a row of COMMANDS: its name, the module that has it, one line of help, its place
in the help. The module has `add_NAME(parser)` ("-" as "_"), which adds the arguments, sets an
epilog with examples and calls `parser.set_defaults(act=f)` where `f(options) -> exit code`.
`options.config` is the configuration file's path, `options.json` whether machine-readable
output is wanted. Only the module of the command that was typed is imported, and it needs the
standard library alone: an action that needs more stands in a module of its own (`later`).

Exit codes (sysexits.h): 0 done, 1 failed, 2 wrong usage, 69 not running or cannot listen,
75 try again later, 78 the configuration cannot be used.
"""

from __future__ import annotations

import argparse
import importlib
import io
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, NoReturn

from relayd.errors import ConfigError, RelaydError

DEFAULT_CONFIG: Final = "/etc/relayd/relayd.toml"

OK: Final = 0
FAILED: Final = 1
UNAVAILABLE: Final = 69
TEMPORARY: Final = 75
CONFIG: Final = 78


class Command(NamedTuple):
    """One row of the table."""

    name: str
    module: str
    help: str
    group: str


GROUPS: Final = ("the relay", "mail", "who may send", "Microsoft 365", "in trouble")
"""Headings of the help, in order."""

COMMANDS: Final = (
    Command(
        "run",
        "relayd.cli.daemon",
        "run the relay in the foreground (systemd calls this)",
        "the relay",
    ),
    Command(
        "check",
        "relayd.cli.daemon",
        "read the configuration, say what is wrong with it",
        "the relay",
    ),
    Command(
        "setup", "relayd.cli.setup", "first run: asks, or takes options, and starts", "the relay"
    ),
    Command(
        "status", "relayd.cli.status", "show processes, queue, upstreams, last errors", "the relay"
    ),
    Command(
        "reload", "relayd.cli.daemon", "take over a changed configuration; wait for it", "the relay"
    ),
    Command(
        "stop", "relayd.cli.daemon", "finish what is under way, then stop; wait for it", "the relay"
    ),
    Command(
        "upgrade",
        "relayd.cli.upgrade",
        "become the code on disk; no connection is refused",
        "the relay",
    ),
    Command("version", "relayd.cli.daemon", "show the version", "the relay"),
    Command(
        "queue", "relayd.cli.queue", "list, show, trace, retry, hold, release, delete mail", "mail"
    ),
    Command("send", "relayd.cli.send", "send a test mail through the running relay", "mail"),
    Command("device", "relayd.cli.device", "addresses that need no password", "who may send"),
    Command("user", "relayd.cli.user", "names and passwords devices log in with", "who may send"),
    Command("secret", "relayd.cli.secret", "client secrets, kept safe", "Microsoft 365"),
    Command("token", "relayd.cli.token", "test, refresh or drop access tokens", "Microsoft 365"),
    Command(
        "sandbox",
        "relayd.cli.sandbox",
        "a Microsoft 365 on localhost, to try things out",
        "Microsoft 365",
    ),
    Command("doctor", "relayd.cli.doctor", "look at the way out, step by step", "in trouble"),
    Command(
        "report", "relayd.cli.report", "a bundle for a bug report, no secrets in it", "in trouble"
    ),
    Command(
        "explain", "relayd.cli.explain", "say what an error code means and what to do", "in trouble"
    ),
    Command(
        "explain-access",
        "relayd.cli.explain_access",
        "say which rule lets a mail in or refuses it",
        "in trouble",
    ),
)


def itself(config: str) -> str:
    """Return how to call this program on the same configuration again, for words to people."""
    is_found = config in {DEFAULT_CONFIG, os.environ.get("RELAYD_CONFIG")}
    return "relayd" if is_found else f"relayd --config {shlex.quote(config)}"


_COLUMN: Final = 2 + max(len(command.name) for command in COMMANDS)
_HELP: Final = """\
usage: relayd [--config FILE] [--json] COMMAND ...

SMTP relay that lets devices send through Microsoft 365.

{commands}

  --config FILE  before or after COMMAND; default: $RELAYD_CONFIG,
                 else {config}
  --json         print JSON where data is printed

first steps: relayd setup; relayd status; relayd queue list
`relayd COMMAND --help` shows a command's options, examples and exit codes.
"""


class _Program(argparse.ArgumentParser):
    """The whole program; its help fits a screen."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong, and for a name that is none the nearest one; exits with 2."""
        found = re.search("invalid choice: '(.*?)' \\(", message)
        if found is not None:
            import difflib  # noqa: PLC0415  only here

            near = difflib.get_close_matches(found[1], [one.name for one in COMMANDS], 1)
            message = f"no command {found[1]!r}" + (f"; {near[0]!r}?" if near else "")
            message += _swallowed(sys.argv)
        elif message.endswith("COMMAND"):
            message = f"which command?{_swallowed(sys.argv)}"
        self.exit(2, f"relayd: {message}\n`relayd --help` lists the commands\n")

    def format_help(self) -> str:
        """Return it."""
        lines: list[str] = []
        for group in GROUPS:
            rows = [f"  {one.name:{_COLUMN}}{one.help}" for one in COMMANDS if one.group == group]
            lines += [f"{group}:", *rows]
        return _HELP.format(commands="\n".join(lines), config=DEFAULT_CONFIG)


class _Sub(argparse.ArgumentParser):
    """One command."""

    def error(self, message: str) -> NoReturn:
        """Say what was wrong; which actions there are, where one is missing. Exits with 2."""
        if message.endswith("required: ACTION"):
            self.print_help(sys.stderr)
            self.exit(2)
        super().error(message)


def _swallowed(arguments: Sequence[str]) -> str:
    """Return a remark where --config took the command for its FILE, as with an empty $FILE."""
    names = {command.name for command in COMMANDS}
    for option, value in itertools.pairwise(arguments):
        if option == "--config" and value in names:
            return f"; --config took {value!r} for its FILE"
    return ""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps our line breaks, and the command column narrow."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=18)


def parser_for(wanted: str) -> argparse.ArgumentParser:
    """Return the whole tree, with the arguments of command `wanted` only."""
    parser = _Program(prog="relayd")
    parser.add_argument("--config", metavar="FILE")
    parser.add_argument("--json", action="store_true")
    commands = parser.add_subparsers(
        metavar="COMMAND", dest="command", required=True, parser_class=_Sub
    )
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            formatter_class=_Formatter,
        )
        # SUPPRESS: what stood before the subcommand is not overwritten by a default.
        sub.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS)
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
        if command.name == wanted:
            _filler(command)(sub)
    return parser


def later(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """Return an action that is imported when it is run: for modules that need much.

    The module with the arguments then costs little, for --help, completion and the man page.
    """

    def act(options: argparse.Namespace) -> int:
        action: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(module), name)
        return action(options)

    return act


def _filler(command: Command) -> Callable[[argparse.ArgumentParser], None]:
    module = importlib.import_module(command.module)
    filler: Callable[[argparse.ArgumentParser], None] = getattr(
        module, "add_" + command.name.replace("-", "_")
    )
    return filler


def wanted_command(arguments: Sequence[str]) -> str:
    """Return the subcommand's name in `arguments`; "" if there is none."""
    names = {command.name for command in COMMANDS}
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == "--config":
            skip = True
        elif not argument.startswith("-"):
            return argument if argument in names else ""
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; wrong usage exits with 2 by itself."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a peer wrote may not exist in this terminal's encoding: show it, never fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parser_for(wanted_command(given)).parse_args(given)
    if options.config is None:
        options.config = os.environ.get("RELAYD_CONFIG") or DEFAULT_CONFIG
    try:
        code: int = options.act(options)
        sys.stdout.flush()
    except ConfigError as error:
        for problem in error.problems:
            print(f"relayd: {problem}", file=sys.stderr)
        return CONFIG
    except RelaydError as error:
        print(f"relayd: {error}", file=sys.stderr)
        return UNAVAILABLE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `relayd queue list | head`: the reader has what it wanted. Python would complain
        # again when it flushes at exit, so give it somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code
