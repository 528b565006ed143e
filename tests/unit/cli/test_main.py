"""One screen of help, examples everywhere, options on either side, and only what is needed."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from relayd.cli import main as command_line
from relayd.cli.main import COMMANDS, DEFAULT_CONFIG, GROUPS, parser_for, wanted_command
from relayd.errors import ConfigError, ListenError, RelaydError

ROOT = Path(__file__).parents[3]
THERE = [one for one in COMMANDS if importlib.util.find_spec(one.module) is not None]
NAMES = [one.name for one in THERE]


def test_the_help_fits_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = parser_for("").format_help().splitlines()
    assert len(lines) <= 40
    assert max(len(line) for line in lines) <= 80


def test_the_help_names_every_command() -> None:
    lines = parser_for("").format_help().splitlines()
    rows = [tuple(line.split(maxsplit=1)) for line in lines if line.startswith("  ")]
    assert all((one.name, one.help) in rows for one in COMMANDS)


def test_every_command_stands_under_a_heading_that_is_shown() -> None:
    assert {one.group for one in COMMANDS} <= set(GROUPS)
    assert all(f"{group}:" in parser_for("").format_help().splitlines() for group in GROUPS)


def test_what_the_terminal_cannot_show_is_shown_as_an_escape() -> None:
    code = "import sys; from relayd.cli.main import main; main(['version']); print('\\u6f22')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout.endswith(b"\\u6f22\n")


@pytest.mark.parametrize("name", NAMES)
def test_each_commands_help_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        command_line.main([name, "--help"])
    assert leaving.value.code == 0
    assert "examples:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "a.toml", "--json", "version"],
        ["version", "--config", "a.toml", "--json"],
        ["--config=a.toml", "version", "--json"],
    ],
)
def test_options_stand_before_or_after_the_command(arguments: list[str]) -> None:
    options = parser_for("version").parse_args(arguments)
    assert (options.config, options.json) == ("a.toml", True)


def test_the_config_is_the_option_or_the_environment_or_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[str] = []

    def act(options: argparse.Namespace) -> int:
        seen.append(options.config)
        return 0

    monkeypatch.setattr("relayd.cli.daemon.version", act)
    monkeypatch.delenv("RELAYD_CONFIG", raising=False)
    command_line.main(["version"])
    monkeypatch.setenv("RELAYD_CONFIG", "/from/environment")
    command_line.main(["version"])
    command_line.main(["version", "--config", "/from/option"])
    assert seen == [DEFAULT_CONFIG, "/from/environment", "/from/option"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["status"], "status"),
        (["--config", "status", "check"], "check"),
        (["--json", "queue", "list"], "queue"),
        (["--help"], ""),
        (["nonsense", "status"], ""),
        ([], ""),
    ],
)
def test_the_command_is_found_among_the_options(arguments: list[str], name: str) -> None:
    assert wanted_command(arguments) == name


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError(["one", "two"]), 78, "relayd: one\nrelayd: two\n"),
        (ListenError("port 25 is held"), 69, "relayd: port 25 is held\n"),
        (RelaydError("no"), 69, "relayd: no\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_words_and_an_exit_code(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def act(options: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr("relayd.cli.daemon.version", act)
    assert command_line.main(["version"]) == code
    assert capsys.readouterr().err == words


def test_a_file_option_that_took_the_command_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["--config", "queue", "list"], "no command 'list'; --config took 'queue' for its FILE"),
        (["--config", "status"], "which command?; --config took 'status' for its FILE"),
    ):
        monkeypatch.setattr(sys, "argv", ["relayd", *words])
        with pytest.raises(SystemExit):
            command_line.main()
        assert told in capsys.readouterr().err


def test_a_command_without_its_action_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        command_line.main(["queue"])
    assert leaving.value.code == 2
    assert "trace" in capsys.readouterr().err


def test_words_for_people_name_a_configuration_of_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RELAYD_CONFIG", raising=False)
    assert command_line.itself(DEFAULT_CONFIG) == "relayd"
    assert command_line.itself("/srv/a b.toml") == "relayd --config '/srv/a b.toml'"
    monkeypatch.setenv("RELAYD_CONFIG", "/srv/a b.toml")
    assert command_line.itself("/srv/a b.toml") == "relayd"


def test_wrong_usage_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        command_line.main(["nonsense"])
    assert leaving.value.code == 2
    assert "relayd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["statsu"], "relayd: no command 'statsu'; 'status'?\n"),
        (["--json", "zzz"], "relayd: no command 'zzz'\n"),
        ([], "relayd: which command?\n"),
        (["--jsom", "version"], "relayd: unrecognized arguments: --jsom\n"),
    ],
)
def test_a_slip_is_told_in_one_line_with_the_nearest_name(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        command_line.main(words)
    assert leaving.value.code == 2
    assert capsys.readouterr().err == f"{said}`relayd --help` lists the commands\n"


def test_every_command_has_its_own_line_of_help() -> None:
    assert all(len(one.help) < 62 for one in COMMANDS)
    assert len({one.name for one in COMMANDS}) == len(COMMANDS)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relayd", *arguments],
        capture_output=True,
        check=False,
        cwd=ROOT,
        text=True,
    )


@pytest.mark.slow(1)
@pytest.mark.parametrize("command", ["version", "status", "reload", "stop"])
def test_asking_commands_import_nothing_heavy(command: str, tmp_path: Path) -> None:
    code = (
        "import sys; from relayd.cli.main import main\n"
        f"try: main(['--config', {str(tmp_path / 'none')!r}, {command!r}])\n"
        "except SystemExit: pass\n"
        "heavy = {'gevent', 'msal', 'requests', 'urllib3', 'structlog', 'ssl', 'sqlite3'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, cwd=ROOT, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow(1)
def test_a_reader_that_has_enough_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "relayd", "version"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
        cwd=ROOT,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow(1)
def test_the_module_is_the_program() -> None:
    done = run("version", "--json")
    assert done.returncode == 0
    assert done.stdout.startswith("{")
