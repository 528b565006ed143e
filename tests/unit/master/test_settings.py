"""The master takes its part of the configuration, and no secret."""

from __future__ import annotations

import pytest

from relayd.config import codec
from relayd.config.model import Config, Listener, Secret, Server, Spool, Upstream
from relayd.master.settings import default_workers, parse


def test_the_small_part_is_taken() -> None:
    config = Config(
        server=Server(workers=3, graceful_timeout=9.0, runtime_dir="/run/x"),
        listener=(Listener(name="lan", address=("[::]:25",)),),
        upstream=(Upstream(name="contoso", client_secret=Secret("hush")),),
        source="/etc/x.toml",
    )
    settings = parse(codec.dumps(config))
    assert (settings.workers, settings.graceful_timeout_s, settings.upstreams) == (3, 9.0, 1)
    assert settings.listeners[0].address == ("[::]:25",)
    assert "hush" not in repr(settings)


def test_automatic_workers_are_counted_here_when_nobody_did() -> None:
    assert parse(codec.dumps(Config())).workers == default_workers()
    assert 2 <= default_workers() <= 4


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("sqlite:///var/spool/relayd/spool.db", "/var/spool/relayd"),
        ("sqlite:////var/spool/relayd/spool.db", "/var/spool/relayd"),
        ("postgresql://relayd:hush@db/relayd", ""),
    ],
)
def test_the_spools_folder_is_absolute_and_a_database_has_none(url: str, folder: str) -> None:
    settings = parse(codec.dumps(Config(spool=Spool(url=url))))
    assert settings.spool_dir == folder
    assert "hush" not in settings.spool_url


@pytest.mark.parametrize("octets", [b"", b"{}", b"null", b"[1]"])
def test_what_is_no_configuration_is_a_value_error(octets: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse(octets)
