"""How the master was started: which configuration, which programs, how patient.

Times are arguments so that tests of real processes need not wait for them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import field

from relayd.master.children import ENTRIES
from relayd.master.upgrade import VERSION
from relayd.values import frozen


@frozen(kw_only=True)
class Timings:
    """Seconds."""

    tick_s: float = 1.0  # the loop turns at least so often
    late_s: float = 5.0  # the master itself was away for longer: judge nobody by it
    silent_s: float = 30.0  # a child that does not beat for so long hangs
    abort_grace_s: float = 5.0  # from SIGABRT (its stack goes to the log) to SIGKILL
    fast_grace_s: float = 5.0  # from SIGTERM to SIGKILL
    cut_grace_s: float = 5.0  # for a worker whose graceful_timeout is over to end by itself
    ready_within_s: float = 30.0  # a new generation; later: the reload is refused
    cached_head_start_s: float = 10.0  # workers wait for cached, but not for ever
    check_within_s: float = 60.0
    unserved_s: float = 10.0  # no worker serves for so long: who connects is told so
    bind_retry_s: float = 5.0  # a killed master's children need so long to leave


@frozen(kw_only=True)
class Launch:
    """path: the configuration file. again: the command that starts this master, for SIGUSR2.

    preflight: the command that proves that code on disk and configuration fit together.
    """

    path: str
    entries: Mapping[str, str] = field(default_factory=lambda: ENTRIES)
    timings: Timings = Timings()
    again: tuple[str, ...] = ()
    preflight: tuple[str, ...] = ()


def of_this_process(path: str) -> Launch:
    """Return the launch of `relayd run`, as it was typed."""
    absolute = os.path.abspath(path)
    # The very program that will be executed looks first, not one that `-m` finds elsewhere.
    program = (sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv[1:])])
    look = ("--json", "check", "--preflight", str(VERSION), "--config", absolute)
    return Launch(
        path=absolute,
        again=(sys.executable, *sys.orig_argv[1:]),
        preflight=(*program, *look),
    )
