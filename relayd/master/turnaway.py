"""Who comes while nobody serves is answered 421 by the master.

While the relay stops, until the last child has gone: the workers have closed their listeners by
then. Without this a connection that the kernel has taken in already would be reset when the last
copy of the socket closes, and one that comes later be refused; a device reads 421 as "try again",
some read the other two as "broken".

While no worker serves: the kernel takes connections in all the same, and a device would wait for
a banner until its patience ends.

On a listener with implicit TLS nothing can be said before a handshake: it is closed.

Source: RFC 5321 §3.8; listen(2).
"""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
from collections.abc import Iterable
from typing import Final

from relayd.clock import SYSTEM, Clock
from relayd.master import sockets
from relayd.master.sockets import Bound

SHUTTING_DOWN: Final = b"421 4.3.2 Service shutting down, try again\r\n"
NOT_AVAILABLE: Final = b"421 4.3.0 Service not available, try again later\r\n"
"""Both as smtp.replies, which the master does not import."""
PAUSE_S: Final = 0.5
_AT_ONCE: Final = 32
_AT_THE_END: Final = 4096
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class TurnAway:
    """Accepts in the workers' stead; owns the sockets of a relay that stops.

    count: how many were turned away since `begin`. is_on: from `begin` to `cease` or `end`.
    """

    def __init__(self, selector: selectors.BaseSelector, *, clock: Clock = SYSTEM) -> None:
        self.count = 0
        self.is_on = False
        self._selector = selector
        self._clock = clock
        self._bound: dict[int, Bound] = {}
        self._silent: frozenset[str] = frozenset()
        self._words = SHUTTING_DOWN
        self._paused_until = float("-inf")

    def begin(
        self, bound: Iterable[Bound], *, implicit: Iterable[str], words: bytes = SHUTTING_DOWN
    ) -> None:
        """Answer `words` from now on. implicit: names of the listeners that speak TLS at once."""
        self._unwatch()
        self.is_on = True
        self._words = words
        self._silent = frozenset(implicit)
        self._bound = {one.fd: one for one in bound if one.fd >= 0}
        self._watch()

    def cease(self) -> int:
        """Leave the sockets to workers again; returns how many were turned away."""
        self._unwatch()
        self._bound = {}
        self.is_on = False
        count, self.count = self.count, 0
        return count

    def go_on(self) -> None:
        """Go on after the system had no descriptor to give."""
        if self._paused_until <= self._clock.monotonic():
            self._watch()

    def end(self) -> None:
        """Answer who waits still, and close."""
        for one in self._bound.values():
            self._answer(one, _AT_THE_END)
        self._unwatch()
        sockets.close_all(self._bound.values())
        self._bound = {}
        self.is_on = False

    def _watch(self) -> None:
        known = self._selector.get_map()
        for one in self._bound.values():
            if one.sock not in known:
                self._selector.register(
                    one.sock,
                    selectors.EVENT_READ,
                    lambda _events, one=one: self._answer(one, _AT_ONCE),
                )

    def _unwatch(self) -> None:
        for one in self._bound.values():
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(one.sock)

    def _answer(self, one: Bound, most: int) -> None:
        """Answer those who wait at a listener: a bounded number, and none is waited for."""
        for _ in range(most):
            try:
                client, _ = one.sock.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._paused_until = self._clock.monotonic() + PAUSE_S
                    self._unwatch()
                if error.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue  # that one has gone; the next may be there
                return
            self.count += 1
            with client, contextlib.suppress(OSError):
                self._say(client, one)

    def _say(self, client: socket.socket, one: Bound) -> None:
        client.setblocking(False)
        if one.listener not in self._silent:
            client.send(self._words, socket.MSG_NOSIGNAL)
        with contextlib.suppress(BlockingIOError):
            # What lies unread at close() turns the end into a reset, and the reply is lost.
            client.recv(65536)
        client.shutdown(socket.SHUT_WR)
