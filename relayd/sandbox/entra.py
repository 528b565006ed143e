"""The login half: discovery and the token endpoint, client credentials with a secret.

Errors are Entra's: an `error` to branch on, AADSTS text, trace and correlation ids. An
application without any role gets its token all the same; only Graph will refuse it.

Source: Microsoft identity platform, OAuth 2.0 client credentials; AADSTS error codes;
OpenID Connect Discovery 1.0.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote_plus, urlsplit

from relayd.sandbox.faults import SHAPES, Ending
from relayd.sandbox.fields import Json
from relayd.sandbox.http import Head, Request, Response
from relayd.sandbox.knobs import App, Fault, Tenant
from relayd.sandbox.lab import Lab, Watcher

Wait = Callable[[float], Awaitable[None]]

_GRAPH: Final = "https://graph.microsoft.com"
_RESOURCES: Final = frozenset(
    {
        _GRAPH,
        "https://graph.microsoft.us",
        "https://dod-graph.microsoft.us",
        "https://microsoftgraph.chinacloudapi.cn",
        "https://outlook.office365.com",
        "https://outlook.office365.us",
        "https://partner.outlook.cn",
        "https://vault.azure.net",
        "https://storage.azure.com",
    }
)
_GUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.IGNORECASE)
_DOMAIN: Final = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Aadsts:
    status: int
    error: str
    text: str


_ERRORS: Final[Mapping[int, _Aadsts]] = {
    7000215: _Aadsts(
        401,
        "invalid_client",
        "Invalid client secret provided. Ensure the secret being sent in the request is the "
        "client secret value, not the client secret ID, for a secret added to app '{app}'.",
    ),
    7000222: _Aadsts(
        401,
        "invalid_client",
        "The provided client secret keys for app '{app}' are expired. Visit the Azure portal to "
        "create new keys for your app: https://aka.ms/NewClientSecret, or consider using "
        "certificate credentials for added security: https://aka.ms/certCreds.",
    ),
    7000218: _Aadsts(
        401,
        "invalid_client",
        "The request body must contain the following parameter: 'client_assertion' or "
        "'client_secret'.",
    ),
    700027: _Aadsts(
        401,
        "invalid_client",
        "The certificate with identifier used to sign the client assertion is not registered on "
        "application.",
    ),
    7000112: _Aadsts(400, "unauthorized_client", "Application '{app}' is disabled."),
    700016: _Aadsts(
        400,
        "unauthorized_client",
        "Application with identifier '{app}' was not found in the directory '{tenant}'. This can "
        "happen if the application has not been installed by the administrator of the tenant or "
        "consented to by any user in the tenant. You may have sent your authentication request "
        "to the wrong tenant.",
    ),
    90002: _Aadsts(
        400,
        "invalid_request",
        "Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID and are "
        "signing into the correct cloud. Check with your subscription administrator, this may "
        "happen if there are no active subscriptions for the tenant.",
    ),
    900023: _Aadsts(
        400,
        "invalid_request",
        "Specified tenant identifier '{tenant}' is neither a valid DNS name, nor a valid external "
        "domain.",
    ),
    70011: _Aadsts(
        400,
        "invalid_scope",
        "The provided request must include a 'scope' input parameter. The provided value for the "
        "input parameter 'scope' is not valid. The scope {scope} is not valid.",
    ),
    500011: _Aadsts(
        400,
        "invalid_resource",
        "The resource principal named {scope} was not found in the tenant named {tenant}.",
    ),
    900144: _Aadsts(
        400,
        "invalid_request",
        "The request body must contain the following parameter: '{parameter}'.",
    ),
    70003: _Aadsts(
        400, "unsupported_grant_type", "The app requested an unsupported grant type '{parameter}'."
    ),
    53003: _Aadsts(
        400,
        "access_denied",
        "Access has been blocked by Conditional Access policies. The access policy does not allow "
        "token issuance.",
    ),
    50196: _Aadsts(
        400,
        "invalid_grant",
        "The server terminated an operation because it "
        "encountered a client request loop. Please contact your app vendor.",
    ),
    90033: _Aadsts(
        503, "temporarily_unavailable", "A transient error has occurred. Please try again."
    ),
    90055: _Aadsts(429, "temporarily_unavailable", "The tenant exceeded its request limit."),
}


@dataclass(frozen=True, slots=True)
class _Refused:
    """Why no token is issued. words: what the text of that number wants to name."""

    number: int
    words: Mapping[str, str]


class Entra:
    """Answers for login.microsoftonline.com. wait: sleeps real seconds."""

    def __init__(self, lab: Lab, wait: Wait, watcher: Watcher) -> None:
        self._lab = lab
        self._wait = wait
        self._watcher = watcher

    async def handle(self, request: Request) -> Response | None:
        """Answer a request for the login host; None: close without an answer."""
        parts = request.head.path.strip("/").split("/")
        if parts[:3] == ["common", "discovery", "instance"]:
            return self._instance(request.head)
        if parts[1:] in (
            ["v2.0", ".well-known", "openid-configuration"],
            [".well-known", "openid-configuration"],
        ):
            self._lab.counts["discovery_requests"] += 1
            return self._configuration(parts[0], request.head)
        if parts[1:] == ["oauth2", "v2.0", "token"]:
            return await self._token(parts[0], request)
        return Response(status=404, fields=(("Content-Type", "text/html"),), body=b"Not found")

    def _instance(self, head: Head) -> Response:
        target = urlsplit(head.query.get("authorization_endpoint", ""))
        if target.netloc != head.get("host"):
            body: Json = {
                "error": "invalid_instance",
                "error_description": "AADSTS50049: Unknown or invalid instance.",
                "error_codes": [50049],
            }
            return _json(400, body)
        host = head.get("host")
        tenant = target.path.strip("/").partition("/")[0]
        endpoint = f"https://{host}/{tenant}/v2.0/.well-known/openid-configuration"
        metadata: Json = [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}]
        return _json(
            200,
            {
                "tenant_discovery_endpoint": endpoint,
                "api-version": head.query.get("api-version", "1.1"),
                "metadata": metadata,
            },
        )

    def _configuration(self, name: str, head: Head) -> Response:
        tenant = self._tenant(name)
        if isinstance(tenant, _Refused):
            return self._error(tenant, head, error="invalid_tenant")
        base = f"https://{head.get('host')}/{tenant.id}"
        return _json(
            200,
            {
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
                "jwks_uri": f"{base}/discovery/v2.0/keys",
                "issuer": f"{base}/v2.0",
                "token_endpoint_auth_methods_supported": [
                    "client_secret_post",
                    "private_key_jwt",
                    "client_secret_basic",
                ],
                "response_modes_supported": ["query", "fragment", "form_post"],
                "subject_types_supported": ["pairwise"],
                "id_token_signing_alg_values_supported": ["RS256"],
                "response_types_supported": ["code"],
                "scopes_supported": ["openid", "profile", "email", "offline_access"],
                "tenant_region_scope": "EU",
                "cloud_instance_name": "microsoftonline.com",
                "cloud_graph_host_name": "graph.windows.net",
                "msgraph_host": "graph.microsoft.com",
            },
        )

    async def _token(self, tenant: str, request: Request) -> Response | None:
        lab = self._lab
        lab.counts["token_requests"] += 1
        fault = lab.faults.take("token", "")
        delay_s = lab.knobs.token_latency_s + (fault.delay_s if fault else 0.0)
        if delay_s:
            await self._wait(delay_s)
        if fault is not None:
            ending = SHAPES[fault.kind].ending
            if ending is Ending.CLOSE:
                return None
            if ending is not Ending.USUAL:
                return self._struck(fault, request.head)
        granted = self._grant(tenant, request)
        if isinstance(granted, _Refused):
            lab.counts[f"token_refused_{granted.number}"] += 1
            return self._error(granted, request.head)
        lab.counts["tokens_issued"] += 1
        return granted

    def _struck(self, fault: Fault, head: Head) -> Response:
        shape = SHAPES[fault.kind]
        retry = (("Retry-After", fault.retry_after),) if fault.retry_after else ()
        if shape.ending is Ending.AADSTS:
            number = int(fault.code) if fault.code.isdigit() else 90033
            response = self._error(_Refused(number, {}), head, text=fault.message)
            return Response(
                status=response.status, fields=(*response.fields, *retry), body=response.body
            )
        status = shape.status or fault.status
        if shape.ending is Ending.HTML:
            page = f"<html><body><h1>{status} Bad Gateway</h1></body></html>".encode()
            return Response(
                status=status, fields=(("Content-Type", "text/html"), *retry), body=page
            )
        if shape.ending is Ending.PLAIN or status == 429:
            text = (fault.message or shape.text or "Too Many Requests").encode()
            return Response(
                status=status, fields=(("Content-Type", "text/plain"), *retry), body=text
            )
        body: Json = {"error": fault.code or "temporarily_unavailable"}
        response = _json(status, body)
        return Response(status=status, fields=(*response.fields, *retry), body=response.body)

    def _tenant(self, name: str) -> Tenant | _Refused:
        tenant = self._lab.directory.tenant(name)
        if tenant is not None:
            return tenant
        known_form = _GUID.match(name) or _DOMAIN.match(name)
        return _Refused(90002 if known_form else 900023, {"tenant": name})

    def _grant(self, name: str, request: Request) -> Response | _Refused:
        """Judge a token request in the order Entra does."""
        head = request.head
        if head.method != "POST":
            return _Refused(900144, {"parameter": "grant_type"})
        tenant = self._tenant(name)
        if isinstance(tenant, _Refused):
            return tenant
        if head.get("content-type").partition(";")[0].strip() != (
            "application/x-www-form-urlencoded"
        ):
            return _Refused(900144, {"parameter": "grant_type"})
        form = dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
        for parameter in ("grant_type", "client_id", "scope"):
            if not form.get(parameter) and not (parameter == "client_id" and _basic(head)):
                return _Refused(900144, {"parameter": parameter})
        if form["grant_type"] != "client_credentials":
            return _Refused(70003, {"parameter": form["grant_type"]})
        client_id, secret = _basic(head) or (form["client_id"], form.get("client_secret", ""))
        app = self._proven(tenant, name, client_id, secret, assertion="client_assertion" in form)
        if isinstance(app, _Refused):
            return app
        return self._issue(app, tenant, form["scope"])

    def _proven(
        self, tenant: Tenant, name: str, client_id: str, secret: str, *, assertion: bool
    ) -> App | _Refused:
        words = {"app": client_id, "tenant": name}
        app = self._lab.directory.apps.get(client_id.lower())
        if app is None or app.tenant.lower() not in (tenant.id, *tenant.domains):
            return _Refused(700016, words)
        if not app.enabled:
            return _Refused(7000112, words)
        if not secret:
            return _Refused(700027 if assertion else 7000218, words)
        for known in app.secrets:
            if hmac.compare_digest(known.value.encode(), secret.encode()):
                return _Refused(7000222, words) if known.expired else app
        return _Refused(7000215, words)

    def _issue(self, app: App, tenant: Tenant, scope: str) -> Response | _Refused:
        audience, dot, rest = scope.partition("/.default")
        if not dot or rest:
            return _Refused(70011, {"scope": scope})
        if audience.rstrip("/") not in _RESOURCES:
            return _Refused(500011, {"scope": audience, "tenant": tenant.id})
        knobs = self._lab.knobs
        lifetime_s = knobs.token_lifetime_s
        token = self._lab.mint.issue(
            app,
            tenant_id=tenant.id,
            audience=audience.rstrip("/"),
            now=self._lab.epoch_s(),
            lifetime_s=lifetime_s,
        )
        body: dict[str, Json] = {
            "token_type": "Bearer",
            "expires_in": lifetime_s,
            "ext_expires_in": lifetime_s,
        }
        if knobs.token_refresh_in_s:
            body["refresh_in"] = knobs.token_refresh_in_s
        body["access_token"] = token
        return _json(200, body)

    def _error(self, refused: _Refused, head: Head, *, error: str = "", text: str = "") -> Response:
        kind = _ERRORS.get(refused.number, _Aadsts(400, "invalid_request", "An error occurred."))
        words = {"app": "", "tenant": "", "scope": "", "parameter": "", **refused.words}
        trace, correlation = str(uuid.uuid4()), head.get("client-request-id") or str(uuid.uuid4())
        at = self._lab.clock.utcnow().strftime("%Y-%m-%d %H:%M:%SZ")
        said = text or kind.text.format(**words)
        self._watcher.refused(kind.status, f"AADSTS{refused.number}", said)
        return _json(
            kind.status,
            {
                "error": error or kind.error,
                "error_description": f"AADSTS{refused.number}: {said}\r\nTrace ID: {trace}\r\n"
                f"Correlation ID: {correlation}\r\nTimestamp: {at}",
                "error_codes": [refused.number],
                "timestamp": at,
                "trace_id": trace,
                "correlation_id": correlation,
                "error_uri": f"https://{head.get('host')}/error?code={refused.number}",
            },
        )


def _basic(head: Head) -> tuple[str, str] | None:
    kind, _, value = head.get("authorization").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        name, _, secret = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return unquote_plus(name), unquote_plus(secret)


def _json(status: int, body: Json) -> Response:
    fields = (
        ("Cache-Control", "no-store, no-cache"),
        ("Content-Type", "application/json; charset=utf-8"),
        ("x-ms-request-id", str(uuid.uuid4())),
    )
    return Response(status=status, fields=fields, body=json.dumps(body).encode())
