"""Threads for content files, apart from the one that commits: a slow file delays no 250."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar, cast

from gevent.event import AsyncResult
from gevent.threadpool import ThreadPool

from relayd.clock import Clock
from relayd.errors import SpoolUnavailable
from relayd.spool.content import unavailable

T = TypeVar("T")

_THREADS: Final = 4


class Files:
    """A few native threads. buffered: content octets that drafts hold in memory now."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.buffered = 0
        self._pool = ThreadPool(_THREADS)
        self._closed = False

    def start(self, job: Callable[[], T]) -> AsyncResult[T | OSError]:
        """Begin `job` as soon as a thread is free; an OSError comes back as its result.

        raises: SpoolUnavailable - the threads are gone.
        """
        if self._closed:
            raise SpoolUnavailable("the spool is closed")
        return cast("AsyncResult[T | OSError]", self._pool.spawn(_as_value, job))

    def call(self, job: Callable[[], T]) -> T:
        """Do `job` and wait for it; raises SpoolUnavailable, SpoolFull."""
        outcome = cast("T | OSError", self.start(job).get())
        if isinstance(outcome, OSError):
            raise unavailable(outcome) from outcome
        return outcome

    def close(self) -> None:
        """Let the threads go."""
        self._closed = True
        self._pool.kill()


def _as_value(job: Callable[[], T]) -> T | OSError:
    try:
        return job()
    except OSError as error:
        return error
