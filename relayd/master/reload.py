"""A reload: the new configuration is checked, bound, raised, and only then put in force.

    IDLE -> CHECKING -> WAITING -> RISING -> IDLE (done)
              |           |          |
              +-----------+----------+-----> IDLE (refused; nothing has changed)

Asked for several times, it is done once more after the one under way, for all who asked
meanwhile: their change may have come after the check. At most two generations live: a new
one is raised when the last child of the one before the present has gone.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import signal
from collections.abc import Callable
from typing import Final

from relayd.config.resolve import spool_path
from relayd.errors import ListenError
from relayd.master import checker, sockets
from relayd.master.checker import Checker, Loaded, Rejected
from relayd.master.control import Client
from relayd.master.crew import Child, Crew, Life
from relayd.master.frames import Frame, Json, done, refused
from relayd.master.house import House, Phase
from relayd.master.household import News, What
from relayd.master.sockets import Bound
from relayd.observe import logfmt

_LONGEST_RISE_S: Final = 3600.0
_SPARE_S: Final = 10.0


class Step(enum.Enum):
    """Where a reload stands; the text is what `status` shows."""

    IDLE = ""
    CHECKING = "reload: checking"  # the checker child reads the configuration
    WAITING = "reload: waiting"  # for the workers before the present ones
    RISING = "reload: starting"  # the new generation starts


class Reload:
    """At most one at a time. deadline: of the present step, monotonic."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.step = Step.IDLE
        self.deadline = math.inf
        self.is_wanted = False
        self.last: dict[str, Json] = {}
        self.replaces_cached = False
        self._checker: Checker | None = None
        self._loaded: Loaded | None = None
        self._rising: Crew | None = None
        self._fresh: tuple[Bound, ...] = ()
        self.on_end: Callable[[Frame], None] | None = None  # called once, with the reply
        self._askers: list[Client] = []
        self._next_askers: list[Client] = []

    def waiting(self) -> list[Client]:
        """Return who waits for a reload that has not begun."""
        return list(self._next_askers)

    def ask(self, client: Client | None = None) -> None:
        """Reload as soon as the one under way, if any, is through; `client` hears the result."""
        self.is_wanted = True
        if client is not None:
            self._next_askers.append(client)

    def may_begin(self) -> bool:
        """Tell whether one is wanted and nothing of its own is in the way."""
        return self.is_wanted and self.step is Step.IDLE

    def begin(self) -> None:
        """Check the configuration."""
        house = self._house
        self.is_wanted = False
        self._askers, self._next_askers = self._next_askers, []
        self.step = Step.CHECKING
        self.deadline = house.now() + house.timings.check_within_s
        if house.phase is Phase.RUNNING:
            house.notifier.reloading()
        entry = house.launch.entries["checker"]
        try:
            self._checker = checker.start(house.launch.path, entry, house.everything())
        except OSError as error:
            self._refuse([f"cannot start the check: {error.strerror}"])

    def go_on(self, now: float) -> None:
        """Take the reload under way one step further."""
        match self.step:
            case Step.CHECKING if self._checker is not None and now >= self.deadline:
                os.kill(self._checker.pid, signal.SIGKILL)
            case Step.WAITING if self._loaded is not None and not self._former():
                self._raise(self._loaded, now)
            case Step.RISING if self._rising is not None:
                self._watch(self._rising, now)
            case _:
                return

    def reap(self, pid: int, status: int) -> bool:
        """Take the checker's end; False when `pid` was somebody else."""
        if self._checker is None or self._checker.pid != pid:
            return False
        verdict = self._checker.finish(status)
        self._checker = None
        self._judge(verdict)
        return True

    def hear(self, news: News) -> None:
        """Give a new generation up when one of its children says it cannot serve.

        One killed by a signal says nothing about the configuration: it is forked again.
        """
        child, rising = news.child, self._rising
        if rising is None or child.generation != rising.generation or child.kind != "worker":
            return
        if news.what is What.OPENING:
            later = self._house.now() + self._house.timings.ready_within_s
            self.deadline = max(self.deadline, min(later, self._patience_ends))
        elif news.what is What.FAILED:
            self._refuse([f"{child.name} cannot start: {news.text}"])
        elif (
            news.what is What.DIED
            and child.life is Life.STARTING
            and not os.WIFSIGNALED(news.status)
        ):
            self._refuse([f"{child.name} cannot start: ended at once ({news.text})"])

    def abandon(self, reply: Frame) -> None:
        """Forget about it, because the relay stops; whoever waits gets `reply`."""
        if self._checker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._checker.pid, signal.SIGKILL)
        for client in [*self._askers, *self._next_askers]:
            self._house.control.reply(client, reply)
        self._askers, self._next_askers = [], []
        self.step, self.deadline, self.is_wanted = Step.IDLE, math.inf, False
        self._rising = None

    def _judge(self, verdict: Loaded | Rejected) -> None:
        if isinstance(verdict, Rejected):
            if self.step is Step.CHECKING:
                self._refuse(list(verdict.problems))
            return
        objections = self._objections(verdict)
        if self.step is not Step.CHECKING or objections:
            verdict.close()
            if self.step is Step.CHECKING:
                self._refuse(objections)
            return
        self._loaded = verdict
        self.step, self.deadline = Step.WAITING, math.inf
        if former := self._former():
            house = self._house
            house.log.info("reload.waiting", workers=len(former))
            # `systemctl reload` waits for us, and by itself not as long as a drain may take.
            last = max(child.deadline for child in former)
            house.notifier.extend(last - house.now() + house.timings.ready_within_s + _SPARE_S)

    def _objections(self, verdict: Loaded) -> list[str]:
        """Return why a configuration that is right in itself cannot be put in force now."""
        old, new = self._house.current.config.settings, verdict.settings
        found = []
        if old.runtime_dir != new.runtime_dir:
            change = f"{old.runtime_dir} to {new.runtime_dir}"
            found.append(f"server.runtime_dir: {change} needs a restart: systemctl restart relayd")
        if spool_path(old.spool_url) != spool_path(new.spool_url):
            found.append(
                f"spool.url: {old.spool_url} to {new.spool_url} needs a restart, and its mail stays"
                " behind: wait until the queue is empty (relayd queue list), or stop the relay and"
                " move the spool's folder; then systemctl restart relayd"
            )
        return found

    def _former(self) -> list[Child]:
        """Return the children that were told to go and have not gone."""
        return [c for c in self._house.household.children() if c.life is Life.DRAINING]

    def _raise(self, loaded: Loaded, now: float) -> None:
        house = self._house
        try:
            opened = sockets.open_all(
                loaded.settings.listeners, house.current.listening, ours=house.is_ours
            )
        except ListenError as error:
            self._refuse([str(error)])
            return
        for warning in opened.warnings:
            house.log.warning("listener.missing", reason=warning)
        self._fresh = opened.fresh
        number = house.current.generation + 1
        self._rising = Crew("worker", number, loaded, opened.bound, loaded.settings.workers)
        self._loaded = None
        self.step, self.deadline = Step.RISING, now + house.timings.ready_within_s
        self._patience_ends = now + _LONGEST_RISE_S
        house.household.crews.append(self._rising)

    def _watch(self, rising: Crew, now: float) -> None:
        if rising.is_ready:
            self._commit(rising, now)
        elif now >= self.deadline:
            serving = {child.number for child in rising.ready()}
            missing = [f"worker {number}" for number in rising.posts if number not in serving]
            within_s = self._house.timings.ready_within_s
            self._refuse([f"{', '.join(missing)} not ready within {within_s:g} s"])

    def _commit(self, rising: Crew, now: float) -> None:
        """Put the new generation in force: it serves already, the old one goes."""
        house = self._house
        old, house.current, self._rising = house.current, rising, None
        old.dismiss()
        house.drain(old.children())
        self._close_unused(old.listening, rising.listening)
        for one in self._fresh:
            house.announce(one)
        self._fresh = ()
        # cached is told nothing: credentials and limits come with each question. Its
        # successor, one day, reads this configuration.
        house.cached.config = rising.config
        house.place_admin(rising.config, anew=self.replaces_cached)
        _forget(old)
        house.log.configure(rising.config.settings.log)
        house.tell_warnings(rising.config)
        house.log.info("reload.done", generation=rising.generation, workers=rising.size)
        if house.phase is Phase.STARTING:
            house.be_running()  # what kept the first generation from serving is mended
        if self.replaces_cached:
            self.replaces_cached = False
            # Its post is filled again, by new code, as soon as it has gone.
            house.household.hasten(house.cached.children(), now + house.timings.fast_grace_s)
        reply = done({"generation": rising.generation, "workers": rising.size})
        self._finish("done", [], reply)

    def _close_unused(self, old: tuple[Bound, ...], new: tuple[Bound, ...]) -> None:
        kept = {one.sock for one in new}
        for one in old:
            if one.sock not in kept:
                self._house.notifier.forget(one.store_name)
                self._house.log.info("listener.closed", listener=one.listener, address=one.address)
                one.sock.close()

    def _refuse(self, problems: list[str]) -> None:
        """Keep the old configuration, and say why."""
        house = self._house
        for problem in problems:
            house.log.error("reload.refused", problem=problem)
            house.troubles.add("reload.refused", problem)
        if self._rising is not None:
            crew, self._rising = self._rising, None
            crew.dismiss()
            deadline = house.now() + house.timings.fast_grace_s
            house.household.hasten(crew.children(), deadline)
            sockets.close_all(self._fresh)
            self._fresh = ()
            _forget(crew)
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None
        text = "the new configuration is refused, the old one stays in force"
        self._finish("refused", problems, refused(text, problems=problems))

    def _finish(self, result: str, problems: list[str], reply: Frame) -> None:
        house = self._house
        self.step, self.deadline = Step.IDLE, math.inf
        at = logfmt.stamp(house.clock.utcnow())
        self.last = {"result": result, "at": at, "problems": problems}
        askers, self._askers = self._askers, []
        for client in askers:
            house.control.reply(client, reply)
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(reply)
        if house.phase is Phase.RUNNING:
            house.notifier.ready()


def _forget(crew: Crew) -> None:
    """Close a crew's memfd; its children have their own copies."""
    with contextlib.suppress(OSError):
        crew.config.close()
