"""The client keeps its deadlines, finds its way back, and says first what it holds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.cache.client import Client, Tell, socket_path
from relayd.cache.frames import Call, Payload, Push, Refused, encode
from relayd.cache.server import Request, Server
from relayd.config.model import Config
from relayd.errors import CacheUnavailable
from tests.cache_loop import Turning


class Daemon:
    """Remembers what it is told; keeps `later` calls; refuses `no`."""

    def __init__(self, path: str) -> None:
        self.told: list[str] = []
        self.kept: list[Request] = []
        self.server = Server(
            path, {"echo": self.echo, "later": self.kept.append, "no": self.no, "mine": self.mine}
        )
        self.loop = Turning(self.server)

    def echo(self, request: Request) -> None:
        self.told.append("echo")
        request.answer(request.payload)

    def no(self, request: Request) -> None:
        request.refuse("because", "I will not", {"really": True})

    def mine(self, request: Request) -> None:
        self.told.append("mine")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "cache.sock")


@pytest.fixture
def client(path: str) -> Iterator[Client]:
    made = Client(path)
    yield made
    made.close()


def test_the_socket_lies_in_the_runtime_directory() -> None:
    assert socket_path(Config()) == "/run/relayd/cache.sock"


def test_a_daemon_of_another_user_is_sent_nothing(
    path: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stranger:
        size = 12

        def unpack(self, _raw: bytes) -> tuple[int, int, int]:
            return 1, os.geteuid() + 1, 0

    monkeypatch.setattr("relayd.cache.client._CREDENTIALS", Stranger())
    daemon = Daemon(path)
    client.on_connect(lambda tell: tell("mine", {}))
    with daemon.loop:
        client.start()
        with pytest.raises(CacheUnavailable):
            client.call("echo", {}, timeout_s=0.1)
        assert daemon.told == []


def test_a_call_comes_back_with_its_answer(path: str, client: Client) -> None:
    with Daemon(path).loop:
        client.start()
        assert client.call("echo", {"a": 1}, timeout_s=10) == {"a": 1}


def test_a_refusal_is_raised_with_its_detail(path: str, client: Client) -> None:
    with Daemon(path).loop:
        client.start()
        with pytest.raises(Refused) as caught:
            client.call("no", {}, timeout_s=10)
    assert (caught.value.cause, caught.value.detail) == ("because", {"really": True})


def test_a_slow_answer_is_given_up_and_others_still_come(path: str, client: Client) -> None:
    with Daemon(path).loop:
        client.start()
        assert client.wait_connected(10)
        with pytest.raises(CacheUnavailable, match=r"within 0\.01 s"):
            client.call("later", {}, timeout_s=0.01)
        assert client.call("echo", {}, timeout_s=10) == {}


def test_an_answer_that_comes_too_late_harms_nobody(path: str, client: Client) -> None:
    daemon = Daemon(path)
    with daemon.loop:
        client.start()
        assert client.wait_connected(10)
        with pytest.raises(CacheUnavailable):
            client.call("later", {}, timeout_s=0.01)
        while not daemon.kept:
            daemon.loop.do(lambda: None)
        daemon.loop.do(lambda: daemon.kept[0].answer({"late": True}))
        assert client.call("echo", {"a": 2}, timeout_s=10) == {"a": 2}


def test_a_daemon_that_is_away_is_said_within_the_deadline(client: Client) -> None:
    client.start()
    with pytest.raises(CacheUnavailable, match="away"):
        client.call("echo", {}, timeout_s=0.05)
    with pytest.raises(CacheUnavailable):
        client.tell("mine", {})
    assert client.away_s > 0


def test_whoever_waits_when_the_daemon_dies_is_told_at_once(path: str, client: Client) -> None:
    daemon = Daemon(path)
    failures: list[str] = []

    def ask() -> None:
        try:
            client.call("later", {}, timeout_s=60)
        except CacheUnavailable as error:
            failures.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    with daemon.loop:
        client.start()
        for thread in threads:
            thread.start()
        while len(daemon.kept) < len(threads):
            daemon.loop.do(lambda: None)
    for thread in threads:
        thread.join(10)
    assert failures == ["the cache daemon went away"] * len(threads)


def test_it_finds_the_next_daemon_and_says_first_what_it_holds(path: str, client: Client) -> None:
    lost = threading.Event()
    client.on_connect(lambda tell: tell("mine", {}))
    client.on_lost(lost.set)
    client.start()
    for _ in range(2):
        daemon = Daemon(path)
        with daemon.loop:
            assert client.wait_connected(10)
            client.call("echo", {}, timeout_s=10)
            assert client.away_s == 0
            assert daemon.told == ["mine", "echo"]
        assert lost.wait(10)
        lost.clear()


def test_calls_made_while_it_connects_wait_for_what_the_hooks_say(
    path: str, client: Client
) -> None:
    gate = threading.Event()

    def slow(tell: Tell) -> None:
        gate.wait(10)
        tell("mine", {})

    client.on_connect(slow)
    daemon = Daemon(path)
    with daemon.loop:
        client.start()
        with pytest.raises(CacheUnavailable):
            client.call("echo", {}, timeout_s=0.01)
        gate.set()
        client.wait_connected(10)
        client.call("echo", {}, timeout_s=10)
        assert daemon.told == ["mine", "echo"]


def test_a_hook_with_a_bug_does_not_end_the_reader(path: str, client: Client) -> None:
    heard: list[Payload] = []

    def buggy(payload: Payload) -> None:
        heard.append(payload)
        raise ZeroDivisionError

    def poke(request: Request) -> None:
        request.connection.push("news", {})

    client.on_push("news", buggy)
    server = Server(path, {"poke": poke, "echo": lambda request: request.answer({})})
    with Turning(server):
        client.start()
        assert client.wait_connected(10)
        client.tell("poke", {})
        while not heard:
            client.wait_connected(0.01)
        deadline = 200
        for _ in range(deadline):
            try:
                assert client.call("echo", {}, timeout_s=10) == {}
                return
            except CacheUnavailable:
                continue
        pytest.fail("it never came back")


def test_a_push_reaches_its_hook(path: str, client: Client) -> None:
    heard = threading.Event()

    def poke(request: Request) -> None:
        request.connection.push("unknown", {})
        request.connection.push("recall", {"a": 1})

    client.on_push("recall", lambda _payload: heard.set())
    with Turning(Server(path, {"poke": poke})):
        client.start()
        assert client.wait_connected(10)
        client.tell("poke", {})
        assert heard.wait(10)


def test_many_callers_share_the_connection(path: str, client: Client) -> None:
    daemon, got = Daemon(path), set[object]()

    def ask(number: int) -> None:
        got.add(client.call("echo", {"n": number}, timeout_s=10)["n"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(50)]
    with daemon.loop:
        client.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == set(range(50))
        assert len(daemon.server) == 1


@pytest.mark.parametrize("octets", [b"\xff\xff\xff\xff", b"\0\0\0\2[]"])
def test_a_daemon_that_talks_garbage_is_left(path: str, client: Client, octets: bytes) -> None:
    lost = threading.Event()
    client.on_lost(lost.set)
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(path)
        odd.listen()
        client.start()
        line, _ = odd.accept()
        with line:
            line.sendall(octets)
            assert lost.wait(10)
    os.unlink(path)


def test_a_daemon_that_calls_is_ignored(path: str, client: Client) -> None:
    heard = threading.Event()
    client.on_push("news", lambda _payload: heard.set())
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(path)
        odd.listen()
        client.start()
        line, _ = odd.accept()
        with line:
            line.sendall(encode(Call(1, "dance", {})) + encode(Push("news", {})))
            assert heard.wait(10)


def test_a_daemon_that_takes_nothing_is_given_up(
    path: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.cache.client._SEND_TIMEOUT_S", 0.02)
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(path)
        deaf.listen()
        client.start()
        assert client.wait_connected(10)

        def tell_much() -> None:
            for _ in range(100):
                client.tell("echo", {"text": "a" * 200_000})

        with pytest.raises(CacheUnavailable, match="does not listen"):
            tell_much()


GREENLETS = """
import gevent.monkey
gevent.monkey.patch_all()
import sys, gevent
from relayd.cache.client import Client
from relayd.config.model import Config
from relayd.errors import CacheUnavailable
client = Client(sys.argv[1])
client.start()
client.wait_connected(10)
ticks = []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.001)
ticker = gevent.spawn(tick)
def slow():
    try:
        client.call("later", {}, timeout_s=0.1)
    except CacheUnavailable:
        return "gave up"
jobs = [gevent.spawn(client.call, "echo", {"n": n}, timeout_s=10) for n in range(100)]
late = gevent.spawn(slow)
gevent.joinall([*jobs, late], raise_error=True)
assert sorted(job.value["n"] for job in jobs) == list(range(100))
assert late.value == "gave up"
assert len(ticks) > 5, ticks
client.close()
print("well")
"""


@pytest.mark.slow(1)
def test_under_gevent_nothing_blocks_the_hub(path: str) -> None:
    with Daemon(path).loop:
        done = subprocess.run(
            [sys.executable, "-c", GREENLETS, path],
            capture_output=True,
            text=True,
            timeout=15,
            check=False,
        )
    assert done.stdout.endswith("well\n"), done.stderr
