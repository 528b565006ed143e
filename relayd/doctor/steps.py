"""What doctor says of one step, as a value: how it went, why, and the commands that mend it."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import Final

from relayd.values import frozen


class State(enum.Enum):
    """How a step went."""

    OK = "ok"
    WARNING = "warning"  #: works, but should be changed
    PROBLEM = "problem"  #: mail does not leave, or will not for long
    SKIPPED = "skipped"  #: not tried; the text says because of what


@frozen(kw_only=True)
class Step:
    """One step.

    name:     "dns", "token" …; stable, for scripts.
    text:     what was found; for SKIPPED the reason, to be read after "not tried: ".
    do:       what to do, sentences; "" for nothing.
    commands: lines to type or to click, in order, after `do`; "#" begins a remark.
    """

    name: str
    state: State
    text: str
    do: str = ""
    commands: tuple[str, ...] = ()


def ok(name: str, text: str) -> Step:
    """Return a step that went well."""
    return Step(name=name, state=State.OK, text=text)


def warning(name: str, text: str, do: str, commands: Iterable[str] = ()) -> Step:
    """Return a step that went, with something to change."""
    return Step(name=name, state=State.WARNING, text=text, do=_here(do), commands=tuple(commands))


def problem(name: str, text: str, do: str = "", commands: Iterable[str] = ()) -> Step:
    """Return a step at which the way out ends."""
    return Step(name=name, state=State.PROBLEM, text=text, do=_here(do), commands=tuple(commands))


def skipped(name: str, text: str, do: str = "", commands: Iterable[str] = ()) -> Step:
    """Return a step that was not tried, because of `text`."""
    return Step(name=name, state=State.SKIPPED, text=text, do=do, commands=tuple(commands))


_SENT_HERE: Final = re.compile(r"(?:, step by step)?: relayd doctor(?=[.;]|$)")
_PRINTED: Final = re.compile(r"relayd doctor prints the commands")
_SAID: Final = re.compile(r"relayd doctor (say|tell|look)s\b")


def _here(do: str) -> str:
    """Return an advice of everybody's as doctor gives it: it does not send to itself."""
    do = _SENT_HERE.sub("", do)
    do = _PRINTED.sub("the commands stand here", do)
    do = _SAID.sub(r"the other steps \1", do)
    return do[:1].upper() + do[1:] if do.startswith("the ") else do
