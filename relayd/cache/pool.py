"""Threads for what blocks in the cache daemon: asking Entra, above all.

The server's loop may not block, so what does is handed here and comes back by
`Server.post`. Daemon threads: a request that hangs never keeps the process from ending.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger()


class Pool:
    """At most `size` threads, started when needed; may be used from any thread."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._condition = threading.Condition()
        self._work: collections.deque[Callable[[], None]] = collections.deque()
        self._threads = 0
        self._idle = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Have `work` done by one of the threads, in order of asking."""
        with self._condition:
            self._work.append(work)
            if self._idle < len(self._work) and self._threads < self._size:
                self._threads += 1
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            self._condition.notify()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._idle += 1
                while not self._work:
                    self._condition.wait(60.0)
                self._idle -= 1
                work = self._work.popleft()
            try:
                work()
            except Exception:  # a daemon's loop: the next work must still be done
                log.exception("cache.bug", method=self._name)
