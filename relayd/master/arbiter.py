"""The master's loop: one thread, one selector, and every decision about the whole relay.

    STARTING -> RUNNING -> STOPPING -> the end      (house.Phase)

Signals only write a number into a pipe; they are acted upon here, in order. Children are
household.py's, a changed configuration is reload.py's, new code reexec.py's. Starting: cached
first, then the workers, then admin. Stopping: the workers first, because they need tokens to
finish.

Source: signal(7); sd_notify(3).
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import socket
import traceback
from typing import Final

from relayd import __version__
from relayd.clock import SYSTEM, Clock
from relayd.master import report, upgrade
from relayd.master.board import Board
from relayd.master.checker import Loaded
from relayd.master.commands import UNAVAILABLE, Commands
from relayd.master.control import Client, Control
from relayd.master.crew import Crew, Life
from relayd.master.frames import Frame, Json, done, refused
from relayd.master.house import House, Phase
from relayd.master.household import Household, News, What
from relayd.master.launch import Launch
from relayd.master.log import Log
from relayd.master.notify import Notifier
from relayd.master.reexec import Reexec
from relayd.master.reload import Reload, Step
from relayd.master.signals import Signals
from relayd.master.sockets import Bound
from relayd.master.spawn import Closable
from relayd.master.title import set_title
from relayd.master.turnaway import NOT_AVAILABLE, TurnAway
from relayd.observe import metrics

_AFTER_FAULT_S: Final = 0.5
_SPARE_S: Final = 10.0


class Arbiter:
    """One relay. Everything it is given, it owns from then on.

    bound: listening sockets of the first generation. board: what a re-exec left.
    """

    def __init__(
        self,
        launch: Launch,
        loaded: Loaded,
        bound: tuple[Bound, ...],
        control_socket: socket.socket,
        log: Log,
        notifier: Notifier,
        *,
        board: Board | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        selector = selectors.DefaultSelector()
        self.house = House(
            launch=launch,
            log=log,
            notifier=notifier,
            clock=clock,
            selector=selector,
            signals=Signals(selector),
            control=Control(control_socket, selector, self._answer, clock=clock),
            household=Household(
                launch, board or Board(clock=clock), log, selector, self._private, clock=clock
            ),
            troubles=report.Troubles(clock),
            current=Crew("worker", 1, loaded, bound, loaded.settings.workers),
            cached=Crew("cached", 1, loaded, (), 1),
            phase=Phase.STARTING,
            started_at=clock.monotonic(),
        )
        self._reload = Reload(self.house)
        self._reexec = Reexec(self.house, self._reload.waiting)
        self._commands = Commands(self)
        self._turn_away = TurnAway(selector, clock=clock)
        self._stop_askers: list[Client] = []
        self._head_start_until = math.inf
        self._served_at = -math.inf  # after a re-exec with no worker that serves: not yet again
        self._watchdog_at = 0.0

    # -- the loop ------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop; returns the exit code."""
        set_title("relayd: master")
        with self.house.signals.handled():
            if not self.house.household.crews:
                self._begin()
            while not self._is_over():
                try:
                    self._turn()
                except Exception as error:  # noqa: BLE001  the one process nobody restarts at once
                    self._tell_fault(error)
        return self._end()

    def _tell_fault(self, error: Exception) -> None:
        """Log a bug of ours, and do not turn so fast that the log is all there is."""
        trace = "".join(traceback.format_exception(error))
        self.house.log.error("master.fault", error=error, traceback=trace)
        self.house.signals.wait(_AFTER_FAULT_S)

    def announce(self) -> None:
        """Tell of the first listeners, and leave them with systemd."""
        for one in self.house.current.listening:
            self.house.announce(one)
        self.house.tell_warnings(self.house.current.config)

    def _turn(self) -> None:
        house = self.house
        for key, events in house.selector.select(self._patience_s()):
            key.data(events)
        for number in house.signals.take():
            self.act_on(number)
        self._reap()
        now = house.now()
        for news in house.household.tend(now):
            self._hear(news)
        self._go_on(now)
        house.control.expire()
        self._tell_systemd(now)

    def _patience_s(self) -> float:
        """Return how long nothing needs to happen."""
        if self._may_reload() or self._may_reexec():
            return 0.0
        house = self.house
        deadlines = (self._reload.deadline, self._reexec.deadline, self._head_start_until)
        moment = min(house.household.next_moment(), *deadlines)
        longest = min(house.timings.tick_s, house.notifier.watchdog_s or math.inf)
        return max(0.0, min(longest, moment - house.now()))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if not self._reload.reap(pid, status) and not self._reexec.reap(pid, status):
                self.house.household.bury(pid, status, self.house.now())

    def _go_on(self, now: float) -> None:
        """Take whatever is under way one step further."""
        if self.house.phase is Phase.STOPPING:
            self._go_on_stopping(now)
            return
        if not self._are_workers_in():
            self._let_workers_in(now)
        household = self.house.household
        household.crews = [c for c in household.crews if not (c.is_leaving and c.is_gone)]
        if self._may_reload():
            self._reload.begin()
        elif self._may_reexec():
            self._reexec.begin()
        self._stand_in(now)  # before a reload closes what it watches
        self._reload.go_on(now)
        self._reexec.go_on(now)

    def _stand_in(self, now: float) -> None:
        """Answer who connects while no worker serves, so that nobody waits for a banner."""
        house, turn_away = self.house, self._turn_away
        # Workers on their way out accept nobody either.
        if any(c.kind == "worker" and c.life is Life.READY for c in house.household.children()):
            self._served_at = now
            if turn_away.is_on:
                house.log.info("relay.turned_away", connections=turn_away.cease())
        elif turn_away.is_on:
            turn_away.go_on()
        elif now - self._served_at >= house.timings.unserved_s:
            turn_away.begin(house.current.listening, implicit=self._implicit(), words=NOT_AVAILABLE)
            house.log.error("relay.unavailable", reason=self.unavailable())

    def _implicit(self) -> list[str]:
        """Return the listeners that speak TLS at once."""
        settings = self.house.current.config.settings.listeners
        return [one.name for one in settings if one.tls == "implicit"]

    def _may_reload(self) -> bool:
        is_free = self._are_workers_in() and not self._reexec.is_busy
        return is_free and self._reload.may_begin() and self.house.phase is not Phase.STOPPING

    def _may_reexec(self) -> bool:
        is_free = self._reload.step is Step.IDLE and not self._reexec.is_busy
        return is_free and self._reexec.is_wanted and self.house.phase is Phase.RUNNING

    # -- start ---------------------------------------------------------------------------

    def _begin(self) -> None:
        house = self.house
        house.household.crews = [house.cached]
        self._served_at = house.now()
        self._head_start_until = house.now() + house.timings.cached_head_start_s
        house.log.info("process.started", version=__version__, pid=os.getpid())

    def _are_workers_in(self) -> bool:
        return self.house.current in self.house.household.crews

    def _let_workers_in(self, now: float) -> None:
        """Start the workers when cached serves, died, or had its head start."""
        house = self.house
        post = house.cached.posts[0]
        child = post.child
        waits = child is not None and child.life is Life.STARTING and now < self._head_start_until
        if waits or (child is None and not post.failures):
            return
        if child is None or child.life is not Life.READY:
            house.log.warning("cached.late", reason="workers start without it")
        self._head_start_until = math.inf
        house.household.crews.append(house.current)
        house.place_admin(house.current.config)

    def resume(self, crews: list[Crew], state: upgrade.Resumed) -> None:
        """Go on where the master before the re-exec stopped; then reload onto new code."""
        house, household = self.house, self.house.household
        household.crews = crews
        household.serial = state.serial
        household.retired = state.retired
        household.unclaimed = list(state.unclaimed)
        household.remember(state.memory)
        house.troubles.restore(state.memory.get("troubles"))
        for child in household.children():
            household.adopt(child)
        house.started_at = state.started_at
        house.current = [c for c in crews if c.kind == "worker" and not c.is_leaving][-1]
        house.cached = next(crew for crew in crews if crew.kind == "cached")
        staying = (crew for crew in crews if crew.kind == "admin" and not crew.is_leaving)
        house.admin = next(staying, None)
        house.phase = Phase.RUNNING
        for crew in crews:
            if crew.kind not in upgrade.KINDS:
                house.drain(crew.children())
        self._reexec.resumed(map(house.control.adopt, state.upgrade_clients), state.was)
        self._reload.replaces_cached = True
        self._reload.on_end = self._reexec.tell
        self._reload.ask()
        for sock in state.reload_clients:
            self._reload.ask(house.control.adopt(sock))
        house.notifier.ready()
        house.log.info("upgrade.done", version=__version__, was=state.was, pid=os.getpid())

    def _hear(self, news: News) -> None:
        """Take note of what became of a child."""
        house, child = self.house, news.child
        if news.what is What.READY:
            if house.phase is Phase.STARTING and house.current.is_ready:
                house.be_running()
                house.notifier.ready()
        elif news.what is What.OPENING:
            house.notifier.extend(house.timings.ready_within_s)
        elif news.what is What.FAILED:
            house.troubles.add("child.failed", f"{child.name}: {news.text}")
        elif child.life is not Life.DRAINING or news.status != 0:
            house.troubles.add("child.died", f"{child.name} (pid {child.pid}): {news.text}")
            if child.kind == "worker":
                metrics.count("relayd_worker_restarts_total")
        self._reload.hear(news)

    # -- stop ----------------------------------------------------------------------------

    def stop(self, *, fast: bool) -> None:
        """Finish and go; asked again, or `fast`: go within a few seconds."""
        house = self.house
        is_hasty = fast or house.phase is Phase.STOPPING
        if house.phase is not Phase.STOPPING:
            house.log.info("relay.stopping", fast=fast)
            house.phase = Phase.STOPPING
            house.notifier.stopping()
            self._reload.abandon(refused("relayd is stopping", exit_code=UNAVAILABLE))
            self._reexec.abandon()
            for crew in house.household.crews:
                crew.dismiss()
            # A device that comes now is told so at once instead of waiting in the backlog.
            self._turn_away.begin(
                (one for crew in (*house.household.crews, house.current) for one in crew.listening),
                implicit=self._implicit(),
            )
        children = list(house.household.children())
        if is_hasty:
            house.household.hasten(children, house.now() + house.timings.fast_grace_s)
        else:
            longest_s = house.drain(child for child in children if child.kind == "worker")
            house.notifier.extend(longest_s + house.timings.fast_grace_s + _SPARE_S)

    def _go_on_stopping(self, now: float) -> None:
        self._turn_away.go_on()
        children = list(self.house.household.children())
        if children and all(child.kind != "worker" for child in children):
            waiting = [c for c in children if c.life in (Life.STARTING, Life.READY)]
            self.house.household.drain(waiting, now + self.house.timings.fast_grace_s)

    def _is_over(self) -> bool:
        is_empty = not any(True for _ in self.house.household.children())
        return self.house.phase is Phase.STOPPING and is_empty

    def _end(self) -> int:
        self._turn_away.end()
        if self._turn_away.count:
            self.house.log.info("relay.turned_away", connections=self._turn_away.count)
        for client in self._stop_askers:
            self.house.control.reply(client, done())
        self.house.log.info("process.stopped", pid=os.getpid())
        self.house.control.close()
        return 0

    # -- signals and commands ------------------------------------------------------------

    def act_on(self, number: int) -> None:
        """Do what a signal asks for."""
        match number:
            case signal.SIGHUP:
                self._reload.ask()
            case signal.SIGTERM:
                self.stop(fast=False)
            case signal.SIGINT | signal.SIGQUIT:
                self.stop(fast=True)
            case signal.SIGUSR1:
                self.house.log.reopen()
                self.house.household.forward(signal.SIGUSR1)
            case signal.SIGUSR2:
                self._reexec.ask()
            case signal.SIGTTIN:
                self.resize(1)
            case signal.SIGTTOU:
                self.resize(-1)
            case _:
                return  # SIGCHLD: `_reap` looks every time

    def resize(self, change: int) -> int:
        """Have so many workers more; returns how many there are to be."""
        house = self.house
        leaving = house.current.resize(house.current.size + change)
        house.drain(leaving)
        house.log.info("workers.changed", workers=house.current.size)
        return house.current.size

    def ask_reload(self, client: Client) -> None:
        """Reload, and answer `client` then."""
        self._reload.ask(client)

    def ask_upgrade(self, client: Client) -> None:
        """Become the code on disk, and answer `client` when its workers serve."""
        self._reexec.ask(client)

    def ask_stop(self, client: Client, *, fast: bool) -> None:
        """Stop, and answer `client` then."""
        self._stop_askers.append(client)
        self.stop(fast=fast)

    def state(self) -> str:
        """Return what is going on, in a word or two."""
        if self._reexec.is_busy:
            return self._reexec.shown
        return self._reload.step.value or self.house.phase.value

    def unavailable(self) -> str:
        """Return why no worker serves for longer than a start takes; "" while one does."""
        if not self._turn_away.is_on or self.house.phase is Phase.STOPPING:
            return ""
        return self.house.household.trouble or "the workers are starting still"

    def last_reload(self) -> Frame:
        """Return how the last reload ended; {} before the first."""
        return self._reload.last

    def _answer(self, client: Client, request: dict[str, Json]) -> None:
        self._commands.answer(client, request)

    def _private(self) -> list[Closable]:
        return self.house.private()

    def _tell_systemd(self, now: float) -> None:
        house = self.house
        if house.notifier.watchdog_s and now >= self._watchdog_at:
            self._watchdog_at = now + house.notifier.watchdog_s
            house.notifier.watchdog()
        upstreams = house.current.config.settings.upstreams
        line = report.refusal(self._reload.last)
        phase = "NO WORKER SERVES" if self.unavailable() else self.state()
        line += report.summary(house.current, house.household, phase, upstreams)
        if not house.current.is_ready:
            line += house.troubles.last()
        house.notifier.status(line)
