"""Listeners' certificates: made, renewed, swapped as a pair, refused with words."""

from __future__ import annotations

import contextlib
import ssl
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives import serialization

from relayd.clock import FakeClock
from relayd.errors import ConfigError
from relayd.net import tls
from relayd.net.certificates import not_after
from relayd.net.pair import Pair, server_context
from relayd.net.tls import ServerTls, problems, warnings
from tests.listener_tls import (
    LAN,
    PLAIN,
    WRAPPED,
    config_with,
    der_of,
    leaf_for,
    pair_in,
    put,
    shown_by,
)


def test_a_pair_from_files_is_shown_by_each_listener_with_tickets_of_its_own(
    tmp_path: Path,
) -> None:
    leaf = leaf_for("relay.example.lan")
    config = config_with(tmp_path, LAN, WRAPPED, PLAIN, **pair_in(tmp_path, leaf))

    server = ServerTls(config, clock=FakeClock())

    assert shown_by(server.context("lan")) == der_of(leaf)
    assert shown_by(server.context("smtps")) == der_of(leaf)
    assert server.context("lan") is not server.context("smtps")
    assert server.context("plain") is None
    assert server.context("nowhere") is None


def test_key_and_chain_may_share_a_file(tmp_path: Path) -> None:
    leaf = leaf_for("relay.example.lan")
    both = put(tmp_path / "both.pem", leaf.key_pem + leaf.certificate_pem)

    server = ServerTls(config_with(tmp_path, source="file", certificate=both), clock=FakeClock())

    assert shown_by(server.context("lan")) == der_of(leaf)


def test_a_renewed_pair_is_swapped_in_and_an_unchanged_one_left(tmp_path: Path) -> None:
    first, second = leaf_for("a.example"), leaf_for("b.example")
    server = ServerTls(config_with(tmp_path, **pair_in(tmp_path, first)), clock=FakeClock())
    old = server.context("lan")

    assert server.refresh() is False
    assert server.context("lan") is old

    pair_in(tmp_path, second)

    assert server.refresh() is True
    assert shown_by(server.context("lan")) == der_of(second)
    assert shown_by(old) == der_of(first), "a session that is up keeps its context"


def test_a_renewal_behind_a_symbolic_link_is_seen(tmp_path: Path) -> None:
    first, second = leaf_for("a.example"), leaf_for("b.example")
    for name, leaf in (("1", first), ("2", second)):
        put(tmp_path / f"{name}.pem", leaf.key_pem + leaf.certificate_pem)
    link = tmp_path / "live.pem"
    link.symlink_to("1.pem")
    server = ServerTls(
        config_with(tmp_path, source="file", certificate=str(link)), clock=FakeClock()
    )

    link.unlink()
    link.symlink_to("2.pem")

    assert server.refresh() is True
    assert shown_by(server.context("lan")) == der_of(second)


def test_half_a_renewal_is_refused_once_and_taken_when_it_is_whole(tmp_path: Path) -> None:
    first, second = leaf_for("a.example"), leaf_for("b.example")
    server = ServerTls(config_with(tmp_path, **pair_in(tmp_path, first)), clock=FakeClock())

    put(tmp_path / "cert.pem", second.certificate_pem)
    with structlog.testing.capture_logs() as lines:
        assert server.refresh() is False
        assert server.refresh() is False

    assert [line["event"] for line in lines] == ["certificate.refused"]
    assert "does not belong" in lines[0]["text"]
    assert shown_by(server.context("lan")) == der_of(first)

    put(tmp_path / "key.pem", second.key_pem)

    assert server.refresh() is True
    assert shown_by(server.context("lan")) == der_of(second)


def test_files_that_change_while_they_are_read_are_read_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (leaf_for(f"{name}.example") for name in "abc")
    server = ServerTls(config_with(tmp_path, **pair_in(tmp_path, first)), clock=FakeClock())
    real = server_context

    def overtaken(pair: Pair, version: str) -> ssl.SSLContext:
        context = real(pair, version)
        pair_in(tmp_path, third)
        return context

    pair_in(tmp_path, second)
    monkeypatch.setattr(tls, "server_context", overtaken)
    assert server.refresh() is False
    assert shown_by(server.context("lan")) == der_of(first)

    monkeypatch.undo()
    assert server.refresh() is True
    assert shown_by(server.context("lan")) == der_of(third)


def test_a_missing_file_keeps_the_old_certificate(tmp_path: Path) -> None:
    leaf = leaf_for("a.example")
    server = ServerTls(config_with(tmp_path, **pair_in(tmp_path, leaf)), clock=FakeClock())

    (tmp_path / "cert.pem").unlink()

    with structlog.testing.capture_logs() as lines:
        assert server.refresh() is False
        assert server.refresh() is False
    assert len(lines) == 1
    assert shown_by(server.context("lan")) == der_of(leaf)


def test_an_expired_renewal_never_replaces_what_works(tmp_path: Path) -> None:
    clock = FakeClock()
    past = FakeClock(now=clock.now - timedelta(days=60))
    good, old = leaf_for("a.example", clock=clock), leaf_for("b.example", clock=past)
    server = ServerTls(config_with(tmp_path, **pair_in(tmp_path, good)), clock=clock)

    pair_in(tmp_path, old)

    assert server.refresh() is False
    assert shown_by(server.context("lan")) == der_of(good)


def test_an_expired_certificate_still_starts_because_mail_must_flow(tmp_path: Path) -> None:
    clock = FakeClock()
    old = leaf_for("b.example", clock=FakeClock(now=clock.now - timedelta(days=60)))
    config = config_with(tmp_path, **pair_in(tmp_path, old))

    assert shown_by(ServerTls(config, clock=clock).context("lan")) == der_of(old)
    assert problems(config) == []
    assert "expired" in warnings(config, clock=clock)[0]


def test_a_certificate_that_ends_soon_is_warned_of(tmp_path: Path) -> None:
    config = config_with(tmp_path, **pair_in(tmp_path, leaf_for("a.example", days=5)))

    assert "ends" in warnings(config, clock=FakeClock())[0]


def test_a_good_certificate_is_not_warned_of(tmp_path: Path) -> None:
    config = config_with(tmp_path, **pair_in(tmp_path, leaf_for("a.example", days=90)))

    assert warnings(config, clock=FakeClock()) == []
    assert problems(config) == []


def test_minimum_version_is_kept(tmp_path: Path) -> None:
    leaf = leaf_for("a.example")
    config = config_with(tmp_path, minimum_version="1.3", **pair_in(tmp_path, leaf))

    context = ServerTls(config, clock=FakeClock()).context("lan")

    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3


def test_a_self_signed_pair_is_made_once_for_all_workers(tmp_path: Path) -> None:
    config = config_with(tmp_path, LAN, WRAPPED)

    first = ServerTls(config, clock=FakeClock())
    second = ServerTls(config, clock=FakeClock())

    assert shown_by(first.context("lan")) == shown_by(second.context("smtps"))


@pytest.mark.parametrize("name", ["relay.example.lan", "192.0.2.7", "2001:db8::7", "localhost"])
def test_a_device_that_trusts_our_authority_finds_every_name(tmp_path: Path, name: str) -> None:
    server = ServerTls(config_with(tmp_path, LAN, WRAPPED))  # the real clock: OpenSSL looks too
    context = server.context("lan")
    assert context is not None
    client = ssl.create_default_context(cafile=str(tmp_path / "tls" / "ca.crt"))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    back, forth = ssl.MemoryBIO(), ssl.MemoryBIO()
    device = client.wrap_bio(incoming, outgoing, server_hostname=name)
    relay = context.wrap_bio(back, forth, server_side=True)

    for _ in range(4):
        for side, sends, receives in ((device, outgoing, back), (relay, forth, incoming)):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            receives.write(sends.read())

    assert device.version() in ("TLSv1.2", "TLSv1.3")


def test_the_leaf_is_renewed_when_a_third_of_its_life_is_left(tmp_path: Path) -> None:
    clock = FakeClock()
    server = ServerTls(config_with(tmp_path), clock=clock)
    first = shown_by(server.context("lan"))

    clock.advance(59 * 86_400)
    assert server.refresh() is False

    clock.advance(2 * 86_400)
    assert server.refresh() is True
    assert shown_by(server.context("lan")) != first
    assert not_after((tmp_path / "tls" / "leaf.pem").read_bytes()) > clock.now + timedelta(days=80)


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "tls").write_text("in the way")

    with pytest.raises(ConfigError, match="cannot be made"):
        ServerTls(config_with(tmp_path), clock=FakeClock())


def test_a_leaf_that_cannot_be_renewed_stays_in_use(tmp_path: Path) -> None:
    clock = FakeClock()
    server = ServerTls(config_with(tmp_path), clock=clock)
    first = shown_by(server.context("lan"))
    (tmp_path / "tls" / ".lock").unlink()
    (tmp_path / "tls" / ".lock").mkdir()  # root may write everywhere; this stops him too

    clock.advance(61 * 86_400)
    with structlog.testing.capture_logs() as lines:
        assert server.refresh() is False
        assert server.refresh() is False

    assert [line["event"] for line in lines] == ["certificate.refused"]
    assert shown_by(server.context("lan")) == first


def test_source_off_has_no_contexts(tmp_path: Path) -> None:
    server = ServerTls(config_with(tmp_path, LAN, source="off"))

    assert server.context("lan") is None
    assert server.refresh() is False
    assert not (tmp_path / "tls").exists()


def test_nothing_is_made_when_no_listener_wants_tls(tmp_path: Path) -> None:
    ServerTls(config_with(tmp_path, PLAIN))

    assert not (tmp_path / "tls").exists()


def test_source_off_is_a_problem_only_where_tls_is_a_must(tmp_path: Path) -> None:
    assert problems(config_with(tmp_path, LAN, PLAIN, source="off")) == []

    (problem,) = problems(config_with(tmp_path, LAN, WRAPPED, source="off"))
    assert problem.startswith("[listener.smtps]")


def test_what_check_finds_wrong_with_files(tmp_path: Path) -> None:
    leaf, other = leaf_for("a.example"), leaf_for("b.example")
    good = pair_in(tmp_path, leaf)
    wrong_key = put(tmp_path / "other.pem", other.key_pem)
    garbage = put(tmp_path / "garbage.pem", b"hello")

    def told(**changes: object) -> str:
        return "\n".join(problems(config_with(tmp_path, **{**good, **changes})))

    assert told() == ""
    assert "needs the file" in told(certificate="")
    assert "No such file" in told(certificate=str(tmp_path / "missing.pem"))
    assert "[tls] key" in told(key=str(tmp_path / "missing.pem"))
    assert "does not belong" in told(key=wrong_key)
    assert "no usable PEM" in told(certificate=garbage)


def test_a_key_with_a_passphrase_is_told_and_never_asked_for(tmp_path: Path) -> None:
    leaf = leaf_for("a.example")
    key = serialization.load_pem_private_key(leaf.key_pem, password=None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"hush"),
    )
    settings = {**pair_in(tmp_path, leaf), "key": put(tmp_path / "locked.pem", locked)}

    (problem,) = problems(config_with(tmp_path, **settings))

    assert "the key has a passphrase" in problem


def test_a_source_of_a_later_version_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keyvault"):
        ServerTls(config_with(tmp_path, source="keyvault"))
