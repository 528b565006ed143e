"""upgrade: the running relay becomes the code on disk, without a refused connection.

The package calls it after it has put new files in place; an administrator may. The master does
all of it (master/reexec.py); here one waits and says how it ended.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

from relayd.cli import main as command_line
from relayd.cli import terminal
from relayd.cli.answers import list_of, mapping_of, number_of, text_of
from relayd.cli.daemon import ANSWER_WITHIN_S, control_path, not_running
from relayd.clock import SYSTEM
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.frames import Frame, refused

UPGRADE_WITHIN_S: Final = 600.0
BACK_WITHIN_S: Final = 30.0
_LOOK_EVERY_S: Final = 0.5


def add_upgrade(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `upgrade`."""
    parser.epilog = (
        "examples:\n"
        "  apt upgrade                 the package calls `relayd upgrade` by itself\n"
        "  relayd upgrade || systemctl restart relayd\n"
        "  relayd --json upgrade | jq .result\n\n"
        "The code on disk checks configuration and spool first; sessions under way are\n"
        "finished, no connection is refused.\n"
        "exit: 0 the code on disk serves, 1 it was refused and the old one serves on,\n"
        "      69 not running, 75 it needs a restart: systemctl restart relayd"
    )
    parser.set_defaults(act=upgrade)


def upgrade(options: argparse.Namespace) -> int:
    """Have the running relay become the code on disk; wait until it serves, or was refused."""
    path = control_path(options.config)
    try:
        client.ask(path, {"command": "ping"}, timeout_s=ANSWER_WITHIN_S)
    except NotRunning as error:
        return not_running(error, options.config)
    try:
        reply: Frame = client.ask(path, {"command": "upgrade"}, timeout_s=UPGRADE_WITHIN_S)
    except NotRunning as error:
        reply = _after_a_fall(path, error)
    if options.json:
        terminal.print_json({key: value for key, value in reply.items() if key != "v"})
    elif reply.get("ok") is True:
        print(_done(mapping_of(reply.get("result"))))
    else:
        terminal.complain(text_of(reply.get("error")) or "refused")
        for problem in list_of(reply.get("problems")):
            print(f"  {terminal.safe(text_of(problem))}", file=sys.stderr)
    if reply.get("ok") is True:
        return command_line.OK
    return int(number_of(reply.get("exit"))) or command_line.FAILED


def _done(result: Frame) -> str:
    was, now = text_of(result.get("from")), text_of(result.get("to"))
    change = f"relayd {was} is now {now}" if was != now else f"relayd {now} runs the code on disk"
    workers = int(number_of(result.get("workers")))
    return f"upgraded: {change} (pid {result.get('pid')}, {workers} workers)"


def _after_a_fall(path: str, fall: NotRunning) -> Frame:
    """Return the answer when the master ended instead of giving one.

    A service manager starts it anew, from the code on disk.
    """
    deadline = SYSTEM.monotonic() + BACK_WITHIN_S
    while SYSTEM.monotonic() < deadline:
        try:
            reply = client.ask(path, {"command": "ping"}, timeout_s=ANSWER_WITHIN_S)
        except NotRunning:
            time.sleep(_LOOK_EVERY_S)
            continue
        version = text_of(mapping_of(reply.get("result")).get("version"))
        text = f"it ended while it changed over, and was started anew: relayd {version} answers now"
        return refused(text, problems=["journalctl -u relayd -n 50 says why"])
    return refused(f"it ended while it changed over ({fall})", exit_code=command_line.UNAVAILABLE)
