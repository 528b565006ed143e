"""Completion in real shells: every command and option is offered, and nothing is ever run.

bash is always there; zsh and fish are looked at where they are installed.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tools import completions
from tools.commandtree import branches, leaves

ROOT = Path(__file__).parents[2]
LEAVES = {completions.path_of(leaf): leaf for leaf in leaves()}
BELOW = completions.names_below(list(branches()))
CONFIG = """
[upstream.contoso]
tenant = "x"
  [upstream.fabrikam]   # indented
[[device]]
name = "ups"
[log]
name = "no device"
[[user]]
name = "$(touch pwned)"
[[user]]
name="`touch pwned`"
[upstream."$(touch pwned)"]
"""
BASH = r"""
source "$1"; shift
while IFS= read -r line; do
    IFS=$'\t' read -ra COMP_WORDS <<< "$line"
    [[ $line == *$'\t' ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _relayd relayd "${COMP_WORDS[COMP_CWORD]}" ""
    printf '%s\n' "${COMPREPLY[*]}"
done
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    assert completions.main([str(folder)]) == 0
    (folder / "conf.d").mkdir()
    (folder / "relayd.toml").write_text(CONFIG)
    (folder / "conf.d/printers.toml").write_text('[[user]]\nname = "printer1"\n')
    (folder / "folder").mkdir()
    return folder


def environment(folder: Path) -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(folder), "RELAYD_CONFIG": f"{folder}/relayd.toml"}


def in_bash(folder: Path, *lines: str, **more: str) -> list[list[str]]:
    """Return what bash offers at the end of each line; blanks part the words."""
    typed = "\n".join(line.replace(" ", "\t") for line in lines) + "\n"
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", str(folder / "relayd.bash")],
        input=typed, capture_output=True, check=True, text=True, timeout=20, cwd=folder,
        env=environment(folder) | more,
    )  # fmt: skip
    assert done.stderr == ""
    return [line.split() for line in done.stdout.splitlines()]


def test_bash_offers_every_command_and_those_below_it(folder: Path) -> None:
    lines = [f"relayd {path} ".replace("  ", " ") for path in BELOW]
    offered = in_bash(folder, *lines)
    assert offered == [[one.name for one in found] for found in BELOW.values()]


def test_bash_offers_every_option_of_a_command(folder: Path) -> None:
    offered = in_bash(folder, *(f"relayd {path} --" for path in LEAVES))
    for leaf, words in zip(LEAVES.values(), offered, strict=True):
        own = completions.option_names(one for one in leaf.arguments if one.options)
        assert set(words) == {*own, "--config", "--json", "--help"}, leaf.name


def test_bash_offers_the_words_an_option_chooses_from(folder: Path) -> None:
    chosen = [
        (f"relayd {path} {name} ", list(one.choices))
        for path, leaf in LEAVES.items()
        for one in leaf.arguments
        for name in one.options
        if one.choices
    ]
    assert len(chosen) >= 6
    assert in_bash(folder, *(line for line, _ in chosen)) == [words for _, words in chosen]


def test_bash_finds_the_command_behind_options_and_their_values(folder: Path) -> None:
    assert in_bash(
        folder,
        "relayd --config status queue li",
        "relayd --json queue list --state held --to status --lim",
        "relayd queue list --state = h",
        "relayd queue list --state =",
        "relayd send --to a@contoso.com --wa",
        "relayd nonsense ",
    ) == [["list"], ["--limit"], ["held"], completions_of_state(), ["--wait"], list_of_all()]


def completions_of_state() -> list[str]:
    (state,) = [one for one in LEAVES["queue list"].arguments if "--state" in one.options]
    return list(state.choices)


def list_of_all() -> list[str]:
    return [one.name for one in BELOW[""]]


def test_bash_offers_files_and_folders_where_they_are_meant(folder: Path) -> None:
    offered = in_bash(
        folder, "relayd --config rel", "relayd send --attach f", "relayd sandbox --state-dir f"
    )
    assert [set(words) for words in offered] == [
        {"relayd.bash", "relayd.toml", "relayd.fish"}, {"folder"}, {"folder"}
    ]  # fmt: skip


def test_bash_asks_the_configuration_for_names_and_runs_nothing_of_it(folder: Path) -> None:
    assert in_bash(
        folder,
        "relayd queue list --upstream ",
        "relayd queue list --device ",
        "relayd user add x --upstream con",
        f"relayd --config {folder}/none.toml queue list --upstream ",
    ) == [["contoso", "fabrikam"], ["ups", "printer1"], ["contoso"], []]
    assert not (folder / "pwned").exists()


def test_bash_says_nothing_of_a_configuration_it_cannot_read(folder: Path) -> None:
    assert in_bash(folder, "relayd queue list --device ", RELAYD_CONFIG="/none/x.toml") == [[]]


def test_bash_starts_no_relayd(folder: Path) -> None:
    script = (folder / "relayd.bash").read_text()
    assert not re.search(r"\$\(\s*relayd |<\(relayd |`relayd ", script)


# ---- zsh


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here (tools/clients.sh installs it where it may)")


def test_zsh_can_read_it(folder: Path) -> None:
    needs("zsh")
    done = subprocess.run(
        ["zsh", "-n", str(folder / "_relayd")],
        capture_output=True, check=False, text=True, timeout=20,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


class Zsh:
    """zsh on a terminal; its prompt is READY."""

    def __init__(self, folder: Path) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.chdir(folder)
            more = {"TERM": "dumb", "COLUMNS": "200", "LINES": "90"}
            os.execvpe("zsh", ["zsh", "-f", "-i"], environment(folder) | more)  # noqa: S606
        os.write(
            self.fd,
            b"PS1='READY''> '; fpath=($PWD $fpath); autoload -U compinit; compinit -D -u;"
            b" setopt auto_list no_beep; zstyle ':completion:*' menu no; LISTMAX=9999\n",
        )
        self.until(b"READY> ")

    def until(self, mark: bytes) -> str:
        out = b""
        deadline = time.monotonic() + 15
        while mark not in out:
            assert time.monotonic() < deadline, out
            if select.select([self.fd], [], [], 0.5)[0]:
                out += os.read(self.fd, 65536)
        return out.decode(errors="replace")

    def completed(self, line: str) -> str:
        """Return the line as a tab, then a mark and ^A, leave it, and what was listed."""
        os.write(self.fd, line.encode() + b"\t" + b"@END")
        text = self.until(b"@END")
        os.write(self.fd, b"\x15")
        return text

    def close(self) -> None:
        os.write(self.fd, b"\x15exit\n")
        os.close(self.fd)
        os.waitpid(self.pid, 0)


@pytest.mark.slow(1)
def test_zsh_completes(folder: Path) -> None:
    needs("zsh")
    zsh = Zsh(folder)
    try:
        listed = zsh.completed("relayd ")
        assert all(one.name in listed and one.help in listed for one in BELOW[""])
        assert "queue list " in zsh.completed("relayd queue li")
        assert "--message-id " in zsh.completed("relayd queue list --mess")
        assert "leased" in zsh.completed("relayd queue list --state l")
        assert "fabrikam" in zsh.completed("relayd queue list --upstream f")
        assert "printer1" in zsh.completed("relayd send --device p")
        assert "folder/" in zsh.completed("relayd sandbox --state-dir f")
    finally:
        zsh.close()
    assert not (folder / "pwned").exists()


# ---- fish


def in_fish(folder: Path, *lines: str) -> list[list[str]]:
    needs("fish")
    asked = " ".join(f"'{line}'" for line in lines)
    script = f"source {folder}/relayd.fish; for line in {asked}; complete -C $line; echo @END; end"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        capture_output=True, check=True, text=True, timeout=20, cwd=folder,
        env=environment(folder),
    )  # fmt: skip
    assert done.stderr == ""
    parts = done.stdout.split("@END\n")[:-1]
    return [sorted(line.split("\t")[0] for line in part.splitlines()) for part in parts]


def test_fish_can_read_it(folder: Path) -> None:
    needs("fish")
    subprocess.run(["fish", "-n", str(folder / "relayd.fish")], check=True, timeout=20)


@pytest.mark.slow(1)
def test_fish_completes(folder: Path) -> None:
    assert in_fish(
        folder,
        "relayd queue l",
        "relayd --config status queue list --state l",
        "relayd queue list --upst",
        "relayd queue list --upstream ",
        "relayd send --device ",
        "relayd send --attach fo",
        f"relayd --config {folder}/none.toml queue list --upstream ",
        "relayd version ",
    ) == [
        ["list"], ["leased"], ["--upstream"], ["contoso", "fabrikam"], ["printer1", "ups"],
        ["folder/"], [], [],
    ]  # fmt: skip
    assert not (folder / "pwned").exists()


@pytest.mark.slow(1)
def test_fish_offers_every_command_and_those_below_it(folder: Path) -> None:
    letters = {path: sorted({one.name[0] for one in found}) for path, found in BELOW.items()}
    lines = [
        f"relayd {path} {letter}".replace("  ", " ")
        for path, firsts in letters.items()
        for letter in firsts
    ]
    offered = [word for words in in_fish(folder, *lines) for word in words]
    assert sorted(offered) == sorted(one.name for found in BELOW.values() for one in found)


# ---- all of them


def test_an_option_has_a_value_everywhere_or_nowhere() -> None:
    """In fish the command is found among the words, whoever their options belong to."""
    kinds: dict[str, set[bool]] = {}
    for leaf in LEAVES.values():
        for one in completions.options_of(leaf):
            for name in one.options:
                kinds.setdefault(name, set()).add(bool(one.metavar))
    assert [name for name, found in kinds.items() if len(found) > 1] == []


def test_the_same_scripts_come_out_each_time(folder: Path, tmp_path: Path) -> None:
    completions.main([str(tmp_path)])
    for name in completions.SHELLS:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
