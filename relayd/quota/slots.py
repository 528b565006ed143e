"""A worker's slots: granted by the cache daemon, kept a moment for the next message.

    acquire       waits for a slot: one given up here, or one the daemon was asked for meanwhile
    try_acquire   takes a slot that lingers here; instant, no round trip: the busy case
    again         keeps it for the next message, if nobody else is to have it
    release       lets it linger (half a second) for whoever waits or comes, or gives it back
                  at once when it was recalled or its sends are used up
    rest, back    what this worker learned of Microsoft (429; it works again) all others hear

While the daemon is away what is held stays held; after two seconds (the master brings it
back sooner) worker number n may use one slot of `capacity` for itself if n <= capacity, so
that all workers together stay within it. When the daemon is back it is first told
what is in use here (`slot.claim`), before it grants anything to anybody. Should it be away just
while a reload overlaps two generations, each has a worker n: for as long as the old one's send
lasts a mailbox may see one more than `capacity` for each. Microsoft answers that with 429, which
rests the mailbox; knowing better would need the daemon that is away.

A question once asked stays asked: is its asker served from here meanwhile, what the daemon
grants lingers. Other workers lose nothing by it, a slot that lingers is recalled at once.

Frames: see `quota.desk`. Works patched by gevent or not; no lock is held over a talk,
but for the claims.
"""

from __future__ import annotations

import _thread  # its threads begin without a wait, so one may be begun under the lock
import collections
import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from relayd.cache import frames
from relayd.cache.client import Client, Tell
from relayd.cache.frames import Garbage, Refused
from relayd.clock import SYSTEM, Clock
from relayd.errors import CacheUnavailable
from relayd.quota.table import WINDOW_S
from relayd.spool.model import MailboxRef

log = structlog.get_logger()

LINGER_S: Final = 0.5
AWAY_GRACE_S: Final = 2.0
_ANSWER_SLACK_S: Final = 1.0
_LOOK_AGAIN_S: Final = 1.0
_LOST_PAUSE_S: Final = 0.05
_HIGH: Final = 0
_NORMAL: Final = 1


@dataclass(slots=True)
class _Slot:
    """sends: left on it; None: any number. used: made with it so far."""

    grant: int
    sends: int | None
    used: int = 0
    lingers_until: float = 0.0  # monotonic

    def take(self) -> None:
        """Count one send."""
        self.used += 1
        if self.sends is not None:
            self.sends -= 1

    def put_back(self) -> None:
        """Count it back: nothing was sent."""
        self.used -= 1
        if self.sends is not None:
            self.sends += 1


@dataclass(slots=True)
class _Mailbox:
    capacity: int = 1
    per_minute: int = 0
    busy: list[_Slot] = field(default_factory=list)
    idle: list[_Slot] = field(default_factory=list)
    recalled: int = 0
    waiting: int = 0  # greenlets that wait for a slot
    urgent: int = 0  # those of them that are of high priority
    asking: set[int] = field(default_factory=set)  # priorities the daemon is asked with now
    recent: collections.deque[float] = field(default_factory=collections.deque)


class SlotClient:
    """The slots of this worker; any greenlet or thread may call it.

    number: this worker's, from 1; says whose share it may use while the daemon is away.
    """

    def __init__(
        self,
        client: Client,
        *,
        number: int,
        linger_s: float = LINGER_S,
        away_grace_s: float = AWAY_GRACE_S,
        clock: Clock = SYSTEM,
    ) -> None:
        self._client = client
        self._number = number
        self._linger_s = linger_s
        self._away_grace_s = away_grace_s
        self._clock = clock
        self._lock = threading.Lock()  # guards all below
        self._changed = threading.Condition(self._lock)
        self._mailboxes: dict[MailboxRef, _Mailbox] = {}
        self._grants = itertools.count(1)
        self._is_online = False
        self._epoch = 0  # grows with each connection: a grant belongs to one
        self._away_since = clock.monotonic()
        self._is_sweeping = False
        self._on_rest: Callable[[MailboxRef, float], None] = lambda _ref, _rest_s: None
        self._on_back: Callable[[str], None] = lambda _upstream: None
        client.on_connect(self._connected)
        client.on_lost(self._lost)
        client.on_push("recall", self._recalled)
        client.on_push("rest", self._told_to_rest)
        client.on_push("back", self._told_back)

    def try_acquire(self, ref: MailboxRef) -> bool:
        """Take a slot that lingers here, at once; False if there is none."""
        with self._lock:
            mailbox = self._mailboxes.get(ref)
            # Urgent mail that waits comes before whoever only passes by.
            return mailbox is not None and not mailbox.urgent and self._take_idle(mailbox)

    def acquire(
        self,
        ref: MailboxRef,
        capacity: int,
        timeout_s: float,
        *,
        per_minute: int = 0,
        priority: int = _NORMAL,
    ) -> bool:
        """Wait for a slot, at most `timeout_s`; False when it did not come.

        capacity:   the upstream's `concurrency`; per_minute: its `messages_per_minute`.
        priority:   0 high (waits for no pacing), 1 normal, 2 low.
        """
        deadline = self._clock.monotonic() + timeout_s
        is_urgent = priority == _HIGH
        with self._lock:
            mailbox = self._mailboxes.setdefault(ref, _Mailbox())
            mailbox.capacity, mailbox.per_minute = capacity, per_minute
            mailbox.waiting += 1
            mailbox.urgent += is_urgent
            try:
                while not self._served(mailbox, priority):
                    left_s = deadline - self._clock.monotonic()
                    if left_s <= 0:
                        return False
                    if self._is_online:
                        self._have_asked(ref, mailbox, priority, left_s)
                        self._changed.wait(left_s)
                    else:
                        self._changed.wait(min(left_s, self._share_in_s() or _LOOK_AGAIN_S))
                return True
            finally:
                mailbox.waiting -= 1
                mailbox.urgent -= is_urgent
                if is_urgent and mailbox.waiting:
                    self._changed.notify_all()  # those who let it go first
                self._forget_if_empty(ref)

    def again(self, ref: MailboxRef, *, unused: bool = False) -> bool:
        """End a message and begin the next in the same slot; False: it is given up.

        unused: nothing was sent with it.
        """
        with self._lock:
            mailbox = self._mailboxes.get(ref)
            if mailbox is not None and mailbox.busy and not mailbox.urgent:
                slot = mailbox.busy[-1]
                if unused and not mailbox.recalled:
                    return True  # as if the next had been the first
                if slot.sends != 0 and (not self._is_online or not mailbox.recalled):
                    self._count(mailbox, slot)
                    return True
        self.release(ref, unused=unused)
        return False

    def release(self, ref: MailboxRef, *, unused: bool = False) -> None:
        """Give a slot of `ref` up after its message.

        unused: nothing was sent with it; it does not count for pacing.
        """
        with self._lock:
            mailbox = self._mailboxes.get(ref)
            if mailbox is None or not mailbox.busy:
                log.error("slots.bug", mailbox=ref.mailbox, text="released what was not held")
                return
            slot = mailbox.busy.pop()
            if unused:
                slot.put_back()
                if mailbox.recent:
                    mailbox.recent.pop()
            if self._may_linger(mailbox, slot):
                self._let_linger(mailbox, slot)
                return
            mailbox.recalled = max(0, mailbox.recalled - 1)
            if not self._is_online:
                self._changed.notify_all()
            self._forget_if_empty(ref)
        self._give_back(slot)

    def rest(self, ref: MailboxRef, rest_s: float) -> None:
        """Have the other workers leave a mailbox alone; while the daemon is away nobody hears."""
        with suppress(CacheUnavailable):
            self._client.tell(
                "slot.rest", {"upstream": ref.upstream, "mailbox": ref.mailbox, "rest_s": rest_s}
            )

    def on_rest(self, told: Callable[[MailboxRef, float], None]) -> None:
        """Have `told(mailbox, seconds)` run when another worker was told to leave one alone."""
        self._on_rest = told

    def back(self, upstream: str) -> None:
        """Have the other workers know that an upstream works again."""
        with suppress(CacheUnavailable):
            self._client.tell("slot.back", {"upstream": upstream})

    def on_back(self, told: Callable[[str], None]) -> None:
        """Have `told(upstream)` run when another worker found one working again."""
        self._on_back = told

    def held(self) -> dict[MailboxRef, int]:
        """Return how many slots are in use here, by mailbox."""
        with self._lock:
            return {ref: len(one.busy) for ref, one in self._mailboxes.items() if one.busy}

    def _served(self, mailbox: _Mailbox, priority: int) -> bool:
        if mailbox.urgent and priority != _HIGH:
            return False
        return self._take_idle(mailbox) or self._take_share(mailbox)

    def _take_idle(self, mailbox: _Mailbox) -> bool:
        if not mailbox.idle:
            return False
        self._use(mailbox, mailbox.idle.pop())
        return True

    def _take_share(self, mailbox: _Mailbox) -> bool:
        """Take this worker's own slot while the daemon is away."""
        if self._is_online or self._share_in_s() > 0:
            return False
        if mailbox.busy or self._number > mailbox.capacity:
            return False
        if mailbox.per_minute:
            start = self._clock.monotonic() - WINDOW_S
            sent = sum(1 for moment in mailbox.recent if moment > start)
            if sent >= max(1, mailbox.per_minute // mailbox.capacity):
                return False
        self._use(mailbox, _Slot(next(self._grants), 1 if mailbox.per_minute else None))
        return True

    def _share_in_s(self) -> float:
        """Return how long the daemon's return is still waited for, seconds."""
        return max(0.0, self._away_since + self._away_grace_s - self._clock.monotonic())

    def _use(self, mailbox: _Mailbox, slot: _Slot) -> None:
        mailbox.busy.append(slot)
        self._count(mailbox, slot)

    def _count(self, mailbox: _Mailbox, slot: _Slot) -> None:
        slot.take()
        if mailbox.per_minute:
            now = self._clock.monotonic()
            while mailbox.recent and mailbox.recent[0] <= now - WINDOW_S:
                mailbox.recent.popleft()
            mailbox.recent.append(now)

    def _may_linger(self, mailbox: _Mailbox, slot: _Slot) -> bool:
        if slot.sends == 0 or (self._linger_s <= 0 and not mailbox.waiting):
            return False
        # While the daemon is away nobody but us can use it.
        return not self._is_online or not mailbox.recalled

    def _let_linger(self, mailbox: _Mailbox, slot: _Slot) -> None:
        slot.lingers_until = self._clock.monotonic() + self._linger_s
        mailbox.idle.append(slot)
        if mailbox.waiting:
            self._changed.notify_all()
        if not self._is_sweeping:
            self._is_sweeping = True
            _thread.start_new_thread(self._sweep, ())

    def _have_asked(self, ref: MailboxRef, mailbox: _Mailbox, priority: int, left_s: float) -> None:
        """See that the daemon is asked for one more; it answers when there is one."""
        if priority in mailbox.asking:
            return
        mailbox.asking.add(priority)
        _thread.start_new_thread(self._ask_for, (ref, mailbox, priority, left_s))

    def _ask_for(self, ref: MailboxRef, mailbox: _Mailbox, priority: int, left_s: float) -> None:
        """Ask the daemon for a slot; what comes lingers for whoever waits here."""
        with self._lock:
            epoch, slot = self._epoch, _Slot(next(self._grants), 0)
        payload: frames.Payload = {
            "upstream": ref.upstream,
            "mailbox": ref.mailbox,
            "capacity": mailbox.capacity,
            "per_minute": mailbox.per_minute,
            "priority": priority,
            "grant": slot.grant,
            "timeout_s": left_s,
        }
        is_granted = is_lost = False
        try:
            answer = self._client.call("slot.acquire", payload, timeout_s=left_s + _ANSWER_SLACK_S)
            is_granted = frames.flag(answer, "granted")
            slot.sends = None if answer.get("sends") is None else frames.integer(answer, "sends")
        except CacheUnavailable:
            is_lost = True  # it may have been granted a moment too late
        except (Refused, Garbage) as error:
            log.exception("slots.bug", mailbox=ref.mailbox, text=str(error))
            is_granted, is_lost = False, True
        with self._lock:
            # Granted by a connection that has ended since, or after this worker said what it holds?
            is_lost |= is_granted and epoch != self._epoch
            if is_granted and not is_lost:
                self._let_linger(mailbox, slot)
        if is_lost:
            self._give_back(slot)
        with self._lock:
            if is_lost:  # let the reader find out, before asking again
                self._changed.wait(_LOST_PAUSE_S)
            mailbox.asking.discard(priority)
            if mailbox.waiting:
                self._changed.notify_all()
            self._forget_if_empty(ref)

    def _give_back(self, slot: _Slot) -> None:
        try:
            self._client.tell("slot.release", {"grant": slot.grant, "used": slot.used})
        except CacheUnavailable:
            return  # the end of the connection has freed it

    def _connected(self, tell: Tell) -> None:
        """Say what is in use here before anything is granted (in the reader thread)."""
        with self._lock:
            self._epoch += 1
            now = self._clock.monotonic()
            claims: list[frames.Payload] = []
            for ref, mailbox in list(self._mailboxes.items()):
                mailbox.idle.clear()  # nobody knows of them any more
                mailbox.recalled = 0
                recent = [now - moment for moment in mailbox.recent]
                for slot in mailbox.busy:
                    claims.append(_claim(ref, mailbox, slot, recent))
                    recent = []
                self._forget_if_empty(ref)
            self._is_online = True
            # Still under the lock: a release must not overtake the claim it belongs to.
            for claim in claims:
                tell("slot.claim", claim)
            tell("slot.claimed", {})
            self._changed.notify_all()

    def _lost(self) -> None:
        with self._lock:
            self._is_online = False
            self._away_since = self._clock.monotonic()
            for mailbox in self._mailboxes.values():
                mailbox.recalled = 0
            self._changed.notify_all()

    def _recalled(self, payload: frames.Payload) -> None:
        """Somebody else needs a slot: an idle one now, or the next that is done with."""
        ref = MailboxRef(frames.text(payload, "upstream"), frames.text(payload, "mailbox"))
        with self._lock:
            mailbox = self._mailboxes.get(ref)
            if mailbox is None:
                return
            slot = mailbox.idle.pop() if mailbox.idle else None
            if slot is None and frames.flag(payload, "hard"):
                mailbox.recalled = min(mailbox.recalled + 1, mailbox.capacity)
            self._forget_if_empty(ref)
        if slot is not None:
            self._give_back(slot)

    def _told_to_rest(self, payload: frames.Payload) -> None:
        ref = MailboxRef(frames.text(payload, "upstream"), frames.text(payload, "mailbox"))
        self._on_rest(ref, frames.number(payload, "rest_s"))

    def _told_back(self, payload: frames.Payload) -> None:
        self._on_back(frames.text(payload, "upstream"))

    def _sweep(self) -> None:
        """Give back what lingered in vain; ends when nothing lingers any more."""
        while True:
            with self._lock:
                now = self._clock.monotonic()
                stale, next_at = self._stale(now)
                if not stale and next_at is None:
                    self._is_sweeping = False
                    return
            for slot in stale:
                self._give_back(slot)
            if next_at is not None:
                threading.Event().wait(max(0.0, next_at - now))

    def _stale(self, now: float) -> tuple[list[_Slot], float | None]:
        """Take out the slots that lingered long enough; return them, and when the next does."""
        stale: list[_Slot] = []
        next_at: float | None = None
        for ref, mailbox in list(self._mailboxes.items()):
            stale += [slot for slot in mailbox.idle if slot.lingers_until <= now]
            mailbox.idle = [slot for slot in mailbox.idle if slot.lingers_until > now]
            for slot in mailbox.idle:
                next_at = (
                    slot.lingers_until if next_at is None else min(next_at, slot.lingers_until)
                )
            self._forget_if_empty(ref)
        return stale, next_at

    def _forget_if_empty(self, ref: MailboxRef) -> None:
        mailbox = self._mailboxes.get(ref)
        if mailbox is None or mailbox.busy or mailbox.idle or mailbox.waiting or mailbox.asking:
            return
        now = self._clock.monotonic()
        if not mailbox.recent or mailbox.recent[-1] <= now - WINDOW_S:
            del self._mailboxes[ref]


def _claim(ref: MailboxRef, mailbox: _Mailbox, slot: _Slot, recent: list[float]) -> frames.Payload:
    return {
        "upstream": ref.upstream,
        "mailbox": ref.mailbox,
        "capacity": mailbox.capacity,
        "per_minute": mailbox.per_minute,
        "grant": slot.grant,
        "sends": slot.sends or 0,
        "recent": recent,
    }
