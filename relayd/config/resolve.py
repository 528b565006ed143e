"""Defaults that depend on other keys or on the host, put in: what comes out has no gaps.

Pure: what must be asked of the host (its name, its CPUs) is given.
"""

from __future__ import annotations

import os.path
from dataclasses import replace
from typing import Final, TypeVar

from relayd.config import clouds, model
from relayd.config.model import AUTO, Config, Listener, Submitter, Upstream

HEADROOM: Final = 16 * 1024
"""What relayd itself may add to a message: Received, Message-ID, rewritten recipients."""

_SQLITE: Final = "sqlite:///"
_NO_UPSTREAM_SIZE: Final = 3_000_000

LOCAL: Final = Listener(name="local", address=("127.0.0.1:25",))
"""What listens when nothing is configured: this host only."""

Who = TypeVar("Who", bound=Submitter)


def resolve(config: Config, *, host: str, cpus: int) -> Config:
    """Return the configuration without "auto" and without defaults to be looked up elsewhere.

    host: this host's name, for [server] hostname.
    cpus: how many it may use.
    """
    upstreams = tuple(_upstream(each) for each in config.upstream)
    only = upstreams[0].name if len(upstreams) == 1 else ""
    server, limits = config.server, config.limits
    return replace(
        config,
        server=replace(
            server,
            hostname=server.hostname or host,
            workers=min(4, max(2, cpus)) if server.workers == AUTO else server.workers,
        ),
        limits=replace(limits, max_message_size=limits.max_message_size or carried(upstreams)),
        listener=config.listener or (LOCAL,),
        upstream=upstreams,
        device=tuple(_submitter(each, only) for each in config.device),
        user=tuple(_submitter(each, only) for each in config.user),
        cloud=_clouds(config),
    )


def spool_path(url: str) -> str:
    """Return the path of the spool's database; "" for what is not SQLite.

    Both `sqlite:///var/…` and `sqlite:////var/…` are written for the absolute path; the
    relative reading would put a queue wherever the daemon was started.
    """
    if not url.startswith(_SQLITE):
        return ""
    return os.path.normpath("/" + url.removeprefix(_SQLITE).lstrip("/"))


def carried(upstreams: tuple[Upstream, ...]) -> int:
    """Return the largest message any way out carries, octets, our own additions taken off."""
    return max((each.mime_limit for each in upstreams), default=_NO_UPSTREAM_SIZE) - HEADROOM


def _upstream(upstream: Upstream) -> Upstream:
    if upstream.own_domains:
        return replace(upstream, own_domains=tuple(each.lower() for each in upstream.own_domains))
    addresses = upstream.allowed_senders if upstream.mailbox == "sender" else (upstream.mailbox,)
    domains = [each.rpartition("@")[2].lower() for each in addresses]
    return replace(upstream, own_domains=tuple(dict.fromkeys(d for d in domains if "." in d)))


def _submitter(who: Who, only: str) -> Who:
    return replace(
        who, upstream=who.upstream or only, hide=tuple(word.upper() for word in who.hide)
    )


def _clouds(config: Config) -> tuple[model.Cloud, ...]:
    own = {cloud.name for cloud in config.cloud}
    return config.cloud + tuple(each for each in clouds.BUILT_IN if each.name not in own)
