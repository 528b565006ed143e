"""The tokens of the whole relay, in the cache daemon.

For each credential (by its fingerprint):

    one question at a time    a thousand askers, one request to Entra (single flight)
    refreshed early           when 80 % of its life is gone, or 10 min are left; in the
                              background, while the old one is still handed out
    the last good one         is handed out to its real end, however Entra feels
    failures are remembered   configuration 60 s; passing ones 1, 2, 4 … 30 s; 429 as long as
                              it says. A changed credential has another fingerprint and so
                              no past; `refresh` (an operator who mended something) asks now
    refused by Microsoft      (401) is dropped, but no oftener than each 30 s: Entra takes a
                              client that asks again and again for a loop (AADSTS50196)
    nobody wants it           (its workers have gone): no refresh, forgotten after 10 min

Belongs to the daemon's loop: called by one thread only, never blocks. `start` takes a
question to a pool and brings its outcome back to that thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import structlog

from relayd.clock import SYSTEM, Clock
from relayd.errors import TokenUnavailable
from relayd.identity.credentials import Credential
from relayd.identity.tokens import Token, claims_of
from relayd.observe import metrics
from relayd.values import frozen

log = structlog.get_logger()

CONFIGURATION_PAUSE_S: Final = 60.0
SHORTEST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
DROP_PAUSE_S: Final = 30.0
_REFRESH_SHARE: Final = 0.8
_REFRESH_LEFT_S: Final = 600.0
_REFRESH_SOONEST_SHARE: Final = 0.5  # of a short life
_MARGIN_S: Final = 5.0
_MARGIN_SHARE: Final = 0.1
_LATE_S: Final = 3.0  # after the credential's own time-out: name lookup hangs
_UNWANTED_S: Final = 600.0

REFUSED_BY_GRAPH: Final = "token-refused"
LATE: Final = "entra-unreachable"

Outcome: TypeAlias = Token | TokenUnavailable
Told: TypeAlias = Callable[[Outcome], None]
Start: TypeAlias = Callable[[Credential, Callable[["Fetched"], None]], None]


@frozen
class Fetched:
    """What became of one question. life_s: counted from when it was asked."""

    outcome: str | TokenUnavailable = field(repr=False)
    life_s: float = 0.0
    by_next_secret: bool = False


@dataclass(slots=True)
class _Failure:
    """Why there is none, and until when nobody need ask again."""

    why: TokenUnavailable
    until: float  # boottime
    count: int


@dataclass(slots=True)
class _Flight:
    """A question under way. late: nobody waits for it any more."""

    asked_at: float  # boottime
    waiting: list[Told] = field(default_factory=list)
    late: bool = False


@dataclass(slots=True)
class _Entry:
    credential: Credential
    fingerprint: str
    upstreams: set[str] = field(default_factory=set)
    wanted_by: set[int] = field(default_factory=set)
    unwanted_since: float = 0.0
    token: Token | None = None
    issued_at: float = 0.0
    good_until: float = 0.0
    refresh_at: float = 0.0
    flight: _Flight | None = None
    failure: _Failure | None = None
    by_next_secret: bool = False

    @property
    def name(self) -> str:
        """The upstreams it serves, for log lines."""
        return ",".join(sorted(self.upstreams))


@frozen(kw_only=True)
class TokenState:
    """For `relayd status`. expires_in_s: 0 when none is held; cause "" when all is well."""

    upstreams: tuple[str, ...]
    tenant: str
    client_id: str
    expires_in_s: float
    roles: tuple[str, ...]
    cause: str
    text: str
    configuration: bool
    next_try_in_s: float
    by_next_secret: bool


class TokenCache:
    """See above.

    start:     begins a fetch; calls back on the loop's thread, exactly once.
    forgotten: told the fingerprint of a credential that is no longer kept.
    """

    def __init__(
        self,
        start: Start,
        *,
        forgotten: Callable[[str], None] = lambda _fingerprint: None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._start = start
        self._forgotten = forgotten
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    def ask(self, credential: Credential, *, upstream: str, asker: int, told: Told) -> None:
        """Have `told` called with a token or the reason why not: now, or when Entra answers.

        asker: the connection that asks; see `left`.
        """
        entry = self._entry(credential, upstream, asker)
        now = self._clock.boottime()
        if entry.token is not None and now < entry.good_until:
            told(entry.token)
            self._refresh_if_due(entry, now)
        elif entry.flight is not None and not entry.flight.late:
            entry.flight.waiting.append(told)
        elif entry.flight is not None:
            told(_late(entry.credential))
        elif entry.failure is not None and now < entry.failure.until:
            told(_remembered(entry.failure, now))
        else:
            self._fly(entry, [told])

    def refresh(self, credential: Credential, *, upstream: str, asker: int, told: Told) -> None:
        """Ask Entra now, whatever is held or remembered: an operator has mended something."""
        entry = self._entry(credential, upstream, asker)
        entry.failure = None
        if entry.flight is not None and not entry.flight.late:
            entry.flight.waiting.append(told)
        else:
            self._fly(entry, [told])

    def drop(self, fingerprint: str, value: str) -> None:
        """Forget the token that Microsoft refused, if it is still the one held."""
        entry = self._entries.get(fingerprint)
        if entry is None or entry.token is None or entry.token.value != value:
            return
        now = self._clock.boottime()
        entry.token = None
        log.warning("token.dropped", upstream=entry.name, age_s=round(now - entry.issued_at))
        wait_until = entry.issued_at + DROP_PAUSE_S
        if now < wait_until:
            why = TokenUnavailable(
                REFUSED_BY_GRAPH,
                "Microsoft refuses a token that Entra has only just issued;"
                " compare graph_scope and `cloud` with the tenant, and this host's clock",
                configuration=False,
            )
            entry.failure = _Failure(why, wait_until, 0)

    def forget(self, credential: Credential) -> bool:
        """Forget token and failure, for an operator; the next question goes to Entra.

        returns: whether a token was held.
        """
        entry = self._entries.get(credential.fingerprint())
        if entry is None:
            return False
        was_held = entry.token is not None and self._clock.boottime() < entry.good_until
        entry.token, entry.failure = None, None
        return was_held

    def left(self, asker: int) -> None:
        """A connection has ended: what only it wanted is no longer refreshed."""
        for entry in self._entries.values():
            if asker in entry.wanted_by:
                entry.wanted_by.discard(asker)
                entry.unwanted_since = self._clock.boottime()

    def tick(self) -> None:
        """Do what time has made due; call it about once a second."""
        now = self._clock.boottime()
        for entry in list(self._entries.values()):
            if entry.flight is not None:
                self._answer_late(entry, entry.flight, now)
            elif entry.wanted_by:
                self._refresh_if_due(entry, now)
            elif now >= entry.unwanted_since + _UNWANTED_S:
                del self._entries[entry.fingerprint]
                self._forgotten(entry.fingerprint)

    def states(self) -> tuple[TokenState, ...]:
        """Return what is held and what is wrong, without any secret."""
        now = self._clock.boottime()
        return tuple(_state(entry, now) for entry in self._entries.values() if entry.wanted_by)

    def _entry(self, credential: Credential, upstream: str, asker: int) -> _Entry:
        fingerprint = credential.fingerprint()
        entry = self._entries.get(fingerprint)
        if entry is None:
            entry = self._entries[fingerprint] = _Entry(credential, fingerprint)
        entry.upstreams.add(upstream)
        entry.wanted_by.add(asker)
        return entry

    def _refresh_if_due(self, entry: _Entry, now: float) -> None:
        if entry.token is None or entry.flight is not None or now < entry.refresh_at:
            return
        if entry.failure is None or now >= entry.failure.until:
            self._fly(entry, [])

    def _fly(self, entry: _Entry, waiting: list[Told]) -> None:
        flight = _Flight(self._clock.boottime(), waiting)
        entry.flight = flight
        self._start(entry.credential, lambda fetched: self._landed(entry, flight, fetched))

    def _landed(self, entry: _Entry, flight: _Flight, fetched: Fetched) -> None:
        if entry.flight is flight:
            entry.flight = None
        result: Outcome
        if isinstance(fetched.outcome, str):
            result = self._succeed(entry, flight, fetched, fetched.outcome)
        else:
            result = self._fail(entry, fetched.outcome)
        for told in flight.waiting:
            told(result)

    def _succeed(self, entry: _Entry, flight: _Flight, fetched: Fetched, value: str) -> Token:
        asked, life = flight.asked_at, fetched.life_s
        token = Token(value, asked + life, entry.fingerprint)
        entry.token, entry.issued_at, entry.failure = token, self._clock.boottime(), None
        entry.good_until = token.expires_boottime - min(_MARGIN_S, life * _MARGIN_SHARE)
        entry.refresh_at = asked + max(
            life * _REFRESH_SOONEST_SHARE, min(life * _REFRESH_SHARE, life - _REFRESH_LEFT_S)
        )
        took_s = round(self._clock.boottime() - asked, 3)
        roles = ",".join(claims_of(value).roles)
        log.info(
            "token.acquired",
            upstream=entry.name,
            expires_in_s=round(life),
            took_s=took_s,
            roles=roles,
        )
        if fetched.by_next_secret and not entry.by_next_secret:
            log.warning(
                "token.next_secret",
                upstream=entry.name,
                text="client_secret is refused, next_client_secret works: make it client_secret",
            )
        entry.by_next_secret = fetched.by_next_secret
        self._count(entry, "ok")
        return token

    def _fail(self, entry: _Entry, why: TokenUnavailable) -> TokenUnavailable:
        now, before = self._clock.boottime(), entry.failure
        count = before.count + 1 if before is not None else 1
        entry.failure = _Failure(why, now + _pause_s(why, count), count)
        is_news = before is None or before.why.cause != why.cause
        (log.warning if is_news else log.debug)(
            "token.failed",
            upstream=entry.name,
            cause=why.cause,
            text=why.text,
            configuration=why.configuration,
            held_s=round(max(0.0, entry.good_until - now)) if entry.token else 0,
        )
        self._count(entry, why.cause)
        return _remembered(entry.failure, now)

    def _answer_late(self, entry: _Entry, flight: _Flight, now: float) -> None:
        """Do not let askers wait for a name lookup that hangs."""
        if not flight.late and now >= flight.asked_at + entry.credential.token_timeout_s + _LATE_S:
            flight.late = True
            waiting, flight.waiting = flight.waiting, []
            for told in waiting:
                told(_late(entry.credential))

    def _count(self, entry: _Entry, result: str) -> None:
        for upstream in entry.upstreams:
            metrics.count("relayd_token_requests_total", upstream=upstream, result=result)
            if entry.token is not None:
                left_s = entry.token.expires_boottime - self._clock.boottime()
                metrics.gauge(
                    "relayd_token_expiry_timestamp_seconds",
                    self._clock.utcnow().timestamp() + left_s,
                    upstream=upstream,
                )


def _pause_s(why: TokenUnavailable, count: int) -> float:
    """Return how long the `count`-th failure in a row (from 1) is believed, seconds."""
    if why.retry_after_s is not None:
        return max(SHORTEST_PAUSE_S, why.retry_after_s)
    if why.configuration:
        return CONFIGURATION_PAUSE_S
    return float(min(LONGEST_PAUSE_S, SHORTEST_PAUSE_S * 2 ** min(count - 1, 10)))


def _remembered(failure: _Failure, now: float) -> TokenUnavailable:
    why = failure.why
    return TokenUnavailable(
        why.cause,
        why.text,
        configuration=why.configuration,
        retry_after_s=max(0.0, failure.until - now),
    )


def _late(credential: Credential) -> TokenUnavailable:
    words = f"no answer within {credential.token_timeout_s:g} s; does name resolution work?"
    return TokenUnavailable(LATE, words, configuration=False, retry_after_s=_LATE_S)


def _state(entry: _Entry, now: float) -> TokenState:
    token, failure = entry.token, entry.failure
    return TokenState(
        upstreams=tuple(sorted(entry.upstreams)),
        tenant=entry.credential.tenant,
        client_id=entry.credential.client_id,
        expires_in_s=max(0.0, token.expires_boottime - now) if token else 0.0,
        roles=claims_of(token.value).roles if token else (),
        cause=failure.why.cause if failure else "",
        text=failure.why.text if failure else "",
        configuration=failure.why.configuration if failure else False,
        next_try_in_s=max(0.0, failure.until - now) if failure else 0.0,
        by_next_secret=entry.by_next_secret,
    )
