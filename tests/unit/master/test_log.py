"""The master's lines are the house's lines; a reader that stalls costs lines, never time."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from relayd.clock import FakeClock
from relayd.config.model import Log as LogSettings
from relayd.master.log import Log
from relayd.observe import logfmt


def test_a_line_is_what_the_house_renders() -> None:
    clock = FakeClock()
    read_end, write_end = os.pipe()
    Log(fd=write_end, clock=clock).info("child.ready", child="worker 1", pid=7, none=None)
    fields = {"child": "worker 1", "pid": 7, "none": None, "process": "master"}
    wanted = logfmt.render("child.ready", fields, level="info", moment=clock.utcnow())
    assert os.read(read_end, 5000).decode() == wanted + "\n"
    os.close(read_end)
    os.close(write_end)


def test_levels_below_the_wanted_one_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(LogSettings(level="warning", file=str(path)))
    log.debug("a.debug")
    log.info("a.info")
    log.warning("a.warning")
    log.error("a.error")
    assert [line.split()[0] for line in path.read_text().splitlines()] == ["a.warning", "a.error"]
    log.configure(LogSettings())


def test_json_is_json(tmp_path: Path) -> None:
    log = Log(LogSettings(format="json", file=str(tmp_path / "log")))
    log.info("a.b", number=3)
    row = json.loads((tmp_path / "log").read_text())
    assert (row["event"], row["number"], row["process"]) == ("a.b", 3, "master")
    log.configure(LogSettings())


def test_a_rotated_file_is_opened_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(LogSettings(file=str(path)))
    log.info("before.it")
    path.rename(tmp_path / "log.1")
    log.info("still.there")
    log.reopen()
    log.info("after.it")
    assert "still.there" in (tmp_path / "log.1").read_text()
    assert [line.split()[0] for line in path.read_text().splitlines()] == [
        "log.reopened",
        "after.it",
    ]
    log.configure(LogSettings())


def test_a_file_that_cannot_be_opened_is_told_on_the_way_there_was() -> None:
    read_end, write_end = os.pipe()
    log = Log(fd=write_end)
    log.configure(LogSettings(file="/nonexistent/folder/log", format="logfmt"))
    assert b"log.failed" in os.read(read_end, 5000)
    log.info("goes.on")
    assert b"goes.on" in os.read(read_end, 5000)
    os.close(read_end)
    os.close(write_end)


def test_a_pipe_nobody_reads_drops_lines_and_tells_later() -> None:
    read_end, write_end = os.pipe()
    log = Log(fd=write_end)
    while not log.dropped:
        log.info("a.b", text="x" * 400)
    log.info("a.b")
    dropped = log.dropped
    os.read(read_end, 1 << 20)
    log.info("flows.again")
    octets = os.read(read_end, 1 << 20)
    assert f"log.dropped level=warning lines={dropped}".encode() in octets
    assert b"flows.again" in octets
    os.close(read_end)
    os.close(write_end)


def test_a_stalled_journal_socket_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        log = Log(fd=ours.fileno())
        log.info("a.first")
        assert b"a.first" in theirs.recv(1000)
        while not log.dropped:
            log.info("a.b", text="x" * 400)


def test_a_closed_reader_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    log = Log(fd=write_end)
    log.info("a.b")
    assert log.dropped == 1
    os.close(write_end)
