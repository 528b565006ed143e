"""`relayd sandbox` as a real process for tests: started, asked, stopped by pid.

with start_sandbox(tmp_path) as sandbox:
    sandbox.client.fault("commit-504")
    relay = RelayProcess(tmp_path / "relay", sandbox.upstream_toml())
"""

from __future__ import annotations

import json
import os
import select
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.relay_process import PYTHON
from tests.sandbox_client import SandboxClient

_START_S = 20.0


@dataclass(slots=True)
class SandboxProcess:
    """One running sandbox. facts: its ready line (port, base, inbox, ca_file, …)."""

    process: subprocess.Popen[bytes]
    facts: dict[str, Any]
    client: SandboxClient
    log_path: Path
    _stopped: bool = field(default=False)

    @property
    def port(self) -> int:
        """Return the TLS port."""
        return int(self.facts["port"])

    @property
    def base(self) -> str:
        """Return the URL of the TLS port."""
        return str(self.facts["base"])

    def new_client(self) -> SandboxClient:
        """Return another client, for another thread."""
        return _client(self.facts)

    def upstream_toml(self, name: str = "lab", **changes: object) -> str:
        """Return [cloud.lab] and [upstream.NAME] for relayd.toml; `changes` add or replace keys.

        name: of the upstream and of its cloud, so that two snippets go into one file.
        """
        cloud = {
            "authority": self.base,
            "graph": f"{self.base}/v1.0",
            "graph_scope": "https://graph.microsoft.com/.default",
            "ca_file": self.facts["ca_file"],
        }
        upstream = {
            "cloud": name,
            "tenant": self.facts["tenant"],
            "client_id": self.facts["client_id"],
            "credential": "secret",
            "client_secret": self.facts["client_secret"],
            "mailbox": self.facts["mailboxes"][0],
            **changes,
        }
        return f"[cloud.{name}]\n{_toml(cloud)}\n[upstream.{name}]\n{_toml(upstream)}\n"

    def stop(self) -> None:
        """Stop it and close the client; may be called twice."""
        if self._stopped:
            return
        self._stopped = True
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def kill(self) -> None:
        """Kill it without a word, as a power cut would."""
        self.process.kill()
        self.process.wait(10)

    def log(self) -> str:
        """Return what it wrote to standard error."""
        return self.log_path.read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_sandbox(
    folder: Path,
    *,
    port: int = 0,
    mailboxes: tuple[str, ...] = ("alerts@contoso.com",),
    any_mailbox: bool = False,
    keep: Path | None = None,
    more: tuple[str, ...] = (),
) -> SandboxProcess:
    """Start a sandbox whose state is in `folder`/sandbox; returns when it serves.

    port: of the TLS side, 0 any; a sandbox started again on the same folder and port has the
          same CA, secrets and tokens. more: further arguments of `relayd sandbox`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["--json", "--listen", f"127.0.0.1:{port}", "--inbox", "127.0.0.1:0"]
    arguments += ["--state-dir", str(folder / "sandbox")]
    for mailbox in mailboxes:
        arguments += ["--mailbox", mailbox]
    if any_mailbox:
        arguments.append("--any-mailbox")
    if keep is not None:
        arguments += ["--keep", str(keep)]
    log_path = folder / "sandbox.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [PYTHON, "-m", "relayd", "sandbox", *arguments, *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment(),
        )
    try:
        facts = _ready(process, log_path)
    except BaseException:
        process.kill()
        process.wait(10)
        raise
    return SandboxProcess(process, facts, _client(facts), log_path)


def _ready(process: subprocess.Popen[bytes], log_path: Path) -> dict[str, Any]:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], _START_S)
    line = process.stdout.readline() if readable else b""
    assert line, f"the sandbox did not start:\n{log_path.read_text(errors='replace')[-2000:]}"
    facts: dict[str, Any] = json.loads(line)
    return facts


def _client(facts: dict[str, Any]) -> SandboxClient:
    return SandboxClient(
        facts["host"],
        facts["port"],
        facts["control_key"],
        facts["ca_file"],
        client_id=facts["client_id"],
        client_secret=facts["client_secret"],
        tenant=facts["tenant"],
    )


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAYD_")}


def _toml(values: dict[str, Any]) -> str:
    # A JSON string, number, boolean or list of them is TOML as well.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
