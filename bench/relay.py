"""relayd as a user would run it, against the fast endpoint: two workers, durable, all on."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.endpoint import Endpoint
from bench.process import clean_environment, free_port, running, titled, wait_for_port

_CONFIG = """
[server]
hostname = "relay.bench.test"
workers = {workers}
runtime_dir = "{folder}/run"
state_dir = "{folder}/state"

[[listener]]
name = "lan"
address = ["127.0.0.1:{port}"]
tls = "off"
auth_without_tls = true

[tls]
source = "off"

[limits]
max_connections = 10000
max_connections_per_device = 10000
min_free_disk = "16MiB"
{limits}

[spool]
url = "sqlite:///{folder}/spool/spool.db"

{way_out}

[[device]]
name = "lan"
networks = ["127.0.0.1/32"]
allow_to = ["*"]
default_from = "{mailbox}"

[log]
level = "info"
format = "logfmt"
file = "{folder}/relayd.log"
{more}
"""

_WAY_OUT = """
[cloud.bench]
authority = "https://127.0.0.1:{graph}"
graph = "https://127.0.0.1:{graph}/v1.0"
ca_file = "{ca_file}"

[upstream.bench]
cloud = "bench"
tenant = "t"
client_id = "bench"
client_secret = "bench"
mailbox = "{mailbox}"
messages_per_minute = 0
concurrency = {concurrency}
{upstream}
"""


@dataclass(frozen=True)
class Relay:
    """A running relayd. pid: its master."""

    pid: int
    port: int
    folder: Path

    def workers(self) -> list[int]:
        """Return the workers' pids."""
        return titled(self.pid, "relayd: worker")


@contextlib.contextmanager
def relay(
    folder: Path,
    graph: Endpoint | str,
    *,
    mailbox: str = "a@b.test",
    concurrency: int = 32,
    workers: int = 2,
    limits: str = "",
    upstream: str = "",
    more: str = "",
) -> Iterator[Relay]:
    """Run relayd while the block lasts, in a new folder or with what one left in `folder`.

    graph: the fast endpoint, or [cloud] and [upstream].
    """
    folder.mkdir(parents=True, exist_ok=True)
    way_out = graph
    if isinstance(graph, Endpoint):
        way_out = _WAY_OUT.format(
            graph=graph.port,
            ca_file=graph.ca_file,
            mailbox=mailbox,
            concurrency=concurrency,
            upstream=upstream,
        )
    port = free_port()
    path = folder / "relayd.toml"
    path.write_text(
        _CONFIG.format(
            folder=folder,
            port=port,
            mailbox=mailbox,
            workers=workers,
            limits=limits,
            way_out=way_out,
            more=more,
        )
    )
    path.chmod(0o600)
    command = [sys.executable, "-m", "relayd", "run", "--config", str(path)]
    with running(command, folder / "stderr.log") as pid:
        wait_for_port(port)
        status = [sys.executable, "-m", "relayd", "status", "--config", str(path)]
        subprocess.run(status, check=True, stdout=subprocess.DEVNULL, env=clean_environment())
        yield Relay(pid, port, folder)
