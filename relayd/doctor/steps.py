"""What doctor says of one step, as a value: how it went, why, and the commands that mend it."""

from __future__ import annotations

import enum
from collections.abc import Iterable

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
    return Step(name=name, state=State.WARNING, text=text, do=do, commands=tuple(commands))


def problem(name: str, text: str, do: str = "", commands: Iterable[str] = ()) -> Step:
    """Return a step at which the way out ends."""
    return Step(name=name, state=State.PROBLEM, text=text, do=do, commands=tuple(commands))


def skipped(name: str, text: str, do: str = "", commands: Iterable[str] = ()) -> Step:
    """Return a step that was not tried, because of `text`."""
    return Step(name=name, state=State.SKIPPED, text=text, do=do, commands=tuple(commands))
