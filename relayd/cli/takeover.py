"""Having the relay take over a configuration that was just written: reload, restart or start.

    taken = take_over(config, listen)
    taken.state      "reloaded", "restarted", "started", "stopped", "unasked", "refused", "down"

Only `refused` means that the relay objects to what is written; whoever wrote it takes it back. With
`down` it does not run, or died or fell silent over it, and the texts say what is in its way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from relayd.cli import daemon
from relayd.cli import main as command_line
from relayd.cli.answers import list_of, text_of
from relayd.cli.service import Service
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.holder import holder_of
from relayd.master.sockets import NEEDS_RESTART, parse_address
from relayd.values import frozen


@frozen
class Taken:
    """What came of it. texts: for a good state one line for people, else what is in the way."""

    state: str
    texts: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        """Tell whether nothing went wrong; the relay may be stopped, as it was."""
        return self.state not in {"refused", "down"}


_LINES: Final = {
    "reloaded": "the running relay took it over",
    "restarted": "relayd was restarted: it listens elsewhere now",
    "started": "relayd is started, now and at each boot",
    "stopped": "relayd does not run here as a service; start it: {itself} run",
    "unasked": "this user may not ask the running relay; have it taken over: sudo {itself} reload",
}


def take_over(
    config: str, listen: Sequence[str], service: Callable[[str], Service] = Service
) -> Taken:
    """Have it taken over by the relay that runs, else start the unit it belongs to.

    listen: where it is to listen, to name who is there already.
    """
    path = daemon.control_path(config)
    try:
        reply = client.ask(path, {"command": "reload"}, timeout_s=daemon.RELOAD_WITHIN_S)
    except NotRunning as error:
        return _unanswered(error, service(config), listen, config)
    if reply.get("ok") is True:
        return _good("reloaded", config)
    problems = [text_of(one) for one in list_of(reply.get("problems"))]
    problems = problems or [text_of(reply.get("error"))]
    if any(NEEDS_RESTART in problem for problem in problems):
        return _restart(service(config), listen, config)
    return Taken("refused", tuple(problems))


def _unanswered(error: NotRunning, service: Service, listen: Sequence[str], config: str) -> Taken:
    itself = command_line.itself(config)
    if not error.permitted and os.geteuid() != 0:
        return _good("unasked", config)
    # Root is always let in: who closes on it went away. And who is silent runs: to start it would
    # do nothing and be told as done.
    if not error.permitted or isinstance(error.__cause__, TimeoutError):
        return Taken(
            "down", (str(error), f"is it in force? {itself} status; else: {itself} reload")
        )
    return _start(service, listen, config)


def _good(state: str, config: str) -> Taken:
    return Taken(state, (_LINES[state].format(itself=command_line.itself(config)),))


def _start(service: Service, listen: Sequence[str], config: str) -> Taken:
    if not service.unit:
        return _good("stopped", config)
    if os.geteuid() != 0:
        return Taken("down", (f"relayd does not run: sudo systemctl enable --now {service.unit}",))
    why = service.enable_and_start()
    return _down(service, why, listen) if why else _good("started", config)


def _restart(service: Service, listen: Sequence[str], config: str) -> Taken:
    if not service.unit or os.geteuid() != 0:
        itself = command_line.itself(config)
        how = (
            f"sudo systemctl restart {service.unit}"
            if service.unit
            else f"{itself} stop; then {itself} run"
        )
        return Taken("down", (f"the running relay must stop before it can listen there: {how}",))
    why = service.restart()
    return _down(service, why, listen) if why else _good("restarted", config)


def _down(service: Service, why: str, listen: Sequence[str]) -> Taken:
    held = tuple(in_the_way(listen))
    if held:
        again = f"then it goes on by itself; at once: systemctl restart {service.unit}"
        return Taken("down", (*held, again))
    return Taken("down", (why, f"why: systemctl status {service.unit}; relayd check"))


def in_the_way(listen: Sequence[str]) -> Iterator[str]:
    """Yield who else holds an address, once each, with the command that frees it."""
    told: set[int] = set()
    for text in listen:
        address = parse_address(text)
        holder = holder_of(address.host, address.port)
        if holder is None or holder.pid in told:  # not shown to us, or known by now
            continue
        told.add(holder.pid)
        if not holder.unit.startswith("relayd"):
            yield f"{text} is {holder.advice()}"
