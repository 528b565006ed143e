"""What the master answers on control.sock; the rest it hands to a worker (docs/control.md)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Protocol

from relayd import __version__
from relayd.master import report
from relayd.master.control import Client
from relayd.master.frames import Frame, Garbage, Json, done, refused
from relayd.master.house import House, Phase
from relayd.master.household import Household

UNAVAILABLE = 69


class Loop(Protocol):
    """What the commands need of the arbiter."""

    house: House

    def state(self) -> str:
        """Return what is going on, in a word or two."""
        ...

    def unavailable(self) -> str:
        """Return why no worker serves for longer than a start takes; "" while one does."""
        ...

    def last_reload(self) -> Frame:
        """Return how the last reload ended."""
        ...

    def ask_reload(self, client: Client) -> None:
        """Reload, and answer `client` then."""
        ...

    def ask_upgrade(self, client: Client) -> None:
        """Become the code on disk, and answer `client` when its workers serve."""
        ...

    def ask_stop(self, client: Client, *, fast: bool) -> None:
        """Stop, and answer `client` then."""
        ...

    def act_on(self, number: int) -> None:
        """Do what a signal asks for."""
        ...

    def resize(self, change: int) -> int:
        """Have so many workers more; returns how many there are to be."""
        ...


class Commands:
    """Answers requests; owned by the arbiter."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._table: Mapping[str, Callable[[Client, Mapping[str, Json]], Frame | None]] = {
            "ping": self._ping,
            "status": self._status,
            "metrics": self._metrics,
            "callers": self._callers,
            "reload": self._reload,
            "stop": self._stop,
            "reopen": self._reopen,
            "upgrade": self._upgrade,
            "workers": self._workers,
            "debug.modules": self._modules,
        }

    def answer(self, client: Client, request: dict[str, Json]) -> None:
        """Do what a client asks; a command that is not in the table is a worker's."""
        command = request.get("command")
        if not isinstance(command, str):
            reply: Frame | None = refused('"command" is missing')
        elif command in self._table:
            reply = self._table[command](client, request)
        else:
            reply = self._hand_over(client, request)
        if reply is not None:
            self._loop.house.control.reply(client, reply)

    def _ping(self, _client: Client, _request: Mapping[str, Json]) -> Frame:
        return done({"pid": os.getpid(), "version": __version__})

    def _status(self, _client: Client, _request: Mapping[str, Json]) -> Frame:
        house = self._loop.house
        settings = house.current.config.settings
        own: dict[str, Json] = {
            "state": self._loop.state(),
            "unavailable": self._loop.unavailable() or None,
            "up_s": round(house.now() - house.started_at, 1),
            "config": house.launch.path,
            "runtime_dir": settings.runtime_dir,
            "reload": self._loop.last_reload(),
            "warnings": [
                *house.current.config.warnings,
                *report.admin_troubles(house.household),
            ],
            "upstreams_configured": settings.upstreams,
            "errors": report.errors(house.troubles, house.household),
            "log_lines_dropped": house.log.dropped,
        }
        return done(report.status(house.household, house.current, own, clock=house.clock))

    def _metrics(self, _client: Client, _request: Mapping[str, Json]) -> Frame:
        return done(report.totals(self._loop.house.household))

    def _callers(self, _client: Client, request: Mapping[str, Json]) -> Frame:
        house = self._loop.house
        name, ip = (str(request.get(key) or "") for key in ("name", "ip"))
        up_s = round(house.now() - house.started_at, 1)
        rows = house.household.callers.shown(name, ip, whole=request.get("whole") is True)
        return done({"up_s": up_s, "callers": rows})

    def _reload(self, client: Client, _request: Mapping[str, Json]) -> Frame | None:
        if self._loop.house.phase is Phase.STOPPING:
            return refused("relayd is stopping", exit_code=UNAVAILABLE)
        self._loop.ask_reload(client)
        return None

    def _stop(self, client: Client, request: Mapping[str, Json]) -> None:
        self._loop.ask_stop(client, fast=request.get("fast") is True)

    def _reopen(self, _client: Client, _request: Mapping[str, Json]) -> Frame:
        self._loop.act_on(signal.SIGUSR1)
        return done()

    def _upgrade(self, client: Client, _request: Mapping[str, Json]) -> Frame | None:
        if self._loop.house.phase is Phase.STOPPING:
            return refused("relayd is stopping", exit_code=UNAVAILABLE)
        self._loop.ask_upgrade(client)
        return None

    def _workers(self, _client: Client, request: Mapping[str, Json]) -> Frame:
        match request.get("change"):
            case int(change) if change in (1, -1):
                return done({"workers": self._loop.resize(change)})
            case _:
                return refused('"change" must be 1 or -1')

    def _modules(self, _client: Client, _request: Mapping[str, Json]) -> Frame:
        return done({"modules": sorted(sys.modules)})

    def _hand_over(self, client: Client, request: Mapping[str, Json]) -> Frame | None:
        """Have a worker answer what the master cannot: it knows no spool and no room."""
        house = self._loop.house
        packet: Frame = {
            "do": "control",
            "request": request,
            "peer": {"uid": client.peer.uid, "pid": client.peer.pid},
        }
        household: Household = house.household
        if found := report.down(household):
            packet = {**packet, "down": found}
        try:
            taken = house.control.hand_over(
                client, lambda fd: household.send_to_worker(house.current, packet, (fd,))
            )
        except Garbage:
            return refused("the request is too large; ask for less at once")
        if taken:
            return None
        why = self._loop.unavailable()
        text = f"no worker serves: {why}" if why else "no worker serves just now"
        text += "; `relayd status` says more"
        return refused(text, exit_code=UNAVAILABLE)
