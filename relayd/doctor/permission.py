"""What the token and the mailbox allow: roles, permission, other senders, each a step.

Permission is asked for with `deliver.probe`, by this process where it has a token of its own,
else by the running relay. After ErrorAccessDenied nobody asks for half an hour.

Claims come from a token that is not verified here: they are shown, and compared, not trusted.

Source: docs/permissions.md.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Final

from relayd.clock import Clock
from relayd.config.model import Cloud, Config, Upstream
from relayd.deliver import catalogue, probe
from relayd.deliver.outcome import Answer
from relayd.deliver.probe import Verdict
from relayd.deliver.silence import Silence
from relayd.doctor import advice
from relayd.doctor.connection import GUID
from relayd.doctor.relay import Relay
from relayd.doctor.steps import Step, ok, problem, skipped, warning
from relayd.identity.tokens import Claims
from relayd.net.http import pool
from relayd.wayout import stamp

SEND_AS_DENIED: Final = "ErrorSendAsDenied"
_GRAPH_ID: Final = "00000003-0000-0000-c000-000000000000"
_PROBE_S: Final = 20.0
_SHOWN_SENDERS: Final = 5
_PERMISSION: Final = frozenset(
    {"erroraccessdenied", "authorization_requestdenied", "nopermissionsinaccesstoken"}
)
_NO_MAILBOX: Final = frozenset(
    {
        "errorinvaliduser",
        "resourcenotfound",
        "request_resourcenotfound",
        "mailboxnotenabledforrestapi",
    }
)


class Permission:
    """What one token may do.

    token:  "" where only the running relay has one; cloud: None where it is not known.
    """

    def __init__(
        self,
        config: Config,
        upstream: Upstream,
        relay: Relay,
        claims: Claims,
        *,
        token: str,
        cloud: Cloud | None,
        clock: Clock,
    ) -> None:
        self._config = config
        self._upstream = upstream
        self._relay = relay
        self._claims = claims
        self._token = token
        self._cloud = cloud
        self._clock = clock
        self._names = names_of(upstream, claims)

    def steps(self) -> Iterator[Step]:
        """Yield each step when it is done."""
        yield self._roles()
        yield from self._mailboxes()
        refused = list(self._refused_senders())
        yield from refused or self._senders()

    def _roles(self) -> Step:
        name, claims = "roles", self._claims
        wrong = self._wrong_token()
        if wrong:
            return problem(name, wrong, "Correct `cloud`, `tenant` and `client_id`.")
        stale = self._stale()
        if stale:
            return stale
        extra = tuple(
            role for role in claims.roles if role != advice.NEEDED and role not in advice.SOON
        )
        names = self._names
        if extra:
            return warning(
                name,
                f"more than relayd needs: {', '.join(extra)}",
                "Whoever gets hold of the secret may do all that. Take them back.",
                advice.remove(names, extra),
            )
        if advice.NEEDED in claims.roles:
            return warning(
                name,
                "Mail.Send, consented to in Entra: it holds for every mailbox of the tenant,"
                " unless an application access policy narrows it",
                "RBAC for Applications lets it send through the relay's mailbox and no other.",
                advice.narrow(names),
            )
        if claims.roles:
            return ok(name, f"{', '.join(claims.roles)}; not Mail.Send: Exchange must grant that")
        return ok(
            name, "none in the token: right, where Exchange grants it (RBAC for Applications)"
        )

    def _wrong_token(self) -> str:
        """Return in what the token is not the one asked for; "" if it is."""
        upstream, claims, cloud = self._upstream, self._claims, self._cloud
        wanted = cloud.graph_scope.removesuffix("/.default") if cloud else ""
        audience = claims.audience.rstrip("/")
        if wanted and audience and audience not in (wanted.rstrip("/"), _GRAPH_ID):
            return f"the token is for {audience}, not for {wanted}"
        app = upstream.client_id
        if app and claims.app_id and claims.app_id.lower() != app.lower():
            return f"the token is for application {claims.app_id}, not {app}"
        tenant = upstream.tenant if GUID.fullmatch(upstream.tenant) else ""
        if tenant and claims.tenant and claims.tenant.lower() != tenant.lower():
            return f"the token is for tenant {claims.tenant}, not {tenant}"
        return ""

    def _stale(self) -> Step | None:
        """Tell of a running relay whose token is older than a change of permissions."""
        claims = self._claims
        row = self._relay.token(self._upstream.name) if self._token else None
        held = row.get("roles") if row is not None and row.get("state") == "ok" else None
        if not isinstance(held, list) or set(map(str, held)) == set(claims.roles):
            return None
        return warning(
            "roles",
            f"a new token has {', '.join(claims.roles) or 'none'}, that of the running relay has"
            f" {', '.join(map(str, held)) or 'none'}",
            "Permissions have changed since; have the relay fetch a new one:",
            (f"relayd token refresh {self._upstream.name}",),
        )

    # ---- the mailbox

    def _mailboxes(self) -> Iterator[Step]:
        name, upstream = "mailbox", self._upstream
        mailboxes = probe.mailboxes(self._config, upstream) or self._relay.mailboxes(upstream.name)
        if not mailboxes:
            text = 'mailbox = "sender", and no sender is named without a wildcard'
            yield skipped(name, text, "A real mail tells: relayd send --from ADDR --to ADDR --wait")
            return
        for mailbox in mailboxes:
            yield self._mailbox(mailbox)

    def _mailbox(self, mailbox: str) -> Step:
        silence = Silence(self._config.server.state_dir, clock=self._clock)
        denied_until = self._silent_until(mailbox, silence)
        if denied_until:
            return self._still_denied(mailbox, denied_until)
        cloud = self._cloud
        if not self._token or cloud is None:
            return self._mailbox_of_the_relay(mailbox)
        try:
            ways = pool(self._config.http, ca_file=cloud.ca_file)
        except (OSError, ssl.SSLError, ValueError) as error:
            return problem("mailbox", str(error), "relayd check")
        with ways:
            try:
                found = probe.ask(
                    ways,
                    cloud.graph,
                    mailbox,
                    self._token,
                    timeout_s=_PROBE_S,
                    clock=self._clock,
                )
            except ValueError as error:
                return problem("mailbox", str(error), "Something on the way gives out tokens.")
        if found.cause == probe.DENIED:
            silence.note(self._upstream.name, mailbox)
            until = silence.until(self._upstream.name, mailbox)
            return self._denied(mailbox, stamp(until) if until else "")
        if found.verdict is Verdict.MAY_SEND:
            silence.lift(self._upstream.name, mailbox)
            return _may_send(mailbox)
        return self._explained(mailbox, found.cause, found.answer.status, found.answer.text)

    def _mailbox_of_the_relay(self, mailbox: str) -> Step:
        row = self._relay.mailbox(self._upstream.name, mailbox)
        if row is None:
            return skipped("mailbox", "the secret is needed", as_root(self._upstream))
        state, cause = str(row.get("state")), str(row.get("cause") or "")
        status = row.get("http_status")
        match state:
            case "silent":
                return self._still_denied(mailbox, str(row.get("until")))
            case "may send":
                return _may_send(mailbox)
            case "no token":
                return skipped("mailbox", "token comes first")
            case _ if cause == probe.DENIED:
                return self._denied(mailbox, "")
            case _:
                number = status if isinstance(status, int) else 0
                return self._explained(mailbox, cause, number, str(row.get("text") or ""))

    def _silent_until(self, mailbox: str, silence: Silence) -> str:
        """Return when it may be asked about again; "": now."""
        noted = silence.until(self._upstream.name, mailbox)
        now = stamp(self._clock.utcnow())
        held = [
            str(row.get("probe_at"))
            for row in self._relay.holds(self._upstream.name)
            if row.get("cause") == probe.DENIED
            and row.get("mailbox") == mailbox.lower()
            and str(row.get("probe_at")) > now
        ]
        return max([*held, *([stamp(noted)] if noted else [])], default="")

    def _still_denied(self, mailbox: str, until: str) -> Step:
        return problem(
            "mailbox",
            f"{mailbox}: Microsoft said ErrorAccessDenied less than half an hour ago; not asked"
            f" again before {until}, because asking keeps the refusal alive at Exchange",
            f"Look at what is granted (this does not prolong it), then wait until {until}.",
            self._how_to_grant(),
        )

    def _denied(self, mailbox: str, until: str) -> Step:
        has_role = advice.NEEDED in self._claims.roles
        text = f"{mailbox}: the application may not send through it (ErrorAccessDenied)"
        text += (
            "; the token has Mail.Send, so an application access policy shuts the mailbox out,"
            " or the consent is new"
            if has_role
            else "; the token has no Mail.Send, and Exchange grants nothing for this mailbox yet"
        )
        wait = f" Not asked again before {until}." if until else ""
        return problem("mailbox", text, advice.PROPAGATION + wait, self._how_to_grant())

    def _how_to_grant(self) -> tuple[str, ...]:
        names = self._names
        if advice.NEEDED in self._claims.roles:
            return (*advice.access_policy(names), "# Or, better, the other way round:",
                    *advice.narrow(names))  # fmt: skip
        return (
            *advice.rbac(names),
            *advice.widen(names),
            *advice.new_access_policy(names),
            *advice.consent(names),
        )

    def _explained(self, mailbox: str, cause: str, status: int, text: str) -> Step:
        code = "" if cause.startswith("HTTP ") else cause
        row = catalogue.entry_for(Answer(status=status, code=code))
        label = f" ({cause})" if cause else ""
        if not status:
            told = f"{mailbox}: Graph could not be asked ({text})"
            return problem("mailbox", told, "See the steps before; then try again.")
        words = f"{mailbox}: {row.words}{label}"
        if row.verdict in (catalogue.Verdict.BUSY, catalogue.Verdict.EXHAUSTED):
            return warning("mailbox", f"{words} It says nothing about the permission.", row.advice)
        commands: tuple[str, ...] = ()
        if cause.lower() in _PERMISSION:
            commands = self._how_to_grant()
        elif cause.lower() in _NO_MAILBOX:
            commands = advice.mailbox(self._names)
        do = row.advice or "Nothing: relayd tries again by itself. Ask once more in some minutes."
        return problem("mailbox", words, do, commands)

    def _refused_senders(self) -> Iterator[Step]:
        """Tell of each From that Exchange has refused already: its mail is held."""
        for row in self._relay.holds(self._upstream.name):
            if row.get("cause") != SEND_AS_DENIED:
                continue
            mailbox, sender = str(row.get("mailbox")), str(row.get("from"))
            yield problem(
                "senders",
                f"{mailbox} may not send as {sender} (ErrorSendAsDenied); its mail is held and"
                f" tried at {row.get('probe_at')}",
                "Let it (takes up to an hour), or set `from` of the device to the mailbox; then"
                f" relayd queue release --upstream {self._upstream.name}",
                advice.send_as(names_of(self._upstream, self._claims), sender),
            )

    def _senders(self) -> Iterator[Step]:
        """Name the other senders: whether Exchange lets them, no question can tell."""
        upstream, names = self._upstream, self._names
        if upstream.mailbox == probe.SENDER:
            return
        own = [one for one in (*self._config.device, *self._config.user)
               if one.upstream == upstream.name]  # fmt: skip
        texts = [text for one in own for text in (one.from_, one.default_from, *one.allow_from)]
        texts += upstream.allowed_senders
        others = [
            text
            for text in dict.fromkeys(text.lower() for text in texts)
            if "@" in text and "*" not in text and text != upstream.mailbox.lower()
        ]
        if not others:
            return
        some = ", ".join(others[:_SHOWN_SENDERS]) + (", …" if len(others) > _SHOWN_SENDERS else "")
        yield skipped(
            "senders",
            f"whether {upstream.mailbox} may also send as {some}, only a real mail tells",
            f"relayd send --from {others[0]} --to ADDR --wait; if it is held with"
            " ErrorSendAsDenied:",
            advice.send_as(names, others[0]),
        )


def names_of(upstream: Upstream, claims: Claims) -> advice.Names:
    """Return whom advice about an upstream is about; a token knows more than the configuration."""
    return advice.Names(
        app_id=claims.app_id or upstream.client_id,
        object_id=claims.object_id,
        mailbox=upstream.mailbox_id or upstream.mailbox,
        tenant=claims.tenant or upstream.tenant,
    )


def _may_send(mailbox: str) -> Step:
    return ok("mailbox", f"{mailbox}: it is there, and the application may send through it")


def as_root(upstream: Upstream) -> str:
    """Return the command that sees what this user may not."""
    return f"sudo relayd doctor {upstream.name}"
