"""SIGUSR2: first a look by the code on disk, then execve in place (upgrade.py does it)."""

from __future__ import annotations

import contextlib
import math
import os
import signal

from relayd.master import upgrade
from relayd.master.house import House
from relayd.master.signals import blocked
from relayd.master.spawn import how_it_ended


class Reexec:
    """At most one at a time, and none beside a reload. deadline: of the look, monotonic."""

    shown = "upgrade: checking"

    def __init__(self, house: House) -> None:
        self._house = house
        self.deadline = math.inf
        self.is_wanted = False
        self._preflight: upgrade.Preflight | None = None

    @property
    def is_busy(self) -> bool:
        """True while the code on disk looks at the configuration."""
        return self._preflight is not None

    def ask(self) -> None:
        """Do it as soon as nothing else is under way."""
        self.is_wanted = True

    def begin(self) -> None:
        """Have the code on disk look at the configuration."""
        house = self._house
        self.is_wanted = False
        house.log.info("upgrade.checking", command=" ".join(house.launch.preflight))
        try:
            self._preflight = upgrade.start_preflight(house.launch.preflight, house.everything())
        except OSError as error:
            self._refuse(str(error))
            return
        self.deadline = house.now() + house.timings.check_within_s

    def go_on(self, now: float) -> None:
        """End a look that takes too long."""
        if self._preflight is not None and now >= self.deadline:
            os.kill(self._preflight.pid, signal.SIGKILL)

    def reap(self, pid: int, status: int) -> bool:
        """Take the end of the look, and become new code if it was good."""
        if self._preflight is None or self._preflight.pid != pid:
            return False
        said = self._preflight.said()
        self._preflight, self.deadline = None, math.inf
        if status != 0:
            self._refuse(said or how_it_ended(status))
        else:
            self._replace()
        return True

    def abandon(self) -> None:
        """Forget about it, because the relay stops."""
        self.is_wanted = False
        if self._preflight is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._preflight.pid, signal.SIGKILL)

    def _replace(self) -> None:
        house = self._house
        with blocked():
            if house.signals.has_orders():
                # A signal that this code took would be lost on that: obey, then try again.
                self.is_wanted = True
                return
            house.log.info("upgrade.replacing", pid=os.getpid())
            house.notifier.reloading()
            try:
                upgrade.replace(house.launch.again, self._state())
            except OSError as error:
                self._refuse(str(error))
                house.notifier.ready()

    def _refuse(self, reason: str) -> None:
        self._house.log.error("upgrade.refused", reason=reason)
        self._house.troubles.add("upgrade.refused", reason)

    def _state(self) -> upgrade.State:
        household = self._house.household
        return upgrade.State(
            serial=household.serial,
            crews=tuple(household.crews),
            board_fd=household.board.fd,
            control_fd=self._house.control.sock.fileno(),
            retired=household.retired,
            unclaimed=tuple(household.unclaimed),
            started_at=self._house.started_at,
        )
