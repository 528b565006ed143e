"""What `relayd status` shows: the master's own figures and those the workers sent it.

The keys are an interface (docs/control.md): times are RFC 3339 UTC, durations seconds.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from relayd import __version__
from relayd.clock import SYSTEM, Clock
from relayd.master.crew import Child, Crew, Life
from relayd.master.frames import Frame, Json
from relayd.master.household import Household, counters
from relayd.observe import logfmt, metrics, recent

_MOST_ERRORS: Final = 20
_LONGEST_PROBLEM: Final = 200  # characters; the rest of the line must be seen too
_SILENT_S: Final = 15.0  # a worker tells its figures every 2 s
_MOST_DOWN: Final = 8
_SHORT: Final = 160
_WORSE: Final[Mapping[Json, int]] = {"down": 2, "probing": 1}


class Trouble(NamedTuple):
    """Something that went wrong, for "last errors"."""

    at: datetime
    event: str
    text: str


class Troubles:
    """The last of them; the oldest are forgotten."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._last: deque[Trouble] = deque(maxlen=_MOST_ERRORS)

    def add(self, event: str, text: str) -> None:
        """Remember one."""
        self._last.append(Trouble(self._clock.utcnow(), event, text))

    def restore(self, rows: Json) -> None:
        """Remember those of the code before an upgrade; whatever is no row is passed over."""
        for row in rows if isinstance(rows, list) else []:
            try:
                at = datetime.fromisoformat(row["at"])
                self._last.append(Trouble(at, str(row["event"]), str(row["text"])))
            except (KeyError, TypeError, ValueError):
                continue

    def last(self) -> str:
        """Return the last one, as the end of a line; "" if there was none."""
        return f"; last trouble: {self._last[-1].text}" if self._last else ""

    def shown(self) -> list[Frame]:
        """Return them for the status, oldest first."""
        return [
            {"at": logfmt.stamp(one.at), "event": one.event, "text": one.text} for one in self._last
        ]


def status(
    household: Household,
    current: Crew,
    own: Mapping[str, Json],
    *,
    clock: Clock = SYSTEM,
) -> Frame:
    """Return the answer to command "status". own: what only the arbiter knows, merged in."""
    now = clock.monotonic()
    workers = [c for c in household.children() if c.kind == "worker"]
    return {
        "version": __version__,
        "pid": os.getpid(),
        "generation": current.generation,
        "workers": current.size,
        "connections": household.board.connections(),
        "processes": [_process(child, household, now) for child in household.children()],
        "listeners": [
            {
                "name": one.listener,
                "address": one.where(),
                "configured": one.address,
                "origin": one.origin,
            }
            for one in current.listening
            if one.fd >= 0
        ],
        "queue": _latest(workers, "queue"),
        "oldest_s": _latest(workers, "oldest_s"),
        "upstreams": _upstreams(workers),
        "blocked": _latest(workers, "blocked") or {},
        "quota": _latest(workers, "quota") or [],
        "clock": _clock(workers),
        "certificates": _certificates(workers),
        "spool": _spool(workers, now),
        "left_behind": _latest(workers, "left_behind"),
        "admin": _admin(household),
        "errors": [],
        **own,
    }


def errors(troubles: Troubles, household: Household) -> list[Frame]:
    """Return the last errors of all processes, oldest first."""
    return [*recent.merged([troubles.shown(), household.errors])]


def totals(household: Household) -> Frame:
    """Return the answer to command "metrics": everybody's counters added up."""
    workers = [c for c in household.children() if c.kind == "worker" and c.life is Life.READY]
    metrics.gauge("relayd_workers", len(workers))
    metrics.gauge("relayd_connections", household.board.connections())
    metrics.gauge("relayd_build_info", 1, version=__version__)
    living = [_counted(child, has_heir=bool(workers)) for child in household.children()]
    return {"metrics": metrics.merge([household.retired, *living, metrics.snapshot()])}


def _counted(child: Child, *, has_heir: bool) -> metrics.Snapshot:
    """Return a child's counters; its gauges too, unless it goes and others know better."""
    found = counters(child.figures)
    is_leaving = child.kind == "worker" and child.life is not Life.READY
    return metrics.lasting(found) if is_leaving and has_heir else found


def admin_troubles(household: Household) -> list[str]:
    """Return why nobody can ask for /metrics, as a warning; none while all is well."""
    told = _admin(household)
    text = told.get("text") if isinstance(told, Mapping) else ""
    return [f"[admin] no metrics: {text}"] if text else []


def _admin(household: Household) -> Json:
    """Return what the admin process says of itself; null where there is none, or not yet."""
    admins = [child for child in household.children() if child.kind == "admin"]
    return _latest(admins, "admin")


def summary(current: Crew, household: Household, phase: str, upstreams: int) -> str:
    """Return the line for `systemctl status`."""
    if upstreams == 0:
        return "not configured: relayd setup"
    parts = ["serving" if phase == "running" else phase]
    workers = [c for c in household.children() if c.kind == "worker"]
    clock = _clock(workers)
    if isinstance(clock, Mapping) and clock.get("right") is False:
        parts.append("THE CLOCK IS WRONG, nothing is sent")
    queue = _latest(workers, "queue")
    if isinstance(queue, Mapping):
        parts += _queued(queue)
    ready, size = len(current.ready()), current.size
    parts.append(f"{size} workers" if ready == size else f"{ready} of {size} workers")
    parts.append(f"{household.board.connections()} connections")
    return ", ".join(parts)


def _queued(queue: Mapping[str, Json]) -> list[str]:
    """Return what waits, and apart from it what waits for an administrator."""
    counts = {state: count for state, count in queue.items() if isinstance(count, int)}
    waiting = sum(counts.get(state, 0) for state in ("ready", "leased", "deferred"))
    shown = [f"{waiting} queued"]
    return shown + [f"{counts[state]} {state}" for state in ("held", "failed") if counts.get(state)]


def refusal(last: Mapping[str, Json]) -> str:
    """Return how the line begins while the configuration on disk is refused; "" while it is not.

    last: how the last reload ended, {} before the first.
    """
    problems = last.get("problems")
    if last.get("result") != "refused" or not isinstance(problems, list | tuple) or not problems:
        return ""
    first = str(problems[0])
    short = first if len(first) <= _LONGEST_PROBLEM else first[: _LONGEST_PROBLEM - 1] + "…"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"configuration refused: {short}{more}; the old one stays: "


def _process(child: Child, household: Household, now: float) -> Frame:
    beat_at = household.board.beat_at(child.row) if child.row >= 0 else 0.0
    return {
        "kind": child.kind,
        "number": child.number,
        "pid": child.pid,
        "state": child.life.value,
        "up_s": round(now - child.born_at, 1),
        "generation": child.generation,
        "connections": household.board.connections(child.row) if child.row >= 0 else 0,
        "silent_s": round(now - max(beat_at, child.born_at), 1),
    }


def _newest_first(workers: Iterable[Child]) -> list[Child]:
    return sorted(workers, key=lambda child: child.serial, reverse=True)


def _latest(workers: Iterable[Child], key: str) -> Json:
    """Return what the youngest worker that said anything says: the spool is the same for all."""
    for child in _newest_first(workers):
        if key in child.figures:
            return child.figures[key]
    return None


def _upstreams(workers: Sequence[Child]) -> Frame:
    """Return each upstream as the worker sees it that fares worst; sends are added up.

    A worker learns of an outage by its own mail only: one that had none still says "up". One
    that drains has the configuration of before, and is not asked.
    """
    merged: dict[str, dict[str, Json]] = {}
    serving = [child for child in workers if child.life is Life.READY]
    for child in reversed(_newest_first(serving or workers)):
        found = child.figures.get("upstreams")
        for name, row in found.items() if isinstance(found, Mapping) else ():
            if isinstance(row, Mapping):
                merged[name] = _worse(merged.get(name, {}), row)
    return merged


def _clock(workers: Iterable[Child]) -> Json:
    """Return what the workers think of this host's clock; one that doubts it is believed."""
    told = [child.figures["clock"] for child in workers if "clock" in child.figures]
    wrong = [one for one in told if isinstance(one, Mapping) and one.get("right") is False]
    return (wrong or told or [None])[0]


def _spool(workers: Sequence[Child], now: float) -> Json:
    """Return whether mail can be kept, by the worker that fares worst; null while none told."""
    verdict: Json = None
    for child in workers:
        told = child.figures.get("spool")
        if child.life is not Life.READY or not isinstance(told, Mapping):
            continue
        silent_s = now - child.heard_at
        if silent_s > _SILENT_S:
            return {"ok": False, "text": f"{child.name} told nothing for {round(silent_s)} s"}
        if verdict is None or told.get("ok") is not True:
            verdict = told
    return verdict


def _certificates(workers: Iterable[Child]) -> list[Frame]:
    """Return when each listener's certificate ends, as the workers' gauges have it."""
    merged = metrics.merge(counters(child.figures) for child in workers)
    ends = merged.get("relayd_certificate_expiry_timestamp_seconds", {})
    return [
        {"listener": name, "expires_at": logfmt.stamp(datetime.fromtimestamp(value, UTC))}
        for name, value in sorted(ends.items())
        if isinstance(value, int | float)
    ]


def down(household: Household) -> Frame:
    """Return the upstreams that some worker finds down, for a worker that does not know yet.

    At most _MOST_DOWN, with little text: it travels with a request (channel.MAX_PACKET_BYTES).
    """
    workers = [c for c in household.children() if c.kind == "worker"]
    rows = {name: row for name, row in _upstreams(workers).items() if isinstance(row, Mapping)}
    return {
        name: {
            "cause": str(row.get("cause", ""))[:_SHORT],
            "text": str(row.get("text", ""))[: 2 * _SHORT],
            "retry_in_s": row.get("retry_in_s"),
        }
        for name, row in [one for one in rows.items() if one[1].get("state") in _WORSE][:_MOST_DOWN]
    }


def _worse(older: Mapping[str, Json], younger: Mapping[str, Json]) -> dict[str, Json]:
    is_older = _badness(older) > _badness(younger)
    row = dict(older if is_older else younger)
    counts = [each.get("in_flight") for each in (older, younger)]
    if any(isinstance(count, int) for count in counts):
        row["in_flight"] = sum(count for count in counts if isinstance(count, int))
    return row


def _badness(row: Mapping[str, Json]) -> int:
    return _WORSE.get(row.get("state"), 0)
