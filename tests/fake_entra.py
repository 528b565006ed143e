"""A tiny Entra on localhost that fails as the real one does; needs only cryptography.

    with FakeEntra(folder) as entra:
        entra.token_answers.append(throttled_in_plain_text())
        …  entra.authority, entra.ca_file, entra.token_requests

Scripted answers are used up first, then it behaves: discovery for `tenant`, tokens for those
who know one of `secrets`.
"""

from __future__ import annotations

import base64
import collections
import datetime as dt
import ipaddress
import json
import ssl
import threading
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TENANT = "contoso.onmicrosoft.com"
TENANT_ID = "11111111-2222-3333-4444-555555555555"
SECRET = "the-right-secret~value"
TRACE = "99999999-8888-7777-6666-555555555555"


@dataclass(frozen=True)
class Said:
    """An HTTP answer. announced: Content-Length, when it is to be a lie; trickle_s: between
    octets; begin: octets in the place of status and headers.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    announced: int | None = None
    trickle_s: float = 0.0
    begin: bytes = b""


def in_json(status: int, members: object, **headers: str) -> Said:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Said(status, json.dumps(members).encode(), {"Content-Type": "application/json"} | named)


def refusal(status: int, error: str, code: int, words: str, **headers: str) -> Said:
    """Return an error as Entra words it."""
    description = f"AADSTS{code}: {words} Trace ID: {TRACE} Correlation ID: {TRACE} Timestamp: …"
    members = {
        "error": error,
        "error_description": description,
        "error_codes": [code],
        "trace_id": TRACE,
        "correlation_id": TRACE,
    }
    return in_json(status, members, **headers)


def wrong_secret() -> Said:
    return refusal(401, "invalid_client", 7000215, "Invalid client secret provided.")


def expired_secret() -> Said:
    return refusal(401, "invalid_client", 7000222, "The provided client secret keys are expired.")


def unavailable(status: int = 503, **headers: str) -> Said:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Said(status, b"Service Unavailable", {"Content-Type": "text/plain"} | named)


def throttled_in_plain_text(retry_after: str = "60") -> Said:
    return Said(
        429, b"Too Many Requests", {"Content-Type": "text/plain", "Retry-After": retry_after}
    )


def portal() -> Said:
    """What a hotel's network answers."""
    return Said(200, b"<html>Please sign in to the network</html>", {"Content-Type": "text/html"})


def jwt(number: int, roles: tuple[str, ...] = ("Mail.Send",), expires_at: int = 0) -> str:
    def part(members: Mapping[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=").decode()

    body = {"roles": list(roles), "exp": expires_at, "n": number, "tid": TENANT_ID}
    return f"{part({'alg': 'none'})}.{part(body)}.c2ln"


class FakeEntra:
    """See above. Its lists may be looked at and changed at any time."""

    def __init__(self, folder: Path) -> None:
        self.secrets = {SECRET}
        self.life_s = 3599
        self.refresh_in: int | None = None
        self.token_answers: collections.deque[Said] = collections.deque()
        self.discovery_answers: collections.deque[Said] = collections.deque()
        self.token_requests: list[dict[str, str]] = []
        self.requests: list[str] = []
        self.gate = threading.Event()  # clear it: token requests wait
        self.gate.set()
        self.ca_file = str(folder / "ca.pem")
        context = _tls(folder)
        self._server = _Server(("127.0.0.1", 0), self)
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.port = self._server.server_address[1]
        self.authority = f"https://localhost:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def discover(self, tenant: str) -> Said:
        if self.discovery_answers:
            return self.discovery_answers.popleft()
        if tenant not in {TENANT, TENANT_ID}:
            return refusal(400, "invalid_tenant", 90002, f"Tenant '{tenant}' not found.")
        base = f"{self.authority}/{TENANT_ID}"
        return in_json(
            200,
            {
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
                "jwks_uri": f"{base}/discovery/v2.0/keys",
                "issuer": f"{base}/v2.0",
            },
        )

    def issue(self, form: dict[str, str]) -> Said:
        self.token_requests.append(form)
        number = len(self.token_requests)
        if not self.gate.wait(20):
            return unavailable()
        if self.token_answers:
            return self.token_answers.popleft()
        if form.get("client_secret") not in self.secrets:
            return wrong_secret()
        members: dict[str, object] = {
            "token_type": "Bearer",
            "expires_in": self.life_s,
            "ext_expires_in": self.life_s,
            "access_token": jwt(number),
        }
        if self.refresh_in is not None:
            members["refresh_in"] = self.refresh_in
        return in_json(200, members)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], entra: FakeEntra) -> None:
        self.entra = entra
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is the point of many tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 5
    wbufsize = -1
    disable_nagle_algorithm = True  # it makes each answer wait 40 ms for an ACK
    server: _Server

    def do_GET(self) -> None:
        self.server.entra.requests.append(f"GET {self.path}")
        tenant = self.path.split("/")[1]
        self._say(self.server.entra.discover(tenant))

    def do_POST(self) -> None:
        self.server.entra.requests.append(f"POST {self.path}")
        octets = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        form = dict(urllib.parse.parse_qsl(octets.decode()))
        self._say(self.server.entra.issue(form))

    def _say(self, said: Said) -> None:
        if said.begin:
            self.wfile.write(said.begin)
        else:
            self.send_response(said.status)
            for name, value in said.headers.items():
                self.send_header(name, value)
            length = len(said.body) if said.announced is None else said.announced
            self.send_header("Content-Length", str(length))
            self.end_headers()
        if said.trickle_s:
            never = threading.Event()
            for octet in said.body:
                self.wfile.write(bytes([octet]))
                self.wfile.flush()
                never.wait(said.trickle_s)
        else:
            self.wfile.write(said.body)
        self.close_connection = said.announced is not None or bool(said.begin)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing."""


def _tls(folder: Path) -> ssl.SSLContext:
    """Make a CA and a leaf for localhost; leave ca.pem in `folder`."""
    ca_key, leaf_key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
    leaf_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)

    def certificate(
        subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> bytes:
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(extension, critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)

    names = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    )
    (folder / "ca.pem").write_bytes(
        certificate(ca_name, ca_key, x509.BasicConstraints(ca=True, path_length=None))
    )
    key = leaf_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "leaf.pem").write_bytes(certificate(leaf_name, leaf_key, names) + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "leaf.pem")
    return context
