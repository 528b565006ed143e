"""What the terminal shows is aligned, and cannot be steered by what a peer sent."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.cli import terminal


@given(text=st.text())
def test_nothing_shown_moves_the_cursor(text: str) -> None:
    assert terminal.safe(text).isprintable()


def test_control_characters_are_shown_as_escapes() -> None:
    assert terminal.safe("a\x1b[2J\r\n\u202eb\ud800") == "a\\x1b[2J\\r\\n\\u202eb\\ud800"


def test_a_table_is_aligned_and_ragged_rows_are_fine() -> None:
    shown = terminal.table([("a", "bb"), ("cccc",), ("ü", "漢", "x")], ("N", "M"))
    assert shown.splitlines() == ["N     M", "a     bb", "cccc", "ü     漢  x"]
    assert terminal.table([]) == ""


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (3.4, "3 s"),
        (59.6, "1 min"),
        (61, "1 min"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86_400, "1 d"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations_are_said_as_people_do(seconds: float, shown: str) -> None:
    assert terminal.duration(seconds) == shown


@pytest.mark.parametrize(
    ("octets", "shown"), [(0, "0 B"), (999, "999 B"), (2_100_000, "2.1 MB"), (3 * 10**9, "3.0 GB")]
)
def test_sizes_are_said_as_people_do(octets: int, shown: str) -> None:
    assert terminal.size(octets) == shown


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.paint("x", "red", Screen()) == "\033[31mx\033[0m"
    assert terminal.paint("x", "red", io.StringIO()) == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.paint("x", "red", Screen()) == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.paint("x", "red", Screen()) == "x"


def test_json_into_a_pipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_json({"a": ["ü", None]})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"a": ["ü", None]}


@given(text=st.text())
def test_json_cannot_steer_a_terminal(text: str) -> None:
    with contextlib.redirect_stdout(Screen()) as screen:
        terminal.print_json([text])
    assert screen.getvalue().replace("\n", "").isprintable()
    assert screen.getvalue().isascii()
    assert json.loads(screen.getvalue()) == [text]


def test_a_question_without_a_terminal_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert terminal.ask_yes("really?") is False


@pytest.mark.parametrize(("typed", "expected"), [("y\n", True), ("YES\n", True), ("\n", False)])
def test_only_yes_is_yes(typed: str, *, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Screen(typed))
    assert terminal.ask_yes("really?") is expected


def test_complaints_bear_the_programs_name(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.complain("bad\nthing")
    assert capsys.readouterr().err == "relayd: bad\\nthing\n"
