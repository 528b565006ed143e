"""Answers operators: what the master handed over from control.sock because it needs the spool.

One greenlet for each request, on the client's own socket; words in docs/control.md:

    queue.list, queue.show                   looking; pages, so that no answer is ever large
    queue.retry, hold, release, delete,      by ids, or by the same filter as list, page by page;
    queue.move, queue.resend                 what is sent goes as relayd.toml says now
    queue.export                             the content, in pieces, as base64
    devices                                  who may be named in `smtp`, and who of them may
                                             send a mail that is described
    debug.worker                             what this worker has imported
    smtp                                     the socket becomes an SMTP session of a device,
                                             for `relayd send`: the same desk, the same spool

The peer was checked by the master (SO_PEERCRED). Looking is done by `spool.queries` in a thread
of its own and never in the way of mail. Whatever a client sends, or does not read, costs itself
its connection and nobody else anything.
"""

from __future__ import annotations

import base64
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias, TypeVar, cast

import structlog
from gevent import socket
from gevent.threadpool import ThreadPool

from relayd import gauges
from relayd.access.plan import Plan, Planner, Refusal
from relayd.access.replan import Replanner
from relayd.access.senders import Refuse
from relayd.access.users import Users
from relayd.cache.client import Client
from relayd.cache.frames import Refused
from relayd.clock import SYSTEM, Clock
from relayd.config.model import Config, Device, Submitter, User
from relayd.config.units import show_seconds
from relayd.deliver.courier import Courier
from relayd.errors import CacheUnavailable, RelaydError, SpoolUnavailable
from relayd.master.frames import Frame, Garbage, Json, done, encode, refused
from relayd.message.address import Address, parse_path
from relayd.message.envelope import Envelope, Origin
from relayd.queueview import (
    PAGE,
    Now,
    Outage,
    Use,
    clock_words,
    gone_words,
    look,
    outage_words,
    parse_filter,
)
from relayd.serve.session import PeerGone, PeerSilent
from relayd.spool import moves
from relayd.spool.door import SqliteDoor, spool_path
from relayd.spool.model import (
    Course,
    MailboxRef,
    QueueId,
    Redirect,
    State,
    parse_queue_id,
    queue_id_text,
)
from relayd.spool.queries import Counts, Filter, Listed, Reader, Standing, Story
from relayd.values import frozen
from relayd.wayout import Answers

log = structlog.get_logger()

T = TypeVar("T")

ANSWER_S: Final = 30.0
"""A client that does not take one frame within this time is dropped."""

TEMPORARY: Final = 75
WRONG_USAGE: Final = 2
_MOST_AT_ONCE: Final = 500
_EXPORT_PIECE: Final = 192 * 1024
_STATUS_S: Final = 1.0
_FRESH_S: Final = 5.0
"""What the cache daemon said is good for so long to explain a row; status asks every 2 s."""
_MOST_MAILBOXES: Final = 20
_WISHES: Final[Mapping[str, moves.Wish]] = {
    "queue.retry": "retry",
    "queue.hold": "hold",
    "queue.release": "release",
    "queue.delete": "delete",
    "queue.resend": "resend",
}
_MOST_REFUSED: Final = 20
_MOST_LOGGED: Final = 5

Judge: TypeAlias = Callable[[Standing], str | None]
"""Says whether something can be done about a message that stands so: None: it can; "": it makes no
sense there; else why not."""

_NOWHERE: Final = Origin(
    session="", listener="", ip="", helo="", device="", user="", protocol="ESMTP"
)

Converse: TypeAlias = Callable[[socket.socket, str], None]
"""Serve an SMTP session on a socket, as the named device; made by the worker's root."""


@frozen
class _Mail:
    """A mail that is only asked about. sender: None for none; size: octets."""

    sender: Address | None
    recipients: tuple[Address, ...]
    size: int


def _mail_of(request: Frame) -> _Mail | None:
    """Return the mail that "from", "to" and "size" describe; None without "to".

    raises: ValueError - an address that is none.
    """
    to, sender, size = request.get("to"), request.get("from"), request.get("size")
    if not isinstance(to, list) or not to:
        return None
    return _Mail(
        parse_path(str(sender), lenient=True) if sender else None,
        tuple(parse_path(str(one)) for one in to),
        size if isinstance(size, int) else 0,
    )


class Operator:
    """One worker's answers. converse: see Converse; patience_s: see ANSWER_S.

    more: commands answered elsewhere, as wayout's, by name.
    """

    def __init__(
        self,
        config: Config,
        door: SqliteDoor,
        courier: Courier,
        cache: Client,
        converse: Converse,
        *,
        users: Users | None = None,
        more: Mapping[str, Answers] | None = None,
        clock: Clock = SYSTEM,
        patience_s: float = ANSWER_S,
    ) -> None:
        self._config = config
        self._door = door
        self._courier = courier
        self._cache = cache
        self._converse = converse
        self._users = users if users is not None else Users(config)
        self._planner = Planner(config, self._users)
        self._more = more or {}
        self._clock = clock
        self._patience_s = patience_s
        self._heard: Mapping[str, Json] = {}  # of the cache daemon, last
        self._heard_at = float("-inf")
        self._reader = _ThreadedReader(Reader(spool_path(config.spool.url), clock))
        self._replanner = Replanner(config, self._users)

    def close(self) -> None:
        """Close the connection that looks; who asks later is told to ask another worker."""
        self._reader.close()

    # ---- figures for `status`, which the master keeps

    def figures(self) -> dict[str, Json]:
        """Return what the spool and the courier say now; raises SpoolUnavailable."""
        counts = self._reader.counts()
        cached = self._cached()
        gauges.tell_queue(counts, self._config.upstream, now=self._clock.utcnow())
        gauges.tell_upstreams(
            self._courier.upstreams(), clock_is_right=not self._courier.clock_trouble
        )
        gauges.tell_credentials(self._config.upstream)
        queue: dict[str, int] = {}
        for (state, _), number in counts.by_state.items():
            queue[state.value] = queue.get(state.value, 0) + number
        now = self._clock.utcnow()
        oldest_s = max(((now - at).total_seconds() for at in counts.oldest.values()), default=0.0)
        return {
            "queue": queue,
            "oldest_s": round(max(oldest_s, 0.0), 1),
            "upstreams": self._upstreams(counts, _token_expiries(cached)),
            "quota": _busiest(cached),
            "clock": self._clock_told(),
        }

    def _clock_told(self) -> dict[str, Json]:
        trouble = self._courier.clock_trouble
        if not trouble:
            return {"right": True}
        why, do = clock_words(trouble)
        return {"right": False, "why": why, "do": do}

    def _upstreams(self, counts: Counts, expiries: Mapping[str, int]) -> dict[str, Json]:
        held: dict[str, dict[str, int]] = {}
        for hold in self._door.holds():
            causes = held.setdefault(hold.mailbox.upstream, {})
            causes[hold.cause] = causes.get(hold.cause, 0) + 1
        ends = {one.name: one.credential_expires for one in self._config.upstream}
        out: dict[str, Json] = {}
        for one in self._courier.upstreams():
            row: dict[str, Json] = {
                "state": one.state, "cause": one.cause, "text": one.text,
                "down_s": round(one.down_s), "retry_in_s": round(one.retry_in_s),
                "in_flight": one.in_flight, "held": held.get(one.name, {}),
                "held_messages": counts.by_state.get((State.HELD, one.name), 0),
            }  # fmt: skip
            if ends.get(one.name):
                row["credential_expires"] = ends[one.name]
            if one.name in expiries:
                row["token_expires_s"] = expiries[one.name]
            if one.resting:
                mailbox, longest_s = max(one.resting.items(), key=lambda item: item[1])
                row["cause"] = (
                    f"{mailbox} rests for {round(longest_s)} s more; relayd queue list says why"
                )
            if one.state != "up":
                outage = Outage(one.cause, one.text, one.retry_in_s)
                row["why"], row["do"] = outage_words(one.name, outage)
            out[one.name] = row
        return out

    def _cached(self) -> Mapping[str, Json]:
        """Return what the cache daemon says of tokens and slots; {} while it is away."""
        try:
            self._heard = self._cache.call("status", {}, timeout_s=_STATUS_S)
        except (CacheUnavailable, Refused):
            self._heard = {}
        self._heard_at = self._clock.monotonic()
        return self._heard

    # ---- requests

    def serve(self, request: Frame, fd: int, peer: Json = None, down: Json = None) -> None:
        """Answer one request on the client's socket, which is then closed; raises nothing.

        peer: {"uid", "pid"} of who asks, for the log.
        down: upstreams that another worker found down: name -> {"cause", "text", "retry_in_s"};
              this one learns of it only by mail of its own.
        """
        with socket.socket(fileno=fd) as client:
            client.settimeout(self._patience_s)
            try:
                if request.get("command") == "smtp":
                    self._serve_smtp(request, client)
                    return
                for reply in self._replies(request, peer, down):
                    client.sendall(_frame(reply))
            except (OSError, PeerGone, PeerSilent) as error:
                log.debug("control.lost", text=str(error))
            except Exception:  # the edge: a bug in an answer must cost the asker only
                log.exception("control.bug", command=str(request.get("command")))

    def _serve_smtp(self, request: Frame, client: socket.socket) -> None:
        name = str(request.get("device") or "")
        known = [one.name for one in self._submitters()]
        if name not in known:
            told = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
            words = f"there are: {told}" if told else "none is configured: nobody may send"
            client.sendall(encode(refused(f"no [[device]] or [[user]] named {name!r}; {words}")))
            return
        client.sendall(encode(done({"device": name})))
        self._converse(client, name)

    def _submitters(self) -> Sequence[Submitter]:
        self._users.refresh()
        return (*self._config.device, *self._users.all())

    def _replies(self, request: Frame, peer: Json, down: Json) -> Iterator[Frame]:
        command = str(request.get("command"))
        try:
            match command:
                case "queue.list" | "queue.show":
                    yield from look(self._reader, request, lambda: self._now(down))
                case "queue.export":
                    yield from self._export(request)
                case "devices":
                    yield from self._devices(request)
                case "debug.worker":
                    # None stands for what `lean` keeps out.
                    there = [
                        name for name in sorted(sys.modules) if sys.modules.get(name) is not None
                    ]
                    yield done({"modules": [*there]})
                case _ if command in self._more:
                    yield from self._more[command](request)
                case "queue.move":
                    yield from self._move(request, peer)
                case _ if command in _WISHES:
                    yield from self._wish(command, request, peer)
                case _:
                    yield refused(f"unknown command: {command}", exit_code=WRONG_USAGE)
        except ValueError as error:
            yield refused(str(error), exit_code=WRONG_USAGE)
        except SpoolUnavailable as error:
            yield refused(f"{error}; try again", exit_code=TEMPORARY)
        except RelaydError as error:
            yield refused(str(error))

    def _now(self, elsewhere: Json) -> Now:
        down = _outages(elsewhere)
        resting: dict[MailboxRef, float] = {}
        for one in self._courier.upstreams():
            if one.state != "up":
                down[one.name] = Outage(one.cause, one.text, one.retry_in_s)
            for mailbox, rest_s in one.resting.items():
                resting[MailboxRef(one.name, mailbox)] = rest_s
        if self._clock.monotonic() > self._heard_at + _FRESH_S:
            self._cached()
        return Now(
            holds=self._door.holds(),
            down=down,
            clock=self._courier.clock_trouble,
            spool=self._door.ailing,
            resting=resting,
            quota=_quota(self._heard),
            at=self._clock.utcnow(),
            upstreams=frozenset(self._replanner.upstreams),
        )

    def _devices(self, request: Frame) -> Iterator[Frame]:
        """Tell who may submit; with "to", also whether each may send such a mail."""
        mail = _mail_of(request)
        there = self._submitters()
        for start in range(0, len(there) or 1, PAGE):
            rows: list[Json] = [
                {
                    "name": one.name,
                    "kind": "user" if isinstance(one, User) else "device",
                    "upstream": one.upstream,
                    "from": one.from_ or one.default_from,
                    "networks": list(one.networks) if isinstance(one, Device) else [],
                    "to": list(one.allow_to),
                    "priority": one.priority,
                    **({} if mail is None else {"refusal": self._refusal(one, mail)}),
                }
                for one in there[start : start + PAGE]
            ]
            yield done({"devices": rows}, more=start + PAGE < len(there))

    def _refusal(self, submitter: Submitter, mail: _Mail) -> Json:
        """Return why a mail would not be taken from somebody; None: it would be.

        The same rules in the same order as a session's, without one: nothing is counted or kept.
        """
        planner, sender = self._planner, mail.sender
        domain = self._config.server.default_domain
        if sender is not None and not sender.domain and domain:
            sender = Address(sender.local, domain)
        verdict: Plan | Refusal | None = planner.check_mail(submitter, sender, mail.size)
        for one in mail.recipients:
            verdict = verdict or planner.check_rcpt(submitter, one)
        if verdict is None:
            envelope = Envelope(sender=sender, recipients=mail.recipients, origin=_NOWHERE)
            verdict = planner.plan(submitter, envelope, sender, mail.size)
        if not isinstance(verdict, Refusal):
            return None
        reply = f"{verdict.code} {verdict.enhanced} {verdict.text}"
        return {"reply": reply, "why": verdict.log_reason, "do": verdict.do}

    # ---- changing

    def _wish(self, command: str, request: Frame, peer: Json) -> Iterator[Frame]:
        """Do it, or with "dry_run" only count; a frame for each page, the last has the sum."""
        wish = _WISHES[command]
        is_dry = bool(request.get("dry_run"))
        is_named = isinstance(request.get("ids"), list)
        chosen = self._chosen(request, partial(self._verdict, wish, is_named=is_named))
        count = 0
        probes: set[str] = set()
        some: list[QueueId] = []  # for the log
        for part in chosen:
            some += part[: _MOST_LOGGED + 1 - len(some)]
            if is_dry:
                count += len(part)
            else:
                reached, causes = self._do(wish, part)
                count += reached
                probes |= causes
            yield done({"count": count}, more=True)
        if not is_dry:
            log.info("queue.wished", command=command, messages=count, uid=_uid(peer), **_few(some))
        left = chosen.left(refuses=wish in moves.STARTS)
        if wish in moves.STARTS:
            left["probes"] = [*sorted(probes)]
        yield done({"count": count, **left})

    def _verdict(self, wish: moves.Wish, standing: Standing, *, is_named: bool) -> str | None:
        """See Judge. Of sent mail without content `resend` tells why, where it was named by id."""
        able = [
            (state, upstream)
            for state, upstream in standing.ways
            if moves.is_reached(wish, state, has_content=standing.has_content)
        ]
        for state, upstream in able:
            if state is State.LEASED or moves.may_start(wish, upstream, self._replanner.upstreams):
                return None
        if able:
            _, upstream = able[0]
            return gone_words(upstream, is_sent=wish == "resend")
        if (
            wish != "resend"
            or not is_named
            or not any(one is State.SENT for one, _ in standing.ways)
        ):
            return ""
        kept = show_seconds(self._config.spool.keep_sent_content)
        return f'its content is not kept any more, [spool] keep_sent_content is "{kept}"'

    def _do(self, wish: moves.Wish, messages: list[QueueId]) -> tuple[int, frozenset[str]]:
        """Do it; what is to be sent goes as it is configured now.

        returns: how many messages it reached, and the causes of Holds that are tried for it.
        """
        match wish:
            case "hold":
                return self._door.hold(messages), frozenset()
            case "delete":
                return self._door.delete(messages), frozenset()
            case "retry" | "release" | "resend":
                act = {"retry": self._door.retry, "release": self._door.release}
                courses = self._courses(wish, messages)
                redirects = self._replanner.corrected(courses)
                probes = self._probed(courses, redirects)
                known = frozenset(self._replanner.upstreams)
                return act.get(wish, self._door.resend)(messages, redirects, known), probes

    def _courses(self, wish: moves.Wish, messages: Sequence[QueueId]) -> list[Course]:
        self._replanner.refresh()
        states = frozenset(moves.WISHES[wish])
        return self._door.courses(messages, states, with_content=True)

    def _probed(self, courses: Sequence[Course], redirects: Sequence[Redirect]) -> frozenset[str]:
        """Return the causes of Holds that keep some of these: the oldest they hold goes first."""
        holds = {(one.mailbox, one.header_from, one.cause) for one in self._door.holds()}
        turned = {one.course.delivery for one in redirects}
        return frozenset(
            one.held_by
            for one in courses
            if one.state is State.HELD
            and one.delivery not in turned
            and (one.mailbox, one.header_from, one.held_by) in holds
            and self._replanner.knows(one.mailbox.upstream)
        )

    def _move(self, request: Frame, peer: Json) -> Iterator[Frame]:
        """Take mail to another upstream; replies as `_wish`, and `refused`: some that may not."""
        upstream = str(request.get("to_upstream") or "")
        if not self._replanner.knows(upstream):
            there = ", ".join(self._replanner.upstreams[:_MOST_REFUSED]) or "none"
            raise ValueError(f"no [upstream.{upstream}] is configured; there are: {there}")
        self._replanner.refresh()
        is_dry = bool(request.get("dry_run"))
        chosen = self._chosen(request, _movable)
        count = 0
        stayed: dict[QueueId, str] = {}
        some: list[QueueId] = []  # for the log
        for part in chosen:
            redirects, staying = self._moved(part, upstream)
            moved = dict.fromkeys(one.course.message for one in redirects)
            some += [*moved][: _MOST_LOGGED + 1 - len(some)]
            if not is_dry:
                self._door.redirect(redirects, "operator")
            count += len(moved)
            stayed |= {one: why for one, why in staying.items() if why or one not in moved}
            yield done({"count": count}, more=True)
        if not is_dry:
            log.info(
                "queue.wished", command="queue.move", messages=count, uid=_uid(peer),
                upstream=upstream, **_few(some),
            )  # fmt: skip
        yield done({"count": count, **_stayed(stayed, chosen.left())})

    def _moved(
        self, messages: Sequence[QueueId], upstream: str
    ) -> tuple[list[Redirect], dict[QueueId, str]]:
        """Return how to move them, and which stay for what reason, "" where they go so already."""
        redirects: list[Redirect] = []
        stay: dict[QueueId, str] = {}
        for course in self._door.courses(messages, moves.TURNED_BY["operator"]):
            verdict = self._replanner.moved(course, upstream)
            if isinstance(verdict, Redirect):
                redirects.append(verdict)
            elif isinstance(verdict, Refuse):
                stay[course.message] = verdict.log_reason
            else:
                stay.setdefault(course.message, "")
        return redirects, stay

    def _chosen(self, request: Frame, judge: Judge) -> _Chosen:
        """Return the messages a request means; raises ValueError - an id or filter that is none."""
        given = request.get("ids")
        if isinstance(given, list):
            ids = list(dict.fromkeys(parse_queue_id(str(one)) for one in given))
            return _Chosen(iter([ids]), self._reader.standings, judge, is_named=True)
        pages = self._matching(parse_filter(request))
        return _Chosen(pages, self._reader.standings, judge, is_named=False)

    def _matching(self, wanted: Filter) -> Iterator[list[QueueId]]:
        """Yield the messages a filter means, page by page; pages may be empty."""
        after = 0
        last: list[QueueId] = []
        while True:
            page, after = self._reader.page(wanted, after=after)
            before = set(last)  # a message's deliveries may lie on both sides of a page's end
            last = list(dict.fromkeys(one.id for one in page))
            yield [one for one in last if one not in before]
            if not after:
                return

    def _export(self, request: Frame) -> Iterator[Frame]:
        message = parse_queue_id(str(request.get("id")))
        story = self._reader.show(message)
        if story is None or not story.has_content:
            why = "no such message" if story is None else "its content is not kept any more"
            yield refused(f"{queue_id_text(message)}: {why}")
            return
        with self._door.content(message) as pieces:
            for piece in pieces:
                for start in range(0, len(piece), _EXPORT_PIECE):
                    octets = base64.b64encode(piece[start : start + _EXPORT_PIECE])
                    yield done({"octets": octets.decode("ascii")}, more=True)
        yield done({"octets": ""})


def _outages(told: Json) -> dict[str, Outage]:
    """Return what the master says is down; whatever is no row is passed over."""
    out: dict[str, Outage] = {}
    for name, row in told.items() if isinstance(told, Mapping) else ():
        if isinstance(row, Mapping):
            retry_in_s = row.get("retry_in_s")
            left_s = float(retry_in_s) if isinstance(retry_in_s, int | float) else 0.0
            out[str(name)] = Outage(str(row.get("cause", "")), str(row.get("text", "")), left_s)
    return out


def _token_expiries(cached: Mapping[str, Json]) -> dict[str, int]:
    """Return how long each upstream's token is good for; those without one are left out."""
    tokens = cached.get("tokens")
    out: dict[str, int] = {}
    for token in tokens if isinstance(tokens, list) else []:
        names = token.get("upstreams") if isinstance(token, dict) else None
        expires_s = token.get("expires_in_s") if isinstance(token, dict) else None
        if isinstance(expires_s, int) and expires_s > 0 and isinstance(names, list):
            out |= {str(name): expires_s for name in names}
    return out


def _slots(cached: Mapping[str, Json]) -> list[dict[str, Json]]:
    slots = cached.get("slots")
    return [row for row in (slots if isinstance(slots, list) else []) if isinstance(row, dict)]


def _quota(cached: Mapping[str, Json]) -> dict[MailboxRef, Use]:
    """Return what mailboxes send now; whatever is no number counts as 0."""
    out: dict[MailboxRef, Use] = {}
    for row in _slots(cached):
        figures = (row.get(key) for key in ("sent_last_minute", "per_minute", "held", "capacity"))
        use = Use(*(figure if isinstance(figure, int) else 0 for figure in figures))
        out[MailboxRef(str(row.get("upstream")), str(row.get("mailbox")))] = use
    return out


def _busiest(cached: Mapping[str, Json]) -> list[Json]:
    """Return the mailboxes nearest to what they may send, the fullest first; at most 20."""
    return [*sorted(_slots(cached), key=_fullness, reverse=True)[:_MOST_MAILBOXES]]


def _fullness(row: Mapping[str, Json]) -> tuple[float, float]:
    """Return the part of the minute's messages used, and how many wait."""
    sent, per_minute, waiting = (
        float(value) if isinstance(value, int | float) else 0.0
        for value in (row.get("sent_last_minute"), row.get("per_minute"), row.get("waiting"))
    )
    return (sent / per_minute if per_minute else 0.0, waiting)


def _frame(reply: Frame) -> bytes:
    try:
        return encode(reply)
    except Garbage:
        return encode(refused("the answer is too large; ask for less"))


class _Chosen:
    """The messages a request means, in parts small enough for one commit; gone through once.

    pages:    those it names, or that its filter matches.
    is_named: by their ids: then it is told of each what is not done about it.
    """

    def __init__(
        self,
        pages: Iterator[list[QueueId]],
        standings: Callable[[Sequence[QueueId]], Mapping[QueueId, Standing]],
        judge: Judge,
        *,
        is_named: bool,
    ) -> None:
        self._pages = pages
        self._standings = standings
        self._judge = judge
        self._is_named = is_named
        self._missing: list[Json] = []
        self._untouched: list[Json] = []
        self._refused: list[Json] = []

    def __iter__(self) -> Iterator[list[QueueId]]:
        for ids in self._pages:
            for start in range(0, len(ids) or 1, _MOST_AT_ONCE):
                yield self._fit(ids[start : start + _MOST_AT_ONCE])

    def _fit(self, ids: Sequence[QueueId]) -> list[QueueId]:
        standings = self._standings(ids)
        return [one for one in ids if self._is_fit(one, standings.get(one))]

    def _is_fit(self, message: QueueId, standing: Standing | None) -> bool:
        why = self._judge(standing) if standing else ""
        if why is None:
            return True
        text = queue_id_text(message)
        if why and (self._is_named or len(self._refused) < _MOST_REFUSED):
            self._refused.append({"id": text, "why": why})
        elif self._is_named:
            (self._untouched if standing else self._missing).append(text)
        return False

    def left(self, *, refuses: bool = False) -> dict[str, list[Json]]:
        """Return what to say of those that nothing was done about, once all were gone through.

        missing: nobody knows them; untouched: what is asked makes no sense where they stand;
        refused: with the reason, where the request may be refused for one.
        """
        refused = {"refused": self._refused} if refuses else {}
        if not self._is_named:
            return refused
        return {"missing": self._missing, "untouched": self._untouched, **refused}


def _few(messages: Sequence[QueueId]) -> dict[str, str]:
    """Return for the log which messages they were, where they are few."""
    is_few = 0 < len(messages) <= _MOST_LOGGED
    return {"id": ",".join(map(queue_id_text, messages))} if is_few else {}


def _uid(peer: Json) -> Json:
    return peer.get("uid") if isinstance(peer, Mapping) else None


def _stayed(stayed: Mapping[QueueId, str], answer: Mapping[str, list[Json]]) -> dict[str, Json]:
    """Return what to say of messages that were not moved, added to what is said already."""
    there = [queue_id_text(one) for one, why in stayed.items() if not why]
    refused: list[Json] = [
        {"id": queue_id_text(one), "why": why} for one, why in stayed.items() if why
    ]
    out: dict[str, Json] = {"refused": refused[:_MOST_REFUSED]}
    if "untouched" in answer:
        out |= {**answer, "untouched": [*answer["untouched"], *there]}
    return out


def _movable(standing: Standing) -> str | None:
    is_able = any(state in moves.TURNED_BY["operator"] for state, _ in standing.ways)
    return None if is_able else ""


def follow(door: SqliteDoor, replanner: Replanner) -> int:
    """Have waiting mail go as its upstreams are configured now; returns how many deliveries.

    raises: SpoolUnavailable.
    """
    replanner.refresh()
    mailboxes = replanner.mailboxes()
    told: Counter[tuple[MailboxRef, MailboxRef]] = Counter()
    try:
        while courses := door.astray(mailboxes):
            redirects = replanner.corrected(courses)
            changed = door.redirect(redirects, "configuration")
            if not changed:
                break  # somebody else was quicker; what is left is looked at in a minute
            told[courses[0].mailbox, redirects[0].mailbox] += changed
    finally:
        for (was, now), count in told.items():
            log.info(
                "queue.redirected", upstream=now.upstream, mailbox=now.mailbox,
                was=was.mailbox, deliveries=count,
            )  # fmt: skip
    return told.total()


_WAITS: Final = frozenset({State.READY, State.DEFERRED, State.HELD, State.LEASED})


def tell_unknown(door: SqliteDoor, upstreams: Collection[str]) -> frozenset[str]:
    """Log how much mail waits of each upstream that is not among these; returns them.

    raises: SpoolUnavailable.
    """
    waiting: Counter[str] = Counter()
    for (state, upstream), number in door.counts().by_state.items():
        if state in _WAITS and upstream not in upstreams:
            waiting[upstream] += number
    for upstream, number in sorted(waiting.items()):
        log.error(
            "upstream.unknown", upstream=upstream, messages=number,
            text=f"{number} waiting for an upstream that is not configured",
            advice=gone_words(upstream),
        )  # fmt: skip
    return frozenset(waiting)


class _ThreadedReader:
    """A Reader whose methods run in a thread of their own, and block the calling greenlet only."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._pool = ThreadPool(1)
        self._is_closed = False

    def page(
        self, wanted: Filter, *, after: int = 0, limit: int = PAGE
    ) -> tuple[list[Listed], int]:
        """See Reader."""
        return self._ask(lambda: self._reader.page(wanted, after=after, limit=limit))

    def show(self, message: QueueId) -> Story | None:
        """See Reader."""
        return self._ask(lambda: self._reader.show(message))

    def standings(self, messages: Sequence[QueueId]) -> dict[QueueId, Standing]:
        """See Reader."""
        return self._ask(lambda: self._reader.standings(messages))

    def counts(self) -> Counts:
        """See Reader."""
        return self._ask(self._reader.counts)

    def close(self) -> None:
        """Let the question under way end, then the thread and the connection go."""
        if self._is_closed:
            return
        self._is_closed = True
        self._pool.spawn(self._reader.close).get()
        self._pool.kill()

    def _ask(self, question: Callable[[], T]) -> T:
        if self._is_closed:
            raise SpoolUnavailable("this worker is leaving")
        # gevent prints what a thread raises, so the error comes as a value.
        outcome = cast("T | SpoolUnavailable", self._pool.spawn(_answer, question).get())
        if isinstance(outcome, SpoolUnavailable):
            raise SpoolUnavailable(*outcome.args)
        return outcome


def _answer(question: Callable[[], T]) -> T | SpoolUnavailable:
    try:
        return question()
    except SpoolUnavailable as error:
        return error
