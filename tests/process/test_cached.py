"""The cache daemon as a process: one token for all, killed and back with nothing lost."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from relayd.config import codec
from relayd.config.model import Cloud, Config, Http, Secret, Server, Upstream
from tests.cached_process import Cached, Worker, all_connected
from tests.fake_entra import SECRET, TENANT, FakeEntra, jwt
from tests.relay_process import wait_until

pytestmark = [pytest.mark.slow(3), pytest.mark.timeout(60)]


@pytest.fixture
def entra(tmp_path: Path) -> Iterator[FakeEntra]:
    with FakeEntra(tmp_path) as fake:
        yield fake


@pytest.fixture
def config(tmp_path: Path, entra: FakeEntra) -> Config:
    made = Config(
        server=Server(runtime_dir=str(tmp_path), workers=2),
        upstream=(
            Upstream(
                name="contoso",
                cloud="lab",
                tenant=TENANT,
                client_id="app",
                client_secret=Secret(SECRET),
            ),
        ),
        cloud=(Cloud(name="lab", authority=entra.authority, graph="", ca_file=entra.ca_file),),
        http=Http(token_timeout=10.0),
    )
    (tmp_path / "config.json").write_bytes(codec.dumps(made))
    return made


@pytest.fixture
def workers(tmp_path: Path, config: Config) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        path = str(tmp_path / "config.json")
        yield [stack.enter_context(Worker(path, number)) for number in (1, 2)]


def test_a_thousand_greenlets_in_two_workers_are_one_token_request(
    config: Config, entra: FakeEntra, workers: list[Worker]
) -> None:
    entra.gate.clear()
    with Cached(config) as cached:
        assert cached.first_word == {"event": "ready"}
        all_connected(workers)
        for worker in workers:
            worker.begin("tokens", 500)
        wait_until(lambda: entra.token_requests)
        entra.gate.set()
        for worker in workers:
            assert worker.result() == [jwt(1)] * 500
        assert len(entra.token_requests) == 1
        for worker in workers:
            assert worker.do("modules") == []


def test_killed_and_back_it_hears_claims_before_it_grants(
    config: Config, workers: list[Worker]
) -> None:
    first, second = workers
    with Cached(config) as cached:
        all_connected(workers)
        assert first.do("acquire", 10) is True
        cached.kill()
    with Cached(config):
        all_connected(workers)
        assert second.do("acquire", 0.3) is False
        second.begin("acquire", 30)
        assert first.do("release") is None
        assert second.result() is True


def test_killed_again_and_again_while_workers_fight_for_one_slot(
    config: Config, workers: list[Worker]
) -> None:
    first, second = workers
    for _ in range(3):
        with Cached(config):
            all_connected(workers)
            for one, other in ((first, second), (second, first)):
                assert one.do("acquire", 30) is True
                assert other.do("acquire", 0.05) is False
                one.do("release")


def test_held_tokens_serve_while_it_is_dead(
    config: Config, entra: FakeEntra, workers: list[Worker]
) -> None:
    with Cached(config) as cached:
        all_connected(workers)
        assert workers[0].do("tokens", 1) == [jwt(1)]
        cached.kill()
        assert workers[0].do("tokens", 100) == [jwt(1)] * 100
    with Cached(config):
        all_connected(workers)
        assert workers[1].do("tokens", 1) == [jwt(2)]


def test_the_socket_and_the_process_keep_their_secrets(
    config: Config, entra: FakeEntra, workers: list[Worker], tmp_path: Path
) -> None:
    with Cached(config) as cached:
        assert stat.S_IMODE(os.stat(tmp_path / "cache.sock").st_mode) == 0o600
        limits = Path(f"/proc/{cached.process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4:6] == ["0", "0"]
        title = Path(f"/proc/{cached.process.pid}/cmdline").read_bytes()
        assert title.startswith(b"relayd: cached")
        all_connected(workers)
        workers[0].do("tokens", 1)
        status = str(workers[0].do("status"))
        assert "contoso" in status
        assert "Mail.Send" in status
        assert SECRET not in status
        assert jwt(1) not in status


def test_garbage_on_its_socket_disturbs_nobody(
    config: Config, workers: list[Worker], tmp_path: Path
) -> None:
    with Cached(config):
        all_connected(workers)
        for octets in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"\0\0\0\2{}"):
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(str(tmp_path / "cache.sock"))
                bad.sendall(octets)
                assert bad.recv(1) == b""
        assert workers[0].do("tokens", 1) == [jwt(1)]


def test_it_tells_the_master_its_figures(config: Config, workers: list[Worker]) -> None:
    with Cached(config) as cached:
        all_connected(workers)
        workers[0].do("tokens", 1)
        while True:
            said = cached.hear()
            assert said["event"] == "status"
            if "relayd_token_requests_total" in str(said["counters"]):
                break
        assert "contoso" in str(said["tokens"])


def test_sigterm_ends_it_at_once(config: Config, workers: list[Worker]) -> None:
    with Cached(config) as cached:
        all_connected(workers)
        assert cached.kill(signal.SIGTERM) == 0


def test_drained_it_stays_until_the_last_worker_has_gone(
    config: Config, workers: list[Worker], tmp_path: Path
) -> None:
    with Cached(config) as cached:
        all_connected(workers)
        cached.channel.send({"do": "drain"})
        assert workers[0].do("tokens", 1) == [jwt(1)]
        assert cached.process.poll() is None
        for worker in workers:
            worker.__exit__(None, None, None)
        assert cached.process.wait(15) == 0
        assert not (tmp_path / "cache.sock").exists()


def test_without_a_master_it_goes_when_the_last_worker_has_gone(
    config: Config, workers: list[Worker]
) -> None:
    with Cached(config) as cached:
        all_connected(workers)
        cached.channel.close()
        assert workers[0].do("tokens", 1) == [jwt(1)]
        for worker in workers:
            worker.__exit__(None, None, None)
        assert cached.process.wait(15) == 0


def test_a_path_that_cannot_be_bound_is_told_to_the_master(config: Config, tmp_path: Path) -> None:
    (tmp_path / "cache.sock").write_text("not a socket")
    with Cached(config) as cached:
        assert cached.first_word["event"] == "failed"
        assert "cache.sock" in str(cached.first_word["text"])
        assert cached.process.wait(15) == 69
