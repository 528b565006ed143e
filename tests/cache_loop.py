"""A cache server that turns in a thread of the test, as cached's main loop does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from relayd.cache.server import Server


class Turning:
    """Turns `server` until the block ends, then closes it. each_turn: done before each turn."""

    def __init__(self, server: Server, each_turn: Callable[[], None] = lambda: None) -> None:
        self.server = server
        self._each_turn = each_turn
        self._stop = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.do(self._end)
        self._thread.join()
        self.server.close()

    def do(self, work: Callable[[], None]) -> None:
        """Have `work` done inside a turn, and wait for it."""
        done = threading.Event()

        def both() -> None:
            work()
            done.set()

        self.server.post(both)
        assert done.wait(10)

    def _end(self) -> None:
        self._stop = True

    def _run(self) -> None:
        while not self._stop:
            self._each_turn()
            self.server.turn(0.02)
