"""relayd.sandbox.server: over real TLS on port 0, in this process."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.sandbox.knobs import Knobs
from relayd.sandbox.server import Background, Options, Place, default_client_id
from tests.sandbox_client import SandboxClient, SandboxRefused
from tests.sandbox_lab import PLAIN

ALERTS = "alerts@contoso.com"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    background = Background(Options(state_dir=str(tmp_path), mailboxes=(ALERTS,)))
    try:
        yield background.start()
    finally:
        background.stop()


@pytest.fixture
def client(place: Place) -> Iterator[SandboxClient]:
    with client_of(place) as found:
        yield found


def client_of(place: Place) -> SandboxClient:
    return SandboxClient(
        place.host,
        place.port,
        place.control_key,
        place.ca_file,
        client_id=place.client_id,
        client_secret=place.client_secret,
        tenant=place.tenant,
    )


def raw_socket(place: Place) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=place.ca_file)
    plain = socket.create_connection((place.host, place.port), timeout=10)
    return context.wrap_socket(plain, server_hostname=place.host)


def read_all(peer: socket.socket) -> bytes:
    pieces = []
    while piece := peer.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def test_a_token_sends_a_message_that_arrives(client: SandboxClient) -> None:
    assert client.send_mime(ALERTS, PLAIN, client.token()) == (202, b"")
    (delivered,) = client.messages(recipient="ops@contoso.com", content=True)
    assert delivered.body == b"Since 10:00.\r\n"
    assert delivered.addresses == {"ops@contoso.com"}
    assert delivered.x_field("x-test") == "one"
    assert client.recipients() == {"ops@contoso.com": 1}
    assert client.counts()["connections"] == 1


def test_one_connection_serves_many_requests(client: SandboxClient) -> None:
    token = client.token()
    for _ in range(20):
        assert client.send_mime(ALERTS, PLAIN, token)[0] == 202
    assert client.duplicates_by("message-id") == 19
    assert client.in_flight_max(ALERTS) == 1
    assert len(client.wait_for(20, recipient="ops@contoso.com")) == 20
    assert client.wait_for_deliveries(20)["messages"] == 20


def test_the_control_api_needs_its_key(place: Place) -> None:
    with (
        SandboxClient(place.host, place.port, "wrong", place.ca_file) as stranger,
        pytest.raises(SandboxRefused, match="401"),
    ):
        stranger.knobs()


def test_a_fault_closes_the_connection_after_the_mail_went_out(client: SandboxClient) -> None:
    token = client.token()
    client.fault("commit-close")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        client.send_mime(ALERTS, PLAIN, token)
    assert client.counts()["messages"] == 1
    assert client.faults() == {"waiting": [], "happened": {"commit-close": 1}}


def test_a_client_that_hangs_up_does_not_stop_its_message(
    place: Place, client: SandboxClient
) -> None:
    token = client.token()
    client.fault("hang-commit", delay_s=0.1)
    body = base64.b64encode(PLAIN)
    with raw_socket(place) as peer:
        peer.sendall(
            f"POST /v1.0/users/{ALERTS}/sendMail HTTP/1.1\r\nHost: x\r\n"
            f"Content-Type: text/plain\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
    assert len(client.wait_for(1)) == 1


def test_two_pipelined_requests_are_answered_in_order(place: Place) -> None:
    with raw_socket(place) as peer:
        peer.sendall(
            b"GET /_sandbox/health HTTP/1.1\r\nHost: x\r\n\r\n"
            b"HEAD /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        answer = read_all(peer)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\nDate: ")
    assert answer.count(b"HTTP/1.1 404 Not Found") == 1
    assert answer.endswith(b"Connection: close\r\n\r\n")


def test_what_is_no_http_gets_400_and_is_closed(place: Place) -> None:
    with raw_socket(place) as peer:
        peer.sendall(b"EHLO there\r\n\r\n")
        assert read_all(peer).startswith(b"HTTP/1.1 400")


def test_a_careful_client_is_told_to_continue(place: Place, client: SandboxClient) -> None:
    with raw_socket(place) as peer:
        peer.sendall(
            b"POST /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert peer.recv(100).startswith(b"HTTP/1.1 100 Continue")
        peer.sendall(b"hi")
        assert b"HTTP/1.1 404" in read_all(peer)


def test_a_connection_lost_in_the_body_is_no_longer_in_flight(
    place: Place, client: SandboxClient
) -> None:
    token = client.token()
    with raw_socket(place) as peer:
        peer.sendall(
            f"POST /v1.0/users/{ALERTS}/sendMail HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {token}\r\nContent-Length: 100\r\n\r\nabc".encode()
        )
        while not client.counts()["mailboxes"].get(ALERTS, {}).get("in_flight"):
            pass
    while client.counts()["mailboxes"][ALERTS]["in_flight"]:
        pass
    assert client.in_flight_max(ALERTS) == 1


def test_connections_are_closed_without_a_word_when_asked(
    place: Place, client: SandboxClient
) -> None:
    client.knobs(requests_per_connection=2)
    with raw_socket(place) as peer:
        for _ in range(2):
            peer.sendall(b"GET /_sandbox/health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = read_all(peer)
    assert answer.count(b"200 OK") == 2
    assert b"Connection: close" not in answer


def test_idle_connections_are_closed_when_asked(place: Place, client: SandboxClient) -> None:
    client.knobs(keep_alive_s=0.01)
    with raw_socket(place) as peer:
        peer.sendall(b"GET /_sandbox/health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in read_all(peer)


def test_five_at_once_are_one_too_many(place: Place, client: SandboxClient) -> None:
    token = client.token()
    client.fault("latency", times=0, delay_s=0.2)
    results: list[int] = []

    def send() -> None:
        with client_of(place) as own:
            results.append(own.send_mime(ALERTS, PLAIN, token)[0])

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results.count(202) + results.count(429) == 8
    assert results.count(202) >= 4
    assert client.in_flight_max(ALERTS) <= 8


def test_the_inbox_page_is_served_plainly(place: Place, client: SandboxClient) -> None:
    client.send_mime(ALERTS, PLAIN, client.token())
    connection = http.client.HTTPConnection(place.inbox_host, place.inbox_port, timeout=10)
    try:
        connection.request("GET", "/mailbox/ops@contoso.com")
        assert b"On battery" in connection.getresponse().read()
    finally:
        connection.close()
    assert place.inbox_url == f"http://127.0.0.1:{place.inbox_port}/"


def test_a_bug_in_the_sandbox_is_a_500_and_the_next_request_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "is-a-folder"
    journal.mkdir()
    options = Options(state_dir=str(tmp_path / "state"), mailboxes=(ALERTS,), keep=str(journal))
    background = Background(options)
    place = background.start()
    try:
        with client_of(place) as client:
            token = client.token()
            assert client.send_mime(ALERTS, PLAIN, token)[0] == 500
            assert client.counts()["mailboxes"][ALERTS]["in_flight"] == 0
    finally:
        background.stop()
    assert "sandbox.broken" in capsys.readouterr().out


def test_any_free_port_of_ipv6_will_do(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 loopback here")
    background = Background(Options(state_dir=str(tmp_path), listen=("::1", 0), knobs=Knobs()))
    place = background.start()
    try:
        assert place.base == f"https://[::1]:{place.port}"
        with client_of(place) as client:
            client.mailbox(ALERTS, full=True)
            assert [each["full"] for each in client.mailboxes()] == [True]
            client.remove_mailbox(ALERTS)
            assert client.mailboxes() == []
    finally:
        background.stop()


def test_the_rest_of_the_client_does_what_it_says(client: SandboxClient) -> None:
    token = client.token()
    client.revoke_tokens()
    assert client.send_mime(ALERTS, PLAIN, token)[0] == 401
    assert client.requests()[-1]["status"] == 401
    client.fault("503", times=0)
    client.clear_faults()
    app = client.apps()[0]["client_id"]
    client.app(app, secrets=[])
    with pytest.raises(SandboxRefused, match="AADSTS7000215"):
        client.token()
    client.reset()
    assert client.counts()["token_requests"] == 0


def test_an_application_id_is_made_of_the_tenant() -> None:
    assert default_client_id("Contoso.com") == default_client_id("contoso.com")
    assert default_client_id("contoso.com") != default_client_id("fabrikam.com")
