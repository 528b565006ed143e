"""The loop against real sockets: slow, greedy, rude and many clients cost nobody else anything."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from relayd.admin.http import MOST_OCTETS, Request, Response
from relayd.admin.server import MOST_CLIENTS, Answer, Server
from relayd.clock import FakeClock

ASKED = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class House:
    """A server whose loop is turned by hand and whose clock stands still."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.asked: list[Request] = []
        self.answers: list[Answer] = []
        self.answers_at_once = True
        self.server = Server(self._ask, names=("relay",), clock=self.clock)
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.server.listen(listener)
        self.clients: list[socket.socket] = []

    def _ask(self, request: Request, answer: Answer) -> None:
        self.asked.append(request)
        if self.answers_at_once:
            answer(Response(200, b"fine\n"))
        else:
            self.answers.append(answer)

    def connect(self, octets: bytes = b"") -> socket.socket:
        client = socket.create_connection(self.address, timeout=10)
        self.clients.append(client)
        client.sendall(octets)
        self.turn()
        return client

    def turn(self, times: int = 4) -> None:
        for _ in range(times):
            self.server.turn(0.002)

    def read(self, client: socket.socket) -> bytes:
        """Return all that comes until the end; the loop turns meanwhile."""
        client.settimeout(0.01)
        octets = b""
        for _ in range(2000):
            try:
                piece = client.recv(65536)
            except TimeoutError:
                self.server.turn(0.0)
                continue
            if not piece:
                return octets
            octets += piece
        raise AssertionError(f"no end: {octets!r}")

    def status(self, client: socket.socket) -> int:
        """Return the status of the answer; 0: closed without one."""
        octets = self.read(client)
        return int(octets.split(b" ")[1]) if octets else 0

    def close(self) -> None:
        self.server.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


def test_a_request_is_answered_and_the_connection_closed(house: House) -> None:
    client = house.connect(ASKED)
    octets = house.read(client)
    assert octets.startswith(b"HTTP/1.1 200 OK\r\n")
    assert octets.endswith(b"\r\n\r\nfine\n")
    client.close()
    house.turn()
    assert len(house.server) == 0


def test_a_request_in_single_octets_is_the_same(house: House) -> None:
    client = house.connect()
    for octet in ASKED:
        client.send(bytes([octet]))
        house.turn(2)
    assert house.status(client) == 200


def test_a_head_gets_no_body(house: House) -> None:
    client = house.connect(ASKED.replace(b"GET", b"HEAD"))
    octets = house.read(client)
    assert b"Content-Length: 5\r\n" in octets
    assert octets.endswith(b"\r\n\r\n")


def test_a_second_request_on_a_connection_is_not_looked_at(house: House) -> None:
    client = house.connect(ASKED * 3)
    assert house.read(client).count(b"HTTP/1.1") == 1
    assert len(house.asked) == 1


def test_garbage_is_refused_and_a_foreign_name_too(house: House) -> None:
    assert house.status(house.connect(b"EHLO printer\r\n\r\n")) == 400
    rebound = ASKED.replace(b"127.0.0.1", b"evil.example")
    assert house.status(house.connect(rebound)) == 421
    assert house.asked == []


def test_a_head_without_end_is_cut_off(house: House) -> None:
    client = house.connect()
    client.sendall(b"GET / HTTP/1.1\r\nA: " + b"a" * (MOST_OCTETS + 100))
    assert house.status(client) == 431


def test_an_answer_arrives_though_the_client_sent_more_than_was_read(house: House) -> None:
    client = house.connect(
        b"POST /metrics HTTP/1.1\r\nContent-Length: 99999\r\n\r\n" + b"x" * 60000
    )
    assert house.status(client) == 405


def test_an_answer_is_not_taken_back_from_who_is_still_sending(house: House) -> None:
    client = house.connect(b"POST /metrics HTTP/1.1\r\nContent-Length: 99999\r\n\r\n")
    for _ in range(5):
        house.turn()
        client.sendall(b"x" * 1000)  # a closed socket would answer with a reset
    assert house.status(client) == 405


def test_a_client_that_trickles_is_told_when_its_time_is_up(house: House) -> None:
    client = house.connect(b"GET /met")
    house.clock.advance(3.0)
    client.send(b"r")
    house.turn()
    assert len(house.server) == 1
    house.clock.advance(2.1)
    house.turn()
    assert house.status(client) == 408


def test_a_client_that_says_nothing_is_closed_without_a_word(house: House) -> None:
    client = house.connect()
    house.clock.advance(5.1)
    house.turn()
    assert house.status(client) == 0
    assert len(house.server) == 0


def test_a_client_that_does_not_read_is_closed_in_time(house: House) -> None:
    house.answers_at_once = False
    client = house.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(ASKED)
    house.turn()
    house.answers[0](Response(200, b"x" * 8_000_000))
    house.turn()
    assert len(house.server) == 1
    house.clock.advance(10.1)
    house.turn()
    assert len(house.server) == 0


def test_a_client_that_does_not_close_is_closed(house: House) -> None:
    house.connect(ASKED)
    house.turn()
    house.clock.advance(1.1)
    house.turn()
    assert len(house.server) == 0


def test_an_answer_that_does_not_come_is_a_503(house: House) -> None:
    house.answers_at_once = False
    client = house.connect(ASKED)
    house.clock.advance(15.1)
    house.turn()
    assert house.status(client) == 503
    house.answers[0](Response(200, b"late\n"))
    house.turn()


def test_an_answer_comes_from_another_thread(house: House) -> None:
    house.answers_at_once = False
    client = house.connect(ASKED)
    thread = threading.Thread(target=house.answers[0], args=(Response(200, b"here\n"),))
    thread.start()
    thread.join(10)
    assert house.read(client).endswith(b"here\n")


def test_an_answer_for_who_has_gone_is_nobodys(house: House) -> None:
    house.answers_at_once = False
    house.connect(ASKED).close()
    house.turn()
    house.answers[0](Response(200, b"x" * 100_000))
    house.turn()
    house.clock.advance(60)
    house.turn()
    assert len(house.server) == 0


def reset(client: socket.socket) -> None:
    """Close so that the other end gets a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_a_client_that_resets_its_connection_is_gone(house: House) -> None:
    reset(house.connect(b"GET /me"))
    house.turn()
    assert len(house.server) == 0


def test_a_client_that_resets_it_instead_of_reading_is_gone(house: House) -> None:
    house.answers_at_once = False
    client = house.connect(ASKED)
    house.answers[0](Response(200, b"x" * 8_000_000))
    house.turn()
    reset(client)
    house.turn()
    assert len(house.server) == 0


def test_the_deadline_of_a_write_is_for_the_whole_answer(house: House) -> None:
    house.answers_at_once = False
    client = house.connect(ASKED)
    house.answers[0](Response(200, b"x" * 8_000_000))
    house.turn()
    for _ in range(4):
        house.clock.advance(3.0)
        client.recv(65536)  # a little now and then does not help
        house.turn()
    assert len(house.server) == 0


@pytest.mark.slow(1)
def test_those_who_only_sit_there_keep_nobody_out(house: House) -> None:
    house.answers_at_once = False
    asking = house.connect(ASKED)
    idle = [house.connect() for _ in range(MOST_CLIENTS + 5)]
    house.turn()
    assert len(house.server) == MOST_CLIENTS
    house.answers_at_once = True
    assert house.status(house.connect(ASKED)) == 200
    assert house.status(idle[0]) == 0
    house.answers[0](Response(200, b"you too\n"))
    assert house.read(asking).endswith(b"you too\n")


@pytest.mark.slow(1)
def test_when_all_wait_for_an_answer_the_oldest_gives_way(house: House) -> None:
    house.answers_at_once = False
    clients = [house.connect(ASKED) for _ in range(MOST_CLIENTS + 1)]
    assert len(house.server) == MOST_CLIENTS
    assert house.status(clients[0]) == 0
    house.answers[0](Response(200, b"too late\n"))
    house.turn()


def test_it_turns_for_a_watched_descriptor_and_for_posts(house: House) -> None:
    happened: list[str] = []
    reader, writer = os.pipe()

    def read() -> None:
        happened.append(os.read(reader, 10).decode())

    house.server.watch(reader, read)
    os.write(writer, b"readable")
    house.server.post(lambda: happened.append("posted"))
    house.turn()
    house.server.unwatch(reader)
    os.close(reader)
    os.close(writer)
    assert sorted(happened) == ["posted", "readable"]


def test_it_sleeps_no_longer_than_the_next_deadline(house: House) -> None:
    house.connect(b"GET")
    house.clock.advance(5.0)
    house.server.turn(1000.0)  # does not hang: somebody's time is up
    house.turn()
    assert house.server.is_listening


def test_who_asks_and_leaves_piles_up_no_questions(house: House) -> None:
    house.answers_at_once = False
    for _ in range(MOST_CLIENTS):
        reset(house.connect(ASKED))
    last = house.connect(ASKED)
    assert house.status(last) == 503
    assert len(house.asked) == MOST_CLIENTS
    for answer in house.answers:
        answer(Response(200, b"fine\n"))
    house.turn()
    house.answers_at_once = True
    assert house.status(house.connect(ASKED)) == 200
