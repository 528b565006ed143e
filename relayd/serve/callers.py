"""What each peer last sent and why it was last refused; for `relayd device show`.

A worker keeps only what the master has not heard yet: at most MOST_CALLERS peers, each with one
refusal of at most 20 lines. The master adds the workers up and keeps them over a reload.

SECURITY: nothing secret and no content. The session's transcript has no AUTH data already; lines of
the peer that are no SMTP command are left out here too, because a client out of step sends its
mail where a command belongs.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

from relayd.clock import SYSTEM, Clock
from relayd.master.frames import Json
from relayd.observe import logfmt
from relayd.values import frozen

MOST_CALLERS: Final = 256
LONGEST_LINE: Final = 200
_LONGEST_TEXT: Final = 300
_MOST_LINES: Final = 20
_PART_BYTES: Final = 48 * 1024
_VERBS: Final = frozenset(
    {
        "EHLO", "HELO", "LHLO", "MAIL", "RCPT", "DATA", "BDAT", "AUTH", "STARTTLS", "RSET", "NOOP",
        "QUIT", "VRFY", "EXPN", "HELP",
    }
)  # fmt: skip
_OURS: Final = ("AUTH <redacted>", "<redacted>")


@frozen(kw_only=True)
class Refused:
    """One refusal. code: of the reply, 0 where none was sent; reason: the rule, for people.

    do: the setting that would let it in, a sentence; "" where there is none.
    sender, recipient, login: what was asked for, "" where it did not come to that.
    """

    code: int
    reply: str
    reason: str
    do: str = ""
    sender: str = ""
    recipient: str = ""
    login: str = ""
    session: str = ""
    listener: str = ""
    transcript: tuple[str, ...] = ()


@dataclass(slots=True)
class _Caller:
    accepted: int = 0
    refused: int = 0
    last: tuple[datetime, str, str] | None = None  # when, id and sender of the last accepted
    refusal: dict[str, Json] | None = None


class Callers:
    """One worker's news of its peers; used on the hub only."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._news: OrderedDict[tuple[str, str, str], _Caller] = OrderedDict()

    def accepted(
        self, ip: str, device: str, user: str, *, queue_id: str, sender: str, at: datetime
    ) -> None:
        """Note a message that was answered 250; it becomes text only if it is told."""
        caller = self._caller(ip, device, user)
        caller.accepted += 1
        caller.last = (at, queue_id, sender[:_LONGEST_TEXT])

    def refused(self, ip: str, device: str, user: str, refusal: Refused) -> None:
        """Note a session with a refusal, or a peer that was turned away.

        user: who logged in, or the configured user whose login was refused.
        """
        caller = self._caller(ip, device, user)
        caller.refused += 1
        row: dict[str, Json] = {"at": logfmt.stamp(self._clock.utcnow())}
        for name, value in asdict(refusal).items():
            row[name] = value[:_LONGEST_TEXT] if isinstance(value, str) else value
        row["transcript"] = list(plain(refusal.transcript))
        caller.refusal = row

    def take(self) -> Iterator[list[dict[str, Json]]]:
        """Yield what is new, in parts that fit a packet, and forget it."""
        rows: list[dict[str, Json]] = []
        room = _PART_BYTES
        while self._news:
            row = _row(*self._news.popitem(last=False))
            octets = len(json.dumps(row))
            if rows and octets > room:
                yield rows
                rows, room = [], _PART_BYTES
            rows.append(row)
            room -= octets
        if rows:
            yield rows

    def _caller(self, ip: str, device: str, user: str) -> _Caller:
        key = (ip, device, user)
        caller = self._news.get(key)
        if caller is not None:
            self._news.move_to_end(key)
            return caller
        if len(self._news) >= MOST_CALLERS:
            self._news.popitem(last=False)
        caller = self._news[key] = _Caller()
        return caller


def _row(key: tuple[str, str, str], caller: _Caller) -> dict[str, Json]:
    ip, device, user = key
    row: dict[str, Json] = {
        "ip": ip, "device": device, "user": user,
        "accepted": caller.accepted, "refused": caller.refused,
    }  # fmt: skip
    if caller.last is not None:
        at, queue_id, sender = caller.last
        row["last"] = {"at": logfmt.stamp(at), "id": queue_id, "from": sender}
    if caller.refusal is not None:
        row["refusal"] = caller.refusal
    return row


def plain(transcript: Sequence[str]) -> Iterator[str]:
    """Yield the last lines of a dialogue, shortened, without what is no command."""
    for line in transcript[-_MOST_LINES:]:
        said = line.removeprefix("C: ")
        if line.startswith("C: ") and not _may_be_shown(said):
            yield f"C: <{len(said)} characters that are no SMTP command>"
        else:
            yield line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."


def _may_be_shown(said: str) -> bool:
    is_content = said.startswith("<") and said.endswith(" octets of content>")
    verb = said.replace(":", " ").partition(" ")[0].upper()
    return verb in _VERBS or said in _OURS or is_content
