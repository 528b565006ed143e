"""What our processes leave out when they import libraries.

A library takes along whatever optional package it finds installed. What of that nobody here
uses is kept out, because each worker would hold it in memory for ever:

    leave_out   a child's first act: from then on these packages look as if not installed
    patch       gevent's patch_all, without its search for plugins

Nothing here changes what a library does for us.

Source: The Python Language Reference §5.3.1 (None in sys.modules).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Final

_UNUSED: Final = ("rich", "better_exceptions")
"""structlog draws tracebacks with them, on a terminal; our lines have a form of their own
(observe.logfmt). rich, with pygments, is 5.5 MiB of each process."""


def leave_out() -> None:
    """Keep packages that nobody here uses from being imported in this process."""
    for name in _UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None says: not to be had


def patch() -> None:
    """Do gevent's patch_all, without asking all packages installed who wants to hear of it.

    Nobody of ours does. gevent 22.10 asks by way of pkg_resources, 6 MiB of a worker on
    Debian 12, newer ones by importlib.metadata, for each module they patch; either takes a
    worker 0.1 s of its start.
    """
    stub = ModuleType("pkg_resources")
    stub.iter_entry_points = None  # type: ignore[attr-defined]  # 22.10 wants to find the name
    found = sys.modules.setdefault("pkg_resources", stub)
    from gevent import events, monkey  # noqa: PLC0415  in a worker only, never in the master

    if found is stub:
        del sys.modules["pkg_resources"]
    # `notify` tells those who subscribed, and nobody else.
    events.notify_and_call_entry_points = events.notify  # type: ignore[attr-defined]  # not in the stubs
    monkey.patch_all()
