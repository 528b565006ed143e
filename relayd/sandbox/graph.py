"""The Graph half: POST /v1.0/users/{id}/sendMail, MIME and JSON, strict on purpose.

Judged in the order a real request meets them: gateway faults, token, throttles, size,
mailbox, permission, content type, content, author, recipients; then delivered. What is
refused says why in Graph's words, and in the sandbox's own in the field X-Sandbox-Reason.

A request counts as in flight from its head (`enter`) until just before its answer
(`leave`), whatever becomes of the connection.

Source: Microsoft Graph user: sendMail, error responses, throttling; fact sheet §1.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeAlias

from relayd.sandbox import letters, refusals
from relayd.sandbox.faults import SHAPES, Commit, Ending, Shape
from relayd.sandbox.fields import Json
from relayd.sandbox.http import Head, Request, Response
from relayd.sandbox.knobs import Fault, Mailbox
from relayd.sandbox.lab import Lab, Watcher
from relayd.sandbox.letters import Letter
from relayd.sandbox.limits import Throttled, Ticket
from relayd.sandbox.refusals import Refusal
from relayd.sandbox.store import Post
from relayd.sandbox.tokens import Claims, TokenRefused

Wait: TypeAlias = Callable[[float], Awaitable[None]]

_SEND_PATH: Final = re.compile(
    r"/v1\.0/users(?:/(?P<plain>[^/]+)|\('(?P<quoted>[^']+)'\))/"
    r"(?:microsoft\.graph\.)?sendmail\Z",
    re.IGNORECASE,
)
_GUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.IGNORECASE)
_UNKEPT_FIELDS: Final = frozenset({"authorization", "content-length", "client-request-id", "host"})
_AGS: Final = json.dumps(
    {
        "ServerInfo": {
            "DataCenter": "Sandbox",
            "Slice": "E",
            "Ring": "5",
            "ScaleUnit": "001",
            "RoleInstance": "SANDBOX000001",
        }
    }
)


@dataclass(frozen=True, slots=True)
class _Call:
    """One request with the ids its answer bears."""

    head: Head
    request_id: str
    client_request_id: str


@dataclass(frozen=True, slots=True)
class _Accepted:
    letter: Letter
    mailbox: str
    app: str


class Graph:
    """Answers for graph.microsoft.com. wait: sleeps real seconds."""

    def __init__(self, lab: Lab, wait: Wait, watcher: Watcher) -> None:
        self._lab = lab
        self._wait = wait
        self._watcher = watcher

    def enter(self, head: Head) -> Ticket | None:
        """Count a sendMail in at its head; None if nobody could say whose it is."""
        wanted = _SEND_PATH.match(head.path)
        if wanted is None or head.method != "POST":
            return None
        claims = self._claims(head)
        mailbox = self._mailbox(wanted)
        if isinstance(claims, TokenRefused) or mailbox is None:
            return None
        lab = self._lab
        return lab.limiter.enter(claims.appid, mailbox.address.lower(), lab.knobs, lab.lab_now())

    def leave(self, ticket: Ticket) -> None:
        """Count the request out; call it just before its answer is written."""
        self._lab.limiter.leave(ticket, self._lab.knobs, self._lab.lab_now())

    async def handle(self, request: Request, ticket: Ticket | None) -> Response | None:
        """Answer a request for the Graph host; None: close without an answer."""
        head = request.head
        request_id = str(uuid.uuid4())
        given = head.get("client-request-id")
        call = _Call(head, request_id, given if _GUID.match(given) else request_id)
        wanted = _SEND_PATH.match(head.path)
        if wanted is None:
            return self._refused(call, refusals.no_such_path(head.path))
        if head.method != "POST":
            return self._refused(
                call,
                Refusal(
                    status=405,
                    code="Request_BadRequest",
                    text="Specified HTTP method is not allowed for the request target.",
                ),
            )
        return await self._send(request, ticket, call, wanted)

    async def _send(
        self, request: Request, ticket: Ticket | None, call: _Call, wanted: re.Match[str]
    ) -> Response | None:
        lab = self._lab
        lab.counts["send_requests"] += 1
        name, named = _name(wanted), self._mailbox(wanted)
        fault = lab.faults.take("send", named.address.lower() if named else "")
        shape = SHAPES[fault.kind] if fault else SHAPES["latency"]
        if lab.knobs.graph_latency_s:
            await self._wait(lab.knobs.graph_latency_s)
        if fault is not None and shape.commit in (Commit.NEVER, Commit.USUAL) and fault.delay_s:
            await self._wait(fault.delay_s)
        if fault is not None and shape.commit is Commit.NEVER:
            return self._struck(call, fault, shape)
        accepted = await self._accepted(request, ticket, name, named)
        if isinstance(accepted, Refusal):
            return self._refused(call, accepted)
        if fault is not None and shape.commit is Commit.AFTER:
            await self._wait(fault.delay_s)
        answer = self._commit(accepted, call)
        if fault is None or shape.commit is not Commit.BEFORE:
            return answer
        if fault.delay_s:
            await self._wait(fault.delay_s)
        return answer if shape.ending is Ending.USUAL else self._struck(call, fault, shape)

    async def _accepted(
        self, request: Request, ticket: Ticket | None, name: str, mailbox: Mailbox | None
    ) -> _Accepted | Refusal:
        """Judge a request to its end without delivering anything."""
        lab = self._lab
        claims = self._claims(request.head)
        if isinstance(claims, TokenRefused):
            return Refusal(status=401, code="InvalidAuthenticationToken", text=claims.text)
        throttled = self._throttled(request, ticket)
        if throttled is not None:
            return throttled
        if request.body_bytes > lab.knobs.body_limit:
            return refusals.too_large(lab.knobs)
        if mailbox is None:
            return refusals.invalid_user(name)
        refusal = self._denied(mailbox, claims) or refusals.unfit(mailbox)
        if refusal is not None:
            return refusal
        letter = await letters.read(request, mailbox, lab.knobs, lab.clock.utcnow())
        if isinstance(letter, Refusal):
            return letter
        wait_s = lab.limiter.take_recipients(
            mailbox.address.lower(), len(letter.recipients), lab.knobs, lab.lab_now()
        )
        if wait_s:
            return refusals.quota_exceeded(self._retry_after(Throttled("", wait_s)))
        return _Accepted(letter, mailbox.address.lower(), claims.appid)

    def _throttled(self, request: Request, ticket: Ticket | None) -> Refusal | None:
        if ticket is None:
            return None
        lab = self._lab
        throttled = ticket.refused or lab.limiter.take_octets(
            ticket, request.body_bytes, lab.knobs, lab.lab_now()
        )
        if throttled is None:
            return None
        return Refusal(
            status=429,
            code="ApplicationThrottled",
            text=throttled.text,
            retry_after=self._retry_after(throttled),
        )

    def _retry_after(self, throttled: Throttled) -> str:
        knobs = self._lab.knobs
        if knobs.retry_after == "auto":
            return str(max(1, math.ceil(throttled.wait_s / max(knobs.time_factor, 1e-9))))
        return "" if knobs.retry_after == "none" else knobs.retry_after

    def _denied(self, mailbox: Mailbox, claims: Claims) -> Refusal | None:
        app = self._lab.directory.apps.get(claims.appid.lower())
        exchange = app is not None and app.exchange_rbac
        if "Mail.Send" not in claims.roles and not exchange:
            return refusals.access_denied(
                "ErrorAccessDenied",
                "the token has no role Mail.Send, and Exchange RBAC grants nothing either",
            )
        if not mailbox.denied:
            return None
        key, now = mailbox.address.lower(), self._lab.lab_now()
        asked_at = self._lab.denied_at.get(key)
        if (
            mailbox.heals_after_s
            and asked_at is not None
            and (now - asked_at >= mailbox.heals_after_s)
        ):
            return None
        self._lab.denied_at[key] = now
        return refusals.access_denied(
            mailbox.denied, "the mailbox is denied to this application (knob `denied`)"
        )

    def _commit(self, accepted: _Accepted, call: _Call) -> Response:
        lab, letter, mailbox = self._lab, accepted.letter, accepted.mailbox
        now, lab_now = lab.clock.utcnow(), lab.lab_now()
        drained_s = lab.limiter.drained_at(mailbox, lab.knobs, lab_now) - lab_now
        post = Post(
            request_id=call.request_id,
            client_request_id=call.head.get("client-request-id"),
            app=accepted.app,
            mailbox=mailbox,
            form=letter.form,
            save_to_sent=letter.save_to_sent,
            request_fields=lab.store.once(
                tuple((n, v) for n, v in call.head.fields.items() if n not in _UNKEPT_FIELDS)
            ),
            at=now,
            drained_at=now + timedelta(seconds=drained_s / max(lab.knobs.time_factor, 1e-9)),
        )
        stored = lab.store.commit(
            letter.examined,
            letter.recipients,
            letter.header_from or mailbox,
            post,
            lab.knobs,
            replaced=self._replaced(letter, mailbox),
        )
        lab.counts["committed"] += 1
        self._watcher.sent(stored)
        self._remember(call, 202, "", "")
        fields = [*_common(call), ("Content-Type", "text/plain")]
        if "immutableid" in call.head.get("prefer").lower():
            fields.append(("Preference-Applied", 'IdType="ImmutableId"'))
        return Response(status=202, fields=tuple(fields))

    def _replaced(self, letter: Letter, mailbox: str) -> tuple[tuple[str, str], ...]:
        """Return the fields Exchange gives a new value, for what is turned on."""
        knobs, out = self._lab.knobs, []
        if not letter.header_from or (
            knobs.rewrite_alias and self._is_alias(letter.header_from, mailbox)
        ):
            out.append(("From", f"<{mailbox}>"))
        if knobs.rewrite_message_id:
            out.append(("Message-ID", f"<{uuid.uuid4().hex.upper()}@SANDBOX.prod.outlook.com>"))
        return tuple(out)

    def _is_alias(self, address: str, mailbox: str) -> bool:
        owner = self._lab.directory.owner(address)
        return owner is not None and mailbox == owner.address.lower() != address.lower()

    def _claims(self, head: Head) -> Claims | TokenRefused:
        kind, _, token = head.get("authorization").partition(" ")
        if kind.lower() != "bearer" or not token:
            return TokenRefused("Access token is empty.")
        lab = self._lab
        return lab.mint.verify(
            token.strip(), audiences=lab.knobs.graph_audiences, now=lab.epoch_s()
        )

    def _mailbox(self, wanted: re.Match[str]) -> Mailbox | None:
        lab = self._lab
        mailbox = lab.directory.mailbox(_name(wanted), any_mailbox=lab.knobs.any_mailbox)
        return mailbox if mailbox is not None and mailbox.exists else None

    def _struck(self, call: _Call, fault: Fault, shape: Shape) -> Response | None:
        """Answer as the fault says; None: close without an answer."""
        retry = (("Retry-After", fault.retry_after),) if fault.retry_after else ()
        status = 0 if shape.ending is Ending.CLOSE else shape.status or fault.status
        self._remember(call, status, fault.kind, "a fault that was asked for")
        self._watcher.refused(status, fault.kind, "a fault that was asked for")
        if shape.ending is Ending.CLOSE:
            return None
        if shape.ending is Ending.HTML:
            name = "Gateway Timeout" if status == 504 else "Bad Gateway"
            page = (
                f"<html>\r\n<head><title>{status} {name}</title></head>\r\n"
                f"<body>\r\n<center><h1>{status} {name}</h1></center>\r\n</body>\r\n</html>\r\n"
            )
            fields = (("Content-Type", "text/html"), *retry)
            return Response(status=status, fields=fields, body=page.encode())
        if shape.ending is Ending.PLAIN:
            fields = (("Content-Type", "text/plain"), *retry)
            return Response(status=status, fields=fields, body=shape.text.encode())
        return self._answered(
            call,
            Refusal(
                status=status,
                code=fault.code or shape.code or "UnknownError",
                text=fault.message or shape.text,
                retry_after=fault.retry_after,
            ),
        )

    def _refused(self, call: _Call, refusal: Refusal) -> Response:
        self._lab.counts[f"refused_{refusal.status}_{refusal.code}"] += 1
        self._remember(call, refusal.status, refusal.code, refusal.reason or refusal.text)
        self._watcher.refused(refusal.status, refusal.code, refusal.reason or refusal.text)
        return self._answered(call, refusal)

    def _answered(self, call: _Call, refusal: Refusal) -> Response:
        fields = list(_common(call))
        if refusal.retry_after:
            fields.append(("Retry-After", refusal.retry_after))
        if refusal.reason:
            fields.append(("X-Sandbox-Reason", ascii(refusal.reason)[1:-1]))
        if refusal.status == 401:
            fields.append(("WWW-Authenticate", 'Bearer realm="", error="invalid_token"'))
        if refusal.empty:
            return Response(status=refusal.status, fields=tuple(fields))
        at = self._lab.clock.utcnow().strftime("%Y-%m-%dT%H:%M:%S")
        body: Json = {
            "error": {
                "code": refusal.code,
                "message": refusal.text,
                "innerError": {
                    "date": at,
                    "request-id": call.request_id,
                    "client-request-id": call.client_request_id,
                },
            }
        }
        fields.append(("Content-Type", "application/json"))
        return Response(status=refusal.status, fields=tuple(fields), body=json.dumps(body).encode())

    def _remember(self, call: _Call, status: int, code: str, reason: str) -> None:
        lab = self._lab
        lab.counts[f"graph_status_{status}"] += 1
        lab.requests.append(
            {
                "at": lab.clock.utcnow().isoformat(),
                "method": call.head.method,
                "path": call.head.path,
                "status": status,
                "code": code,
                "reason": reason,
                "request_id": call.request_id,
                "client_request_id": call.head.get("client-request-id"),
            }
        )


def _name(wanted: re.Match[str]) -> str:
    return wanted["plain"] or wanted["quoted"]


def _common(call: _Call) -> list[tuple[str, str]]:
    return [
        ("Cache-Control", "private"),
        ("request-id", call.request_id),
        ("client-request-id", call.client_request_id),
        ("x-ms-ags-diagnostic", _AGS),
    ]
