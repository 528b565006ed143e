"""A worker is put together from a checked configuration; what it cannot use, it says.

That it serves, drains, obeys the master and survives its death is shown with real processes,
in tests/process.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from relayd.config import codec
from relayd.config.model import Config, Server, Spool

SCRIPT = """
import os, socket, sys
from relayd.worker import main
from relayd.master.child import ChildContext

class Pulse:
    def beat(self): pass
    def accept(self, *, does): pass
    def is_ahead(self): return False
    def enter(self, device): return True
    def leave(self, device): pass
    def move(self, old, new): return True

config_fd, channel_fd = int(sys.argv[1]), int(sys.argv[2])
sys.exit(main(ChildContext(kind="worker", number=1, serial=1, config_fd=config_fd, listeners=(),
                           channel_fd=channel_fd, pulse=Pulse())))
"""


def run_worker(
    config: Config,
    *,
    orders: Sequence[dict[str, str]] = (),
    before: Callable[[], None] | None = None,
    prelude: str = "",
    script: str = SCRIPT,
) -> tuple[int, list[dict[str, object]]]:
    """Run one until it ends; returns its exit code and what it told the master."""
    import socket  # noqa: PLC0415  this process is patched by other tests; here it must not matter

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memfd = os.memfd_create("config")
    os.write(memfd, codec.dumps(config))
    os.lseek(memfd, 0, os.SEEK_SET)
    for order in orders:
        ours.send(json.dumps(order).encode())
    try:
        done = subprocess.run(
            [sys.executable, "-c", prelude + script, str(memfd), str(theirs.fileno())],
            pass_fds=(memfd, theirs.fileno()),
            capture_output=True,
            timeout=15,
            check=False,
            preexec_fn=before,
        )
        theirs.close()
        told = []
        while octets := ours.recv(65536):
            told.append(json.loads(octets))
    finally:
        os.close(memfd)
        theirs.close()
        ours.close()
    return done.returncode, told


def test_a_spool_that_cannot_be_used_is_told_to_the_master_and_ends_with_78() -> None:
    code, told = run_worker(Config(spool=Spool(url="sqlite:///proc/nowhere/spool.db")))

    assert code == 78
    assert [one["event"] for one in told] == ["failed"]
    assert "[spool] url" in str(told[0]["text"])


@pytest.mark.slow(2)
def test_it_tells_the_others_when_it_accepts_and_when_no_more(tmp_path: Path) -> None:
    config = Config(
        server=Server(runtime_dir=str(tmp_path)), spool=Spool(url=f"sqlite://{tmp_path}/spool.db")
    )
    tells = SCRIPT.replace(
        "accept(self, *, does): pass",
        """accept(self, *, does): os.write(channel_fd, b'{"event": "accepts %d"}' % does)""",
    )

    code, told = run_worker(config, orders=[{"do": "drain"}], script=tells)

    assert code == 0
    events = [one["event"] for one in told]
    assert [one for one in events if one in {"accepts 1", "ready", "accepts 0"}] == [
        "accepts 1",
        "ready",
        "accepts 0",
    ]


def _no_room() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.slow(2)
def test_a_disk_that_fails_at_the_start_does_not_keep_it_from_answering_451(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o700)
    config = Config(
        server=Server(runtime_dir=str(tmp_path)), spool=Spool(url=f"sqlite://{tmp_path}/spool.db")
    )
    assert run_worker(config, orders=[{"do": "drain"}])[0] == 0

    code, told = run_worker(config, orders=[{"do": "drain"}], before=_no_room)

    assert code == 0
    assert "ready" in [one["event"] for one in told]


FAILS_ONCE = """
import os, signal
import relayd.worker as worker

worker._TELL_S = 0.01
figures, calls = worker.Operator.figures, []

def failing(self):
    calls.append(1)
    if len(calls) == 1:
        raise ZeroDivisionError
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return figures(self)

worker.Operator.figures = failing
"""
SLOW_TO_OPEN = """
import gevent
import relayd.worker as worker

worker._TELL_S = worker._BEAT_S = 0.01
opened = worker._open_spool

def slowly(*arguments):
    wanted = [0]
    while wanted[0] < 3:
        gevent.idle()
        wanted[0] = len(beats)
    return opened(*arguments)

worker._open_spool = slowly
beats = []
"""


def a_config(folder: Path) -> Config:
    folder.chmod(0o700)
    return Config(
        server=Server(runtime_dir=str(folder)), spool=Spool(url=f"sqlite://{folder}/spool.db")
    )


@pytest.mark.slow(2)
def test_a_report_that_fails_is_not_the_last(tmp_path: Path) -> None:
    code, told = run_worker(a_config(tmp_path), prelude=FAILS_ONCE)
    assert code == 0
    assert "status" in [one["event"] for one in told]


@pytest.mark.slow(2)
def test_a_spool_that_takes_long_to_open_is_told_of_while_the_worker_beats(tmp_path: Path) -> None:
    script = SCRIPT.replace("def beat(self): pass", "def beat(self): beats.append(1)")
    code, told = run_worker(
        a_config(tmp_path), prelude=SLOW_TO_OPEN, orders=[{"do": "drain"}], script=script
    )
    assert code == 0
    events = [one["event"] for one in told]
    assert "opening" in events[: events.index("ready")]


@pytest.mark.parametrize(
    ("before", "after"), [("SCHED_OTHER", "SCHED_BATCH"), ("SCHED_IDLE", "SCHED_IDLE")]
)
def test_a_policy_that_somebody_chose_stays(before: str, after: str) -> None:
    script = f"""
import os
from relayd.worker import _let_others_finish
os.sched_setscheduler(0, os.{before}, os.sched_param(0))
_let_others_finish()
print(os.sched_getscheduler(0))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) == getattr(os, after)


def test_a_spool_that_cannot_take_mail_is_told_with_its_place_and_what_to_look_at() -> None:
    script = """
import json
from relayd import worker
from relayd.config.model import Config, Spool
config = Config(spool=Spool(url="sqlite:////srv/my spool/spool.db"))
print(json.dumps([worker.spool_told(config, text) for text in ("", "No space left on device")]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    well, told = json.loads(done.stdout)
    assert well == {"ok": True, "text": "", "path": "/srv/my spool/spool.db"}
    assert (told["ok"], told["text"]) == (False, "No space left on device")
    assert "df -h '/srv/my spool'; df -i '/srv/my spool'. " in told["do"]
    assert "min_free_disk" in told["do"]
