"""`relayd queue`: what waits, why, and what an operator may do about it.

The running relay answers (control.sock, docs/control.md), a page at a time, and pages are shown
as they come: a million rows cost no memory here. When it is down, list, show and trace read the
spool themselves (`cli.offline`); the rest needs the daemon.

A change by filter says how many it means and asks, unless --yes; --dry-run only says. Neither
IDs nor a filter is refused: nobody deletes the whole queue by forgetting a word.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from relayd.cli import daemon, terminal
from relayd.cli import main as command_line
from relayd.cli.actions import Action, add_actions
from relayd.cli.answers import moment_of
from relayd.cli.daemon import ask_each
from relayd.master.frames import Frame, Json

_WITHIN_S: Final = 60.0
_CONNECT_S: Final = 5.0
_WRONG_USAGE: Final = 2
_AGO: Final = re.compile(r"(\d{1,9})\s*([smhdw])")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_STATES: Final = (
    "waiting",
    "ready",
    "deferred",
    "held",
    "leased",
    "sent",
    "failed",
    "deleted",
    "all",
)
_FILTERS: Final = ("state", "to", "from_", "device", "upstream", "message_id", "since")


_EXITS: Final[Mapping[str, str]] = {
    "filters": "exit: 0 shown, 69 not running and no spool to read",
    "id": "exit: 0 done, 1 no such message, 2 wrong usage, 69 not running",
    "both": "exit: 0 done, 1 no such message, or not in a state for it, or not confirmed,\n"
    "      69 not running, 75 the spool cannot be written now",
}

_ACTIONS: Final = (
    Action(
        "list",
        "show deliveries, oldest first",
        "  relayd queue list                        what has not left yet\n"
        "  relayd queue list --state held           what waits for an administrator\n"
        "  relayd queue list --state sent --since 2h --to ops@contoso.com\n"
        "  relayd queue list --state all --message-id 1234@ups.local\n"
        "  relayd --json queue list | jq -r '.[].id'",
        _EXITS["filters"],
        "filters",
    ),
    Action(
        "show",
        "one message: why it is where it is, and what to do",
        "  relayd queue show 1JV7SEQSLMJCW",
        _EXITS["id"],
        "id",
    ),
    Action(
        "trace",
        "one message's attempts in order, with Microsoft's request-ids",
        "  relayd queue trace 1JV7SEQSLMJCW",
        _EXITS["id"],
        "id",
    ),
    Action(
        "retry",
        "try now; failed mail too, as long as its content is kept",
        "  relayd queue retry 1JV7SEQSLMJCW\n"
        "  relayd queue retry --state failed --since 1d --dry-run",
        _EXITS["both"],
        "both",
    ),
    Action(
        "hold",
        "keep back until released",
        "  relayd queue hold --device scanner --yes",
        _EXITS["both"],
        "both",
    ),
    Action(
        "release",
        "let held mail go",
        "  relayd queue release 1JV7SEQSLMJCW\n  relayd queue release --upstream contoso",
        _EXITS["both"],
        "both",
    ),
    Action(
        "move",
        "take waiting mail to another upstream",
        "  relayd queue move --upstream acs 1JV7SEQSLMJCW\n"
        "  relayd queue move --upstream acs --from-upstream contoso --dry-run",
        _EXITS["both"],
        "both",
    ),
    Action(
        "delete",
        "give up and drop the content",
        "  relayd queue delete 1JV7SEQSLMJCW\n  relayd queue delete --to old@contoso.com --dry-run",
        _EXITS["both"],
        "both",
    ),
    Action(
        "export",
        "write one message's content to standard output",
        "  relayd queue export 1JV7SEQSLMJCW > mail.eml",
        _EXITS["id"],
        "id",
    ),
    Action(
        "resend",
        "send sent mail again, as long as its content is kept (keep_sent_content)",
        "  relayd queue resend 1JV7SEQSLMJCW\n"
        "  relayd queue resend --to ops@contoso.com --since 2h",
        _EXITS["both"],
        "both",
    ),
)

_EPILOG: Final = """\
examples:
  relayd queue list                  what has not left yet
  relayd queue list --state held     what waits for an administrator
  relayd queue show 1JV7SEQSLMJCW    why it is stuck, and what to do
  relayd queue retry --state failed --since 1d --dry-run
  relayd queue export 1JV7SEQSLMJCW > mail.eml

states: waiting (ready, deferred, leased, held), failed, sent and deleted (history), all
list, show and trace work when relayd is down, for root and the spool's owner.
exit:   0 done, 1 no such message, 69 not running, 75 try again later"""


def add_queue(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `queue`."""
    parser.epilog = _EPILOG
    acts = {action.name: _ACTS.get(action.name, change) for action in _ACTIONS}
    subs = add_actions(parser, _ACTIONS, acts)
    for action in _ACTIONS:
        sub = subs[action.name]
        if action.takes == "id":
            sub.add_argument("id", metavar="ID")
        if action.takes == "both":
            sub.add_argument("ids", metavar="ID", nargs="*")
        if action.name == "move":
            sub.add_argument(
                "--upstream", dest="to_upstream", metavar="NAME", required=True,
                help="the upstream to take it to",
            )  # fmt: skip
        if action.takes != "id":
            _filters(sub, "--from-upstream" if action.name == "move" else "--upstream")
        if action.takes == "both":
            sub.add_argument("--yes", action="store_true", help="do not ask")
            sub.add_argument("--dry-run", action="store_true", help="only say how many it means")
    subs["list"].add_argument(
        "--limit", metavar="N", type=_positive, default=0, help="at most so many"
    )


def _filters(parser: argparse.ArgumentParser, upstream: str) -> None:
    """Add them. upstream: what the one for the upstream is called."""
    parser.add_argument(
        "--state", metavar="STATE", choices=_STATES, default=None, help=" ".join(_STATES)
    )
    for name, metavar, text in (
        ("--from", "TEXT", "part of the envelope sender"),
        ("--to", "TEXT", "part of a recipient's address"),
        ("--device", "NAME", "name of the [[device]] or [[user]]"),
        (upstream, "NAME", "name of the upstream"),
        ("--message-id", "TEXT", "part of the Message-ID"),
        ("--since", "WHEN", "accepted since: 2h, 3d or 2026-11-20T10:00:00Z"),
    ):
        dest = {"--from": "from_", upstream: "upstream"}.get(name, name[2:].replace("-", "_"))
        parser.add_argument(name, dest=dest, metavar=metavar, default="", help=text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 up")
    return int(text)


def filter_of(options: argparse.Namespace) -> dict[str, Json]:
    """Return the request's filter members; raises SystemExit(2) with words."""
    return {
        "state": options.state or "waiting",
        "to": options.to,
        "from": options.from_,
        "device": options.device,
        "upstream": options.upstream,
        "message_id": options.message_id,
        "since": since(options.since),
    }


def since(text: str) -> str:
    """Return "2h" or an ISO 8601 moment as RFC 3339 with its offset; "" for "".

    Without an offset this host's own time is meant.
    """
    if not text:
        return ""
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago is not None:
            gone = timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
            return (datetime.now(UTC) - gone).isoformat()
        return datetime.fromisoformat(text.strip()).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        raise SystemExit(
            _usage(f'--since {text}: write "2h", "3d" or 2026-11-20T10:00:00Z')
        ) from None


# ---- looking


def list_(options: argparse.Namespace) -> int:
    """Show deliveries."""
    request = {"command": "queue.list", "limit": options.limit, **filter_of(options)}
    pages = (_rows(page.get("messages")) for page in look(options, request))
    if options.json:
        _print_array(itertools.chain.from_iterable(pages))
        return command_line.OK
    if not _print_pages(pages):
        print("nothing is waiting" if options.state in (None, "waiting") else "none")
    return command_line.OK


_HEADS: Final = ("ID", "STATE", "ACCEPTED", "SIZE", "DEVICE", "TO", "NEXT OR REASON")


def _print_array(rows: Iterable[Frame]) -> None:
    """Print a JSON array, a row on each line, as they come."""
    # ASCII: what a peer chose must not steer a terminal, nor be unprintable in its encoding.
    before = "["
    for row in rows:
        print(f"{before}{json.dumps(row)}", end="")
        before = ",\n "
    print("[]" if before == "[" else "]")


def _print_pages(pages: Iterable[list[Frame]]) -> bool:
    """Print pages as one table whose columns the first page sets; False if all are empty."""
    widths: list[int] = []
    for page in pages:
        cells = [[terminal.safe(cell) for cell in _cells(row)] for row in page]
        if not cells:
            continue
        heads = () if widths else _HEADS
        if not widths:
            widths = [max(len(row[i]) for row in (*cells, _HEADS)) for i in range(len(_HEADS) - 1)]
        padded = [
            [cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)]
            for row in cells
        ]
        print(terminal.table(padded, heads))
    return bool(widths)


def _cells(row: Frame) -> Sequence[str]:
    state = str(row.get("state"))
    to = [str(one) for one in _list(row.get("to"))]
    shown = to[0] if to else ""
    if len(to) > 1:
        shown += f" and {len(to) - 1} more"
    last = str(row.get("reason") or row.get("held_by") or "")
    if state == "deferred":
        due = moment_of(row.get("due_at"))
        again = "now" if due is not None and due <= datetime.now(UTC) else row.get("due_at")
        tried = f"{_times(row.get('attempts'))}, again {again}"
        last = f"{tried}; {last}" if last else tried
    if row.get("maybe_sent") and state in _STATES[1:5]:
        last = f"{last}, maybe sent".removeprefix(", ")
    octets = row.get("bytes")
    return (
        str(row.get("id")),
        state,
        str(row.get("accepted_at")),
        terminal.size(octets if isinstance(octets, int) else 0),
        str(row.get("user") or row.get("device") or ""),
        shown,
        last,
    )


def _times(count: Json) -> str:
    return "tried once" if count == 1 else f"tried {count} times"


def show(options: argparse.Namespace) -> int:
    """Show one message."""
    story = _story(options)
    if options.json:
        terminal.print_json(story)
        return command_line.OK
    print(f"{story.get('id')}  {terminal.safe(str(story.get('message_id') or 'no Message-ID'))}")
    print(terminal.safe(_came(story)))
    if story.get("subject"):
        print(terminal.safe(f"subject {story.get('subject')}"))
    for row in _rows(story.get("deliveries")):
        _print_delivery(row)
    return command_line.OK


def _came(story: Frame) -> str:
    came = f"came from {story.get('ip')}"
    if story.get("helo"):
        came += f" ({story.get('helo')})"
    return f"{came} by listener {story.get('listener')}, session {story.get('session')}"


def _print_delivery(row: Frame) -> None:
    print()
    lines = [
        ("state", f"{row.get('state')}" + (f" ({row['held_by']})" if row.get("held_by") else "")),
        ("why", str(row.get("why") or "")),
        ("do", str(row.get("do") or "")),
        ("from", str(row.get("from") or "<> (none given)")),
        ("to", ", ".join(str(one) for one in _list(row.get("to")))),
        ("through", f"{row.get('upstream')}, mailbox {row.get('mailbox')}"),
        ("device", str(row.get("user") or row.get("device") or "")),
        ("accepted", f"{row.get('accepted_at')}, given up {row.get('expires_at')}"),
        ("attempts", str(row.get("attempts"))),
    ]
    for name, value in lines:
        if value:
            print(f"  {terminal.paint(f'{name:9}', 'bold')} {terminal.safe(value)}")
    for address, why in _mapping(row.get("results")).items():
        print(f"  {terminal.safe(str(address))}: {terminal.safe(str(why) or 'sent')}")


def trace(options: argparse.Namespace) -> int:
    """Show one message's timeline."""
    story = _story(options)
    if options.json:
        terminal.print_json(
            {key: story.get(key) for key in ("id", "message_id", "deliveries", "attempts")}
        )
        return command_line.OK
    ways = _rows(story.get("deliveries"))
    print(terminal.safe(f"{ways[0].get('accepted_at') if ways else ''}  {_came(story)}"))
    rows = _rows(story.get("attempts"))
    if not rows:
        print(terminal.safe(_untried(ways)))
        return command_line.OK
    cells = [
        (
            str(row.get("started_at") or row.get("finished_at")),
            str(row.get("number")) if row.get("counts", True) else "",
            str(row.get("outcome")),
            str(row.get("http_status") or ""),
            str(row.get("code") or ""),
            str(row.get("request_id") or ""),
            *([f"{row.get('upstream')}, {row.get('mailbox')}"] if len(ways) > 1 else []),
            str(row.get("text") or ""),
        )
        for row in rows
    ]
    through = ["THROUGH"] if len(ways) > 1 else []
    heads = ("AT", "TRY", "OUTCOME", "HTTP", "CODE", "REQUEST-ID", *through, "TEXT")
    print(terminal.table(cells, heads))
    return command_line.OK


def _untried(ways: Sequence[Frame]) -> str:
    """Return why there is no attempt, as far as a word says it."""
    held = dict.fromkeys(str(one.get("held_by")) for one in ways if one.get("held_by"))
    return f"no attempt yet: held by {', '.join(held)}" if held else "no attempt yet"


def export(options: argparse.Namespace) -> int:
    """Write one message's content."""
    parts = ask_each(options, {"command": "queue.export", "id": options.id}, timeout_s=_WITHIN_S)
    octets = (base64.b64decode(str(part.get("octets") or "")) for part in parts)
    if sys.stdout.isatty():
        # SECURITY: a message on the screen must not speak to the terminal.
        lines = b"".join(octets).decode("utf-8", "replace").split("\n")
        print("\n".join(terminal.safe(line.rstrip("\r")) for line in lines))
        return command_line.OK
    for part in octets:
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()
    return command_line.OK


def _story(options: argparse.Namespace) -> Frame:
    (story,) = look(options, {"command": "queue.show", "id": options.id})
    return story


def look(options: argparse.Namespace, request: Frame) -> Iterator[Frame]:
    """Ask the daemon; when nobody listens there, read the spool ourselves."""
    if not _is_down(daemon.control_path(options.config)):
        return ask_each(options, request, timeout_s=_WITHIN_S)
    # The daemon is down: start-up time does not matter now, and only then is this needed.
    from relayd.cli import offline  # noqa: PLC0415

    return offline.answers(options.config, request)


def _is_down(path: str) -> bool:
    """Tell whether nobody listens; one who does but is silent is not down: its spool lives."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_S)
        try:
            probe.connect(os.fsencode(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            return False
    return False


# ---- changing


def change(options: argparse.Namespace) -> int:
    """Retry, hold, release, move, delete or resend."""
    request: dict[str, Json] = {"command": f"queue.{options.action}"}
    if options.action == "move":
        request["to_upstream"] = options.to_upstream
    has_filter = any(getattr(options, name) for name in _FILTERS)
    if bool(options.ids) == has_filter:
        return _usage(
            f"queue {options.action}: name messages by ID, or by a filter"
            f" ({'not both' if has_filter else 'such as --device or --state'}); see --help"
        )
    if options.ids:
        request["ids"] = list(options.ids)
    else:
        request |= filter_of(options)
        if options.state is None and options.action in _MEANT:
            request["state"] = _MEANT[options.action]
        if not _is_sure(options, request):
            return command_line.FAILED
    answer = _last(options, {**request, "dry_run": True} if options.dry_run else request)
    return _told(options, answer)


_MEANT: Final = {"release": "held", "resend": "sent"}
"""States that a filter means without --state, where "waiting" makes no sense."""


def _is_sure(options: argparse.Namespace, request: Frame) -> bool:
    """Print how many a filter means, and ask."""
    if options.yes or options.dry_run:
        return True
    answer = _last(options, {**request, "dry_run": True})
    count = _count(answer)
    if not count:
        _tell_refused(options, answer)
        terminal.complain(f"no message matches that {_ABLE[options.action]}; nothing done")
        return False
    if terminal.ask_yes(f"{options.action} {_messages(count)}?"):
        return True
    terminal.complain(f"{_messages(count)} would be meant; nothing done (--yes does not ask)")
    return False


_DONE: Final = {
    "retry": "tried again now", "hold": "held", "release": "released", "delete": "deleted",
    "move": "moved", "resend": "sent again",
}  # fmt: skip


_ABLE: Final = {
    "retry": "waits for a try or failed with its content kept", "hold": "could be held",
    "release": "is held", "delete": "has anything left to delete", "move": "could be moved",
    "resend": "was sent and whose content is kept",
}  # fmt: skip

_REFUSED: Final = {
    "move": "not moved", "resend": "not sent again", "retry": "not tried",
    "release": "not released",
}  # fmt: skip


def _told(options: argparse.Namespace, answer: Frame) -> int:
    count = _count(answer)
    missing = [str(one) for one in _list(answer.get("missing"))]
    untouched = [str(one) for one in _list(answer.get("untouched"))]
    refused = _rows(answer.get("refused"))
    probes = [str(one) for one in _list(answer.get("probes"))]
    if options.json:
        told: dict[str, Json] = {"count": count, "missing": missing, "untouched": untouched}
        terminal.print_json(told | {"refused": refused, "probes": probes})
    else:
        verb = f"would {options.action}" if options.dry_run else _DONE[options.action]
        print(f"{verb}: {_messages(count)}")
        for cause in probes:
            print(
                f"{terminal.safe(cause)}: the oldest it holds is tried now; if it is sent, all go"
            )
        for one in missing:
            terminal.complain(f"no such message: {one}")
        for one in untouched:
            terminal.complain(
                f"{one}: nothing there to {options.action}; relayd queue show {one} says why"
            )
        _tell_refused(options, answer)
    is_whole = count and not missing and not untouched and not refused
    return command_line.OK if is_whole else command_line.FAILED


def _tell_refused(options: argparse.Namespace, answer: Frame) -> None:
    for row in _rows(answer.get("refused")):
        not_done = _REFUSED.get(options.action, "nothing done")
        terminal.complain(f"{row.get('id')}: {not_done}: {row.get('why')}")


def _last(options: argparse.Namespace, request: Frame) -> Frame:
    """Return the last reply: those before it only say that work goes on."""
    answer: Frame = {}
    for answer in ask_each(options, request, timeout_s=_WITHIN_S):  # noqa: B007  the last is meant
        pass
    return answer


def _count(answer: Frame) -> int:
    count = answer.get("count")
    return count if isinstance(count, int) else 0


def _messages(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"


def _usage(text: str) -> int:
    terminal.complain(text)
    return _WRONG_USAGE


def _rows(value: Json) -> list[Frame]:
    return [row for row in _list(value) if isinstance(row, Mapping)]


def _list(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list) else []


def _mapping(value: Json) -> Frame:
    return value if isinstance(value, Mapping) else {}


_ACTS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "list": list_,
    "show": show,
    "trace": trace,
    "export": export,
}
