"""The man pages: made of the documents and the program, whole, the same each time, and clean.

groff and mandoc say what they think of a page where they are installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tools import manpages, troff
from tools.commandtree import Leaf, leaves

ROOT = Path(__file__).parents[2]
SOURCES = {
    "relayd.8": "cli.md",
    "relayd.toml.5": "settings.md",
    "relayd-sandbox.1": "sandbox.md",
    "sendmail.8": "sendmail.md",
}
LEAVES = {leaf.name: leaf for leaf in leaves()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    assert manpages.main([str(folder)]) == 0
    return folder


def rendered(page: Path) -> str:
    """Return a page as text, its lines so long that nothing is broken."""
    command = ["groff", "-man", "-Tutf8", "-rLL=900n", "-P-c", "-P-b", "-P-u", str(page)]
    if shutil.which("groff") is None:
        command = ["mandoc", "-Tutf8", "-Owidth=900", str(page)]
    if shutil.which(command[0]) is None:
        pytest.skip("neither groff nor mandoc is installed here")
    done = subprocess.run(command, capture_output=True, check=True, timeout=20)
    text = re.sub(".\b", "", done.stdout.decode())
    return re.sub(r"[ \n]+", " ", text.replace("\N{HYPHEN}", "-").replace("\N{MINUS SIGN}", "-"))


def part(text: str, leaf: Leaf) -> str:
    """Return what relayd(8), as it was made, says of one command."""
    head = f'.SS "{troff.literal(leaf.name)}"\n'
    return re.split(r"(?m)^\.S[SH] ", text.partition(head)[2])[0]


def test_every_page_asked_for_is_made(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {*SOURCES, "mailq.1", "newaliases.1"}


@pytest.mark.parametrize("name", LEAVES)
def test_a_command_is_there_with_its_arguments_and_exit_codes(name: str, folder: Path) -> None:
    leaf = LEAVES[name]
    said = part((folder / "relayd.8").read_text(), leaf)
    for argument in leaf.arguments:
        for option in argument.options:
            assert rf"\fB{troff.literal(option)}\fR" in said, option
        if not argument.options:
            assert rf"\fI{troff.literal(argument.metavar)}\fR" in said
    (line,) = re.findall(
        rf"(?ms)^## {re.escape(name)}\n(?:(?!^## ).)*?^(Exit: .*?)$",
        (ROOT / "docs/cli.md").read_text(),
    )
    for code in re.findall(r"\b\d{1,3}\b", line.partition("Exit: ")[2]):
        assert re.search(rf"(?s)Exit:.*\b{code}\b", said), code


@pytest.mark.parametrize("name", LEAVES)
def test_a_commands_examples_are_there(name: str, folder: Path) -> None:
    text = (folder / "relayd.8").read_text()
    assert LEAVES[name].examples
    for line in LEAVES[name].examples:
        assert troff.literal(line) in text


def test_every_setting_is_there_with_its_default(folder: Path) -> None:
    text = rendered(folder / "relayd.toml.5").replace("*", "")
    rows = re.findall(
        r"(?m)^\| `(\w+)` \| .+? \| (.+?) \| (.+) \|$", (ROOT / "docs/settings.md").read_text()
    )
    assert len(rows) > 100
    for key, default, meaning in rows:
        value = {"none": "no default", "required": "required"}.get(
            default, f"default {default.strip('`')}"
        )
        words = re.escape(troff_free(meaning))
        assert re.search(rf" {key} [^;]*; {re.escape(value)}\. +{words}", text), key


def troff_free(text: str) -> str:
    """Return Markdown as it is seen."""
    return re.sub(r"[`*]|(?<=\])\([^)]*\)", "", text).replace("…", "...")


def test_every_heading_of_a_document_is_on_its_page(folder: Path) -> None:
    for page, document in SOURCES.items():
        if page == "relayd.8":
            continue
        text = (folder / page).read_text().lower()
        for heading in re.findall(r"(?m)^##+ (.*)$", (ROOT / "docs" / document).read_text()):
            assert troff.literal(re.sub("[`*]", "", heading)).lower() in text, heading


def test_the_page_says_which_relayd_this_is(folder: Path) -> None:
    text = rendered(folder / "relayd.8")
    assert "not OpenBSD's relayd(8), a load balancer" in text.replace(
        "\N{RIGHT SINGLE QUOTATION MARK}", "'"
    )


def test_the_page_has_the_sections_of_a_daemons_page(folder: Path) -> None:
    heads = re.findall(r'(?m)^\.SH "?([A-Z ]+)"?$', (folder / "relayd.8").read_text())
    assert heads == [
        "NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "COMMANDS", "EXIT STATUS", "SIGNALS",
        "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO",
    ]  # fmt: skip


def test_a_signal_the_master_handles_is_told(folder: Path) -> None:
    from relayd.master.signals import HANDLED  # noqa: PLC0415

    text = (folder / "relayd.8").read_text()
    for signal in HANDLED:
        assert signal.name in text or signal.name == "SIGCHLD"


@pytest.mark.parametrize("name", SOURCES)
def test_groff_has_nothing_to_say(name: str, folder: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed here")
    for more in ([], ["-Tascii"]):
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Tutf8", "-z", *more, str(folder / name)],
            capture_output=True, check=True, text=True, timeout=20,
        )  # fmt: skip
        assert done.stderr == ""


@pytest.mark.parametrize("name", SOURCES)
def test_man_has_nothing_to_say(name: str, folder: Path) -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed here")
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(folder / name)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True, text=True, timeout=20,
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"},
    )  # fmt: skip
    assert done.stderr == ""


@pytest.mark.parametrize("name", SOURCES)
def test_mandoc_has_nothing_to_say(name: str, folder: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed here (tools/clients.sh installs it where it may)")
    done = subprocess.run(
        ["mandoc", "-Tlint", "-Wstyle", str(folder / name)],
        capture_output=True, check=False, text=True, timeout=20,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if "referenced manual not found" not in line]
    assert not found


def test_a_page_is_ascii_and_names_no_place_of_its_making(folder: Path) -> None:
    for path in folder.iterdir():
        assert path.read_bytes().isascii()
        assert str(ROOT) not in path.read_text()


@pytest.mark.slow(2)
def test_debians_own_python_makes_the_same_pages_anywhere(folder: Path, tmp_path: Path) -> None:
    python = "/usr/bin/python3"
    has_all = Path(python).exists() and not subprocess.run(
        [python, "-c", "import argon2, cryptography, msal, structlog"],
        capture_output=True, check=False, timeout=20,
    ).returncode  # fmt: skip
    if not has_all:
        pytest.skip("Debian's python3-* packages are not installed here")
    subprocess.run(
        [python, str(ROOT / "tools/manpages.py"), str(tmp_path / "out")],
        check=True, timeout=60, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "43", "LC_ALL": "C", "TZ": "Asia/Tokyo"},
    )  # fmt: skip
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


PACKAGE = "relayd (0.1.0) unstable\n\n -- A <a@example.org>  Sat, 21 Nov 2026 09:00:00 +0000\n"


@pytest.mark.parametrize(
    ("environment", "changelog", "date"),
    [
        ({"SOURCE_DATE_EPOCH": "86400"}, "## 0.1.0 - 2026-12-01\n", "1970-01-02"),
        ({}, "## 0.2.0 - unreleased\n\n## 0.1.0 - 2026-12-01\n", "2026-12-01"),
        ({}, "## 0.1.0 - unreleased\n", "2026-11-21"),
    ],
)
def test_the_date_is_that_of_the_sources(
    environment: dict[str, str], changelog: str, date: str
) -> None:
    assert manpages.date_of(changelog, PACKAGE, environment) == date


# ---- Markdown to man(7)


def test_what_means_something_to_troff_is_text() -> None:
    (block,) = troff.blocks(r"Begin: a\b `-x 'y'` **c** *d*, 2 * 3, ^~")
    assert troff.render(block) == [
        ".PP", "Begin:", r"a\eb \fB\-x \(aqy\(aq\fR \fBc\fR \fId\fR, 2 * 3, \(ha\(ti"
    ]  # fmt: skip


def test_a_line_that_looks_like_a_request_is_none() -> None:
    (block,) = troff.blocks("```\n.so /etc/passwd\n'x\n\n```")
    assert troff.render(block)[3:-2] == [r"\&.so /etc/passwd", r"\(aqx", r"\&"]


def test_a_table_becomes_tags() -> None:
    (block,) = troff.blocks("| key | what |\n|---|---|\n| `a`, `b` | one \\| two |\n| c |\n")
    assert troff.render(block) == [
        ".TP", r"\fBa\fR, \fBb\fR", "one | two", ".TP", r"\fBc\fR", r"\&"
    ]  # fmt: skip


def test_lists_keep_their_marks_and_their_wrapped_lines() -> None:
    first, second = troff.blocks("- one\n  and more\n- two\n\n1. first\n2. second\n")
    assert troff.render(first) == [r".IP \(bu 2", "one and more", r".IP \(bu 2", "two"]
    assert troff.render(second) == ['.IP "1." 4', "first", '.IP "2." 4', "second"]


def test_a_link_to_a_document_is_its_page() -> None:
    text = "See [here](cli.md#status), [TOML](https://toml.io), [flow](flow.md)."
    assert troff.inline(text) == r"See \fBrelayd\fR(8), TOML (https://toml.io), flow."
