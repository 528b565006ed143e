"""`relayd doctor`: the way out, step by step, with what mends each step that fails.

Root becomes the relay's own user first, and cannot go back: a secret that root can read and the
relay cannot is a common reason why no mail leaves. Others look with their own eyes; what they
may not read is asked of the running relay.

Ctrl-C ends it at any moment: nothing is changed but a note of when Microsoft said no.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import quote

from relayd.check import relay_user
from relayd.cli import daemon, terminal
from relayd.cli import main as command_line
from relayd.cli.answers import text_of
from relayd.config.model import Server, Upstream
from relayd.config.partial import Seen, look
from relayd.doctor.examination import Examination
from relayd.doctor.relay import Away, Relay, Row
from relayd.doctor.steps import State, Step
from relayd.errors import RelaydError
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.frames import Frame, Json
from relayd.spool.door import spool_path
from relayd.spool.store import Hold
from relayd.spool.transaction import read_holds
from relayd.spool.turnstile import Turnstile
from relayd.wayout import stamp

_QUICK_S: Final = 5.0
_TOKEN_S: Final = 40.0
_SPOOL_S: Final = 3.0
_MARKS: Final[Mapping[State, tuple[str, str]]] = {
    State.OK: ("ok", "green"),
    State.WARNING: ("warning", "yellow"),
    State.PROBLEM: ("problem", "red"),
    State.SKIPPED: ("not tried", "grey"),
}
_INDENT: Final = " " * 27
_STOPPED: Final = "relayd does not run"
_FIRST: Final = (State.PROBLEM, State.WARNING)
_EPILOG: Final = """\
examples:
  sudo relayd doctor
  sudo relayd doctor contoso
  relayd --json doctor | jq '.[].steps[] | select(.state == "problem")'

No mail is sent. After ErrorAccessDenied the mailbox is left alone for 30 min.
exit: 0 nothing wrong was found (warnings allowed), 1 a problem was found;
      2 no such upstream"""


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `doctor`."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "upstream", metavar="UPSTREAM", nargs="?", default="", help="only this one; default: all"
    )
    parser.set_defaults(act=doctor)


def doctor(options: argparse.Namespace) -> int:
    """Look at each upstream's way out."""
    path = daemon.control_path(options.config)
    as_service = become_service(options.config)
    seen = look(options.config)
    start = daemon.start_command(options.config)
    relay = running_relay(path, spool_path(seen.config.spool.url), start)
    upstreams = _meant(options, seen, relay)
    if isinstance(upstreams, int):
        return upstreams
    told: list[Json] = []
    is_well = True
    for number, upstream in enumerate(upstreams):
        if not options.json:
            print(("\n" if number else "") + terminal.paint(f"upstream {upstream.name}", "bold"))
        steps: list[Step] = []
        for step in Examination(seen, upstream, relay, as_service=as_service).steps():
            steps.append(step)
            if not options.json:
                print("\n".join(lines(step)), flush=True)
        is_well = is_well and not any(step.state is State.PROBLEM for step in steps)
        told.append({"upstream": upstream.name, "state": worst(steps), "steps": shown(steps)})
        if not options.json:
            print("\n".join([verdict(steps), *to_do(steps)]))
    if options.json:
        terminal.print_json(told)
    return command_line.OK if is_well else command_line.FAILED


def _meant(options: argparse.Namespace, seen: Seen, relay: Relay) -> Sequence[Upstream] | int:
    """Return the upstreams to look at, or the exit code when there are none."""
    there: Sequence[Upstream] = seen.config.upstream
    if seen.found and isinstance(relay, RunningRelay):
        # Who may not read the configuration still may ask the running relay.
        there = [Upstream(name=name) for name in relay.names()]
    found = [one for one in there if options.upstream in ("", one.name)]
    if found:
        return found
    for words in seen.found:
        terminal.complain(words)
    if seen.found:
        if relay.unavailable:
            terminal.complain(f"no worker serves: {relay.unavailable}")
        return command_line.FAILED
    if not there:
        terminal.complain("no upstream is configured yet; next step: relayd setup")
        return command_line.FAILED
    names = ", ".join(one.name for one in there)
    terminal.complain(f"no upstream named {options.upstream!r}; there are: {names}")
    return 2


# ---- who looks


def become_service(config: str) -> bool:
    """Leave root behind for the relay's own user; True: we see what the relay sees.

    config: the configuration's path; who the user is, see `service_user`.
    """
    user = service_user(config)
    if user is None:
        return os.geteuid() == 0  # a relay that root runs
    if os.geteuid() == user.pw_uid:
        return True
    if os.geteuid() != 0:
        return False
    # SECURITY: for good. Answers from the network are parsed after this.
    os.initgroups(user.pw_name, user.pw_gid)
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    return True


def service_user(config: str) -> pwd.struct_passwd | None:
    """Return whom the relay runs as; None: root, or nobody in particular; see check.relay_user."""
    state_dir, _ = daemon.setting_of(config, "server", "state_dir", Server().state_dir)
    return relay_user(config, state_dir)


# ---- the running relay


class RunningRelay:
    """The relay behind control.sock; keeps what it answered."""

    away: Final = ""
    remedy: Final = ""

    def __init__(self, path: str, status: Frame) -> None:
        self._path = path
        self._status = status
        self.unavailable = text_of(status.get("unavailable"))
        self.is_starting = status.get("queue") is None
        self._tokens: dict[str, Row | None] = {}
        self._ways: dict[str, Row] = {}

    def names(self) -> list[str]:
        """Return its upstreams."""
        rows = self._status.get("upstreams")
        return sorted(rows) if isinstance(rows, Mapping) else []

    def upstream(self, name: str) -> Row | None:
        """Return its row of `status`."""
        rows = self._status.get("upstreams")
        row = rows.get(name) if isinstance(rows, Mapping) else None
        return row if isinstance(row, Mapping) else None

    def token(self, name: str) -> Row | None:
        """Return the row of token.test."""
        if name not in self._tokens:
            request: Frame = {"command": "token.test", "upstream": name}
            self._tokens[name] = self._ask(request, _TOKEN_S)
        return self._tokens[name]

    def mailbox(self, name: str, mailbox: str) -> Row | None:
        """Return the row of mailbox.test."""
        request: Frame = {"command": "mailbox.test", "upstream": name, "mailbox": mailbox}
        return self._ask(request, _TOKEN_S)

    def holds(self, name: str) -> Sequence[Row]:
        """Return the rows of upstream.holds."""
        rows = self._way(name).get("holds")
        return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []

    def mailboxes(self, name: str) -> Sequence[str]:
        """Return the mailboxes it sends through."""
        by_name = self._way(name).get("mailboxes")
        found = by_name.get(name) if isinstance(by_name, Mapping) else None
        return [str(one) for one in found] if isinstance(found, list) else []

    def _way(self, name: str) -> Row:
        if name not in self._ways:
            request: Frame = {"command": "upstream.holds", "upstream": name}
            self._ways[name] = self._ask(request, _QUICK_S) or {}
        return self._ways[name]

    def _ask(self, request: Frame, timeout_s: float) -> Row | None:
        try:
            reply = client.ask(self._path, request, timeout_s=timeout_s)
        except NotRunning:
            return None
        result = reply.get("result") if reply.get("ok") is True else None
        return result if isinstance(result, Mapping) else None


class Stopped(Away):
    """A relay that does not run; what it held mail back for is still in its spool."""

    def __init__(self, why: str, spool: str, start: str) -> None:
        super().__init__(why, start)
        self._spool = spool

    def holds(self, name: str) -> Sequence[Row]:
        """Return the rows upstream.holds would have."""
        return [row for row in kept_holds(self._spool) if row["upstream"] == name]


def kept_holds(path: str) -> list[dict[str, Json]]:
    """Return the holds of a spool that no relay has open; none where they cannot be read."""
    found: list[dict[str, Json]] = []
    # A thread, because whoever hangs inside the turnstile may do so for ever.
    reader = threading.Thread(target=lambda: found.extend(_read_holds(path)), daemon=True)
    reader.start()
    reader.join(_SPOOL_S)
    return found


def _read_holds(path: str) -> list[dict[str, Json]]:
    try:
        if os.stat(path).st_uid != os.geteuid():
            return []  # SECURITY: no file of the spool may ever become another user's
        turnstile = Turnstile(f"{path}.turnstile")
        try:
            # DURABILITY: what a crash left is recovered at the first look, one at a time.
            with turnstile:
                found = _holds_in(path)
        finally:
            turnstile.close()
    except (OSError, sqlite3.Error, RelaydError):
        return []
    return [
        {
            "upstream": hold.mailbox.upstream,
            "mailbox": hold.mailbox.mailbox,
            "from": hold.header_from,
            "cause": hold.cause,
            "probe_at": stamp(hold.probe_at),
        }
        for hold in found
    ]


def _holds_in(path: str) -> Sequence[Hold]:
    with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA busy_timeout = 1000")
        return read_holds(connection)


def running_relay(path: str, spool: str, start: str) -> Relay:
    """Return the relay that runs, or why nobody answers.

    spool: its database's path; start: the command that starts it.
    """
    try:
        reply = client.ask(path, {"command": "status"}, timeout_s=_QUICK_S)
    except NotRunning as error:
        if not error.permitted:
            return Away("the running relay answers root, its own user and group relayd-admin only")
        return Stopped(f"{_STOPPED} ({error})", spool, start)
    result = reply.get("result")
    if reply.get("ok") is not True or not isinstance(result, Mapping):
        return Away(f"the running relay does not answer: {reply.get('error')}", "relayd status")
    return RunningRelay(path, result)


# ---- showing


def lines(step: Step) -> Iterator[str]:
    """Yield what was found in one step; what mends it stands at the end, see `to_do`."""
    mark, colour = _MARKS[step.state]
    head = f"  {step.name:14} {terminal.paint(f'{mark:9}', colour)} {terminal.safe(step.text)}"
    yield head.rstrip()
    if step.do and step.state is State.SKIPPED:  # how to see it, nothing to mend
        yield f"{_INDENT}{terminal.safe(step.do)}"


def to_do(steps: Sequence[Step]) -> Iterator[str]:
    """Yield what mends it, what keeps mail from leaving first: problems, then warnings."""
    wanted = [step for state in _FIRST for step in steps if step.state is state]
    wanted = [step for step in wanted if step.do or step.commands]
    told: dict[str, int] = {}
    for number, step in enumerate(wanted, 1):
        head = f"{number}. {step.name}:" if len(wanted) > 1 else "do:"
        yield ""
        yield f"  {terminal.paint(head, 'bold')} {terminal.safe(step.do)}".rstrip()
        earlier = {told.get(command, 0) for command in step.commands}
        if len(step.commands) > 1 and 0 not in earlier:
            yield f"       by the commands of {', '.join(map(str, sorted(earlier)))}"
            continue
        yield from (f"       {terminal.safe(command)}" for command in step.commands)
        for command in step.commands:
            told.setdefault(command, number)


def verdict(steps: Sequence[Step]) -> str:
    """Return the last line of an upstream."""
    problems = [step.name for step in steps if step.state is State.PROBLEM]
    if problems:
        return f"  {terminal.paint('The way out is blocked', 'red')} at: {', '.join(problems)}."
    unseen = [step.name for step in steps if step.state is State.SKIPPED and "sudo" in step.do]
    if unseen:
        return f"  Nothing wrong was found; only root can look at: {', '.join(unseen)}."
    stopped = [step.do for step in steps if step.text.startswith(_STOPPED)]
    if stopped:
        return f"  The way out is open, but relayd does not run. Start it: {stopped[0]}"
    wary = [step.name for step in steps if step.state is State.WARNING]
    but = f", but see the warning at: {', '.join(wary)}" if wary else ""
    return f"  The way out is open{but}. A real mail: relayd send --to ADDR --wait"


def worst(steps: Sequence[Step]) -> str:
    """Return "problem", "warning" or "ok"."""
    states = {step.state for step in steps}
    for state in (State.PROBLEM, State.WARNING):
        if state in states:
            return "problem" if state is State.PROBLEM else "warning"
    return "ok"


def shown(steps: Sequence[Step]) -> list[Json]:
    """Return the steps as JSON has them."""
    return [
        {
            "step": step.name,
            "state": step.state.value,
            "text": step.text,
            "do": step.do,
            "commands": [*step.commands],
        }
        for step in steps
    ]
