"""Commands start quickly, told by what they import: time depends on the machine, this does not.

Arguments, help and completion need the standard library alone (`cli.main.later`). What only talks
to the running relay stays that light; what reads the configuration or the spool may import more.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from relayd.cli.main import COMMANDS, DEFAULT_CONFIG
from tests.control_socket import ControlSocket, pages
from tests.relay_process import clean_environment

ROOT = Path(__file__).parents[2]
HEAVY = {
    "argon2", "asyncio", "cryptography", "gevent", "http.client", "msal", "prometheus_client",
    "requests", "sqlite3", "ssl", "structlog", "urllib3",
}  # fmt: skip
COSTLY = {"email", "logging", "threading", "subprocess", "multiprocessing", "concurrent.futures"}
"""Of the standard library: 10 ms and more."""

NEEDS_MORE = {"doctor", "explain-access"}
"""Still one module with what they do; under 300 ms even so."""

ARGUMENTS = """\
import sys
from relayd.cli.main import parser_for
parser_for({name!r})
{report}"""
RUN = """\
import sys
from relayd.cli.main import main
try:
    main({words!r})
except SystemExit:
    pass
{report}"""
SENDMAIL = """\
import sys
from relayd.cli.sendmail import main
main(["sendmail", *{words!r}])
{report}"""
REPORT = "print('\\nLOADED', *sys.modules)"


def loaded(code: str, *, text: str = "", **more: str) -> set[str]:
    """Return the modules that a program has imported at its end."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=text, capture_output=True, check=True, text=True, cwd=ROOT, timeout=20,
        env=clean_environment() | more,
    )  # fmt: skip
    *_, last = (line for line in done.stdout.splitlines() if line.startswith("LOADED "))
    return set(last.split()[1:])


def foreign(modules: set[str]) -> set[str]:
    """Return the top names of modules that are neither ours nor of the standard library."""
    tops = {name.partition(".")[0] for name in modules}
    ours = {"relayd", "__main__"}
    # An editable installation has a finder of its own, loaded before any program.
    return {
        name
        for name in tops - ours - set(sys.stdlib_module_names)
        if not name.startswith(("__editable__", "_virtualenv", "distutils-", "a1_coverage"))
        and name not in BEFORE
    }


BEFORE = {name.partition(".")[0] for name in loaded(f"import sys\n{REPORT}")}


@pytest.mark.slow(1)
@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_the_arguments_of_a_command_need_the_standard_library_alone(name: str) -> None:
    modules = loaded(ARGUMENTS.format(name=name, report=REPORT))
    if name not in NEEDS_MORE:
        assert foreign(modules) == set()


@pytest.mark.slow(1)
@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_a_command_costs_nothing_to_the_others(name: str) -> None:
    modules = loaded(ARGUMENTS.format(name=name, report=REPORT))
    others = {one.module for one in COMMANDS if one.name != name}
    own = next(one.module for one in COMMANDS if one.name == name)
    shared = {"relayd.cli.daemon", "relayd.cli.explain", "relayd.cli.queue"}  # they help others
    assert modules & others - {own} - shared == set()


@pytest.mark.slow(1)
@pytest.mark.parametrize(
    "words",
    ["version", "--json version", "status", "reload", "stop", "upgrade"],
)
def test_a_command_stays_light_while_the_relay_is_down(words: str, tmp_path: Path) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(f'[server]\nruntime_dir = "{tmp_path}"\n')
    line = ["--config", str(config), *words.split()]
    modules = loaded(RUN.format(words=line, report=REPORT))
    assert modules & (HEAVY | COSTLY) == set()
    assert foreign(modules) == set()


@pytest.mark.slow(1)
@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("status", "status"),
        ("queue list", "queue.list"),
        ("queue hold 1JV7SEQSLMJCW", "queue.hold"),
    ],
)
def test_a_command_stays_light_when_the_relay_answers(
    words: str, command: str, tmp_path: Path
) -> None:
    with ControlSocket(tmp_path) as control:
        control.answers[command] = pages({"messages": [], "count": 1})
        line = ["--config", str(control.config), *words.split()]
        modules = loaded(RUN.format(words=line, report=REPORT))
        assert control.requests
    assert modules & (HEAVY | COSTLY) == set()
    assert foreign(modules) == set()


@pytest.mark.slow(1)
def test_explain_needs_no_library(tmp_path: Path) -> None:
    modules = loaded(RUN.format(words=["explain", "429"], report=REPORT))
    assert modules & HEAVY == set()
    assert foreign(modules) == set()


@pytest.mark.slow(1)
def test_sendmail_needs_little_of_the_standard_library(tmp_path: Path) -> None:
    code = SENDMAIL.format(words=["-i", "-FCron", "root"], report=REPORT)
    # Nobody listens on port 1; what is not sent is kept below HOME.
    tmp_path.chmod(0o700)
    text = "To: root\n\nhi\n"
    modules = loaded(code, text=text, RELAYD_SMTP="127.0.0.1:1", HOME=str(tmp_path))
    assert (tmp_path / "dead.letter").exists()
    assert modules & (HEAVY | COSTLY | {"smtplib", "argparse", "json", "tomllib"}) == set()
    assert foreign(modules) == set()
    assert {name for name in modules if name.startswith("relayd.")} == {
        "relayd.cli", "relayd.cli.deadletter", "relayd.cli.letter", "relayd.cli.sendmail",
        "relayd.cli.submit", "relayd.values",
    }  # fmt: skip


def test_the_default_configuration_is_where_the_package_puts_it() -> None:
    assert DEFAULT_CONFIG == "/etc/relayd/relayd.toml"
