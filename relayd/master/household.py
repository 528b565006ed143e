"""The children that live: births, beats, deadlines, deaths. It knows nothing of reload or stop.

`tend(now)` does what is due and returns the news; who made the household decides what they
mean. A child that is silent gets SIGABRT, so that faulthandler prints where it hangs, then
SIGKILL. When the master itself was away (SIGSTOP, swap, a sleeping VM) everybody's silence
counts from now.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import selectors
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple, cast

from relayd.clock import SYSTEM, Clock
from relayd.master.board import ROWS, Board
from relayd.master.callers import Callers
from relayd.master.channel import Packet
from relayd.master.children import give_birth
from relayd.master.crew import Child, Crew, Life
from relayd.master.frames import Frame, Garbage, Json
from relayd.master.launch import Launch
from relayd.master.log import Log
from relayd.master.sockets import Bound
from relayd.master.spawn import Closable, how_it_ended
from relayd.observe import metrics, recent

_PACKETS_AT_ONCE: Final = 32
_LONGEST_TEXT: Final = 400
_IN_PARTS: Final = ("counters", "upstreams")
"""Figures that come before a status, and stay when it has none."""


class What(enum.Enum):
    """What became of a child."""

    READY = "ready"
    OPENING = "opening"  # it starts still, and is not stuck: a large spool is copied
    FAILED = "failed"  # it said why it cannot serve
    DIED = "died"


class News(NamedTuple):
    """text: the child's own words, or how it ended. status: waitpid's, of the dead."""

    what: What
    child: Child
    text: str = ""
    status: int = 0


class Household:
    """Owned by the master's loop. others: the loop's own things that a child must not keep.

    trouble: why a worker could not serve, as far as it is known since one last began to.
    """

    def __init__(
        self,
        launch: Launch,
        board: Board,
        log: Log,
        selector: selectors.BaseSelector,
        others: Callable[[], Iterable[Closable]],
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        self.board = board
        self.crews: list[Crew] = []
        self.serial = 0
        self.retired: metrics.Snapshot = {}
        self.callers = Callers()
        self.errors: list[recent.Row] = []
        self.unclaimed: list[int] = []
        self.trouble = ""
        self._launch = launch
        self._timings = launch.timings
        self._log = log
        self._selector = selector
        self._others = others
        self._clock = clock
        self._free_rows = set(range(ROWS))
        self._news: list[News] = []
        self._tended_at = clock.monotonic()
        self._amnesty_at = 0.0
        self._births_stopped_until = 0.0
        self._turn = 0

    def children(self) -> Iterator[Child]:
        """Every living child of every crew."""
        for crew in self.crews:
            yield from crew.children()

    def crew_of(self, child: Child) -> Crew:
        """Return the crew a child belongs to."""
        return next(crew for crew in self.crews if child in crew.children())

    def next_moment(self) -> float:
        """Return when `tend` has something to do, monotonic seconds; inf: nothing known."""
        births = min((crew.next_due() for crew in self.crews), default=math.inf)
        ends = min((child.deadline for child in self.children()), default=math.inf)
        return min(max(births, self._births_stopped_until), ends)

    def tend(self, now: float) -> list[News]:
        """Do what is due: births, silence, deadlines, words not yet said."""
        self._notice_absence(now)
        for crew in self.crews:
            for post in crew.due(now):
                if now >= self._births_stopped_until:
                    self._birth(crew, post.number, now)
        for child in list(self.children()):
            self._watch(child, now)
            if not child.told:
                child.told = child.channel.send({"do": "drain"})
        self._claim()
        news, self._news = self._news, []
        return news

    def adopt(self, child: Child) -> None:
        """Go on with a child of the master before the re-exec."""
        self._free_rows.discard(child.row)
        child.heard_at = self._clock.monotonic()
        self._selector.register(
            child.channel, selectors.EVENT_READ, lambda _events: self._listen(child)
        )

    def drain(self, children: Iterable[Child], deadline: float) -> None:
        """Tell children to finish and go; SIGKILL at `deadline`."""
        for child in children:
            child.deadline = min(child.deadline, deadline)
            if child.life in (Life.STARTING, Life.READY):
                child.move(Life.DRAINING)
                child.told = child.channel.send({"do": "drain"})

    def hasten(self, children: Iterable[Child], deadline: float) -> None:
        """Tell children to drop what they can: a signal now, SIGKILL at `deadline`.

        SIGQUIT is a worker's word for "at once"; one that starts ignores it still, and has
        nothing to lose by SIGTERM.
        """
        for child in children:
            child.deadline = min(child.deadline, deadline)
            is_serving = child.kind == "worker" and child.life is not Life.STARTING
            if child.life in (Life.STARTING, Life.READY):
                child.move(Life.DRAINING)
            self._signal(child, signal.SIGQUIT if is_serving else signal.SIGTERM)

    def forward(self, number: signal.Signals) -> None:
        """Send a signal to every child."""
        for child in self.children():
            self._signal(child, number)

    def bury(self, pid: int, status: int, now: float) -> bool:
        """Take note of a dead process; False when it was not one of the children."""
        child = next((c for c in self.children() if c.pid == pid), None)
        if child is None:
            return False
        self._read_last_words(child)
        crew = self.crew_of(child)
        delay = crew.buried(child, now)
        self._forget_channel(child)
        if child.row >= 0:
            self.board.clear(child.row)
            self._free_rows.add(child.row)
        self._retire(child)
        how = how_it_ended(status)
        if child.kind == "worker":
            self.unclaimed.append(pid)
        if child.kind == "worker" and (child.life is not Life.DRAINING or status != 0):
            self.trouble = f"{child.name}: {child.reason or how}"
        self._tell_death(child, status, delay, now)
        self._news.append(News(What.DIED, child, how, status))
        return True

    def send_to_worker(self, crew: Crew, packet: Frame, fds: tuple[int, ...] = ()) -> bool:
        """Give a packet to one worker that serves, each in turn; False when none took it."""
        ready = crew.ready()
        for offset in range(len(ready)):
            child = ready[(self._turn + offset) % len(ready)]
            if child.kind == "worker" and child.channel.send(packet, fds):
                self._turn += offset + 1
                return True
        return False

    def _notice_absence(self, now: float) -> None:
        away_s = now - self._tended_at
        self._tended_at = now
        if away_s > self._timings.late_s:
            self._amnesty_at = now
            self._log.warning("master.late", seconds=round(away_s, 1))

    def _watch(self, child: Child, now: float) -> None:
        if now >= child.deadline and child.life is not Life.KILLED:
            self._kill(child)
        elif child.life in (Life.ABORTED, Life.KILLED) or child.row < 0:
            return
        else:
            seen = max(self.board.beat_at(child.row), child.born_at, self._amnesty_at)
            if now - seen >= self._timings.silent_s:
                self._abort(child, now, now - seen)

    def _abort(self, child: Child, now: float, silent_s: float) -> None:
        self._log.error("child.silent", child=child.name, pid=child.pid, silent_s=round(silent_s))
        self.trouble = f"{child.name} hangs"
        child.move(Life.ABORTED)
        child.deadline = min(child.deadline, now + self._timings.abort_grace_s)
        self._signal(child, signal.SIGABRT)

    def _kill(self, child: Child) -> None:
        self._log.warning("child.killed", child=child.name, pid=child.pid, was=child.life.value)
        child.move(Life.KILLED)
        child.deadline = math.inf
        self._signal(child, signal.SIGKILL)

    def _signal(self, child: Child, number: signal.Signals) -> None:
        # Not yet reaped, so the pid is still this child's.
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)

    def _birth(self, crew: Crew, number: int, now: float) -> None:
        if not self._free_rows:
            self._births_stopped_until = now + self._timings.tick_s
            self.trouble = "those on their way out have taken every place"
            return
        row = min(self._free_rows)
        self.serial += 1
        try:
            child = give_birth(
                crew,
                number,
                serial=self.serial,
                row=row,
                board=self.board,
                entry=self._launch.entries[crew.kind],
                now=now,
                mine=self._not_for(crew),
            )
        except OSError as error:
            # No memory, process or descriptor to be had: the next try may have better luck.
            self._births_stopped_until = now + self._timings.tick_s
            self._log.error("child.unborn", child=crew.kind, error=error)
            self.trouble = f"cannot fork: {error.strerror}"
            return
        self._free_rows.discard(row)
        crew.posts[number].child = child
        self.adopt(child)
        self._log.info("child.forked", child=child.name, pid=child.pid, generation=crew.generation)

    def _not_for(self, crew: Crew) -> list[Closable]:
        """Return everything open here that a child of `crew` must not keep."""
        keep = {one.sock for one in crew.listening} if crew.kind == "worker" else set()
        closables: list[Closable] = [child.channel for child in self.children()]
        closables += [one for one in (*self._listeners(), *self._others()) if one not in keep]
        return closables

    def _listeners(self) -> Iterator[Closable]:
        for crew in self.crews:
            yield from (one.sock for one in crew.listening)

    def _listen(self, child: Child) -> None:
        """Take a child's packets: a bounded number, so that one cannot keep the loop busy."""
        for _ in range(_PACKETS_AT_ONCE):
            try:
                packet = child.channel.receive()
            except BlockingIOError:
                return
            except Garbage as error:
                self._log.warning("child.garbage", child=child.name, pid=child.pid, error=error)
                continue
            if packet is None:
                self._lose_channel(child)
                return
            self._hear(child, packet)

    def _read_last_words(self, child: Child) -> None:
        if child.channel.fileno() >= 0:
            self._listen(child)

    def _lose_channel(self, child: Child) -> None:
        """Stop listening; a child that closed its channel and lives on cannot be led."""
        self._forget_channel(child)
        now = self._clock.monotonic()
        child.deadline = min(child.deadline, now + self._timings.fast_grace_s)

    def _forget_channel(self, child: Child) -> None:
        if child.channel.fileno() < 0:
            return
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(child.channel)
        child.channel.close()

    def _hear(self, child: Child, packet: Packet) -> None:
        for fd in packet.fds:
            os.close(fd)
        members = packet.members
        match members.get("event"):
            case "ready" if child.life is Life.STARTING:
                child.move(Life.READY)
                if child.kind == "worker":
                    self.trouble = ""
                self._log.info("child.ready", child=child.name, pid=child.pid)
                self._news.append(News(What.READY, child))
            case "opening" if child.life is Life.STARTING:
                self._news.append(News(What.OPENING, child))
            case "failed":
                text = str(members.get("text", ""))[:_LONGEST_TEXT]
                child.reason = text
                self._log.error("child.failed", child=child.name, pid=child.pid, reason=text)
                self._news.append(News(What.FAILED, child, text))
            case "status":
                told = {k: v for k, v in members.items() if k != "event"}
                kept = {k: child.figures[k] for k in _IN_PARTS if k in child.figures}
                child.figures = {"counters": {}} | kept | told
                child.heard_at = self._clock.monotonic()
            case "counters":
                known: dict[str, Json] = {**counters(child.figures), **counters(members)}
                child.figures = {**child.figures, "counters": known}
            case "upstreams":
                child.figures = {
                    **child.figures,
                    "upstreams": {**_rows(child.figures), **_rows(members)},
                }
            case "callers":
                self.callers.hear(members.get("rows"))
            case "errors":
                self._note_errors(members.get("rows"))
            case _:
                return

    def memory(self) -> dict[str, Json]:
        """Return what children told for operators, for the code after an upgrade."""
        callers = self.callers.shown(whole=True)
        return {"errors": list(self.errors), "callers": callers[::-1]}

    def remember(self, memory: Frame) -> None:
        """Take in what the code before an upgrade was told."""
        self.callers.hear(memory.get("callers"))
        self._note_errors(memory.get("errors"))

    def _note_errors(self, rows: Json) -> None:
        told = [row for row in (rows if isinstance(rows, list) else []) if isinstance(row, Mapping)]
        self.errors = recent.merged([self.errors, told])

    def _claim(self) -> None:
        """Have the leases of dead workers taken back by one that lives."""
        for pid in list(self.unclaimed):
            for crew in reversed(self.crews):
                if crew.kind == "worker" and self.send_to_worker(
                    crew, {"do": "reclaim", "pid": pid}
                ):
                    self.unclaimed.remove(pid)
                    break

    def _retire(self, child: Child) -> None:
        self.retired = metrics.merge([self.retired, metrics.lasting(counters(child.figures))])

    def _tell_death(self, child: Child, status: int, delay: float, now: float) -> None:
        lived_s = round(now - child.born_at, 1)
        fields: dict[str, object] = {"child": child.name, "pid": child.pid, "lived_s": lived_s}
        as_told = child.life is Life.DRAINING and status == 0
        if as_told:
            self._log.info("process.stopped", **fields)
            return
        fields["how"] = how_it_ended(status)
        fields["next_try_s"] = delay if delay >= 0 else None
        self._log.error("child.died", **fields)


def counters(figures: dict[str, Json]) -> metrics.Snapshot:
    """Return the metrics snapshot of a status packet; {} when it has none."""
    found = figures.get("counters")
    return cast("metrics.Snapshot", found) if isinstance(found, dict) else {}


def _rows(figures: Frame) -> Frame:
    """Return the upstreams of figures; {} when there are none."""
    found = figures.get("upstreams")
    return found if isinstance(found, Mapping) else {}


def sockets_of(crews: Iterable[Crew]) -> dict[int, Bound]:
    """Return every listening socket of some crews, by descriptor."""
    return {one.fd: one for crew in crews for one in crew.listening}
