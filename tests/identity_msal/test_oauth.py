"""Whatever Entra does and whatever MSAL makes of it, a token or TokenUnavailable comes out.

Run by tools/msal_versions.sh against the MSAL of Debian 12, of Debian 13 and the newest, so
only pytest, msal, requests and cryptography may be imported here. Each test is a row of what
was seen to differ between those versions.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.config.model import Secret
from relayd.errors import TokenUnavailable
from relayd.identity import oauth
from relayd.identity.credentials import Credential
from relayd.identity.oauth import Entra
from tests.fake_entra import (
    SECRET,
    TENANT,
    FakeEntra,
    Said,
    expired_secret,
    in_json,
    jwt,
    portal,
    refusal,
    throttled_in_plain_text,
    unavailable,
    wrong_secret,
)


@pytest.fixture
def entra(tmp_path: Path) -> Iterator[FakeEntra]:
    with FakeEntra(tmp_path) as fake:
        yield fake


@pytest.fixture
def client() -> Iterator[Entra]:
    made = Entra()
    yield made
    made.close()


def credential(entra: FakeEntra, **changes: object) -> Credential:
    made = Credential(
        authority=entra.authority,
        tenant=TENANT,
        client_id="app",
        kind="secret",
        secret=Secret(SECRET),
        next_secret=Secret(),
        scope="https://graph.microsoft.com/.default",
        ca_file=entra.ca_file,
        proxy="",
        token_timeout_s=10.0,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # fields by name


def refused(client: Entra, who: Credential) -> TokenUnavailable:
    with pytest.raises(TokenUnavailable) as caught:
        client.fetch(who)
    assert SECRET not in caught.value.text
    return caught.value


def test_a_token_comes_with_its_life(entra: FakeEntra, client: Entra) -> None:
    issued = client.fetch(credential(entra))
    assert issued.value == jwt(1)
    assert issued.life_s == 3599
    form = entra.token_requests[0]
    assert form["grant_type"] == "client_credentials"
    assert form["scope"] == "https://graph.microsoft.com/.default"


def test_nobody_asks_microsoft_whether_our_authority_exists(
    entra: FakeEntra, client: Entra
) -> None:
    client.fetch(credential(entra))
    assert [line.split()[0] for line in entra.requests] == ["GET", "POST"]


def test_each_fetch_is_a_new_token_though_msal_would_cache_it(
    entra: FakeEntra, client: Entra
) -> None:
    assert client.fetch(credential(entra)).value == jwt(1)
    assert client.fetch(credential(entra)).value == jwt(2)
    assert len([line for line in entra.requests if line.startswith("GET")]) == 1


def test_a_short_life_is_told_as_it_is(entra: FakeEntra, client: Entra) -> None:
    entra.life_s = 200  # less than the 5 min under which MSAL calls a token expired
    assert client.fetch(credential(entra)).life_s == 200


def test_a_life_in_quotes_is_understood(entra: FakeEntra, client: Entra) -> None:
    members = {"token_type": "Bearer", "expires_in": "3599", "access_token": jwt(1)}
    entra.token_answers.append(in_json(200, members))
    assert client.fetch(credential(entra)).life_s == 3599


@pytest.mark.parametrize(
    "members", [{"expires_in": 10**400}, {"access_token": "a\r\nb"}, {"access_token": "tok\u00e9n"}]
)
def test_a_token_that_cannot_be_used_is_none(
    entra: FakeEntra, client: Entra, members: dict[str, object]
) -> None:
    usual = {"token_type": "Bearer", "expires_in": 3599, "access_token": jwt(1)}
    entra.token_answers.append(in_json(200, usual | members))
    assert refused(client, credential(entra)).cause == "entra-unexpected"


@pytest.mark.parametrize(
    ("said", "cause", "configuration"),
    [
        (wrong_secret(), "7000215", True),
        (expired_secret(), "7000222", True),
        (refusal(400, "unauthorized_client", 700016, "Application not found."), "700016", True),
        (refusal(400, "invalid_scope", 70011, "The scope is not valid."), "70011", True),
        (refusal(400, "invalid_grant", 53003, "Blocked."), "53003", True),
        (refusal(400, "invalid_client", 123456789, "News."), "123456789", True),
        (refusal(400, "news", 1234567, "Something new."), "1234567", False),
        (refusal(503, "temporarily_unavailable", 90033, "Try later."), "90033", False),
        (refusal(400, "invalid_request", 50196, "Loop."), "50196", False),
        (in_json(400, {"error": "invalid_client"}), "invalid_client", True),
        (in_json(400, {"error": "server_error"}), "server_error", False),
        (unavailable(), "entra-unreachable", False),
        (unavailable(500), "entra-unreachable", False),
        (unavailable(502), "entra-unreachable", False),
        (in_json(503, {"error": "invalid_client"}), "entra-unreachable", False),
        (in_json(503, {}), "entra-unreachable", False),
        (in_json(503, {"error": None}), "entra-unreachable", False),
        (throttled_in_plain_text(), "throttled", False),
        (refusal(429, "temporarily_unavailable", 90055, "Slow down."), "throttled", False),
        (in_json(429, {"error": "slow_down"}), "throttled", False),
        (portal(), "entra-unexpected", False),
        (Said(302, b"", {"Location": "https://portal.example/"}), "entra-unexpected", False),
        (Said(404, b"<html>", {}), "entra-unexpected", False),
        (Said(200, b"", {}), "entra-unexpected", False),
        (Said(200, b"null", {}), "entra-unexpected", False),
        (Said(200, b"[]", {}), "entra-unexpected", False),
        (Said(200, b"\xff\xfe", {}), "entra-unexpected", False),
        (Said(200, b"[" * 50_000, {}), "entra-unexpected", False),
        (in_json(200, {"access_token": 5, "expires_in": 3599}), "entra-unexpected", False),
        (in_json(200, {"access_token": "t"}), "entra-unexpected", False),
        (in_json(200, {"access_token": "t", "expires_in": -1}), "entra-unexpected", False),
        (in_json(200, {"access_token": "t", "expires_in": "soon"}), "entra-unexpected", False),
        (in_json(400, {"error": 5, "error_codes": "x"}), "entra-unexpected", False),
        (Said(200, b"a" * 70_000, {}), "entra-unreachable", False),
        (Said(200, b"{", {}, announced=100), "entra-unreachable", False),
    ],
)
def test_every_answer_of_the_token_endpoint_has_its_cause(
    entra: FakeEntra, client: Entra, said: Said, cause: str, *, configuration: bool
) -> None:
    entra.token_answers.append(said)
    why = refused(client, credential(entra))
    assert (why.cause, why.configuration) == (cause, configuration)
    # Mended in the portal a moment later: MSAL would replay the refusal for up to a minute.
    assert client.fetch(credential(entra)).value == jwt(2)


@pytest.mark.parametrize(
    ("said", "cause", "configuration"),
    [
        (refusal(400, "invalid_tenant", 90002, "Tenant not found."), "90002", True),
        (refusal(400, "invalid_request", 900023, "Neither GUID nor domain."), "900023", True),
        (unavailable(), "entra-unreachable", False),
        (in_json(503, {"a": 1}), "entra-unreachable", False),
        (throttled_in_plain_text(), "throttled", False),
        (portal(), "entra-unexpected", False),
        (in_json(200, {}), "entra-unexpected", False),
        (Said(302, b"", {"Location": "https://portal.example/"}), "entra-unexpected", False),
    ],
)
def test_every_answer_of_discovery_has_its_cause(
    entra: FakeEntra, client: Entra, said: Said, cause: str, *, configuration: bool
) -> None:
    entra.discovery_answers.append(said)
    why = refused(client, credential(entra))
    assert (why.cause, why.configuration) == (cause, configuration)
    assert client.fetch(credential(entra)).value == jwt(1)


@pytest.mark.parametrize(
    "said", [wrong_secret(), unavailable(), throttled_in_plain_text(), portal()]
)
def test_an_aging_token_hides_no_failure_and_raises_nothing_strange(
    entra: FakeEntra, client: Entra, said: Said
) -> None:
    entra.life_s, entra.refresh_in = 7200, -1
    client.fetch(credential(entra))
    entra.token_answers.append(said)
    refused(client, credential(entra))
    assert client.fetch(credential(entra)).value == jwt(3)


def test_a_wrong_tenant_says_so(entra: FakeEntra, client: Entra) -> None:
    why = refused(client, credential(entra, tenant="nobody.example"))
    assert (why.cause, why.configuration) == ("90002", True)
    assert "tenant" in why.text


def test_the_text_says_what_to_do_and_names_the_trace(entra: FakeEntra, client: Entra) -> None:
    entra.token_answers.append(wrong_secret())
    why = refused(client, credential(entra))
    assert "Value (not the Secret ID)" in why.text
    assert "99999999-8888" in why.text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("60", 60.0), ("0", None), ("999999", 3600.0), ("soon", None), ("", None), ("-5", None)],
)
def test_retry_after_in_seconds_is_obeyed(
    entra: FakeEntra, client: Entra, value: str, seconds: float | None
) -> None:
    entra.token_answers.append(throttled_in_plain_text(value))
    assert refused(client, credential(entra)).retry_after_s == seconds


def test_retry_after_as_a_date_is_read_by_the_servers_clock(
    entra: FakeEntra, client: Entra
) -> None:
    # int() of this raises inside MSAL 1.21. The first Date header is the server's own.
    entra.token_answers.append(throttled_in_plain_text("Fri, 31 Dec 2049 23:59:59 GMT"))
    assert refused(client, credential(entra)).retry_after_s == 3600.0


def test_a_503_with_retry_after_keeps_it(entra: FakeEntra, client: Entra) -> None:
    entra.token_answers.append(unavailable(503, Retry_After="120"))
    assert refused(client, credential(entra)).retry_after_s == 120.0


def test_a_host_that_is_down_is_unreachable(entra: FakeEntra, client: Entra) -> None:
    why = refused(client, credential(entra, authority="https://127.0.0.1:1"))
    assert (why.cause, why.configuration) == ("entra-unreachable", False)
    assert "Connection refused" in why.text


def test_a_name_that_does_not_resolve_is_named(
    entra: FakeEntra, client: Entra, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    why = refused(client, credential(entra))
    assert why.cause == "entra-unreachable"
    assert "cannot be resolved" in why.text


def test_a_server_that_never_answers_is_given_up_in_time(entra: FakeEntra, client: Entra) -> None:
    entra.gate.clear()
    why = refused(client, credential(entra, token_timeout_s=0.2))
    assert (why.cause, why.configuration) == ("entra-unreachable", False)
    assert "0.2 s" in why.text


def test_a_server_that_trickles_is_given_up_in_time(entra: FakeEntra, client: Entra) -> None:
    entra.token_answers.append(Said(200, b" " * 10_000, {}, trickle_s=0.01))
    why = refused(client, credential(entra, token_timeout_s=0.2))
    assert (why.cause, why.configuration) == ("entra-unreachable", False)


@pytest.mark.parametrize(
    "begin",
    [
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        b"HTTP/1.0 200 OK\r\n\r\n",
    ],
)
def test_an_answer_without_end_is_given_up_in_time_wherever_it_trickles(
    begin: bytes, entra: FakeEntra, client: Entra
) -> None:
    entra.token_answers.append(Said(200, b" " * 500, {}, trickle_s=0.01, begin=begin))
    why = refused(client, credential(entra, token_timeout_s=0.5))
    assert why.cause == "entra-unreachable"
    assert "within 0.5 s" in why.text


def test_connections_that_are_closed_are_not_remembered() -> None:
    lines = oauth._Lines()
    for _ in range(5):
        with socket.socket() as sock:
            lines.add(sock)
            lines.cut()
    assert len(lines._sockets) == 1


@pytest.mark.parametrize("is_proxy", [True, False])
def test_a_connection_that_never_gets_open_is_given_up_in_time_and_closed(
    is_proxy: bool,  # noqa: FBT001  a column
    entra: FakeEntra,
    client: Entra,
) -> None:
    closed = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            sock, _ = listener.accept()
            try:
                sock.recv(10)
                sock.sendall(b"HTTP/1.1 200 OK\r\nX: " if is_proxy else b"\x16\x03\x03\x3f\x00\x02")
                for _ in range(500):
                    sock.sendall(b"x")
                    closed.wait(0.01)
            except OSError:
                closed.set()
            finally:
                sock.close()

        threading.Thread(target=trickle, daemon=True).start()
        way = f"127.0.0.1:{listener.getsockname()[1]}"
        there = {"proxy": f"http://{way}"} if is_proxy else {"authority": f"https://{way}"}
        why = refused(client, credential(entra, token_timeout_s=1.5, **there))
        assert closed.wait(10)

    assert why.cause == "entra-unreachable"
    assert "within 1.5 s" in why.text


def test_the_alarm_of_an_answer_that_came_is_taken_back(entra: FakeEntra, client: Entra) -> None:
    client.fetch(credential(entra))

    alarms = [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
    assert all(one.finished.is_set() for one in alarms)


def test_a_certificate_nobody_vouches_for_is_not_trusted(entra: FakeEntra, client: Entra) -> None:
    why = refused(client, credential(entra, ca_file=""))
    assert why.cause == "entra-tls"
    assert not entra.token_requests


def test_a_ca_file_that_is_not_there_is_the_administrators(entra: FakeEntra, client: Entra) -> None:
    why = refused(client, credential(entra, ca_file="/nowhere/ca.pem"))
    assert (why.cause, why.configuration) == ("entra-tls", True)


def test_a_proxy_that_is_away_is_named_without_its_password(
    entra: FakeEntra, client: Entra
) -> None:
    why = refused(client, credential(entra, proxy="http://user:hush@127.0.0.1:1"))
    assert why.cause == "proxy"
    assert "127.0.0.1:1" in why.text
    assert "hush" not in why.text


def test_the_environment_decides_nothing(
    entra: FakeEntra, client: Entra, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, "/nowhere/ca.pem")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("MSAL_FORCE_REGION", "westeurope")
    assert client.fetch(credential(entra)).value == jwt(1)


def test_a_redirected_secret_is_not_sent_on(entra: FakeEntra, client: Entra) -> None:
    entra.token_answers.append(Said(307, b"", {"Location": f"{entra.authority}/elsewhere"}))
    assert refused(client, credential(entra)).cause == "entra-unexpected"
    assert len(entra.token_requests) == 1


@pytest.mark.parametrize("authority", ["http://localhost", "localhost", "", "https://"])
def test_an_authority_that_makes_no_sense_is_the_administrators(
    entra: FakeEntra, client: Entra, authority: str
) -> None:
    why = refused(client, credential(entra, authority=authority))
    assert (why.cause, why.configuration) == ("credential", True)


def test_other_kinds_of_credentials_are_refused_in_words(entra: FakeEntra, client: Entra) -> None:
    why = refused(client, credential(entra, kind="certificate"))
    assert (why.cause, why.configuration) == ("credential", True)


def test_no_secret_at_all_is_the_administrators(entra: FakeEntra, client: Entra) -> None:
    why = refused(client, credential(entra, secret=Secret()))
    assert (why.cause, why.configuration) == ("credential", True)
    assert not entra.requests


@pytest.mark.parametrize("first", [wrong_secret(), expired_secret()])
def test_the_next_secret_is_tried_when_the_first_is_refused(
    entra: FakeEntra, client: Entra, first: Said
) -> None:
    entra.secrets = {"next"}
    entra.token_answers.append(first)
    who = credential(entra, next_secret=Secret("next"))
    assert client.fetch(who).value == jwt(2)
    assert client.uses_next_secret(who.fingerprint())
    # From now on it goes first, so that Entra need not refuse once an hour …
    assert client.fetch(who).value == jwt(3)
    # … until it is refused in its turn.
    entra.secrets = {SECRET}
    assert client.fetch(who).value == jwt(5)
    assert not client.uses_next_secret(who.fingerprint())


def test_the_next_secret_is_not_spent_on_other_troubles(entra: FakeEntra, client: Entra) -> None:
    entra.token_answers.append(unavailable())
    who = credential(entra, next_secret=Secret("next"))
    assert refused(client, who).cause == "entra-unreachable"
    assert len(entra.token_requests) == 1


def test_both_secrets_refused_tells_of_the_first(entra: FakeEntra, client: Entra) -> None:
    entra.token_answers.append(expired_secret())
    who = credential(entra, next_secret=Secret("wrong too"))
    assert refused(client, who).cause == "7000222"
    assert len(entra.token_requests) == 2


def test_a_changed_secret_is_another_credential(entra: FakeEntra, client: Entra) -> None:
    client.fetch(credential(entra))
    assert refused(client, credential(entra, secret=Secret("other"))).cause == "7000215"
    assert client.fetch(credential(entra)).value == jwt(3)


def test_different_credentials_may_be_fetched_at_once(entra: FakeEntra, client: Entra) -> None:
    values: list[object] = []
    entra.gate.clear()
    threads = [
        threading.Thread(
            target=lambda n=n: values.append(client.fetch(credential(entra, client_id=f"{n}")))
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    entra.gate.set()
    for thread in threads:
        thread.join()
    assert len(values) == 8


def test_nothing_shows_a_token_or_a_secret(entra: FakeEntra, client: Entra) -> None:
    who = credential(entra)
    shown = repr(client.fetch(who)) + repr(who)
    assert SECRET not in shown
    assert jwt(1) not in shown
    assert SECRET in json.dumps(who.payload())  # on the socket it must be
