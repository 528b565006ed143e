r"""SMTP dialogues as text: what the client says, what the server must answer.

    # why this is held true, with its source
    profile: strict            settings first, see SETTINGS
    S: 220 relay.test          a reply: its code, then how its first line goes on
    C: EHLO a | NOOP           octets in one write; " | " is CRLF, and one CRLF ends them
    S: 250 + PIPELINING ! DSN  a line of the reply that must be there, one that must not
    C: QUIT{LF}{-}             {LF} {CR} {NUL} {SP}, {hex:1603}; {-} at the end: no last CRLF
    C: {x*5000}                x, 5000 times
    * TLS                      the handshake, both sides
    * KEPT a | b               the message accepted last had just this body
    * SILENCE                  the client waits until the server gives up
    * DRAIN                    the server is told to stop
    * LEAVES                   the client closes
    * CLOSED                   the server has closed; nothing was left unsaid

Who is who, for every runner: the server is relay.test, default domain example.com; the
client is a [[device]] that may send as anybody at example.com, and to example.com only;
user "printer1" has password "secret12".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

DIALOGS: Final = sorted((Path(__file__).parent / "dialogs").glob("*.txt"))

SETTINGS: Final[Mapping[str, str]] = {
    "profile": "device",
    "limit": "10000000",  # max_message_size
    "max_errors": "50",
    "lf_dot": "no",
    "auth": "optional",  # with auth_without_tls
    "tls": "opportunistic",
    "pure": "no",  # yes: needs the scripted wire (a clock, a drain)
}


@dataclass(frozen=True)
class Say:
    """octets: one write of the client."""

    octets: bytes


@dataclass(frozen=True)
class Expect:
    """A reply. start: how its first line goes on; has, lacks: whole further lines."""

    code: str
    start: str
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    def check(self, lines: list[str]) -> None:
        """Raise AssertionError when the reply, code cut off, is another one."""
        said = [line[4:] for line in lines]
        assert {line[:3] for line in lines} == {self.code}, f"wanted {self}, got {lines}"
        assert said[0].startswith(self.start), f"wanted {self}, got {lines}"
        assert set(self.has) <= set(said[1:]), f"wanted {self}, got {lines}"
        assert not set(self.lacks) & set(said[1:]), f"wanted {self}, got {lines}"


@dataclass(frozen=True)
class Kept:
    """body: of the message accepted last."""

    body: bytes


@dataclass(frozen=True)
class Act:
    """word: TLS, SILENCE, DRAIN, LEAVES or CLOSED."""

    word: str


Step: TypeAlias = Say | Expect | Kept | Act


@dataclass(frozen=True)
class Dialog:
    """One file."""

    settings: Mapping[str, str]
    steps: tuple[Step, ...]


def load(path: Path) -> Dialog:
    """Return the dialogue in a file; raises ValueError with the line."""
    settings, steps = dict(SETTINGS), list[Step]()
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        key, _, value = line.partition(":")
        if key in SETTINGS and not steps:
            settings[key] = value.strip()
        else:
            steps.append(_step(line))
    return Dialog(settings, tuple(steps))


def _step(line: str) -> Step:
    if line.startswith("C: "):
        return Say(_octets(line[3:]))
    if line.startswith("S: "):
        return _expect(line[3:])
    word, _, rest = line.removeprefix("* ").partition(" ")
    if word == "KEPT":
        return Kept(_octets(rest))
    if line.startswith("* ") and word in ("TLS", "SILENCE", "DRAIN", "LEAVES", "CLOSED"):
        return Act(word)
    raise ValueError(f"no step of a dialogue: {line!r}")


def _expect(text: str) -> Expect:
    first, *more = re.split(r" (?=[+!] )", text)
    return Expect(
        first[:3],
        first[4:],
        tuple(word[2:] for word in more if word.startswith("+")),
        tuple(word[2:] for word in more if word.startswith("!")),
    )


_NAMED: Final = {"CR": b"\r", "LF": b"\n", "NUL": b"\0", "SP": b" ", "TAB": b"\t", "-": b""}


def _octets(text: str) -> bytes:
    ends = not text.endswith("{-}")
    out = bytearray()
    for part in re.split(r"(\{[^}]+\})", text.replace(" | ", "\r\n")):
        inside = part[1:-1]
        if not part.startswith("{"):
            out += part.encode()
        elif inside.startswith("hex:"):
            out += bytes.fromhex(inside[4:])
        elif "*" in inside:
            unit, _, times = inside.rpartition("*")
            out += _octets(unit + "{-}").replace(b"{LF}", b"\n") * int(times)
        else:
            out += _NAMED[inside]
    return bytes(out) + (b"\r\n" if ends else b"")
