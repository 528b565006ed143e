"""relayd.net.certificates: what is made is taken by the strictest client we have."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from relayd.clock import SYSTEM, FakeClock
from relayd.net.certificates import Authority, Leaf, make_ca, make_leaf, not_after


def handshake(leaf: Leaf, trusted_pem: bytes, name: str, folder: Path) -> None:
    """Shake hands in memory; raises ssl.SSLCertVerificationError."""
    pair = folder / "pair.pem"
    pair.write_bytes(leaf.certificate_pem + leaf.key_pem)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(pair)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.load_verify_locations(cadata=trusted_pem.decode())
    client_context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    done = set[str]()
    while len(done) < 2:
        for who, side in (("client", client), ("server", server)):
            try:
                side.do_handshake()
                done.add(who)
            except ssl.SSLWantReadError:
                pass


@pytest.mark.parametrize("name", ["relay.example.lan", "deep.wild.lan", "192.0.2.7", "2001:db8::7"])
def test_a_strict_client_takes_every_name_of_a_leaf(name: str, tmp_path: Path) -> None:
    authority = make_ca("test authority", days=10)
    names = ["relay.example.lan", "*.wild.lan", "192.0.2.7", "[2001:db8::7]"]
    leaf = make_leaf(authority, names, days=5)
    handshake(leaf, authority.certificate_pem, name, tmp_path)


def test_a_name_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    authority = make_ca("test authority", days=10)
    leaf = make_leaf(authority, ["relay.example.lan"], days=5)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(leaf, authority.certificate_pem, "other.example.lan", tmp_path)


def test_another_authority_of_the_same_name_is_not_trusted(tmp_path: Path) -> None:
    leaf = make_leaf(make_ca("twin", days=10), ["relay.lan"], days=5)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(leaf, make_ca("twin", days=10).certificate_pem, "relay.lan", tmp_path)


def test_an_authority_may_sign_leaves_and_nothing_below() -> None:
    certificate = x509.load_pem_x509_certificate(make_ca("root", days=3).certificate_pem)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert constraints.value.path_length == 0


def test_not_after_tells_the_day_that_was_asked_for() -> None:
    clock = FakeClock()
    assert not_after(make_ca("root", days=30, clock=clock).certificate_pem) == (
        clock.now + timedelta(days=30)
    )


def test_a_leaf_never_outlives_its_authority() -> None:
    authority = make_ca("root", days=30)
    leaf = make_leaf(authority, ["relay.lan"], days=400)
    assert not_after(leaf.certificate_pem) == not_after(authority.certificate_pem)


def test_a_device_whose_clock_is_hours_behind_takes_a_new_certificate(tmp_path: Path) -> None:
    ahead = FakeClock(now=SYSTEM.utcnow() + timedelta(hours=12))
    authority = make_ca("root", days=3, clock=ahead)
    leaf = make_leaf(authority, ["relay.lan"], days=2, clock=ahead)
    handshake(leaf, authority.certificate_pem, "relay.lan", tmp_path)


def test_a_long_name_is_cut_for_the_common_name_only() -> None:
    long_name = "a" * 60 + ".example.lan"
    authority = make_ca("root", days=3)
    leaf = x509.load_pem_x509_certificate(make_leaf(authority, [long_name], days=2).certificate_pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [long_name]


def test_two_leaves_share_neither_key_nor_serial() -> None:
    authority = make_ca("root", days=3)
    one, two = (make_leaf(authority, ["relay.lan"], days=2) for _ in range(2))
    assert one.key_pem != two.key_pem
    serials = {
        x509.load_pem_x509_certificate(leaf.certificate_pem).serial_number for leaf in (one, two)
    }
    assert len(serials) == 2


@pytest.mark.parametrize("names", [[], [""], ["höst.lan"]])
def test_names_no_certificate_can_bear_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="name"):
        make_leaf(make_ca("root", days=3), names, days=2)


@pytest.mark.parametrize("days", [0, -1])
def test_a_certificate_without_a_lifetime_is_refused(days: int) -> None:
    with pytest.raises(ValueError, match="at least a day"):
        make_ca("root", days=days)


def test_an_authority_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a name"):
        make_ca(" ", days=1)


def test_not_after_refuses_what_is_no_certificate() -> None:
    with pytest.raises(ValueError):
        not_after(b"nothing of the kind")


def test_an_authority_with_a_foreign_kind_of_key_is_refused() -> None:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505  # never used to sign
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    authority = Authority(make_ca("root", days=3).certificate_pem, pem)
    with pytest.raises(ValueError, match="not an EC key"):
        make_leaf(authority, ["relay.lan"], days=1)
