"""Fork, then signals, then the rest: how every child of the master comes to be.

Signals are blocked across the fork and reset first in the child; one that came in between
would run the master's handler, or be swallowed by it: a worker that ignores SIGTERM makes
`systemctl stop` wait 90 s (seen). PR_SET_PDEATHSIG follows the forking thread, so the master
has one; whoever lost the parent between fork and prctl sees it by getppid().

A child then waits for orders on its channel: what a terminal or a careless `pkill` sends to
the whole group (INT, QUIT, HUP, USR1, USR2, TTIN, TTOU) is ignored until it sets handlers of
its own. SIGTERM, from the dead master's kernel or the master, keeps its default.

Source: fork(2), prctl(2), signal(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Final, NoReturn, Protocol, TypeAlias

from relayd.clock import SYSTEM
from relayd.master.sockets import environment
from relayd.master.title import set_title
from relayd.observe import logfmt

CRASHED: Final = 70  # EX_SOFTWARE
_PR_SET_PDEATHSIG: Final = 1
_IGNORED: Final = frozenset(
    {
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTTIN,
        signal.SIGTTOU,
    }
)
_DEFAULT: Final = frozenset({signal.SIGTERM, signal.SIGCHLD, signal.SIGABRT, signal.SIGALRM})
ALL_SIGNALS: Final = frozenset(signal.valid_signals())


class Closable(Protocol):
    """Anything of the master's that a child must not keep open."""

    def close(self) -> None:
        """Close it."""
        ...


Mine: TypeAlias = Iterable[Closable]


def fork(run: Callable[[], int], *, title: str, mine: Mine = ()) -> int:
    """Return the pid of a child that runs `run` and exits with what it returns.

    mine: closed in the child before anything else of ours happens there.
    """
    parent = os.getpid()
    _flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _child(run, title, mine, parent)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _child(run: Callable[[], int], title: str, mine: Mine, parent: int) -> NoReturn:
    """Live and die; nothing gets out of here, not even SystemExit."""
    code = CRASHED
    try:
        _reset_signals()
        _die_with(parent)
        for one in mine:
            with contextlib.suppress(OSError):
                one.close()
        kept = environment(os.environ)
        for name in set(os.environ) - set(kept):
            del os.environ[name]
        set_title(title)
        faulthandler.enable()
        code = run()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException as error:  # noqa: BLE001  the last one who can tell
        _tell(title, error)
    finally:
        _flush()
        os._exit(code)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    for number in _DEFAULT:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def _tell(title: str, error: BaseException) -> None:
    """Print the line of a child that could not even log."""
    trace = "".join(traceback.format_exception(error))
    fields = {"error": error, "traceback": trace, "process": title.removeprefix("relayd: ")}
    line = logfmt.render("process.crashed", fields, level="error", moment=SYSTEM.utcnow())
    with contextlib.suppress(OSError):
        os.write(2, line.encode("utf-8", "backslashreplace") + b"\n")


def _flush() -> None:
    """Empty Python's buffers, or both processes would write them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def execute(arguments: list[str], output_fd: int, *, mine: Mine = ()) -> int:
    """Return the pid of a child that becomes another program; both outputs go to `output_fd`."""

    def run() -> int:
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_DFL)
        os.execv(arguments[0], arguments)  # noqa: S606  no shell is wanted

    return fork(run, title="relayd: preflight", mine=mine)


def wait(pid: int, timeout_s: float) -> int:
    """Return a child's wait status; it is killed after `timeout_s`. Blocks: for start-up only."""
    deadline = SYSTEM.monotonic() + timeout_s
    while SYSTEM.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def how_it_ended(status: int) -> str:
    """Return a wait status in words: "exit 70", "SIGKILL"."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return signal.Signals(number).name
        except ValueError:
            return f"signal {number}"
    return f"exit {os.waitstatus_to_exitcode(status)}"
