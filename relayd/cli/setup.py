"""`relayd setup`: the first run, by questions on a terminal or by options, and again any time.

Looks at what is there, asks for what is missing (relayd.cli.interview), says what to do in Entra
and Exchange Online with the real names in it, writes the configuration (checked first, all of it
or nothing), has the relay take it over or starts it, looks at the way out, and sends a test mail
if wanted. What the check or the relay refuses is asked again, the other answers stay.

Nothing asks when there is no terminal, or with --no-input: then what is missing is listed, and
the same options again change nothing. What is not said stays as it is.

SECURITY: the client secret comes from a file, from standard input or from a prompt that does not
show it; never from an option, which everybody on the host can read.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

from relayd.cli import main as command_line
from relayd.cli import setupask, setupplan, setupsteps, terminal
from relayd.cli.interview import CannotGoOn, Interview
from relayd.cli.setupask import GivenUp
from relayd.cli.setupplan import Answers, Draft, Site
from relayd.cli.tomledit import CannotEdit
from relayd.doctor.advice import Names

_INTERRUPTED: Final = 130
_DOCTOR_WITHIN_S: Final = 180.0
_UNAVAILABLE: Final = command_line.UNAVAILABLE
_RUNS: Final = frozenset({"reloaded", "restarted", "started"})
_NOT_YET: Final = (
    "The configuration is in force, but the way out is not whole yet: mail is kept, and sent once",
    "it is. A new permission takes up to two hours; do not try again before. Then: relayd doctor",
)
_NEXT: Final = """
next:  {itself} status
       {itself} send --to {to} --wait
       {itself} device add 192.168.10.5 --name ups     a device with settings of its own
       {itself} user add printer1 --generate           one that logs in"""

_EPILOG: Final = """\
examples:
  relayd setup                           asks, says what to do at Microsoft
  relayd setup --no-input --tenant contoso.onmicrosoft.com \\
      --client-id 10000000-0000-0000-0000-000000000000 \\
      --mailbox alerts@contoso.com --secret-file contoso.secret \\
      --network 192.168.10.0/24          for Ansible: again is "unchanged"
  relayd setup --test-to you@contoso.com only a test mail, once configured

Nothing is changed before all of it is checked; Ctrl-C leaves everything as
it was. What an option does not say stays as it is.
exit: 0 done or unchanged, 1 refused, or the test mail failed,
      2 wrong usage or options missing, 69 the relay cannot start or listen,
      75 the test mail still waits, 78 what is there already cannot be read"""


def add_setup(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `setup`."""
    parser.epilog = _EPILOG
    for option, metavar, text in (
        ("--tenant", "TENANT", "contoso.onmicrosoft.com, or the tenant ID"),
        ("--client-id", "ID", "the Application (client) ID"),
        ("--mailbox", "ADDR", "the mailbox that sends everything"),
        ("--secret-file", "FILE", "a file with the client secret; it is copied"),
        ("--object-id", "ID", "Object ID of the enterprise application; only for the steps shown"),
        ("--name", "NAME", "what the upstream is called; default: the one there is, or contoso"),
        ("--cloud", "CLOUD", "global, gcc-high, dod, 21vianet or a [cloud.NAME]"),
        ("--authority", "URL", "Entra's address, of a cloud of your own (named lab by default)"),
        ("--graph", "URL", "Graph's address, of a cloud of your own"),
        ("--ca-file", "FILE", "whose certificates to trust there"),
        ("--test-to", "ADDR", "send a test mail there and follow it"),
    ):
        parser.add_argument(option, metavar=metavar, default="", help=text)
    parser.add_argument(
        "--secret-stdin", action="store_true", help="the secret comes by standard input"
    )
    for option, metavar, text in (
        ("--network", "NETWORK", "may send without a password, or none; may be given again"),
        ("--listen", "ADDR:PORT", "where devices connect; may be given again"),
    ):
        parser.add_argument(option, metavar=metavar, action="append", default=[], help=text)
    parser.add_argument(
        "--no-input",
        "--yes",
        dest="no_input",
        action="store_true",
        help="ask nothing; list what is missing",
    )
    parser.add_argument(
        "--no-start", action="store_true", help="only write; neither reload nor start the relay"
    )
    parser.set_defaults(act=setup)


def setup(options: argparse.Namespace) -> int:
    """Configure the relay."""
    run = Run(options)
    try:
        return run.all()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        terminal.complain(f"interrupted; {run.standing()}")
        return _INTERRUPTED
    except GivenUp as error:
        terminal.complain(f"{error}; {run.standing()}")
        run.say_again()
    except CannotGoOn as error:
        terminal.complain(f"{error.texts[0]}")
        for text in error.texts[1:]:
            print(f"  {terminal.safe(text)}", file=sys.stderr)
        terminal.complain(run.standing())
        run.say_again()
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        hint = "; say it again with sudo" if isinstance(error, PermissionError) else ""
        terminal.complain(f"{where}{error.strerror or error}; {run.standing()}{hint}")
    return command_line.FAILED


class Refused(CannotGoOn):
    """What was answered cannot be had, and nothing of it is written: another answer may do."""


class Run:
    """One run of setup: looks before it asks, asks before it writes.

    is_new: the upstream is, so there is something to do at Microsoft. told: what --json prints.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.is_asking = False
        self.interview: Interview | None = None
        self.is_written = False
        self.is_new = False
        self.told: dict[str, object] = {
            "changed": False, "files": [], "kept": [], "warnings": [],
            "running": "untouched", "doctor": "", "test": None,
        }  # fmt: skip

    def standing(self) -> str:
        """Return what became of the configuration so far."""
        return "the configuration is written" if self.is_written else "nothing was changed"

    def say_again(self) -> None:
        """Say how to give the same answers without typing them, where they were for nothing."""
        again = self.interview.again() if self.interview is not None and not self.is_written else ""
        if again:
            print(f"  with the same answers: {again}", file=sys.stderr)

    def all(self) -> int:
        """Go from the first question to the test mail; returns the exit code."""
        site = setupplan.look(self.options.config)
        interview = self.interview = Interview(site, self.options, self._say)
        self.is_asking, self.is_new = interview.is_asking, interview.is_new
        if self.is_asking:
            _look_before(site, interview)
        answers, drafts = self._agree(site, interview)
        if not drafts:
            self._say(f"unchanged: {site.config} says all of this already")
        elif self.told["running"] in _RUNS:
            self._look_at_the_way_out(answers.name)
        code = self._test_mail(answers)
        if self.options.json:
            terminal.print_json(self.told)
        elif drafts and code == command_line.OK:
            domain = answers.mailbox.rpartition("@")[2] or "contoso.com"
            itself = command_line.itself(self.options.config)
            print(_NEXT.format(itself=itself, to=f"you@{domain}"))
        return code

    def _agree(self, site: Site, interview: Interview) -> tuple[Answers, Sequence[Draft]]:
        """Ask, check and write; what is refused is asked again, the other answers stay."""
        while True:
            answers = interview.answers()
            try:
                drafts = setupplan.plan(site, answers)
                if drafts:
                    self._write(site, answers, drafts)
            except CannotEdit as error:
                raise CannotGoOn(str(error)) from error
            except Refused as refused:
                head, *problems = refused.texts
                if not interview.reopen(problems):
                    raise
                self._say("", head, *(f"  {each}" for each in problems))
                self._say("Nothing was changed; your other answers stay. Once more:", "")
            else:
                return answers, drafts

    def _say(self, *lines: str) -> None:
        if not self.options.json:
            for line in lines:
                print(terminal.safe(line), flush=True)

    # ---- what is to be done at Microsoft

    def _show_steps(self, answers: Answers) -> None:
        """Say all of it at once where nobody was asked."""
        if self.is_asking or not self.is_new or not setupsteps.is_microsoft(answers.cloud):
            return
        names = Names(
            app_id=answers.client_id, object_id=self.options.object_id, mailbox=answers.mailbox
        )
        self._say(
            *setupsteps.registration(answers.tenant, answers.cloud), "",
            *setupsteps.permission(names, answers.cloud), "",
        )  # fmt: skip

    # ---- writing

    def _write(self, site: Site, answers: Answers, drafts: Sequence[Draft]) -> None:
        """Check, confirm, put in place, have it taken over. raises: CannotGoOn, GivenUp."""
        from relayd.cli import setupplace, takeover  # noqa: PLC0415  imports every room

        problems, warnings = setupplace.judged(site, drafts)
        if problems:
            raise Refused("relayd check would refuse this:", *problems)
        self._show_steps(answers)
        for draft in drafts:
            self._say(f"{draft.path}:", *(f"  {line}" for line in changes_of(site, draft)), "")
        self._say(*(f"warning  {warning}" for warning in warnings))
        if self.is_asking and not setupask.confirm("Write this?"):
            raise GivenUp("not confirmed")
        placed = setupplace.put(site, drafts)
        self.is_written = True
        self._say(*(f"wrote {draft.path}" for draft in drafts))
        self._say(*(f"kept  {path}, as it was" for path in placed.kept))
        files: list[str] = [draft.path for draft in drafts]
        self.told |= {"changed": True, "files": files, "kept": [*placed.kept]}
        self.told["warnings"] = warnings
        if self.options.no_start:
            self._say("not taken over, as --no-start says: relayd reload, or start it")
            return
        taken = takeover.take_over(site.config, answers.listen or ())
        self.told["running"] = taken.state
        if taken.state == "refused":
            placed.take_back()
            self.is_written = False
            raise Refused("the running relay refused this:", *taken.texts)
        if not taken.is_good:
            raise CannotGoOn("it is not in force yet:", *taken.texts, code=_UNAVAILABLE)
        self._say(*taken.texts)

    # ---- afterwards

    def _look_at_the_way_out(self, name: str) -> None:
        """Run doctor, which gives up root for good: so in a process of its own."""
        self._say("", "relayd doctor:")
        # SECURITY: -P, or a folder named relayd where root happens to stand would be run instead.
        itself = [sys.executable, "-P", "-m", "relayd"]
        command = [*itself, "--config", self.options.config, "doctor", name]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if self.options.json else None,
                timeout=_DOCTOR_WITHIN_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self.told["doctor"] = "unknown"
            terminal.complain(f"doctor did not finish ({error}); again: relayd doctor")
            return
        self.told["doctor"] = "ok" if done.returncode == 0 else "problem"
        if done.returncode != 0:
            self._say("", *_NOT_YET)

    def _test_mail(self, answers: Answers) -> int:
        """Send one where it was asked for, or is wanted now; returns the exit code."""
        from relayd.cli import send  # noqa: PLC0415

        to = self.options.test_to
        if not to and self.is_asking and self.told["running"] in _RUNS:
            domain = answers.mailbox.rpartition("@")[2]
            question = f"Send a test mail to (an address at {domain}; Enter: none)"
            to = setupask.ask(question, lambda text: text and setupask.mailbox(text))
        if not to:
            return command_line.OK
        words = argparse.Namespace(
            config=self.options.config, json=self.options.json, to=[to], from_="", device="",
            subject="Test mail from relayd setup", attach=[], at="", wait=True,
        )  # fmt: skip
        if not self.options.json:
            return send.send(words)
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            code = send.send(words)
        self.told["test"] = json.loads(shown.getvalue() or "null")
        return code


# ---- small ones


def _look_before(site: Site, interview: Interview) -> None:
    """Raise CannotGoOn where something is wrong already that no answer mends."""
    from relayd.cli import setupplace  # noqa: PLC0415  imports every room

    is_there = os.path.lexists(site.config)
    packaged = [] if is_there else [Draft(site.config, site.template.encode(), None)]
    problems, _ = setupplace.judged(site, packaged)
    if others := interview.others(problems):
        raise CannotGoOn(f"{site.config} cannot be used, correct this first:", *others)


def changes_of(site: Site, draft: Draft) -> list[str]:
    """Return the lines that go and come, without their surroundings; of a secret only that."""
    if draft.is_secret:
        return [f"a client secret, {len(draft.octets) - 1} characters"]
    before = draft.before
    if before is None and draft.path == site.config:
        before = site.template.encode()
    old, new = ((octets or b"").decode().splitlines() for octets in (before, draft.octets))
    # SECURITY: no lines around them, which may hold a secret in clear.
    lines = list(difflib.unified_diff(old, new, lineterm="", n=0))[2:]
    return [line for line in lines if not line.startswith("@@")]
