"""A stopped relay's spool is read as its owner, whatever is wrong with the configuration."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from relayd.cli import daemon, offline
from relayd.cli.answers import rows_of
from relayd.master.frames import Frame
from relayd.spool.model import QueueId, queue_id_text
from relayd.spool.queries import Counts, Reader
from tests.control_socket import relayd
from tests.spooling import ALERTS, SCANS, SqliteBackend, denied, put, way

ROOT = Path(__file__).parents[3]
NOBODY = 65_534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


class Stopped:
    """A spool that nobody has open, and a configuration that names it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "spool"
        self.folder.mkdir(mode=0o700)
        self.config = folder / "relayd.toml"
        self.config.write_text(
            f'[server]\nruntime_dir = "{folder}"\n[spool]\nurl = "sqlite://{self.folder}/spool.db"\n'
        )
        backend = SqliteBackend(self.folder)
        door = backend.open()
        self.held: QueueId = put(door, backend.clock)
        (lease,) = door.lease(ALERTS, limit=1)
        door.settle(lease, denied(backend.clock))
        backend.clock.advance(1)
        self.ready = put(door, backend.clock, way(SCANS))
        backend.close()

    def relayd(self, *words: str) -> int:
        return relayd("--config", str(self.config), *words)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the program as a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "relayd", "--config", str(self.config), *words],
            capture_output=True,
            check=False,
            cwd=ROOT,
            text=True,
        )

    def owners(self) -> dict[str, int]:
        return {path.name: path.stat().st_uid for path in self.folder.rglob("*")}

    def give_to(self, uid: int) -> None:
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, uid, uid)


@pytest.fixture
def stopped(tmp_path: Path) -> Stopped:
    return Stopped(tmp_path)


@pytest.fixture(autouse=True)
def _stay_who_you_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving root behind cannot be undone in this process; what is called is kept instead."""
    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, lambda *_: None)


def test_a_list_is_what_the_spool_has(stopped: Stopped, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped.relayd("--json", "queue", "list") == 0
    out, err = capsys.readouterr()
    assert [(row["id"], row["state"]) for row in json.loads(out)] == [
        (queue_id_text(stopped.held), "held"),
        (queue_id_text(stopped.ready), "ready"),
    ]
    assert err == "relayd: relayd is not running; this is what its spool has\n"


def test_a_story_says_that_nothing_runs(
    stopped: Stopped, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped.relayd("queue", "show", queue_id_text(stopped.ready)) == 0
    out = capsys.readouterr().out
    assert "It waits for relayd, which is not running." in out
    assert f"relayd --config {stopped.config} run" in out


def test_a_trace_is_there_too(stopped: Stopped, capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped.relayd("queue", "trace", queue_id_text(stopped.held)) == 0
    assert "misconfigured" in capsys.readouterr().out


def test_a_message_nobody_knows_exits_with_one(stopped: Stopped) -> None:
    assert stopped.relayd("queue", "show", "1JV7SEQSLMJCW") == 1


def test_an_id_that_is_none_is_refused_in_words(
    stopped: Stopped, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped.relayd("queue", "show", "x") == 2
    assert "not a queue id" in capsys.readouterr().err


def test_reading_changes_no_octet_of_the_spool(stopped: Stopped) -> None:
    before = (stopped.folder / "spool.db").read_bytes()
    assert stopped.relayd("queue", "list") == 0
    assert (stopped.folder / "spool.db").read_bytes() == before


CRASH = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA wal_autocheckpoint = 0")
connection.execute("UPDATE delivery SET state = 2, held_by = 'operator' WHERE state = 0")
os._exit(0)
"""


def test_a_log_left_by_a_crash_is_read_and_left(stopped: Stopped) -> None:
    subprocess.run([sys.executable, "-c", CRASH, stopped.folder / "spool.db"], check=True)
    log = stopped.folder / "spool.db-wal"
    before = log.read_bytes()
    assert before
    shown = stopped.run("--json", "queue", "list", "--state", "held")
    assert len(json.loads(shown.stdout)) == 2
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        '[server]\nruntime_dir = "{folder}"\n[spool]\nurl = "sqlite://{folder}/spool.db"\nx = 1\n',
        '[server]\nruntime_dir = "{folder}"\nworkers = "many"\n[spool]\nurl = "sqlite://{folder}/spool.db"\n',
    ],
)
def test_a_configuration_that_cannot_be_used_does_not_blind(
    stopped: Stopped, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    stopped.config.write_text(text.format(folder=stopped.folder))
    assert stopped.relayd("--json", "queue", "list") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_a_socket_that_a_crash_left_behind_is_nobody(stopped: Stopped) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stopped.config.parent / "control.sock"))
    assert stopped.relayd("queue", "list") == 0


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "50%41 #1?mode=rw"
    folder.mkdir()
    assert Stopped(folder).relayd("queue", "list") == 0


def test_no_relay_that_starts_now_is_at_the_log_at_the_same_time(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Watched(Reader):
        def counts(self) -> Counts:
            with (stopped.folder / "spool.db.turnstile.b").open() as room:
                with pytest.raises(BlockingIOError):
                    fcntl.flock(room, fcntl.LOCK_EX | fcntl.LOCK_NB)
                opened.append(room.name)
            return super().counts()

    monkeypatch.setattr(offline, "Reader", Watched)
    assert stopped.relayd("queue", "list") == 0
    assert opened


def test_no_spool_yet_is_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(
        f'[server]\nruntime_dir = "{tmp_path}"\n[spool]\nurl = "sqlite://{tmp_path}/none.db"\n'
    )
    assert relayd("--config", str(config), "queue", "list") == 69
    assert f"there is no spool yet at {tmp_path}/none.db" in capsys.readouterr().err


def test_a_spool_that_is_no_database_is_said_in_words(
    stopped: Stopped, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped.folder / "spool.db").write_bytes(b"x" * 9000)
    assert stopped.relayd("queue", "list") == 69
    assert "cannot be read" in capsys.readouterr().err


def test_the_command_that_starts_it_is_that_of_this_configuration(
    stopped: Stopped, capsys: pytest.CaptureFixture[str]
) -> None:
    request: Frame = {"command": "queue.show", "id": queue_id_text(stopped.ready)}
    (told,) = offline.answers(str(stopped.config), request)
    (one,) = rows_of(told["deliveries"])
    assert one["do"] == f"relayd --config {stopped.config} run"
    assert daemon.start_command(str(stopped.config)) == one["do"]


def test_a_spool_of_somebody_else_needs_root(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert stopped.relayd("queue", "list") == 69
    assert "say it again with sudo" in capsys.readouterr().err


def test_a_folder_that_cannot_be_entered_needs_root(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("relayd.cli.offline.os.stat", denied)
    with pytest.raises(SystemExit) as leaving:
        offline.become_owner("/spool.db")
    assert leaving.value.code == 69
    assert "sudo" in capsys.readouterr().err


def test_root_becomes_the_owner_for_good_before_anything_is_opened(
    stopped: Stopped, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Sequence[object]] = []
    for name in ("setgroups", "setresgid", "setresuid"):
        monkeypatch.setattr(os, name, lambda *given, name=name: called.append((name, *given)))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    owner = (stopped.folder / "spool.db").stat()
    offline.become_owner(str(stopped.folder / "spool.db"))
    assert called == [
        ("setgroups", []),
        ("setresgid", *[owner.st_gid] * 3),
        ("setresuid", *[owner.st_uid] * 3),
    ]


@needs_root
@pytest.mark.parametrize("is_link", [True, False])
def test_a_file_of_roots_in_the_relays_folder_keeps_nobody_root(
    stopped: Stopped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_link: bool
) -> None:
    spool = stopped.folder / "spool.db"
    stopped.give_to(NOBODY)
    if is_link:
        spool.rename(tmp_path / "roots.db")
        os.chown(tmp_path / "roots.db", 0, 0)
        spool.symlink_to(tmp_path / "roots.db")
        os.chown(spool, NOBODY, NOBODY, follow_symlinks=False)
    else:
        os.chown(spool, 0, 0)
    called: list[Sequence[object]] = []
    monkeypatch.setattr(os, "setresuid", lambda *given: called.append(given))
    offline.become_owner(str(spool))
    assert called == [(NOBODY, NOBODY, NOBODY)]


@needs_root
@pytest.mark.slow(2)
@pytest.mark.parametrize("crashed", [False, True])
def test_what_root_reads_leaves_no_file_of_root(shared: Path, *, crashed: bool) -> None:
    stopped = Stopped(shared)
    if crashed:
        (stopped.folder / "spool.db.turnstile.a").unlink()
        (stopped.folder / "spool.db.turnstile.b").unlink()
    stopped.give_to(NOBODY)
    shown = stopped.run("--json", "queue", "list")
    assert shown.returncode == 0, shown.stderr
    assert len(json.loads(shown.stdout)) == 2
    owners = stopped.owners()
    assert {"spool.db-wal", "spool.db-shm"} <= owners.keys(), "SQLite makes them to read"
    assert set(owners.values()) == {NOBODY}
