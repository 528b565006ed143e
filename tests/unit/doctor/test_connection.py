"""From here to Entra, each failure at its own step, the later ones not tried because of it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from relayd.clock import FakeClock
from relayd.config.clouds import BUILT_IN
from relayd.config.model import Cloud, Http, Upstream
from relayd.doctor import connection
from relayd.doctor.advice import Names
from relayd.doctor.connection import NAMES, Connection, Reach, token_problem
from relayd.doctor.network import Certificate, Place
from relayd.doctor.steps import State, Step
from relayd.errors import TokenUnavailable
from relayd.net.http import Resolver, SocketAddress
from tests.fake_entra import TENANT, FakeEntra, in_json, portal
from tests.raw_server import Conversation, RawServer, answering, certificates
from tests.way_out import expired_leaf, free_port, leading_to, showing, tunnelling

UPSTREAM = Upstream(name="contoso", tenant=TENANT, client_id="app")
HTTP = Http(connect_timeout=10.0, token_timeout=10.0)


@pytest.fixture
def entra(tmp_path: Path) -> Iterator[FakeEntra]:
    with FakeEntra(tmp_path) as made:
        yield made


def cloud(authority: str, ca_file: str = "", graph: str = "") -> Cloud:
    graph = graph or f"{authority}/v1.0"
    return Cloud(name="lab", authority=authority, graph=graph, ca_file=ca_file)


def run(
    where: Cloud, *, upstream: Upstream = UPSTREAM, http: Http = HTTP, reach: Reach | None = None
) -> dict[str, Step]:
    """Return the steps by name; each has run, in their order."""
    made = Connection(upstream, where, http, reach or Reach())
    steps = list(made.steps())
    made.close()
    assert [step.name for step in steps] == list(NAMES)
    failed = [step.name for step in steps if step.state is State.PROBLEM]
    assert made.missing in {"", *failed}
    return {step.name: step for step in steps}


def states(steps: dict[str, Step]) -> dict[str, str]:
    return {name: step.state.value for name, step in steps.items()}


def test_all_is_well(entra: FakeEntra) -> None:
    steps = run(cloud(entra.authority, entra.ca_file))
    assert states(steps) == {
        "dns": "ok", "tcp": "ok", "proxy": "skipped", "tls": "ok", "clock": "ok", "tenant": "ok",
    }  # fmt: skip
    assert "certificate by Test CA" in steps["tls"].text
    assert TENANT in steps["tenant"].text


def test_nothing_secret_is_sent(entra: FakeEntra) -> None:
    run(cloud(entra.authority, entra.ca_file))
    assert entra.requests == [f"GET /{TENANT}/v2.0/.well-known/openid-configuration"]
    assert entra.token_requests == []


# ---- names and ports


def no_names(_host: str, _port: int) -> list[SocketAddress]:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def test_a_name_that_cannot_be_looked_up_ends_it_at_dns() -> None:
    steps = run(BUILT_IN[0], reach=Reach(resolver=Resolver(lookup=no_names)))
    dns = steps["dns"]
    assert dns.state is State.PROBLEM
    assert "login.microsoftonline.com: Temporary failure in name resolution" in dns.text
    assert dns.commands == (
        "getent ahosts login.microsoftonline.com",
        "getent ahosts graph.microsoft.com",
    )
    assert steps["tcp"].text == steps["tls"].text == "dns comes first"
    assert steps["tenant"].state is steps["clock"].state is State.SKIPPED


def test_a_port_that_is_closed_ends_it_at_tcp() -> None:
    port = free_port()
    steps = run(cloud(f"https://127.0.0.1:{port}"))
    assert steps["tcp"].state is State.PROBLEM
    assert f"127.0.0.1 port {port} (" in steps["tcp"].text
    assert "Connection refused" in steps["tcp"].text
    assert steps["tcp"].commands[0].startswith("curl -v --max-time 10 https://127.0.0.1:")
    assert steps["tls"].text == "tcp comes first"


def test_one_address_of_two_is_enough(entra: FakeEntra) -> None:
    def both(_host: str, port: int) -> list[SocketAddress]:
        return [SocketAddress(socket.AF_INET, (host, port)) for host in ("127.0.0.1", "127.0.0.2")]

    reach = Reach(resolver=Resolver(lookup=both))
    tcp = run(cloud(entra.authority, entra.ca_file), reach=reach)["tcp"]
    assert tcp.state is State.OK
    assert "answers at 1 address, not 127.0.0.2: Connection refused" in tcp.text


def test_entra_may_answer_and_graph_not(entra: FakeEntra) -> None:
    where = cloud(entra.authority, entra.ca_file, f"https://127.0.0.1:{free_port()}/v1.0")
    tcp = run(where)["tcp"]
    assert tcp.state is State.PROBLEM
    assert str(entra.port) not in tcp.text


# ---- the proxy


def test_the_way_through_a_proxy(entra: FakeEntra) -> None:
    heads: list[bytes] = []
    with RawServer(tunnelling(heads)) as middle:
        http = replace(HTTP, proxy=f"http://127.0.0.1:{middle.port}")
        steps = run(cloud(entra.authority, entra.ca_file), http=http)
    assert steps["proxy"].state is State.OK
    assert "opens the way to localhost" in steps["proxy"].text
    assert steps["tenant"].state is State.OK
    assert str(middle.port) in steps["tcp"].text


@pytest.mark.parametrize(
    ("answer", "do"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "user and password"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "allow CONNECT"),
    ],
)
def test_a_proxy_that_refuses_is_told_with_its_answer(answer: bytes, do: str) -> None:
    with RawServer(answering(answer)) as middle:
        http = replace(HTTP, proxy=f"http://me:secret@127.0.0.1:{middle.port}")
        steps = run(BUILT_IN[0], http=http)
    assert steps["proxy"].state is State.PROBLEM
    assert "does not open the way to login.microsoftonline.com" in steps["proxy"].text
    assert do in steps["proxy"].do
    assert "secret" not in str(steps)
    assert steps["tls"].text == "proxy comes first"


def test_a_proxy_that_is_away_ends_it_at_tcp() -> None:
    http = replace(HTTP, proxy=f"http://127.0.0.1:{free_port()}")
    steps = run(BUILT_IN[0], http=http)
    assert "the proxy" in steps["tcp"].do
    assert steps["proxy"].text == "tcp comes first"


def test_a_proxy_that_breaks_off_is_told() -> None:
    def hang_up(talk: Conversation) -> None:
        talk.request()

    with RawServer(hang_up) as middle:
        steps = run(BUILT_IN[0], http=replace(HTTP, proxy=f"http://127.0.0.1:{middle.port}"))
    assert steps["proxy"].state is State.PROBLEM


def test_a_proxy_that_is_no_url_is_told() -> None:
    steps = run(BUILT_IN[0], http=replace(HTTP, proxy="proxy.lan:3128"))
    assert steps["proxy"].state is State.PROBLEM
    assert steps["dns"].text == "proxy comes first"


# ---- TLS


def test_a_firewall_that_opens_tls_is_named() -> None:
    with RawServer(answering(), tls=True) as server:
        steps = run(BUILT_IN[0], reach=Reach(resolver=leading_to(server.port)))
    tls = steps["tls"]
    assert tls.state is State.PROBLEM
    assert "login.microsoftonline.com is answered by somebody else" in tls.text
    assert "its certificate is by a test" in tls.text
    assert "opens TLS" in tls.do
    assert "[http] ca_file" in tls.do
    assert "openssl s_client -connect login.microsoftonline.com:443" in tls.commands[1]
    assert steps["tenant"].text == "tls comes first"


def test_a_firewall_that_is_trusted_is_still_named() -> None:
    shown = Certificate(
        subject="login.microsoftonline.com", issuer="Fortinet CA", organisation="Fortinet",
        not_before=datetime.now(UTC), not_after=datetime.now(UTC),
    )  # fmt: skip
    here = Place("login.microsoftonline.com", 443)
    assert connection._is_inspected(here, shown)
    assert connection._issuer(shown) == "Fortinet CA"
    good = replace(shown, issuer="DigiCert Global G2 TLS RSA SHA256 2020 CA1")
    assert not connection._is_inspected(here, replace(good, organisation="DigiCert Inc"))
    assert not connection._is_inspected(Place("127.0.0.1", 8443), shown)


def test_a_root_of_ones_own_that_is_another_is_told_by_its_key(entra: FakeEntra) -> None:
    other = certificates()[0]
    tls = run(cloud(entra.authority, other))["tls"]
    assert "[cloud.lab] ca_file" in tls.do
    tls = run(cloud(entra.authority), http=replace(HTTP, ca_file=other))["tls"]
    assert "[http] ca_file" in tls.do


def test_a_root_nobody_knows_is_told_with_what_installs_roots(entra: FakeEntra) -> None:
    tls = run(cloud(entra.authority))["tls"]
    assert (tls.state, tls.commands[1]) == (State.PROBLEM, "update-ca-certificates")
    assert "certificate is by Test CA" in tls.text


def test_a_certificate_out_of_its_time_asks_about_the_clock(tmp_path: Path) -> None:
    authority, leaf = expired_leaf(tmp_path)
    with showing(RawServer(answering(), tls=True), leaf) as server:
        tls = run(cloud(server.url, str(authority)))["tls"]
    assert "this host's clock shows" in tls.text
    assert "good 2019-12-31 to 2020-01-31" in tls.text or "to 2020-01-31" in tls.text
    assert tls.commands[0] == "timedatectl"


def test_roots_that_are_not_there_are_told_and_the_rest_not_tried(tmp_path: Path) -> None:
    steps = run(cloud("https://127.0.0.1:1", str(tmp_path / "none.pem")))
    assert "cannot be read: No such file" in steps["tls"].text
    assert steps["dns"].state is State.SKIPPED


def test_something_that_speaks_no_tls_is_told() -> None:
    def portal_in_clear(talk: Conversation) -> None:
        talk.say(b"HTTP/1.1 302 Found\r\n\r\n")
        talk.sock.recv(65536)

    with RawServer(portal_in_clear) as server:
        tls = run(cloud(f"https://127.0.0.1:{server.port}"))["tls"]
    assert "in Microsoft's place" in tls.do


# ---- the clock


@pytest.mark.parametrize(
    ("wrong_s", "state", "words"),
    [
        (3600, State.PROBLEM, "3600 s ahead of"),
        (-3600, State.PROBLEM, "3600 s behind"),
        (120, State.WARNING, "120 s ahead of"),
    ],
)
def test_a_wrong_clock_is_seen_by_entras(
    entra: FakeEntra, wrong_s: float, state: State, words: str
) -> None:
    now = datetime.now(UTC) + timedelta(seconds=wrong_s)
    clock = run(cloud(entra.authority, entra.ca_file), reach=Reach(clock=FakeClock(now=now)))[
        "clock"
    ]
    assert clock.state is state
    minutes = words.split(" ", 1)[1]
    assert minutes in clock.text
    assert "timedatectl set-ntp true" in clock.commands


def test_a_clock_of_another_century_needs_no_server() -> None:
    old = FakeClock(now=datetime(1970, 1, 1, 0, 1, tzinfo=UTC))
    reach = Reach(clock=old, resolver=Resolver(lookup=no_names))
    clock = run(BUILT_IN[0], reach=reach)["clock"]
    assert (clock.state, "cannot be" in clock.text) == (State.PROBLEM, True)


# ---- the tenant


def test_a_tenant_nobody_knows_is_told_by_its_code(entra: FakeEntra) -> None:
    upstream = replace(UPSTREAM, tenant="nowhere.example")
    tenant = run(cloud(entra.authority, entra.ca_file), upstream=upstream)["tenant"]
    assert tenant.state is State.PROBLEM
    assert "AADSTS90002" in tenant.text
    assert "Correct `tenant`" in tenant.do


def test_a_captive_portal_is_no_entra(entra: FakeEntra) -> None:
    entra.discovery_answers.append(portal())
    tenant = run(cloud(entra.authority, entra.ca_file))["tenant"]
    assert "captive portal" in tenant.do


def test_an_answer_without_an_issuer_is_no_tenant(entra: FakeEntra) -> None:
    entra.discovery_answers.append(in_json(200, {"issuer": 7}))
    assert run(cloud(entra.authority, entra.ca_file))["tenant"].state is State.PROBLEM


def test_a_tenant_that_would_be_another_path_is_not_asked_for(entra: FakeEntra) -> None:
    upstream = replace(UPSTREAM, tenant="x y\r\nHost: z")
    steps = run(cloud(entra.authority, entra.ca_file), upstream=upstream)
    assert steps["tenant"].state is State.PROBLEM
    assert entra.requests == []


def test_a_server_that_hangs_up_gives_no_tenant() -> None:
    def hang_up(talk: Conversation) -> None:
        talk.request()

    with RawServer(hang_up, tls=True) as server:
        steps = run(cloud(server.url, certificates()[0]))
    assert "gives no answer: the answer is no HTTP" in steps["tenant"].text
    assert steps["clock"].state is State.SKIPPED


# ---- words for a token that is not had


def test_a_refused_secret_comes_with_how_to_make_another() -> None:
    text = (
        "the client secret has expired: make a new secret under Certificates & secrets of the app"
        " registration and store its value as client_secret (Entra trace abc)"
    )
    step = token_problem(
        "token", TokenUnavailable("7000222", text, configuration=True), Names(app_id="app")
    )
    assert step.text == "the client secret has expired (AADSTS7000222) (Entra trace abc)"
    assert step.do.startswith("Make a new secret")
    assert step.do.endswith("as client_secret (relayd secret set NAME), then relayd reload.")
    assert any("--append" in line for line in step.commands)


def test_conditional_access_names_where_to_look() -> None:
    why = TokenUnavailable("53003", "blocked: exclude it", configuration=True)
    assert "Sign-in logs" in token_problem("token", why, Names()).commands[0]


def test_our_own_cause_keeps_its_words_and_says_what_mends_it_without_sending_here() -> None:
    text = "cannot connect to login.microsoftonline.com (x: Connection refused)"
    step = token_problem(
        "token", TokenUnavailable("entra-unreachable", text, configuration=False), Names()
    )
    assert step.text == text
    assert step.do.startswith("Check name server, firewall (port 443) and proxy; the other steps")
    assert "relayd doctor" not in step.do


def test_a_cause_nobody_described_keeps_its_words() -> None:
    why = TokenUnavailable("news", "the certificate is not trusted", configuration=False)
    assert token_problem("token", why, Names()).text == "the certificate is not trusted"
