"""The socket's words reach the token cache and its outcomes come back whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.cache.client import Client
from relayd.cache.frames import Payload, Refused
from relayd.cache.server import Server
from relayd.config.model import Config, Secret, Upstream
from relayd.errors import TokenUnavailable
from relayd.identity.credentials import credential_for
from relayd.identity.desk import TokenDesk
from relayd.identity.tokencache import Fetched, TokenCache
from relayd.identity.tokens import parse_token, unavailable
from tests.cache_loop import Turning
from tests.fake_entra import jwt

UPSTREAM = Upstream(name="contoso", tenant="t", client_id="app", client_secret=Secret("s1"))
ASK: Payload = {
    "upstream": "contoso",
    "credential": credential_for(Config(upstream=(UPSTREAM,)), UPSTREAM).payload(),
}


class Entra:
    """Says what `says` holds, at once, and counts."""

    def __init__(self) -> None:
        self.says = Fetched(jwt(1), 3600.0)
        self.count = 0


@pytest.fixture
def entra() -> Entra:
    return Entra()


@pytest.fixture
def desk(entra: Entra) -> TokenDesk:
    def start(_credential: object, landed: object) -> None:
        entra.count += 1
        assert callable(landed)
        landed(entra.says)

    return TokenDesk(TokenCache(start))


@pytest.fixture
def client(desk: TokenDesk, tmp_path: Path) -> Iterator[Client]:
    path = str(tmp_path / "cache.sock")
    with Turning(Server(path, desk.handlers(), on_close=desk.left), desk.tick):
        made = Client(path)
        made.start()
        assert made.wait_connected(10)
        yield made
        made.close()


def test_a_token_crosses_the_socket(client: Client, entra: Entra) -> None:
    token = parse_token(client.call("token", ASK, timeout_s=10))
    assert token.value == jwt(1)
    assert parse_token(client.call("token", ASK, timeout_s=10)) == token
    assert entra.count == 1


def test_a_refusal_crosses_it_with_everything_a_courier_needs(client: Client, entra: Entra) -> None:
    entra.says = Fetched(TokenUnavailable("7000215", "wrong secret", configuration=True))
    with pytest.raises(Refused) as caught:
        client.call("token", ASK, timeout_s=10)
    why = unavailable(caught.value)
    assert (why.cause, why.text, why.configuration) == ("7000215", "wrong secret", True)
    assert why.retry_after_s is not None
    assert 59 < why.retry_after_s < 60.001


def test_refresh_asks_entra_again(client: Client, entra: Entra) -> None:
    client.call("token", ASK, timeout_s=10)
    entra.says = Fetched(jwt(2), 3600.0)
    assert parse_token(client.call("token.refresh", ASK, timeout_s=10)).value == jwt(2)


def test_a_dropped_token_is_not_handed_out_again(client: Client, entra: Entra) -> None:
    token = parse_token(client.call("token", ASK, timeout_s=10))
    client.call(
        "token.drop", {"fingerprint": token.fingerprint, "value": token.value}, timeout_s=10
    )
    with pytest.raises(Refused, match="token-refused"):
        client.call("token", ASK, timeout_s=10)


def test_half_a_credential_is_refused(client: Client) -> None:
    with pytest.raises(Refused, match="malformed"):
        client.call("token", {"upstream": "contoso", "credential": {}}, timeout_s=10)


def test_the_status_names_the_upstream_and_no_secret(client: Client, desk: TokenDesk) -> None:
    client.call("token", ASK, timeout_s=10)
    shown = str(desk.status())
    assert "contoso" in shown
    assert "Mail.Send" in shown
    assert "s1" not in shown
    assert jwt(1) not in shown


def test_forgetting_tells_whether_one_was_held_and_the_next_is_new(
    client: Client, entra: Entra
) -> None:
    assert client.call("token.forget", ASK, timeout_s=10) == {"held": False}
    client.call("token", ASK, timeout_s=10)
    assert client.call("token.forget", ASK, timeout_s=10) == {"held": True}
    client.call("token", ASK, timeout_s=10)
    assert entra.count == 2


@pytest.mark.parametrize("method", ["token.refresh", "token.forget"])
def test_every_worker_hears_of_it_before_the_operator_does(
    client: Client, tmp_path: Path, method: str
) -> None:
    heard = threading.Event()
    prints: list[object] = []

    def hear(payload: Payload) -> None:
        prints.append(payload["fingerprint"])
        heard.set()

    other = Client(str(tmp_path / "cache.sock"))
    other.on_push("token.changed", hear)
    other.start()
    try:
        token = parse_token(other.call("token", ASK, timeout_s=10))
        client.call(method, ASK, timeout_s=10)
        assert heard.wait(10)
        assert prints == [token.fingerprint]
    finally:
        other.close()


def test_a_refresh_that_failed_changes_nothing_for_anybody(client: Client, entra: Entra) -> None:
    prints: list[object] = []
    client.on_push("token.changed", prints.append)
    client.call("token", ASK, timeout_s=10)
    entra.says = Fetched(TokenUnavailable("7000215", "wrong secret", configuration=True))
    with pytest.raises(Refused):
        client.call("token.refresh", ASK, timeout_s=10)
    client.call("token", ASK, timeout_s=10)  # its answer comes after any push
    assert prints == []


def test_who_has_gone_is_told_nothing_more(desk: TokenDesk, client: Client, tmp_path: Path) -> None:
    other = Client(str(tmp_path / "cache.sock"))
    other.start()
    other.call("token", ASK, timeout_s=10)
    client.call("token", ASK, timeout_s=10)
    other.close()
    for _ in range(2000):
        if len(desk._askers) == 1:
            break
        client.call("token", ASK, timeout_s=10)  # a turn of the server's loop
    assert len(desk._askers) == 1
