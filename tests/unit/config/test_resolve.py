"""Defaults that hang on other keys or on the host are put in, and only those."""

from __future__ import annotations

import pytest

from relayd.config.clouds import BUILT_IN
from relayd.config.model import Cloud, Config, Device, Limits, Listener, Server, Upstream, User
from relayd.config.resolve import HEADROOM, LOCAL, carried, resolve, spool_path


def resolved(config: Config, *, cpus: int = 2) -> Config:
    return resolve(config, host="relay.example.com", cpus=cpus)


def test_nothing_configured_listens_on_this_host_only() -> None:
    config = resolved(Config())
    assert config.listener == (LOCAL,)
    assert LOCAL.address == ("127.0.0.1:25",)
    own = (Listener(name="lan", address=("0.0.0.0:25",)),)
    assert resolved(Config(listener=own)).listener == own


def test_the_hosts_name_is_taken_when_none_is_set() -> None:
    assert resolved(Config()).server.hostname == "relay.example.com"
    assert resolved(Config(server=Server(hostname="h"))).server.hostname == "h"


@pytest.mark.parametrize(("cpus", "workers"), [(1, 2), (2, 2), (3, 3), (4, 4), (64, 4)])
def test_workers_follow_the_cpus_within_bounds(cpus: int, workers: int) -> None:
    assert resolved(Config(), cpus=cpus).server.workers == workers
    assert resolved(Config(server=Server(workers=7)), cpus=cpus).server.workers == 7


def test_the_size_is_what_the_largest_way_out_carries() -> None:
    ways = (Upstream(name="a", mime_limit=1_000_000), Upstream(name="b", mime_limit=2_000_000))
    assert carried(ways) == 2_000_000 - HEADROOM
    assert resolved(Config(upstream=ways)).limits.max_message_size == 2_000_000 - HEADROOM
    assert resolved(Config()).limits.max_message_size == 3_000_000 - HEADROOM
    assert resolved(Config(limits=Limits(max_message_size=5))).limits.max_message_size == 5


def test_devices_and_users_use_the_only_upstream_there_is() -> None:
    one = Config(upstream=(Upstream(name="a"),), device=(Device(name="d"),), user=(User(name="u"),))
    config = resolved(one)
    assert (config.device[0].upstream, config.user[0].upstream) == ("a", "a")
    assert resolved(Config(device=(Device(name="d"),))).device[0].upstream == ""
    named = Config(upstream=(Upstream(name="a"),), device=(Device(name="d", upstream="a"),))
    assert resolved(named).device[0].upstream == "a"


@pytest.mark.parametrize(
    ("upstream", "domains"),
    [
        (Upstream(name="a", mailbox="x@Contoso.com"), ("contoso.com",)),
        (Upstream(name="a", mailbox="x@contoso.com", own_domains=("A.Example",)), ("a.example",)),
        (Upstream(name="a"), ()),
        (
            Upstream(
                name="a",
                mailbox="sender",
                allowed_senders=("*@a.example", "x@a.example", "b.example"),
            ),
            ("a.example", "b.example"),
        ),
        (Upstream(name="a", mailbox="sender", allowed_senders=("*",)), ()),
    ],
)
def test_own_domains_are_those_of_the_mailbox(upstream: Upstream, domains: tuple[str, ...]) -> None:
    assert resolved(Config(upstream=(upstream,))).upstream[0].own_domains == domains


def test_keywords_are_shouted_as_ehlo_does() -> None:
    device = Device(name="d", hide=("starttls",))
    assert resolved(Config(device=(device,))).device[0].hide == ("STARTTLS",)


def test_built_in_clouds_stand_behind_the_configured_ones() -> None:
    lab = Cloud(name="global", authority="https://a", graph="https://b")
    clouds = resolved(Config(cloud=(lab,))).cloud
    assert clouds[0] is lab
    assert [each.name for each in clouds].count("global") == 1
    assert len(clouds) == len(BUILT_IN)


def test_resolving_twice_changes_nothing_more() -> None:
    once = resolved(Config(upstream=(Upstream(name="a", mailbox="x@y.example"),)))
    assert resolved(once) == once


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/spool/relayd/spool.db", "/var/spool/relayd/spool.db"),
        ("sqlite:////srv/spool.db", "/srv/spool.db"),
        ("sqlite:////srv//mail/../spool.db", "/srv/spool.db"),
        ("sqlite://spool.db", ""),
        ("postgresql://db/relayd", ""),
    ],
)
def test_a_spools_path_is_absolute_however_many_slashes_stand_before_it(
    url: str, path: str
) -> None:
    assert spool_path(url) == path
