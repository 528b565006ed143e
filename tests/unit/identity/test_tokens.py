"""A worker's tokens: one question however many ask, the held one to its end, 401s told apart."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.cache.client import Client
from relayd.cache.frames import Garbage
from relayd.cache.server import Request, Server
from relayd.clock import FakeClock
from relayd.config.model import Config, Http, Secret, Upstream
from relayd.errors import TokenUnavailable
from relayd.identity.tokens import Claims, Token, TokenClient, claims_of, parse_token
from tests.cache_loop import Turning
from tests.fake_entra import TENANT_ID, jwt

UPSTREAM = Upstream(name="contoso", tenant="t", client_id="app", client_secret=Secret("s1"))
CONFIG = Config(upstream=(UPSTREAM,), http=Http(token_timeout=10.0))


class Daemon:
    """Answers `token` with a new one each time, unless told to keep or refuse."""

    def __init__(self, path: str, clock: FakeClock) -> None:
        self.clock = clock
        self.life_s = 3600.0
        self.asked: list[Request] = []
        self.dropped: list[str] = []
        self.forgotten = 0
        self.keeps = False
        self.refusal: tuple[str, str, bool, float | None] | None = None
        self._numbers = count(1)
        handlers = {
            "token": self.token,
            "token.drop": self.drop,
            "token.refresh": self.token,
            "token.forget": self.forget,
        }
        self.loop = Turning(Server(path, handlers))

    def token(self, request: Request) -> None:
        self.asked.append(request)
        if not self.keeps:
            self.answer(request)

    def answer(self, request: Request) -> None:
        if self.refusal is not None:
            cause, text, configuration, wish = self.refusal
            request.refuse(cause, text, {"configuration": configuration, "retry_after_s": wish})
        else:
            value, ends = f"token-{next(self._numbers)}", self.clock.boottime() + self.life_s
            request.answer(Token(value, ends, "print").payload())

    def drop(self, request: Request) -> None:
        self.dropped.append(str(request.payload["value"]))

    def forget(self, request: Request) -> None:
        self.forgotten += 1
        request.answer({"held": True})

    def tell_changed(self, fingerprint: str) -> None:
        """Push to whoever asked last, and wait until it was sent."""
        connection = self.asked[-1].connection
        self.loop.do(lambda: connection.push("token.changed", {"fingerprint": fingerprint}))


class Bench:
    def __init__(self, path: str) -> None:
        self.clock = FakeClock()
        self.path = path
        self.client = Client(path)
        self.tokens = TokenClient(self.client, CONFIG, clock=self.clock)

    def until(self, what: Callable[[], bool]) -> None:
        """Wait for the background; the deadline is for broken code, not slow machines."""
        wait = threading.Event()
        for _ in range(2000):
            if what():
                return
            wait.wait(0.005)
        pytest.fail("it never came")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(str(tmp_path / "cache.sock"))
    yield made
    made.client.close()


@pytest.fixture
def daemon(bench: Bench) -> Iterator[Daemon]:
    made = Daemon(bench.path, bench.clock)
    with made.loop:
        bench.client.start()
        assert bench.client.wait_connected(10)
        yield made


def test_the_second_time_costs_nothing(bench: Bench, daemon: Daemon) -> None:
    first = bench.tokens.token(UPSTREAM)
    assert bench.tokens.token(UPSTREAM) is first
    assert (first.value, len(daemon.asked)) == ("token-1", 1)


def test_the_whole_credential_goes_along(bench: Bench, daemon: Daemon) -> None:
    bench.tokens.token(UPSTREAM)
    payload = daemon.asked[0].payload
    assert payload["upstream"] == "contoso"
    assert "s1" in json.dumps(payload["credential"])


def test_many_at_once_are_one_question(bench: Bench, daemon: Daemon) -> None:
    daemon.keeps = True
    got: list[Token] = []
    threads = [
        threading.Thread(target=lambda: got.append(bench.tokens.token(UPSTREAM)))
        for _ in range(100)
    ]
    for thread in threads:
        thread.start()
    bench.until(lambda: bool(daemon.asked))
    daemon.loop.do(lambda: daemon.answer(daemon.asked[0]))
    for thread in threads:
        thread.join(10)
    assert {token.value for token in got} == {"token-1"}
    assert len(daemon.asked) == 1


def test_near_its_end_the_next_is_asked_for_behind_the_scenes(bench: Bench, daemon: Daemon) -> None:
    first = bench.tokens.token(UPSTREAM)
    bench.clock.advance(3299)
    assert bench.tokens.token(UPSTREAM) is first
    assert len(daemon.asked) == 1
    bench.clock.advance(1)
    daemon.keeps = True
    assert bench.tokens.token(UPSTREAM) is first  # nobody waits
    bench.until(lambda: len(daemon.asked) == 2)
    assert bench.tokens.token(UPSTREAM) is first
    daemon.loop.do(lambda: daemon.answer(daemon.asked[1]))
    bench.until(lambda: bench.tokens.token(UPSTREAM).value == "token-2")


def test_when_the_next_cannot_be_had_the_held_one_serves_to_its_end(
    bench: Bench, daemon: Daemon
) -> None:
    first = bench.tokens.token(UPSTREAM)
    daemon.refusal = ("entra-unreachable", "down", False, 4.0)
    bench.clock.advance(3590)
    assert bench.tokens.token(UPSTREAM) is first
    bench.until(lambda: len(daemon.asked) == 2)
    bench.clock.advance(6)
    with pytest.raises(TokenUnavailable) as caught:
        bench.tokens.token(UPSTREAM)
    assert (caught.value.cause, caught.value.retry_after_s) == ("entra-unreachable", 4.0)


def test_a_refusal_says_whose_it_is_to_mend(bench: Bench, daemon: Daemon) -> None:
    daemon.refusal = ("7000215", "wrong secret", True, None)
    with pytest.raises(TokenUnavailable) as caught:
        bench.tokens.token(UPSTREAM)
    assert caught.value.configuration
    assert (caught.value.text, caught.value.retry_after_s) == ("wrong secret", None)
    daemon.refusal = None
    assert bench.tokens.token(UPSTREAM).value == "token-1"


def test_only_the_token_that_failed_is_dropped(bench: Bench, daemon: Daemon) -> None:
    first = bench.tokens.token(UPSTREAM)
    bench.tokens.drop(UPSTREAM, first)
    second = bench.tokens.token(UPSTREAM)
    assert second.value == "token-2"
    bench.tokens.drop(UPSTREAM, first)  # a late 401 of the old one
    assert bench.tokens.token(UPSTREAM) is second
    bench.until(lambda: daemon.dropped == ["token-1", "token-1"])


def test_a_drop_of_an_upstream_never_asked_for_is_nothing(bench: Bench) -> None:
    bench.tokens.drop(UPSTREAM, Token("x", 0.0, ""))


def test_without_the_daemon_the_held_token_serves_to_its_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.identity.tokens._AWAY_WAIT_S", 0.01)
    monkeypatch.setattr("relayd.cache.client.CALL_TIMEOUT_S", 0.01)
    with Daemon(bench.path, bench.clock).loop:
        bench.client.start()
        assert bench.client.wait_connected(10)
        first = bench.tokens.token(UPSTREAM)
    bench.clock.advance(3594)
    assert bench.tokens.token(UPSTREAM) is first
    bench.tokens.drop(UPSTREAM, Token("other", 0.0, ""))
    bench.clock.advance(2)
    with pytest.raises(TokenUnavailable) as caught:
        bench.tokens.token(UPSTREAM)
    assert (caught.value.cause, caught.value.configuration) == ("cache-unavailable", False)


def test_a_daemon_that_dies_while_asked_is_asked_again(bench: Bench) -> None:
    first = Daemon(bench.path, bench.clock)
    first.keeps = True
    got: list[Token] = []
    thread = threading.Thread(target=lambda: got.append(bench.tokens.token(UPSTREAM)))
    with first.loop:
        bench.client.start()
        thread.start()
        bench.until(lambda: bool(first.asked))
    with Daemon(bench.path, bench.clock).loop:
        thread.join(10)
    assert [token.value for token in got] == ["token-1"]


def test_a_new_daemon_learns_what_is_in_use(bench: Bench) -> None:
    with Daemon(bench.path, bench.clock).loop:
        bench.client.start()
        bench.tokens.token(UPSTREAM)
    second = Daemon(bench.path, bench.clock)
    with second.loop:
        # It may not have noticed yet that the first has gone.
        bench.until(lambda: bool(bench.tokens.token(UPSTREAM)) and len(second.asked) == 1)


def test_warming_asks_before_anybody_needs_it(bench: Bench, daemon: Daemon) -> None:
    bench.tokens.warm([UPSTREAM])
    bench.until(lambda: len(daemon.asked) == 1)
    assert bench.tokens.token(UPSTREAM).value == "token-1"
    assert len(daemon.asked) == 1


def test_a_short_life_is_used_all_the_same(bench: Bench, daemon: Daemon) -> None:
    daemon.life_s = 10.0
    first = bench.tokens.token(UPSTREAM)
    bench.clock.advance(8)
    assert bench.tokens.token(UPSTREAM) is first
    bench.clock.advance(1.5)
    assert bench.tokens.token(UPSTREAM) is not first


def test_an_operators_refresh_replaces_what_is_held(bench: Bench, daemon: Daemon) -> None:
    bench.tokens.token(UPSTREAM)
    assert bench.tokens.refresh(UPSTREAM).value == "token-2"
    assert bench.tokens.token(UPSTREAM).value == "token-2"
    assert len(daemon.asked) == 2


def test_a_refresh_that_fails_leaves_the_held_one_in_use(bench: Bench, daemon: Daemon) -> None:
    bench.tokens.token(UPSTREAM)
    daemon.refusal = ("7000222", "the client secret has expired", True, None)
    with pytest.raises(TokenUnavailable, match="expired"):
        bench.tokens.refresh(UPSTREAM)
    assert bench.tokens.token(UPSTREAM).value == "token-1"


def test_what_an_operator_forgets_is_asked_for_anew(bench: Bench, daemon: Daemon) -> None:
    bench.tokens.token(UPSTREAM)
    assert bench.tokens.forget(UPSTREAM) is True
    assert daemon.forgotten == 1
    assert bench.tokens.token(UPSTREAM).value == "token-2"


def test_a_token_changed_for_everybody_is_changed_here_too(bench: Bench, daemon: Daemon) -> None:
    assert bench.tokens.token(UPSTREAM).fingerprint == "print"
    daemon.tell_changed("another credential's")
    bench.tokens.forget(Upstream(name="other"))  # an answer on the same connection comes after it
    assert bench.tokens.token(UPSTREAM).value == "token-1"
    daemon.tell_changed("print")
    bench.until(lambda: bench.tokens.token(UPSTREAM).value == "token-2")


def test_a_token_does_not_show_itself() -> None:
    token = Token("hush", 1.0, "print")
    assert "hush" not in repr(token)
    assert parse_token(token.payload()) == token
    with pytest.raises(Garbage):
        parse_token({"value": "x"})


def test_claims_are_read_without_trust() -> None:
    found = claims_of(jwt(1, ("Mail.Send",), 77))
    assert found == Claims(("Mail.Send",), 77, tenant=TENANT_ID)


def unsigned(members: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(members).encode()).decode()
    return f"a.{body}.c"


@settings(deadline=None)
@given(st.text() | st.binary().map(lambda raw: "a." + base64.urlsafe_b64encode(raw).decode()))
def test_what_is_no_token_has_no_claims(value: str) -> None:
    assert claims_of(value) == Claims()


def test_claims_name_the_application_as_exchange_and_entra_know_it() -> None:
    claims = {"appid": "app", "tid": "ten", "aud": "https://graph.example", "oid": "sp"}
    found = claims_of(unsigned(claims))
    assert (found.app_id, found.tenant, found.audience) == ("app", "ten", "https://graph.example")
    assert found.object_id == "sp"
    assert claims_of(unsigned({"azp": "app2"})).app_id == "app2"


def test_a_claim_that_would_steer_a_terminal_is_none() -> None:
    assert claims_of(unsigned({"appid": "\x1b[2J", "tid": 7})) == Claims()


@pytest.mark.parametrize("members", [[], {"roles": "x", "exp": "y"}, {"roles": [1, None]}])
def test_odd_claims_are_no_claims(members: object) -> None:
    assert claims_of(unsigned(members)) == Claims()
