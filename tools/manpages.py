#!/usr/bin/env python3
"""Write the man pages from the documents and the program: python3 tools/manpages.py OUTDIR.

    relayd.8          docs/cli.md, and the arguments and examples of the program itself
    relayd.toml.5     docs/settings.md
    relayd-sandbox.1  docs/sandbox.md, and the arguments of `relayd sandbox`
    sendmail.8        docs/sendmail.md; mailq.1 and newaliases.1 point at it

The same sources give the same octets: the date is SOURCE_DATE_EPOCH's, else that of the newest
release in CHANGELOG.md, else of the package's changelog. What only programs need (the keys of
JSON) stays in docs/.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from relayd import __version__  # noqa: E402  of this tree, wherever it is called from
from tools.commandtree import Argument, Leaf, leaves  # noqa: E402
from tools.troff import (  # noqa: E402
    Block,
    Heading,
    Paragraph,
    Table,
    blocks,
    inline,
    lines_of,
    literal,
    render,
    tagged,
    verbatim,
)

NOT_OPENBSD: Final = (
    "This is not OpenBSD's relayd(8), a load balancer and application layer gateway: the two share"
    " nothing but the name."
)
DESCRIPTION: Final = (
    "relayd takes mail from devices and programs (printers, scanners, UPSes, cameras, cron) by"
    " SMTP, keeps it safe on disk, and hands it to Microsoft 365 through Microsoft Graph with"
    " OAuth2. A device is known by its network or by a login, and may use only the senders and"
    " recipients it was given. What was answered 250 survives crashes and outages; each message"
    " and each attempt can be looked up."
)
SEE_ALSO: Final = {
    "relayd.8": ("relayd-sandbox(1)", "relayd.toml(5)", "sendmail(8)", "systemctl(1)"),
    "relayd.toml.5": ("relayd(8)", "systemd-creds(1)"),
    "relayd-sandbox.1": ("relayd.toml(5)", "relayd(8)"),
    "sendmail.8": ("relayd.toml(5)", "relayd(8)"),
}
CHANGELOGS: Final = ("CHANGELOG.md", "packaging/debian/changelog")
EXIT_CODES: Final = "Exit codes, everywhere"
"""How the paragraph about them begins."""

ONLY_FOR_PROGRAMS: Final = ("key", "key of an attempt")
"""Tables of docs/cli.md that are left out here."""


def date_of(changelog: str, package: str, environment: Mapping[str, str]) -> str:
    """Return the pages' date, YYYY-MM-DD; changelog, package: the texts of the two changelogs."""
    epoch = environment.get("SOURCE_DATE_EPOCH", "")
    if epoch.isdecimal():
        return datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%d")
    if (released := re.search(r"(?m)^## .*\b(\d{4}-\d\d-\d\d)\b", changelog)) is not None:
        return released[1]
    (stamp,) = re.findall(r"(?m)^ -- .*>  (.*)$", package)[:1]
    return parsedate_to_datetime(stamp).strftime("%Y-%m-%d")


def page(name: str, what: str, body: Sequence[str], *, others: str = "") -> str:
    """Return a whole page; name: "relayd.toml.5"; others: further names it is found by."""
    title, _, section = name.rpartition(".")
    texts = [(ROOT / each).read_text(encoding="utf-8") for each in CHANGELOGS]
    date = date_of(texts[0], texts[1], os.environ)
    manual = {"1": "User Commands", "5": "File Formats", "8": "System Administration"}[section]
    see = [
        rf".BR {literal(one.split('(')[0])} ({one.split('(')[1]}"
        for one in sorted(SEE_ALSO[name], key=lambda one: (one[-2], one))
    ]
    lines = [
        r".\" Made by tools/manpages.py from docs/: change those.",
        f'.TH "{literal(title).upper()}" {section} "{date}" "relayd {__version__}" "{manual}"',
        # Neither a command nor a key may be broken by a hyphen, nor its blanks be stretched.
        ".nh",
        ".ad l",
        ".SH NAME",
        rf"{literal(title)}{others} \- {inline(what)}",
        *body,
        ".SH SEE ALSO",
        *(f"{one}," if number < len(see) else one for number, one in enumerate(see, 1)),
        ".PP",
        r"The documents in \fB/usr/share/doc/relayd/\fR.",
    ]
    return "\n".join(_without_idle(lines)) + "\n"


def _without_idle(lines: Sequence[str]) -> Iterator[str]:
    """Yield lines but a paragraph's begin where a heading has begun one."""
    before = ""
    for line in lines:
        if not (line == ".PP" and before.startswith((".SH", ".SS"))):
            yield line
        before = line


def document(name: str) -> list[Block]:
    """Return a document's blocks."""
    return list(blocks((ROOT / "docs" / name).read_text(encoding="utf-8")))


def sections(found: Sequence[Block]) -> Iterator[tuple[str, list[Block]]]:
    """Yield (heading of level 2, blocks below it); what stands before the first has ""."""
    title, below = "", list[Block]()
    for block in found:
        if isinstance(block, Heading) and block.level <= 2:
            yield title, below
            title, below = ("" if block.level == 1 else block.text), []
        else:
            below.append(block)
    yield title, below


# ---- relayd(8)


def relayd_8() -> str:
    """Return relayd(8)."""
    every = list(leaves())
    parts: dict[str, list[Block]] = {}
    for title, below in sections(document("cli.md")):
        parts.setdefault(title, []).extend(below)
    body = [
        ".SH SYNOPSIS",
        r"\fBrelayd\fR [\fB\-\-config\fR\ \fIFILE\fR] [\fB\-\-json\fR]",
        r"\fIcommand\fR [\fIargument\fR\ ...]",
        ".SH DESCRIPTION",
        *lines_of(DESCRIPTION),
        ".PP",
        *lines_of(NOT_OPENBSD),
        ".PP",
        r"\fBrelayd\fR is run by \fBsystemd\fR(1), as \fBrelayd.service\fR.",
        r"The commands below look after it.",
    ]
    _, *intro = parts[""]  # the first is about the document itself
    codes = [one for one in intro if isinstance(one, Paragraph) and one.text.startswith(EXIT_CODES)]
    body += [".SH OPTIONS"]
    for block in intro:
        body += [] if block in codes else render(block)
    body += [".SH COMMANDS"]
    for leaf in every:
        body += command(leaf, parts.get(leaf.name, []))
    body += [".SH EXIT STATUS", *(line for block in codes for line in render(block))]
    for title in ("Signals", "Environment", "Files"):
        body += [f".SH {title.upper()}", *(line for each in parts[title] for line in render(each))]
    body += [".SH EXAMPLES"]
    for leaf in every:
        body += [".PP", rf"\fB{literal(leaf.name)}\fR:", *verbatim(leaf.examples)]
    return page("relayd.8", "SMTP relay that lets devices send through Microsoft 365", body)


def command(leaf: Leaf, found: Sequence[Block]) -> list[str]:
    """Return one command's subsection; found: what docs/cli.md says, or nothing yet."""
    shown = [block for block in found if not is_for_programs(block)]
    out = [f'.SS "{literal(leaf.name)}"', *([synopsis(leaf)] if leaf.arguments else [])]
    if not any(isinstance(block, Paragraph) and not is_exit(block) for block in shown):
        out += [".PP", *lines_of(leaf.description)]
    if not found:
        out += arguments(leaf)
    for block in shown:
        if isinstance(block, Table) and block.head[0] == "argument":
            out += arguments(leaf)
        else:
            out += render(block)
    return out


def is_exit(block: Block) -> bool:
    """Tell whether a paragraph says exit codes."""
    return isinstance(block, Paragraph) and block.text.startswith("Exit:")


def is_for_programs(block: Block) -> bool:
    """Tell whether a block is about JSON only."""
    if isinstance(block, Table):
        return block.head[0] in ONLY_FOR_PROGRAMS
    return isinstance(block, Paragraph) and block.text.startswith("JSON")


def synopsis(leaf: Leaf) -> str:
    """Return one line: the command and what may follow it."""
    words = [rf"\fB{literal(leaf.name)}\fR"]
    for one in leaf.arguments:
        text = usage(one)
        if one.options:
            words.append(text if one.is_required else f"[{text}]")
        else:
            text = rf"\fI{literal(one.metavar)}\fR" + (" ..." if one.is_many else "")
            words.append(text if one.is_required else f"[{text}]")
    return "\n".join(word.replace(" ", r"\ ") for word in words)


def usage(one: Argument) -> str:
    """Return the first name of an option with its value."""
    value = rf" \fI{literal(one.metavar)}\fR" if one.metavar else ""
    return rf"\fB{literal(one.options[0])}\fR{value}" if one.options else value.strip()


def arguments(leaf: Leaf) -> list[str]:
    """Return a tagged list of a command's arguments."""
    out: list[str] = []
    for one in leaf.arguments:
        names = ", ".join(rf"\fB{literal(name)}\fR" for name in one.options)
        value = rf"\fI{literal(one.metavar)}\fR" if one.metavar else ""
        tag = f"{names} {value}".strip() if names else value + (" ..." if one.is_many else "")
        if one.help or one.options:
            text = one.help or one.metavar.lower()
            out += [".TP", tag, *lines_of(text)]
    return out


# ---- relayd.toml(5)


def relayd_toml_5() -> str:
    """Return relayd.toml(5)."""
    body = [
        ".SH SYNOPSIS",
        r"\fB/etc/relayd/relayd.toml\fR",
        ".br",
        r"\fB/etc/relayd/conf.d/*.toml\fR",
    ]
    first = True
    for title, below in sections(document("settings.md")):
        if title or first:
            body += [f'.SH "{literal(title.replace("`", ""))}"' if title else ".SH DESCRIPTION"]
            first = False
        for block in below:
            body += render(block, row=setting)
    return page("relayd.toml.5", "configuration of relayd(8)", body)


def setting(table: Table, cells: Sequence[str]) -> list[str]:
    """Return one key of the configuration."""
    if list(table.head[:3]) != ["key", "type", "default"]:
        return tagged(cells[0], "; ".join(cell for cell in cells[1:] if cell))
    key, kind, default, meaning = cells
    value = {"none": "no default", "required": "required"}.get(default, f"default {default}")
    return tagged(
        key, f"{kind[0].upper() if kind[0].isalpha() else kind[0]}{kind[1:]}; {value}. {meaning}"
    )


# ---- relayd-sandbox(1), sendmail(8)


def relayd_sandbox_1() -> str:
    """Return relayd-sandbox(1)."""
    (leaf,) = [one for one in leaves() if one.name == "relayd sandbox"]
    body = [".SH SYNOPSIS", synopsis(leaf)]
    for title, below in sections(document("sandbox.md")):
        if title or below:
            body += [f'.SH "{literal(title).upper()}"' if title else ".SH DESCRIPTION"]
        for block in below:
            is_options = isinstance(block, Table) and block.head[0] == "option"
            body += [".SS Options", *arguments(leaf)] if is_options else render(block)
    body += [".SH EXAMPLES", *verbatim(leaf.examples)]
    return page("relayd-sandbox.1", "a Microsoft 365 on localhost", body)


def sendmail_8() -> str:
    """Return sendmail(8)."""
    body = [
        ".SH SYNOPSIS",
        r"\fBsendmail\fR [\fIoption\fR\ ...] [\fIrecipient\fR\ ...]",
        ".br",
        r"\fBmailq\fR",
        ".br",
        r"\fBnewaliases\fR",
    ]
    for title, below in sections(document("sendmail.md")):
        if title or below:
            body += [f'.SH "{literal(title).upper()}"' if title else ".SH DESCRIPTION"]
        for block in below:
            body += render(block)
    what = "hand this host's mail to relayd(8)"
    return page("sendmail.8", what, body, others=", mailq, newaliases")


def pages() -> dict[str, str]:
    """Return every page by its file's name."""
    return {
        "relayd.8": relayd_8(),
        "relayd.toml.5": relayd_toml_5(),
        "relayd-sandbox.1": relayd_sandbox_1(),
        "sendmail.8": sendmail_8(),
        "mailq.1": ".so man8/sendmail.8\n",
        "newaliases.1": ".so man8/sendmail.8\n",
    }


def main(words: Sequence[str]) -> int:
    """Write them; returns the exit code."""
    if len(words) != 1:
        print("usage: manpages.py OUTDIR", file=sys.stderr)
        return 2
    folder = Path(words[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
