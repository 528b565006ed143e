"""docs/cli.md says what the program says: commands, arguments, exit codes, keys of JSON.

Each command has a section; its table has a row for each argument with the text of its help, its
line "Exit:" the codes of its help. Keys of JSON are compared with what the code prints.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import typing
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from relayd.cli.main import COMMANDS, parser_for
from relayd.config.model import Upstream
from relayd.deliver import catalogue
from relayd.identity import aadsts
from relayd.queueview import STOPPED, shown, told
from relayd.spool.model import QueueId, State
from relayd.spool.queries import Listed, Story, Tried
from relayd.wayout import token_row
from tests.control_socket import ControlSocket, pages, relayd

TEXT = (Path(__file__).parent.parent.parent / "docs/cli.md").read_text()
EVERYWHERE = {"-h", "--config", "--json"}


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def leaves() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for command in COMMANDS:
        parser = subparsers(parser_for(command.name))[command.name]
        inner = subparsers(parser)
        if not inner:
            yield f"relayd {command.name}", parser
        for name, sub in inner.items():
            yield f"relayd {command.name} {name}", sub


LEAVES = dict(leaves())


def section(name: str) -> str:
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"docs/cli.md has no section {name}"
    return found[1]


def table(text: str, head: str) -> dict[str, str]:
    """Return the first cell -> second cell of the table whose head begins so."""
    found = re.search(
        rf"^\| {re.escape(head)} \|.*\n\|---\|---\|\n((?:\|.*\n?)*)", text, re.MULTILINE
    )
    rows = re.findall(r"^\| (.*?) \|(?: (.*?) )?\|?$", found[1] if found else "", re.MULTILINE)
    return dict(rows)


def keys(text: str, head: str = "key") -> list[str]:
    return [key for cell in table(text, head) for key in re.findall(r"`(\w+)`", cell)]


def usage(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar}{' …' if action.nargs in ('+', '*') else ''}`"
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return f"`{', '.join(action.option_strings)}{value}`"


def codes(text: str) -> set[int]:
    """Return the numbers that begin the parts of "exit: 0 done, 1 no; 69 away"."""
    line = " ".join(re.split(r"(?i)\bexit:", text)[-1].split())
    return {int(code) for code in re.findall(r"(?:^|[,;] )(\d{1,3})(?=[ .,]|$)", line)}


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    assert re.findall(r"(?m)^## (relayd .*)$", TEXT) == list(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_arguments_have_the_texts_of_the_help(name: str) -> None:
    arguments = [one for one in LEAVES[name]._actions if not EVERYWHERE & set(one.option_strings)]
    assert table(section(name), "argument") == {usage(one): one.help or "" for one in arguments}


@pytest.mark.parametrize("name", LEAVES)
def test_every_argument_has_a_help_but_ids_and_names(name: str) -> None:
    for one in LEAVES[name]._actions:
        if one.option_strings and not EVERYWHERE & set(one.option_strings):
            assert one.help, f"{name} {usage(one)}"


@pytest.mark.parametrize("name", LEAVES)
def test_exit_codes_are_those_of_the_help(name: str) -> None:
    (line,) = re.findall(r"(?m)^Exit: (.*)$", section(name))
    epilog = LEAVES[name].epilog or ""
    assert "exit:" in epilog, f"{name} --help tells no exit code"
    assert codes(f"exit: {line}") == codes(epilog)
    # 3 is what monitoring systems call UNKNOWN (`status --nagios`).
    assert codes(epilog) <= {0, 1, 2, 3, 69, 75, 78}
    assert 0 in codes(epilog)


@pytest.mark.parametrize("name", LEAVES)
def test_every_help_has_an_example_of_itself(name: str) -> None:
    examples = (LEAVES[name].epilog or "").partition("examples:")[2]
    words = name.split()
    assert re.search(rf"relayd (?:--\S+ (?:\S+ )?)?{' '.join(words[1:])}\b", examples), examples


@pytest.mark.parametrize("name", LEAVES)
def test_every_help_fits_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = [line for line in LEAVES[name].format_help().splitlines() if len(line) > 80]
    assert not long


def test_commands_named_in_advice_exist() -> None:
    """Nobody woken at night types a command that is not there: those to come are listed here."""
    later = {"login", "upstream"}
    texts = [row.advice for row in catalogue.ENTRIES]
    texts += [one.action for one in (*aadsts.AADSTS.values(), *aadsts.ERRORS.values())]
    named = {word for text in texts for word in re.findall(r"\brelayd ([a-z]+)", text)}
    there = {command.name for command in COMMANDS}
    prose = {"tries", "waits", "never", "keeps", "again"}
    assert named - prose - later <= there


# ---- JSON

NOW = datetime(2026, 11, 20, tzinfo=UTC)
ROW = Listed(
    id=QueueId(1), delivery=1, state=State.READY, sender="", recipients=(), device="", user="",
    upstream="", mailbox="", priority=1, size_bytes=0, accepted_at=NOW, expires_at=NOW,
    due_at=None, held_by="", attempts=0, maybe_sent=False, done={},
)  # fmt: skip
TRY = Tried(
    delivery=1, number=1, holder="", transport="", started_at=NOW, finished_at=NOW, outcome="",
    http_status=0, code="", request_id="", text="",
)  # fmt: skip
STORY = Story(
    id=QueueId(1), message_id="", subject="", session="", listener="", ip="", helo="",
    body_sha256="", has_content=True, deliveries=(ROW,), journal=(TRY,),
)  # fmt: skip


def test_keys_of_a_list_are_documented() -> None:
    assert keys(section("relayd queue list")) == list(shown(ROW, STOPPED))


def test_keys_of_a_story_are_documented() -> None:
    story = told(STORY, STOPPED)
    text = section("relayd queue show")
    assert keys(text) == list(story)
    deliveries = typing.cast("list[dict[str, object]]", story["deliveries"])
    assert set(deliveries[0]) == {*shown(ROW, STOPPED), "why", "do"}
    assert "`why`, `do`" in text
    attempts = typing.cast("list[dict[str, object]]", story["attempts"])
    assert keys(text, "key of an attempt") == list(attempts[0])


def printed(capsys: pytest.CaptureFixture[str]) -> typing.Any:
    return json.loads(capsys.readouterr().out)


def test_keys_of_version_check_and_explain_are_documented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relayd("--json", "version")
    assert keys(section("relayd version")) == list(printed(capsys))
    relayd("--json", "--config", str(tmp_path / "none.toml"), "check")
    assert keys(section("relayd check")) == list(printed(capsys))
    relayd("--json", "explain", "429")
    assert keys(section("relayd explain")) == list(printed(capsys)[0])


def test_keys_of_a_change_and_of_send_are_documented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ControlSocket(tmp_path) as control:
        control.answers["queue.hold"] = pages({"count": 1})
        control.relayd("--json", "queue", "hold", "1JV7SEQSLMJCW")
        assert keys(section("relayd queue retry")) == list(printed(capsys))
        control.answers["smtp"] = pages({"device": "ups"})
        control.smtp = lambda sock: sock.sendall(b"421 4.3.2 no\r\n")
        control.relayd("--json", "send", "--to", "a@contoso.com", "--device", "ups")
        assert keys(section("relayd send")) == list(printed(capsys))


def test_keys_of_users_are_documented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(f'[server]\nhostname = "relay.test"\nstate_dir = "{tmp_path}/state"\n')
    relayd("--json", "--config", str(config), "user", "add", "nas", "--generate")
    assert keys(section("relayd user add")) == list(printed(capsys))
    relayd("--json", "--config", str(config), "user", "list")
    assert keys(section("relayd user list")) == list(printed(capsys)[0])


def test_keys_of_secrets_are_documented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ("--config", str(tmp_path / "relayd.toml"))
    (tmp_path / "relayd.toml").touch()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"s3cret")))
    relayd(*config, "--json", "secret", "set", "contoso", "--stdin")
    assert keys(section("relayd secret set")) == list(printed(capsys))
    relayd(*config, "--json", "secret", "list")
    assert set(keys(section("relayd secret list"))) == set(printed(capsys)[0])


def test_keys_of_a_report_are_documented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "relayd.toml"
    path.write_text(f'[server]\nruntime_dir = "{tmp_path}"\n[log]\nfile = "{tmp_path}/log"\n')
    output = str(tmp_path / "report.tar.gz")
    relayd("--config", str(path), "--json", "report", "--output", output)
    assert keys(section("relayd report"))[:2] == list(printed(capsys))


def test_keys_of_devices_are_documented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ControlSocket(tmp_path) as control:
        control.answers["devices"] = pages({"devices": [{"name": "ups", "kind": "device"}]})
        control.answers["callers"] = pages({"callers": [{"ip": "192.0.2.5", "device": "ups"}]})
        control.relayd("--json", "device", "list")
        listed = list(printed(capsys)[0])
        assert keys(section("relayd device list")) == listed
        control.relayd("--json", "device", "show", "ups")
        assert [*listed, *keys(section("relayd device show"))] == list(printed(capsys))


def test_keys_of_doctor_token_and_explain_access_are_documented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "relayd.toml"
    config.write_text(
        f'[server]\nhostname = "relay.test"\nruntime_dir = "{tmp_path}"\n'
        f'state_dir = "{tmp_path}"\n[upstream.a]\ncloud = "none"\n'
    )
    relayd("--json", "--config", str(config), "doctor")
    (told,) = printed(capsys)
    text = section("relayd doctor")
    assert keys(text) == list(told)
    assert keys(text, "key of a step") == list(told["steps"][0])
    names = {step["step"] for step in told["steps"]} | {"senders"}
    assert names == set(re.findall(r"`([a-z]+)`", table(text, "key of a step")["`step`"]))
    asked = ("--ip", "192.0.2.1", "--from", "<>", "--to", "a@contoso.com")
    relayd("--json", "--config", str(config), "explain-access", *asked)
    assert keys(section("relayd explain-access")) == list(printed(capsys))
    row = token_row(Upstream(name="a"), "", 0.0)
    assert keys(section("relayd token test")) == list(row)
