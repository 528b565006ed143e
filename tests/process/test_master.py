"""The master with real forks: births, deaths, silence, stops, sockets, the control socket."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.master import files
from relayd.master.client import NotRunning
from tests.process.relay import Relay, a_relay, is_alive

pytestmark = [pytest.mark.slow(3), pytest.mark.timeout(120)]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    yield from a_relay(tmp_path)


def test_workers_serve_on_the_shared_socket_and_the_status_shows_them(relay: Relay) -> None:
    relay.start_and_wait()
    status = relay.status()
    kinds = sorted((row["kind"], row["number"], row["state"]) for row in status["processes"])
    assert kinds == [("cached", 0, "ready"), ("worker", 1, "ready"), ("worker", 2, "ready")]
    assert status["pid"] == relay.pid
    assert status["listeners"][0]["name"] == "lan"
    relay.until(lambda: relay.status()["queue"] == {"ready": 3, "held": 1}, "figures")
    assert relay.greeting() == "first"
    assert (relay.folder / "relayd.pid").read_text() == f"{relay.pid}\n"
    title = Path(f"/proc/{relay.pid}/cmdline").read_bytes().rstrip(b"\0")
    assert title == b"relayd: master"


def test_a_shells_limit_of_files_is_raised(relay: Relay) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    relay.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard)))
    relay.wait_running()
    for pid in (relay.pid, *relay.workers()):
        soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft == files.most()


def test_a_killed_worker_is_replaced_and_its_leases_are_reclaimed(relay: Relay) -> None:
    relay.start_and_wait()
    victim = relay.workers()[0]
    os.kill(victim, signal.SIGKILL)
    relay.until(lambda: len(set(relay.workers()) - {victim}) == 2, "two workers again")
    relay.until(lambda: str(victim) in relay.notes("reclaimed"), "reclaimed")
    assert "how=SIGKILL" in relay.lines("child.died")[0]
    assert relay.notes("reclaimed").count(str(victim)) == 1


def test_a_killed_cached_comes_back(relay: Relay) -> None:
    relay.start_and_wait()
    rows = relay.status()["processes"]
    before = next(row["pid"] for row in rows if row["kind"] == "cached")
    os.kill(before, signal.SIGKILL)

    def is_back() -> bool:
        rows = relay.status()["processes"]
        return any(
            r["kind"] == "cached" and r["pid"] != before and r["state"] == "ready" for r in rows
        )

    relay.until(is_back, "cached again")


def test_a_worker_that_crashes_tells_its_traceback_and_is_replaced(relay: Relay) -> None:
    relay.start_and_wait()
    with relay.connect() as session:
        session.say("crash")
        assert session.is_closed()
        relay.until(lambda: session.pid not in relay.workers(), "gone")
    relay.until(lambda: len(relay.workers()) == 2, "replaced")
    line = relay.lines("process.crashed")[0]
    assert "RuntimeError: as asked" in line
    assert "traceback=" in line
    assert "exit 70" in relay.lines("child.died")[0]


def test_a_worker_that_hangs_shows_its_stack_and_is_replaced(relay: Relay) -> None:
    relay.options = {"timings": {"silent_s": 1.0}}
    relay.start_and_wait()
    with relay.connect() as session:
        session.say("hang")
        relay.until(lambda: not is_alive(session.pid), "aborted")
    relay.until(lambda: len(relay.workers()) == 2, "replaced")
    assert "Fatal Python error: Aborted" in relay.log()
    assert "fake_child.py" in relay.log()
    assert relay.lines("child.silent")


def test_a_stopped_worker_that_cannot_even_abort_is_killed(relay: Relay) -> None:
    relay.options = {"timings": {"silent_s": 1.0, "abort_grace_s": 0.3}}
    relay.start_and_wait()
    victim = relay.workers()[0]
    os.kill(victim, signal.SIGSTOP)
    relay.until(lambda: not is_alive(victim), "killed")
    relay.until(lambda: len(relay.workers()) == 2, "replaced")
    assert relay.lines("child.killed")


def test_a_master_that_was_away_kills_nobody(relay: Relay) -> None:
    relay.options = {"timings": {"silent_s": 2.0, "late_s": 0.5, "tick_s": 0.1}}
    relay.start_and_wait()
    workers = set(relay.workers())
    stopped = [relay.pid, *workers]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    relay.until(lambda: all(_state(pid) == "T" for pid in stopped), "all asleep")
    deadline = _uptime_s() + 2.5
    relay.until(lambda: _uptime_s() > deadline, "a while")
    os.kill(relay.pid, signal.SIGCONT)
    relay.until(lambda: relay.lines("master.late"), "noticed")
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    relay.until(lambda: set(relay.workers()) == workers, "the same workers")
    assert not relay.lines("child.silent")


def test_a_child_that_dies_at_birth_is_tried_again_but_not_at_once(relay: Relay) -> None:
    relay.config |= {"behaviour": "die", "workers": 1}
    relay.start()
    relay.until(lambda: len(relay.lines("child.died")) >= 3, "three tries")
    waits = [line.split("next_try_s=")[1].split()[0] for line in relay.lines("child.died")]
    assert waits[:3] == ["0.0", "1.0", "2.0"]
    assert relay.status()["state"] == "starting"
    assert "exit 3" in relay.status()["errors"][0]["text"]


def test_a_child_that_says_why_it_fails_is_heard(relay: Relay) -> None:
    relay.config |= {"behaviour": "fail", "workers": 1}
    relay.start()
    relay.until(lambda: relay.lines("child.failed"), "heard")
    assert "no spool today" in relay.lines("child.failed")[0]


def test_workers_start_without_cached_after_a_while(relay: Relay) -> None:
    relay.options = {"timings": {"cached_head_start_s": 0.1}}
    relay.start_and_wait()
    assert relay.greeting() == "first"


def test_sigterm_finishes_sessions_first(relay: Relay) -> None:
    relay.start_and_wait()
    port = relay.port()
    with relay.connect() as session:
        relay.signal(signal.SIGTERM)
        relay.until(lambda: _first_word(port) == "421", "new connections are told to come later")
        session.say("ping")
        assert session.read_line() == "pong\n"
        assert is_alive(relay.pid)
    assert relay.wait_exit() == 0
    assert _first_word(port) == "refused"
    assert relay.lines("relay.turned_away")
    assert not (relay.folder / "control.sock").exists()
    assert not (relay.folder / "relayd.pid").exists()


def test_who_waits_in_the_backlog_at_a_stop_is_answered_and_not_reset(relay: Relay) -> None:
    relay.config |= {"graceful_s": 0.5}
    relay.options = {"timings": {"cut_grace_s": 0.1}}
    relay.start_and_wait()
    port = relay.port()
    for pid in relay.workers():
        os.kill(pid, signal.SIGSTOP)  # busy: nobody takes from the backlog
    waiting = [socket.create_connection(("127.0.0.1", port), timeout=25) for _ in range(50)]
    waiting[0].sendall(b"EHLO talks.first\r\n")
    relay.signal(signal.SIGTERM)
    for sock in waiting:
        with sock:
            assert sock.recv(100).startswith(b"421 4.3.2 ")
            assert sock.recv(100) == b""
    assert relay.wait_exit() == 0


def test_sigterm_has_a_deadline(relay: Relay) -> None:
    relay.config |= {"graceful_s": 0.5}
    relay.options = {"timings": {"cut_grace_s": 0.1}}
    relay.start_and_wait()
    with relay.connect():
        relay.signal(signal.SIGTERM)
        assert relay.wait_exit() == 0
    assert relay.lines("child.killed")


def test_a_second_sigterm_hastens(relay: Relay) -> None:
    relay.config |= {"graceful_s": 1000}
    relay.start_and_wait()
    with relay.connect():
        relay.signal(signal.SIGTERM)
        relay.until(lambda: relay.lines("relay.stopping"), "the first was seen")
        relay.signal(signal.SIGTERM)
        assert relay.wait_exit() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_sigint_and_sigquit_stop_fast(relay: Relay, number: signal.Signals) -> None:
    relay.config |= {"graceful_s": 1000}
    relay.start_and_wait()
    with relay.connect():
        relay.signal(number)
        assert relay.wait_exit() == 0


def test_a_fast_stop_kills_what_does_not_go(relay: Relay) -> None:
    relay.config |= {"behaviour": "stay"}
    relay.options = {"timings": {"fast_grace_s": 0.3}}
    relay.start_and_wait()
    workers = relay.workers()
    relay.signal(signal.SIGQUIT)
    assert relay.wait_exit() == 0
    assert not any(is_alive(pid) for pid in workers)


def test_stop_by_control_is_answered_when_all_is_done(relay: Relay) -> None:
    relay.start_and_wait()
    workers = relay.workers()
    assert relay.ask(command="stop")["ok"] is True
    assert not any(is_alive(pid) for pid in workers)
    assert relay.wait_exit() == 0


def test_sigusr1_reaches_the_children(relay: Relay) -> None:
    relay.start_and_wait()
    workers = {str(pid) for pid in relay.workers()}
    relay.signal(signal.SIGUSR1)
    relay.until(lambda: workers <= set(relay.notes("reopened")), "reopened")


def test_signals_a_terminal_sends_to_the_group_do_not_end_children(relay: Relay) -> None:
    relay.start_and_wait()
    workers = relay.workers()
    for pid in workers:
        for number in (signal.SIGINT, signal.SIGUSR2, signal.SIGHUP, signal.SIGTTIN):
            os.kill(pid, number)
    assert relay.greeting() == "first"
    assert relay.workers() == workers


def test_sigttin_and_sigttou_change_the_number_of_workers(relay: Relay) -> None:
    relay.start_and_wait()
    relay.signal(signal.SIGTTIN)
    relay.until(lambda: len(relay.workers()) == 3, "one more")
    relay.signal(signal.SIGTTOU)
    relay.until(lambda: len(relay.workers()) == 2, "one less")
    assert relay.ask(command="workers", change=-1)["result"] == {"workers": 1}
    relay.until(lambda: len(relay.workers()) == 1, "one less")
    assert relay.ask(command="workers", change="all")["ok"] is False


def test_a_child_keeps_only_what_is_its_own(relay: Relay) -> None:
    relay.start_and_wait()
    os.kill(relay.workers()[0], signal.SIGKILL)
    relay.until(lambda: len(relay.workers()) == 2, "a late child, born with much open")
    youngest = max(relay.status()["processes"], key=lambda row: int(row["pid"]))
    assert youngest["kind"] == "worker"
    found: dict[str, str] = {}
    while not found:
        with relay.connect() as session:
            if session.pid == youngest["pid"]:
                session.say("descriptors")
                found = json.loads(session.read_line())
    sockets = [path for path in found.values() if path.startswith("socket:")]
    # The listener, its channel, and this session.
    assert len(sockets) == 3, found
    assert not any("eventpoll" in path or path.startswith("pipe:") for path in found.values())


def test_a_request_the_master_does_not_know_goes_to_a_worker(relay: Relay) -> None:
    relay.start_and_wait()
    result = relay.ask(command="queue.list", state="held")["result"]
    assert result["by"] in relay.workers()
    assert result["asked"]["request"]["state"] == "held"
    assert result["asked"]["peer"] == {"uid": os.getuid(), "pid": os.getpid()}


def test_a_request_without_a_worker_is_refused_with_words(relay: Relay) -> None:
    relay.config |= {"behaviour": "mute"}
    relay.start()
    relay.until(lambda: relay.status().get("processes"), "up")
    reply = relay.ask(command="queue.list")
    assert (reply["ok"], reply["exit"]) == (False, 69)


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        struct.pack("!I", 4) + b"nope",
        struct.pack("!I", 2) + b"[]",
        struct.pack("!I", 3) + b"{}",
        struct.pack("!I", 2) + b"{}" + b"more of it" * 1000,
        struct.pack("!I", 60_000) + b"[" * 60_000,
        b"",
    ],
)
def test_garbage_on_the_control_socket_costs_only_its_sender(relay: Relay, octets: bytes) -> None:
    relay.start_and_wait()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(relay.folder / "control.sock"))
        sock.sendall(octets)
        assert relay.status()["state"] == "running"
    assert relay.status()["state"] == "running"
    assert not relay.lines("master.fault")


def test_a_client_that_does_not_read_holds_nobody_up(relay: Relay) -> None:
    relay.start_and_wait()
    socks = []
    try:
        for _ in range(80):
            sock = socket.socket(socket.AF_UNIX)
            socks.append(sock)
            sock.connect(str(relay.folder / "control.sock"))
        assert is_alive(relay.pid)
    finally:
        for sock in socks:
            sock.close()
    # Until the master has seen that they are gone, it may still say that there are too many.
    relay.until(lambda: relay.status().get("state") == "running", "an answer")


def test_a_second_master_says_that_one_runs_already(relay: Relay, tmp_path: Path) -> None:
    relay.start_and_wait()
    second = Relay(tmp_path)
    second.config = relay.config
    second.log_path = tmp_path / "second.log"
    try:
        second.start()
        assert second.wait_exit() == 69
    finally:
        if second.process is not None:
            second.process.wait()
    assert f"already running: pid {relay.pid} " in second.log()
    assert relay.status()["state"] == "running"


def test_a_bad_configuration_prints_every_problem_and_exits_78(relay: Relay) -> None:
    relay.config |= {"problems": ["first thing", "second thing"]}
    relay.start()
    assert relay.wait_exit() == 78
    assert "first thing" in relay.log()
    assert "second thing" in relay.log()


def test_a_checker_that_dies_is_a_problem_too(relay: Relay) -> None:
    relay.config |= {"check": "dies"}
    relay.start()
    assert relay.wait_exit() == 78
    assert "the check itself failed (SIGABRT)" in relay.log()


def test_a_port_that_is_held_names_its_holder(relay: Relay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        relay.config |= {"addresses": [f"127.0.0.1:{holder.getsockname()[1]}"]}
        relay.options = {"timings": {"bind_retry_s": 0.2}}
        relay.start()
        assert relay.wait_exit() == 69
    assert f"(pid {os.getpid()})" in relay.log()
    assert "cannot listen on 127.0.0.1" in relay.log()


def test_a_port_that_becomes_free_in_time_is_taken(relay: Relay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        relay.config |= {"addresses": [f"127.0.0.1:{port}"]}
        relay.options = {"timings": {"bind_retry_s": 60.0}}
        relay.start()
        relay.until((relay.folder / "control.sock").exists, "it tries")
    relay.wait_running()
    assert relay.port() == port


def test_systemd_sockets_are_taken_over(relay: Relay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        port = given.getsockname()[1]
        relay.config |= {"addresses": ["127.0.0.1:9"]}
        relay.write()
        _start_with_socket(relay, given, "lan")
        relay.wait_running()
    listener = relay.status()["listeners"][0]
    assert (listener["address"], listener["origin"]) == (f"127.0.0.1:{port}", "systemd")
    assert relay.greeting() == "first"


def test_a_kept_socket_is_found_by_its_address(relay: Relay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        address = f"127.0.0.1:{given.getsockname()[1]}"
        relay.config |= {"addresses": [address]}
        relay.write()
        _start_with_socket(relay, given, "kept-whatever")
        relay.wait_running()
    listener = relay.status()["listeners"][0]
    assert (listener["address"], listener["origin"]) == (address, "systemd")


def test_a_kept_socket_nobody_wants_is_given_back(relay: Relay) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as given,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
    ):
        systemd.bind(str(relay.folder / "notify"))
        systemd.settimeout(25)
        relay.environ = {"NOTIFY_SOCKET": str(relay.folder / "notify")}
        relay.write()
        _start_with_socket(relay, given, "kept-old")
        assert "FDNAME=kept-old" in _hear(systemd, "FDSTOREREMOVE=1", "READY=1")
    assert relay.status()["listeners"][0]["origin"] == "bound"
    assert relay.lines("listener.unclaimed")


def test_systemd_hears_ready_status_and_stopping(relay: Relay) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(relay.folder / "notify"))
        systemd.settimeout(25)
        relay.environ = {
            "NOTIFY_SOCKET": str(relay.folder / "notify"),
            "WATCHDOG_USEC": "200000",
        }
        relay.start()
        heard = _hear(
            systemd,
            "READY=1",
            "WATCHDOG=1",
            "STATUS=serving, 3 queued, 1 held, 2 workers",
            "FDSTORE=1",
        )
        assert f"MAINPID={relay.pid}" in heard
        assert "FDNAME=kept-127.0.0.1-0" in heard
        relay.signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in _hear(systemd, "RELOADING=1", "READY=1")
        relay.signal(signal.SIGTERM)
        _hear(systemd, "STOPPING=1")
    assert relay.wait_exit() == 0


def test_systemd_is_asked_for_patience_where_it_takes_long(relay: Relay) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(relay.folder / "notify"))
        systemd.settimeout(25)
        relay.environ = {"NOTIFY_SOCKET": str(relay.folder / "notify")}
        relay.config |= {"behaviour": "slow"}
        relay.start()
        heard = _hear(systemd, "EXTEND_TIMEOUT_USEC=30000000")  # a large spool is copied
        assert "READY=1" not in heard
        (relay.folder / "opened").touch()
        _hear(systemd, "READY=1")
        relay.signal(signal.SIGTERM)
        _hear(systemd, "STOPPING=1", "EXTEND_TIMEOUT_USEC=25000000")  # graceful_timeout and more
    assert relay.wait_exit() == 0


def test_systemd_hears_why_a_reload_was_refused_until_one_is_done(relay: Relay) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(relay.folder / "notify"))
        systemd.settimeout(25)
        relay.environ = {"NOTIFY_SOCKET": str(relay.folder / "notify")}
        relay.start()
        _hear(systemd, "READY=1")
        relay.write(problems=["line 3: no such key"])
        assert relay.ask(command="reload")["ok"] is False
        _hear(systemd, "STATUS=configuration refused: line 3: no such key; the old one stays: ")
        relay.write(problems=[])
        assert relay.ask(command="reload")["ok"] is True
        _hear(systemd, "STATUS=serving, 3 queued, 1 held, 2 workers")


def _hear(systemd: socket.socket, *wanted: str) -> str:
    """Return what was said until each of `wanted` was."""
    heard = ""
    while not all(word in heard for word in wanted):
        octets, fds, _, _ = socket.recv_fds(systemd, 4096, 4)
        for fd in fds:
            os.close(fd)
        heard += octets.decode() + "\n"
    return heard


def _start_with_socket(relay: Relay, given: socket.socket, name: str) -> None:
    """Start the master as systemd would: descriptor 3 and LISTEN_PID of the process itself."""
    become = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); "
        "os.environ |= {'LISTEN_FDS': '1', 'LISTEN_FDNAMES': sys.argv[2]}; "
        "os.environ['LISTEN_PID'] = str(os.getpid()); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[3:]])"
    )
    again = ["-m", "tests.process.run_master", str(relay.config_path), json.dumps(relay.options)]
    relay.start(
        command=[sys.executable, "-c", become, str(given.fileno()), name, *again],
        pass_fds=(given.fileno(),),
    )


def _first_word(port: int) -> str:
    """Return what a new connection hears first; "refused", or "" for an end without a word."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
            return sock.recv(100).decode().partition(" ")[0]
    except ConnectionRefusedError:
        return "refused"


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _uptime_s() -> float:
    return float(Path("/proc/uptime").read_text().split()[0])


def test_nobody_answers_when_it_is_gone(relay: Relay) -> None:
    with pytest.raises(NotRunning):
        relay.ask(command="status")
