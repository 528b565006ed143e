"""Accepts connections on one listening socket: a greenlet each, limits for all and each device.

Rule 1: nothing is asked of another process, and no name is looked up, before the banner.
Rule 2: every way out closes the socket; an unknown error is logged and never reaches the peer.
Rule 3: one connection is accepted at a time, and left to a worker that has far fewer for a
        millisecond, so that those that stay spread over the workers.
Rule 4: `close` stops accepting; `drain` also asks sessions to leave after their message.

Source: RFC 5321 §3.1 (opening), §3.8 (closing), RFC 8314 §3.3 (implicit TLS).
"""

from __future__ import annotations

import itertools
import math
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, cast

import gevent
import structlog
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

from relayd.clock import SYSTEM
from relayd.config.model import Limits, Submitter
from relayd.config.model import Listener as ListenerSettings
from relayd.master.child import Pulse
from relayd.observe import metrics
from relayd.serve.callers import Callers, Refused
from relayd.serve.desk import Desk, House
from relayd.serve.session import End, Farewell, Manners, PeerGone, PeerSilent, Session
from relayd.serve.wire import SocketWire, tune
from relayd.smtp import replies
from relayd.smtp.replies import Reply

log = structlog.get_logger()

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_MAPPED: Final = "::ffff:"
_TELL_AGAIN_S: Final = 60.0
_LEFT_TO_OTHERS_S: Final = 0.001
_UNASKED_S: Final = (0.001, 0.02)  # at first, and at most: twice as long each time nobody came
_NOBODY: Final = cast("tuple[socket.socket, Any]", ())  # to gevent: there was none after all
_REMEDIES: Final = {
    End.TLS_FAILED: "Have the device do TLS 1.2 and not verify our certificate, or trust ca.crt of"
    ' state_dir/tls. Or hide it from the device: hide = ["STARTTLS"] in its [[device]].',
    End.NOT_SMTP: "Look at the device's port and encryption: implicit TLS wants a listener with"
    ' tls = "implicit", usually port 465.',
}
_TROUBLE: Final = frozenset({End.TLS_FAILED, End.NOT_SMTP, End.LOST, End.SLOW})
_LOCAL: Final = ListenerSettings(name="control", address=(), tls="off", auth="off")


class Sessions:
    """The open sessions of one worker, over all its listeners, and the names given to them.

    prefix: tells this worker's session ids from every other's, "1k4-" and the like.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._numbers = itertools.count(1)
        self._open: set[Session] = set()
        self._none_left = Event()
        self._none_left.set()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._open)

    def new_name(self) -> str:
        """Return the next session id."""
        return self._prefix + base36(next(self._numbers))

    def add(self, session: Session) -> None:
        """Count a session in."""
        self._open.add(session)
        self._none_left.clear()
        if self.is_draining:
            session.drain()

    def remove(self, session: Session) -> None:
        """Count a session out."""
        self._open.discard(session)
        if not self._open:
            self._none_left.set()

    def drain(self) -> None:
        """Ask every session to leave after the message it is in, now and later."""
        self.is_draining = True
        for session in tuple(self._open):
            session.drain()

    def wait_none_left(self, timeout_s: float) -> bool:
        """Wait until the last has gone; False when the time is over first."""
        return self._none_left.wait(timeout_s)


class _Resting(gevent.GreenletExit):
    """Raised into gevent's accepting, which then rests for up to a second, and prints nothing."""


class _Server(StreamServer):
    """Accepts; a system that has run out of something is told in words, once a minute.

    Who connects meanwhile waits in the backlog. A connection that another worker should have
    is taken all the same when that one has not come for it.
    """

    _pause: Any = None  # a timer: a connection is being left to others

    def __init__(
        self, sock: socket.socket, serve: Callable[..., None], name: str, pulse: Pulse
    ) -> None:
        super().__init__(sock, serve)
        self._name = name
        self._pulse = pulse
        self._told_at = -math.inf
        self._asks_at = -math.inf  # monotonic: from when on others are asked first,
        self._others = 0  # or when they have not so many connections any more: somebody is awake
        self._unasked_s = _UNASKED_S[0]
        self._delay = self.delay  # how long it rests when it cannot accept

    def do_read(self) -> tuple[socket.socket, Any]:
        """See gevent."""
        if self._pulse.is_ahead() and self._asks_others():
            self._leave_to_others()
            return _NOBODY
        try:
            found: tuple[socket.socket, Any] | None = super().do_read()
        except OSError as error:
            if self.is_fatal_error(error):
                raise
            self._tell(error)
            raise _Resting from error
        if found is None:  # others came for it
            self._asks_at, self._unasked_s = -math.inf, _UNASKED_S[0]
            return _NOBODY
        return found

    def _asks_others(self) -> bool:
        return SYSTEM.monotonic() >= self._asks_at or self._pulse.others() != self._others

    def _leave_to_others(self) -> None:
        self._delay = self.delay  # gevent forgets it now
        self.stop_accepting()
        self._pause = self.loop.timer(_LEFT_TO_OTHERS_S)
        # From now on, not from when the loop began this turn: that may be longer ago.
        self._pause.start(self._take_what_is_left, update=True)

    def _take_what_is_left(self) -> None:
        self.start_accepting()
        self.delay = self._delay
        self._asks_at, self._others = math.inf, self._pulse.others()
        self._do_read()  # type: ignore[attr-defined]  # what gevent's watcher calls
        if self._asks_at == math.inf:
            # Nobody came for it. Who is behind it shall not wait as well.
            self._asks_at = SYSTEM.monotonic() + self._unasked_s
            self._unasked_s = min(2 * self._unasked_s, _UNASKED_S[1])

    def stop_accepting(self) -> None:
        """See gevent."""
        super().stop_accepting()
        if self._pause is not None:
            self._pause.stop()
            self._pause.close()
            self._pause = None

    def _tell(self, error: OSError) -> None:
        now = SYSTEM.monotonic()
        if now - self._told_at < _TELL_AGAIN_S:
            return
        self._told_at = now
        log.error(
            "listener.exhausted", listener=self._name, reason=error.strerror,
            do="Raise LimitNOFILE of the unit or ulimit -n, or lower max_connections in [limits].",
        )  # fmt: skip


class Listener:
    """One listening socket of this worker. sock: bound, listening, non-blocking."""

    def __init__(
        self, sock: socket.socket, settings: ListenerSettings, house: House, sessions: Sessions
    ) -> None:
        self._settings = settings
        self._house = house
        self._sessions = sessions
        self._manners = manners(settings, house.config.limits)
        tune(sock)
        self._server = _Server(sock, self._serve, settings.name, house.pulse)
        # One accept for each turn of the loop: what comes next may be another worker's.
        self._server.max_accept = 1
        self._server.min_delay = 0.01

    def start(self) -> None:
        """Begin to accept."""
        self._server.start()

    def close(self) -> None:
        """Stop accepting; sessions go on."""
        self._server.close()

    def _serve(self, client: socket.socket, address: tuple[str, int]) -> None:
        ip = folded(address[0])
        name = self._sessions.new_name()
        device = ""
        counted = False
        wire = SocketWire(client)
        try:
            submitter = self._house.planner.submitter_for(ip, None)
            device = submitter.name if submitter else ""
            counted = self._house.pulse.enter(device)
            if counted:
                self._converse(wire, name, ip, submitter)
            else:
                self._turn_away(wire, name, ip, device)
        except (PeerGone, PeerSilent) as error:
            log.info("session.refused", session=name, ip=ip, device=device,
                     listener=self._settings.name, reason=str(error))  # fmt: skip
            metrics.count(
                "relayd_sessions_total", listener=self._settings.name, result=End.LOST.value
            )
        except Exception:  # the edge of the room: the peer was told 451, the hub must go on
            log.exception("session.bug", session=name, ip=ip, device=device)
            metrics.count("relayd_sessions_total", listener=self._settings.name, result="bug")
        finally:
            if counted:
                self._house.pulse.leave(device)
            # Not `client`: after a handshake the wire has another socket on the descriptor.
            wire.close()

    def _turn_away(self, wire: SocketWire, name: str, ip: str, device: str) -> None:
        reply, reason = self._which_limit(device)
        log.warning(
            "session.refused", session=name, ip=ip, device=device, listener=self._settings.name,
            reason=reason,
        )  # fmt: skip
        metrics.count("relayd_sessions_total", listener=self._settings.name, result="too-many")
        refused = Refused(
            code=reply.code, reply=" ".join(reply.lines), session=name, reason=reason,
            do="Raise it in [limits], or find out why so many connections stay open.",
            listener=self._settings.name,
        )  # fmt: skip
        self._house.callers.refused(ip, device, "", refused)
        if self._settings.tls != "implicit":
            # Where TLS comes first clear text is garbage, and a handshake costs what a limit saves.
            wire.send(reply.octets)

    def _which_limit(self, device: str) -> tuple[Reply, str]:
        """Return what a client that is one too many is told, and what the log says."""
        if self._house.pulse.is_full():
            return (
                replies.TOO_MANY_CONNECTIONS,
                "max_connections, or what LimitNOFILE leaves of it, is reached",
            )
        if device:
            return replies.TOO_MANY_FROM_YOU, "max_connections_per_device is reached"
        return replies.TOO_MANY_CONNECTIONS, "half of max_connections is taken by unknown peers"

    def _converse(self, wire: SocketWire, name: str, ip: str, submitter: Submitter | None) -> None:
        is_tls = self._settings.tls == "implicit"
        if is_tls:
            wire.start_tls(self._implicit_context())
        desk = Desk(
            self._house, self._settings, session=name, ip=ip, is_tls=is_tls, submitter=submitter
        )
        session = Session(wire, desk, self._manners)
        log.debug("session.opened", session=name, ip=ip, device=desk.device,
                  listener=self._settings.name)  # fmt: skip
        self._sessions.add(session)
        try:
            farewell = session.run()
            # While we are leaving, the process must not end before the last reply is out.
            wire.close()
        finally:
            self._sessions.remove(session)
        self._tell(farewell, name, ip, desk)

    def _implicit_context(self) -> ssl.SSLContext:
        context = self._house.context(self._settings.name)
        if context is None:
            raise PeerGone("no certificate for implicit TLS")
        return context

    def _tell(self, farewell: Farewell, name: str, ip: str, desk: Desk) -> None:
        metrics.count(
            "relayd_sessions_total", listener=self._settings.name, result=farewell.end.value
        )
        self._remember(farewell, name, ip, desk)
        about = {"session": name, "ip": ip, "device": desk.device, "user": desk.user}
        if farewell.refusal is not None:
            log.info(
                "session.closed", **about, end=farewell.end.value, reason=farewell.detail,
                refused=farewell.refusal.code, transcript=" | ".join(farewell.transcript),
            )  # fmt: skip
        elif farewell.end in (End.QUIT, End.LEFT, End.DRAINED, End.IDLE):
            log.debug("session.closed", **about, end=farewell.end.value)
        else:
            log.info("session.closed", **about, end=farewell.end.value, reason=farewell.detail)

    def _remember(self, farewell: Farewell, name: str, ip: str, desk: Desk) -> None:
        """Keep a refusal for `relayd device show`."""
        if farewell.refusal is not None:
            reply = farewell.refusal
            why = desk.why or Refused(code=reply.code, reply=" ".join(reply.lines), reason="")
        elif farewell.end in _TROUBLE:
            why = Refused(
                code=0, reply="", reason=f"{farewell.end.value}: {farewell.detail}",
                do=_REMEDIES.get(farewell.end, ""),
            )  # fmt: skip
        else:
            return
        why = replace(
            why, session=name, listener=self._settings.name, transcript=farewell.transcript
        )
        self._house.callers.refused(ip, desk.device, desk.user or desk.wanted_user, why)


def converse(client: socket.socket, house: House, sessions: Sessions, submitter: Submitter) -> None:
    """Serve one session on a local socket, as `submitter`; `relayd send` is the client."""
    wire = SocketWire(client)
    # An operator's test is no mail of the device: nothing of it is remembered.
    house = replace(house, callers=Callers())
    desk = Desk(
        house, _LOCAL, session=sessions.new_name(), ip="127.0.0.1", is_tls=False,
        submitter=submitter,
    )  # fmt: skip
    session = Session(wire, desk, manners(_LOCAL, house.config.limits))
    sessions.add(session)
    try:
        session.run()
    finally:
        sessions.remove(session)
        wire.let_go()


def manners(settings: ListenerSettings, limits: Limits) -> Manners:
    """Return how sessions of one listener behave."""
    return Manners(
        profile=settings.profile,
        idle_timeout_s=limits.idle_timeout,
        data_timeout_s=limits.data_timeout,
        min_data_rate=limits.min_data_rate,
        max_errors=limits.max_errors,
    )


def folded(ip: str) -> str:
    """Return a peer's address without the IPv6 dress of IPv4, and without its zone."""
    ip = ip.partition("%")[0]
    return ip[len(_MAPPED) :] if ip.startswith(_MAPPED) and "." in ip else ip


def base36(number: int) -> str:
    """Return a number as people write it short."""
    out = ""
    while number:
        number, digit = divmod(number, 36)
        out = _DIGITS[digit] + out
    return out or "0"
