"""Lines leave through a thread that nobody waits for; secrets never leave."""

from __future__ import annotations

import _thread
import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import structlog

from relayd.clock import FakeClock
from relayd.config.model import Log, Secret
from relayd.observe import log as log_room
from relayd.observe import logfmt
from relayd.observe.log import HIDDEN, Journal, is_secret, scrub


class Reader:
    """The other end of a pipe, read in a thread of its own."""

    def __init__(self) -> None:
        self.taken, self.given = os.pipe()

    def fill(self) -> None:
        """Leave no room in the pipe."""
        os.set_blocking(self.given, False)
        try:
            while True:
                os.write(self.given, b"filled\n" * 512)
        except BlockingIOError:
            os.set_blocking(self.given, True)

    def text(self) -> str:
        os.close(self.given)
        with io.FileIO(self.taken) as file:
            return file.readall().decode()


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Path]:
    """Logging as `configure` sets it up, into a file, put back afterwards."""
    root, path = logging.getLogger(), tmp_path / "relayd.log"
    handlers, level, kept = root.handlers, root.level, structlog.get_config()
    log_room.configure(Log(file=str(path), level="debug"), process="worker-1")
    yield path
    log_room.close()
    structlog.configure(**kept)
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)


def logger() -> structlog.typing.FilteringBoundLogger:
    made: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return made


def written(path: Path) -> list[str]:
    log_room.close()
    return path.read_text().splitlines()


def test_lines_come_out_in_order_and_whole(reader: Reader) -> None:
    journal = Journal(descriptor=reader.given)
    for number in range(1000):
        journal.put(f"line {number}")
    assert journal.close()
    assert reader.text().splitlines() == [f"line {number}" for number in range(1000)]


def test_nobody_waits_for_a_stalled_reader_and_drops_are_told(reader: Reader) -> None:
    reader.fill()
    journal = Journal(descriptor=reader.given, most_lines=10)
    for _ in range(500):
        journal.put("x" * 1000)
    assert journal.dropped > 400
    assert not journal.close(wait_s=0.01)
    text: list[str] = []
    os.set_blocking(reader.taken, False)
    taker = threading.Thread(target=lambda: text.append(_drain(reader.taken, journal)))
    taker.start()
    taker.join(10)
    lines = text[0].splitlines()
    assert len([line for line in lines if line == "x" * 1000]) == 500 - journal.dropped
    assert any(f"log.dropped level=warning lines={journal.dropped}" in line for line in lines)


def _drain(descriptor: int, journal: Journal) -> str:
    """Read until the journal has written everything."""
    octets, done = b"", False
    while True:
        try:
            octets += os.read(descriptor, 65536)
        except BlockingIOError:
            if done:
                return octets.decode()
            done = journal._done.acquire(timeout=0.01)


def test_a_non_blocking_terminal_loses_nothing(reader: Reader) -> None:
    os.set_blocking(reader.given, False)
    journal = Journal(descriptor=reader.given)
    for _ in range(200):
        journal.put("x" * 1000)
    assert not journal.close(wait_s=0.01)
    os.set_blocking(reader.taken, False)
    assert _drain(reader.taken, journal).count("x" * 1000) == 200
    assert journal.dropped == 0


def test_a_closed_reader_costs_lines_and_nothing_else(reader: Reader) -> None:
    os.close(reader.taken)
    journal = Journal(descriptor=reader.given)
    journal.put("gone")
    assert journal.close()
    assert journal.dropped >= 1


def test_a_line_that_is_no_unicode_is_written_all_the_same(reader: Reader) -> None:
    journal = Journal(descriptor=reader.given)
    journal.put("bad \udcff")
    assert journal.close()
    assert reader.text() == "bad \\udcff\n"


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Journals start no thread: the test writes, where it can be watched."""
    not_started = (lambda *_: None, _thread.allocate_lock)
    monkeypatch.setattr(log_room, "_native", lambda: not_started)


def test_the_writer_joins_lines_up_to_what_a_pipe_takes_at_once(
    reader: Reader, by_hand: None
) -> None:
    journal = Journal(descriptor=reader.given)
    for letter in "abcdefghij":
        journal.put(letter * 999)
    assert len(journal._batch()) == 4000
    assert len(journal._batch()) == 4000
    journal.put("k" * 9000)
    journal.close(wait_s=0)
    journal._write_lines()
    assert reader.text().splitlines() == ["i" * 999, "j" * 999, "k" * 9000]


def test_the_writer_tells_drops_after_the_lines_it_has(reader: Reader, by_hand: None) -> None:
    journal = Journal(descriptor=reader.given, most_lines=2)
    for number in range(5):
        journal.put(str(number))
    assert journal.dropped == 3
    journal.close(wait_s=0)
    journal._write_lines()
    first, second, told = reader.text().splitlines()
    assert (first, second) == ("0", "1")
    assert told.startswith("log.dropped level=warning lines=3 ts=")


def test_the_writer_sleeps_until_roused(tmp_path: Path, by_hand: None) -> None:
    journal = Journal(str(tmp_path / "a.log"))
    roused: list[str] = []

    class Wake:
        """Stands where the sleep is; work arrives meanwhile."""

        def acquire(self) -> None:
            idle = [journal._idle]
            journal.put("late")
            assert [*idle, journal._idle] == [True, False]
            journal.reopen()
            journal._closing = True

        def release(self) -> None:
            roused.append("roused")
            if len(roused) > 1:
                raise RuntimeError("release unlocked lock")

    journal._wake = Wake()  # type: ignore[assignment]  # what the writer uses of a lock
    journal._write_lines()
    assert len(roused) == 2
    assert (tmp_path / "a.log").read_text() == "late\n"


class Sleep:
    """Stands where the writer waits, and puts a line each time it does."""

    def __init__(self, journal: Journal, path: Path, lines: int) -> None:
        self.journal = journal
        self.path = path
        self.lines = lines
        self.waits: list[float | None] = []
        self.roused = 0
        self.seen: list[str] = []
        journal._wake = self  # type: ignore[assignment]  # what the writer uses of a lock

    def acquire(self, *, timeout: float | None = None) -> None:
        self.waits.append(timeout)
        self.seen.append(self.path.read_text())
        if self.lines:
            self.lines -= 1
            self.journal.put("more")
        elif timeout is None or len(self.waits) > 50:
            self.journal._closing = True

    def release(self) -> None:
        self.roused += 1


def test_lines_that_come_while_the_writer_looks_again_rouse_nobody(
    tmp_path: Path, by_hand: None
) -> None:
    path = tmp_path / "a.log"
    journal = Journal(str(path))
    journal.put("first")
    sleep = Sleep(journal, path, lines=2)
    journal._write_lines()
    assert path.read_text() == "first\nmore\nmore\n"
    assert sleep.waits == [0.02] * 7 + [None], "five looks after the last line, then it sleeps"
    assert sleep.roused == 0


def test_a_writer_that_was_roused_lets_a_few_lines_come_together(
    tmp_path: Path, by_hand: None
) -> None:
    path = tmp_path / "a.log"
    journal = Journal(str(path))
    sleep = Sleep(journal, path, lines=2)
    journal._write_lines()
    assert sleep.waits[:2] == [None, 0.02]
    assert sleep.seen[1] == ""
    assert sleep.seen[2] == "more\nmore\n"
    assert sleep.roused == 1


def test_the_writer_waits_for_room_and_gives_up_on_errors(reader: Reader, by_hand: None) -> None:
    reader.fill()
    os.set_blocking(reader.given, False)
    journal = Journal(descriptor=reader.given)

    class Never:
        """Stands where the writer pauses; somebody reads meanwhile, or goes away."""

        def acquire(self, timeout: float) -> None:
            if journal.dropped == 0:
                os.read(reader.taken, 65536)

    journal._never = Never()  # type: ignore[assignment]  # what the writer uses of a lock
    journal._write_all(b"one\n")
    assert journal.dropped == 0
    os.close(reader.taken)
    journal._write_all(b"two\nthree\n")
    assert journal.dropped == 2
    journal._tell_dropped()
    assert journal._untold == 0


def test_the_writer_keeps_the_old_file_when_there_is_no_new_one(
    tmp_path: Path, by_hand: None
) -> None:
    journal = Journal(str(tmp_path / "a.log"))
    journal._path = str(tmp_path / "no/a.log")
    journal.reopen()
    journal.put("kept")
    journal._closing = True
    journal._write_lines()
    assert (tmp_path / "a.log").read_text() == "kept\n"


def test_a_line_has_event_fields_process_and_moment(house: Path) -> None:
    logger().info("message.sent", id="8ZK3", bytes=12)
    (line,) = written(house)
    assert line.startswith("message.sent level=info id=8ZK3 bytes=12 process=worker-1 ts=20")


def test_workers_and_master_write_the_same_form(house: Path) -> None:
    """The master renders with logfmt alone; structlog must add nothing of its own."""
    fields: dict[str, object] = {"helo": "a b\x1b", "bytes": 12, "queued_s": 0.04, "why": None}
    logger().warning("message.deferred", **fields)
    (line,) = written(house)
    told, _, moment = line.rpartition(" ts=")
    master = logfmt.render(
        "message.deferred",
        {**fields, "process": "worker-1"},
        level="warning",
        moment=datetime.fromisoformat(moment),
    )
    assert master == f"{told} ts={moment}"


def test_a_field_may_be_called_as_the_parameters_of_structlog(house: Path) -> None:
    logger().info("auth.ok", method="plain", name="a", self_="b", level="c", fields="d")
    logger().bind(session="a1").info("auth.ok", method="plain")
    first, second = written(house)
    assert first.startswith("auth.ok level=info method=plain name=a self_=b level=c fields=d ")
    assert second.startswith("auth.ok level=info session=a1 method=plain process=worker-1 ")


def test_lines_below_the_level_are_not_made(house: Path) -> None:
    log_room.close()
    log_room.configure(Log(file=str(house), level="warning"), process="worker-1")
    logger().info("message.sent", id="8ZK3")
    logger().warning("token.failed")
    assert [line.split()[0] for line in written(house)] == ["token.failed"]


def test_secrets_are_hidden_however_often_a_name_was_harmless(house: Path) -> None:
    for number in range(600):  # more names than are remembered
        logger().debug("x.y", **{f"name{number}": "open"})
    for value in ("open", Secret("geheim"), "open", Secret("geheim")):
        logger().debug("x.y", setting=value, password="geheim")
    lines = written(house)
    assert [line.split()[2] for line in lines[600:]] == ["setting=open", "setting=***"] * 2
    assert all("geheim" not in line and " password=*** " in line for line in lines[600:])


def test_secrets_are_hidden_at_every_level(house: Path) -> None:
    logger().debug(
        "auth.failed",
        password="geheim",
        client_secret="geheim",
        access_token="geheim",
        Authorization="Bearer geheim",
        setting=Secret("geheim"),
        token_expires="2027",
    )
    (line,) = written(house)
    assert "geheim" not in line
    assert line.count(f"={HIDDEN}") == 5
    assert "token_expires=2027" in line


def test_an_exception_is_told_with_its_traceback_on_one_line(house: Path) -> None:
    try:
        raise ValueError("client_secret=geheim")
    except ValueError as caught:
        logger().exception("courier.bug", id="8ZK3")
        logger().error("courier.bug", exc_info=caught)
        logger().error("courier.bug", exc_info=sys.exc_info())
    logger().error("courier.bug", exc_info=False)
    first, second, third, fourth = written(house)
    for line in (first, second, third):
        assert 'error="ValueError: client_secret=***"' in line
        assert "traceback=" in line
        assert "level=error" in line
        assert "geheim'" not in line
    assert "traceback=" not in fourth


def test_what_libraries_warn_of_is_told_in_our_form(house: Path) -> None:
    logging.getLogger("urllib3.connectionpool").warning("Retrying %s", "Bearer abc.def")
    logging.getLogger("msal").info("not told")
    odd = logging.LogRecord("odd", logging.ERROR, "", 0, "%d", ("no number",), None)
    logging.getLogger().handlers[0].emit(odd)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old ways", DeprecationWarning, stacklevel=1)
    lines = written(house)
    assert lines[0].startswith(
        'library.message level=warning logger=urllib3.connectionpool text="Retrying Bearer ***"'
    )
    assert "level=error logger=odd text=%d" in lines[1]
    assert "old ways" in lines[2]
    assert len(lines) == 3


def test_a_moved_file_is_opened_anew(house: Path) -> None:
    logger().info("process.started")
    journal = log_room._current()
    assert journal is not None
    while not house.read_text():
        os.sched_yield()
    house.rename(house.with_suffix(".1"))
    log_room.reopen()
    while not house.exists():
        os.sched_yield()
    assert any("log.reopened" in line for line in written(house))
    assert "process.started" in house.with_suffix(".1").read_text()


def test_a_file_that_cannot_be_opened_anew_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    journal = Journal(str(folder / "relayd.log"))
    kept = os.open(folder / "relayd.log", os.O_RDONLY)
    (folder / "relayd.log").unlink()
    folder.rmdir()
    journal.reopen()
    journal.put("still here")
    assert journal.close()
    assert os.read(kept, 100) == b"still here\n"
    os.close(kept)


def test_reopen_and_close_without_configure_do_nothing() -> None:
    structlog.reset_defaults()
    log_room.reopen()
    log_room.close()


def test_the_form_is_chosen_by_settings_and_terminal(tmp_path: Path) -> None:
    moment = FakeClock().now
    shown = {
        name: log_room._form(Log(format=name))("x.y", {"a": 1}, level="info", moment=moment)
        for name in ("logfmt", "json", "console", "auto")
    }
    assert json.loads(shown["json"])["a"] == 1
    assert shown["logfmt"].startswith("x.y level=info a=1 ts=")
    assert shown["auto"] == shown["logfmt"]  # pytest's standard error is no terminal
    assert shown["console"].endswith("info    x.y                  a=1")


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("Authorization: Bearer eyJ0eXAi.abc", "Authorization: Bearer ***"),
        ("client_secret=abc&scope=x", "client_secret=***&scope=x"),
        ('{"access_token": "eyJ0", "x": 1}', '{"access_token": "***", "x": 1}'),
        ("the password was wrong", "the password was wrong"),
    ],
)
def test_texts_of_libraries_are_scrubbed(text: str, hidden: str) -> None:
    assert scrub(text) == hidden


@pytest.mark.usefixtures("house")
def test_errors_are_kept_for_the_status_with_their_secrets_hidden() -> None:
    about = {"upstream": "contoso", "cause": "7000215"}
    logger().warning("token.failed", text="not that bad")
    logger().error("upstream.down", **about, text="wrong secret")
    logger().error("upstream.down", **about, text=Secret("hunter2"))
    (row,) = log_room.troubles()
    assert (row["event"], row["cause"], row["times"]) == ("upstream.down", "7000215", 2)
    assert row["text"] == "***"
    assert log_room.troubles() == []


def test_only_names_of_secrets_are_secret() -> None:
    assert is_secret("refresh_token", "x")
    assert is_secret("anything", Secret("x"))
    assert not is_secret("tokens", 3)
    assert not is_secret("credential_expires", "2027-05-31")


GEVENT = """
from gevent import monkey; monkey.patch_all()
import os, sys, gevent, structlog
from relayd.config.model import Log
from relayd.observe import log
taken, given = os.pipe()
os.dup2(given, 2)
log.configure(Log(format="logfmt"), process="worker-1")
logger = structlog.get_logger()
ticks = []
def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0)
ticker = gevent.spawn(tick)
for number in range(6000):               # more than the pipe and the queue hold together
    logger.info("message.sent", id=number, text="x" * 60)
before = len(ticks)
gevent.sleep(0.05)                       # the hub runs although nobody reads standard error
assert len(ticks) > before + 10
ticker.kill()
from relayd.observe import metrics
assert metrics.snapshot()["relayd_log_dropped_total"][""] > 0
print("ok", flush=True)
os._exit(0)
"""


@pytest.mark.slow(1)
def test_a_stalled_journal_does_not_hold_the_hub() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GEVENT], capture_output=True, check=False, timeout=15
    )
    assert done.stdout == b"ok\n", done.stderr
