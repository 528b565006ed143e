"""What must hold between keys, and what is warned of."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from relayd.config import whole
from relayd.config.model import (
    Config,
    Device,
    Http,
    Limits,
    Listener,
    Secret,
    Server,
    Spool,
    TlsSettings,
    Upstream,
    User,
)
from relayd.config.resolve import resolve

TODAY = date(2026, 11, 20)
UPSTREAM = Upstream(
    name="contoso",
    tenant="t",
    client_id="10000000-0000-0000-0000-000000000000",
    client_secret=Secret("s"),
    mailbox="alerts@contoso.com",
)
UPS = Device(name="ups", networks=("192.168.10.5/32",))
PRINTER = User(name="printer1", password_hash=Secret("x"))
LAN = Listener(name="lan", address=("0.0.0.0:25", "[::]:25"))
SOUND = Config(upstream=(UPSTREAM,), device=(UPS,), listener=(LAN,))


def problems(config: Config) -> list[tuple[object, str]]:
    return [(each.path, each.text) for each in whole.problems(config)]


def paths(config: Config) -> list[tuple[object, ...]]:
    return [each.path for each in whole.problems(config)]


def warnings(config: Config) -> list[str]:
    resolved = resolve(config, host="relay.example.com", cpus=2)
    return [each.text for each in whole.warnings(resolved, today=TODAY)]


def test_a_sound_configuration_has_neither_problems_nor_warnings() -> None:
    assert problems(SOUND) == []
    assert warnings(SOUND) == []


def test_every_word_says_what_to_do() -> None:
    empty = replace(SOUND, upstream=(Upstream(name="a"), Upstream(name="b")), spool=Spool(retry=()))
    for _, text in problems(empty):
        assert "; " in text


@pytest.mark.parametrize(
    ("config", "path"),
    [
        (replace(SOUND, device=(UPS, replace(UPS, name="UPS"))), ("device", 1, "name")),
        (
            replace(SOUND, user=(User(name="a", password_hash=Secret("x")),) * 2),
            ("user", 1, "name"),
        ),
        (
            replace(SOUND, listener=(LAN, replace(LAN, address=("[::1]:26",)))),
            ("listener", 1, "name"),
        ),
        (replace(SOUND, listener=(replace(LAN, address=()),)), ("listener", 0, "address")),
        (
            replace(SOUND, listener=(LAN, Listener(name="b", address=("127.0.0.1:25",)))),
            ("listener", 1, "address"),
        ),
        (
            replace(SOUND, listener=(LAN, Listener(name="b", address=("[::1]:25",)))),
            ("listener", 1, "address"),
        ),
        (
            replace(SOUND, listener=(replace(LAN, tls="required"),), tls=TlsSettings(source="off")),
            ("listener", 0, "tls"),
        ),
        (
            replace(SOUND, listener=(replace(LAN, tls="off", auth="required"),)),
            ("listener", 0, "auth"),
        ),
        (replace(SOUND, tls=TlsSettings(source="file", key="/k")), ("tls", "certificate")),
        (replace(SOUND, tls=TlsSettings(source="file", certificate="/c")), ("tls", "key")),
        (
            replace(SOUND, upstream=(replace(UPSTREAM, cloud="x"),)),
            ("upstream", "contoso", "cloud"),
        ),
        (
            replace(SOUND, upstream=(replace(UPSTREAM, tenant=""),)),
            ("upstream", "contoso", "tenant"),
        ),
        (
            replace(SOUND, upstream=(replace(UPSTREAM, client_id=""),)),
            ("upstream", "contoso", "client_id"),
        ),
        (
            replace(SOUND, upstream=(replace(UPSTREAM, mailbox=""),)),
            ("upstream", "contoso", "mailbox"),
        ),
        (
            replace(SOUND, upstream=(replace(UPSTREAM, client_secret=Secret()),)),
            ("upstream", "contoso", "client_secret"),
        ),
        (
            replace(SOUND, upstream=(replace(UPSTREAM, mailbox="sender"),)),
            ("upstream", "contoso", "mailbox"),
        ),
        (replace(SOUND, device=(replace(UPS, upstream="x"),)), ("device", 0, "upstream")),
        (
            replace(SOUND, upstream=(UPSTREAM, replace(UPSTREAM, name="b"))),
            ("device", 0, "upstream"),
        ),
        (replace(SOUND, device=(replace(UPS, networks=()),)), ("device", 0, "networks")),
        (replace(SOUND, user=(User(name="a"),)), ("user", 0, "password_hash")),
        (replace(SOUND, spool=Spool(retry=())), ("spool", "retry")),
    ],
)
def test_what_does_not_fit_together_is_one_problem(
    config: Config, path: tuple[object, ...]
) -> None:
    assert paths(config) == [path]


def test_what_fits_together_is_none() -> None:
    fine = (
        Listener(name="a", address=("0.0.0.0:25", "[::]:25")),
        Listener(name="b", address=("0.0.0.0:587", "[::1]:587", "[::2]:587")),
        Listener(
            name="c", address=("127.0.0.1:465",), tls="off", auth="required", auth_without_tls=True
        ),
    )
    assert paths(replace(SOUND, listener=fine)) == []
    other = replace(UPSTREAM, name="b", credential="none", client_secret=Secret())
    assert paths(replace(SOUND, upstream=(other,))) == []
    cram = User(name="a", cram_md5_password=Secret("x"))
    assert paths(replace(SOUND, user=(cram,))) == []


def test_a_bad_address_is_not_judged_twice() -> None:
    bad = Listener(name="a", address=("nonsense", "nonsense", "1.2.3.4:x"))
    assert paths(replace(SOUND, listener=(bad,))) == []


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (replace(SOUND, upstream=()), "MAIL is answered 451 4.3.5; next step: relayd setup"),
        (replace(SOUND, listener=(replace(LAN, auth_without_tls=True),)), "in clear"),
        (replace(SOUND, device=(replace(UPS, networks=("0.0.0.0/0",)),)), "is everybody"),
        (replace(SOUND, device=(replace(UPS, networks=("8.8.8.8/32",)),)), "public internet"),
        (replace(SOUND, device=(replace(UPS, networks=("10.0.0.0/8",)),)), "10.0.0.0/8 is wide"),
        (replace(SOUND, device=(replace(UPS, networks=("fd00::/48",)),)), "fd00::/48 is wide"),
        (replace(SOUND, limits=Limits(max_message_size=35_000_000)), "35MB is more than any way"),
        (replace(SOUND, server=Server(graceful_timeout=10.0)), "may arrive twice"),
        (replace(SOUND, http=Http(send_timeout=600.0)), "[http] send_timeout (10m)"),
        (
            replace(SOUND, upstream=(replace(UPSTREAM, credential_expires="2026-12-20"),)),
            "ends in 30 days",
        ),
        (
            replace(SOUND, upstream=(replace(UPSTREAM, credential_expires="2026-11-19"),)),
            "ended 1 days ago",
        ),
        (
            replace(
                SOUND,
                upstream=(
                    replace(UPSTREAM, client_secret=Secret("11111111-2222-3333-4444-555555555555")),
                ),
            ),
            "looks like the Secret ID; Entra",
        ),
        (replace(SOUND, upstream=(replace(UPSTREAM, client_id="relayd"),)), '"relayd" has not the'),
        (
            replace(SOUND, upstream=(replace(UPSTREAM, tenant=UPSTREAM.client_id),)),
            "is the tenant ID",
        ),
    ],
)
def test_what_is_dangerous_is_one_warning(config: Config, word: str) -> None:
    (warning,) = warnings(config)
    assert word in warning


@pytest.mark.parametrize(
    "config",
    [
        replace(SOUND, device=(replace(UPS, networks=("192.168.0.0/24", "fd00::/64")),)),
        replace(SOUND, device=(replace(UPS, networks=("127.0.0.0/8", "::1/128")),)),
        replace(SOUND, upstream=(replace(UPSTREAM, credential_expires="2026-12-21"),)),
        replace(SOUND, limits=Limits(max_message_size=1_000_000)),
        replace(SOUND, listener=(replace(LAN, auth="off", auth_without_tls=True),)),
    ],
)
def test_what_is_safe_is_not_warned_of(config: Config) -> None:
    assert warnings(config) == []


def test_a_listener_for_nobody_is_found() -> None:
    local = (Listener(name="a", address=("127.0.0.1:25",)),)
    assert len(list(whole.nobody_may_send(replace(SOUND, device=())))) == 1
    assert not list(whole.nobody_may_send(replace(SOUND, device=(), listener=local)))
    assert not list(whole.nobody_may_send(replace(SOUND, device=(), user=(PRINTER,))))
    assert not list(whole.nobody_may_send(SOUND))


def test_a_wide_network_that_may_write_to_anybody_is_told_so() -> None:
    open_relay = replace(UPS, networks=("10.0.0.0/8",), allow_to=("*",))
    (warning,) = warnings(replace(SOUND, device=(open_relay,)))
    assert 'allow_to = ["*"]' in warning


def test_a_device_behind_a_wider_one_is_never_matched() -> None:
    wide = Device(name="lan", networks=("192.168.10.0/24",))
    (warning,) = warnings(replace(SOUND, device=(wide, UPS)))
    assert '"lan" above has its addresses' in warning
    assert warnings(replace(SOUND, device=(UPS, wide))) == []
    both = replace(UPS, networks=("192.168.10.5", "fd00::1"))
    assert warnings(replace(SOUND, device=(wide, both))) == []
    six = Device(name="six", networks=("fd00::/64",))
    assert len(warnings(replace(SOUND, device=(wide, six, both)))) == 0
    alone = Device(name="one", networks=("fd00::2",))
    assert len(warnings(replace(SOUND, device=(six, alone)))) == 1
