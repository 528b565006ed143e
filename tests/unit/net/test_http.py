"""Names, dialling, roots and the pool."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3

from relayd.clock import FakeClock
from relayd.config.model import Http
from relayd.net import http
from relayd.net.http import ConnectFailed, Dialer, Resolver, SocketAddress, pool, roots
from tests.raw_server import RawServer, accepting, answering, certificates

HERE = SocketAddress(socket.AF_INET, ("127.0.0.1", 443))
THERE = SocketAddress(socket.AF_INET, ("127.0.0.2", 443))
SIX = SocketAddress(socket.AF_INET6, ("::1", 443, 0, 0))

Lookup = Callable[[str, int], list[SocketAddress]]


class Names:
    """A name server that says what it is told."""

    def __init__(self, *addresses: SocketAddress) -> None:
        self.addresses = list(addresses)
        self.asked = 0
        self.error: OSError | None = None
        self.gate: threading.Event | None = None

    def __call__(self, host: str, port: int) -> list[SocketAddress]:
        self.asked += 1
        if self.gate is not None:
            self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return self.addresses


AWAY = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def ask(resolver: Resolver, *, timeout_s: float = 10.0) -> tuple[SocketAddress, ...]:
    return resolver.addresses("graph.example.com", 443, timeout_s=timeout_s)


# --- names -----------------------------------------------------------------------------------


def test_a_name_is_looked_up_once_a_minute() -> None:
    clock, names = FakeClock(), Names(HERE)
    resolver = Resolver(clock, names)

    assert ask(resolver) == (HERE,)
    clock.advance(59)
    ask(resolver)
    assert names.asked == 1
    clock.advance(2)
    names.addresses = [THERE]
    assert ask(resolver) == (THERE,)


def test_a_good_answer_is_used_while_dns_is_away() -> None:
    clock, names = FakeClock(), Names(HERE)
    resolver = Resolver(clock, names)
    ask(resolver)
    names.error = AWAY

    clock.advance(86_400)

    assert ask(resolver) == (HERE,)
    assert names.asked == 2


def test_an_empty_answer_does_not_replace_a_good_one() -> None:
    clock, names = FakeClock(), Names(HERE)
    resolver = Resolver(clock, names)
    ask(resolver)
    names.addresses = []

    clock.advance(86_400)

    assert ask(resolver) == (HERE,)


def test_a_look_up_that_hangs_is_not_waited_for_when_an_answer_is_at_hand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "_PATIENCE_S", 0.01)
    clock, names = FakeClock(), Names(HERE)
    resolver = Resolver(clock, names)
    ask(resolver)
    names.gate = threading.Event()
    clock.advance(100)

    for _ in range(20):
        assert ask(resolver) == (HERE,)

    assert names.asked == 2, "one stuck look-up must not become twenty"
    names.gate.set()


def test_without_an_answer_the_failure_is_told() -> None:
    names = Names()
    names.error = AWAY

    with pytest.raises(ConnectFailed, match="Temporary failure") as caught:
        ask(Resolver(FakeClock(), names))

    assert caught.value.stage == "dns"


def test_no_addresses_is_a_failure_too() -> None:
    with pytest.raises(ConnectFailed, match="no addresses"):
        ask(Resolver(FakeClock(), Names()))


def test_a_name_server_that_never_answers_is_given_up() -> None:
    names = Names(HERE)
    names.gate = threading.Event()

    with pytest.raises(ConnectFailed, match="no answer"):
        ask(Resolver(FakeClock(), names), timeout_s=0.01)

    names.gate.set()


def test_a_name_that_is_none_is_a_failure_of_dns() -> None:
    def lookup(host: str, port: int) -> list[SocketAddress]:
        return [HERE] if host.encode("idna") else []

    with pytest.raises(ConnectFailed) as caught:
        Resolver(FakeClock(), lookup).addresses("a" * 70 + ".example", 443, timeout_s=10)

    assert caught.value.stage == "dns"


def test_distrust_asks_anew_before_the_minute_is_over() -> None:
    names = Names(HERE)
    resolver = Resolver(FakeClock(), names)
    ask(resolver)
    resolver.distrust("graph.example.com", 443)
    resolver.distrust("never.asked", 443)
    ask(resolver)

    assert names.asked == 2


def test_families_take_turns() -> None:
    resolver = Resolver(FakeClock(), Names(SIX, SIX, SIX, HERE, THERE))

    assert [a.family for a in ask(resolver)] == [
        socket.AF_INET6,
        socket.AF_INET,
        socket.AF_INET6,
        socket.AF_INET,
        socket.AF_INET6,
    ]


def test_the_system_knows_its_own_addresses() -> None:
    assert http.system_lookup("127.0.0.1", 443) == [HERE]
    assert http.system_lookup("::1", 443) == [SIX]


def test_other_families_are_refused() -> None:
    with pytest.raises(OSError, match="not an internet address"):
        http._where(("/run/socket",))


# --- dialling ---------------------------------------------------------------------------------


def dial(*addresses: SocketAddress, each_s: float = 10.0, budget_s: float = 10.0) -> socket.socket:
    dialer = Dialer(Resolver(lookup=Names(*addresses)), each_s=each_s)
    return dialer.open("graph.example.com", 443, budget_s=budget_s)


def at(port: int, host: str = "127.0.0.1") -> SocketAddress:
    return SocketAddress(socket.AF_INET, (host, port))


@pytest.fixture
def deaf() -> SocketAddress:
    """An address where SYN is dropped: a listener whose queue is full."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = listener.getsockname()[1]
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
        fillers.append(filler)
    KEPT.extend([listener, *fillers])
    return at(port)


KEPT: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed() -> object:
    yield
    while KEPT:
        KEPT.pop().close()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_a_refused_address_gives_way_to_the_next_at_once() -> None:
    with RawServer(accepting) as server, dial(at(closed_port()), at(server.port)) as sock:
        assert sock.getpeername() == ("127.0.0.1", server.port)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        timeout = sock.gettimeout()
        assert timeout is not None
        assert 0 < timeout <= 10


@pytest.mark.slow(0.4)
def test_a_deaf_address_is_raced_by_the_next(deaf: SocketAddress) -> None:
    with RawServer(accepting) as server, dial(deaf, at(server.port)) as sock:
        assert sock.getpeername() == ("127.0.0.1", server.port)


def test_all_refused_says_where() -> None:
    first, second = at(closed_port()), at(closed_port(), "127.0.0.3")

    with pytest.raises(
        ConnectFailed, match=r"127\.0\.0\.1: Connection refused; 127\.0\.0\.3"
    ) as caught:
        dial(first, second)

    assert caught.value.stage == "connect"


def test_each_address_has_its_limit(deaf: SocketAddress) -> None:
    start = time.monotonic()
    with pytest.raises(ConnectFailed, match="time-out"):
        dial(deaf, each_s=0.05)
    assert time.monotonic() - start < 9, "not the budget of ten seconds"


def test_all_together_have_a_budget(deaf: SocketAddress) -> None:
    with pytest.raises(ConnectFailed, match="time-out"):
        dial(deaf, deaf, each_s=100.0, budget_s=0.05)


def test_a_family_the_kernel_lacks_is_passed_over() -> None:
    lacking = SocketAddress(9999, ("127.0.0.1", 9))

    with RawServer(accepting) as server, dial(lacking, at(server.port)) as sock:
        assert sock.getpeername() == ("127.0.0.1", server.port)


def test_an_address_without_a_route_is_passed_over() -> None:
    nowhere = SocketAddress(socket.AF_INET, ("255.255.255.255", 9))

    with RawServer(accepting) as server, dial(nowhere, at(server.port)) as sock:
        assert sock.getpeername() == ("127.0.0.1", server.port)


def test_a_failure_has_the_name_looked_up_again() -> None:
    names = Names(at(closed_port()))
    dialer = Dialer(Resolver(lookup=names))
    for _ in range(2):
        with pytest.raises(ConnectFailed):
            dialer.open("graph.example.com", 443, budget_s=10)

    assert names.asked == 2


def test_brackets_of_an_address_are_taken_off() -> None:
    seen: list[str] = []

    def lookup(host: str, port: int) -> list[SocketAddress]:
        seen.append(host)
        return [at(closed_port())]

    with pytest.raises(ConnectFailed):
        Dialer(Resolver(lookup=lookup)).open("[::1]", 443, budget_s=10)

    assert seen == ["::1"]


# --- roots and the pool --------------------------------------------------------------------------


def test_roots_are_loaded_once() -> None:
    assert roots(certificates()[0]) is roots(certificates()[0])


def test_roots_check_names_and_modern_versions_only() -> None:
    context = roots(certificates()[0])

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_the_environment_does_not_decide_whom_we_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificates()[0])
    roots.cache_clear()

    subjects = [str(one["subject"]) for one in roots().get_ca_certs()]

    roots.cache_clear()
    assert subjects
    assert not any("a test" in subject for subject in subjects)


def test_missing_roots_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        roots(str(tmp_path / "none.pem"))

    places = ssl.get_default_verify_paths()._replace(
        openssl_cafile=str(tmp_path / "no"), openssl_capath=str(tmp_path / "nowhere")
    )
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: places)
    monkeypatch.setattr(http, "_SYSTEM_ROOTS", ())
    roots.cache_clear()
    with pytest.raises(FileNotFoundError, match="ca-certificates"):
        roots()
    (tmp_path / "nowhere").mkdir()
    assert roots().verify_mode is ssl.CERT_REQUIRED
    roots.cache_clear()


def test_the_pool_does_not_retry_and_does_not_follow() -> None:
    redirect = b"HTTP/1.1 302 Go\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"
    with RawServer(answering(redirect)) as server, pool(Http()) as manager:
        assert manager.request("GET", server.url).status == 302
        assert server.connections == 1


def test_the_pool_raises_our_reason_when_it_cannot_connect() -> None:
    with (
        pool(Http(), ca_file=certificates()[0]) as manager,
        pytest.raises((OSError, urllib3.exceptions.HTTPError), match="refused"),
    ):
        manager.request("GET", f"https://127.0.0.1:{closed_port()}/")


def test_the_pool_speaks_tls_to_those_it_trusts_only() -> None:
    with RawServer(accepting, tls=True) as server:
        with pool(Http(), ca_file=certificates()[0]) as manager:
            assert manager.request("POST", server.url, body=b"x").status == 202
        with (
            pool(Http()) as manager,
            pytest.raises(urllib3.exceptions.SSLError),
        ):
            manager.request("POST", server.url, body=b"x")


def test_the_pool_heeds_no_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with RawServer(accepting) as server, pool(Http()) as manager:
        assert manager.request("POST", server.url, body=b"x").status == 202


@pytest.mark.parametrize("url", ["socks5://x:1", "proxy:3128", "http://"])
def test_a_proxy_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="proxy"):
        pool(Http(proxy=url))
