"""SIGHUP and SIGUSR2 with real forks: check first, no refused connection, nothing half done."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.process.relay import Relay, a_relay, is_alive

pytestmark = [pytest.mark.slow(3), pytest.mark.timeout(120)]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    yield from a_relay(tmp_path)


class Stream:
    """A thread that connects without a pause and counts what it meets."""

    def __init__(self, relay: Relay) -> None:
        self._port = relay.port()
        self._relay = relay
        self._is_over = threading.Event()
        self.hostnames: list[str] = []
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Stream:  # noqa: PYI034  one class, no subclasses
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                self.hostnames.append(self._relay.greeting(self._port))
            except (OSError, ValueError) as error:
                self.failures.append(repr(error))


def test_a_good_configuration_is_taken_over_without_a_refused_connection(relay: Relay) -> None:
    relay.start_and_wait()
    old = relay.workers()
    with Stream(relay) as stream:
        relay.until(lambda: stream.hostnames, "it flows")
        relay.write(hostname="second")
        assert relay.ask(command="reload")["result"] == {"generation": 2, "workers": 2}
        relay.until(lambda: stream.hostnames[-1] == "second", "the new ones answer")
        relay.until(lambda: not any(is_alive(pid) for pid in old), "the old ones go")
    assert stream.failures == []
    assert stream.hostnames[0] == "first"
    assert relay.lines("reload.done")


def test_a_bad_configuration_changes_nothing_and_names_every_problem(relay: Relay) -> None:
    relay.start_and_wait()
    workers = relay.workers()
    relay.write(problems=["upstream.a: nonsense", "listener.b: nonsense"])
    reply = relay.ask(command="reload")
    assert reply["ok"] is False
    assert reply["problems"] == ["upstream.a: nonsense", "listener.b: nonsense"]
    assert len(relay.lines("reload.refused")) == 2
    assert relay.workers() == workers
    assert relay.greeting() == "first"
    assert relay.status()["reload"]["result"] == "refused"
    relay.write(problems=[], hostname="third")
    assert relay.ask(command="reload")["ok"] is True
    relay.until_greeted("third")


def test_sessions_of_the_old_generation_are_finished(relay: Relay) -> None:
    relay.start_and_wait()
    with relay.connect() as session:
        relay.write(hostname="second")
        assert relay.ask(command="reload")["ok"] is True
        session.say("ping")
        assert session.read_line() == "pong\n"
        relay.until_greeted("second")
    relay.until(lambda: not is_alive(session.pid), "it went when its session ended")


def test_an_old_generation_has_a_deadline(relay: Relay) -> None:
    relay.config |= {"graceful_s": 0.5}
    relay.options = {"timings": {"cut_grace_s": 0.1}}
    relay.start_and_wait()
    with relay.connect() as session:
        assert relay.ask(command="reload")["ok"] is True
        relay.until(lambda: not is_alive(session.pid), "killed")
        assert session.is_closed()
    assert relay.lines("child.killed")
    assert len(relay.workers()) == 2


def test_ten_hangups_become_few_reloads_and_all_of_them_end(relay: Relay) -> None:
    relay.start_and_wait()
    with Stream(relay) as stream:
        for number in range(10):
            relay.write(hostname=f"host{number}")
            relay.signal(signal.SIGHUP)
        relay.until(lambda: stream.hostnames and stream.hostnames[-1] == "host9", "the last")
        relay.until(lambda: relay.status()["state"] == "running", "done")
        relay.until(lambda: len(relay.status()["processes"]) == 3, "no one left over")
    assert stream.failures == []
    assert 1 <= len(relay.lines("reload.done")) <= 10
    assert relay.status()["generation"] <= 11


def test_everybody_who_asks_meanwhile_hears_of_a_reload_that_began_later(relay: Relay) -> None:
    relay.start_and_wait()
    replies: list[object] = []
    threads = [
        threading.Thread(target=lambda: replies.append(relay.ask(command="reload")["ok"]))
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == [True] * 5
    assert len(relay.lines("reload.done")) <= 5


def test_at_most_two_generations_live(relay: Relay) -> None:
    relay.config |= {"graceful_s": 1000}
    relay.start_and_wait()
    with relay.connect() as session:
        relay.write(hostname="second")
        assert relay.ask(command="reload")["ok"] is True
        relay.write(hostname="third")
        relay.signal(signal.SIGHUP)
        relay.until(lambda: relay.lines("reload.waiting"), "the third waits")
        relay.until_greeted("second")
        assert is_alive(session.pid)
    relay.until(lambda: relay.greeting() == "third", "now it may")


def test_a_generation_that_fails_is_refused_at_once(relay: Relay) -> None:
    relay.start_and_wait()
    workers = relay.workers()
    relay.write(behaviour="fail", hostname="second")
    reply = relay.ask(command="reload")
    assert reply["ok"] is False
    assert "no spool today" in reply["problems"][0]
    relay.until(lambda: len(relay.status()["processes"]) == 3, "the failed ones are gone")
    assert relay.workers() == workers
    assert relay.greeting() == "first"
    relay.write(behaviour="")
    assert relay.ask(command="reload")["ok"] is True
    relay.until_greeted("second")


def test_a_generation_that_never_gets_ready_is_refused(relay: Relay) -> None:
    relay.options = {"timings": {"ready_within_s": 1.0}}
    relay.start_and_wait()
    workers = relay.workers()
    relay.write(behaviour="mute")
    reply = relay.ask(command="reload")
    assert reply["problems"] == ["worker 1, worker 2 not ready within 1 s"]
    relay.until(lambda: len(relay.status()["processes"]) == 3, "they are gone")
    assert relay.workers() == workers


def test_a_worker_killed_while_it_starts_does_not_refuse_the_reload(relay: Relay) -> None:
    relay.start_and_wait()
    old = set(relay.workers())
    relay.write(behaviour="mute")
    relay.signal(signal.SIGHUP)

    def rising() -> list[int]:
        rows = relay.status()["processes"]
        return [r["pid"] for r in rows if r["state"] == "starting" and r["pid"] not in old]

    relay.until(lambda: len(rising()) == 2, "they start")
    victim = rising()[0]
    os.kill(victim, signal.SIGKILL)
    relay.until(lambda: len(rising()) == 2 and victim not in rising(), "forked again")
    assert not relay.lines("reload.refused")


def test_listeners_come_and_go_with_the_configuration(relay: Relay) -> None:
    relay.start_and_wait()
    first = relay.port()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        second = probe.getsockname()[1]
    relay.write(addresses=["127.0.0.1:0", f"127.0.0.1:{second}"])
    assert relay.ask(command="reload")["ok"] is True
    assert relay.greeting(first) == "first"
    assert relay.greeting(second) == "first"
    relay.write(addresses=[f"127.0.0.1:{second}"])
    assert relay.ask(command="reload")["ok"] is True
    relay.until(lambda: len(relay.status()["processes"]) == 3, "the old ones are gone")
    assert relay.greeting(second) == "first"
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", first)) == errno.ECONNREFUSED


def test_a_listener_that_cannot_be_bound_refuses_the_reload(relay: Relay) -> None:
    relay.start_and_wait()
    workers = relay.workers()
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        relay.write(addresses=["127.0.0.1:0", address])
        reply = relay.ask(command="reload")
    assert f"cannot listen on {address}" in reply["problems"][0]
    assert f"(pid {os.getpid()})" in reply["problems"][0]
    assert relay.workers() == workers
    assert relay.greeting() == "first"


def test_another_address_of_a_port_we_hold_ourselves_needs_a_restart(relay: Relay) -> None:
    relay.start_and_wait()
    port = relay.port()
    relay.write(addresses=[f"0.0.0.0:{port}"])
    assert relay.ask(command="reload")["problems"][0].endswith("systemctl restart relayd")
    assert relay.greeting() == "first"
    relay.write(addresses=[f"127.0.0.1:{port}"], hostname="second")  # that is where it listens
    assert relay.ask(command="reload")["ok"] is True
    relay.until_greeted("second", port=port)


def test_another_runtime_dir_needs_a_restart(relay: Relay) -> None:
    relay.start_and_wait()
    elsewhere = relay.folder / "elsewhere"
    relay.write(runtime_dir=str(elsewhere))
    assert "needs a restart" in relay.ask(command="reload")["problems"][0]
    relay.config["runtime_dir"] = str(relay.folder)


def test_a_check_that_hangs_is_ended(relay: Relay) -> None:
    relay.options = {"timings": {"check_within_s": 0.5}}
    relay.start_and_wait()
    relay.config_path.unlink()
    os.mkfifo(relay.config_path)
    assert "SIGKILL" in relay.ask(command="reload")["problems"][0]
    assert relay.greeting() == "first"


def test_a_stop_in_the_middle_of_a_reload_stops(relay: Relay) -> None:
    relay.start_and_wait()
    relay.write(behaviour="mute")
    relay.signal(signal.SIGHUP)
    relay.until(lambda: len(relay.status()["processes"]) == 5, "half way")
    relay.signal(signal.SIGTERM)
    assert relay.wait_exit() == 0


def test_an_upgrade_keeps_the_pid_the_socket_and_the_sessions(relay: Relay) -> None:
    relay.start_and_wait()
    port, old = relay.port(), relay.status()
    pids = {row["pid"] for row in old["processes"]}
    with relay.connect() as session, Stream(relay) as stream:
        relay.write(hostname="second")
        relay.signal(signal.SIGUSR2)
        relay.until(lambda: relay.lines("upgrade.done"), "new code")
        relay.until(lambda: relay.lines("reload.done"), "and new workers")
        assert is_alive(relay.pid)
        session.say("ping")
        assert session.read_line() == "pong\n"
        relay.until(lambda: stream.hostnames[-1] == "second", "the new ones answer")
    assert stream.failures == []
    relay.until(lambda: not any(is_alive(pid) for pid in pids), "all old children gone")
    relay.wait_running()
    relay.until(lambda: len(relay.status()["processes"]) == 3, "cached is back too")
    status = relay.status()
    assert (status["pid"], relay.port()) == (relay.pid, port)
    assert status["generation"] == old["generation"] + 1
    assert (relay.folder / "relayd.pid").read_text() == f"{relay.pid}\n"
    relay.signal(signal.SIGTERM)
    assert relay.wait_exit() == 0


def test_after_an_upgrade_children_are_still_watched_and_replaced(relay: Relay) -> None:
    relay.options = {"timings": {"silent_s": 1.0}}
    relay.start_and_wait()
    relay.write(problems=["not now"])
    relay.signal(signal.SIGUSR2)
    relay.until(lambda: relay.lines("reload.refused"), "new code, old workers")
    workers = relay.workers()
    assert len(workers) == 2
    with relay.connect() as session:
        session.say("hang")
        relay.until(lambda: not is_alive(session.pid), "aborted")
    os.kill(next(pid for pid in workers if pid != session.pid), signal.SIGKILL)
    relay.until(lambda: len(set(relay.workers()) - set(workers)) == 2, "replaced")
    assert relay.greeting() == "first"


def _is_past(relay: Relay, event: str, before: int) -> bool:
    return len(relay.lines(event)) > before


def test_two_upgrades_in_a_row(relay: Relay) -> None:
    relay.start_and_wait()
    for before in (0, 1):
        relay.signal(signal.SIGUSR2)
        relay.until(partial(_is_past, relay, "upgrade.done", before), "new code")
        relay.until(partial(_is_past, relay, "reload.done", before), "new workers")
    relay.until(lambda: len(relay.status()["processes"]) == 3, "no one left over")
    assert relay.greeting() == "first"


def test_an_upgrade_that_fails_its_preflight_changes_nothing(relay: Relay) -> None:
    relay.options = {"preflight": [sys.executable, "-c", "exit('line 3: no such key')"]}
    relay.start_and_wait()
    workers = relay.workers()
    relay.signal(signal.SIGUSR2)
    relay.until(lambda: relay.lines("upgrade.refused"), "refused")
    assert "line 3: no such key" in relay.lines("upgrade.refused")[0]
    assert relay.workers() == workers


def test_an_upgrade_that_cannot_be_executed_changes_nothing(relay: Relay) -> None:
    relay.options = {"again": ["/nonexistent/python"]}
    relay.start_and_wait()
    workers = relay.workers()
    relay.signal(signal.SIGUSR2)
    relay.until(lambda: relay.lines("upgrade.refused"), "refused")
    assert relay.workers() == workers
    assert relay.greeting() == "first"
    relay.write(hostname="second")
    assert relay.ask(command="reload")["ok"] is True


def test_a_reload_mends_a_relay_that_could_not_start(relay: Relay) -> None:
    relay.config |= {"behaviour": "fail"}
    relay.start()
    relay.until(lambda: relay.lines("child.failed"), "it cannot start")
    relay.write(behaviour="", hostname="second")
    assert relay.ask(command="reload")["ok"] is True
    assert relay.status()["state"] == "running"
    relay.until_greeted("second")


def test_upgrades_asked_for_twice_are_one_after_the_other(relay: Relay) -> None:
    relay.start_and_wait()
    relay.signal(signal.SIGUSR2)
    relay.until(lambda: relay.lines("upgrade.checking"), "the first is under way")
    assert relay.ask(command="upgrade")["ok"] is True
    relay.until(lambda: len(relay.lines("reload.done")) >= 1, "new workers")
    relay.until(lambda: relay.status().get("state") == "running", "settled")
    assert relay.greeting() == "first"
    assert not relay.lines("master.fault")


def test_a_preflight_that_hangs_is_ended(relay: Relay) -> None:
    relay.options = {
        "timings": {"check_within_s": 0.5},
        "preflight": [sys.executable, "-c", "import signal; signal.pause()"],
    }
    relay.start()
    relay.wait_running()
    relay.signal(signal.SIGUSR2)
    relay.until(lambda: relay.lines("upgrade.refused"), "ended")
    assert relay.status()["state"] == "running"
    assert relay.ask(command="reload")["ok"] is True


def test_a_stop_during_a_preflight_stops(relay: Relay) -> None:
    relay.options = {"preflight": ["/bin/sh", "-c", "read line < $0", str(relay.folder / "gate")]}
    os.mkfifo(relay.folder / "gate")
    relay.start_and_wait()
    relay.signal(signal.SIGUSR2)
    relay.until(lambda: relay.status()["state"] == "upgrade: checking", "it looks")
    relay.signal(signal.SIGTERM)
    assert relay.wait_exit() == 0
