"""SIGUSR2: first a look by the code on disk, then execve in place (upgrade.py does it).

Who asked for it by control.sock stays connected over the execve, and hears the result when the
reload onto new workers has ended.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from relayd import __version__
from relayd.master import upgrade
from relayd.master.control import Client
from relayd.master.frames import Frame, Json, done, refused
from relayd.master.house import House, Phase
from relayd.master.signals import blocked
from relayd.master.spawn import how_it_ended
from relayd.observe import metrics

UNAVAILABLE: Final = 69
RESTART: Final = 75  # what the look exits with when only a restart can bring the new code

_STAYS: Final = "the code on disk does not take over; the old one serves on"
_NEVER_SERVED: Final = (
    "the workers do not serve yet, so there is nothing to go on from: `relayd status` says why; "
    "or start anew: systemctl restart relayd"
)


class Reexec:
    """At most one at a time, and none beside a reload.

    deadline:      of the look, or of the wait for the first workers; monotonic.
    reload_askers: gives the clients that wait for a reload, which the new code will do.
    """

    shown = "upgrade: checking"

    def __init__(self, house: House, reload_askers: Callable[[], Iterable[Client]]) -> None:
        self._house = house
        self._reload_askers = reload_askers
        self.deadline = math.inf
        self.is_wanted = False
        self._preflight: upgrade.Preflight | None = None
        self._askers: list[Client] = []
        self._resumed: list[Client] = []  # asked the code before this; wait for the reload
        self._was = ""

    @property
    def is_busy(self) -> bool:
        """True while the code on disk looks at the configuration."""
        return self._preflight is not None

    def ask(self, client: Client | None = None) -> None:
        """Do it as soon as nothing else is under way; `client` hears how it ended."""
        house = self._house
        self.is_wanted = True
        if client is not None:
            self._askers.append(client)
        if house.phase is Phase.STARTING:
            self.deadline = min(self.deadline, house.now() + house.timings.ready_within_s)

    def begin(self) -> None:
        """Have the code on disk look at the configuration."""
        house = self._house
        self.is_wanted = False
        house.log.info("upgrade.checking", command=" ".join(house.launch.preflight))
        try:
            self._preflight = upgrade.start_preflight(house.launch.preflight, house.everything())
        except OSError as error:
            self._refuse([str(error)])
            return
        self.deadline = house.now() + house.timings.check_within_s

    def go_on(self, now: float) -> None:
        """End a look that takes too long, and a wait for workers that never serve."""
        if now < self.deadline:
            return
        if self._preflight is not None:
            os.kill(self._preflight.pid, signal.SIGKILL)
        elif self.is_wanted and self._house.phase is Phase.STARTING:
            self.is_wanted = False
            self._refuse([_NEVER_SERVED], exit_code=RESTART)
        else:
            self.deadline = math.inf

    def reap(self, pid: int, status: int) -> bool:
        """Take the end of the look, and become new code if it was good."""
        if self._preflight is None or self._preflight.pid != pid:
            return False
        said = self._preflight.said()
        self._preflight, self.deadline = None, math.inf
        if self._house.phase is Phase.STOPPING:
            return True  # who asked was told; new code would know nothing of the stop
        if status != 0:
            # 2: code from before `--preflight` does not know the words.
            code = os.waitstatus_to_exitcode(status)
            self._refuse(
                said or (how_it_ended(status),), exit_code=RESTART if code in (RESTART, 2) else 1
            )
        else:
            self._replace()
        return True

    def abandon(self) -> None:
        """Forget about it, because the relay stops."""
        self.is_wanted, self.deadline = False, math.inf
        if self._preflight is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._preflight.pid, signal.SIGKILL)
        self._askers += self._resumed
        self._resumed = []
        self._answer(refused("relayd is stopping", exit_code=UNAVAILABLE))

    def resumed(self, askers: Iterable[Client], was: str) -> None:
        """Go on as the new code: `was` is the version before, `askers` wait for `tell`."""
        self._resumed, self._was = list(askers), was

    def tell(self, reload: Frame) -> None:
        """Answer who asked; reload: what the reload onto new workers was answered with."""
        versions: dict[str, Json] = {"from": self._was, "to": __version__, "pid": os.getpid()}
        result = reload.get("result")
        if reload.get("ok") is True and isinstance(result, dict):
            self._answer_resumed(done(versions | result))
            return
        problems = reload.get("problems")
        text = (
            f"relayd {__version__} leads now, but its workers do not start; the old ones serve on"
        )
        shown = [str(one) for one in problems] if isinstance(problems, list) else []
        self._answer_resumed(refused(text, problems=shown))

    def _answer_resumed(self, reply: Frame) -> None:
        """Answer those alone: who asked since then wants what is on disk by now."""
        resumed, self._resumed = self._resumed, []
        for client in resumed:
            self._house.control.reply(client, reply)

    def _answer(self, reply: Frame) -> None:
        askers, self._askers = self._askers, []
        for client in askers:
            self._house.control.reply(client, reply)

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
                self._refuse([str(error)])
                house.notifier.ready()

    def _refuse(self, problems: Sequence[str], *, exit_code: int = 1) -> None:
        house = self._house
        self.deadline = math.inf
        for problem in problems:
            house.log.error("upgrade.refused", reason=problem)
        house.troubles.add("upgrade.refused", "; ".join(problems))
        self._answer(refused(_STAYS, exit_code=exit_code, problems=problems))

    def _state(self) -> upgrade.State:
        household = self._house.household
        return upgrade.State(
            serial=household.serial,
            crews=tuple(household.crews),
            board_fd=household.board.fd,
            control_fd=self._house.control.sock.fileno(),
            # What this code counted itself goes on being counted.
            retired=metrics.merge([household.retired, metrics.lasting(metrics.snapshot())]),
            unclaimed=tuple(household.unclaimed),
            started_at=self._house.started_at,
            upgrade_fds=_open_fds(self._askers),
            reload_fds=_open_fds(self._reload_askers()),
            memory={"troubles": self._house.troubles.shown()} | household.memory(),
        )


def _open_fds(clients: Iterable[Client]) -> tuple[int, ...]:
    """Return the descriptors of the clients that have not left."""
    return tuple(one.sock.fileno() for one in clients if one.sock.fileno() >= 0)
