"""Listeners with certificates, for tests: configurations, pairs in files, what a context shows."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

from relayd.clock import FakeClock
from relayd.config.model import Config, Listener, Server, TlsSettings
from relayd.net.certificates import Leaf, make_ca, make_leaf

LAN = Listener(name="lan", address=("192.0.2.7:25",), tls="opportunistic")
WRAPPED = Listener(name="smtps", address=("[2001:db8::7]:465",), tls="implicit")
PLAIN = Listener(name="plain", address=("127.0.0.1:2525",), tls="off")


def config_with(folder: Path, *listeners: Listener, **settings: object) -> Config:
    return Config(
        server=Server(hostname="relay.example.lan", state_dir=str(folder)),
        listener=listeners or (LAN,),
        tls=TlsSettings(**settings),  # type: ignore[arg-type]  # a test's keywords
    )


def leaf_for(name: str, *, days: int = 30, clock: FakeClock | None = None) -> Leaf:
    when = clock or FakeClock()
    return make_leaf(make_ca("a test", days=400, clock=when), [name], days=days, clock=when)


def put(path: Path, octets: bytes) -> str:
    scratch = path.with_suffix(".new")
    scratch.write_bytes(octets)
    scratch.rename(path)
    return str(path)


def pair_in(folder: Path, leaf: Leaf) -> dict[str, object]:
    return {
        "source": "file",
        "certificate": put(folder / "cert.pem", leaf.certificate_pem),
        "key": put(folder / "key.pem", leaf.key_pem),
    }


def shown_by(context: ssl.SSLContext | None) -> bytes:
    """Shake hands with a context and return the certificate it shows, DER."""
    assert context is not None
    here, there = socket.socketpair()
    here.settimeout(10)
    there.settimeout(10)

    def serve() -> None:
        with context.wrap_socket(there, server_side=True) as sock:
            sock.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    with client.wrap_socket(here) as sock:
        der = sock.getpeercert(binary_form=True)
        sock.send(b"x")
    thread.join(10)
    assert der is not None
    return der


def der_of(leaf: Leaf) -> bytes:
    return ssl.PEM_cert_to_DER_cert(leaf.certificate_pem.decode("ascii"))
