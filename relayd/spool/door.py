"""A worker's spool: greenlets in front, native threads behind.

    draft -> write ... -> commit      content spilled when large; one operation in the flusher
    lease, renew, settle, reclaim     one operation each; batched with everybody else's
    content                           read in pieces by threads of its own

Nothing here waits on the hub. Threads get jobs that call only SQLite, the file system and
zlib; logging and counting happen here, after the batch.

Every failure is SpoolUnavailable, SpoolFull or LeaseLost.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar, cast

import structlog
from gevent.threadpool import ThreadPool

from relayd.clock import SYSTEM, Clock, micros
from relayd.config import resolve
from relayd.config.model import Spool
from relayd.errors import ConfigError, LeaseLost, SpoolFull, SpoolUnavailable
from relayd.observe import metrics
from relayd.spool import fit, moves
from relayd.spool.accepting import Accept, Birth, Undo, message_row
from relayd.spool.content import Crash, unavailable
from relayd.spool.draft import SqliteDraft
from relayd.spool.files import Files
from relayd.spool.flusher import FOREVER, Flusher
from relayd.spool.holders import name_of
from relayd.spool.ids import DELIVERIES, Ids, claim
from relayd.spool.leasing import Reclaim, Renew, TakeLeases
from relayd.spool.model import (
    Course,
    Lease,
    MailboxRef,
    NewDelivery,
    NewMessage,
    QueueId,
    Redirect,
    Settlement,
    State,
    queue_id_text,
)
from relayd.spool.queries import PAGE, Counts, Filter, Listed, Reader, Story
from relayd.spool.reading import Contents
from relayd.spool.redirecting import ReadAstray, ReadCourses, RedirectAll
from relayd.spool.settling import ReleaseHeld, Settle
from relayd.spool.space import Space, refuse_network
from relayd.spool.sqlite import Applied, Core
from relayd.spool.store import Expired, Hold, Taker, Told, Work
from relayd.spool.transaction import Operation, Pair, Policy, Value, causes
from relayd.spool.upkeep import (
    Clamp,
    Expire,
    ForgetContent,
    ForgetHistory,
    ForgetSent,
    KnownFiles,
    ReadWork,
)
from relayd.spool.wishes import Adopt, Ask, Hasten

log = structlog.get_logger()

T = TypeVar("T")

_MICROS: Final = 1_000_000
_HEALTH_S: Final = 1.0
_JUMP_S: Final = 3600.0
_MAKE_ROOM_S: Final = 5.0
_SET_BACK_S: Final = 5.0
_DAY_S: Final = 86_400.0


def no_crash(point: str) -> None:
    """Go on; tests put something else here."""


def open_spool(
    settings: Spool,
    *,
    lane: int,
    min_free_bytes: int,
    max_message_bytes: int,
    clock: Clock = SYSTEM,
    ambiguous: Mapping[str, str] | None = None,
    holder: str = "",
    crash_at: Crash = no_crash,
) -> SqliteDoor:
    """Open the spool for one worker, made if it is not there.

    lane:      tells writers apart in ids; any number, such as the child's serial.
    ambiguous: upstream -> what to do with mail that was in a dead worker's hands: "retry"
               (the default) or "hold".
    holder:    the name leases are held by (holders.name_of); "": this process.
    raises:    ConfigError - in words for the operator: newer schema, network file system,
               unreadable database, folder open to others. Nothing is ever started empty.
    """
    path = spool_path(settings.url)
    folder = os.path.dirname(path)
    try:
        _own_folder(folder)
        refuse_network(folder)
        lane, lock = claim(path + ".lanes", lane)
        core = Core(
            path,
            _policy(settings, ambiguous or {}),
            clock,
            holder=holder or name_of(os.getpid()),
            crash_at=crash_at,
        )
    except OSError as error:
        raise ConfigError([f"[spool] url: {folder}: {error.strerror}"]) from error
    space = Space(
        folder,
        min_free_bytes=min_free_bytes,
        max_message_bytes=max_message_bytes,
        clock=clock,
    )
    return SqliteDoor(core, clock=clock, space=space, lane=lane, lane_lock=lock)


def spool_path(url: str) -> str:
    """Return the database's path; raises ConfigError for what is not SQLite."""
    path = resolve.spool_path(url)
    if not path:
        raise ConfigError([f"[spool] url: {url}: only sqlite:///path exists so far"])
    return path


def _own_folder(folder: str) -> None:
    """Make the folder, or see that nobody else can read it."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if openness := fit.openness(folder):
        raise ConfigError([openness])


def _policy(settings: Spool, ambiguous: Mapping[str, str]) -> Policy:
    step = max(settings.retry, default=3600.0)
    return Policy(
        keep_sent=int(settings.keep_sent_content * _MICROS),
        keep_failed=int(settings.keep_failed_content * _MICROS),
        history=int(settings.history * _MICROS),
        max_step=int(step * _MICROS),
        due_limit=int(max(1.2 * step, _DAY_S) * _MICROS),
        ambiguous=dict(ambiguous),
    )


class _NoTaker:
    """Before `set_taker`: nobody here delivers."""

    def wants(self, delivery: NewDelivery, priority: int) -> bool:
        """Say no."""
        del delivery, priority
        return False

    def take(self, lease: Lease) -> None:
        """Never called: `wants` said no."""

    def spare(self, delivery: NewDelivery) -> None:
        """Never called either."""

    def offer(self, mailboxes: Sequence[MailboxRef]) -> None:
        """Leave it to others."""


class SqliteDoor:
    """store.Door on SQLite."""

    def __init__(
        self, core: Core, *, clock: Clock, space: Space, lane: int, lane_lock: int
    ) -> None:
        self._core = core
        self._clock = clock
        self._space = space
        self._lane_lock = lane_lock
        self._told_free = -1
        self._has_forgotten_sent = False
        self._room_made_at = float("-inf")
        self._taker: Taker = _NoTaker()
        self._holds: tuple[Hold, ...] = ()
        self._causes: Mapping[Pair, str] = {}
        self._unhealthy_since: float | None = None
        self._last_seen = (micros(clock.utcnow()), clock.boottime())
        self._files = Files(clock)
        self._readers = ThreadPool(1)
        self._reader: Reader | None = None
        self._flusher = Flusher(
            core.apply,
            clock=clock,
            on_applied=self._on_applied,
            on_late=self._on_late,
            wants_idle=lambda: core.wants_checkpoint,
            idle_work=core.checkpoint,
        )
        try:
            newest = self._flusher.in_thread(core.open)
        except BaseException:
            self._let_go()
            raise
        if core.migrated is not None:
            was, now, copy = core.migrated
            log.info("spool.migrated", was=was, now=now, copy=copy)
        self._ids = Ids(lane, clock, newest=newest)
        with contextlib.suppress(SpoolUnavailable):  # the disk fails: mail gets 451 until it works
            self.ask(ReadWork())  # brings the Holds along

    # -- accepting --------------------------------------------------------------------------

    def draft(self, *, priority: int = 1) -> SqliteDraft:
        """Begin a message."""
        if self._flusher.is_closed or self._core.trouble is not None:
            self.ask(ReadWork())  # raises, or finds that the disk works again
        try:
            self._check_space(priority)
        except OSError as error:
            raise unavailable(error) from error
        finally:
            self._tell_space()
        return SqliteDraft(
            self._ids.next(), accept=self._accept, files=self._files, shelf=self._core.shelf
        )

    def _check_space(self, priority: int) -> None:
        """Raise SpoolFull only when what the log takes up has been given back to the disk."""
        try:
            self._space.check(priority)
        except SpoolFull:
            now = self._clock.monotonic()
            if now < self._room_made_at + _MAKE_ROOM_S or not self._core.log_bytes():
                raise
            self._room_made_at = now
            self._flusher.in_thread(lambda: self._core.checkpoint(truncate=True))
            self._space.look_again()
            self._space.check(priority)

    @property
    def ailing(self) -> str:
        """Why the spool cannot be read or written, as of the last batch; "" while it can."""
        trouble = self._core.trouble
        return "" if trouble is None else str(trouble)

    def trouble(self) -> str:
        """Return why mail cannot be kept now, "" when it can; tries a failed disk once more."""
        try:
            if self._flusher.is_closed or self._core.trouble is not None:
                self.ask(ReadWork(), deadline=self._clock.monotonic() + _HEALTH_S)
            self._space.check(priority=1)
        except (SpoolUnavailable, OSError) as error:
            return str(error)
        finally:
            self._tell_space()
        return "the file system is read-only" if self._space.is_read_only else ""

    def _tell_space(self) -> None:
        if self._space.free_bytes != self._told_free:
            self._told_free = self._space.free_bytes
            metrics.gauge("relayd_spool_free_bytes", self._told_free)
            metrics.gauge("relayd_spool_reserve_bytes", self._space.floor_bytes)

    def set_taker(self, taker: Taker) -> None:
        """Name who delivers here."""
        self._taker = taker

    def _accept(
        self, draft: QueueId, message: NewMessage, content: tuple[Value, ...], *, deadline: float
    ) -> None:
        """Commit a draft's rows; what is born leased goes to the taker."""
        octets = content[3] if isinstance(content[3], bytes) else None
        until = self._clock.boottime() + moves.LEASE_S
        born: list[Birth] = []  # LEASED from the start, to us
        others: list[Birth] = []
        rows: list[tuple[Value, ...]] = []
        row = message_row(draft, message)
        held: list[Birth] = []
        try:
            for number, way in zip(
                self._delivery_ids(draft, message), message.deliveries, strict=True
            ):
                state, held_by = self._birth(way, message.priority)
                birth = Birth(number, draft, way, state, held_by, until)
                (born if state is State.LEASED else others).append(birth)
                rows.append(birth.row(row, self._core.holder))
            held = [one for one in others if one.state is State.HELD]
            self.ask(
                Accept(draft, row, content, rows, [one.id for one in born], held),
                deadline=deadline,
            )
        except BaseException:
            for one in born:
                self._taker.spare(one.way)
            if octets is None:
                self._flusher.post(Undo(draft))  # removes the file, unless there is a row
            raise
        for one in born:
            self._taker.take(one.lease(message, octets))
        if held:
            self._tell_held(held, message)
        if others:
            self._taker.offer(list(dict.fromkeys(one.way.mailbox for one in others)))

    def _tell_held(self, births: Sequence[Birth], message: NewMessage) -> None:
        """Log what was born HELD: no attempt will tell of it."""
        texts = {(one.mailbox, one.header_from, one.cause): one.text for one in self._holds}
        for one in births:
            way, cause = one.way, one.held_by
            text = texts.get((way.mailbox, way.header_from, cause))
            if text is not None:  # else its Hold ended just before it was committed
                log.warning(
                    "message.held", id=queue_id_text(one.message), session=message.session,
                    device=message.device, upstream=way.mailbox.upstream,
                    mailbox=way.mailbox.mailbox, recipients=len(way.recipients),
                    bytes=message.size_bytes, attempt=0, reason=cause, text=text,
                )  # fmt: skip

    def _birth(self, delivery: NewDelivery, priority: int) -> tuple[State, str]:
        cause = (
            self._causes.get((*delivery.mailbox, delivery.header_from)) if self._causes else None
        )
        if cause is not None:
            return State.HELD, cause
        if self._taker.wants(delivery, priority):
            return State.LEASED, ""
        return State.READY, ""

    def _delivery_ids(self, draft: QueueId, message: NewMessage) -> Sequence[int]:
        count = len(message.deliveries)
        if count <= DELIVERIES:
            return range(draft, draft + count)
        beyond = [self._ids.next() for _ in range(count - DELIVERIES)]
        return [*range(draft, draft + DELIVERIES), *beyond]

    # -- delivering -------------------------------------------------------------------------

    def work(self) -> Work:
        """Return the mailboxes with work."""
        return self.ask(ReadWork())

    def lease(self, mailbox: MailboxRef, *, limit: int) -> list[Lease]:
        """Lease the best rows of `mailbox`."""
        return self.ask(TakeLeases(mailbox, limit))

    def renew(self, lease: Lease) -> Lease:
        """Return the lease with a later expiry."""
        until = self.ask(Renew(lease.delivery, lease.fence))
        if until is None:
            raise LeaseLost(f"delivery {lease.delivery}: lease {lease.fence} is over")
        return dataclasses.replace(lease, expires_boottime=until)

    def settle(self, lease: Lease, settlement: Settlement) -> None:
        """Record what became of it."""
        lost = self.ask(_settle(lease, settlement))
        if lost is not None:
            raise LeaseLost(*lost.args)

    def settle_soon(self, lease: Lease, settlement: Settlement, told: Told) -> None:
        """Record what became of it within 10 ms, with others if it can be."""
        self._flusher.post(_settle(lease, settlement), told)

    def content(self, message: QueueId) -> Contents:
        """Open the content in pieces."""
        return Contents(message, flusher=self._flusher, files=self._files, shelf=self._core.shelf)

    def holds(self) -> tuple[Hold, ...]:
        """Return the Holds in force, as of the last batch."""
        return self._holds

    def reclaim(self, *, pid: int | None = None) -> int:
        """Return dead holders' leases."""
        total = self._all_of(lambda: self.ask(Reclaim(pid)))
        if total:
            log.warning("spool.reclaimed", deliveries=total, pid=pid)
        return total

    # -- operators --------------------------------------------------------------------------

    def retry(
        self,
        messages: Sequence[QueueId],
        redirects: Sequence[Redirect] = (),
        upstreams: frozenset[str] | None = None,
    ) -> int:
        """Try these now, FAILED ones included; returns how many messages it reached.

        redirects: of their deliveries, in the same commit; so with release and resend.
        upstreams: only what goes through one of these; None: all; likewise.
        """
        return self.ask(Ask("retry", tuple(messages), tuple(redirects), upstreams))

    def hold(self, messages: Sequence[QueueId]) -> int:
        """Hold these until `release`; returns how many messages it reached."""
        return self.ask(Ask("hold", tuple(messages)))

    def release(
        self,
        messages: Sequence[QueueId],
        redirects: Sequence[Redirect] = (),
        upstreams: frozenset[str] | None = None,
    ) -> int:
        """Let held ones go; returns how many messages it reached."""
        return self.ask(Ask("release", tuple(messages), tuple(redirects), upstreams))

    def delete(self, messages: Sequence[QueueId]) -> int:
        """Give these up and drop their content; returns how many messages it reached."""
        return self.ask(Ask("delete", tuple(messages)))

    def resend(
        self,
        messages: Sequence[QueueId],
        redirects: Sequence[Redirect] = (),
        upstreams: frozenset[str] | None = None,
    ) -> int:
        """Send SENT ones again whose content was kept; returns how many messages it reached."""
        return self.ask(Ask("resend", tuple(messages), tuple(redirects), upstreams))

    def hasten(self, upstream: str) -> int:
        """Make all that is DEFERRED for `upstream` due now: it answers again."""
        return self._all_of(lambda: self.ask(Hasten(upstream)))

    def adopt(self, upstreams: Sequence[str]) -> int:
        """Hold mail of upstreams not named here, free what was held so and is named again."""
        return self._all_of(lambda: self.ask(Adopt(tuple(upstreams))))

    def courses(
        self, messages: Sequence[QueueId], states: frozenset[State], *, with_content: bool = False
    ) -> list[Course]:
        """Return the way out of deliveries of these messages, if they are in these states.

        with_content: only of those whose content is kept.
        """
        return self.ask(ReadCourses(tuple(messages), states, with_content))

    def astray(self, mailboxes: Sequence[MailboxRef]) -> list[Course]:
        """Return waiting deliveries whose upstream sends through another mailbox by now.

        mailboxes: the one mailbox of each upstream that has one.
        returns:   some that have the same wrong one; [] where there are none.
        """
        return self.ask(ReadAstray(tuple(mailboxes)))

    def redirect(self, redirects: Sequence[Redirect], why: moves.Why) -> int:
        """Give deliveries another way out; returns how many still stood as they were read."""
        return self.ask(RedirectAll(tuple(redirects), why))

    # -- looking ----------------------------------------------------------------------------

    def page(
        self, wanted: Filter, *, after: int = 0, limit: int = PAGE
    ) -> tuple[list[Listed], int]:
        """Return some deliveries and where the next page begins; see queries.Reader."""
        return self._look(lambda reader: reader.page(wanted, after=after, limit=limit))

    def show(self, message: QueueId) -> Story | None:
        """Return all that is known of a message, its journal included; None if nothing is."""
        return self._look(lambda reader: reader.show(message))

    def counts(self) -> Counts:
        """Return what is in the queue, at most some seconds old."""
        return self._look(lambda reader: reader.counts())

    @property
    def free_bytes(self) -> int:
        """Free space as of the last draft, octets."""
        return self._space.free_bytes

    def _look(self, question: Callable[[Reader], T]) -> T:
        if self._flusher.is_closed:
            raise SpoolUnavailable("the spool is closed")
        outcome = cast("T | SpoolUnavailable", self._readers.spawn(self._answer, question).get())
        if isinstance(outcome, SpoolUnavailable):
            raise SpoolUnavailable(*outcome.args)
        return outcome

    def _answer(self, question: Callable[[Reader], T]) -> T | SpoolUnavailable:
        try:
            if self._reader is None:
                self._reader = Reader(self._core.path, self._clock)
            return question(self._reader)
        except SpoolUnavailable as error:
            return error

    # -- upkeep -----------------------------------------------------------------------------

    def sweep(self) -> tuple[Expired, ...]:
        """Expire, forget, tidy; returns what was given up."""
        self._all_of(lambda: self.ask(ReleaseHeld()))
        ahead_s = self._clamp()
        expired = () if ahead_s > _JUMP_S else self._expired()
        self._page(ForgetContent)
        if not self._has_forgotten_sent:
            self._page(ForgetSent)
            self._has_forgotten_sent = True
        self._page(ForgetHistory)
        self._remove_orphans()
        self._flusher.in_thread(lambda: self._core.checkpoint(truncate=True))
        return expired

    def follow_clock(self) -> None:
        """Make due again what a clock that was set back would keep."""
        self._clamp()

    def _clamp(self) -> float:
        """Bring moments back that a clock which was set put far ahead; see _clock_went_ahead_s."""
        ahead_s = self._clock_went_ahead_s()
        back_s = -ahead_s if ahead_s < -_SET_BACK_S else 0.0
        clamped = self.ask(Clamp(back=int(back_s * _MICROS)))
        if clamped:
            log.warning("spool.clock_jumped", brought_back=clamped)
        return ahead_s

    def _expired(self) -> tuple[Expired, ...]:
        found: list[Expired] = []
        while part := self.ask(Expire()):
            found += part
        return tuple(found)

    def _clock_went_ahead_s(self) -> float:
        """Return how far the wall clock went ahead of the other since the last sweep, seconds.

        Far ahead: nothing expires this time, mail must not die of a clock that was set (one
        that was wrong before and is right now costs one sweep's delay). Back: see Clamp.
        """
        wall, boot = micros(self._clock.utcnow()), self._clock.boottime()
        old_wall, old_boot = self._last_seen
        self._last_seen = (wall, boot)
        return (wall - old_wall) / _MICROS - (boot - old_boot)

    def _page(self, operation: Callable[[int], Operation[int | None]]) -> None:
        after: int | None = 0
        while after is not None:
            after = self.ask(operation(after))

    def _remove_orphans(self) -> None:
        shelf = self._core.shelf
        old = self._files.call(lambda: shelf.old_files(self._clock))
        for start in range(0, len(old), 500):
            part = tuple(old[start : start + 500])
            known = self.ask(KnownFiles(part))
            for message in part:
                if message not in known:
                    log.info("spool.orphan_removed", id=queue_id_text(message))
                    self._files.call(partial(shelf.remove, message))

    def _all_of(self, part: Callable[[], int]) -> int:
        """Repeat a part until it finds nothing."""
        total = 0
        while done := part():
            total += done
        return total

    def close(self) -> None:
        """Finish the batch under way and close."""
        if self._flusher.is_closed:
            return
        self._flusher.close()
        if self._reader is not None:
            self._readers.spawn(self._reader.close).get()
        self._flusher.in_thread(self._core.close)  # the last to close, under the turnstile
        self._let_go()

    def _let_go(self) -> None:
        self._flusher.close()
        self._flusher.kill()
        self._files.close()
        self._readers.kill()
        os.close(self._lane_lock)

    # -- threads ----------------------------------------------------------------------------

    def ask(self, operation: Operation[T], *, deadline: float = FOREVER) -> T:
        """Queue one operation and wait for it; raises SpoolUnavailable, SpoolFull."""
        return self._flusher.ask(operation, deadline=deadline)

    def _on_applied(self, applied: Applied) -> None:
        if applied.holds is not None:
            self._holds = applied.holds
            self._causes = causes(applied.holds)
        for message, why in applied.effects.spoiled:
            log.error("spool.corrupt", id=queue_id_text(message), why=why)
            metrics.count("relayd_spool_errors_total", kind="corrupt")
        for bug in applied.bugs:
            log.error("spool.bug", traceback=bug)
            metrics.count("relayd_spool_errors_total", kind="bug")
        self._watch_health()
        if applied.effects.ready:
            self._taker.offer(list(dict.fromkeys(applied.effects.ready)))

    def _watch_health(self) -> None:
        trouble, now = self._core.trouble, self._clock.monotonic()
        if trouble is not None and self._unhealthy_since is None:
            self._unhealthy_since = now
            metrics.count("relayd_spool_errors_total", kind="disk")
            log.error("spool.unhealthy", why=str(trouble), meaning="mail is answered 451 or 452")
        elif trouble is None and self._unhealthy_since is not None:
            log.info("spool.healthy", after_s=round(now - self._unhealthy_since, 1))
            self._unhealthy_since = None

    def _on_late(self, operation: Operation[object], outcome: object) -> None:
        """Something was done for a caller who had gone: undo it in the next batch."""
        if isinstance(operation, Accept):
            self._flusher.post(operation.undo())
        elif isinstance(operation, TakeLeases) and isinstance(outcome, list):
            back = Settlement(state=State.READY, outcome="returned")
            for lease in outcome:
                self._flusher.post(_settle(lease, back))


def _settle(lease: Lease, settlement: Settlement) -> Settle:
    return Settle(
        lease.delivery,
        lease.fence,
        lease.message,
        (*lease.mailbox, lease.header_from),
        lease.content is None,
        settlement,
    )
