"""The three pages, made from what the master says when it is asked.

    /metrics    everybody's counters and gauges, for Prometheus
    /healthz    200 while the master's loop answers, else 503
    /readyz     200 while mail is taken and kept, else 503; JSON says why

Runs in one thread, so the master has one question at a time; an answer is good for a second,
that of a silent master too, so that many clients cost it no more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import structlog

from relayd.admin import exposition, health, http
from relayd.admin.health import Health
from relayd.admin.http import Request, Response
from relayd.clock import SYSTEM, Clock
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.frames import Frame

log = structlog.get_logger()

ANSWER_WITHIN_S: Final = 3.0
GOOD_FOR_S: Final = 1.0
ELSEWHERE: Final = Response(404, b"here are: /metrics /healthz /readyz\n")

Question: TypeAlias = Callable[[str], Frame]
"""Ask the master a command and return its result; raises NotRunning."""


def ask_at(path: str) -> Question:
    """Return questions to the master whose control socket is `path`."""

    def question(command: str) -> Frame:
        reply = client.ask(path, {"command": command}, timeout_s=ANSWER_WITHIN_S)
        result = reply.get("result")
        if reply.get("ok") is not True or not isinstance(result, Mapping):
            raise NotRunning(str(reply.get("error", "the master gave no result")))
        return result

    return question


class Pages:
    """Answers requests; one thread at a time."""

    def __init__(self, question: Question, *, clock: Clock = SYSTEM) -> None:
        self._question = question
        self._clock = clock
        self._answers: dict[str, tuple[float, Frame | NotRunning]] = {}

    def answer(self, request: Request) -> Response:
        """Return the page; raises nothing."""
        try:
            match request.path:
                case "/metrics":
                    return self._metrics(request.accept)
                case "/healthz":
                    return self._health("ping", health.alive)
                case "/readyz":
                    return self._health("status", health.ready)
                case _:
                    return ELSEWHERE
        except Exception:  # the edge: a bug costs this answer only
            log.exception("admin.bug", path=request.path)
            return Response(500, b"a bug; see the log\n")

    def _metrics(self, accept: str) -> Response:
        try:
            totals = self._ask("metrics").get("metrics")
        except NotRunning as error:
            return Response(503, f"the master does not answer: {error}\n".encode())
        return Response(200, *exposition.render(totals, accept))

    def _health(self, command: str, judge: Callable[[Frame], Health]) -> Response:
        try:
            found = judge(self._ask(command))
        except NotRunning as error:
            found = health.silent(f"the master does not answer: {error}")
        return Response(200 if found.ok else 503, found.render(), http.JSON)

    def _ask(self, command: str) -> Frame:
        """Return an answer that is not older than a second; raises NotRunning."""
        until, found = self._answers.get(command, (0.0, {}))
        if self._clock.monotonic() >= until:
            try:
                found = self._question(command)
            except NotRunning as error:
                found = error
            self._answers[command] = (self._clock.monotonic() + GOOD_FOR_S, found)
        if isinstance(found, NotRunning):
            raise NotRunning(str(found))
        return found
