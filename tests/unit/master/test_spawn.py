"""A child begins with clean signals, ties itself to its parent, and always ends by itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest

from relayd.clock import SYSTEM
from relayd.master import spawn

PATIENCE_S = 20.0


def said_by(run: Callable[[int], int]) -> tuple[str, int]:
    """Fork; return what the child wrote into its pipe, and its exit code."""
    read_end, write_end = os.pipe()
    pid = spawn.fork(lambda: run(write_end), title="relayd: test")
    os.close(write_end)
    with open(read_end, encoding="utf-8") as stream:
        text = stream.read()
    return text, os.waitstatus_to_exitcode(spawn.wait(pid, PATIENCE_S))


def test_signals_are_what_a_waiting_child_needs() -> None:
    def tell(fd: int) -> int:
        handlers = {
            name: signal.getsignal(number) is signal.SIG_IGN
            for name, number in (
                ("INT", signal.SIGINT),
                ("HUP", signal.SIGHUP),
                ("USR1", signal.SIGUSR1),
                ("TERM", signal.SIGTERM),
                ("PIPE", signal.SIGPIPE),
            )
        }
        blocked = len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        os.write(fd, json.dumps([handlers, blocked, signal.set_wakeup_fd(-1)]).encode())
        return 0

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        text, code = said_by(tell)
    finally:
        signal.signal(signal.SIGTERM, before)
    ignored = {"INT": True, "HUP": True, "USR1": True, "TERM": False, "PIPE": True}
    assert json.loads(text) == [ignored, 0, -1]
    assert code == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_what_is_the_masters_is_closed_in_the_child_and_not_here() -> None:
    read_end, write_end = os.pipe()

    class Mine:
        def close(self) -> None:
            os.close(read_end)

    def is_open() -> bool:
        try:
            os.fstat(read_end)
        except OSError:
            return False
        return True

    pid = spawn.fork(lambda: int(is_open()), title="relayd: test", mine=[Mine(), Mine()])
    assert os.waitstatus_to_exitcode(spawn.wait(pid, PATIENCE_S)) == 0
    assert is_open()
    os.close(read_end)
    os.close(write_end)


def test_words_of_systemd_do_not_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("LISTEN_FDS", "1")
    text, _ = said_by(
        lambda fd: os.write(fd, json.dumps([n for n in os.environ if "_" in n]).encode()) * 0
    )
    assert not {"NOTIFY_SOCKET", "LISTEN_FDS"} & set(json.loads(text))
    assert os.environ["LISTEN_FDS"] == "1"


def _leave(code: object) -> NoReturn:
    sys.exit(code)  # type: ignore[arg-type]  # whatever somebody passes


@pytest.mark.parametrize(
    ("run", "code"),
    [
        (lambda _fd: 0, 0),
        (lambda _fd: 3, 3),
        (lambda _fd: _leave(5), 5),
        (lambda _fd: _leave(None), 0),
        (lambda _fd: _leave("words"), 1),
        (lambda _fd: 1 // 0, spawn.CRASHED),
    ],
)
def test_a_child_exits_with_what_its_function_came_to(
    run: Callable[[int], int], code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert said_by(run)[1] == code
    with capfd.disabled():
        pass


def test_a_crash_is_one_line_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    said_by(lambda _fd: 1 // 0)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("process.crashed level=error")
    assert "ZeroDivisionError" in lines[0]
    assert "process=test" in lines[0]


def test_a_child_dies_with_its_parent() -> None:
    def parent(fd: int) -> int:
        ready, done = os.pipe()

        def grandchild() -> int:
            os.write(done, b"x")
            signal.sigtimedwait([signal.SIGUSR1], 5.0)
            return os.write(fd, b" survived")

        pid = spawn.fork(grandchild, title="relayd: grandchild")
        os.read(ready, 1)
        os.write(fd, str(pid).encode())
        return 0

    read_end, write_end = os.pipe()
    pid = spawn.fork(lambda: parent(write_end), title="relayd: parent")
    os.close(write_end)
    with open(read_end, encoding="ascii") as stream:
        # End of file: the grandchild has the write end too, so it is gone.
        text = stream.read()
    assert text.isdigit()
    assert spawn.wait(pid, PATIENCE_S) == 0


def test_a_program_takes_the_childs_place_and_is_heard() -> None:
    fd = os.memfd_create("output", os.MFD_CLOEXEC)
    code = "import signal, sys; print(signal.getsignal(signal.SIGINT)); sys.exit('no')"
    pid = spawn.execute([sys.executable, "-c", code], fd)
    assert os.waitstatus_to_exitcode(spawn.wait(pid, PATIENCE_S)) == 1
    assert b"default_int_handler" in os.pread(fd, 1000, 0)
    assert b"no" in os.pread(fd, 1000, 0)
    os.close(fd)


def test_waiting_has_an_end() -> None:
    began = SYSTEM.monotonic()

    def stay() -> int:
        signal.pause()
        return 0

    pid = spawn.fork(stay, title="relayd: test")
    assert os.WTERMSIG(spawn.wait(pid, 0.05)) == signal.SIGKILL
    assert SYSTEM.monotonic() - began < PATIENCE_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        raise AssertionError("still there")


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exit 0"), (70 << 8, "exit 70"), (9, "SIGKILL"), (6 | 0x80, "SIGABRT"), (34, "signal 34")],
)
def test_an_end_is_put_in_words(status: int, words: str) -> None:
    assert spawn.how_it_ended(status).replace("SIGRTMIN", "signal 34") == words
