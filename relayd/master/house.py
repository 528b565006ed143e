"""What every part of the master's loop works on: one relay, its crews, its ways to speak.

The loop (arbiter.py) turns; reload.py, reexec.py and commands.py are its parts.
"""

from __future__ import annotations

import enum
import os
import selectors
from collections.abc import Iterable
from dataclasses import dataclass

from relayd.clock import Clock
from relayd.master.checker import Loaded
from relayd.master.control import Control
from relayd.master.crew import Child, Crew
from relayd.master.household import Household
from relayd.master.launch import Launch, Timings
from relayd.master.log import Log
from relayd.master.notify import Notifier
from relayd.master.report import Troubles
from relayd.master.signals import Signals
from relayd.master.sockets import Bound
from relayd.master.spawn import Closable


class Phase(enum.Enum):
    """Where the relay stands."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(slots=True, eq=False, kw_only=True)
class House:
    """One relay. current: the workers in force; cached: the crew of one.

    admin: the crew of one that serves /metrics; None where [admin] address is empty.
    started_at: monotonic; kept over a re-exec.
    """

    launch: Launch
    log: Log
    notifier: Notifier
    clock: Clock
    selector: selectors.BaseSelector
    signals: Signals
    control: Control
    household: Household
    troubles: Troubles
    current: Crew
    cached: Crew
    phase: Phase
    started_at: float
    admin: Crew | None = None

    @property
    def timings(self) -> Timings:
        """Return how patient to be."""
        return self.launch.timings

    def drain(self, children: Iterable[Child]) -> float:
        """Tell children to finish and go; returns how long the last of them may take, seconds.

        Each has the graceful_timeout that it knows, that of its own generation, and then a
        moment more: at that time it cuts what is left, says so and closes the spool. SIGKILL
        at the same instant would take that from it.
        """
        longest_s = 0.0
        for child in children:
            settings = self.household.crew_of(child).config.settings
            patience_s = settings.graceful_timeout_s + self.timings.cut_grace_s
            self.household.drain([child], self.now() + patience_s)
            longest_s = max(longest_s, patience_s)
        return longest_s

    def now(self) -> float:
        """Return monotonic seconds."""
        return self.clock.monotonic()

    def be_running(self) -> None:
        """All workers serve, for the first time."""
        self.phase = Phase.RUNNING
        self.log.info("relay.ready", workers=self.current.size)

    def place_admin(self, config: Loaded, *, anew: bool = False) -> None:
        """Have an admin process as `config` wants it: none, the one there is, or another.

        anew: another in any case, because its code is another.
        """
        deadline = self.now() + self.timings.fast_grace_s
        crew, settings = self.admin, config.settings
        if crew is not None and not settings.admin:
            crew.dismiss()
            self.household.hasten(crew.children(), deadline)
            self.admin = None
        elif crew is not None:
            # A child that is already told to go reads this one's successor.
            before, crew.config = crew.config.settings, config
            same = (before.admin, before.log) == (settings.admin, settings.log)
            if anew or not same:
                self.household.hasten(crew.children(), deadline)
        elif settings.admin:
            self.admin = Crew("admin", 1, config, (), 1)
            self.household.crews.append(self.admin)

    def announce(self, one: Bound) -> None:
        """Tell of a new listener, and leave it with systemd."""
        self.log.info(
            "listener.bound", listener=one.listener, address=one.where(), origin=one.origin
        )
        if one.origin == "bound":
            # What systemd gave us it has already.
            self.notifier.store(one.store_name, one.fd)

    def tell_warnings(self, config: Loaded) -> None:
        """Log what the check allows but warns of."""
        for warning in config.warnings:
            self.log.warning("config.warning", reason=warning)

    def is_ours(self, pid: int) -> bool:
        """Tell whether a pid is the master's or a child's."""
        return pid == os.getpid() or any(child.pid == pid for child in self.household.children())

    def everything(self) -> list[Closable]:
        """Return all that a child which serves nobody must close."""
        channels: list[Closable] = [child.channel for child in self.household.children()]
        listeners = {one.sock for crew in self.household.crews for one in crew.listening}
        return [*channels, *listeners, *self.private()]

    def private(self) -> list[Closable]:
        """Return what no child may keep, but for its own listeners.

        The present listeners are here too: cached is forked before the workers' crew joins
        the household, and would keep a port open that a later reload gives up.
        """
        listeners = [one.sock for one in self.current.listening]
        return [*listeners, *self.signals.closables(), *self.control.closables(), self.selector]
