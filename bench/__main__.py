"""`make bench`: the table of rates, CPU, latency and memory, all measured in one run.

    python -m bench [--quick] [--only WORD] [--json FILE]

Each row is run for relayd and its peers in turn, on the same disk and cores; what counts are the
ratios of one row. A peer whose package is missing is left out and said so.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.endpoint import Endpoint, endpoint
from bench.postfix import postfix
from bench.process import (
    clean_environment,
    cpu_s,
    free_port,
    memory_kib,
    running,
    wait_for_port,
)
from bench.relay import relay
from tests.sandbox_process import start_sandbox

AUTH_USER = """
[[user]]
name = "bench"
password_hash = "{hash}"
allow_to = ["*"]
"""


class Bench:
    """One run: where it happens, how much it sends, what it found."""

    def __init__(self, folder: Path, graph: Endpoint, *, quick: bool) -> None:
        self.folder = folder
        self.graph = graph
        self.messages = 3000 if quick else 15000
        self.rows: list[dict[str, object]] = []
        self._count = 0

    def place(self) -> Path:
        """Return a new folder."""
        self._count += 1
        return self.folder / str(self._count)

    def report(self, row: str, who: str, **figures: object) -> None:
        """Keep and print one result."""
        self.rows.append({"row": row, "who": who, **figures})
        shown = "  ".join(f"{k}={v}" for k, v in figures.items())
        print(f"{row:34} {who:22} {shown}", flush=True)

    def source(self, port: int, clients: int, *, size: int = 2000, new: bool = False) -> float:
        """Send with smtp-source; returns seconds until the last 250."""
        command = ["/usr/sbin/smtp-source", "-s", str(clients), "-m", str(self.messages)]
        command += ["-l", str(size), "-f", "a@b.test", "-t", "c@d.test"]
        if not new:
            command.append("-d")
        began = time.monotonic()
        subprocess.run([*command, f"127.0.0.1:{port}"], check=True, timeout=900)
        return time.monotonic() - began

    def until_sent(self, target: int, *, seconds: float = 600) -> None:
        """Wait until the endpoint has answered `target` messages; raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while self.graph.sent() < target:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.graph.sent()} of {target} arrived")
            time.sleep(0.02)

    def drive(self, port: int, clients: int, messages: int, *extra: str) -> dict[str, float]:
        """Run the Python driver; returns its figures."""
        command = [sys.executable, "-m", "bench.driver", str(port), str(clients), str(messages)]
        out = subprocess.run(
            [*command, "2000", *extra],
            check=True,
            capture_output=True,
            timeout=900,
            env=clean_environment(),
        )
        figures: dict[str, float] = json.loads(out.stdout)
        return figures


def end_to_end(bench: Bench) -> None:
    """Accepted and delivered, reused connections, Graph at once: rate and CPU."""
    for clients in (10, 50, 200):
        row = f"end to end, {clients} connections"
        with relay(bench.place(), bench.graph) as ours:
            bench.drive(ours.port, 10, 200)
            bench.until_sent(bench.graph.sent())
            time.sleep(1)
            before, cpu = bench.graph.sent(), cpu_s(ours.pid)
            began = time.monotonic()
            acked_s = bench.source(ours.port, clients)
            bench.until_sent(before + bench.messages)
            took = time.monotonic() - began
            used = cpu_s(ours.pid) - cpu
        bench.report(
            row,
            "relayd (durable)",
            per_s=round(bench.messages / took),
            acks_per_s=round(bench.messages / acked_s),
            cpu_s_per_1000=round(used / bench.messages * 1000, 3),
        )
        _toy(bench, row, clients)
        _postfix(bench, row, clients)
        _aiosmtpd(bench, row, clients)


def _toy(bench: Bench, row: str, clients: int) -> None:
    port = free_port()
    command = [sys.executable, "-m", "bench.toy", str(port)]
    command += [f"https://127.0.0.1:{bench.graph.port}/v1.0", str(bench.graph.ca_file), "2"]
    with running(command, bench.folder / "toy.log") as pid:
        wait_for_port(port)
        before, cpu = bench.graph.sent(), cpu_s(pid)
        took = bench.source(port, clients)
        used = cpu_s(pid) - cpu
        bench.until_sent(before + bench.messages)
    bench.report(
        row,
        "bare loop x2 (keeps 0)",
        per_s=round(bench.messages / took),
        cpu_s_per_1000=round(used / bench.messages * 1000, 3),
    )


def _postfix(bench: Bench, row: str, clients: int) -> None:
    if not shutil.which("postfix", path="/usr/sbin"):
        return
    port, sink = free_port(), free_port()
    log = bench.folder / "sink.log"
    with running(["/usr/sbin/smtp-sink", "-u", "postfix", f"127.0.0.1:{sink}", "400"], log):
        wait_for_port(sink)
        place = bench.place()
        with postfix(place, port=port, sink=sink, deliver=True) as pid:
            cpu, began = cpu_s(pid), time.monotonic()
            acked_s = bench.source(port, clients)
            _until_empty(place / "queue")
            took, used = time.monotonic() - began, cpu_s(pid) - cpu
    bench.report(
        row,
        "Postfix to a sink",
        per_s=round(bench.messages / took),
        acks_per_s=round(bench.messages / acked_s),
        cpu_s_per_1000=round(used / bench.messages * 1000, 3),
    )


def _until_empty(queue: Path) -> None:
    deadline = time.monotonic() + 600
    while any(any((queue / name).rglob("[0-9A-Z]*")) for name in ("incoming", "active")):
        if time.monotonic() > deadline:
            raise TimeoutError("Postfix did not get rid of its queue")
        time.sleep(0.05)


def _aiosmtpd(bench: Bench, row: str, clients: int) -> None:
    port = free_port()
    command = [sys.executable, "-m", "bench.aiosmtpd_relay", str(port)]
    command += [f"https://127.0.0.1:{bench.graph.port}/v1.0", str(bench.graph.ca_file)]
    kept, bench.messages = bench.messages, max(1000, bench.messages // 5)
    try:
        with running(command, bench.folder / "aiosmtpd.log") as pid:
            wait_for_port(port)
            cpu = cpu_s(pid)
            took = bench.source(port, clients)
            used = cpu_s(pid) - cpu
        bench.report(
            row,
            "aiosmtpd (keeps 0)",
            per_s=round(bench.messages / took),
            cpu_s_per_1000=round(used / bench.messages * 1000, 3),
        )
    finally:
        bench.messages = kept


def accept(bench: Bench) -> None:
    """Durable accepts while nothing can leave: acks a second at 50 connections."""
    row = "durable accept, 50 connections"
    # A mailbox that takes one message every 30 s: what is measured is accepting.
    with relay(bench.place(), bench.graph, mailbox="slow@b.test", concurrency=1) as ours:
        bench.drive(ours.port, 10, 100)
        cpu = cpu_s(ours.pid)
        took = bench.source(ours.port, 50)
        used = cpu_s(ours.pid) - cpu
    bench.report(
        row,
        "relayd",
        acks_per_s=round(bench.messages / took),
        cpu_s_per_1000=round(used / bench.messages * 1000, 3),
    )
    if shutil.which("postfix", path="/usr/sbin"):
        port, sink = free_port(), free_port()
        with postfix(bench.place(), port=port, sink=sink, deliver=False) as pid:
            cpu = cpu_s(pid)
            took = bench.source(port, 50)
            used = cpu_s(pid) - cpu
        bench.report(
            row,
            "Postfix (queue on same disk)",
            acks_per_s=round(bench.messages / took),
            cpu_s_per_1000=round(used / bench.messages * 1000, 3),
        )


def crowded(bench: Bench) -> None:
    """Accepts beside a queue of a million, as a share of those beside an empty one; the start."""
    waiting = bench.messages * 1_000_000 // 15_000
    full = bench.place()
    _accepts(bench, full)
    fill = f"from bench.spool import fill; fill({str(full / 'spool/spool.db')!r}, {waiting})"
    subprocess.run([sys.executable, "-c", fill], check=True, timeout=900)
    alone, beside = [], []
    for _ in range(3):  # in turn, and the one in the middle
        alone.append(_accepts(bench, bench.place()))
        beside.append(_accepts(bench, full))
    rate = sorted(beside)[1][0]
    bench.report(
        f"accept beside {waiting:,} waiting",
        "relayd",
        acks_per_s=round(rate),
        of_an_empty_queue=round(rate / sorted(alone)[1][0], 2),
        start_s=round(max(start_s for _, start_s in beside), 2),
    )


def _accepts(bench: Bench, place: Path) -> tuple[float, float]:
    """Return accepts a second at 50 connections while nothing leaves; seconds until it served."""
    began = time.monotonic()
    with relay(place, bench.graph, mailbox="slow@b.test", concurrency=1) as ours:
        start_s = time.monotonic() - began
        bench.drive(ours.port, 10, 100)
        return bench.messages / bench.source(ours.port, 50), start_s


def new_and_auth(bench: Bench) -> None:
    """A new connection and AUTH for each message, 50 clients."""
    row = "new connection (and AUTH) each, 50"
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            "from relayd.access.passwords import hash_password as h;print(h('bench-password'))",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    more = AUTH_USER.format(hash=out.stdout.strip())
    messages = bench.messages // 3
    with relay(bench.place(), bench.graph, more=more) as ours:
        bench.drive(ours.port, 2, 20, "--new", "--auth", "bench:bench-password")
        cpu = cpu_s(ours.pid)
        figures = bench.drive(ours.port, 50, messages, "--new", "--auth", "bench:bench-password")
        used = cpu_s(ours.pid) - cpu
        bench.report(
            row,
            "relayd (AUTH, durable)",
            per_s=round(messages / figures["seconds"]),
            refused=figures["refused"],
            cpu_s_per_1000=round(used / messages * 1000, 3),
        )
    if shutil.which("postfix", path="/usr/sbin"):
        port, sink = free_port(), free_port()
        with postfix(bench.place(), port=port, sink=sink, deliver=False):
            figures = bench.drive(port, 50, messages, "--new")
        bench.report(row, "Postfix (no AUTH)", per_s=round(messages / figures["seconds"]))


def latency(bench: Bench) -> None:
    """Final dot to 250 while Graph takes 300 ms, 200 clients; ms."""
    row = "dot to 250, Graph 300 ms, 200"
    with relay(bench.place(), bench.graph, mailbox="slow@b.test", concurrency=50) as ours:
        bench.drive(ours.port, 10, 100)
        figures = bench.drive(ours.port, 200, bench.messages // 2)
    bench.report(
        row,
        "relayd (all at full speed)",
        p50=figures["p50"],
        p99=figures["p99"],
        max=figures["max"],
        refused=figures["refused"],
    )


def rated_load(bench: Bench) -> None:
    """The same at the load a site has: 200 clients, each with a message every two seconds; ms."""
    row = "dot to 250, Graph 300 ms, 100/s"
    with relay(bench.place(), bench.graph, mailbox="slow@b.test", concurrency=50) as ours:
        bench.drive(ours.port, 10, 100)
        figures = bench.drive(ours.port, 200, 2000, "--every", "2")
    bench.report(
        row,
        "relayd (200 clients)",
        p50=figures["p50"],
        p99=figures["p99"],
        max=figures["max"],
        refused=figures["refused"],
    )


def pacing(bench: Bench) -> None:
    """1,000 messages to one mailbox that takes 500 a minute, 4 at once: time, and 429s.

    Exchange takes 30 a minute; the shape is the same, and nobody waits half an hour for a row.
    The shortest possible time: 500 at once, a whole window, the other 500 at once.
    """
    with start_sandbox(bench.place(), mailboxes=("a@b.test",)) as sandbox:
        sandbox.client.knobs(
            requests_per_window=500, requests_window_s=60.0, octets_per_window=0,
            recipients_per_day=0,
        )  # fmt: skip
        way_out = sandbox.upstream_toml(messages_per_minute=500, allowed_senders=["*@b.test"])
        with relay(bench.place(), way_out) as ours:
            began = time.monotonic()
            bench.drive(ours.port, 20, 1000)
            sandbox.client.wait_for_deliveries(1000, seconds=300)
            took = time.monotonic() - began
            throttled = sandbox.client.counts()["mailboxes"]["a@b.test"]["throttled"]
    bench.report(
        "1,000 messages at 500 a minute",
        "relayd",
        of_the_shortest=round(took / 60.0, 3),
        answers_429=throttled,
    )


def banner(bench: Bench) -> None:
    """Connect to banner and dot to 250, idle and while Graph takes 30 s for everything; ms."""
    for name, slow_s, mailbox in (("idle", 0.3, "a@b.test"), ("Graph 30 s", 30, "slow@b.test")):
        with (
            endpoint(bench.place(), slow_s=slow_s) as graph,
            relay(bench.place(), graph, mailbox=mailbox, concurrency=4) as ours,
        ):
            bench.drive(ours.port, 10, 300)
            figures = bench.drive(ours.port, 4, 1000, "--new")
        bench.report(
            f"4 clients, new connections, {name}",
            "relayd",
            banner_p50=figures["banner_p50"],
            banner_p99=figures["banner_p99"],
            dot_p50=figures["p50"],
            dot_p99=figures["p99"],
        )


def memory(bench: Bench) -> None:
    """KiB for an idle connection; how far a worker grows for a 35 MiB message."""
    with relay(bench.place(), bench.graph, workers=1) as ours:
        bench.drive(ours.port, 10, 100)
        worker = ours.workers()[0]
        before = memory_kib(worker)
        command = [sys.executable, "-m", "bench.driver", str(ours.port), "1000", "0", "0"]
        with subprocess.Popen([*command, "--hold", "4"], stdout=subprocess.PIPE) as held:
            assert held.stdout is not None
            held.stdout.readline()
            time.sleep(1)
            after = memory_kib(worker)
            held.wait(60)
    bench.report(
        "idle connection",
        "relayd",
        KiB=round((after - before) / 1000, 1),
        worker_MiB_with_1000=round(after / 1024, 1),
    )
    big = 35 * 1024 * 1024
    with relay(
        bench.place(),
        bench.graph,
        workers=1,
        upstream='mime_limit = "40MiB"',
        limits='max_message_size = "40MiB"',
    ) as ours:
        bench.drive(ours.port, 10, 100)
        worker = ours.workers()[0]
        sent, before = bench.graph.sent(), memory_kib(worker)
        Path(f"/proc/{worker}/clear_refs").write_text("5")
        command = [sys.executable, "-m", "bench.driver", str(ours.port), "1", "1", str(big)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        bench.until_sent(sent + 1)
        peak = memory_kib(worker, "VmHWM")
    bench.report("35 MiB received and sent", "relayd", grew_MiB=round((peak - before) / 1024, 1))


def tokens(bench: Bench) -> None:
    """Token requests for 1,000 messages on one credential."""
    before = bench.graph.tokens()
    with relay(bench.place(), bench.graph) as ours:
        sent = bench.graph.sent()
        bench.drive(ours.port, 50, 1000)
        bench.until_sent(sent + 1000)
    bench.report("tokens for 1,000 messages", "relayd", requests=bench.graph.tokens() - before)


ROWS: tuple[Callable[[Bench], None], ...] = (
    end_to_end,
    accept,
    crowded,
    new_and_auth,
    latency,
    rated_load,
    pacing,
    banner,
    memory,
    tokens,
)


def main() -> None:
    """Measure everything, print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a fifth of the messages")
    parser.add_argument("--only", default="", help="rows whose name has this word")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    # Not /tmp: it may be memory, and then a flush costs nothing.
    folder = Path(tempfile.mkdtemp(prefix="relayd-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        with endpoint(folder / "endpoint") as graph:
            bench = Bench(folder, graph, quick=options.quick)
            for row in ROWS:
                if options.only in row.__name__:
                    row(bench)
        if options.json:
            options.json.write_text(json.dumps(bench.rows, indent=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
