"""mailq: the queue in the look that people and monitoring plugins know from Postfix.

One entry for each message that has not left, then "-- N Kbytes in M Requests.", or "Mail queue
is empty". `relayd queue list` says more. A star behind an ID: it is being sent now; "!": held.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

from relayd.cli import queue, terminal
from relayd.cli.main import DEFAULT_CONFIG, OK
from relayd.master.frames import Frame, Json

_HEAD: Final = "-Queue ID-      --Size-- ----Arrival Time---- -Sender/Recipient-------"
_MARKS: Final = {"leased": "*", "held": "!"}
_INDENT: Final = " " * 46


def show(config: str) -> int:
    """Print it; exits with words when nobody answers, or not to this user."""
    request: Frame = {"command": "queue.list", "state": "waiting", "limit": 0}
    options = argparse.Namespace(config=config or DEFAULT_CONFIG)
    pages = (_rows(page.get("messages")) for page in queue.look(options, request))
    octets = 0
    ids: set[str] = set()
    for row in (row for page in pages for row in page):
        if not ids:
            print(_HEAD)
        ids.add(str(row.get("id")))
        size = row.get("bytes")
        octets += size if isinstance(size, int) else 0
        print("\n".join(_entry(row)), end="\n\n")
    if ids:
        plural = "" if len(ids) == 1 else "s"
        print(f"-- {octets // 1024} Kbytes in {len(ids)} Request{plural}.")
    else:
        print("Mail queue is empty")
    sys.stdout.flush()
    return OK


def _entry(row: Frame) -> Iterator[str]:
    mark = _MARKS.get(str(row.get("state")), " ")
    sender = str(row.get("from") or "MAILER-DAEMON")
    moment = _moment(row.get("accepted_at"))
    yield terminal.safe(f"{row.get('id')}{mark} {row.get('bytes')!s:>9} {moment:20}  {sender}")
    reason = str(row.get("reason") or row.get("held_by") or "")
    if reason:
        yield terminal.safe(f"{'(' + reason + ')':>78}")
    for recipient in _list(row.get("to")):
        yield _INDENT + terminal.safe(str(recipient))


def _moment(text: Json) -> str:
    """Return RFC 3339 as "Sat Nov 21 10:00:00" in local time."""
    try:
        moment = datetime.fromisoformat(str(text)).astimezone()
    except ValueError:
        return ""
    return f"{moment:%a %b} {moment.day:2} {moment:%H:%M:%S}"


def _rows(value: Json) -> Iterable[Frame]:
    return [row for row in _list(value) if isinstance(row, dict)]


def _list(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list) else []
