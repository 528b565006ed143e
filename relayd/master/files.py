"""How many files a process may have open, and how many of them connections may take.

Source: getrlimit(2), RLIMIT_NOFILE.
"""

from __future__ import annotations

import resource
import sys
from typing import Final

ENOUGH: Final = 65_536
"""As the unit has it."""

_OTHERS: Final = 256


def allow() -> None:
    """Let this process and its children have as many descriptors as the system allows them.

    A shell gives 1024, which is less than max_connections.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _count(soft) < most():
        resource.setrlimit(resource.RLIMIT_NOFILE, (most(), hard))


def most() -> int:
    """Return how many files a relay that is started from here will have: ENOUGH, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(_count(soft), min(_count(hard), ENOUGH))


def allowed() -> int:
    """Return how many files this process and its children may have open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _count(soft)


def for_connections(wanted: int, files: int) -> int:
    """Return how many connections a process may have that may open so many files; at least one.

    One that sends something large has two: its socket and the spool's file. What is left over is
    for the way out, the spool and the log: with none of it a relay would take mail in and send
    nothing.
    """
    return max(1, min(wanted, max((files - _OTHERS) // 2, files // 4)))


def _count(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit
