"""`make demo`: a sandbox Microsoft 365, a relay with two workers, three devices' mail.

Shows what arrived in which mailbox, then `relayd status` and `relayd queue list`, stops
everything and exits 0; anything else is a failure. `make run` (--stay) does the same but stays
up, for a device of your own. Nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.sandbox_client import Delivered, SandboxClient  # noqa: E402  found once ROOT is there

MAILBOX = "alerts@contoso.com"
SMTP_PORT = 2525
INBOX_PORT = 8480
ADMIN_PORT = 8025
CONFIG = """\
[server]
hostname = "relay.demo.test"
default_domain = "contoso.com"
workers = 2
runtime_dir = "{folder}/run"
state_dir = "{folder}/state"

[[listener]]
name = "lan"
address = ["{listen}:{port}"]

[spool]
url = "sqlite:///{folder}/spool/spool.db"

[limits]
min_free_disk = "16MiB"

[admin]
address = "127.0.0.1:{admin}"

[cloud.sandbox]
authority = "{base}"
graph = "{base}/v1.0"
ca_file = "{ca_file}"

[upstream.contoso]
cloud = "sandbox"
tenant = "{tenant}"
client_id = "{client_id}"
client_secret = "{client_secret}"
mailbox = "{mailbox}"

[[device]]
name = "lan"
networks = ["127.0.0.1/32"{networks}]
allow_to = ["*"]
"""


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


def environment() -> dict[str, str]:
    """Return the environment without what would change TLS trust or the configuration."""
    dropped = ("_CA_BUNDLE", "SSL_CERT_", "RELAYD_")
    return {k: v for k, v in os.environ.items() if not any(word in k for word in dropped)}


def is_free(port: int) -> bool:
    """Tell whether a port of 127.0.0.1 can be had."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def process(*words: str, out: int | None, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `relayd WORDS` while the block lasts."""
    with log.open("ab") as errors:
        one = subprocess.Popen(
            [sys.executable, "-m", "relayd", *words],
            stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment(), cwd=ROOT,
            start_new_session=True,  # Ctrl-C is ours: we stop the relay first, then the sandbox
        )  # fmt: skip
    try:
        yield one
    finally:
        one.send_signal(signal.SIGTERM)
        try:
            one.wait(30)
        except subprocess.TimeoutExpired:
            one.kill()


def relayd(config: Path, *words: str) -> int:
    """Run one command as a user would, its output on the screen."""
    say(f"$ relayd {' '.join(words)}")
    command = [sys.executable, "-m", "relayd", *words, "--config", str(config)]
    code = subprocess.run(command, env=environment(), cwd=ROOT, check=False).returncode
    say()
    return code


def messages() -> list[tuple[str, EmailMessage]]:
    """Return what the three devices send."""
    ups = EmailMessage()
    ups["From"] = "ups@nas.local"
    ups["To"] = "admin@contoso.com"
    ups["Subject"] = "UPS: on battery"
    ups.set_content("Input power lost. Runtime left: 17 minutes.\n")
    nas = EmailMessage()
    nas["From"] = "Storage <nas@contoso.com>"
    nas["To"] = "admin@contoso.com, backup@contoso.com"
    nas["Subject"] = "Backup report"
    nas.set_content("Backup finished without errors; details attached.\n")
    report = "".join(f"share{i:02},ok,{i * 37} files\n" for i in range(200))
    nas.add_attachment(report.encode(), maintype="text", subtype="csv", filename="backup.csv")
    scan = EmailMessage()
    scan["From"] = "scanner@contoso.com"
    scan["To"] = "office@contoso.com"
    scan["Subject"] = "Scan from MFP"
    scan.set_content("Your scan.\n")
    page = bytes(range(256)) * (2_000_000 * 57 // 78 // 256)  # 2 MB once it is base64
    scan.add_attachment(page, maintype="application", subtype="pdf", filename="scan.pdf")
    return [("UPS alert", ups), ("NAS report", nas), ("scan of 2 MB", scan)]


def send(port: int) -> None:
    """Send the three, as devices would."""
    for name, message in messages():
        size = len(message.as_bytes())
        began = time.monotonic()
        with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
            client.ehlo("device")
            client.mail(str(message["From"]).rpartition("<")[2].rstrip(">"))
            for recipient in str(message["To"]).split(", "):
                client.rcpt(recipient)
            code, text = client.data(message.as_bytes())
        if code != 250:
            raise SystemExit(f"{name}: {code} {text!r}")
        took = time.monotonic() - began
        say(f"  {name:13} {size:>9,} octets  {code} {text.decode()}  ({took * 1000:.0f} ms)")


def show(arrived: list[Delivered]) -> None:
    """Print what the sandbox has."""
    say("What arrived at the sandbox's mailboxes:")
    for one in arrived:
        for address, _ in one.recipients:
            say(
                f"  {address:22} from {one.header_from:20} {one.subject:18}"
                f" {one.size_bytes:>9,} octets"
            )
    say()


def wait_for_banner(port: int, relay: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the relay greets; tells the log when it does not."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and relay.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as one:
            if one.recv(100).startswith(b"220"):
                return
        time.sleep(0.05)
    raise SystemExit(f"relayd did not start:\n{log.read_text(errors='replace')[-3000:]}")


def run(folder: Path, *, stay: bool, listen: str, port: int, networks: list[str]) -> int:
    """Do it all; returns the exit code."""
    log = folder / "log"
    inbox = f"127.0.0.1:{INBOX_PORT if stay and is_free(INBOX_PORT) else 0}"
    admin = ADMIN_PORT if stay and is_free(ADMIN_PORT) else free_port()
    words = ["sandbox", "--json", "--listen", "127.0.0.1:0", "--inbox", inbox]
    words += ["--state-dir", str(folder / "sandbox"), "--mailbox", MAILBOX]
    with process(*words, out=subprocess.PIPE, log=log) as sandbox:
        assert sandbox.stdout is not None
        line = sandbox.stdout.readline()
        if not line:
            raise SystemExit(f"the sandbox did not start:\n{log.read_text()[-3000:]}")
        facts: dict[str, Any] = json.loads(line)
        facts["admin"] = admin
        say(f"A Microsoft 365 on localhost: {facts['base']}  inbox page: {facts['inbox']}")
        config = folder / "relayd.toml"
        more = "".join(f', "{network}"' for network in networks)
        config.write_text(
            CONFIG.format(
                admin=admin,
                folder=folder, listen=listen, port=port, networks=more, mailbox=MAILBOX,
                **{k: facts[k] for k in ("base", "ca_file", "tenant", "client_id")},
                client_secret=facts["client_secret"],
            )
        )  # fmt: skip
        config.chmod(0o600)
        with process("run", "--config", str(config), out=None, log=log) as relay:
            wait_for_banner(port, relay, log)
            say(f"relayd with two workers, SMTP on {listen}:{port}, settings in {config}\n")
            return show_off(config, facts, listen, port, stay=stay)


def show_off(config: Path, facts: dict[str, Any], listen: str, port: int, *, stay: bool) -> int:
    """Send, show, and stay if asked."""
    say("Three devices send:")
    send(port)
    say()
    client = SandboxClient(facts["host"], facts["port"], facts["control_key"], facts["ca_file"])
    show(client.wait_for(3, seconds=30))
    codes = [relayd(config, "status"), relayd(config, "queue", "list", "--state", "all")]
    if stay:
        if listen in ("127.0.0.1", "localhost"):
            say(f"Point a client on this machine at {listen}:{port}; mail for anybody is taken.")
            say("For devices: make run LISTEN=0.0.0.0 NETWORK=192.168.1.0/24 (your LAN)")
        else:
            say(f"Point a device at this machine, port {port}; mail for anybody is taken.")
        say(f"The inbox page: {facts['inbox']}   This relay:")
        say(f"  .venv/bin/relayd --config {config} status")
        say(f"What Prometheus reads: http://127.0.0.1:{facts['admin']}/metrics")
        with contextlib.suppress(KeyboardInterrupt):
            say("Ctrl-C stops it.")
            signal.pause()
        say()
    else:
        say("Stopping. Try `make run` to point a device of your own at it.")
    return max(codes)


def main() -> int:
    """Read the command line, make a folder, clean it up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stay", action="store_true", help="stay up until Ctrl-C")
    parser.add_argument("--listen", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, help="SMTP port (any; 2525 with --stay)")
    parser.add_argument("--network", action="append", default=[], help="a LAN that may send")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted = SMTP_PORT if options.stay and options.port is None else options.port or 0
    port = wanted if wanted and is_free(wanted) else free_port()
    with tempfile.TemporaryDirectory(prefix="relayd-demo-") as folder:
        return run(
            Path(folder), stay=options.stay, listen=options.listen, port=port,
            networks=options.network,
        )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
