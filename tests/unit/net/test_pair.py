"""A chain and its key in files: what they say, and words for what is wrong with them."""

from __future__ import annotations

import ssl
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from relayd.clock import FakeClock
from relayd.net.certificates import Leaf, make_ca, make_leaf, not_after
from relayd.net.pair import Pair, facts, last_moment, marks, read, server_context, words
from tests.listener_tls import leaf_for, put

NAMES = ["relay.example.lan", "*.example.lan", "192.0.2.7", "::1", "2001:db8::7"]


def pair_of(folder: Path, leaf: Leaf, chain: bytes = b"") -> Pair:
    certificate = put(folder / "cert.pem", leaf.certificate_pem + chain)
    return Pair(certificate, put(folder / "key.pem", leaf.key_pem))


def test_names_and_end_are_those_of_the_leaf(tmp_path: Path) -> None:
    clock = FakeClock()
    ca = make_ca("a test", days=400, clock=clock)
    leaf = make_leaf(ca, NAMES, days=30, clock=clock)

    found = facts(pair_of(tmp_path, leaf, ca.certificate_pem))

    assert found.names == set(NAMES)
    assert found.end == not_after(leaf.certificate_pem)


@pytest.mark.parametrize("days", [-3000, 3000], ids=["expired", "not yet valid"])
def test_facts_do_not_depend_on_today(tmp_path: Path, days: int) -> None:
    clock = FakeClock(now=FakeClock().now + timedelta(days=days))
    leaf = leaf_for("a.example", clock=clock)
    assert facts(pair_of(tmp_path, leaf)).end == not_after(leaf.certificate_pem)


def test_looking_needs_no_cryptography(tmp_path: Path) -> None:
    leaf = leaf_for("a.example")
    pair = pair_of(tmp_path, leaf)
    code = (
        "import sys\n"
        "from relayd.net.pair import Pair, last_moment\n"
        "print(last_moment(Pair(*sys.argv[1:])).isoformat())\n"
        "assert 'cryptography' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, pair.certificate, pair.key]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == not_after(leaf.certificate_pem).isoformat()


def without_names(folder: Path, usage: x509.ObjectIdentifier) -> Pair:
    """Return a pair whose certificate has no names, and one extended key usage."""
    leaf = leaf_for("a.example")
    key = serialization.load_pem_private_key(leaf.key_pem, password=None)
    old = x509.load_pem_x509_certificate(leaf.certificate_pem)
    now = FakeClock().now.replace(microsecond=0)
    made = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.subject)
        .public_key(old.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=9))
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
        .sign(key, hashes.SHA256())  # type: ignore[arg-type]  # an EC key; make_leaf makes no other
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    return pair_of(folder, Leaf(pem, leaf.key_pem))


def test_a_certificate_without_names_has_none(tmp_path: Path) -> None:
    pair = without_names(tmp_path, ExtendedKeyUsageOID.SERVER_AUTH)
    assert facts(pair).names == set()


def test_the_end_of_a_certificate_that_is_not_for_servers_is_known_all_the_same(
    tmp_path: Path,
) -> None:
    pair = without_names(tmp_path, ExtendedKeyUsageOID.CLIENT_AUTH)
    with pytest.raises(ssl.SSLError):
        facts(pair)
    assert last_moment(pair) == FakeClock().now.replace(microsecond=0) + timedelta(days=9)


def test_a_pair_that_does_not_belong_together_says_nothing(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, Leaf(leaf_for("a").certificate_pem, leaf_for("b").key_pem))
    with pytest.raises(ssl.SSLError) as caught:
        last_moment(pair)
    assert words(caught.value) == "the key does not belong to the certificate"


def test_marks_change_with_either_file(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, leaf_for("a.example"))
    first = marks(pair)
    assert marks(pair) == first
    put(tmp_path / "key.pem", read(pair.key))
    assert marks(pair) != first
    with pytest.raises(OSError, match="No such file"):
        marks(Pair(pair.certificate, str(tmp_path / "missing")))


def test_the_oldest_version_is_the_one_configured(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, leaf_for("a.example"))
    assert server_context(pair, "1.2").minimum_version is ssl.TLSVersion.TLSv1_2
    assert server_context(pair, "1.3").minimum_version is ssl.TLSVersion.TLSv1_3


def test_words_for_what_is_wrong(tmp_path: Path) -> None:
    garbage = put(tmp_path / "garbage.pem", b"hello")
    with pytest.raises(ssl.SSLError) as caught:
        facts(Pair(garbage, garbage))
    assert words(caught.value).startswith("no usable PEM certificate and key")
    assert words(FileNotFoundError(2, "No such file or directory")) == "No such file or directory"
    assert words(ValueError("something else")) == "something else"


def test_a_key_with_a_passphrase_is_told_and_never_asked_for(tmp_path: Path) -> None:
    leaf = leaf_for("a.example")
    key = serialization.load_pem_private_key(leaf.key_pem, password=None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"hush"),
    )
    with pytest.raises(ValueError, match="the key has a passphrase; take it off"):
        server_context(pair_of(tmp_path, Leaf(leaf.certificate_pem, locked)), "1.2")
