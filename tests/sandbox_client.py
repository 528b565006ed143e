"""The sandbox's control API for tests: standard library only, one keep-alive connection.

    client = SandboxClient("127.0.0.1", port, control_key, ca_file)
    client.knobs(token_latency_s=2.0)
    client.mailbox("alerts@contoso.com", full=True)
    client.fault("commit-504", times=3)
    client.messages(recipient="ops@contoso.com")[0].body_sha256

A client belongs to one thread. What the API refuses raises SandboxRefused with its text.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote, urlencode


class SandboxRefused(AssertionError):
    """The control API answered with an error: the test asked for something impossible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """One committed message. recipients: (address, "to" | "cc" | "bcc") as in its headers.

    head, body: with `content=True` only, and only if kept; `delivered_head` is without Bcc.
    """

    number: int
    mailbox: str
    app: str
    form: str
    save_to_sent: bool
    request_id: str
    client_request_id: str
    arrived_at: str
    request_fields: dict[str, str]
    recipients: tuple[tuple[str, str], ...]
    header_from: str
    message_id: str
    subject: str
    size_bytes: int
    body_bytes: int
    body_sha256: str
    defects: tuple[str, ...]
    x_fields: tuple[tuple[str, str], ...]
    head: bytes | None = None
    delivered_head: bytes | None = None
    body: bytes | None = None

    @property
    def addresses(self) -> set[str]:
        """Return every recipient, lower-case."""
        return {address.lower() for address, _ in self.recipients}

    def x_field(self, name: str) -> str:
        """Return the first X- field of that name, "" if there is none."""
        return next((v for k, v in self.x_fields if k.lower() == name.lower()), "")


class SandboxClient:
    """Speaks to one running sandbox."""

    def __init__(
        self,
        host: str,
        port: int,
        control_key: str,
        ca_file: str,
        *,
        client_id: str = "",
        client_secret: str = "",
        tenant: str = "contoso.onmicrosoft.com",
        timeout_s: float = 30.0,
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca_file)
        self._connection = http.client.HTTPSConnection(
            host, port, context=context, timeout=timeout_s
        )
        self._key = control_key
        self._credentials = (tenant, client_id, client_secret)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._connection.close()

    # ── settings ────────────────────────────────────────────────────────────────────────

    def knobs(self, **changes: object) -> dict[str, Any]:
        """Change knobs (none: only look) and return all of them."""
        found: dict[str, Any] = self.call("PATCH", "knobs", changes)
        return found

    def mailbox(self, address: str, **changes: object) -> dict[str, Any]:
        """Make or change a mailbox; returns it with counts `received` and `sent`."""
        found: dict[str, Any] = self.call("PUT", f"mailboxes/{quote(address)}", changes)
        return found

    def remove_mailbox(self, address: str) -> None:
        """Remove a mailbox; what it received stays."""
        self.call("DELETE", f"mailboxes/{quote(address)}")

    def mailboxes(self) -> list[dict[str, Any]]:
        """Return all mailboxes of the table."""
        found: list[dict[str, Any]] = self.call("GET", "mailboxes")
        return found

    def app(self, client_id: str, **changes: object) -> dict[str, Any]:
        """Make or change an application (secrets, roles, enabled, exchange_rbac, tenant)."""
        found: dict[str, Any] = self.call("PUT", f"apps/{client_id}", changes)
        return found

    def apps(self) -> list[dict[str, Any]]:
        """Return all applications with their secrets."""
        found: list[dict[str, Any]] = self.call("GET", "apps")
        return found

    def fault(self, kind: str, **fields: object) -> None:
        """Put a fault at the end of the queue; fields of relayd.sandbox.knobs.Fault."""
        self.call("POST", "faults", {"kind": kind, **fields})

    def faults(self) -> dict[str, Any]:
        """Return {"waiting": [{"fault": …, "left": n}], "happened": {kind: n}}."""
        found: dict[str, Any] = self.call("GET", "faults")
        return found

    def clear_faults(self) -> None:
        """Forget all faults that wait."""
        self.call("DELETE", "faults")

    def revoke_tokens(self) -> None:
        """Make every token issued so far worthless."""
        self.call("POST", "revoke", {})

    def reset(self) -> None:
        """Forget mail, counts and faults; keep knobs, directory and tokens."""
        self.call("POST", "reset", {})

    # ── what happened ───────────────────────────────────────────────────────────────────

    def counts(self) -> dict[str, Any]:
        """Return token_requests, send_requests, messages, deliveries, mailboxes, all, …."""
        found: dict[str, Any] = self.call("GET", "counts")
        return found

    def in_flight_max(self, mailbox: str) -> int:
        """Return the most requests a mailbox ever had at once, refused ones included."""
        seen = self.counts()["mailboxes"].get(mailbox.lower(), {})
        return int(seen.get("in_flight_max", 0))

    def recipients(self) -> dict[str, int]:
        """Return how many messages each recipient has."""
        found: dict[str, int] = self.call("GET", "recipients")
        return found

    def requests(self) -> list[dict[str, Any]]:
        """Return the last thousand Graph requests: status, code, reason, ids."""
        found: list[dict[str, Any]] = self.call("GET", "requests")
        return found

    def messages(
        self, *, content: bool = False, limit: int = 100_000, **which: str
    ) -> list[Delivered]:
        """Return messages, oldest first.

        which: one of recipient=ADDRESS, sent=MAILBOX, message_id=ID, or header=X-NAME with
               value=TEXT; none: all.
        """
        return list(self._walk(content=content, limit=limit, **which))

    def deliveries_by(self, name: str) -> dict[str, dict[str, int]]:
        """Return {value of X- field NAME or "message-id": {recipient: how often delivered}}."""
        found: dict[str, dict[str, int]] = self.call("GET", f"deliveries?{urlencode({'by': name})}")
        return found

    def duplicates_by(self, name: str) -> int:
        """Return how many deliveries were one too many, told apart by that field."""
        return sum(
            times - 1
            for by_recipient in self.deliveries_by(name).values()
            for times in by_recipient.values()
        )

    def wait_for(self, count: int, *, seconds: float = 30.0, **which: str) -> list[Delivered]:
        """Return the messages as soon as there are `count`; an AssertionError says what came."""
        deadline = time.monotonic() + seconds
        while True:
            found = list(self._walk(content=False, limit=100_000, **which))
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, (
                f"{len(found)} of {count} messages came; last requests: {self.requests()[-3:]}"
            )
            time.sleep(0.03)

    def wait_for_deliveries(self, count: int, *, seconds: float = 60.0) -> dict[str, Any]:
        """Return counts() as soon as there were `count` deliveries (cheap for many)."""
        deadline = time.monotonic() + seconds
        while (counts := self.counts())["deliveries"] < count:
            assert time.monotonic() < deadline, f"{counts['deliveries']} of {count} deliveries came"
            time.sleep(0.05)
        return counts

    # ── as a client of Microsoft ────────────────────────────────────────────────────────

    def token(self) -> str:
        """Return an access token of the sandbox's first application."""
        tenant, client_id, secret = self._credentials
        form = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": secret,
            "scope": "https://graph.microsoft.com/.default",
        }
        status, octets = self.raw(
            "POST",
            f"/{tenant}/oauth2/v2.0/token",
            urlencode(form).encode(),
            {"Content-Type": "application/x-www-form-urlencoded"},
        )
        if status != 200:
            raise SandboxRefused(octets.decode())
        return str(json.loads(octets)["access_token"])

    def send_mime(self, mailbox: str, mime: bytes, token: str) -> tuple[int, bytes]:
        """Post `mime` as Graph wants it; returns status and body."""
        return self.raw(
            "POST",
            f"/v1.0/users/{quote(mailbox)}/sendMail",
            base64.b64encode(mime),
            {"Content-Type": "text/plain", "Authorization": f"Bearer {token}"},
        )

    # ── the wire ────────────────────────────────────────────────────────────────────────

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Call the control API; raises SandboxRefused."""
        octets = b"" if body is None else json.dumps(body).encode()
        status, answer = self.raw(
            method,
            f"/_sandbox/{path}",
            octets,
            {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
        )
        if status != 200:
            raise SandboxRefused(f"{method} {path}: {status} {answer.decode(errors='replace')}")
        return json.loads(answer)

    def raw(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        """Send one request over the kept connection, opened anew if it was closed."""
        for again in (True, False):
            try:
                self._connection.request(method, path, body, headers)
                response = self._connection.getresponse()
                return response.status, response.read()
            except (http.client.RemoteDisconnected, ConnectionError):
                self._connection.close()
                # Only what can be said twice without harm is said twice.
                if not (again and method == "GET"):
                    raise
        raise AssertionError("not reached")

    def _walk(self, *, content: bool, limit: int, **which: str) -> Iterator[Delivered]:
        after: int | None = 0
        while after is not None and limit > 0:
            query = {**which, "after": str(after), "limit": str(min(limit, 1000))}
            if content:
                query["content"] = "1"
            page = self.call("GET", f"messages?{urlencode(query)}")
            yield from (_delivered(each) for each in page["messages"])
            limit -= len(page["messages"])
            after = page["next"]


def _delivered(view: dict[str, Any]) -> Delivered:
    def octets(name: str) -> bytes | None:
        return base64.b64decode(view[name]) if view.get(name) is not None else None

    return Delivered(
        number=view["number"],
        mailbox=view["mailbox"],
        app=view["app"],
        form=view["form"],
        save_to_sent=view["save_to_sent"],
        request_id=view["request_id"],
        client_request_id=view["client_request_id"],
        arrived_at=view["arrived_at"],
        request_fields=view["request_fields"],
        recipients=tuple((each["address"], each["field"]) for each in view["recipients"]),
        header_from=view["from"],
        message_id=view["message_id"],
        subject=view["subject"],
        size_bytes=view["size_bytes"],
        body_bytes=view["body_bytes"],
        body_sha256=view["body_sha256"],
        defects=tuple(view["defects"]),
        x_fields=tuple((name, value) for name, value in view["x_fields"]),
        head=octets("head"),
        delivered_head=octets("delivered_head"),
        body=octets("body"),
    )
