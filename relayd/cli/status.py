"""`relayd status`: what runs, what waits, what went wrong and what to do, on one screen.

    --watch    the same again every 2 s, until Ctrl-C; it waits for a relay that restarts
    --nagios   one line for Nagios, Icinga, Checkmk and the like (cli.nagios)

Everything shown was told by the running relay; nothing of the configuration is read here but
where it runs, so members of relayd-admin see it all.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from relayd.cli import main as command_line
from relayd.cli import nagios, terminal
from relayd.cli.answers import list_of, mapping_of, moment_of, number_of, rows_of, text_of
from relayd.cli.daemon import ask, unit_of
from relayd.clock import SYSTEM
from relayd.master.frames import Frame, Json

_WATCH_EVERY_S: Final = 2.0
_SILENT_S: Final = 10.0
_MOST_SHOWN: Final = 6
_CREDENTIAL_DAYS: Final = 30
_CERTIFICATE_DAYS: Final = 14
_DAY_S: Final = 86_400
_NEXT_STEP: Final = "not configured yet: mail is answered 451 4.3.5. Next step: relayd setup"

_EPILOG: Final = """\
examples:
  relayd status
  relayd status --watch
  relayd status --nagios --warn-age 30m
  relayd --json status | jq .queue

exit: 0 running, 69 not running;
      with --nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN"""


def add_status(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `status`."""
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="show it again every 2 s, until Ctrl-C")
    how.add_argument(
        "--nagios", action="store_true", help="one line and an exit code for a monitoring system"
    )
    nagios.add_thresholds(parser)
    parser.epilog = _EPILOG
    parser.set_defaults(act=status)


def status(options: argparse.Namespace) -> int:
    """Show what runs, what waits and what went wrong."""
    if options.nagios:
        return nagios.run(options)
    if options.watch:
        return _watch(options)
    _show(options, ask(options, {"command": "status"}))
    return command_line.OK


def _show(options: argparse.Namespace, answer: Frame) -> None:
    if options.json:
        terminal.print_json(answer)
    else:
        print("\n".join(status_lines(answer)))


def _watch(options: argparse.Namespace) -> int:
    """Show it until Ctrl-C; 69 only when nobody answers at the beginning."""
    answer: Frame | None = ask(options, {"command": "status"})
    try:
        while True:
            if answer is None or options.json or not sys.stdout.isatty():
                if answer is not None:
                    _show(options, answer)
            else:
                _redraw(status_lines(answer))
            sys.stdout.flush()
            time.sleep(_WATCH_EVERY_S)
            answer = _asked_again(options)
    except KeyboardInterrupt:
        print()
        return command_line.OK


def _asked_again(options: argparse.Namespace) -> Frame | None:
    """Return the status; None while the relay is away, which was said."""
    try:
        return ask(options, {"command": "status"})
    except SystemExit:
        return None


def _redraw(lines: Sequence[str]) -> None:
    """Draw over what is there, without a blank screen between, and no more than it has lines."""
    height = shutil.get_terminal_size().lines
    lines = "\n".join(lines).split("\n")
    if len(lines) >= height:
        lines = [*lines[: height - 2], f"... {len(lines) - height + 2} lines more"]
    drawn = "".join(f"{line}\033[K\n" for line in lines)
    # Without wrapping: a long line would push the head off the screen.
    print(f"\033[?7l\033[H{drawn}\033[J\033[?7h", end="")


# ---- the screen


def status_lines(answer: Frame, *, now: datetime | None = None) -> list[str]:
    """Return the status for people. now: aware; None: this moment."""
    now = now or SYSTEM.utcnow()
    lines = [_headline(answer), *_alarms(answer), ""]
    lines += _process_lines(answer)
    lines += ["", *_listener_lines(answer, now)]
    lines += ["", *_queue_lines(answer)]
    lines += ["", *_upstream_lines(answer, now)]
    left_behind = [answer.get("left_behind")] if answer.get("left_behind") else []
    warnings = [*left_behind, *list_of(answer.get("warnings"))]
    if warnings:
        lines += ["", "warnings"]
        lines += [f"  {_trouble(one)}" for one in warnings[:_MOST_SHOWN]]
        if len(warnings) > _MOST_SHOWN:
            lines.append(f"  and {len(warnings) - _MOST_SHOWN} more: relayd check")
    errors = list_of(answer.get("errors"))[-_MOST_SHOWN:]
    if errors:
        lines += ["", "last errors"]
        lines += [f"  {line}" for one in errors for line in _trouble_lines(one)]
    return lines


def _headline(answer: Frame) -> str:
    state = text_of(answer.get("state")) or "?"
    colour = "green" if state == "running" else "yellow"
    up = terminal.duration(number_of(answer.get("up_s")))
    text = f"relayd {answer.get('version')}, {terminal.paint(state, colour)}, up {up}, "
    text += f"pid {answer.get('pid')}, {answer.get('config')}"
    last = mapping_of(answer.get("reload"))
    if last.get("result") == "refused":
        text += "\n" + terminal.paint("the last reload was refused:", "red")
        text += "".join(f"\n  {terminal.safe(str(p))}" for p in list_of(last.get("problems")))
    return text


def _alarms(answer: Frame) -> list[str]:
    """Return what stops everything: it stands above all else."""
    clock, spool = mapping_of(answer.get("clock")), mapping_of(answer.get("spool"))
    lines: list[str] = []
    if unavailable := text_of(answer.get("unavailable")):
        lines += [
            terminal.paint("NO WORKER SERVES, NO MAIL IS TAKEN", "red"),
            *_why_and_do({"why": unavailable, "do": _until_one_serves(answer)}),
        ]
    if clock.get("right") is False:
        lines += [terminal.paint("THE CLOCK IS WRONG", "red"), *_why_and_do(clock)]
    if spool.get("ok") is False:
        where = f" ({spool['path']})" if spool.get("path") else ""
        lines += [
            terminal.paint("THE SPOOL CANNOT TAKE MAIL", "red"),
            *_why_and_do({"why": f"{text_of(spool.get('text'))}{where}", "do": spool.get("do")}),
        ]
    return lines


def _until_one_serves(answer: Frame) -> str:
    """Return what to do while every start of a worker fails."""
    unit = unit_of(text_of(answer.get("config"))).removesuffix(".service")
    log = f"journalctl -u {unit} -n 50" if unit else "its log"
    return (
        f"Mend that; more is in the log: {log}. A worker is started again by itself, at least"
        " every 30 s. Until one serves, devices are answered 421 and keep their mail."
    )


def _why_and_do(row: Frame) -> list[str]:
    words = ((key, text_of(row.get(key))) for key in ("why", "do"))
    return [f"  {key:4}{terminal.safe(text)}" for key, text in words if text]


def _process_lines(answer: Frame) -> list[str]:
    """Return a line for all workers that are well, and one for each other process."""
    rows = rows_of(answer.get("processes"))
    well = [row for row in rows if row.get("kind") == "worker" and _is_well(row)]
    cells = [_process_cells(row) for row in rows if row not in well]
    if well:
        cells.append(_workers_cells(well))
    heads = ("PROCESS", "PID", "STATE", "UP", "CONNECTIONS")
    return terminal.table(cells, heads).splitlines()


def _is_well(row: Frame) -> bool:
    return row.get("state") == "ready" and number_of(row.get("silent_s")) <= _SILENT_S


def _workers_cells(rows: Sequence[Frame]) -> Sequence[str]:
    numbers = ", ".join(str(row.get("number")) for row in rows)
    name = f"worker{'s' if len(rows) > 1 else ''} {numbers}"
    up_s = min(number_of(row.get("up_s")) for row in rows)
    connections = sum(number_of(row.get("connections")) for row in rows)
    pids = " ".join(str(row.get("pid")) for row in rows)
    return (name, pids, "ready", terminal.duration(up_s), str(round(connections)))


def _process_cells(row: Frame) -> Sequence[str]:
    name = text_of(row.get("kind"))
    if name == "worker":
        name += f" {row.get('number')}"
    state = text_of(row.get("state"))
    silent_s = number_of(row.get("silent_s"))
    if silent_s > _SILENT_S:
        state += f", silent for {terminal.duration(silent_s)}"
    up = terminal.duration(number_of(row.get("up_s")))
    return (name, str(row.get("pid")), state, up, text_of(row.get("connections")))


def _listener_lines(answer: Frame, now: datetime) -> list[str]:
    rows = rows_of(answer.get("listeners"))
    if not rows:
        return [terminal.paint("no listener: nobody can send", "red")]
    ends = {row.get("listener"): row for row in rows_of(answer.get("certificates"))}
    cells = []
    for row in rows:
        expires_at = mapping_of(ends.get(row.get("name"))).get("expires_at")
        end = _end_words(expires_at, now, _CERTIFICATE_DAYS)
        cells.append(
            (text_of(row.get("name")), text_of(row.get("address")), text_of(row.get("origin")), end)
        )
    return terminal.table(cells, ("LISTENER", "ADDRESS", "OPENED BY", "CERTIFICATE")).splitlines()


def _end_words(value: Json, now: datetime, soon_days: int) -> str:
    """Return when something ends, in capitals when that is soon; "" where it is not known."""
    end = moment_of(value)
    if end is None:
        return ""
    if end <= now:
        return f"ENDED {end:%Y-%m-%d}"
    days = int((end - now).total_seconds() // _DAY_S)
    verb = "ENDS" if days <= soon_days else "ends"
    return f"{verb} {end:%Y-%m-%d}, {days} days left"


def _queue_lines(answer: Frame) -> list[str]:
    queue = answer.get("queue")
    if not isinstance(queue, Mapping):
        return ["queue      not known yet"]
    counts = ", ".join(f"{count} {state}" for state, count in queue.items() if count)
    lines = [f"queue      {counts or 'empty'}"]
    oldest_s = number_of(answer.get("oldest_s"))
    if oldest_s > 0:
        lines.append(f"oldest     {terminal.duration(oldest_s)}")
    quota = [_quota_words(row) for row in rows_of(answer.get("quota"))]
    used = [words for words in quota if words][:_MOST_SHOWN]
    return lines + [f"{'quota' if not n else '':10} {words}" for n, words in enumerate(used)]


def _quota_words(row: Frame) -> str:
    """Return what a mailbox used of its quota; "" for one that rests."""
    sent, per_minute = number_of(row.get("sent_last_minute")), number_of(row.get("per_minute"))
    waiting = number_of(row.get("waiting"))
    if not sent and not waiting:
        return ""
    limit = f" of {per_minute:g}" if per_minute else ""
    words = f"{text_of(row.get('mailbox'))}: {sent:g}{limit} in the last minute"
    words += f", {waiting:g} wait for a slot" if waiting else ""
    return terminal.safe(words)


def _upstream_lines(answer: Frame, now: datetime) -> list[str]:
    upstreams = answer.get("upstreams")
    if not answer.get("upstreams_configured"):
        return [terminal.paint(_NEXT_STEP, "yellow")]
    if not isinstance(upstreams, Mapping) or not upstreams:
        return ["upstreams  not known yet"]
    blocked = mapping_of(answer.get("blocked"))
    rows = [
        _upstream_cells(name, _as_blocked(row, blocked.get(name)), now)
        for name, row in sorted(upstreams.items())
    ]
    heads = ("UPSTREAM", "STATE", "TOKEN", "CREDENTIAL", "HELD")
    lines = terminal.table(rows, heads).splitlines()
    for _, row in sorted(upstreams.items()):
        lines += _why_and_do(mapping_of(row))
    return lines


def _as_blocked(row: Json, cause: Json) -> Json:
    """Return an upstream's row; one that is up, with no mailbox that may send, says so."""
    if not cause or not isinstance(row, Mapping) or row.get("state") != "up":
        return row
    return {**row, "state": "NOTHING LEAVES", "cause": cause}


def _upstream_cells(name: str, row: Json, now: datetime) -> Sequence[str]:
    if not isinstance(row, Mapping):
        return (name, text_of(row))
    expires_s = row.get("token_expires_s")
    token = ""
    if isinstance(expires_s, int | float):
        left = terminal.duration(max(0.0, expires_s))
        token = f"good for {left}" if expires_s > 0 else "expired"
    state = text_of(row.get("state"))
    cause = row.get("cause") or row.get("reason")
    credential = _end_words(row.get("credential_expires"), now, _CREDENTIAL_DAYS)
    return (name, f"{state}: {cause}" if cause else state, token, credential, _held_words(row))


def _held_words(row: Frame) -> str:
    held = row.get("held")
    shown = ", ".join(map(text_of, held)) if isinstance(held, Mapping) else text_of(held)
    messages = number_of(row.get("held_messages"))
    if not messages:
        return shown
    counted = f"{messages:g} message{'' if messages == 1 else 's'}"
    return f"{counted}: {shown}" if shown else counted


def _trouble(one: Json) -> str:
    return terminal.safe(text_of(one))


def _trouble_lines(one: Json) -> list[str]:
    """Return an error with its cause, how often, and below it what to do."""
    if not isinstance(one, Mapping):
        return [_trouble(one)]
    words = [text_of(one.get("at")).partition(".")[0].replace("T", " "), text_of(one.get("event"))]
    if one.get("upstream"):
        words.append(f"{one['upstream']}:")
    words.append(text_of(one.get("text")))
    cause = text_of(one.get("cause"))
    if cause and cause not in words[-1]:
        words.append(f"({cause})")
    if number_of(one.get("times")) > 1:
        words.append(f"{number_of(one.get('times')):g} times")
    lines = [terminal.safe(f"{words[0]}  {' '.join(filter(None, words[1:]))}")]
    if one.get("do"):
        lines.append(terminal.safe(f"  do  {one['do']}"))
    return lines
