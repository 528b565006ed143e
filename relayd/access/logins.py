"""Logins in a worker: verified one at a time off the hub, remembered, slowed when wrong.

    back-off? -> remembered? -> wait for the turn -> both again -> hash in the pool -> verdict

One verification takes a core for some 20 ms, so it has a thread pool of its own (gevent's
serves name lookups too) and one turn; who waits too long is told to come back, never that
the password is wrong. Right passwords are remembered for a while, as an HMAC under a key
of this process. Wrong ones cost tokens: of (peer, user), and of peer. Never of the user
alone, or one wrongly set camera would lock a UPS out. A name that does not exist takes the
same way and the same time as one that does.

Source: RFC 4954 §4 (535 and 454), OWASP Authentication Cheat Sheet.
"""

from __future__ import annotations

import functools
import hmac
import ipaddress
import secrets
from collections import OrderedDict
from dataclasses import field
from typing import Final, TypeAlias

import gevent
from gevent.lock import BoundedSemaphore
from gevent.threadpool import ThreadPool

from relayd.access import passwords
from relayd.access.networks import fold_ip
from relayd.access.users import Users
from relayd.clock import SYSTEM, Clock
from relayd.config.model import User
from relayd.values import frozen

WAIT_S: Final = 10.0
"""Longest wait for a verdict; devices give up on AUTH after 20 to 60 s."""
_REMEMBER_S: Final = 600.0
_MOST_REMEMBERED: Final = 1024
_LONGEST: Final = 1024  # characters of a name or password that are looked at


@frozen
class Accepted:
    """The password is the user's."""

    user: User


@frozen
class Rejected:
    """It is not, or was not looked at: answer 535. reason: for the log, never for the client."""

    reason: str


@frozen
class Unavailable:
    """Nobody can say now: answer 454. reason: for the log."""

    reason: str


Verdict: TypeAlias = Accepted | Rejected | Unavailable


class Allowance:
    """How many wrong tries each key has left: a bucket of tokens that fills with time.

    most:    tokens in a full bucket; refill_s: seconds for one more; kept: most keys, the
             longest unused forgotten first.
    """

    __slots__ = ("_buckets", "_kept", "_most", "_refill_s")

    def __init__(self, *, most: int, refill_s: float, kept: int = 4096) -> None:
        self._most = most
        self._refill_s = refill_s
        self._kept = kept
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, as of

    def left(self, key: str, now: float) -> float:
        """Return the tokens `key` has at `now` (monotonic)."""
        if key not in self._buckets:
            return float(self._most)
        tokens, as_of = self._buckets[key]
        return min(float(self._most), tokens + (now - as_of) / self._refill_s)

    def take(self, key: str, now: float) -> None:
        """Take one token; never below zero."""
        self._buckets[key] = (max(0.0, self.left(key, now) - 1), now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._kept:
            self._buckets.popitem(last=False)

    def fill(self, key: str) -> None:
        """Give all tokens back, after a try that was right."""
        self._buckets.pop(key, None)


@frozen(kw_only=True)
class _Attempt:
    """One login. pair, place: keys of its allowances; digest: under which it is remembered."""

    pair: str
    place: str
    password: str = field(repr=False)
    user: User | None
    digest: bytes


@functools.lru_cache(maxsize=1024)
def _place(peer: str) -> str:
    """Return what a peer is counted as: its address; of IPv6 the /64, which one host owns."""
    ip = fold_ip(peer)
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((ip, 64), strict=False))
    return str(ip) if ip is not None else peer[:64]


class Verifier:
    """Judges logins for one worker; any greenlet may call it, each blocks only itself."""

    def __init__(self, users: Users, *, clock: Clock = SYSTEM, wait_s: float = WAIT_S) -> None:
        self._users = users
        self._clock = clock
        self._wait_s = wait_s
        self._pool = ThreadPool(1)
        self._turn = BoundedSemaphore(1)
        self._key = secrets.token_bytes(32)
        self._remembered: OrderedDict[bytes, float] = OrderedDict()  # until, monotonic
        # A wrongly set device retries for ever: after 5 tries once a minute is enough, and that
        # leaves its neighbours behind the same address room.
        self._pairs = Allowance(most=5, refill_s=60.0)
        self._peers = Allowance(most=20, refill_s=5.0)

    def verify(self, peer: str, name: str, password: str) -> Verdict:
        """Judge a login; waits up to `wait_s`.

        peer:     address of the client as text.
        password: as sent; surrogates for octets that are no UTF-8.
        """
        if len(name) > _LONGEST or len(password) > _LONGEST:
            return Rejected("name or password too long")
        self._users.refresh()
        user = self._users.find(name)
        place = _place(peer)
        attempt = _Attempt(
            pair=f"{place} {name}",
            place=place,
            password=password,
            user=user,
            digest=self._digest(name, password, user),
        )
        verdict = self._at_once(attempt)
        if verdict is not None:
            return verdict
        limit = gevent.Timeout(self._wait_s)
        try:
            with limit, self._turn:
                # Asked again: whoever had the turn before may have been the same device.
                return self._at_once(attempt) or self._hashed(attempt)
        except gevent.Timeout as fired:
            if fired is not limit:
                raise
        return Unavailable(f"no turn to verify a password within {self._wait_s:g} s")

    def close(self) -> None:
        """Let the thread go; a login after it starts another."""
        self._pool.kill()

    def _at_once(self, attempt: _Attempt) -> Verdict | None:
        """Judge without hashing; None: only a hash can tell."""
        now = self._clock.monotonic()
        # SECURITY: asked before anything else: a blocked guesser must not learn whether the
        # password is right, nor cost us a hash.
        if self._pairs.left(attempt.pair, now) < 1 or self._peers.left(attempt.place, now) < 1:
            return Rejected("too many wrong tries from here, so not looked at; wait a minute")
        if attempt.user is not None and self._remembers(attempt.digest, now):
            self._pairs.fill(attempt.pair)
            return Accepted(attempt.user)
        return None

    def _hashed(self, attempt: _Attempt) -> Verdict:
        """Judge by the hash; the turn is ours, so tries cannot get past the gate together."""
        user = attempt.user
        stored = user.password_hash.reveal() if user is not None else ""
        # SECURITY: an unknown name costs what a known one does, or time would tell them apart.
        job = self._pool.spawn(passwords.verify, stored or passwords.DUMMY_HASH, attempt.password)
        right = bool(job.get())
        now = self._clock.monotonic()
        if right and stored and user is not None:
            self._pairs.fill(attempt.pair)
            self._remember(attempt.digest, now)
            return Accepted(user)
        self._pairs.take(attempt.pair, now)
        self._peers.take(attempt.place, now)
        if user is None:
            return Rejected("no such user")
        return Rejected("wrong password" if stored else "the user has no password hash")

    # SECURITY: what is kept must not be a faster way to guess the password than the hash: a
    # keyed digest, the key in this process only. The stored hash is in it, so that a changed
    # password is forgotten at once.
    def _digest(self, name: str, password: str, user: User | None) -> bytes:
        stored = user.password_hash.reveal() if user is not None else ""
        parts = [part.encode("utf-8", "surrogatepass") for part in (name, password, stored)]
        octets = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._key, octets, "sha256")

    def _remembers(self, digest: bytes, now: float) -> bool:
        until = self._remembered.get(digest)
        if until is None:
            return False
        if until <= now:
            del self._remembered[digest]
            return False
        return True

    def _remember(self, digest: bytes, now: float) -> None:
        self._remembered[digest] = now + _REMEMBER_S
        self._remembered.move_to_end(digest)
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
