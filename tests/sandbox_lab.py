"""A sandbox without sockets for unit tests: the lab, its handlers, a clock that stands."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from relayd.clock import FakeClock
from relayd.sandbox.entra import Entra
from relayd.sandbox.fields import changed
from relayd.sandbox.graph import Graph
from relayd.sandbox.http import Head, Request, Response
from relayd.sandbox.knobs import App, AppSecret, Mailbox, Tenant
from relayd.sandbox.lab import Directory, Lab, Watcher
from relayd.sandbox.tokens import Mint

TENANT = "11111111-1111-4111-8111-111111111111"
APP = "22222222-2222-4222-8222-222222222222"
SCOPE = "https://graph.microsoft.com/.default"

PLAIN = (
    b"From: alerts@contoso.com\r\n"
    b"To: ops@contoso.com\r\n"
    b"Subject: On battery\r\n"
    b"Message-ID: <1@ups>\r\n"
    b"X-Test: one\r\n"
    b"\r\n"
    b"Since 10:00.\r\n"
)


def make_lab() -> Lab:
    """Return a lab with one tenant, one application and alerts@contoso.com."""
    app = App(
        client_id=APP,
        tenant=TENANT,
        object_id="33333333-3333-4333-8333-333333333333",
        secrets=(
            AppSecret(value="right", id="44444444-4444-4444-8444-444444444444"),
            AppSecret(value="old", expired=True),
        ),
    )
    mailbox = Mailbox(
        address="alerts@contoso.com",
        object_id="55555555-5555-4555-8555-555555555555",
        aliases=("alarm@contoso.com",),
        send_as=("helpdesk@contoso.com",),
    )
    return Lab(
        mint=Mint(b"k" * 32),
        directory=Directory(
            tenants=[Tenant(id=TENANT, domains=("contoso.onmicrosoft.com",))],
            apps={APP: app},
            mailboxes={mailbox.address: mailbox},
        ),
        clock=FakeClock(),
    )


@dataclass(slots=True)
class Asked:
    """The two halves over one lab. waited: every wait, seconds; during: what happens then."""

    lab: Lab = field(default_factory=make_lab)
    waited: list[float] = field(default_factory=list)
    during: Callable[[], None] = lambda: None
    watcher: Watcher = field(default_factory=Watcher)

    async def wait(self, seconds: float) -> None:
        """Wait without waiting."""
        self.waited.append(seconds)
        self.during()

    def knobs(self, **changes: Any) -> None:
        """Turn knobs."""
        self.lab.knobs = changed(self.lab.knobs, changes)

    def mailbox(self, **changes: Any) -> None:
        """Change alerts@contoso.com."""
        current = self.lab.directory.mailboxes["alerts@contoso.com"]
        self.lab.directory.put(changed(current, changes))

    def app(self, **changes: Any) -> None:
        """Change the application."""
        self.lab.directory.apps[APP] = changed(self.lab.directory.apps[APP], changes)

    def token(self, **changes: Any) -> str:
        """Return a token issued now; changes: audience, lifetime_s."""
        given = {"audience": "https://graph.microsoft.com", "lifetime_s": 3599, **changes}
        app = self.lab.directory.apps[APP]
        return self.lab.mint.issue(app, tenant_id=TENANT, now=self.lab.epoch_s(), **given)

    def entra(self, path: str, body: bytes = b"", **fields: str) -> Response | None:
        """Ask the login half."""
        entra = Entra(self.lab, self.wait, self.watcher)
        return run(entra.handle(request("POST" if body else "GET", path, body, fields)))

    def grant(self, tenant: str = TENANT, **changes: str) -> Response | None:
        """Ask for a token; changes: form fields, "" takes one away."""
        form = {
            "grant_type": "client_credentials",
            "client_id": APP,
            "client_secret": "right",
            "scope": SCOPE,
        }
        given = {name: value for name, value in {**form, **changes}.items() if value}
        return self.entra(
            f"/{tenant}/oauth2/v2.0/token",
            urlencode(given).encode(),
            **{"content-type": "application/x-www-form-urlencoded"},
        )

    def post(
        self,
        body: bytes,
        *,
        to: str = "alerts@contoso.com",
        kind: str = "text/plain",
        **fields: str,
    ) -> Response | None:
        """Post to sendMail as it is; fields: with _ for -."""
        given = {name.replace("_", "-"): value for name, value in fields.items()}
        given = {"content-type": kind, "authorization": f"Bearer {self.token()}", **given}
        asked = request("POST", f"/v1.0/users/{to}/sendMail", body, given)
        graph = Graph(self.lab, self.wait, self.watcher)
        ticket = graph.enter(asked.head)
        try:
            return run(graph.handle(asked, ticket))
        finally:
            if ticket is not None:
                graph.leave(ticket)

    def send(self, mime: bytes = PLAIN, **how: str) -> Response | None:
        """Post `mime` as base64."""
        return self.post(base64.b64encode(mime), **how)


def request(method: str, path: str, body: bytes, fields: Mapping[str, str]) -> Request:
    """Return a request as the rim would hand it over."""
    path, _, query = path.partition("?")
    pairs = dict(pair.split("=", 1) for pair in query.split("&")) if query else {}
    head = Head(
        method=method,
        path=path,
        query=pairs,
        fields={"host": "login.test:8443", **fields},
        keep_alive=True,
    )
    return Request(head=head, body=body, body_bytes=len(body))


def run(answer: Coroutine[Any, Any, Response | None]) -> Response | None:
    """Run one handler to its end."""
    return asyncio.run(answer)


def told(response: Response | None) -> tuple[int, str]:
    """Return status and error code of an answer."""
    assert response is not None
    if not response.body:
        return response.status, ""
    error = json.loads(response.body)["error"]
    return response.status, error if isinstance(error, str) else error["code"]


def field_of(response: Response | None, name: str) -> str:
    """Return a field of an answer, "" if it is not there."""
    assert response is not None
    return next((v for k, v in response.fields if k.lower() == name.lower()), "")
