"""While nobody serves every caller gets his 421, whatever he is or does."""

from __future__ import annotations

import errno
import selectors
import socket
from collections.abc import Iterator

import pytest

from relayd.clock import FakeClock
from relayd.master.sockets import Bound
from relayd.master.turnaway import NOT_AVAILABLE, PAUSE_S, SHUTTING_DOWN, TurnAway
from relayd.smtp import replies


class Stop:
    """A loop turned by hand."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.selector = selectors.DefaultSelector()
        self.turn_away = TurnAway(self.selector, clock=self.clock)
        self.bound = [self._bound(name) for name in ("lan", "tls")]

    def _bound(self, name: str) -> Bound:
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        return Bound(name, "127.0.0.1:0", sock)

    def begin(self) -> None:
        self.turn_away.begin(self.bound, implicit=["tls"])

    def call(self, number: int = 0) -> socket.socket:
        return socket.create_connection(self.bound[number].sock.getsockname(), timeout=10)

    def turn(self) -> int:
        found = self.selector.select(0)
        for key, events in found:
            key.data(events)
        return len(found)


@pytest.fixture
def stop() -> Iterator[Stop]:
    made = Stop()
    yield made
    made.turn_away.end()
    for one in made.bound:
        one.sock.close()
    made.selector.close()


def heard(sock: socket.socket) -> bytes:
    with sock:
        octets = b""
        while part := sock.recv(1000):
            octets += part
        return octets


def test_the_words_are_those_of_a_session() -> None:
    assert replies.SHUTTING_DOWN.octets == SHUTTING_DOWN
    assert replies.UNAVAILABLE.octets == NOT_AVAILABLE


def test_where_workers_serve_again_the_sockets_are_theirs(stop: Stop) -> None:
    stop.turn_away.begin(stop.bound, implicit=["tls"], words=NOT_AVAILABLE)
    told = stop.call()
    stop.turn()
    assert heard(told) == NOT_AVAILABLE
    assert stop.turn_away.cease() == 1
    assert not stop.turn_away.is_on
    left = stop.call()
    assert stop.turn() == 0
    assert stop.bound[0].sock.fileno() >= 0
    # And a stop after that has words of its own.
    stop.begin()
    stop.turn()
    assert heard(left) == SHUTTING_DOWN
    assert stop.turn_away.count == 1


def test_a_stop_while_nobody_serves_changes_the_words(stop: Stop) -> None:
    stop.turn_away.begin(stop.bound[:1], implicit=[], words=NOT_AVAILABLE)
    stop.begin()
    caller = stop.call()
    stop.turn()
    assert heard(caller) == SHUTTING_DOWN


def test_begun_again_it_answers_at_the_sockets_it_is_given(stop: Stop) -> None:
    stop.turn_away.begin(stop.bound[:1], implicit=[])
    stop.turn_away.begin(stop.bound[1:], implicit=[])
    before, now = stop.call(0), stop.call(1)
    assert stop.turn() == 1
    assert heard(now) == SHUTTING_DOWN
    before.close()


def test_who_comes_is_told_and_so_is_who_waited(stop: Stop) -> None:
    waited = stop.call()
    stop.begin()
    stop.turn()
    assert heard(waited) == SHUTTING_DOWN
    came = stop.call()
    stop.turn()
    assert heard(came) == SHUTTING_DOWN
    assert stop.turn_away.count == 2


def test_who_talks_first_hears_it_too(stop: Stop) -> None:
    caller = stop.call()
    caller.sendall(b"EHLO x\r\n" * 100)
    stop.begin()
    stop.turn()
    assert heard(caller) == SHUTTING_DOWN


def test_on_implicit_tls_nothing_is_said_in_clear(stop: Stop) -> None:
    caller = stop.call(1)
    stop.begin()
    stop.turn()
    assert heard(caller) == b""


def test_a_crowd_does_not_keep_the_loop_but_all_are_told_at_the_end(stop: Stop) -> None:
    callers = [stop.call() for _ in range(70)]
    stop.begin()
    stop.turn()
    assert stop.turn_away.count < 70
    stop.turn_away.end()
    assert stop.turn_away.count == 70
    assert {heard(one) for one in callers} == {SHUTTING_DOWN}
    assert all(one.fd < 0 for one in stop.bound)


def test_sockets_that_are_closed_already_are_no_trouble(stop: Stop) -> None:
    stop.bound[1].sock.close()
    stop.begin()
    caller = stop.call()
    stop.turn()
    assert heard(caller) == SHUTTING_DOWN


def test_without_descriptors_it_pauses_instead_of_spinning(
    stop: Stop, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = stop.call()
    stop.begin()

    def none_left(_: socket.socket) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as scarce:
        scarce.setattr(socket.socket, "accept", none_left)
        assert stop.turn() == 1
    stop.turn_away.go_on()
    assert stop.turn() == 0
    stop.clock.advance(PAUSE_S)
    stop.turn_away.go_on()
    assert stop.turn() == 1
    assert heard(caller) == SHUTTING_DOWN
