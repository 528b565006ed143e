"""`relayd status --nagios`: one line and an exit code, the worst news first.

    RELAYD WARNING - 3 messages held (ErrorSendAsDenied) | queue=12;200;2000;0 oldest=40s;900;3600;0

    0 OK        all is well
    1 WARNING   somebody should look in working hours
    2 CRITICAL  mail does not leave, or is about to be lost sight of; nobody answers
    3 UNKNOWN   this user may not ask, or the answer makes no sense

Source: Monitoring Plugins Development Guidelines, "Plugin Output for Nagios", "Threshold and
Ranges".
"""

from __future__ import annotations

import argparse
import enum
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final, NamedTuple

from relayd.cli import daemon, terminal
from relayd.cli.answers import mapping_of, moment_of, number_of, rows_of, text_of
from relayd.clock import SYSTEM
from relayd.config import units
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.frames import Frame

_ANSWER_WITHIN_S: Final = 8.0
"""Less than the ten seconds after which most monitoring systems kill a check."""

_CERTIFICATE_DAYS: Final = (14, 3)
_DAY_S: Final = 86_400
_WAITING: Final = ("ready", "deferred", "leased", "held")


class Level(enum.IntEnum):
    """The exit code, and how bad it is."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


class News(NamedTuple):
    """One thing that is not well; words: no full stop."""

    level: Level
    words: str


class Limits(NamedTuple):
    """Thresholds: from there on it is a warning, from there on critical."""

    age_s: tuple[float, float]
    queue: tuple[int, int]
    down_s: float
    days: tuple[int, int]


def add_thresholds(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that set thresholds."""
    group = parser.add_argument_group("thresholds of --nagios")
    for name, kind, default, text in (
        ("--warn-age", _seconds, "15m", "oldest waiting message, warning (15m)"),
        ("--crit-age", _seconds, "1h", "oldest waiting message, critical (1h)"),
        ("--warn-queue", _count, "200", "waiting messages, warning (200)"),
        ("--crit-queue", _count, "2000", "waiting messages, critical (2000)"),
        ("--crit-down", _seconds, "5m", "an upstream down for so long is critical (5m)"),
        ("--warn-days", _count, "30", "days a credential is still good, warning (30)"),
        ("--crit-days", _count, "7", "days a credential is still good, critical (7)"),
    ):
        group.add_argument(
            name, metavar="N" if kind is _count else "TIME", type=kind, default=default, help=text
        )


def _seconds(text: str) -> float:
    try:
        return units.seconds(text)
    except units.BadUnit as wrong:
        raise argparse.ArgumentTypeError(f"{text!r}: write 90s, 15m or 1h") from wrong


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Print the line; returns the exit code. Never anything else on standard output."""
    limits = Limits(
        (options.warn_age, options.crit_age),
        (options.warn_queue, options.crit_queue),
        options.crit_down,
        (options.warn_days, options.crit_days),
    )
    runtime_dir, _ = daemon.runtime_dir_of(options.config)
    path = f"{runtime_dir}/{client.CONTROL_SOCKET}"
    try:
        reply = client.ask(path, {"command": "status"}, timeout_s=_ANSWER_WITHIN_S)
    except NotRunning as error:
        why = daemon.unread(options.config)
        if error.permitted and why and not daemon.is_certain(options.config):
            hint = "put this user into group relayd-admin, or let it read the configuration"
            return _told(Level.UNKNOWN, f"{why}, nobody answers at {path}: {hint}", "")
        level = Level.CRITICAL if error.permitted else Level.UNKNOWN
        what = "relayd does not answer" if error.permitted else "may not ask relayd"
        hint = "" if error.permitted else ": put this user into group relayd-admin"
        return _told(level, f"{what} ({error}){hint}", "")
    answer = reply.get("result")
    if reply.get("ok") is not True or not isinstance(answer, Mapping):
        return _told(Level.UNKNOWN, f"no status: {text_of(reply.get('error'))}", "")
    return _told(*verdict(answer, limits, SYSTEM.utcnow()))


def verdict(answer: Frame, limits: Limits, now: datetime) -> tuple[Level, str, str]:
    """Return how bad it is, why, and the performance data."""
    news = sorted(_news(answer, limits, now), key=lambda one: one.level, reverse=True)
    level = news[0].level if news else Level.OK
    words = "; ".join(one.words for one in news) or _all_well(answer)
    return level, words, " ".join(_figures(answer, limits, now))


def _told(level: Level, words: str, figures: str) -> int:
    # The bar ends the text: what a peer chose must not begin the figures.
    line = f"RELAYD {level.name} - {words.replace('|', '/')}"
    print(terminal.safe(f"{line} | {figures}" if figures else line))
    return level.value


def _all_well(answer: Frame) -> str:
    up = terminal.duration(number_of(answer.get("up_s")))
    return f"{_waiting(answer)} waiting, up {up}"


def _news(answer: Frame, limits: Limits, now: datetime) -> Iterator[News]:
    yield from _of_processes(answer)
    yield from _of_spool_and_clock(answer)
    yield from _of_upstreams(answer, limits, now)
    yield from _of_queue(answer, limits)
    for row in rows_of(answer.get("certificates")):
        name = f"certificate of listener {row.get('listener')}"
        yield from _of_end(name, _days(row.get("expires_at"), now), _CERTIFICATE_DAYS)


def _of_processes(answer: Frame) -> Iterator[News]:
    state = text_of(answer.get("state"))
    unavailable = text_of(answer.get("unavailable"))
    ready = _ready_workers(answer)
    wanted = number_of(answer.get("workers"))
    if state == "stopping":
        yield News(Level.CRITICAL, "relayd is stopping")
    elif unavailable:
        yield News(Level.CRITICAL, f"no worker serves, no mail is taken: {unavailable}")
    elif state == "starting":
        yield News(Level.WARNING, "relayd is starting")
    if state != "starting" and not unavailable and ready < wanted:
        level = Level.WARNING if ready else Level.CRITICAL
        yield News(level, f"{ready} of {wanted:g} workers serve")
    if not rows_of(answer.get("listeners")):
        yield News(Level.CRITICAL, "no listener, nobody can send")
    reload = mapping_of(answer.get("reload"))
    if reload.get("result") == "refused":
        yield News(Level.WARNING, "the last reload was refused: the configuration has problems")


def _of_spool_and_clock(answer: Frame) -> Iterator[News]:
    if mapping_of(answer.get("clock")).get("right") is False:
        yield News(Level.CRITICAL, "the clock is wrong, nothing is sent")
    spool = mapping_of(answer.get("spool"))
    if spool.get("ok") is False:
        yield News(Level.CRITICAL, f"the spool cannot take mail: {text_of(spool.get('text'))}")
    if answer.get("left_behind"):
        yield News(Level.WARNING, text_of(answer["left_behind"]).partition(". ")[0])


def _of_upstreams(answer: Frame, limits: Limits, now: datetime) -> Iterator[News]:
    if not answer.get("upstreams_configured"):
        yield News(Level.CRITICAL, "not configured yet, mail is answered 451: relayd setup")
    for name, value in sorted(mapping_of(answer.get("upstreams")).items()):
        row = mapping_of(value)
        if row.get("state") in ("down", "probing"):
            down_s = number_of(row.get("down_s"))
            level = Level.CRITICAL if down_s >= limits.down_s else Level.WARNING
            cause = f" ({row['cause']})" if row.get("cause") else ""
            yield News(level, f"upstream {name} down for {terminal.duration(down_s)}{cause}")
        days = _days(row.get("credential_expires"), now)
        yield from _of_end(f"credential of {name}", days, limits.days)


def _of_end(what: str, days: int | None, limits: tuple[int, int]) -> Iterator[News]:
    if days is None or days > limits[0]:
        return
    level = Level.CRITICAL if days <= limits[1] else Level.WARNING
    yield News(level, f"{what} ends in {days} days" if days >= 0 else f"{what} has ended")


def _of_queue(answer: Frame, limits: Limits) -> Iterator[News]:
    if not isinstance(answer.get("queue"), Mapping):
        if not answer.get("unavailable"):  # or it is known why
            yield News(Level.WARNING, "the queue is not known yet")
        return
    upstreams = {name: mapping_of(row) for name, row in mapping_of(answer.get("upstreams")).items()}
    held = number_of(mapping_of(answer.get("queue")).get("held"))
    for name, cause in sorted(mapping_of(answer.get("blocked")).items()):
        # Held, and nothing that comes goes another way.
        count = number_of(mapping_of(upstreams.pop(name, None)).get("held_messages"))
        if count:
            words = f"nothing leaves through upstream {name}, its mailbox is refused: {cause}"
            yield News(Level.CRITICAL, f"{words}, {_messages(count)} held")
            held -= count
    if held > 0:
        causes = {text_of(one) for row in upstreams.values() for one in mapping_of(row.get("held"))}
        why = f" ({', '.join(sorted(causes))})" if causes else ""
        yield News(Level.WARNING, f"{_messages(held)} held{why}")
    oldest_s = number_of(answer.get("oldest_s"))
    words = f"oldest message waits for {terminal.duration(oldest_s)}"
    yield from _of_size(words, oldest_s, limits.age_s)
    waiting = _waiting(answer)
    yield from _of_size(f"{waiting} messages wait", waiting, limits.queue)


def _messages(count: float) -> str:
    return f"{count:g} message{'' if count == 1 else 's'}"


def _of_size(words: str, value: float, limits: tuple[float, float]) -> Iterator[News]:
    if value >= limits[1]:
        yield News(Level.CRITICAL, words)
    elif value >= limits[0]:
        yield News(Level.WARNING, words)


def _figures(answer: Frame, limits: Limits, now: datetime) -> Iterator[str]:
    """Yield label=value[unit];warn;crit;min of everything worth a curve."""
    yield f"queue={_waiting(answer)};{limits.queue[0]};{limits.queue[1]};0"
    yield f"held={number_of(mapping_of(answer.get('queue')).get('held')):g};1;;0"
    age_s = limits.age_s
    yield f"oldest={number_of(answer.get('oldest_s')):.0f}s;{age_s[0]:.0f};{age_s[1]:.0f};0"
    yield f"connections={number_of(answer.get('connections')):g};;;0"
    yield f"workers={_ready_workers(answer)};;;0"
    for name, row in sorted(mapping_of(answer.get("upstreams")).items()):
        days = _days(mapping_of(row).get("credential_expires"), now)
        if days is not None:
            label = name.replace("'", "").replace("=", "")
            # "30:" alerts below 30; 31 is the first day that is well.
            yield f"'credential_days_{label}'={days};{limits.days[0] + 1}:;{limits.days[1] + 1}:"


def _ready_workers(answer: Frame) -> int:
    rows = rows_of(answer.get("processes"))
    return sum(row.get("kind") == "worker" and row.get("state") == "ready" for row in rows)


def _waiting(answer: Frame) -> int:
    queue = mapping_of(answer.get("queue"))
    return round(sum(number_of(queue.get(state)) for state in _WAITING))


def _days(value: object, now: datetime) -> int | None:
    """Return the whole days left until a moment, negative after it; None where it is not known."""
    end = moment_of(value if isinstance(value, str) else None)
    return None if end is None else int((end - now).total_seconds() // _DAY_S)
