"""Greenlets that are used again.

A new greenlet has memory for its frames mapped, and unmapped when it ends; in a process with
threads that is an interrupt on every CPU one of them was on. For each message that is a few
percent of what the message costs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, ParamSpec, TypeAlias

import gevent
from gevent import get_hub, getcurrent
from greenlet import greenlet

P = ParamSpec("P")

_MOST_IDLE: Final = 64
_Idle: TypeAlias = tuple[greenlet, list[Callable[[], object]]]


class Crew:
    """Runs jobs, each in a greenlet nobody looks at: what a job raises is the hub's to tell."""

    def __init__(self, most_idle: int = _MOST_IDLE) -> None:
        self._most_idle = most_idle
        self._idle: list[_Idle] = []

    def start(self, job: Callable[P, object], *given: P.args, **named: P.kwargs) -> None:
        """Have `job` called in a turn of the hub's to come."""
        call = partial(job, *given, **named)
        if self._idle:
            get_hub().loop.run_callback(self._hand_over, self._idle.pop(), call)
        else:
            gevent.spawn_raw(self._work, [call])

    def _hand_over(self, idle: _Idle, call: Callable[[], object]) -> None:
        who, todo = idle
        if who.dead:
            gevent.spawn_raw(self._work, [call])
            return
        todo.append(call)
        who.switch()

    def _work(self, todo: list[Callable[[], object]]) -> None:
        """Do what is in `todo`, a list of one: a greenlet keeps what it was begun with."""
        while True:
            todo.pop()()
            if len(self._idle) >= self._most_idle:
                return
            idle = getcurrent(), todo
            self._idle.append(idle)
            try:
                while not todo:  # what wakes it otherwise was meant for the job before
                    get_hub().switch()
            finally:
                if idle in self._idle:
                    self._idle.remove(idle)
