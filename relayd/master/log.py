"""The master's log: the house's lines without structlog, and never waiting for a reader.

Lines go to standard error or to [log] file. A journal or terminal that takes nothing must
not stop the process that watches all others: what cannot be written at once is dropped,
counted, and told as `log.dropped` when lines flow again.

Source: pipe(7) (a writable pipe takes PIPE_BUF octets), send(2).
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Protocol

from relayd.clock import SYSTEM, Clock
from relayd.config.model import Log as LogSettings
from relayd.observe import logfmt

_LEVELS: Final[Mapping[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_PIECE_BYTES: Final = 4096


class _Render(Protocol):
    def __call__(
        self, event: str, fields: Mapping[str, object], *, level: str, moment: datetime
    ) -> str: ...


class Log:
    """Owned by the master; children make their own. fd: where lines go unless a file is set."""

    def __init__(
        self, settings: LogSettings | None = None, *, fd: int = 2, clock: Clock = SYSTEM
    ) -> None:
        self._clock = clock
        self._standard_fd = fd
        self._fd = fd
        self._path = ""
        self._level = "info"
        self._render: _Render = logfmt.render
        self._send = _sender(fd)
        self.dropped = 0
        self._untold = 0
        if settings is not None:
            self.configure(settings)

    def configure(self, settings: LogSettings) -> None:
        """Take over level, form and file; a file that cannot be opened is told, and not used."""
        self._level = settings.level
        self._path = settings.file
        self._render = _form(settings, self._standard_fd)
        self._open()

    def reopen(self) -> None:
        """Open the log file anew (it was rotated); standard error stays as it is."""
        self._open()
        if self._path:
            self.info("log.reopened")

    def _open(self) -> None:
        if not self._path:
            self._use(self._standard_fd)
            return
        try:
            fd = os.open(
                self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, mode=0o640
            )
        except OSError as error:
            self.error("log.failed", file=self._path, error=error)
            return
        self._use(fd)

    def debug(self, event: str, **fields: object) -> None:
        """Write a line that only a developer wants."""
        self._write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Write a line about a change of state."""
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Write a line about something an operator should look at some day."""
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Write a line about something an operator must look at."""
        self._write("error", event, fields)

    def _use(self, fd: int) -> None:
        if self._fd not in (fd, self._standard_fd):
            os.close(self._fd)
        self._fd = fd
        self._send = _sender(fd)

    def _write(self, level: str, event: str, fields: Mapping[str, object]) -> None:
        if _LEVELS[level] < _LEVELS[self._level]:
            return
        if self._untold:
            told = {"lines": self._untold, "process": "master"}
            if self._put("warning", "log.dropped", told):
                self._untold = 0
        if not self._put(level, event, {**fields, "process": "master"}):
            self.dropped += 1
            self._untold += 1

    def _put(self, level: str, event: str, fields: Mapping[str, object]) -> bool:
        line = self._render(event, fields, level=level, moment=self._clock.utcnow())
        octets = line.encode("utf-8", "backslashreplace") + b"\n"
        for start in range(0, len(octets), _PIECE_BYTES):
            piece = octets[start : start + _PIECE_BYTES]
            try:
                if self._send(piece) != len(piece):
                    return False
            except OSError:
                return False
        return True


def _form(settings: LogSettings, fd: int) -> _Render:
    chosen = settings.format
    if chosen == "auto":
        chosen = "console" if not settings.file and os.isatty(fd) else "logfmt"
    if chosen == "json":
        return logfmt.render_json
    return logfmt.render_console if chosen == "console" else logfmt.render


def _sender(fd: int) -> Callable[[bytes], int]:
    """Return a write to `fd` that takes at most a piece and raises instead of waiting.

    O_NONBLOCK is not set on standard error: it belongs to the open file, and whoever else
    has it (a shell, the children) would be surprised.
    """
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        is_socket = False

    def send_to_socket(octets: bytes) -> int:
        with socket.socket(fileno=os.dup(fd)) as sock:
            return sock.send(octets, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def write_if_there_is_room(octets: bytes) -> int:
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if not any(events & select.POLLOUT for _, events in poll.poll(0)):
            raise BlockingIOError
        return os.write(fd, octets)

    return send_to_socket if is_socket else write_if_there_is_room
