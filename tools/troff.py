"""Markdown, as far as docs/ use it, into the man macros that groff and mandoc both render.

    blocks(text)    headings, paragraphs, lists, code and tables, in order
    render(block)   lines of man(7)

Code and bold become bold, emphasis italic; a table's first column becomes tags, its others the
text beside them. Only ASCII leaves here, so that no locale changes a page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple


class Heading(NamedTuple):
    """level: 1 for "#"."""

    level: int
    text: str


class Paragraph(NamedTuple):
    """One paragraph, its lines joined."""

    text: str


class Items(NamedTuple):
    """A list; numbered or not. Its items are paragraphs."""

    texts: Sequence[str]
    is_numbered: bool


class Code(NamedTuple):
    """Lines to be shown as they are."""

    lines: Sequence[str]


class Table(NamedTuple):
    """Cells of Markdown; every row as long as the head."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


Block = Heading | Paragraph | Items | Code | Table

PAGES: Final = {
    "cli.md": "relayd(8)",
    "settings.md": "relayd.toml(5)",
    "sandbox.md": "relayd-sandbox(1)",
    "sendmail.md": "sendmail(8)",
}
"""Documents that are man pages too, by file name."""

_WIDTH: Final = 78
_ITEM: Final = re.compile(r"(?:-|\d+\.) +")
_CELL: Final = re.compile(r"(?<!\\)\|")
_SIGNS: Final = {
    "\\": r"\e", "-": "-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti",
    "…": "...", "→": "->", "≤": "<=", "≥": ">=",
}  # fmt: skip


# ---- reading


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a document."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
        elif line.startswith("```"):
            end = next(n for n in range(at + 1, len(lines)) if lines[n].startswith("```"))
            yield Code(lines[at + 1 : end])
            at = end + 1
        elif line.startswith("#"):
            marks = line.split(maxsplit=1)[0]
            yield Heading(len(marks), line[len(marks) :].strip())
            at += 1
        else:
            end = _end(lines, at)
            yield _block(lines[at:end])
            at = end


def _end(lines: Sequence[str], at: int) -> int:
    """Return where the paragraph, list or table that begins at `at` is over."""
    is_list = bool(_ITEM.match(lines[at]))
    for number in range(at + 1, len(lines)):
        line = lines[number]
        if not line.strip() or line.startswith(("#", "```")):
            return number
        if not is_list and (_ITEM.match(line) or line.startswith("|") != lines[at].startswith("|")):
            return number
    return len(lines)


def _block(lines: Sequence[str]) -> Block:
    if lines[0].startswith("|"):
        head, _, *rows = [_cells(line) for line in lines]
        return Table(head, [[*row, *[""] * (len(head) - len(row))] for row in rows])
    if _ITEM.match(lines[0]):
        texts: list[str] = []
        for line in lines:
            if _ITEM.match(line):
                texts.append(_ITEM.sub("", line, count=1))
            else:
                texts[-1] += " " + line.strip()
        return Items(texts, lines[0][0].isdigit())
    return Paragraph(" ".join(line.strip() for line in lines))


def _cells(line: str) -> list[str]:
    return [
        cell.strip().replace(r"\|", "|")
        for cell in _CELL.split(line.strip().removeprefix("|").removesuffix("|"))
    ]


# ---- writing


def plain(text: str) -> str:
    """Return text in which nothing means anything to troff."""
    return "".join(_SIGNS.get(c, c) if c in _SIGNS or c.isascii() else _far(c) for c in text)


def _far(character: str) -> str:
    return rf"\[u{ord(character):04X}]"


def literal(text: str) -> str:
    """Return what somebody types: a hyphen in it is a minus, and it is not broken there."""
    return plain(text).replace("-", r"\-").replace('"', r"\(dq")


_INLINE: Final = re.compile(
    r"`(?P<code>[^`]+)`|\*\*(?P<bold>[^*]+)\*\*|\*(?P<emphasis>[^*\s][^*]*)\*"
    r"|\[(?P<label>[^\]\[]+)\]\((?P<target>[^)]+)\)"
)


def inline(text: str) -> str:
    """Return one paragraph's text with its fonts, without a line break."""
    out: list[str] = []
    end = 0
    for found in _INLINE.finditer(text):
        out.append(plain(text[end : found.start()]))
        out.append(_styled(found))
        end = found.end()
    out.append(plain(text[end:]))
    return "".join(out)


def _styled(found: re.Match[str]) -> str:
    if found["code"]:
        return rf"\fB{literal(found['code'])}\fR"
    if found["bold"]:
        return rf"\fB{plain(found['bold'])}\fR"
    if found["emphasis"]:
        return rf"\fI{plain(found['emphasis'])}\fR"
    target = found["target"].partition("#")[0]
    if target in PAGES:
        name, section = PAGES[target].removesuffix(")").split("(")
        return rf"\fB{literal(name)}\fR({section})"
    label = inline(found["label"])
    return f"{label} ({plain(target)})" if "://" in target else label


def lines_of(text: str) -> list[str]:
    """Return a paragraph as input lines: each sentence begins one, none looks like a request."""
    lines: list[str] = []
    # The blank after a full stop goes, or its width would depend on where the line breaks.
    for sentence in re.split(r"(?<=[.:;]) (?=\S)", inline(text)):
        line = ""
        for word in sentence.split(" "):
            if line and len(line) + len(word) >= _WIDTH:
                lines.append(_safe(line))
                line = ""
            line = f"{line} {word}" if line else word
        lines.append(_safe(line))
    return lines


def _safe(line: str) -> str:
    return rf"\&{line}" if line.startswith((".", "'")) else line


def verbatim(lines: Sequence[str]) -> list[str]:
    """Return lines shown as they are, indented."""
    return [
        ".PP", ".RS 4", ".nf",
        *(_safe(literal(line)) if line else r"\&" for line in lines),
        ".fi", ".RE",
    ]  # fmt: skip


def tagged(tag: str, text: str) -> list[str]:
    """Return one entry of a list: a tag in bold, or with fonts of its own, and its text."""
    styled = inline(tag) if "`" in tag else rf"\fB{plain(tag)}\fR"
    return [".TP", _safe(styled), *(lines_of(text) if text else [r"\&"])]


def render(
    block: Block, *, row: Callable[[Table, Sequence[str]], list[str]] | None = None
) -> list[str]:
    """Return a block's lines of man(7); `row` renders a row of a table in another way."""
    match block:
        case Heading(level, text):
            name = re.sub("[`*]", "", text)
            return [f'.SH "{literal(name).upper()}"' if level <= 2 else f'.SS "{literal(name)}"']
        case Paragraph(text):
            return [".PP", *lines_of(text)]
        case Items(texts, is_numbered):
            out: list[str] = []
            for number, text in enumerate(texts, 1):
                mark = f'"{number}." 4' if is_numbered else r"\(bu 2"
                out += [f".IP {mark}", *lines_of(text)]
            return out
        case Code(lines):
            return verbatim(lines)
        case Table(_, rows):
            return [line for each in rows for line in (row or _row)(block, each)]


def _row(_: Table, cells: Sequence[str]) -> list[str]:
    return tagged(cells[0], "; ".join(cell for cell in cells[1:] if cell))
