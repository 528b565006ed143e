"""`relayd upgrade` between two copies of the program, as a package manager leaves them on disk.

The program lies in a folder of its own and is started by a script, as /usr/bin/relayd is. New
files are put over the old ones under the running relay, one after the other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from relayd.master import client
from tests.load import Load, verdict
from tests.process.test_reload_under_load import SIX, greeting, has_ipv6, wait_for_more
from tests.relay_process import (
    PYTHON,
    RelayProcess,
    clean_environment,
    free_port,
    processes,
    wait_until,
)
from tests.sandbox_process import SandboxProcess, start_sandbox

ROOT = Path(__file__).parents[2]

VERSION = ("__init__.py", '__version__ = "0.1.0"', '__version__ = "{}"')
ADDED = (
    """("ALTER TABLE message ADD COLUMN later TEXT NOT NULL DEFAULT 'x'","""
    """ "CREATE TABLE later (a TEXT) STRICT")"""
)
ADDITIVE = ("spool/schema.py", "= (_VERSION_1,)", f"= (_VERSION_1, {ADDED})")
DESTRUCTIVE = (
    "spool/schema.py",
    "= (_VERSION_1,)",
    '= (_VERSION_1, ("DROP INDEX delivery_held",))',
)
OTHER_HANDOVER = ("master/upgrade.py", "READS: Final = frozenset({1})", "READS: Final = {2}")
WORKER_FAILS = ("worker.py", "    sys.setswitchinterval", "    raise OSError('of 2.0.0')\n    sys")


class Program:
    """relayd in a folder: `install` is what a package manager does while it may be running."""

    def __init__(self, folder: Path) -> None:
        self.library = folder / "lib"
        self.script = folder / "relayd"
        self._installed = 0
        self.script.write_text(
            f"import sys\nsys.path.insert(0, {str(self.library)!r})\n"
            "from relayd.__main__ import main\nsys.exit(main())\n"
        )

    def install(self, version: str, *edits: tuple[str, str, str]) -> None:
        """Replace each file of the program. edits: (file, old text, new text)."""
        self._installed += 1
        file, old, new = VERSION
        changes = [(file, old, new.format(version)), *edits]
        for source in sorted((ROOT / "relayd").rglob("*.py")):
            name = str(source.relative_to(ROOT / "relayd"))
            text = source.read_text()
            for _, old, new in [one for one in changes if one[0] == name]:
                assert old in text, (name, old)
                text = text.replace(old, new)
            self._put(name, text)

    def spoil(self) -> None:
        """Make it impossible to import anything of it from disk."""
        self._installed += 1
        for path in (self.library / "relayd").rglob("*.py"):
            name = str(path.relative_to(self.library / "relayd"))
            self._put(name, "raise RuntimeError('imported from disk')\n")

    def _put(self, name: str, text: str) -> None:
        path = self.library / "relayd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".dpkg-new")
        fresh.write_text(text)
        # Byte code is found stale by time and size; the size may be the same.
        os.utime(fresh, (1_700_000_000 + self._installed, 1_700_000_000 + self._installed))
        fresh.replace(path)

    def start(self, relay: RelayProcess) -> None:
        relay.start(program=(str(self.script),))

    def relayd(self, relay: RelayProcess, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PYTHON, str(self.script), *words, "--config", str(relay.path)],
            capture_output=True,
            text=True,
            timeout=120,
            env=clean_environment(),
            check=False,
        )


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path / "sandbox") as sandbox:
        sandbox.client.knobs(requests_per_window=0, octets_per_window=0, recipients_per_day=0)
        yield sandbox


@pytest.fixture
def program(tmp_path: Path) -> Program:
    made = Program(tmp_path)
    made.install("1.0.0")
    return made


@contextlib.contextmanager
def running(
    folder: Path, sandbox: SandboxProcess, program: Program, more: str = ""
) -> Iterator[RelayProcess]:
    relay = RelayProcess(
        folder / "relay",
        sandbox.upstream_toml(messages_per_minute=0),
        more=more,
        admin=f"127.0.0.1:{free_port()}",
    )
    try:
        program.start(relay)
        wait_until(lambda: relay.status().get("state") == "running", told=relay.log)
        yield relay
    finally:
        relay.stop(fast=True)


@pytest.mark.slow(25)
@pytest.mark.timeout(300)
def test_an_upgrade_under_load_and_no_way_back(
    tmp_path: Path, sandbox: SandboxProcess, program: Program
) -> None:
    six = free_port() if has_ipv6() else 0
    more = SIX.format(port=six) if six else ""
    with running(tmp_path, sandbox, program, more) as relay:
        loads = [
            Load(relay.port, senders=2, name="kept-"),
            Load(relay.port, senders=2, name="new-", new_connection_each=True),
        ]
        if six:
            loads.append(Load(six, senders=1, name="six-", host="::1", new_connection_each=True))
        before = set(processes(relay.pid)) - {relay.pid}
        with contextlib.ExitStack() as stack:
            for load in loads:
                stack.enter_context(load)
            wait_for_more(loads)
            program.install("2.0.0", ADDITIVE)
            wait_for_more(loads)
            wait_until(lambda: accepted_of(relay) > 0, told="no callers")
            accepted_before = accepted_of(relay)
            done = program.relayd(relay, "upgrade")
            assert (done.returncode, done.stderr) == (0, ""), relay.log()[-3000:]
            assert "relayd 1.0.0 is now 2.0.0" in done.stdout
            # What operators were shown before is shown still.
            assert accepted_of(relay) >= accepted_before
            wait_for_more(loads)
            status = relay.status()
            assert (status["version"], status["pid"]) == ("2.0.0", relay.pid)
            wait_until(lambda: not before & set(processes(relay.pid)), told="old children stay")
            wait_for_more(loads)
            has_one_copy(relay)
            refuses_to_go_back(relay, program)
            wait_for_more(loads)
        relay.wait_empty()
        assert relay.stop() == 0
        is_refused_at_the_start(relay, program)
    for load in loads:
        assert load.broken == []
        assert load.refused == []
        told = verdict(load.acknowledged, sandbox.client)
        assert (told.lost, told.damaged, told.twice) == ([], [], {})


def accepted_of(relay: RelayProcess) -> int:
    """Return how much mail the relay remembers of its callers."""
    rows = relay.ask("callers")[-1]["callers"]
    return sum(row.get("accepted", 0) for row in rows)


def has_one_copy(relay: RelayProcess) -> None:
    copy = relay.folder / "spool" / "spool.db.schema1.backup"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert len(relay.lines("spool.migrated")) <= 1
    assert list(copy.parent.glob("*.backup*")) == [copy]


def refuses_to_go_back(relay: RelayProcess, program: Program) -> None:
    """Put the older files back: the newer code serves on, and says what is wanted."""
    program.install("1.0.0")
    done = program.relayd(relay, "upgrade")
    assert done.returncode == 1, done
    assert "the old one serves on" in done.stderr
    assert "brought to schema version 2 by relayd 2.0.0; this is relayd 1.0.0" in done.stderr
    assert "spool.db.schema1.backup" in done.stderr
    assert relay.status()["version"] == "2.0.0"
    assert greeting(relay.port)[0] == "relay.test"


def is_refused_at_the_start(relay: RelayProcess, program: Program) -> None:
    done = program.relayd(relay, "run")
    assert done.returncode == 78
    assert "Install relayd 2.0.0, or newer, again" in done.stderr


@pytest.mark.slow(15)
@pytest.mark.timeout(200)
def test_nothing_is_imported_from_new_files_before_the_upgrade(
    tmp_path: Path, sandbox: SandboxProcess, program: Program
) -> None:
    with running(tmp_path, sandbox, program) as relay:
        with Load(relay.port, senders=2) as load:
            wait_for_more([load])
            program.spoil()
            # All that the running code may still want: other children, a check, a generation.
            for kind in ("worker", "cached", "admin"):
                victim = relay.pids(kind)[0]
                os.kill(victim, signal.SIGKILL)
                wait_until(partial(_is_replaced, relay, kind, victim), told=relay.log)
            assert relay.ask("reload")[-1]["generation"] == 2
            assert relay.ask("queue.list")
            wait_for_more([load])
            # A package that is broken is not taken.
            path = str(relay.folder / "run" / "control.sock")
            reply = client.ask(path, {"command": "upgrade"}, timeout_s=60)
            assert reply["exit"] == 1
            assert "imported from disk" in str(reply["problems"])
            assert relay.status()["version"] == "1.0.0"
            wait_for_more([load])
        relay.wait_empty()
    assert "imported from disk" not in _but_refusals(relay)
    assert verdict(load.acknowledged, sandbox.client).lost == []


def _is_replaced(relay: RelayProcess, kind: str, victim: int) -> bool:
    rows = [one for one in relay.status().get("processes", ()) if one["kind"] == kind]
    pids = {one["pid"] for one in rows if one["state"] == "ready"}
    return victim not in pids and len(pids) == len(rows) >= (2 if kind == "worker" else 1)


def _but_refusals(relay: RelayProcess) -> str:
    return "\n".join(one for one in relay.log().splitlines() if "upgrade.refused" not in one)


@pytest.mark.slow(8)
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("edit", "words"),
    [(OTHER_HANDOVER, "hands over in form 1"), (DESTRUCTIVE, "could not work on")],
    ids=["another hand-over", "a schema the old code cannot work on"],
)
def test_what_needs_a_restart_is_said_and_the_old_code_serves_on(
    tmp_path: Path,
    sandbox: SandboxProcess,
    program: Program,
    edit: tuple[str, str, str],
    words: str,
) -> None:
    with running(tmp_path, sandbox, program) as relay:
        workers = sorted(relay.pids("worker"))
        program.install("2.0.0", edit)
        done = program.relayd(relay, "upgrade")
        assert done.returncode == 75, done
        assert words in done.stderr
        assert "systemctl restart relayd" in done.stderr
        assert relay.status()["version"] == "1.0.0"
        assert sorted(relay.pids("worker")) == workers
        assert greeting(relay.port)[0] == "relay.test"


@pytest.mark.slow(8)
@pytest.mark.timeout(120)
def test_new_workers_that_do_not_start_leave_the_old_ones_serving(
    tmp_path: Path, sandbox: SandboxProcess, program: Program
) -> None:
    with running(tmp_path, sandbox, program) as relay:
        workers = sorted(relay.pids("worker"))
        program.install("2.0.0", WORKER_FAILS)
        done = program.relayd(relay, "upgrade")
        assert done.returncode == 1, done
        assert "relayd 2.0.0 leads now, but its workers do not start" in done.stderr
        wait_until(lambda: sorted(relay.pids("worker")) == workers)
        assert greeting(relay.port)[0] == "relay.test"
        program.install("2.0.1")
        assert program.relayd(relay, "upgrade").returncode == 0
        assert relay.status()["version"] == "2.0.1"


@pytest.mark.slow(8)
@pytest.mark.timeout(120)
def test_a_handover_that_cannot_be_read_in_spite_of_the_look_ends_with_words(
    tmp_path: Path, sandbox: SandboxProcess, program: Program
) -> None:
    """The service manager starts the new code then; nothing of the old may be in its way."""
    lie = ("master/upgrade.py", '    if state.get("v") not in READS:', "    if True:")
    with running(tmp_path, sandbox, program) as relay:
        program.install("2.0.0", lie)
        path = str(relay.folder / "run" / "control.sock")
        with pytest.raises(client.NotRunning, match="closed without an answer"):
            client.ask(path, {"command": "upgrade"}, timeout_s=60)
        assert relay.process is not None
        assert relay.process.wait(30) == 69
        assert "1.0.0 hands over in form 1, which relayd 2.0.0 cannot go on from" in relay.log()
        program.start(relay)
        wait_until(lambda: relay.status().get("version") == "2.0.0", told=relay.log)
        assert greeting(relay.port)[0] == "relay.test"
    shutil.rmtree(program.library)
