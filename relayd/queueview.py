"""What operators see of the queue: requests read, rows and stories shown, in plain words.

Used by the worker that answers control.sock (`relayd.operator`) and, when the daemon is down, by
the command line on the spool itself. The keys are an interface (docs/cli.md).

`explained` says why a delivery is where it is, and what to do. Its sources, best first: what the
spool's row says (held_by), what the relay knows now (`Now`: Holds, upstreams that are down), the
journal's last attempt, and the tables `relayd explain` has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, field
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol, TypeAlias, TypeGuard

from relayd.clock import micros
from relayd.deliver import catalogue
from relayd.identity import aadsts
from relayd.master.frames import Frame, Json, done, refused
from relayd.spool import moves
from relayd.spool.model import (
    PRIORITIES,
    MailboxRef,
    QueueId,
    State,
    parse_queue_id,
    queue_id_text,
)
from relayd.spool.queries import Filter, Listed, Story, Tried
from relayd.spool.store import Hold
from relayd.values import frozen

PAGE: Final = 200
_WAITING: Final = (State.READY, State.DEFERRED, State.LEASED, State.HELD)
_NAMED: Final[Mapping[str, tuple[State, ...]]] = {
    **{state.value: (state,) for state in State},
    "waiting": _WAITING,
    "all": (),
}
_PRIORITY: Final = {rank: name for name, rank in PRIORITIES.items()}
_PART_BYTES: Final = 512 * 1024
_NO_LIMIT: Final = 1 << 62
_LATEST: Final = datetime(2040, 1, 1, tzinfo=UTC)
"""Later moments have no id that SQLite could compare; and nothing was accepted then."""

_KNOWN_BY: Final = 40
"""So many characters of an advice tell that it stands in a text."""

_PROLONGED: Final = frozenset({"ErrorAccessDenied"})
"""Exchange keeps these refusals alive as long as it is asked: no advice to try at once."""


class Outage(NamedTuple):
    """An upstream that is down. retry_in_s: until it is asked again."""

    cause: str
    text: str
    retry_in_s: float


class Use(NamedTuple):
    """What a mailbox sends. sent: in the last minute, of per_minute (0: not paced);
    held: at once, of capacity.
    """

    sent: int
    per_minute: int
    held: int
    capacity: int


@frozen(kw_only=True)
class Now:
    """What the relay knows beside the spool.

    holds:      the Holds in force.
    down:       upstreams that are down, by name.
    clock:      why nothing is sent because of this host's clock; "" while it is right.
    spool:      why the spool cannot be written, so that nothing is sent; "" while it can.
    resting:    mailboxes that are left alone after a refusal -> for how long, seconds.
    quota:      what mailboxes send, as far as it is known.
    at:         the time; None where it does not matter.
    upstreams:  those that are configured; None where that is not known.
    is_running: False when the command line reads the spool of a relay that is stopped.
    start:      the command that starts it then.
    """

    holds: tuple[Hold, ...] = ()
    down: Mapping[str, Outage] = field(default_factory=dict)
    clock: str = ""
    spool: str = ""
    resting: Mapping[MailboxRef, float] = field(default_factory=dict)
    quota: Mapping[MailboxRef, Use] = field(default_factory=dict)
    at: datetime | None = None
    upstreams: frozenset[str] | None = None
    is_running: bool = True
    start: str = "systemctl start relayd"

    def is_gone(self, one: Listed) -> bool:
        """Tell whether the upstream of a delivery is not configured any more."""
        if self.upstreams is None:
            return one.held_by == moves.missing(one.upstream)
        return one.upstream not in self.upstreams

    def is_due(self, one: Listed) -> bool:
        """Tell whether a waiting delivery would go now, if nothing stood in its way."""
        if one.state is not State.DEFERRED:
            return one.state is State.READY
        return self.at is not None and one.due_at is not None and one.due_at <= self.at


AskNow: TypeAlias = Callable[[], Now]
STOPPED: Final = Now(is_running=False)


class Looker(Protocol):
    """spool.queries.Reader, or one that calls it in a thread."""

    def page(
        self, wanted: Filter, *, after: int = 0, limit: int = PAGE
    ) -> tuple[list[Listed], int]:
        """Return a page and where the next begins, 0 at the end; raises SpoolUnavailable."""
        ...

    def show(self, message: QueueId) -> Story | None:
        """Return all of one message; raises SpoolUnavailable."""
        ...


# ---- requests


def look(looker: Looker, request: Frame, now: AskNow = lambda: STOPPED) -> Iterator[Frame]:
    """Yield the replies to queue.list or queue.show; raises ValueError, SpoolUnavailable."""
    if request.get("command") == "queue.show":
        yield _show(looker, request, now)
        return
    wanted, left, after = parse_filter(request), _limit(request), 0
    while True:
        page, after = looker.page(wanted, after=after, limit=min(left, PAGE))
        left -= len(page)
        is_last = not after or left <= 0
        known = now()
        parts = list(_parts([shown(one, known) for one in page]))
        for number, part in enumerate(parts, 1):
            yield done({"messages": part}, more=not is_last or number < len(parts))
        if is_last:
            return


def _parts(rows: list[dict[str, Json]]) -> Iterator[list[Json]]:
    """Split rows so that each part fits a frame; one empty part for no rows."""
    part: list[Json] = []
    room = _PART_BYTES
    for row in rows:
        octets = len(json.dumps(row))
        if part and octets > room:
            yield part
            part, room = [], _PART_BYTES
        part.append(row)
        room -= octets
    yield part


def _show(looker: Looker, request: Frame, now: AskNow) -> Frame:
    message = parse_queue_id(str(request.get("id")))
    story = looker.show(message)
    if story is None:
        return refused(f"no such message: {queue_id_text(message)}")
    return done(told(story, now()))


def parse_filter(request: Frame) -> Filter:
    """Return which deliveries a request means; raises ValueError with words.

    state: one of spool.model.State, "waiting" (all that may still leave; the default) or "all".
    since: RFC 3339; without an offset UTC is meant.
    """
    name = str(request.get("state") or "waiting").lower()
    if name not in _NAMED:
        raise ValueError(f"unknown state {name!r}: one of {', '.join(sorted(_NAMED))}")
    return Filter(
        states=_NAMED[name],
        sender=_text(request, "from"),
        recipient=_text(request, "to"),
        device=_text(request, "device"),
        upstream=_text(request, "upstream"),
        message_id=_text(request, "message_id"),
        since=_since(request.get("since")),
    )


def _text(request: Frame, key: str) -> str:
    # What is no Unicode cannot be bound in SQL, and nothing stored matches it.
    return str(request.get(key) or "").encode("utf-8", "replace").decode()


def _since(value: Json) -> datetime | None:
    if not value:
        return None
    try:
        moment = datetime.fromisoformat(str(value))
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"since {value!r}: write 2026-11-20T10:00:00Z") from None
    return min(moment, _LATEST) if micros(moment) > 0 else None


def _limit(request: Frame) -> int:
    limit = request.get("limit")
    return limit if isinstance(limit, int) and limit > 0 else _NO_LIMIT


# ---- what is shown


def shown(one: Listed, now: Now) -> dict[str, Json]:
    """Return a row of `queue list`; the keys are an interface (docs/cli.md)."""
    return {
        "id": queue_id_text(one.id),
        "state": one.state.value,
        "from": one.sender,
        "to": list(one.recipients),
        "device": one.device,
        "user": one.user,
        "upstream": one.upstream,
        "mailbox": one.mailbox,
        "priority": _PRIORITY.get(one.priority, "normal"),
        "bytes": one.size_bytes,
        "accepted_at": stamp(one.accepted_at),
        "expires_at": stamp(one.expires_at),
        "due_at": stamp(one.due_at),
        "held_by": one.held_by,
        "reason": _reason(one, now),
        "attempts": one.attempts,
        "maybe_sent": one.maybe_sent,
        "results": dict(one.done),
    }


def told(story: Story, now: Now) -> dict[str, Json]:
    """Return `queue show` and `queue trace` of one message."""
    return {
        "id": queue_id_text(story.id),
        "message_id": story.message_id,
        "subject": story.subject,
        "session": story.session,
        "listener": story.listener,
        "ip": story.ip,
        "helo": story.helo,
        "body_sha256": story.body_sha256,
        "has_content": story.has_content,
        "deliveries": [shown(one, now) | _words(one, story, now) for one in story.deliveries],
        "attempts": [
            _attempt(one, way, counts=counts)
            for one, way, counts in zip(story.journal, _ways(story), _counts(story), strict=True)
        ],
    }


def _is_try(tried: Tried) -> bool:
    """Tell whether a row of the journal is about sending: no wish, no move, not the end of time."""
    return bool(tried.transport) or tried.outcome in ("sending", moves.AMBIGUOUS)


def _counts(story: Story) -> list[bool]:
    """Return of each row of the journal whether it is one of the tries that are counted.

    Of those with the same number the last is: before, the upstream as a whole was at fault.
    """
    left = {one.delivery: one.attempts for one in story.deliveries}
    out: list[bool] = []
    for tried in reversed(story.journal):
        is_last = tried.number <= left.get(tried.delivery, 0)
        counts = _is_try(tried) and (is_last or tried.finished_at is None)
        if counts and is_last:
            left[tried.delivery] = tried.number - 1
        out.append(counts)
    return out[::-1]


def _ways(story: Story) -> list[MailboxRef]:
    """Return the way out that each row of the journal is about: what it had at that time."""
    now = {one.delivery: MailboxRef(one.upstream, one.mailbox) for one in story.deliveries}
    out: list[MailboxRef] = []
    for tried in reversed(story.journal):
        out.append(now.get(tried.delivery, MailboxRef("", "")))
        if tried.outcome == moves.MOVED:
            now[tried.delivery] = moves.turned_from(tried.text) or out[-1]
    return out[::-1]


def _attempt(one: Tried, way: MailboxRef, *, counts: bool) -> dict[str, Json]:
    row: dict[str, Json] = dict(asdict(one))
    row["started_at"] = stamp(one.started_at)
    row["finished_at"] = stamp(one.finished_at)
    row.pop("delivery")
    row["upstream"], row["mailbox"] = way
    row["counts"] = counts
    return row


def stamp(moment: datetime | None) -> str:
    """Return a moment as RFC 3339 in UTC, seconds; "" for none."""
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# ---- why it is where it is, and what to do


def _reason(one: Listed, now: Now) -> str:
    """Return what keeps a delivery back, short; "" where its state says it all."""
    if one.state in _UNSENT and now.is_gone(one) and one.held_by not in _LOOKED_AT:
        return moves.missing(one.upstream)
    if one.state is State.HELD:
        return one.held_by
    if one.state not in (State.READY, State.DEFERRED):
        return ""
    if not now.is_running:
        return "relayd is not running"
    if now.clock:
        return "the clock is wrong"
    if now.spool:
        return "the spool cannot be written"
    outage = now.down.get(one.upstream)
    if outage is not None:
        return f"{one.upstream} is down{_label(outage.cause)}"
    return _turn(one, now).short if now.is_due(one) else ""


class _Turn(NamedTuple):
    """Why a delivery's turn has not come: in a word or two, and as a sentence."""

    short: str
    why: str


def _turn(one: Listed, now: Now) -> _Turn:
    """Return what its mailbox waits for; without figures, all it may be."""
    mailbox = one.mailbox
    ref = MailboxRef(one.upstream, mailbox)
    rest_s = now.resting.get(ref)
    if rest_s is not None:
        words = f"rests for {max(round(rest_s), 1)} s"
        return _Turn(f"{mailbox} {words}", f"{mailbox} {words} after a refusal.")
    use = now.quota.get(ref)
    is_urgent = one.priority == PRIORITIES["high"]  # which waits for no pacing
    if use is not None and 0 < use.per_minute <= use.sent and not is_urgent:
        return _Turn(
            f"{use.sent} of {use.per_minute} in the last minute (messages_per_minute)",
            f"{mailbox} has sent {use.sent} in the last minute and may send {use.per_minute}"
            " (`messages_per_minute`); it goes on within a minute.",
        )
    if use is not None and 0 < use.capacity <= use.held:
        return _Turn(
            f"{use.held} of {use.capacity} at once (concurrency)",
            f"{mailbox} sends only so many at once (`concurrency`).",
        )
    return _Turn(
        "",
        f"{mailbox} sends only so many at once (`concurrency`)"
        " and in a minute (`messages_per_minute`).",
    )


_UNSENT: Final = frozenset({State.READY, State.DEFERRED, State.HELD})
_LOOKED_AT: Final = frozenset({moves.OPERATOR, moves.CORRUPT, moves.AMBIGUOUS})
"""HELD by these until a person decides, wherever its upstream is."""


class Plain(NamedTuple):
    """Why a delivery is where it is, and what to do; sentences, "" where there is nothing."""

    why: str
    do: str


def explained(one: Listed, story: Story, now: Now) -> Plain:
    """Return why a delivery is where it is, and what to do, in plain words."""
    mine = [each for each in story.journal if each.delivery == one.delivery]
    plain = _plain(one, story, mine, now)
    if one.maybe_sent and one.state in _WAITING and one.held_by != moves.AMBIGUOUS:
        return plain._replace(why=f"{plain.why} It may have gone already: an earlier try was cut.")
    return plain


def _plain(one: Listed, story: Story, mine: list[Tried], now: Now) -> Plain:
    over = [each for each in reversed(mine) if each.finished_at is not None]
    last = over[0] if over else None
    tried = next((each for each in over if not _is_asked(each) and not _is_move(each)), None)
    is_gone = now.is_gone(one)
    match one.state:
        case State.READY | State.DEFERRED | State.HELD if is_gone and one.held_by not in _LOOKED_AT:
            return _gone(one)
        case State.READY:
            return _ready(one, last, now)
        case State.LEASED:
            return _leased(mine[-1] if mine else None)
        case State.DEFERRED:
            return _deferred(one, tried, now)
        case State.HELD if one.held_by == moves.OPERATOR:
            return _held_by_operator(one, last, is_gone=is_gone)
        case State.HELD:
            return _held(one, story, tried, now)
        case State.SENT:
            return _sent(one, tried)
        case State.DELETED:
            at = f" at {stamp(last.finished_at)}" if _is_asked(last) else " while it was being sent"
            return Plain(f"Deleted by an operator{at}.", "")
        case State.FAILED:
            before = next((each for each in over if _is_try(each)), None)
            return _failed(one, story, tried, before, is_gone=is_gone)


def _words(one: Listed, story: Story, now: Now) -> dict[str, Json]:
    plain = explained(one, story, now)
    return {"why": plain.why, "do": plain.do}


def _ready(one: Listed, last: Tried | None, now: Now) -> Plain:
    if not now.is_running:
        return Plain("It waits for relayd, which is not running.", now.start)
    if now.clock:
        return Plain(*clock_words(now.clock))
    if now.spool:
        return Plain(*spool_words(now.spool))
    outage = now.down.get(one.upstream)
    if outage is not None:
        return Plain(*outage_words(one.upstream, outage))
    if last is not None and last.outcome in _TROUBLES:
        return Plain(
            f"It waits to be tried again. The last try{_label(last.code)}:"
            f" {_last_words(one, last)}",
            _do(last.code, last.http_status),
        )
    asked = f" An operator asked for it at {stamp(last.finished_at)}." if _is_asked(last) else ""
    if _is_move(last):
        asked = f" It was moved at {stamp(last.finished_at)}: {last.text}."
    return Plain(
        f"It waits for its turn: {_turn(one, now).why}{asked}",
        "Nothing; if it stays so, see relayd status.",
    )


_EXPIRED: Final = "expired"
"""The code of what was given up because its time was over: what stood in the way says more."""
_TROUBLES: Final = frozenset({"deferred", "misconfigured", "ambiguous"})
_BY_OPERATOR: Final = "by an operator"
"""What the journal says of a wish (spool.wishes)."""


def _is_asked(last: Tried | None) -> TypeGuard[Tried]:
    return last is not None and last.text == _BY_OPERATOR


def _is_move(last: Tried | None) -> TypeGuard[Tried]:
    return last is not None and last.outcome == moves.MOVED


def outage_words(name: str, outage: Outage) -> tuple[str, str]:
    """Return what an upstream's being down means, and what to do; sentences."""
    meaning = meaning_of(outage.cause)
    said = sentence(_told(outage.text, outage.cause) or meaning or outage.cause)
    if meaning and outage.text and _bare(meaning) not in _bare(said):
        said = f"{sentence(meaning)} ({_bare(said)})"
    again = f"Asked again in {max(round(outage.retry_in_s), 1)} s; then all goes."
    advice = _do(outage.cause, 0)
    return f"Upstream {name} is down{_label(outage.cause)}: {said}", f"{advice} {again}".strip()


def clock_words(trouble: str) -> tuple[str, str]:
    """Return what a wrong clock means, and what to do; sentences."""
    why = f"Nothing is sent: {trouble}. Mail is accepted and kept."
    return why, "Set it (timedatectl says how it stands); a minute after that all goes by itself."


def spool_words(trouble: str) -> tuple[str, str]:
    """Return what a spool that cannot be written means, and what to do; sentences."""
    why = (
        f"Nothing is sent: the spool cannot be written ({trouble}), and what became of mail"
        " could not be recorded."
    )
    return why, "Mend the disk (relayd status says how it stands); then all goes by itself."


def _label(code: str) -> str:
    """Return a code as `relayd explain` takes it, in brackets after a blank; "" for none."""
    return f" (AADSTS{code})" if code.isdecimal() else f" ({code})" if code else ""


def _told(text: str, code: str) -> str:
    """Return a text of the journal or a circuit without the advice, which is shown apart.

    Texts about tokens are "meaning: action (Entra trace …)", cut off where they are too long.
    """
    action = advice(code)
    start = text.find(f": {action[:_KNOWN_BY]}") if action else -1
    if start < 0:
        return text
    return f"{text[:start]}{text[start + 2 + len(action) :]}"


def _leased(current: Tried | None) -> Plain:
    since = stamp(current.started_at) if current else ""
    return Plain(f"It is being sent now{f', since {since}' if since else ''}.", "")


def _deferred(one: Listed, last: Tried | None, now: Now) -> Plain:
    times = "once" if one.attempts == 1 else f"{one.attempts} times"
    said = _last_words(one, last)
    why = f"Tried {times}: {said}" if said else f"Tried {times}."
    if not now.is_running:
        return Plain(f"{why} relayd is not running.", now.start)
    if now.clock:
        clock = clock_words(now.clock)
        return Plain(f"{why} {clock[0]}", clock[1])
    if now.spool:
        spool = spool_words(now.spool)
        return Plain(f"{why} {spool[0]}", spool[1])
    if now.is_due(one):
        why += f" Tried again when its turn comes: {_turn(one, now).why}"
    else:
        why += f" Tried again at {stamp(one.due_at)}."
    advice = _do(_code(one, last), last.http_status if last else 0)
    return Plain(why, advice or f"Nothing; to try at once: relayd queue retry {_id(one)}")


def _held_by_operator(one: Listed, last: Tried | None, *, is_gone: bool) -> Plain:
    at = f" at {stamp(last.finished_at)}" if _is_asked(last) else ""
    release = f"relayd queue release {_id(one)}"
    if is_gone:
        return Plain(
            f"Held by an operator{at}. {_missing(one)}", f"{_elsewhere(one)}, then {release}"
        )
    return Plain(f"Held by an operator{at}.", release)


def gone_words(upstream: str, *, is_sent: bool = False) -> str:
    """Return why nothing goes through an upstream that is not configured, and what to do; short.

    is_sent: what is meant was sent already: it cannot be moved, and need not be given up.
    """
    words = f"upstream {upstream} not configured: put it back, then relayd reload"
    return words if is_sent else f"{words}; or relayd queue move --upstream OTHER, or delete"


def _missing(one: Listed) -> str:
    return f"There is no [upstream.{one.upstream}] in the configuration any more."


def _elsewhere(one: Listed) -> str:
    """Return what gives mail of a missing upstream a way out again."""
    return (
        f"Put [upstream.{one.upstream}] back and relayd reload,"
        f" or relayd queue move --upstream OTHER {_id(one)}"
    )


def _gone(one: Listed) -> Plain:
    """Return the words for what waits for an upstream that is not configured."""
    is_refused = one.state is State.HELD and one.held_by != moves.missing(one.upstream)
    stays = f"{one.held_by} holds it still" if is_refused else "this mail goes by itself"
    before = f" It was held by {one.held_by} before." if is_refused else ""
    return Plain(
        f"{_missing(one)}{before}",
        f"Put it back, then relayd reload: {stays}."
        f" Or relayd queue move --upstream OTHER {_id(one)},"
        f" or give it up: relayd queue delete {_id(one)}",
    )


def _held(one: Listed, story: Story, last: Tried | None, now: Now) -> Plain:
    release = f"relayd queue release {_id(one)}"
    if now.is_gone(one):
        release = f"{_elsewhere(one)}, then {release}"
    if one.held_by == moves.CORRUPT:
        what = _bare(last.text) if last and last.text else "its content is damaged or gone"
        return Plain(
            f"The spool cannot give the message back: {what}. Look at the disk.",
            f"Have {one.user or one.device or 'the device'} send it again,"
            f" then relayd queue delete {_id(one)}",
        )
    if one.held_by == moves.AMBIGUOUS:
        at = f" at {stamp(last.finished_at)}" if last else ""
        what = _bare(last.text) if last and last.text else "the last try ended without an answer"
        ways = zip(story.journal, _ways(story), strict=True)
        mailbox = next((way.mailbox for each, way in ways if each is last), one.mailbox)
        return Plain(
            f"It may have been sent{at}: {what}.",
            f"Look for Message-ID {story.message_id or '(none)'} in Sent Items of {mailbox}."
            f" Not there: {release}. There: relayd queue delete {_id(one)}",
        )
    return _held_by_cause(one, last, now)


def _held_by_cause(one: Listed, last: Tried | None, now: Now) -> Plain:
    holds = [h for h in now.holds if h.cause == one.held_by and tuple(h.mailbox) == _ref(one)]
    # A row that never was tried itself, or failed of something else before.
    mine = last if last and (last.code or f"HTTP {last.http_status}") == one.held_by else None
    said = sentence(holds[0].text) if holds else _last_words(one, mine)
    do = [_do(one.held_by, 0)]
    if holds:
        probe = stamp(min(hold.probe_at for hold in holds))
        do.append(f"One such message is tried at {probe}; if that works, all go.")
    if one.held_by not in _PROLONGED:
        do.append(f"To try at once: relayd queue release {_id(one)}")
    return Plain(f"Held ({one.held_by}): {said}", " ".join(filter(None, do)))


def _sent(one: Listed, last: Tried | None) -> Plain:
    at = f" at {stamp(last.finished_at)}" if last else ""
    lost = [address for address, why in one.done.items() if why]
    if lost:
        return Plain(
            f"Microsoft took it over{at}, but not for {', '.join(lost)}.",
            "Correct the addresses in the device.",
        )
    return Plain(f"Microsoft took it over{at} and delivers it; relayd is done.", "")


def _failed(
    one: Listed, story: Story, last: Tried | None, tried: Tried | None, *, is_gone: bool
) -> Plain:
    said = _last_words(one, last)
    code, status = _code(one, last), last.http_status if last else 0
    if code == _EXPIRED:
        if tried is not None and tried is not last:
            said += f" The last try{_label(tried.code)}: {_last_words(one, tried)}"
        code, status = (tried.code, tried.http_status) if tried is not None else ("", 0)
    advice_ = _do(code, status)
    # What only took its time is over now, and the last try may be the one that found that.
    do = ["" if code == _EXPIRED or advice_.startswith("Nothing") else advice_]
    retry = f"relayd queue retry {_id(one)}"
    do.append(
        f"To send it after all: {f'{_elsewhere(one)}, then {retry}' if is_gone else retry}"
        if story.has_content
        else "Its content is not kept any more."
    )
    return Plain(f"Given up: {said}" if said else "Given up.", " ".join(filter(None, do)))


# ---- words for codes


def meaning_of(code: str) -> str:
    """Return what a code means, from the tables `relayd explain` has; "" if nobody knows."""
    meaning = aadsts.explain(code) if code else None
    if meaning is not None:
        return meaning.meaning
    row = catalogue.explain(*_graph(code)) if code else None
    return row.words if row is not None else ""


def advice(code: str, status: int = 0) -> str:
    """Return what to do about a code, or else a status; "" if the tables know nothing."""
    meaning = aadsts.explain(code) if code else None
    if meaning is not None:
        return meaning.action
    row = catalogue.explain(*_graph(code)) if code else None
    if row is None and status:
        row = catalogue.explain("", status)
    return row.advice if row is not None else ""


def _graph(code: str) -> tuple[str, int | None]:
    """Return code and status of a cause: "HTTP 403" stands for an answer without a code."""
    word, _, number = code.partition(" ")
    return ("", int(number)) if word == "HTTP" and number.isdecimal() else (code, None)


def _do(code: str, status: int) -> str:
    return sentence(advice(code, status))


def _last_words(one: Listed, last: Tried | None) -> str:
    """Return what became of the last try, a sentence; its code where nobody has words for it."""
    code = _code(one, last)
    text = _told(last.text, code) if last is not None else ""
    return sentence(text or meaning_of(code) or code)


def _code(one: Listed, last: Tried | None) -> str:
    return one.held_by or (last.code if last else "")


def sentence(text: str) -> str:
    """Return `text` with a capital and a full stop."""
    if not text:
        return ""
    end = "" if text.rstrip(")")[-1:] in ".!?" else "."
    return text[0].upper() + text[1:] + end


def _bare(text: str) -> str:
    """Return `text` fit to stand inside a sentence."""
    is_word = text[1:2].islower() or text[1:2] == " "
    return (text[:1].lower() + text[1:] if is_word else text).rstrip(".")


def _ref(one: Listed) -> tuple[str, str]:
    return (one.upstream, one.mailbox)


def _id(one: Listed) -> str:
    return queue_id_text(one.id)
