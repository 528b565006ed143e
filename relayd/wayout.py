"""Answers operators about the way out: tokens, a mailbox's permission, what is held back.

For `relayd token` and `relayd doctor`, in a worker, on control.sock (docs/control.md). A member
of group relayd-admin may ask though the secret is not theirs to read: the token is the running
relay's own, and never leaves it.

    token.test      a token is had, from what is held or from Entra; what it says of itself
    token.refresh   the same, from Entra in any case; every worker uses it from then on
    token.drop      what is held is forgotten
    mailbox.test    Microsoft is asked whether it may be sent through (deliver.probe)
    upstream.holds  the mailboxes that are refused, why, and when they are tried again
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeAlias

from relayd.cache.frames import Refused
from relayd.clock import SYSTEM, Clock
from relayd.config.clouds import endpoints
from relayd.config.model import Config, Upstream
from relayd.deliver import probe
from relayd.deliver.silence import Silence
from relayd.errors import CacheUnavailable, TokenUnavailable
from relayd.identity import aadsts
from relayd.identity.tokens import Token, TokenClient, claims_of
from relayd.master.frames import Frame, Json, done, refused
from relayd.net.http import pool
from relayd.queueview import advice, meaning_of
from relayd.spool.store import Hold

Answers: TypeAlias = Callable[[Frame], Iterator[Frame]]

WRONG_USAGE: Final = 2
_PROBE_S: Final = 20.0
_MAX_HOLDS: Final = 500


class WayOut:
    """One worker's answers. holds: those in force now, of the spool."""

    def __init__(
        self,
        config: Config,
        tokens: TokenClient,
        holds: Callable[[], Sequence[Hold]],
        *,
        clock: Clock = SYSTEM,
    ) -> None:
        self._config = config
        self._tokens = tokens
        self._holds = holds
        self._clock = clock

    def commands(self) -> Mapping[str, Answers]:
        """Return what is answered here."""
        return {
            "token.test": lambda request: self._each(request, self._tokens.token),
            "token.refresh": lambda request: self._each(request, self._tokens.refresh),
            "token.drop": self._drop,
            "mailbox.test": self._test_mailbox,
            "upstream.holds": self._show_holds,
        }

    def _meant(self, request: Frame) -> list[Upstream]:
        """Return the upstreams a request is about; "": all. raises: ValueError with words."""
        return meant(self._config, str(request.get("upstream") or ""))

    def _each(self, request: Frame, get: Callable[[Upstream], Token]) -> Iterator[Frame]:
        """Yield a frame for each upstream, as soon as its answer is there."""
        upstreams = self._meant(request)
        for number, upstream in enumerate(upstreams, 1):
            try:
                token = get(upstream)
            except TokenUnavailable as why:
                row = failed_row(upstream, why)
            else:
                left_s = token.expires_boottime - self._clock.boottime()
                row = token_row(upstream, token.value, left_s)
            yield done(row, more=number < len(upstreams))

    def _drop(self, request: Frame) -> Iterator[Frame]:
        upstreams = self._meant(request)
        for number, upstream in enumerate(upstreams, 1):
            try:
                was_held = self._tokens.forget(upstream)
            except (CacheUnavailable, Refused) as error:
                why = TokenUnavailable("cache-unavailable", str(error), configuration=False)
                row = failed_row(upstream, why)
            else:
                row = {"upstream": upstream.name, "state": "dropped" if was_held else "none"}
            yield done(row, more=number < len(upstreams))

    def _show_holds(self, request: Frame) -> Iterator[Frame]:
        upstreams = self._meant(request)
        names = {one.name for one in upstreams}
        boxes: dict[str, Json] = {
            one.name: [*probe.mailboxes(self._config, one)] for one in upstreams
        }
        rows: list[Json] = [
            {
                "upstream": hold.mailbox.upstream,
                "mailbox": hold.mailbox.mailbox,
                "from": hold.header_from,
                "cause": hold.cause,
                "text": hold.text,
                "since": stamp(hold.since),
                "probe_at": stamp(hold.probe_at),
            }
            for hold in self._holds()
            if hold.mailbox.upstream in names
        ]
        yield done({"holds": rows[:_MAX_HOLDS], "mailboxes": boxes})

    def _test_mailbox(self, request: Frame) -> Iterator[Frame]:
        name = str(request.get("upstream") or "")
        upstream = meant(self._config, name)[0] if name else None
        mailbox = str(request.get("mailbox") or "")
        known = probe.mailboxes(self._config, upstream) if upstream else ()
        # SECURITY: an operator may look at what the relay sends through, not at any mailbox.
        if upstream is None or mailbox.lower() not in {one.lower() for one in known}:
            told = ", ".join(known) or "none that is known"
            yield refused(
                f"upstream {name!r} does not send through {mailbox!r}; it has: {told}",
                exit_code=WRONG_USAGE,
            )
            return
        until = self._silent_until(upstream.name, mailbox)
        if until is not None:
            yield done({"upstream": name, "mailbox": mailbox, "state": "silent",
                        "until": stamp(until)})  # fmt: skip
            return
        try:
            token = self._tokens.token(upstream)
        except TokenUnavailable as why:
            yield done({**failed_row(upstream, why), "mailbox": mailbox, "state": "no token"})
            return
        yield done(self._asked(upstream, mailbox, token.value))

    def _asked(self, upstream: Upstream, mailbox: str, token: str) -> dict[str, Json]:
        cloud = endpoints(self._config, upstream)
        try:
            ways = pool(self._config.http, ca_file=cloud.ca_file)
        except (OSError, ssl.SSLError, ValueError) as error:
            return {
                "upstream": upstream.name, "mailbox": mailbox, "state": "unknown", "cause": "",
                "http_status": 0, "request_id": "", "text": str(error),
            }  # fmt: skip
        with ways:
            found = probe.ask(
                ways, cloud.graph, mailbox, token, timeout_s=_PROBE_S, clock=self._clock
            )
        silence = Silence(self._config.server.state_dir, clock=self._clock)
        if found.cause == probe.DENIED:
            silence.note(upstream.name, mailbox)
        elif found.verdict is probe.Verdict.MAY_SEND:
            silence.lift(upstream.name, mailbox)
        return {
            "upstream": upstream.name,
            "mailbox": mailbox,
            "state": found.verdict.value,
            "cause": found.cause,
            "http_status": found.answer.status,
            "request_id": found.answer.request_id,
            "text": found.answer.text,
        }

    def _silent_until(self, upstream: str, mailbox: str) -> datetime | None:
        noted = Silence(self._config.server.state_dir, clock=self._clock).until(upstream, mailbox)
        held = [
            hold.probe_at
            for hold in self._holds()
            if hold.cause == probe.DENIED
            and hold.mailbox.upstream == upstream
            and hold.mailbox.mailbox == mailbox.lower()
            and hold.probe_at > self._clock.utcnow()
        ]
        return max([*held, *([noted] if noted else [])], default=None)


def meant(config: Config, name: str) -> list[Upstream]:
    """Return the upstream of that name, or all for ""; raises ValueError with words."""
    there = ", ".join(one.name for one in config.upstream)
    if not there:
        raise ValueError("no upstream is configured yet; next step: relayd setup")
    found = [one for one in config.upstream if name in ("", one.name)]
    if not found:
        raise ValueError(f"no upstream named {name!r}; there are: {there}")
    return found


def token_row(upstream: Upstream, value: str, left_s: float) -> dict[str, Json]:
    """Return what may be shown of a token: all but itself."""
    claims = claims_of(value)
    return {
        "upstream": upstream.name,
        "state": "ok",
        "expires_in_s": round(max(left_s, 0.0)),
        "roles": [*claims.roles],
        "app_id": claims.app_id,
        "object_id": claims.object_id,
        "tenant": claims.tenant,
        "audience": claims.audience,
        "cause": "",
        "why": "",
        "do": "",
    }


def failed_row(upstream: Upstream, why: TokenUnavailable) -> dict[str, Json]:
    """Return why there is no token, with the same keys."""
    cause = f"AADSTS{why.cause}" if why.cause.isdecimal() else why.cause
    action = advice(why.cause)
    return {
        "upstream": upstream.name,
        "state": "failed",
        "expires_in_s": 0,
        "roles": [],
        "app_id": upstream.client_id,
        "object_id": "",
        "tenant": upstream.tenant,
        "audience": "",
        "cause": cause,
        "why": why.text if why.cause in aadsts.OWN else meaning_of(why.cause) or why.text,
        "do": action,
    }


_OF_ONE_FROM: Final = frozenset({"ErrorSendAsDenied", "ErrorMessageBlocked"})
"""Causes of holds that say nothing of the mailbox's other mail."""
_MOST_BLOCKED: Final = 100


def blocked(config: Config, holds: Sequence[Hold]) -> dict[str, Json]:
    """Return the upstreams through which nothing leaves, each with the cause of a hold.

    Those of which Microsoft refuses every mailbox that the configuration names, whoever mail is
    from; at most 100.
    """
    refused_of: dict[tuple[str, str], str] = {}
    for hold in holds:
        if hold.cause not in _OF_ONE_FROM:
            refused_of[hold.mailbox.upstream, hold.mailbox.mailbox.lower()] = hold.cause
    found: dict[str, Json] = {}
    for one in config.upstream:
        boxes = probe.mailboxes(config, one)
        causes = [refused_of.get((one.name, box.lower()), "") for box in boxes]
        if causes and all(causes) and len(found) < _MOST_BLOCKED:
            found[one.name] = causes[0]
    return found


def stamp(moment: datetime) -> str:
    """Return a moment as JSON shows it: RFC 3339, whole seconds."""
    return moment.replace(microsecond=0, tzinfo=None).isoformat() + "Z"
