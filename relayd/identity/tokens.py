"""Access tokens as a worker sees them: held here, fetched by the cache daemon.

`TokenClient.token` costs a dictionary look-up while the held token is good; near its end
the next is asked for in the background. When the daemon or Entra is away, what is held is
used to its real end. A 401 drops a token only if it is the one held, so that ten late
401s of an old token do not throw away its successor.

    token          {upstream, credential}  -> {value, expires_boottime, fingerprint}
    token.refresh  the same, asked of Entra itself whatever is held (for operators)
    token.drop     {fingerprint, value}, no answer
    token.forget   {upstream, credential}  -> {held}: whatever is held (for operators)
    refused:       cause, text, {configuration, retry_after_s}, as TokenUnavailable
    token.changed  {fingerprint}, pushed to every worker after the two for operators

Neither msal nor requests may be imported from here.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
from collections.abc import Sequence
from dataclasses import field
from typing import Final

from relayd.cache import frames
from relayd.cache.client import Client, Tell
from relayd.cache.frames import Refused
from relayd.clock import SYSTEM, Clock
from relayd.config.model import Config, Upstream
from relayd.errors import CacheUnavailable, TokenUnavailable
from relayd.identity.credentials import Credential, credential_for
from relayd.values import frozen

AWAY: Final = "cache-unavailable"

_ASK_BEFORE_END_S: Final = 300.0
_ASK_BEFORE_END_SHARE: Final = 0.1  # of what is left when it arrives; for short lives
_ASK_AGAIN_S: Final = 5.0
_MARGIN_S: Final = 5.0
_MARGIN_SHARE: Final = 0.1
_ANSWER_SLACK_S: Final = 5.0
_TRIES: Final = 3
_AWAY_WAIT_S: Final = 5.0
_AWAY_RETRY_S: Final = 2.0
_LONGEST_CLAIM: Final = 200


@frozen
class Token:
    """The right to call Microsoft for a while.

    expires_boottime: CLOCK_BOOTTIME seconds, comparable between processes of one boot.
    fingerprint:      of the credential it was issued to.
    """

    value: str = field(repr=False)
    expires_boottime: float
    fingerprint: str = field(repr=False)

    def payload(self) -> frames.Payload:
        """Return the form for the cache socket."""
        return {
            "value": self.value,
            "expires_boottime": self.expires_boottime,
            "fingerprint": self.fingerprint,
        }


def parse_token(payload: frames.Payload) -> Token:
    """Return what `payload` was made from; raises frames.Garbage."""
    return Token(
        frames.text(payload, "value"),
        frames.number(payload, "expires_boottime"),
        frames.text(payload, "fingerprint"),
    )


@frozen
class Claims:
    """What a token says of itself, unverified: for diagnosis only.

    roles:      application permissions; empty: nobody has consented in Entra, so that only
                Exchange's RBAC for Applications may let it in.
    expires_at: Unix seconds; 0 if unknown.
    app_id, tenant, audience: whom it was issued to, in which tenant, for what; "" if unknown.
    object_id:  of the enterprise application (service principal), as Exchange knows it.
    """

    roles: tuple[str, ...] = ()
    expires_at: int = 0
    app_id: str = ""
    tenant: str = ""
    audience: str = ""
    object_id: str = ""


def claims_of(value: str) -> Claims:
    """Read a JWT's claims; empty Claims for anything that is none."""
    try:
        body = value.split(".")[1]
        members = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError, binascii.Error, RecursionError):
        return Claims()
    if not isinstance(members, dict):
        return Claims()
    roles, ends = members.get("roles"), members.get("exp")
    return Claims(
        tuple(role for role in roles if isinstance(role, str)) if isinstance(roles, list) else (),
        ends if isinstance(ends, int) else 0,
        app_id=_word(members.get("appid", members.get("azp"))),
        tenant=_word(members.get("tid")),
        audience=_word(members.get("aud")),
        object_id=_word(members.get("oid")),
    )


def _word(value: object) -> str:
    return value[:_LONGEST_CLAIM] if isinstance(value, str) and value.isprintable() else ""


class _Held:
    """What this worker knows of one upstream's token."""

    def __init__(self, credential: Credential) -> None:
        self.credential = credential
        self.token: Token | None = None
        self.good_until = 0.0  # boottime; the token's end, less the time a request may need
        self.ask_at = 0.0  # boottime
        self.flight: _Flight | None = None


class _Flight:
    """One question under way to the daemon, and those who wait for it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.token: Token | None = None
        self.failure: TokenUnavailable | None = None


class TokenClient:
    """The tokens of this worker; any greenlet or thread may call it."""

    def __init__(self, client: Client, config: Config, *, clock: Clock = SYSTEM) -> None:
        self._client = client
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        client.on_connect(self._reconnected)
        client.on_push("token.changed", self._changed)

    def token(self, upstream: Upstream) -> Token:
        """Return a token that is good now.

        Waits for Entra only when none is held, at most token_timeout + 5 s.
        raises: TokenUnavailable.
        """
        held = self._held.get(upstream.name) or self._hold(upstream)
        token, now = held.token, self._clock.boottime()
        if token is not None and now < held.good_until:
            if now >= held.ask_at:
                self._ask_behind(upstream.name, held)
            return token
        flight, is_mine = self._board(held)
        if is_mine:
            self._fly(upstream.name, held, flight)
        elif not flight.done.wait(held.credential.token_timeout_s + 2 * _ANSWER_SLACK_S):
            raise TokenUnavailable(AWAY, "no token came in time", configuration=False)
        if flight.token is None:
            raise flight.failure or TokenUnavailable(AWAY, "no token", configuration=False)
        return flight.token

    def drop(self, upstream: Upstream, token: Token) -> None:
        """Forget `token`, which Microsoft refused with 401; another one held is left alone."""
        held = self._held.get(upstream.name)
        if held is None:
            return
        with self._lock:
            if held.token is not None and held.token.value == token.value:
                held.token = None
        try:
            self._client.tell(
                "token.drop", {"fingerprint": token.fingerprint, "value": token.value}
            )
        except CacheUnavailable:
            return  # a daemon that comes back has no token to drop

    def refresh(self, upstream: Upstream) -> Token:
        """Have Entra asked for a new one, whatever is held; every worker uses it from then on.

        For operators who mended something. Waits at most token_timeout + 5 s.
        raises: TokenUnavailable; what was held before stays in use then.
        """
        held = self._held.get(upstream.name) or self._hold(upstream)
        token = self._ask(upstream.name, held.credential, "token.refresh")
        with self._lock:
            self._keep(held, token)
        return token

    def forget(self, upstream: Upstream) -> bool:
        """Forget the token everywhere; the next mail asks for another. False: none was held.

        raises: CacheUnavailable, cache.frames.Refused.
        """
        held = self._held.get(upstream.name) or self._hold(upstream)
        payload: frames.Payload = {
            "upstream": upstream.name,
            "credential": held.credential.payload(),
        }
        answer = self._client.call("token.forget", payload, timeout_s=_ANSWER_SLACK_S)
        with self._lock:
            held.token = None
        return answer.get("held") is True

    def warm(self, upstreams: Sequence[Upstream]) -> None:
        """Ask for these upstreams' tokens in the background, so that the first mail need not
        wait and a wrong secret is logged at start, not at night.
        """
        for upstream in upstreams:
            self._ask_behind(upstream.name, self._held.get(upstream.name) or self._hold(upstream))

    def _hold(self, upstream: Upstream) -> _Held:
        with self._lock:
            return self._held.setdefault(
                upstream.name, _Held(credential_for(self._config, upstream))
            )

    def _board(self, held: _Held) -> tuple[_Flight, bool]:
        """Return the question under way, and whether the caller must ask it."""
        with self._lock:
            if held.flight is not None:
                return held.flight, False
            held.flight = _Flight()
            return held.flight, True

    def _ask_behind(self, name: str, held: _Held) -> None:
        """Ask without making anybody wait; what is held stays in use."""
        held.ask_at = self._clock.boottime() + _ASK_AGAIN_S
        flight, is_mine = self._board(held)
        if is_mine:
            threading.Thread(
                target=self._fly, args=(name, held, flight), name="token", daemon=True
            ).start()

    def _fly(self, name: str, held: _Held, flight: _Flight) -> None:
        """Ask the daemon and tell everybody who waits; never raises."""
        try:
            flight.token = self._ask(name, held.credential)
        except TokenUnavailable as error:
            flight.failure = error
        with self._lock:
            if flight.token is not None:
                self._keep(held, flight.token)
            held.flight = None
        flight.done.set()

    def _ask(self, name: str, credential: Credential, method: str = "token") -> Token:
        """Ask the daemon, again if it died meanwhile: its successor is a second away."""
        payload: frames.Payload = {"upstream": name, "credential": credential.payload()}
        deadline = self._clock.monotonic() + credential.token_timeout_s + _ANSWER_SLACK_S
        away_deadline = self._clock.monotonic() + _AWAY_WAIT_S
        for _ in range(_TRIES):
            if not self._client.wait_connected(max(0.0, away_deadline - self._clock.monotonic())):
                break
            left_s = max(0.0, deadline - self._clock.monotonic())
            try:
                return parse_token(self._client.call(method, payload, timeout_s=left_s))
            except Refused as error:
                raise unavailable(error) from error
            except frames.Garbage as error:
                raise TokenUnavailable(AWAY, str(error), configuration=False) from error
            except CacheUnavailable:
                continue
        raise TokenUnavailable(
            AWAY,
            "the cache daemon does not answer; the master brings it back",
            configuration=False,
            retry_after_s=_AWAY_RETRY_S,
        )

    def _keep(self, held: _Held, token: Token) -> None:
        left = token.expires_boottime - self._clock.boottime()
        held.token = token
        held.good_until = token.expires_boottime - min(_MARGIN_S, left * _MARGIN_SHARE)
        before_end = min(_ASK_BEFORE_END_S, left * _ASK_BEFORE_END_SHARE)
        held.ask_at = max(
            token.expires_boottime - before_end, self._clock.boottime() + _ASK_AGAIN_S
        )

    def _changed(self, payload: frames.Payload) -> None:
        """An operator had the daemon fetch or forget a token: ours is not to be used any more."""
        fingerprint = payload.get("fingerprint")
        with self._lock:
            for held in self._held.values():
                if held.token is not None and held.token.fingerprint == fingerprint:
                    held.token = None

    def _reconnected(self, _tell: Tell) -> None:
        """Have a restarted daemon know what is in use here, so that it refreshes in time."""
        for held in list(self._held.values()):
            held.ask_at = 0.0


def unavailable(error: Refused) -> TokenUnavailable:
    """Return a daemon's refusal as what the rest of relayd handles."""
    wish = error.detail.get("retry_after_s")
    return TokenUnavailable(
        error.cause,
        error.text,
        configuration=error.detail.get("configuration") is True,
        retry_after_s=float(wish) if isinstance(wish, int | float) else None,
    )
