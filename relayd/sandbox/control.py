"""The control API under /_sandbox/: for tests and for people with curl. JSON in, JSON out.

Everything but `health` needs `Authorization: Bearer <control key>`. A mistake is a 400 that
names every problem. docs/sandbox.md has the table of paths; ROUTES here is its twin.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from relayd.sandbox.fields import BadFields, Json, changed, made, shown
from relayd.sandbox.http import Request, Response
from relayd.sandbox.knobs import App, Fault, Mailbox, Tenant
from relayd.sandbox.lab import Lab, stable_id
from relayd.sandbox.store import Stored

PREFIX: Final = "/_sandbox/"
_MAX_PAGE: Final = 10_000

_Answer: TypeAlias = "tuple[int, Json] | Response"
_Handler: TypeAlias = "Callable[[Control, _Ask], _Answer]"


class NotThere(LookupError):
    """What the path names does not exist."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """What a handler is asked. words: the path behind its first word."""

    words: list[str]
    query: Mapping[str, str]
    body: bytes


class Control:
    """Answers the control API. connections: how many are open now."""

    def __init__(self, lab: Lab, key: str, connections: Callable[[], int] = lambda: 0) -> None:
        self._lab = lab
        self._key = key
        self._connections = connections

    def handle(self, request: Request) -> Response:
        """Answer one request below PREFIX."""
        head = request.head
        words = head.path.removeprefix(PREFIX).strip("/").split("/")
        if words == ["health"]:
            return _json(200, {"status": "ready"})
        kind, _, given = head.get("authorization").partition(" ")
        # SECURITY: the control API reads all mail and all secrets of the sandbox.
        if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._key.encode()):
            return _json(401, {"error": "the control key is missing or wrong"})
        handler = ROUTES.get((head.method, words[0]))
        if handler is None:
            return _json(404, {"error": f"no {head.method} {head.path}"})
        try:
            answer = handler(self, _Ask(words[1:], head.query, request.body))
        except BadFields as error:
            return _json(400, {"error": "; ".join(error.problems)})
        except NotThere as error:
            return _json(404, {"error": str(error)})
        return answer if isinstance(answer, Response) else _json(*answer)

    def show_knobs(self, _ask: _Ask) -> _Answer:
        """GET knobs."""
        return 200, shown(self._lab.knobs)

    def change_knobs(self, ask: _Ask) -> _Answer:
        """PATCH knobs {name: value, ...}: change some, answer all."""
        self._lab.knobs = changed(self._lab.knobs, _body(ask))
        return 200, shown(self._lab.knobs)

    def list_mailboxes(self, ask: _Ask) -> _Answer:
        """GET mailboxes[/ADDRESS]: settings and counts."""
        found = self._lab.directory.mailboxes
        if ask.words:
            return 200, self._shown_mailbox(self._mailbox(ask.words[0]))
        return 200, [self._shown_mailbox(mailbox) for mailbox in found.values()]

    def change_mailbox(self, ask: _Ask) -> _Answer:
        """PUT mailboxes/ADDRESS {field: value, ...}: make it, or change it where it is."""
        address = _only(ask).lower()
        directory, patch = self._lab.directory, _body(ask)
        current = directory.mailboxes.get(address) or Mailbox(
            address=address, object_id=stable_id("mailbox", address)
        )
        mailbox = changed(current, patch)
        if mailbox.address.lower() != address:
            raise BadFields(["address: must be the one in the path"])
        if not mailbox.denied:
            self._lab.denied_at.pop(address, None)
        return 200, self._shown_mailbox(directory.put(mailbox))

    def remove_mailbox(self, ask: _Ask) -> _Answer:
        """DELETE mailboxes/ADDRESS."""
        mailbox = self._mailbox(_only(ask))
        del self._lab.directory.mailboxes[mailbox.address.lower()]
        return 200, {"removed": mailbox.address}

    def list_apps(self, _ask: _Ask) -> _Answer:
        """GET apps."""
        return 200, [shown(app) for app in self._lab.directory.apps.values()]

    def change_app(self, ask: _Ask) -> _Answer:
        """PUT apps/CLIENT_ID {field: value, ...}: make it, or change it where it is."""
        client_id = _only(ask).lower()
        directory = self._lab.directory
        current = directory.apps.get(client_id) or App(
            client_id=client_id,
            tenant=directory.tenants[0].id,
            object_id=stable_id("app", client_id),
        )
        directory.apps[client_id] = app = changed(current, _body(ask))
        return 200, shown(app)

    def remove_app(self, ask: _Ask) -> _Answer:
        """DELETE apps/CLIENT_ID."""
        if self._lab.directory.apps.pop(_only(ask).lower(), None) is None:
            raise NotThere("no such application")
        return 200, {"removed": ask.words[0]}

    def list_tenants(self, _ask: _Ask) -> _Answer:
        """GET tenants."""
        return 200, [shown(tenant) for tenant in self._lab.directory.tenants]

    def add_tenant(self, ask: _Ask) -> _Answer:
        """POST tenants {id, domains}."""
        tenant = made(Tenant, _body(ask))
        self._lab.directory.tenants.append(tenant)
        return 200, shown(tenant)

    def list_faults(self, _ask: _Ask) -> _Answer:
        """GET faults: what waits, and how often each kind has struck."""
        waiting: list[Json] = [
            {"fault": shown(fault), "left": left} for fault, left in self._lab.faults.waiting()
        ]
        return 200, {"waiting": waiting, "happened": dict(self._lab.faults.happened)}

    def add_faults(self, ask: _Ask) -> _Answer:
        """POST faults {...} or [{...}, ...]: to the end of the queue."""
        body = _body(ask)
        faults = [made(Fault, item) for item in (body if isinstance(body, list) else [body])]
        self._lab.faults.add(faults)
        return 200, {"added": len(faults)}

    def clear_faults(self, _ask: _Ask) -> _Answer:
        """DELETE faults."""
        self._lab.faults.clear()
        return 200, {}

    def revoke(self, ask: _Ask) -> _Answer:
        """POST revoke {"token": "…"} or {}: one token, or all that were ever issued."""
        body = _body(ask)
        token = body.get("token") if isinstance(body, dict) else None
        if token is None:
            self._lab.mint.revoke_all()
            return 200, {"revoked": "all"}
        if not isinstance(token, str) or not self._lab.mint.revoke(token):
            raise NotThere("not a token of this sandbox")
        return 200, {"revoked": "one"}

    def counts(self, _ask: _Ask) -> _Answer:
        """GET counts: everything that is counted."""
        lab = self._lab
        return 200, {
            "token_requests": lab.counts["token_requests"],
            "send_requests": lab.counts["send_requests"],
            "messages": lab.store.total,
            "deliveries": lab.store.deliveries,
            "dropped": lab.store.dropped,
            "connections": self._connections(),
            "faults": dict(lab.faults.happened),
            "mailboxes": {
                name: {
                    "in_flight": seen.in_flight,
                    "in_flight_max": seen.in_flight_max,
                    "throttled": seen.throttled,
                }
                for name, seen in lab.limiter.seen.items()
            },
            "all": dict(lab.counts),
        }

    def list_recipients(self, _ask: _Ask) -> _Answer:
        """GET recipients: how many messages each has."""
        return 200, dict(self._lab.store.inboxes())

    def list_messages(self, ask: _Ask) -> _Answer:
        """GET messages?recipient=A|sent=A|message_id=I|header=N&value=V&after=N&limit=N&content=1.

        GET messages/NUMBER[/raw]: one, with its content.
        """
        if ask.words:
            return self._one_message(ask.words)
        query = ask.query
        after, limit = _number(query, "after", 0), _number(query, "limit", 100)
        store, limit = self._lab.store, min(limit, _MAX_PAGE)
        if "recipient" in query:
            found = store.inbox(query["recipient"], after, limit + 1)
        elif "sent" in query:
            found = store.sent(query["sent"], after, limit + 1)
        elif "message_id" in query:
            found = _later(store.with_message_id(query["message_id"]), after)
        elif "header" in query:
            found = _later(store.with_field(query["header"], query.get("value", "")), after)
        else:
            found = store.messages(after, limit + 1)
        content, page = "content" in query, found[:limit]
        return 200, {
            "messages": [_shown_message(stored, content=content) for stored in page],
            "next": page[-1].number if len(found) > limit else None,
        }

    def deliveries(self, ask: _Ask) -> _Answer:
        """GET deliveries?by=NAME: for each value of an X- field (or message-id) its recipients.

        Each recipient with how often it got a message of that value.
        """
        counted = self._lab.store.counted_by(ask.query.get("by", "message-id"))
        return 200, {value: dict(by_recipient) for value, by_recipient in counted.items()}

    def list_requests(self, _ask: _Ask) -> _Answer:
        """GET requests: the last thousand for Graph, oldest first."""
        return 200, list(self._lab.requests)

    def reset(self, _ask: _Ask) -> _Answer:
        """POST reset: forget mail, counts and faults; keep knobs, directory and tokens."""
        self._lab.reset()
        return 200, {}

    def _one_message(self, words: list[str]) -> _Answer:
        number = int(words[0]) if words[0].isdigit() else 0
        stored = self._lab.store.message(number)
        if stored is None:
            raise NotThere("no such message")
        if words[1:] != ["raw"]:
            return 200, _shown_message(stored, content=True)
        head = stored.delivered_head()
        if head is None or stored.body is None:
            raise NotThere("the content was not kept")
        fields = (("Content-Type", "message/rfc822"),)
        return Response(status=200, fields=fields, body=head + b"\r\n" + stored.body)

    def _mailbox(self, address: str) -> Mailbox:
        mailbox = self._lab.directory.mailboxes.get(address.lower())
        if mailbox is None:
            raise NotThere(f"no mailbox {address}")
        return mailbox

    def _shown_mailbox(self, mailbox: Mailbox) -> Json:
        view = shown(mailbox)
        key = mailbox.address.lower()
        if isinstance(view, dict):
            view["received"] = self._lab.store.inboxes().get(key, 0)
            view["sent"] = self._lab.store.sent_counts().get(key, 0)
        return view


ROUTES: Final[Mapping[tuple[str, str], _Handler]] = {
    ("GET", "knobs"): Control.show_knobs,
    ("PATCH", "knobs"): Control.change_knobs,
    ("GET", "mailboxes"): Control.list_mailboxes,
    ("PUT", "mailboxes"): Control.change_mailbox,
    ("DELETE", "mailboxes"): Control.remove_mailbox,
    ("GET", "apps"): Control.list_apps,
    ("PUT", "apps"): Control.change_app,
    ("DELETE", "apps"): Control.remove_app,
    ("GET", "tenants"): Control.list_tenants,
    ("POST", "tenants"): Control.add_tenant,
    ("GET", "faults"): Control.list_faults,
    ("POST", "faults"): Control.add_faults,
    ("DELETE", "faults"): Control.clear_faults,
    ("POST", "revoke"): Control.revoke,
    ("GET", "counts"): Control.counts,
    ("GET", "recipients"): Control.list_recipients,
    ("GET", "messages"): Control.list_messages,
    ("GET", "deliveries"): Control.deliveries,
    ("GET", "requests"): Control.list_requests,
    ("POST", "reset"): Control.reset,
}


def _shown_message(stored: Stored, *, content: bool) -> Json:
    view = stored.summary()
    if content:
        for name, octets in (
            ("delivered_head", stored.delivered_head()),
            ("head", stored.head),
            ("body", stored.body),
        ):
            view[name] = None if octets is None else base64.b64encode(octets).decode("ascii")
    return view


def _later(found: list[Stored], after: int) -> list[Stored]:
    return [stored for stored in found if stored.number > after]


def _body(ask: _Ask) -> Json:
    try:
        body: Json = json.loads(ask.body or b"{}")
    except ValueError as error:
        raise BadFields([f"not JSON: {error}"]) from error
    return body


def _only(ask: _Ask) -> str:
    if len(ask.words) != 1:
        raise NotThere("the path needs one name")
    return ask.words[0]


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise BadFields([f"{name}: not a number"])
    return int(text)


def _json(status: int, body: Json) -> Response:
    return Response(
        status=status,
        fields=(("Content-Type", "application/json"),),
        body=json.dumps(body).encode() + b"\n",
    )
