"""structlog, configured once for each process; lines leave through a thread of their own.

A caller renders its line (a few microseconds) and puts it into a bounded queue; a native thread
writes. A stalled journal or terminal therefore never holds the hub: what does not fit is dropped,
counted, and told as soon as lines flow again.

    journal = log.configure(config.log, process="worker-1")   # after the fork, after patching
    log.reopen()                                              # SIGUSR1
    log.close()                                               # at the end, waits 1 s at most

What libraries log through `logging` at warning and above comes out as `library.message`.

SECURITY: fields named like a secret, and Secret values, are shown as ***, at every level; texts of
libraries are searched for tokens and passwords as well.
"""

from __future__ import annotations

import _thread
import functools
import logging
import os
import re
import sys
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, Protocol

import structlog

from relayd import clock
from relayd.config.model import Log, Secret
from relayd.observe import logfmt, metrics
from relayd.observe.recent import Recent, Row

MOST_LINES: Final = 4096
_PIPE_BUF: Final = 4096
_CLOSE_WAIT_S: Final = 1.0
_GATHER_S: Final = 0.02
_LOOKS: Final = 5
"""So often the thread looks again by itself: to rouse it costs its caller a switch of threads."""
_LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_TELLING: Final = frozenset({str, int, float, bool, type(None)})
"""Types whose values show what they are; any other may be a Secret."""
_MOST_NAMES: Final = 512
_METHOD_LEVELS: Final[Mapping[str, str]] = {"warn": "warning", "exception": "error", "msg": "info"}
_SECRET_NAME: Final = re.compile(
    r"(?i)password|passwd|passphrase|secret|authorization|assertion|cookie|api_?key"
    r"|private_?key|(?:^|_)token$"
)
_SECRET_TEXT: Final = re.compile(
    r"(?i)(bearer\s+|(?:client_secret|client_assertion|password|refresh_token|access_token)"
    r"[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,}]+"
)
HIDDEN: Final = "***"


class Render(Protocol):
    """One of the forms of `logfmt`."""

    def __call__(
        self, event: str, fields: Mapping[str, object], *, level: str, moment: datetime
    ) -> str:
        """Return the line, without its newline."""
        ...


class Journal:
    """The way out for lines: a bounded queue and the native thread that empties it.

    Owned by the process that made it, used from any greenlet or thread. Uses no lock that
    gevent patches: the writer thread must never meet a hub.
    """

    def __init__(
        self, path: str = "", *, descriptor: int = 2, most_lines: int = MOST_LINES
    ) -> None:
        self._path = path
        self._descriptor = _open(path) if path else descriptor
        self._most_lines = most_lines
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._untold = 0
        self._idle = False
        self._closing = False
        self._closed = False
        self._reopening = False
        start, lock = _native()
        self._wake = lock()
        self._wake.acquire()
        self._never = lock()
        self._never.acquire()
        self._done = lock()
        self._done.acquire()
        start(self._write_lines, ())

    @property
    def dropped(self) -> int:
        """Lines lost so far."""
        return self._dropped

    def put(self, line: str) -> None:
        """Take one line without its newline; never waits."""
        if len(self._lines) >= self._most_lines:
            self._drop(1)
            return
        self._lines.append(line)
        if self._idle:
            self._rouse()

    def reopen(self) -> None:
        """Open the file anew (somebody moved it); the old one stays if that fails."""
        self._reopening = bool(self._path)
        self._rouse()

    def close(self, wait_s: float = _CLOSE_WAIT_S) -> bool:
        """Write what is queued, for `wait_s` at most; False when lines were left behind."""
        if not self._closed:
            self._closing = True
            self._rouse()
            self._closed = self._done.acquire(timeout=wait_s)
        return self._closed

    def _drop(self, lines: int) -> None:
        self._dropped += lines
        self._untold += lines
        metrics.count("relayd_log_dropped_total", lines)

    def _rouse(self) -> None:
        self._idle = False
        try:
            self._wake.release()
        except RuntimeError:  # two callers at once; it is awake
            return

    def _write_lines(self) -> None:
        """Run the thread: sleep until roused, then write until the queue is empty."""
        looks = 0
        while True:
            if self._reopening:
                self._reopen()
            if self._lines:
                self._write_all(self._batch())
                looks = _LOOKS
                continue
            if self._untold:
                self._tell_dropped()
                continue
            if self._closing:
                self._done.release()
                return
            if looks:
                looks -= 1
                self._gather()
                continue
            self._idle = True
            # A line put between the look above and this flag would wait for the next one.
            if not self._has_work():
                self._wake.acquire()
            self._idle = False
            self._gather()

    def _gather(self) -> None:
        """Let a few lines come together: every wake-up takes the GIL from the hub."""
        if not self._closing and not self._reopening:
            self._wake.acquire(timeout=_GATHER_S)

    def _has_work(self) -> bool:
        return bool(self._lines) or self._closing or self._reopening

    def _batch(self) -> bytes:
        """Return lines to be written at once: as many as a pipe takes without mixing writers."""
        taken = [_encode(self._lines.popleft())]
        room = _PIPE_BUF - len(taken[0])
        while self._lines:
            line = _encode(self._lines[0])
            room -= len(line)
            if room < 0:
                break
            self._lines.popleft()
            taken.append(line)
        return b"".join(taken)

    def _write_all(self, octets: bytes) -> None:
        while octets:
            try:
                octets = octets[os.write(self._descriptor, octets) :]
            except BlockingIOError:  # somebody shares the terminal and made it non-blocking
                self._never.acquire(timeout=0.02)
            except OSError:
                self._drop(octets.count(b"\n"))
                self._never.acquire(timeout=0.1)
                return

    def _tell_dropped(self) -> None:
        lines, self._untold = self._untold, 0
        moment = clock.SYSTEM.utcnow()
        told = logfmt.render("log.dropped", {"lines": lines}, level="warning", moment=moment)
        self._write_all(_encode(told))
        if self._untold:  # could not be written either; do not spin on it
            self._untold = 0

    def _reopen(self) -> None:
        self._reopening = False
        try:
            fresh = _open(self._path)
        except OSError:
            return
        os.close(self._descriptor)
        self._descriptor = fresh


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)


def _encode(line: str) -> bytes:
    return line.encode("utf-8", "backslashreplace") + b"\n"


def _native() -> tuple[Callable[..., object], Callable[[], _thread.LockType]]:
    """Return the kernel's thread starter and lock, also where gevent put its own in place."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return _thread.start_new_thread, _thread.allocate_lock
    return (
        monkey.get_original("_thread", "start_new_thread"),
        monkey.get_original("_thread", "allocate_lock"),
    )


class _Lines:
    """Makes a process's lines: hides secrets, adds who and when, renders."""

    def __init__(self, render: Render, process: str, recent: Recent) -> None:
        self._render = render
        self._process = process
        self._recent = recent
        self._open: set[str] = set()  # names that are no secret's

    def line(self, method: str, event: str, fields: dict[str, object]) -> str:
        """Return one line, without its newline; `fields` is the caller's to give away."""
        error = fields.pop("exc_info", None)
        # Asked of all at once: a caller's names are the same each time.
        if not (self._open.issuperset(fields) and _TELLING.issuperset(map(type, fields.values()))):
            self._hide(fields)
        if error or method == "exception":
            _explain(fields, error)
        fields["process"] = self._process
        level = _METHOD_LEVELS.get(method, method)
        moment = clock.SYSTEM.utcnow()
        if level == "error":
            self._recent.note(event, fields, moment)
        return self._render(event, fields, level=level, moment=moment)

    def _hide(self, fields: dict[str, object]) -> None:
        for name, value in fields.items():
            if is_secret(name, value):
                fields[name] = HIDDEN
            elif len(self._open) < _MOST_NAMES:
                self._open.add(name)


class _Factory:
    """What structlog makes its loggers of; `reopen`, `close` and `troubles` find theirs here."""

    def __init__(self, journal: Journal, lines: _Lines, recent: Recent) -> None:
        self.journal = journal
        self.lines = lines
        self.recent = recent

    def __call__(self, *_: object) -> _Factory:
        return self


def _voice(level: int) -> type[structlog.typing.FilteringBoundLogger]:
    """Return structlog's logger of `level`, without its chain of processors: we have one."""

    class Voice(structlog.make_filtering_bound_logger(level)):  # type: ignore[misc]  # made at run time
        def _proxy_to_logger(self, method: str, event: str = "", /, **fields: object) -> None:
            if self._context:
                fields = {**self._context, **fields}
            factory: _Factory = self._logger
            factory.journal.put(factory.lines.line(method, event, fields))

    return Voice


def is_secret(name: str, value: object) -> bool:
    """Say whether a field must be shown as ***."""
    return isinstance(value, Secret) or _is_secret_name(name)


@functools.lru_cache(maxsize=512)
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def scrub(words: str) -> str:
    """Return a library's text without the tokens and passwords in it."""
    return _SECRET_TEXT.sub(rf"\1{HIDDEN}", words)


def _explain(fields: dict[str, object], error: object) -> None:
    """Turn exc_info into `error=` and `traceback=`, without values of variables."""
    caught = error if isinstance(error, BaseException) else sys.exc_info()[1]
    if isinstance(error, tuple):
        caught = error[1]
    if caught is not None:
        fields.setdefault("error", scrub(logfmt.text(caught)))
        fields["traceback"] = scrub("".join(traceback.format_exception(caught)).strip())


class _Libraries(logging.Handler):
    """What libraries say through `logging`, in our own form."""

    def __init__(self, journal: Journal, lines: _Lines) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Put one record into the journal; a record that cannot be shown is named."""
        try:
            words = record.getMessage()
        except (TypeError, ValueError):
            words = str(record.msg)
        fields: dict[str, object] = {
            "logger": record.name,
            "text": scrub(words),
            "exc_info": record.exc_info,
        }
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self._journal.put(self._lines.line(level, "library.message", fields))


def configure(settings: Log, *, process: str) -> Journal:
    """Set this process's logging up: structlog, libraries, the writer thread.

    process: "worker-1", "cached", "cli"; stands on each line.
    raises:  OSError - [log] file cannot be opened.
    """
    journal = Journal(settings.file)
    recent = Recent()
    lines = _Lines(_form(settings), process, recent)
    structlog.configure(
        processors=[],
        wrapper_class=_voice(_LEVELS[settings.level]),
        logger_factory=_Factory(journal, lines, recent),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_Libraries(journal, lines)]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    return journal


def reopen() -> None:
    """Open the log file anew, after SIGUSR1; nothing to do on standard error."""
    if (journal := _current()) is not None:
        journal.reopen()
        structlog.get_logger().info("log.reopened")


def close() -> None:
    """Write what is queued, for a second at most; the last call before a process ends."""
    if (journal := _current()) is not None:
        journal.close()


def troubles() -> list[Row]:
    """Return the errors logged since the last time this was asked, for `relayd status`."""
    factory = structlog.get_config()["logger_factory"]
    return factory.recent.take() if isinstance(factory, _Factory) else []


def _current() -> Journal | None:
    factory = structlog.get_config()["logger_factory"]
    return factory.journal if isinstance(factory, _Factory) else None


def _form(settings: Log) -> Render:
    on_terminal = not settings.file and os.isatty(2)
    chosen = settings.format
    if chosen == "auto":
        chosen = "console" if on_terminal else "logfmt"
    if chosen == "json":
        return logfmt.render_json
    if chosen == "logfmt":
        return logfmt.render

    def console(event: str, fields: Mapping[str, object], *, level: str, moment: datetime) -> str:
        return logfmt.render_console(event, fields, level=level, moment=moment, colours=on_terminal)

    return console
