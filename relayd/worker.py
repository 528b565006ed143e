"""One worker: the root that puts accepting and delivering together around one spool.

`import relayd.worker` patches; it happens in the forked child only, before anything else that
must be patched is imported (ADR 0002). `main` composes, serves until told to leave, and drains:

    SIGTERM, {"do": "drain"}   stop accepting, finish sessions and sends within graceful_timeout
    SIGINT, SIGQUIT            the same within a second
    end of the channel         the master died: listeners close at once, 5 s to finish
    SIGUSR1                    reopen the log

Source: docs/flow.md; relayd/master/child.py (the channel's words).
"""

# ruff: noqa: E402  what follows the patch must follow the patch
from __future__ import annotations

from relayd import lean

lean.patch()

import math
import os
import shlex
import signal
import sys
from contextlib import suppress
from typing import Final

import gevent
import structlog
from gevent import socket
from gevent.event import Event

from relayd.access.logins import Verifier
from relayd.access.plan import Planner
from relayd.access.replan import Replanner
from relayd.access.users import Users
from relayd.cache.client import Client, socket_path
from relayd.clock import SYSTEM
from relayd.config import codec
from relayd.config.clouds import endpoints
from relayd.config.model import Config, Upstream
from relayd.deliver.courier import Courier
from relayd.deliver.graph import GraphTransport
from relayd.deliver.lane import Way
from relayd.errors import RelaydError, SpoolUnavailable
from relayd.identity.tokens import TokenClient
from relayd.master.channel import Channel, Packet
from relayd.master.child import ChildContext, status_packets
from relayd.master.frames import Garbage, Json
from relayd.net.hotpath import HotPath
from relayd.net.http import Dialer, Resolver, pool
from relayd.net.tls import ServerTls
from relayd.observe import log as logging
from relayd.observe import metrics
from relayd.operator import Operator, follow, tell_unknown
from relayd.quota.slots import SlotClient
from relayd.serve.callers import Callers
from relayd.serve.desk import House
from relayd.serve.listener import Listener, Sessions, base36, converse
from relayd.spool import former
from relayd.spool.door import SqliteDoor, open_spool, spool_path
from relayd.wayout import WayOut, blocked

log = structlog.get_logger()

_BEAT_S: Final = 1.0
_TELL_S: Final = 2.0
_TLS_S: Final = 30.0
_ORPHAN_S: Final = 5.0
_HASTE_S: Final = 1.0
_ADOPT_S: Final = 60.0
_SWITCH_S: Final = 0.0005
"""A batch of SQLite rows in a thread gives the GIL back to the hub this often, not every 5 ms."""


def main(context: ChildContext) -> int:
    """Serve until told to leave; returns the exit code."""
    sys.setswitchinterval(_SWITCH_S)
    _let_others_finish()
    channel = Channel(socket.socket(fileno=context.channel_fd))
    try:
        config = _read_config(context.config_fd)
        logging.configure(config.log, process=f"worker {context.number}")
        worker = Worker(context, config, channel)
    except RelaydError as error:
        channel.send({"event": "failed", "text": str(error)})
        return 78
    try:
        return worker.run()
    finally:
        logging.close()


def _let_others_finish() -> None:
    """Be a batch process (sched(7)): when mail wakes us, whoever runs is not pushed aside.

    Measured: with the CPUs busy 7 % less of them for a message, as more waits when we look. The
    unit's filter forbids the call; there CPUSchedulingPolicy= has done it already.
    """
    with suppress(OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # not what an operator chose
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _read_config(fd: int) -> Config:
    with os.fdopen(fd, "rb") as memfd:
        return codec.loads(memfd.read())


class Worker:
    """All rooms of one worker, put together."""

    def __init__(self, context: ChildContext, config: Config, channel: Channel) -> None:
        self._context = context
        self._config = config
        self._channel = channel
        self._leave = Event()
        self._over = Event()
        self._sooner = Event()  # set when `_cut_at` was moved
        self._cut_at = math.inf  # monotonic: what is not finished by then is cut
        self._cache = Client(socket_path(config))
        tokens = TokenClient(self._cache, config)
        slots = SlotClient(self._cache, number=context.number)
        self._cache.start()
        # A wrong secret is told now, by daylight, and not when the first alarm is sent.
        gevent.spawn(tokens.warm, config.upstream)
        self._beating = gevent.spawn(self._beat)
        self._door = self._open_spool()
        self._left_behind = _left_behind(config) if context.number == 1 else ""
        self._courier = Courier(self._door, slots, ways(config, tokens), config.spool)
        users = Users(config)
        self._verifier = Verifier(users)
        self._tls = ServerTls(config)
        self._callers = Callers()
        house = House(
            config=config,
            planner=Planner(config, users),
            verifier=self._verifier,
            door=self._door,
            pulse=context.pulse,
            context=self._tls.context,
            callers=self._callers,
        )
        # The serial tells workers of one master apart, the pid those of two.
        self._sessions = Sessions(f"{base36(os.getpid())}{base36(context.serial)}-")
        settings = {one.name: one for one in config.listener}
        self._listeners = [
            Listener(socket.socket(fileno=fd), settings[name], house, self._sessions)
            for name, fd in context.listeners
        ]
        self._users = users
        self._replanner = Replanner(config, users)
        self._unknown: set[str] = set()  # upstreams that were told of
        self._operator = Operator(
            config,
            self._door,
            self._courier,
            self._cache,
            self._converse,
            users=users,
            more=WayOut(config, tokens, self._door.holds).commands(),
        )
        self._house = house

    def run(self) -> int:
        """Serve until told to leave, then drain; returns the exit code."""
        for number, action in (
            (signal.SIGTERM, self._leave.set),
            (signal.SIGINT, self._hasten),
            (signal.SIGQUIT, self._hasten),
            (signal.SIGUSR1, logging.reopen),
        ):
            gevent.signal_handler(number, action)
        self._adopt()  # first, so that the courier's first look finds what it frees
        self._courier.start()
        self._courier.reclaim()
        for listener in self._listeners:
            listener.start()
        self._context.pulse.accept(does=True)
        greenlets = [
            self._beating,
            gevent.spawn(self._tell),
            gevent.spawn(self._refresh_tls),
            gevent.spawn(self._go_on_adopting),
            gevent.spawn(self._listen_to_master),
        ]
        log.info("process.started", pid=os.getpid(), listeners=len(self._listeners))
        self._channel.send({"event": "ready"})
        self._leave.wait()
        self._drain()
        self._over.set()
        self._report_or_log()  # what happened since the last one
        gevent.killall(greenlets, block=False)
        log.info("process.stopped", pid=os.getpid())
        return 0

    def _converse(self, client: socket.socket, name: str) -> None:
        """Be an SMTP server to an operator, who speaks as the named device or user."""
        devices = {one.name: one for one in self._config.device}
        submitter = devices.get(name) or self._users.find(name)
        if submitter is not None:  # else it was deleted a moment ago
            converse(client, self._house, self._sessions, submitter)

    # ---- leaving

    def _hasten(self) -> None:
        self._leave_within(_HASTE_S)

    def _leave_within(self, seconds: float) -> None:
        """Leave; a drain that is under way is hurried."""
        self._cut_at = min(self._cut_at, SYSTEM.monotonic() + seconds)
        self._sooner.set()
        self._leave.set()

    def _drain(self) -> None:
        """Stop accepting; finish sessions, then sends; close the spool."""
        deadline = SYSTEM.monotonic() + self._config.server.graceful_timeout
        self._cut_at = min(self._cut_at, deadline)
        self._accept_no_more()
        self._sessions.drain()
        finishing = gevent.spawn(self._finish, self._cut_at)
        finishing.link(lambda _: self._sooner.set())
        while not finishing.ready() and (left_s := self._cut_at - SYSTEM.monotonic()) > 0:
            self._sooner.clear()
            self._sooner.wait(left_s)
        if not finishing.ready():
            finishing.kill()
            self._courier.drain(SYSTEM.monotonic())
        left = self._courier.in_flight
        if left or len(self._sessions):
            log.warning("process.cut", sessions=len(self._sessions), deliveries=left)
        self._operator.close()
        self._door.close()
        self._verifier.close()
        self._cache.close()

    def _accept_no_more(self) -> None:
        self._context.pulse.accept(does=False)
        for listener in self._listeners:
            listener.close()

    def _finish(self, deadline: float) -> None:
        """Wait until nothing is under way."""
        # What sessions still accept is kept in the spool; the next worker delivers it.
        self._courier.drain(deadline)
        self._sessions.wait_none_left(max(0.0, deadline - SYSTEM.monotonic()))

    # ---- what goes on beside

    def _open_spool(self) -> SqliteDoor:
        """Open it; beats go on meanwhile, and the master hears that it takes long."""
        telling = gevent.spawn(self._tell_of_opening)
        try:
            return _open_spool(self._context, self._config)
        finally:
            telling.kill()

    def _tell_of_opening(self) -> None:
        while not self._over.wait(_TELL_S):
            self._channel.send({"event": "opening"})

    def _beat(self) -> None:
        self._context.pulse.beat()
        while not self._over.wait(_BEAT_S):
            self._context.pulse.beat()

    def _tell(self) -> None:
        """Send the master our figures; a full channel costs one report."""
        self._report_or_log()
        while not self._over.wait(_TELL_S):
            self._report_or_log()

    def _report_or_log(self) -> None:
        try:
            self._report()
        except Exception:  # the next report may work, and a worker nobody hears of looks dead
            log.exception("status.bug")

    def _report(self) -> None:
        self._tell_news()
        trouble = self._door.trouble()
        try:
            figures = self._operator.figures()
            figures["blocked"] = blocked(self._config, self._door.holds())
        except RelaydError as error:
            # What was counted is told all the same: with the spool away it matters most.
            log.debug("status.unavailable", text=str(error))
            figures, trouble = {}, trouble or str(error)
        try:
            # With many devices and upstreams all of it would not fit in one packet.
            for part in metrics.pieces(metrics.snapshot()):
                self._channel.send({"event": "counters", "counters": part})
            own: dict[str, Json] = {
                "connections": len(self._sessions),
                "spool": spool_told(self._config, trouble),
            }
            if self._left_behind:
                own["left_behind"] = self._left_behind
            for packet in status_packets(own | figures):
                self._channel.send(packet)
        except Garbage as error:
            log.warning("channel.garbage", text=str(error))

    def _tell_news(self) -> None:
        """Tell the master what it keeps for us: who called, what went wrong."""
        try:
            for rows in self._callers.take():
                self._channel.send({"event": "callers", "rows": rows})
            if errors := logging.troubles():
                self._channel.send({"event": "errors", "rows": errors})
        except Garbage as error:
            log.warning("channel.garbage", text=str(error))

    def _refresh_tls(self) -> None:
        while not self._over.wait(_TLS_S):
            self._tls.refresh()

    def _adopt(self) -> None:
        """Hold the mail of upstreams that are gone, free that of those that are back.

        Before that, what an upstream sends through another mailbox now has its way out changed:
        nothing is to be tried once more on the old one.
        """
        try:
            follow(self._door, self._replanner)
            known = [one.name for one in self._config.upstream]
            self._door.adopt(known)
            if self._context.number == 1:
                self._unknown |= tell_unknown(self._door, self._unknown.union(known))
        except SpoolUnavailable:
            return  # mail gets 451, and that is said; again in a minute

    def _go_on_adopting(self) -> None:
        """Adopt each minute: a generation whose reload was refused may have seen it otherwise."""
        while not self._leave.wait(_ADOPT_S):
            self._adopt()

    def _listen_to_master(self) -> None:
        """Obey; at end of file the master is dead and somebody else wants the sockets."""
        while True:
            try:
                packet = self._channel.receive()
            except Garbage as error:
                log.warning("channel.garbage", text=str(error))
                continue
            if packet is None:
                break
            self._obey(packet)
        log.warning("process.orphaned", pid=os.getpid())
        self._accept_no_more()
        self._leave_within(_ORPHAN_S)

    def _obey(self, packet: Packet) -> None:
        fds = list(packet.fds)
        match packet.members:
            case {"do": "drain"}:
                self._leave.set()
            case {"do": "reclaim", "pid": int(pid)}:
                gevent.spawn(self._courier.reclaim, pid)
            case {"do": "control", "request": dict(request)} if fds:
                peer, down = packet.members.get("peer"), packet.members.get("down")
                gevent.spawn(self._operator.serve, request, fds.pop(0), peer, down)
        for fd in fds:
            os.close(fd)


def _open_spool(context: ChildContext, config: Config) -> SqliteDoor:
    return open_spool(
        config.spool,
        lane=context.serial,
        min_free_bytes=config.limits.min_free_disk,
        max_message_bytes=config.limits.max_message_size,
        ambiguous={one.name: one.ambiguous for one in config.upstream},
    )


def _left_behind(config: Config) -> str:
    """Return, and log, what waits in a former spool; "" for nothing."""
    words = former.left_behind(config.server.state_dir, spool_path(config.spool.url))
    if words:
        log.error("spool.left_behind", text=words)
    return words


def spool_told(config: Config, trouble: str) -> dict[str, Json]:
    """Return what `status` says of the spool. trouble: "" while mail can be kept."""
    path = spool_path(config.spool.url)
    told: dict[str, Json] = {"ok": not trouble, "text": trouble, "path": path}
    if trouble:
        folder = shlex.quote(os.path.dirname(path))
        told["do"] = (
            f"Look at its disk: df -h {folder}; df -i {folder}. No mail is taken where less than"
            " [limits] min_free_disk is free. Once it can be written, mail is taken by itself."
        )
    return told


def ways(config: Config, tokens: TokenClient) -> list[Way]:
    """Return the ways out: for each upstream its settings and its transport."""
    dialer = Dialer(Resolver(), each_s=config.http.connect_timeout)
    return [Way(one, _transport(config, one, tokens, dialer)) for one in config.upstream]


def _transport(
    config: Config, upstream: Upstream, tokens: TokenClient, dialer: Dialer
) -> GraphTransport:
    cloud = endpoints(config, upstream)
    # With mailbox = "sender" each of many mailboxes has its own slots, and one pool.
    size = max(32, upstream.concurrency)
    manager = pool(config.http, ca_file=cloud.ca_file, size=size, dialer=dialer)
    hot = HotPath(
        manager, cloud.graph, connect_timeout_s=config.http.connect_timeout, max_idle=size
    )
    return GraphTransport(
        upstream,
        cloud.graph,
        hot,
        tokens,
        message_id_domain=config.server.hostname,
        send_timeout_s=config.http.send_timeout,
    )
