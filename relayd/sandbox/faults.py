"""Faults that wait for their request: a queue, first match first.

SHAPES says for each kind what becomes of the mail and of the answer; everything else about
a fault is its own fields (knobs.Fault).

    commit  BEFORE the wait   Microsoft took the mail, and only then something broke
            AFTER the wait    the client may be gone by then; the mail goes out all the same
            NEVER             nothing is sent
            USUAL             the request is served as always

Source: microsoft365 fact sheet §1.7: a 504 was seen to have delivered, four times over.
"""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from relayd.sandbox.knobs import Fault


class Commit(enum.Enum):
    """When the mail is sent, seen from the fault's delay."""

    BEFORE = "before"
    AFTER = "after"
    NEVER = "never"
    USUAL = "usual"


class Ending(enum.Enum):
    """How the request ends."""

    USUAL = "usual"
    CLOSE = "close"
    HTML = "html"
    JSON = "json"
    PLAIN = "plain"
    AADSTS = "aadsts"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kind of fault does. status, code, text: of an answer that is not the usual one."""

    commit: Commit
    ending: Ending
    status: int = 0
    code: str = ""
    text: str = ""


SHAPES: Final[Mapping[str, Shape]] = {
    "commit-504": Shape(Commit.BEFORE, Ending.HTML, 504),
    "commit-close": Shape(Commit.BEFORE, Ending.CLOSE),
    "commit-hang": Shape(Commit.BEFORE, Ending.USUAL),
    "hang-commit": Shape(Commit.AFTER, Ending.USUAL),
    "hang-close": Shape(Commit.NEVER, Ending.CLOSE),
    "close": Shape(Commit.NEVER, Ending.CLOSE),
    "latency": Shape(Commit.USUAL, Ending.USUAL),
    "429": Shape(
        Commit.NEVER,
        Ending.JSON,
        429,
        "ApplicationThrottled",
        "Application is over its MailboxConcurrency limit.",
    ),
    "429-plain": Shape(Commit.NEVER, Ending.PLAIN, 429, "", "Too Many Requests"),
    "500": Shape(
        Commit.NEVER,
        Ending.JSON,
        500,
        "ErrorInternalServerTransientError",
        "An internal server error occurred. Try again later.",
    ),
    "502": Shape(Commit.NEVER, Ending.HTML, 502),
    "503": Shape(
        Commit.NEVER,
        Ending.JSON,
        503,
        "serviceNotAvailable",
        "The service is temporarily unavailable. Please retry.",
    ),
    "504": Shape(Commit.NEVER, Ending.HTML, 504),
    "error": Shape(Commit.NEVER, Ending.JSON),
    "aadsts": Shape(Commit.NEVER, Ending.AADSTS),
}


@dataclass(slots=True)
class _Waiting:
    fault: Fault
    left: int  # 0: standing
    chance: random.Random


@dataclass(slots=True)
class FaultQueue:
    """The faults that wait. happened: how many of each kind struck."""

    happened: Counter[str] = field(default_factory=Counter)
    _waiting: list[_Waiting] = field(default_factory=list)

    def add(self, faults: Iterable[Fault]) -> None:
        """Put `faults` at the end of the queue."""
        for fault in faults:
            chance = random.Random(fault.seed)  # noqa: S311  # repeatable is the point
            self._waiting.append(_Waiting(fault, fault.times, chance))

    def clear(self) -> None:
        """Forget all that wait."""
        self._waiting.clear()

    def take(self, operation: str, mailbox: str) -> Fault | None:
        """Return the fault that strikes this request, used up once; None if it is spared."""
        for waiting in self._waiting:
            fault = waiting.fault
            if fault.operation != operation or fault.mailbox.lower() not in ("", mailbox):
                continue
            if fault.probability < 1.0 and waiting.chance.random() >= fault.probability:
                continue
            if waiting.left:
                waiting.left -= 1
                if not waiting.left:
                    self._waiting.remove(waiting)
            self.happened[fault.kind] += 1
            return fault
        return None

    def waiting(self) -> list[tuple[Fault, int]]:
        """Return what waits, and how often each will still strike (0: always)."""
        return [(waiting.fault, waiting.left) for waiting in self._waiting]
