"""The small part of the configuration that the master itself needs.

The whole of it stays in the sealed memfd that the children read; secrets never rest here.
"""

from __future__ import annotations

import os

from relayd.config import codec
from relayd.config.model import AUTO, Config, Listener, Log
from relayd.config.resolve import spool_path
from relayd.values import frozen


@frozen(kw_only=True)
class Settings:
    """spool_dir: "" when the spool is not a file here; upstreams: how many ways out there are.

    admin: where the admin process listens; "": there is none. Its default is for a re-exec from
    a version that had none.
    """

    source: str
    workers: int
    listeners: tuple[Listener, ...]
    graceful_timeout_s: float
    runtime_dir: str
    state_dir: str
    spool_url: str
    spool_dir: str
    max_connections: int
    max_connections_per_device: int
    log: Log
    upstreams: int
    admin: str = ""


def parse(octets: bytes) -> Settings:
    """Return the master's part of a checked configuration.

    raises: ValueError - not a configuration of this version.
    """
    return select(codec.loads(octets))


def select(config: Config) -> Settings:
    """Return the master's part of `config`."""
    return Settings(
        source=config.source,
        workers=config.server.workers if config.server.workers != AUTO else default_workers(),
        listeners=config.listener,
        graceful_timeout_s=config.server.graceful_timeout,
        runtime_dir=config.server.runtime_dir,
        state_dir=config.server.state_dir,
        # SECURITY: a PostgreSQL URL may carry a password; it is not kept.
        spool_url=config.spool.url if spool_path(config.spool.url) else "",
        spool_dir=_spool_dir(config.spool.url),
        max_connections=config.limits.max_connections,
        max_connections_per_device=config.limits.max_connections_per_device,
        log=config.log,
        upstreams=len(config.upstream),
        admin=config.admin.address,
    )


def default_workers() -> int:
    """Return what "auto" means here: min(4, max(2, CPUs it may use))."""
    return min(4, max(2, len(os.sched_getaffinity(0))))


def _spool_dir(url: str) -> str:
    """Return the folder of sqlite:///relative or sqlite:////absolute/spool.db; "" for others."""
    return os.path.dirname(spool_path(url))
