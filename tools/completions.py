#!/usr/bin/env python3
"""Write completion for shells from the commands themselves: python3 tools/completions.py OUTDIR.

    relayd.bash   bash, with or without bash-completion
    _relayd       zsh
    relayd.fish   fish

Everything is in the scripts: a tab starts no relayd. Only names of upstreams, devices and users
are looked up, by awk in the configuration, if the user may read it; without a word if not.

SECURITY: a name is offered only if it consists of letters, digits and "._-": what stands in a
configuration must not be run by a shell that completes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from relayd.cli.main import DEFAULT_CONFIG  # noqa: E402  of this tree
from tools.commandtree import Argument, Branch, Leaf, branches, leaves  # noqa: E402

COMMON: Final = (
    Argument(("--config",), "FILE", "the configuration", ()),
    Argument(("--json",), "", "print JSON where data is printed", ()),
    Argument(("--help",), "", "show the command's help", ()),
)

MADE: Final = "# Made by tools/completions.py from the commands of relayd: change those."

NAMES: Final = """\
/^[ \\t]*\\[/ { inside = ($0 ~ /^[ \\t]*\\[\\[(device|user)\\]\\]/) }
want == "upstream" && match($0, /^[ \\t]*\\[upstream\\.[A-Za-z0-9_-]+\\]/) {
    name = substr($0, RSTART, RLENGTH); sub(/^[ \\t]*\\[upstream\\./, "", name)
    sub(/\\]$/, "", name); print name
}
want == "device" && inside && /^[ \\t]*name[ \\t]*=/ {
    split($0, part, "\\""); if (part[2] ~ /^[A-Za-z0-9._-]+$/) print part[2]
}"""
"""awk: names of `want` ("upstream", or "device": of users too) in files of TOML."""


def kind_of(leaf: Leaf, argument: Argument) -> str:
    """Return what an argument's value is: "" none, file, folder, upstream, device, text, or
    "=" and the words to choose from.
    """
    if not argument.metavar:
        return ""
    if argument.choices:
        return "=" + " ".join(argument.choices)
    about = leaf.name.split()[1]
    if argument.metavar in ("FILE", "DIR"):
        return {"FILE": "file", "DIR": "folder"}[argument.metavar]
    names = {"--upstream", "--from-upstream"}
    if argument.metavar == "UPSTREAM" or names & set(argument.options):
        return "upstream"
    if "--device" in argument.options:
        return "device"
    is_name = not argument.options and argument.metavar in ("NAME", "DEVICE")
    is_known = about in ("device", "upstream") and not leaf.name.endswith(" add")
    return about if is_name and is_known else "text"


def options_of(leaf: Leaf) -> Iterator[Argument]:
    """Yield the options of a command, those of every command too."""
    yield from (one for one in leaf.arguments if one.options)
    yield from COMMON


def option_names(found: Iterable[Argument]) -> list[str]:
    """Return every name of some options."""
    return [name for one in found for name in one.options]


def path_of(leaf: Leaf) -> str:
    """Return its name without "relayd"."""
    return leaf.name.removeprefix("relayd ")


def names_below(found: Sequence[Branch]) -> dict[str, list[Branch]]:
    """Return each path that has commands below it, with them; "" for the top."""
    out: dict[str, list[Branch]] = {}
    for one in found:
        out.setdefault(" ".join(one.path), []).append(one)
    return out


def quoted(text: str) -> str:
    """Return text as one word of a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


# ---- bash


def bash(every: Sequence[Leaf], below: Mapping[str, Sequence[Branch]]) -> str:
    """Return the script for bash."""
    kinds = [
        f"        {quoted(f'{path_of(leaf)}:{name}')}) kind={quoted(kind_of(leaf, one))} ;;"
        for leaf in every
        for one in leaf.arguments
        for name in (one.options or [""])
        if kind_of(leaf, one)
    ]
    options = [_bash_words(path_of(leaf), option_names(options_of(leaf))) for leaf in every]
    names = [_bash_words(path, [one.name for one in found]) for path, found in below.items()]
    return _BASH.format(
        made=MADE, kinds="\n".join(kinds), options="\n".join(options), names="\n".join(names),
        top=quoted(" ".join(option_names(COMMON))), awk=quoted(NAMES), config=DEFAULT_CONFIG,
    )  # fmt: skip


def _bash_words(path: str, words: Iterable[str]) -> str:
    return f"        {quoted(path)}) words={quoted(' '.join(words))} ;;"


_BASH: Final = """\
# bash completion for relayd(8)                                            -*- shell-script -*-
{made}

# Sets `kind`: what the value of option $2 ("": of an argument) of command $1 is.
_relayd_kind() {{
    kind=
    case "$1:$2" in
        *:--config) kind=file ;;
{kinds}
    esac
}}

# Sets `words`: the commands below $1.
_relayd_commands() {{
    words=
    case "$1" in
{names}
    esac
}}

_relayd_options() {{
    case "$1" in
{options}
        *) words={top} ;;
    esac
}}

_relayd_names() {{
    awk -v want="$1" {awk} "$config" "${{config%/*}}"/conf.d/*.toml 2>/dev/null
}}

_relayd() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} path= option= word words kind
    local config=${{RELAYD_CONFIG:-{config}}}
    local i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${{COMP_WORDS[i]}}
        if [[ $word == "=" ]]; then
            continue
        elif [[ -n $option ]]; then
            [[ $option == --config ]] && config=${{word/#\\~\\//$HOME/}}
            option=
        elif [[ $word == -* ]]; then
            _relayd_kind "$path" "$word"
            [[ -n $kind ]] && option=$word
        else
            _relayd_commands "$path"
            [[ " $words " == *" $word "* ]] && path=${{path:+$path }}$word
        fi
    done
    [[ $cur == "=" ]] && cur=
    if [[ -z $option && $cur == -* ]]; then
        _relayd_options "$path"
    else
        _relayd_commands "$path"
        if [[ -n $option || -z $words ]]; then
            _relayd_kind "$path" "$option"
            case $kind in
                file)
                    compopt -o filenames 2>/dev/null
                    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
                    return
                    ;;
                folder)
                    compopt -o filenames 2>/dev/null
                    mapfile -t COMPREPLY < <(compgen -d -- "$cur")
                    return
                    ;;
                upstream | device) words=$(_relayd_names "$kind") ;;
                =*) words=${{kind#=}} ;;
                *) return ;;
            esac
        fi
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}}

complete -F _relayd relayd
"""


# ---- zsh


def zsh(every: Sequence[Leaf], below: Mapping[str, Sequence[Branch]]) -> str:
    """Return the script for zsh."""
    common = " ".join(_zsh_option(one, "file" if one.metavar else "") for one in COMMON)
    functions = [_zsh_branch(path, found) for path, found in below.items()]
    functions += [_zsh_leaf(leaf) for leaf in every]
    return _ZSH.format(
        made=MADE, awk=quoted(NAMES), config=DEFAULT_CONFIG, common=common,
        functions="\n".join(functions),
    )  # fmt: skip


def _zsh_name(path: str) -> str:
    return "_".join(["_relayd", *path.split()]) if path else "_relayd_top"


def _zsh_branch(path: str, found: Sequence[Branch]) -> str:
    rows = "\n".join(f"        {quoted(f'{one.name}:{one.help}')}" for one in found)
    inner = "\n".join(
        f"                {one.name}) {_zsh_name(f'{path} {one.name}'.strip())} ;;" for one in found
    )
    return _ZSH_BRANCH.format(function=_zsh_name(path), rows=rows, inner=inner)


def _zsh_leaf(leaf: Leaf) -> str:
    specs = [_zsh_option(one, kind_of(leaf, one)) for one in leaf.arguments if one.options]
    for number, one in enumerate((one for one in leaf.arguments if not one.options), 1):
        place = "*" if one.is_many else str(number)
        specs.append(quoted(f"{place}:{_zsh_text(one.metavar)}:{_zsh_action(kind_of(leaf, one))}"))
    rows = "".join(f" \\\n        {spec}" for spec in specs)
    return f"{_zsh_name(path_of(leaf))}() {{\n    _arguments -S $common{rows}\n}}\n"


def _zsh_option(one: Argument, kind: str) -> str:
    value = f":{_zsh_text(one.metavar)}:{_zsh_action(kind)}" if kind else ""
    return " ".join(quoted(f"*{name}[{_zsh_text(one.help)}]{value}") for name in one.options)


def _zsh_text(text: str) -> str:
    return re.sub(r"([\[\]:\\])", r"\\\1", text)


def _zsh_action(kind: str) -> str:
    if kind.startswith("="):
        return f"({kind[1:]})"
    return {
        "file": "_files", "folder": "_files -/", "upstream": " _relayd_names upstream",
        "device": " _relayd_names device",
    }.get(kind, " ")  # fmt: skip


_ZSH: Final = """\
#compdef relayd
{made}

_relayd_names() {{
    local config=${{opt_args[--config]:-${{RELAYD_CONFIG:-{config}}}}}
    local -a names
    names=(${{(f)"$(awk -v want=$1 {awk} $config ${{config:h}}/conf.d/*.toml(N) 2>/dev/null)"}})
    compadd -a names
}}

{functions}
_relayd() {{
    local -a common
    common=({common})
    _relayd_top "$@"
}}

_relayd "$@"
"""
_ZSH_BRANCH: Final = """\
{function}() {{
    local context state state_descr line curcontext=$curcontext
    typeset -A opt_args
    local -a commands
    commands=(
{rows}
    )
    _arguments -C -S $common '1: :->command' '*:: :->rest'
    case $state in
        command) _describe -t commands command commands ;;
        rest)
            case $words[1] in
{inner}
            esac
            ;;
    esac
}}
"""


# ---- fish


def fish(every: Sequence[Leaf], below: Mapping[str, Sequence[Branch]]) -> str:
    """Return the script for fish."""
    valued = sorted(
        {name for leaf in every for one in options_of(leaf) if one.metavar for name in one.options}
    )
    lines = [
        f"complete -c relayd {_fish_at(path)}-a {_fish(one.name)} -d {_fish(one.help)}"
        for path, found in below.items()
        for one in found
    ]
    lines += [_fish_option("", one, "file" if one.metavar else "") for one in COMMON]
    for leaf in every:
        where = _fish_at(path_of(leaf))
        for one in leaf.arguments:
            kind = kind_of(leaf, one)
            if one.options:
                lines.append(_fish_option(where, one, kind))
            elif _fish_value(kind):
                lines.append(f"complete -c relayd {where}{_fish_value(kind).removeprefix('-r ')}")
    paths = [" ".join((*one.path, one.name)) for found in below.values() for one in found]
    return _FISH.format(
        made=MADE, awk=_fish(NAMES), config=DEFAULT_CONFIG, valued=" ".join(valued),
        paths=" ".join(_fish(path) for path in paths),
        lines="\n".join(lines),
    )  # fmt: skip


def _fish_at(path: str) -> str:
    return f"-n {_fish(f'__relayd_at {_fish(path)}')} "


def _fish_option(where: str, one: Argument, kind: str) -> str:
    names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in one.options)
    value = f" {_fish_value(kind) or '-x'}" if kind else ""
    return f"complete -c relayd {where}{names}{value} -d {_fish(one.help)}"


def _fish_value(kind: str) -> str:
    if kind.startswith("="):
        return f"-x -a {_fish(kind[1:])}"
    return {
        "file": "-r -F", "folder": "-x -a '(__fish_complete_directories)'",
        "upstream": "-x -a '(__relayd_names upstream)'",
        "device": "-x -a '(__relayd_names device)'",
    }.get(kind, "")  # fmt: skip


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_FISH: Final = """\
# fish completion for relayd(8)
{made}

function __relayd_words
    # The command and what it is about: words that are neither options nor their values.
    set -l is_value 0
    set -l words (commandline -opc)
    for word in $words[2..-1]
        if test $is_value = 1
            set is_value 0
        else if contains -- $word {valued}
            set is_value 1
        else if not string match -q -- '-*' $word
            echo $word
        end
    end
end

function __relayd_at --argument-names path
    set -l found
    for word in (__relayd_words)
        contains -- (string join ' ' $found $word) {paths}; or break
        set found $found $word
    end
    set -l here (string join ' ' $found)
    test "$here" = "$path"
end

function __relayd_names --argument-names want
    set -l config {config}
    test -n "$RELAYD_CONFIG"; and set config $RELAYD_CONFIG
    set -l words (commandline -opc)
    if set -l at (contains -i -- --config $words)
        set -l next (math $at + 1)
        set config $words[$next]
    end
    set -l more (__relayd_conf_d $config)
    awk -v want=$want {awk} $config $more 2>/dev/null
end

function __relayd_conf_d
    set -l files (string replace -r '[^/]*$' '' -- $argv[1])conf.d/*.toml
    string join \\n -- $files
end

complete -c relayd -f
{lines}
"""


SHELLS: Final[Mapping[str, Callable[[Sequence[Leaf], Mapping[str, Sequence[Branch]]], str]]] = {
    "relayd.bash": bash,
    "_relayd": zsh,
    "relayd.fish": fish,
}


def main(words: Sequence[str]) -> int:
    """Write them; returns the exit code."""
    if len(words) != 1:
        print("usage: completions.py OUTDIR", file=sys.stderr)
        return 2
    folder = Path(words[0])
    folder.mkdir(parents=True, exist_ok=True)
    every, below = list(leaves()), names_below(list(branches()))
    for name, script in SHELLS.items():
        (folder / name).write_text(script(every, below), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
