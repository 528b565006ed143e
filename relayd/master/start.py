"""`relayd run`: check, make the folders, open the sockets, then the loop; or go on after a re-exec.

Whatever stops the relay from starting is said in plain words on standard error:
exit 78 when the configuration cannot be used (systemd does not try again),
exit 69 when an address cannot be listened on, or relayd runs already.

Source: sysexits.h.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from relayd.errors import ConfigError
from relayd.master import checker, control, files, pinned, sockets, upgrade
from relayd.master.arbiter import Arbiter
from relayd.master.board import Board
from relayd.master.checker import Loaded, Rejected
from relayd.master.client import CONTROL_SOCKET
from relayd.master.crew import Crew
from relayd.master.launch import Launch
from relayd.master.log import Log
from relayd.master.notify import Notifier
from relayd.master.settings import Settings
from relayd.master.title import set_title

PID_FILE: Final = "relayd.pid"


def run(launch: Launch) -> int:
    """Be the master until told to stop; returns the exit code.

    raises: ConfigError, ListenError, HandoverUnreadable - it cannot start; the texts say what
            to do.
    """
    set_title("relayd: master")
    files.allow()
    pinned.pin()
    notifier = Notifier(os.environ)
    resumed = upgrade.resume(os.environ)
    if resumed is not None:
        return _go_on(launch, resumed, notifier)
    loaded = _checked(launch)
    settings = loaded.settings
    log = Log(settings.log)
    _warn_of_root(log)
    make_folders(settings)
    control_path = os.path.join(settings.runtime_dir, CONTROL_SOCKET)
    control_socket = control.listen(control_path)
    try:
        bound = _open_listeners(launch, settings, log, notifier)
        write_pid_file(settings.runtime_dir)
        arbiter = Arbiter(launch, loaded, bound, control_socket, log, notifier)
        arbiter.announce()
        return arbiter.run()
    finally:
        _remove(control_path, os.path.join(settings.runtime_dir, PID_FILE))


def _go_on(launch: Launch, resumed: upgrade.Resumed, notifier: Notifier) -> int:
    """Be the master that other code was a moment ago."""
    workers = [crew for crew in resumed.crews if crew.kind == "worker"]
    current = workers[-1]
    settings = current.config.settings
    log = Log(settings.log)
    board = Board.adopt(resumed.board_fd)
    if board is None:
        _leave_unwatched(resumed.crews)
    control_path = os.path.join(settings.runtime_dir, CONTROL_SOCKET)
    arbiter = Arbiter(
        launch, current.config, current.listening, resumed.control, log, notifier, board=board
    )
    try:
        arbiter.resume(resumed.crews, resumed)
        return arbiter.run()
    finally:
        _remove(control_path, os.path.join(settings.runtime_dir, PID_FILE))


def _leave_unwatched(crews: list[Crew]) -> None:
    """Give up on old children's beats: their board has another layout."""
    for crew in crews:
        for child in crew.children():
            child.row = -1


def _checked(launch: Launch) -> Loaded:
    timeout_s = launch.timings.check_within_s
    verdict = checker.run_and_wait(launch.path, launch.entries["checker"], timeout_s)
    if isinstance(verdict, Rejected):
        raise ConfigError(list(verdict.problems))
    return verdict


def _open_listeners(
    launch: Launch, settings: Settings, log: Log, notifier: Notifier
) -> tuple[sockets.Bound, ...]:
    offered = _wanted(sockets.given(os.environ), settings, log, notifier)
    opened = sockets.open_all(
        settings.listeners, offered=offered, retry_s=launch.timings.bind_retry_s
    )
    for warning in opened.warnings:
        log.warning("listener.missing", reason=warning)
    return opened.bound


def _wanted(
    offered: list[sockets.Given], settings: Settings, log: Log, notifier: Notifier
) -> list[sockets.Given]:
    """Return the offered sockets that a listener asks for; the others are closed at once.

    Before anything is bound: one that stays in systemd's store would hold its port.
    """
    wanted = []
    for offer in offered:
        if sockets.is_wanted(offer, settings.listeners):
            wanted.append(offer)
            continue
        where = sockets.shown_name(offer.sock)
        log.warning("listener.unclaimed", name=offer.name, address=where)
        if offer.name.startswith(sockets.KEPT_PREFIX):
            notifier.forget(offer.name)
        offer.sock.close()
    return wanted


def make_folders(settings: Settings) -> None:
    """Make the runtime, state and spool folders that are missing.

    raises: ConfigError - one cannot be made; says who could.
    """
    problems = []
    wanted = (
        ("server.runtime_dir", settings.runtime_dir, 0o755),
        ("server.state_dir", settings.state_dir, 0o700),
        ("spool.url", settings.spool_dir, 0o700),
    )
    for key, path, mode in wanted:
        if not path or os.path.isdir(path):
            continue
        try:
            os.makedirs(path, mode=mode, exist_ok=True)
        except OSError as error:
            problems.append(
                f"{key}: cannot make {path}: {error.strerror}; make it and give it to "
                f"user number {os.geteuid()}, or set {key}"
            )
    if not problems and not os.access(settings.runtime_dir, os.W_OK):
        problems.append(f"server.runtime_dir: {settings.runtime_dir} is not writable")
    if problems:
        raise ConfigError(problems)


def write_pid_file(folder: str) -> None:
    """Write runtime_dir/relayd.pid in one step; nothing depends on it, so nothing fails."""
    path = os.path.join(folder, PID_FILE)
    temporary = f"{path}.{os.getpid()}"
    with contextlib.suppress(OSError):
        with open(temporary, "w", encoding="ascii") as stream:
            stream.write(f"{os.getpid()}\n")
        os.replace(temporary, path)


def _warn_of_root(log: Log) -> None:
    if os.geteuid() == 0:
        log.warning(
            "process.privileged", reason="running as root; set User=relayd in the systemd unit"
        )


def _remove(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
