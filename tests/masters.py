"""A master whose loop is turned by hand, over the fake children of tests/process."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from relayd.master import checker, control, sockets
from relayd.master.arbiter import Arbiter
from relayd.master.checker import Loaded
from relayd.master.control import Client
from relayd.master.frames import Frame
from relayd.master.house import Phase
from relayd.master.launch import Launch, Timings
from relayd.master.log import Log
from relayd.master.notify import Notifier
from tests.process.fake_child import ENTRIES

PATIENCE_S = 20.0


class Master:
    """An arbiter in this very process. `replies` is what control clients would have heard."""

    def __init__(self, folder: Path, environ: Mapping[str, str], **config: object) -> None:
        self.folder = folder
        self.config: dict[str, object] = {"runtime_dir": str(folder), "workers": 1} | config
        self.write()
        launch = Launch(
            path=str(folder / "relayd.json"),
            entries=ENTRIES,
            timings=Timings(tick_s=0.02, ready_within_s=PATIENCE_S),
            again=("/nonexistent/python",),
            preflight=(sys.executable, "-c", ""),
        )
        loaded = checker.run_and_wait(launch.path, ENTRIES["checker"], PATIENCE_S)
        assert isinstance(loaded, Loaded)
        bound = sockets.open_all(loaded.settings.listeners).bound
        self._log_fd = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        log = Log(fd=self._log_fd)
        listener = control.listen(str(folder / "control.sock"))
        notifier = Notifier(environ)
        self.arbiter = Arbiter(launch, loaded, bound, listener, log, notifier)
        self.house = self.arbiter.house
        self.replies: list[Frame] = []
        self.house.control.reply = self._hear  # type: ignore[method-assign]  # a listening post

    def _hear(self, client: Client, frame: Frame) -> None:
        self.replies.append(frame)

    def write(self, **changes: object) -> None:
        self.config |= changes
        (self.folder / "relayd.json").write_text(json.dumps(self.config))

    def start(self) -> None:
        self.arbiter._begin()
        self.until(lambda: self.house.phase is Phase.RUNNING)

    def until(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert time.monotonic() < deadline, self.log()
            self.arbiter._turn()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def pids(self) -> list[int]:
        return [child.pid for child in self.house.household.children()]

    def close(self) -> None:
        self.arbiter.stop(fast=True)
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        self.until(self.arbiter._is_over)
        for one in self.house.private():
            one.close()
        for crew in (self.house.current, self.house.cached):
            sockets.close_all(crew.listening)
        os.close(self._log_fd)


A_CLIENT = Client.__new__(Client)
"""Somebody who asks; `Master.replies` has what he hears."""


def a_master(
    folder: Path, environ: Mapping[str, str] | None = None, **config: object
) -> Iterator[Master]:
    """Yield a master and leave no process behind; for fixtures."""
    master = Master(folder, environ or {}, **config)
    try:
        yield master
    finally:
        master.close()
