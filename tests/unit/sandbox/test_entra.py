"""relayd.sandbox.entra: discovery and tokens, and every way to be refused one."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import urlencode

import pytest

from relayd.sandbox.http import Response
from relayd.sandbox.knobs import Fault, FaultKind
from relayd.sandbox.tokens import Claims
from tests.sandbox_lab import APP, SCOPE, TENANT, Asked, field_of, told


def body(response: Response | None) -> dict[str, Any]:
    assert response is not None
    found: dict[str, Any] = json.loads(response.body)
    return found


def strike(asked: Asked, kind: FaultKind, **fields: Any) -> None:
    asked.lab.faults.add([Fault(kind=kind, operation="token", **fields)])


def test_discovery_names_endpoints_by_the_tenants_guid() -> None:
    answer = body(Asked().entra("/contoso.onmicrosoft.com/v2.0/.well-known/openid-configuration"))
    base = f"https://login.test:8443/{TENANT}"
    assert answer["token_endpoint"] == f"{base}/oauth2/v2.0/token"
    assert answer["authorization_endpoint"] == f"{base}/oauth2/v2.0/authorize"
    assert answer["issuer"] == f"{base}/v2.0"


def test_discovery_of_an_unknown_tenant_says_90002() -> None:
    answer = Asked().entra("/fabrikam.onmicrosoft.com/v2.0/.well-known/openid-configuration")
    assert told(answer) == (400, "invalid_tenant")
    assert body(answer)["error_codes"] == [90002]


def test_instance_discovery_knows_this_host_only() -> None:
    path = (
        "/common/discovery/instance?api-version=1.1&authorization_endpoint=https://{}/t/authorize"
    )
    answer = body(Asked().entra(path.format("login.test:8443")))
    assert answer["tenant_discovery_endpoint"].startswith("https://login.test:8443/t/")
    assert answer["metadata"][0]["aliases"] == ["login.test:8443"]
    assert told(Asked().entra(path.format("evil.test"))) == (400, "invalid_instance")


def test_the_right_secret_gets_a_token_that_graph_believes() -> None:
    asked = Asked()
    answer = body(asked.grant())
    assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 3599)
    assert "refresh_in" not in answer
    claims = asked.lab.mint.verify(
        answer["access_token"], audiences=("https://graph.microsoft.com",), now=asked.lab.epoch_s()
    )
    assert isinstance(claims, Claims)
    assert (claims.appid, claims.tid, claims.roles) == (APP, TENANT, ("Mail.Send",))
    assert asked.lab.counts["token_requests"] == asked.lab.counts["tokens_issued"] == 1


def test_lifetime_and_refresh_are_knobs() -> None:
    asked = Asked()
    asked.knobs(token_lifetime_s=86_400, token_refresh_in_s=43_200)
    answer = body(asked.grant())
    assert (answer["expires_in"], answer["refresh_in"]) == (86_400, 43_200)


def test_a_secret_in_the_authorization_field_is_as_good() -> None:
    form = urlencode({"grant_type": "client_credentials", "scope": SCOPE}).encode()
    fields = {
        "content-type": "application/x-www-form-urlencoded",
        "authorization": "Basic " + base64.b64encode(f"{APP}:right".encode()).decode(),
    }
    path = f"/{TENANT}/oauth2/v2.0/token"
    assert "access_token" in body(Asked().entra(path, form, **fields))
    fields["authorization"] = "Basic !!!"
    assert told(Asked().entra(path, form, **fields)) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("changes", "status", "error", "number"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client", 7000215),
        (
            {"client_secret": "44444444-4444-4444-8444-444444444444"},
            401,
            "invalid_client",
            7000215,
        ),
        ({"client_secret": "old"}, 401, "invalid_client", 7000222),
        ({"client_secret": ""}, 401, "invalid_client", 7000218),
        ({"client_secret": "", "client_assertion": "ey"}, 401, "invalid_client", 700027),
        ({"client_id": "nobody"}, 400, "unauthorized_client", 700016),
        ({"tenant": "fabrikam.com"}, 400, "invalid_request", 90002),
        ({"tenant": "nonsense"}, 400, "invalid_request", 900023),
        ({"scope": "https://graph.microsoft.com/Mail.Send"}, 400, "invalid_scope", 70011),
        ({"scope": SCOPE + " openid"}, 400, "invalid_scope", 70011),
        ({"scope": "https://nothing.test/.default"}, 400, "invalid_resource", 500011),
        ({"scope": ""}, 400, "invalid_request", 900144),
        ({"grant_type": ""}, 400, "invalid_request", 900144),
        ({"client_id": ""}, 400, "invalid_request", 900144),
        ({"grant_type": "password"}, 400, "unsupported_grant_type", 70003),
    ],
)
def test_a_mistake_gets_its_own_number(
    changes: dict[str, str], status: int, error: str, number: int
) -> None:
    answer = Asked().grant(**changes)
    assert told(answer) == (status, error)
    said = body(answer)
    assert said["error_codes"] == [number]
    assert said["error_description"].startswith(f"AADSTS{number}: ")
    assert f"Trace ID: {said['trace_id']}" in said["error_description"]
    assert said["timestamp"] == "2026-11-20 10:00:00Z"
    assert said["error_uri"].endswith(f"code={number}")


def test_an_application_of_another_tenant_is_not_found_here() -> None:
    asked = Asked()
    asked.app(tenant="66666666-6666-4666-8666-666666666666")
    assert body(asked.grant())["error_codes"] == [700016]


def test_a_disabled_application_gets_nothing() -> None:
    asked = Asked()
    asked.app(enabled=False)
    assert body(asked.grant())["error_codes"] == [7000112]


def test_the_clients_correlation_id_comes_back() -> None:
    answer = Asked().entra(f"/{TENANT}/oauth2/v2.0/token", b"x=y", **{"client-request-id": "my-id"})
    assert body(answer)["correlation_id"] == "my-id"


def test_what_is_no_form_or_no_post_lacks_its_parameters() -> None:
    path = f"/{TENANT}/oauth2/v2.0/token"
    assert body(Asked().entra(path))["error_codes"] == [900144]
    fields = {"content-type": "application/json"}
    assert body(Asked().entra(path, b"{}", **fields))["error_codes"] == [900144]


def test_other_paths_are_not_found() -> None:
    answer = Asked().entra("/")
    assert answer is not None
    assert answer.status == 404


def test_latency_is_waited() -> None:
    asked = Asked()
    asked.knobs(token_latency_s=1.5)
    strike(asked, "latency", delay_s=2.0)
    assert "access_token" in body(asked.grant())
    assert asked.waited == [3.5]


def test_throttling_is_plain_text_with_a_time() -> None:
    asked = Asked()
    strike(asked, "429-plain", retry_after="60")
    answer = asked.grant()
    assert answer is not None
    assert (answer.status, answer.body) == (429, b"Too Many Requests")
    assert field_of(answer, "retry-after") == "60"
    assert field_of(answer, "content-type") == "text/plain"


def test_other_faults_of_the_token_endpoint() -> None:
    asked = Asked()
    strike(asked, "503", retry_after="5")
    strike(asked, "502")
    strike(asked, "close")
    strike(asked, "error", status=500, code="server_error")
    strike(asked, "aadsts", code="90033", retry_after="7")
    strike(asked, "aadsts", code="65001", message="Consent.")
    assert told(asked.grant()) == (503, "temporarily_unavailable")
    html = asked.grant()
    assert html is not None
    assert (html.status, field_of(html, "content-type")) == (502, "text/html")
    assert asked.grant() is None
    assert told(asked.grant()) == (500, "server_error")
    transient = asked.grant()
    assert told(transient) == (503, "temporarily_unavailable")
    assert field_of(transient, "retry-after") == "7"
    other = body(asked.grant())
    assert other["error_codes"] == [65001]
    assert other["error_description"].startswith("AADSTS65001: Consent.")
    assert "access_token" in body(asked.grant())
