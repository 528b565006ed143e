"""Signals as octets in a pipe that the selector sees: the handlers themselves do nothing.

Source: signal(7), pipe(7) (the self-pipe).
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
from collections.abc import Iterator
from typing import Final

from relayd.master.spawn import ALL_SIGNALS, Closable

HANDLED: Final = (
    signal.SIGHUP,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
)


class Signals:
    """The self-pipe; owned by the master's loop."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._noted: list[int] = []
        selector.register(self._read_fd, selectors.EVENT_READ, self._read)

    def closables(self) -> list[Closable]:
        """Return what a forked child must close."""
        return [_Descriptor(self._read_fd), _Descriptor(self._write_fd)]

    def take(self) -> list[int]:
        """Return the signals that came since the last time, in order."""
        taken, self._noted = self._noted, []
        return taken

    def has_orders(self) -> bool:
        """Look again, and tell whether more came than deaths of children."""
        self._read(0)
        return any(number != signal.SIGCHLD for number in self._noted)

    def wait(self, timeout_s: float) -> None:
        """Do nothing until a signal comes, or for `timeout_s`."""
        select.select([self._read_fd], [], [], timeout_s)

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Take the signals of HANDLED from here on."""
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in HANDLED:
            signal.signal(number, _nothing)
        # After a re-exec everything is still blocked, and may be pending.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)

    def _read(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._noted += os.read(self._read_fd, 4096)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Keep every signal waiting meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ALL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Descriptor:
    """A bare descriptor with a `close`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


def _nothing(_number: int, _frame: object) -> None:
    """The octet in the pipe is the message."""
