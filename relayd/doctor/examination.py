"""One upstream's way out, step by step, each explained with what mends it.

    configuration  secret  relay | dns  tcp  proxy  tls  clock  tenant | token | roles  mailbox
    senders

A step that needs an earlier one which failed is SKIPPED and names it. Nothing is changed and no
mail is sent. What only the relay's own user may read is asked of the running relay instead,
where it runs.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import date
from typing import Final

from relayd.config.clouds import endpoints
from relayd.config.model import Cloud, Upstream
from relayd.config.partial import Seen
from relayd.doctor import advice
from relayd.doctor.connection import GUID, NAMES, Connection, Reach, token_problem
from relayd.doctor.network import place_of
from relayd.doctor.permission import Permission, as_root, names_of
from relayd.doctor.relay import Relay
from relayd.doctor.steps import Step, ok, problem, skipped, warning
from relayd.errors import TokenUnavailable
from relayd.identity.credentials import credential_for
from relayd.identity.tokens import Claims, claims_of

_EXPIRY_NOTICE_DAYS: Final = 30
_SERVE: Final = (
    "Mend that; the log says more. A worker is started again by itself, at least every 30 s."
    " Until one serves, devices are answered 421."
)


class Examination:
    """One upstream. as_service: this process reads what the relay's own user reads."""

    def __init__(
        self,
        seen: Seen,
        upstream: Upstream,
        relay: Relay,
        *,
        as_service: bool,
        reach: Reach | None = None,
    ) -> None:
        self._seen = seen
        self._upstream = upstream
        self._relay = relay
        self._as_service = as_service
        self._reach = reach or Reach()
        self._has_secret = False
        self._token = ""
        self._claims: Claims | None = None
        self._missing = ""  # the first step that failed of those a token needs

    def steps(self) -> Iterator[Step]:
        """Yield each step when it is done; every wait in them is bounded."""
        cloud = self._cloud()
        yield self._configuration(cloud)
        yield self._secret()
        yield self._running()
        if cloud is None:
            self._missing = "configuration"
            yield from (skipped(name, "the configuration comes first") for name in NAMES)
        else:
            yield from self._connect(cloud)
        yield self._get_token(cloud)
        if self._claims is None:
            yield skipped("roles", f"{self._missing or 'token'} comes first")
            yield skipped("mailbox", f"{self._missing or 'token'} comes first")
            return
        yield from Permission(
            self._seen.config,
            self._upstream,
            self._relay,
            self._claims,
            token=self._token,
            cloud=cloud,
            clock=self._reach.clock,
        ).steps()

    def _connect(self, cloud: Cloud) -> Iterator[Step]:
        connection = Connection(self._upstream, cloud, self._seen.config.http, self._reach)
        try:
            yield from connection.steps()
        finally:
            connection.close()
        self._missing = connection.missing

    def _cloud(self) -> Cloud | None:
        """Return where the upstream is reached; None when the configuration cannot tell."""
        if self._seen.found:
            return None
        try:
            cloud = endpoints(self._seen.config, self._upstream)
            place_of(cloud.authority)
            place_of(cloud.graph)
        except (LookupError, ValueError):
            return None
        return cloud

    def _configuration(self, cloud: Cloud | None) -> Step:
        name, upstream = "configuration", self._upstream
        if self._seen.found and not self._as_service:
            text = f"{self._seen.tree.root} is not yours to read"
            return skipped(name, text, as_root(upstream))
        wrong = [*self._seen.found, *self._seen.other_problems(upstream.name)]
        if wrong or cloud is None:
            text = "; ".join(wrong) or f"cloud {upstream.cloud!r} is not known"
            return problem(name, text, "Correct it; relayd check tells whether it is right.")
        text = (
            f"tenant {upstream.tenant}, application {upstream.client_id}, mailbox"
            f" {upstream.mailbox}, cloud {upstream.cloud}"
        )
        return ok(name, text)

    def _secret(self) -> Step:
        name, upstream = "secret", self._upstream
        if self._seen.found:
            return skipped(name, "the configuration comes first")
        place = self._seen.secret_place(upstream.name)
        wrong = self._seen.secret_problem(upstream.name)
        if wrong is None and upstream.client_secret:
            self._has_secret = True
            return self._readable_secret(place)
        key = self._seen.secret_key(upstream.name)
        if wrong is not None and key.endswith(("_env", "_credential")):
            text = f"only the running service has it ({place})"
            return skipped(name, text, "The running relay is asked for the token instead.")
        if wrong is not None and key.endswith("_file") and not self._as_service:
            return skipped(name, f"{place} is not yours to read", as_root(upstream))
        text = wrong.text if wrong is not None else "client_secret is missing"
        if "Permission denied" not in text:
            return problem(name, text, "Store it: relayd secret set NAME; then relayd reload.")
        what = shlex.quote(place)
        return problem(
            name,
            f"the relay's own user cannot read {place}",
            "Give it to group relayd. If that is not it, a folder above shuts the user out:"
            " the last command shows which.",
            (f"chown root:relayd {what}", f"chmod 640 {what}", f"namei -l {what}"),
        )

    def _readable_secret(self, place: str) -> Step:
        name, upstream = "secret", self._upstream
        text = f"readable ({place})"
        if GUID.fullmatch(upstream.client_secret.reveal()):
            return warning(
                name,
                f"{place}: it looks like a Secret ID, which is no secret",
                "Entra shows the Value once, when the secret is made.",
                advice.new_secret(names_of(upstream, Claims())),
            )
        try:
            ends = date.fromisoformat(upstream.credential_expires)
        except ValueError:
            return ok(name, text)
        left = (ends - self._reach.clock.utcnow().date()).days
        if left > _EXPIRY_NOTICE_DAYS:
            return ok(name, f"{text}, good until {ends}")
        word = f"it expires in {left} days, on {ends}" if left >= 0 else f"it expired on {ends}"
        return (problem if left < 0 else warning)(
            name,
            f"{text}, but {word} (credential_expires)",
            "Make a new one, store it as next_client_secret (relayd secret set NAME), then relayd"
            " reload: no outage.",
            advice.new_secret(names_of(upstream, Claims())),
        )

    def _running(self) -> Step:
        name, upstream = "relay", self._upstream.name
        if self._relay.away:
            return skipped(name, self._relay.away, self._relay.remedy)
        if why := self._relay.unavailable:
            return problem(name, f"no worker serves: {why}", _SERVE)
        row = self._relay.upstream(upstream)
        if row is None and self._relay.is_starting:
            text = "the running relay is starting and has not told of its upstreams yet"
            return skipped(name, text, "Ask again in a few seconds.")
        if row is None:
            return warning(
                name,
                "the running relay does not know this upstream",
                "relayd check && relayd reload",
            )
        state, held = str(row.get("state")), row.get("held_messages")
        count = held if isinstance(held, int) else 0
        waiting = f"{count} message{'' if count == 1 else 's'} held" if count else "nothing held"
        if state != "up":
            why = str(row.get("why") or row.get("text") or row.get("cause"))
            return problem(name, f"{state}, {waiting}. {why}", str(row.get("do") or ""))
        if count or row.get("held"):
            causes = row.get("held")
            told = ", ".join(map(str, causes)) if isinstance(causes, dict) else ""
            which = "held" if count else "all"
            if not count:
                waiting = "Microsoft refused the mail before, which was deleted"
            return warning(
                name,
                f"up, but {waiting}" + (f" ({told})" if told else ""),
                f"See why: relayd queue list --state {which} --upstream {upstream}",
            )
        return ok(name, f"up, {waiting}")

    def _get_token(self, cloud: Cloud | None) -> Step:
        name = "token"
        if not self._has_secret or cloud is None:
            return self._token_of_the_relay()
        if self._missing:
            return skipped(name, f"{self._missing} comes first")
        try:
            issued = self._reach.fetch(credential_for(self._seen.config, self._upstream))
        except TokenUnavailable as why:
            self._missing = name
            return token_problem(name, why, names_of(self._upstream, Claims()))
        self._token = issued.value
        self._claims = claims_of(issued.value)
        minutes = round(issued.life_s / 60)
        return ok(name, f"Entra gave one, good for {minutes} min")

    def _token_of_the_relay(self) -> Step:
        name = "token"
        row = self._relay.token(self._upstream.name)
        if row is None:
            self._missing = self._missing or "secret"
            do = "" if self._as_service else as_root(self._upstream)
            return skipped(name, "the secret is needed", do)
        if row.get("state") != "ok":
            self._missing = name
            cause, why = str(row.get("cause") or ""), str(row.get("why") or "")
            code = f" ({cause})" if cause else ""
            return problem(name, f"the running relay gets none: {why}{code}", str(row.get("do")))
        roles = row.get("roles")
        self._claims = Claims(
            tuple(map(str, roles)) if isinstance(roles, list) else (),
            app_id=str(row.get("app_id") or ""),
            tenant=str(row.get("tenant") or ""),
            audience=str(row.get("audience") or ""),
            object_id=str(row.get("object_id") or ""),
        )
        left_s = row.get("expires_in_s")
        minutes = round(left_s / 60) if isinstance(left_s, int | float) else 0
        return ok(name, f"the running relay has one, good for {minutes} min")
