"""The slot table on the socket: which frame asks it what, and whom its words go to.

    slot.acquire  {upstream, mailbox, capacity, per_minute, priority, grant, timeout_s}
                  -> {granted, sends}, when there is one or the time is over
    slot.release  {grant, used}, no answer; also takes back a wish or an answer that crossed it
    slot.claim    {upstream, mailbox, capacity, per_minute, grant, sends, recent}, no answer
    slot.claimed  {}, no answer: "that was all I hold"
    recall        pushed: {upstream, mailbox, hard}
    slot.rest     {upstream, mailbox, rest_s}, no answer: Microsoft said 429 to this worker
    rest          pushed: the same, to every other worker, and to those who come later
    slot.back     {upstream}, no answer: it works again, as this worker found
    back          pushed: the same, to every other worker

A daemon just started opens the table once all expected workers have said what they hold, or
after a grace: they connect again within half a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from relayd.cache import frames
from relayd.cache.server import Connection, Handler, Request
from relayd.clock import SYSTEM, Clock
from relayd.observe import metrics
from relayd.quota.table import (
    Ask,
    Claim,
    Granted,
    MailboxUse,
    Recalled,
    Said,
    SlotTable,
    TimedOut,
)
from relayd.spool.model import MailboxRef

log = structlog.get_logger()

GRACE_S: Final = 2.0
_MOST_SHOWN: Final = 500
_LONGEST_REST_S: Final = 86_400.0


class SlotDesk:
    """Belongs to the server's thread, as the table does.

    expected: how many workers will claim; 0: unknown, wait for the grace.
    """

    def __init__(
        self, *, expected: int = 0, grace_s: float = GRACE_S, clock: Clock = SYSTEM
    ) -> None:
        self._clock = clock
        self._table = SlotTable()
        self._expected = expected
        self._open_at = clock.monotonic() + grace_s
        self._claimed: set[int] = set()
        self._connections: dict[int, Connection] = {}
        self._requests: dict[tuple[int, int], Request] = {}
        self._resting: dict[MailboxRef, float] = {}  # until, by the clock

    def handlers(self) -> Mapping[str, Handler]:
        """Return what the server is to call."""
        return {
            "slot.acquire": self._acquire,
            "slot.release": self._release,
            "slot.claim": self._claim,
            "slot.claimed": self._all_claimed,
            "slot.rest": self._rest,
            "slot.back": self._back,
        }

    def left(self, connection: Connection) -> None:
        """Hear that a connection has ended."""
        serial = connection.serial
        self._connections.pop(serial, None)
        self._claimed.discard(serial)
        for key in [key for key in self._requests if key[0] == serial]:
            del self._requests[key]
        self._say(self._table.left(serial, self._clock.monotonic()))

    def tick(self) -> None:
        """Do what time has made due; see `next_due_s`."""
        now = self._clock.monotonic()
        if not self._table.is_open and now >= self._open_at:
            self._open(now)
        self._say(self._table.tick(now))

    def next_due_s(self) -> float:
        """Return in how many seconds `tick` has something to do; infinity if never."""
        due = self._table.next_due() if self._table.is_open else self._open_at
        return max(0.0, due - self._clock.monotonic())

    def status(self) -> list[frames.Json]:
        """Return the mailboxes in use for `status`, at most 500."""
        use = self._table.use(self._clock.monotonic())
        return [_shown(one) for one in use[:_MOST_SHOWN]]

    def gauge(self) -> None:
        """Set how much each mailbox uses of what it may send.

        messages_per_minute: of the last minute; concurrency: sends under way.
        """
        used: dict[tuple[str, ...], float] = {}
        for one in self._table.use(self._clock.monotonic()):
            name = one.mailbox.mailbox
            limits = (
                ("messages_per_minute", one.sent, one.per_minute),
                ("concurrency", one.held, one.capacity),
            )
            for limit, now, allowed in limits:
                if allowed > 0:
                    used[name, limit] = max(used.get((name, limit), 0.0), now / allowed)
        metrics.gauges("relayd_quota_used_ratio", used)

    def _acquire(self, request: Request) -> None:
        payload, now = request.payload, self._clock.monotonic()
        serial = self._know(request)
        ask = Ask(
            connection=serial,
            grant=frames.integer(payload, "grant"),
            mailbox=_mailbox(payload),
            capacity=max(1, frames.integer(payload, "capacity")),
            per_minute=max(0, frames.integer(payload, "per_minute")),
            priority=frames.integer(payload, "priority"),
            deadline=now + frames.number(payload, "timeout_s"),
        )
        self._requests[serial, ask.grant] = request
        self._say(self._table.ask(ask, now))

    def _release(self, request: Request) -> None:
        grant = frames.integer(request.payload, "grant")
        used = frames.integer(request.payload, "used")
        self._requests.pop((request.connection.serial, grant), None)
        self._say(
            self._table.release(request.connection.serial, grant, used, self._clock.monotonic())
        )

    def _claim(self, request: Request) -> None:
        payload = request.payload
        ages = [age for age in frames.items(payload, "recent") if isinstance(age, int | float)]
        self._table.claim(
            Claim(
                connection=self._know(request),
                grant=frames.integer(payload, "grant"),
                mailbox=_mailbox(payload),
                capacity=max(1, frames.integer(payload, "capacity")),
                per_minute=max(0, frames.integer(payload, "per_minute")),
                sends=max(0, frames.integer(payload, "sends")),
                recent=ages,
            ),
            self._clock.monotonic(),
        )
        request.answer({})

    def _all_claimed(self, request: Request) -> None:
        self._claimed.add(self._know(request))
        if not self._table.is_open and len(self._claimed) >= self._expected > 0:
            self._open(self._clock.monotonic())
        now = self._clock.monotonic()
        self._resting = {ref: until for ref, until in self._resting.items() if until > now}
        for ref, until in self._resting.items():
            request.connection.push("rest", _rest(ref, until - now))

    def _rest(self, request: Request) -> None:
        """Have every worker leave a mailbox alone that one of them was told to leave alone."""
        payload, now = request.payload, self._clock.monotonic()
        ref = _mailbox(payload)
        rest_s = min(max(frames.number(payload, "rest_s"), 0.0), _LONGEST_REST_S)
        self._resting[ref] = max(self._resting.get(ref, 0.0), now + rest_s)
        self._tell_others(request, "rest", _rest(ref, rest_s))

    def _back(self, request: Request) -> None:
        """Have every worker know what one of them found out: an upstream works again."""
        upstream = frames.text(request.payload, "upstream")
        self._tell_others(request, "back", {"upstream": upstream})

    def _tell_others(self, request: Request, topic: str, payload: frames.Payload) -> None:
        mine = self._know(request)
        for serial, connection in self._connections.items():
            if serial != mine:
                connection.push(topic, payload)

    def _know(self, request: Request) -> int:
        self._connections[request.connection.serial] = request.connection
        return request.connection.serial

    def _open(self, now: float) -> None:
        log.debug("slots.open", workers=len(self._claimed), expected=self._expected)
        self._say(self._table.open(now))

    def _say(self, said: Sequence[Said]) -> None:
        for one in said:
            match one:
                case Granted(connection, grant, sends):
                    self._answer(connection, grant, {"granted": True, "sends": sends})
                case TimedOut(connection, grant):
                    self._answer(connection, grant, {"granted": False, "sends": 0})
                case Recalled(connection, mailbox, hard):
                    known = self._connections.get(connection)
                    if known is not None:
                        known.push(
                            "recall",
                            {
                                "upstream": mailbox.upstream,
                                "mailbox": mailbox.mailbox,
                                "hard": hard,
                            },
                        )

    def _answer(self, connection: int, grant: int, payload: frames.Payload) -> None:
        request = self._requests.pop((connection, grant), None)
        if request is not None:
            request.answer(payload)


def _mailbox(payload: frames.Payload) -> MailboxRef:
    return MailboxRef(frames.text(payload, "upstream"), frames.text(payload, "mailbox"))


def _rest(ref: MailboxRef, rest_s: float) -> frames.Payload:
    return {"upstream": ref.upstream, "mailbox": ref.mailbox, "rest_s": rest_s}


def _shown(use: MailboxUse) -> frames.Json:
    return {
        "upstream": use.mailbox.upstream,
        "mailbox": use.mailbox.mailbox,
        "capacity": use.capacity,
        "per_minute": use.per_minute,
        "held": use.held,
        "waiting": use.waiting,
        "sent_last_minute": use.sent,
    }
