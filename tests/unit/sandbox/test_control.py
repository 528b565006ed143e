"""relayd.sandbox.control: turns every knob, shows every message, lets nobody else in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from relayd.sandbox.control import ROUTES, Control
from tests.sandbox_lab import APP, PLAIN, Asked, request, told

KEY = {"authorization": "Bearer key"}


def call(asked: Asked, method: str, path: str, body: object = None, *, expect: int = 200) -> Any:
    octets = b"" if body is None else json.dumps(body).encode()
    control = Control(asked.lab, "key", lambda: 7)
    answer = control.handle(request(method, f"/_sandbox/{path}", octets, KEY))
    assert answer.status == expect, answer.body
    return json.loads(answer.body)


def test_without_the_key_there_is_health_and_nothing_else() -> None:
    control = Control(Asked().lab, "key")
    assert control.handle(request("GET", "/_sandbox/health", b"", {})).status == 200
    for fields in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic key"}):
        assert control.handle(request("GET", "/_sandbox/knobs", b"", fields)).status == 401


def test_knobs_are_shown_and_turned_and_mistakes_named() -> None:
    asked = Asked()
    assert call(asked, "GET", "knobs")["linger_s"] == 0
    assert call(asked, "PATCH", "knobs", {"linger_s": 2})["linger_s"] == 2
    assert asked.lab.knobs.linger_s == 2
    assert "no such key" in call(asked, "PATCH", "knobs", {"x": 1}, expect=400)["error"]
    assert (
        "not JSON"
        in json.loads(
            Control(asked.lab, "key").handle(request("PATCH", "/_sandbox/knobs", b"{", KEY)).body
        )["error"]
    )


def test_mailboxes_are_made_changed_shown_and_removed() -> None:
    asked = Asked()
    made = call(asked, "PUT", "mailboxes/New@contoso.com", {"full": True})
    assert (made["address"], made["full"], made["received"]) == ("new@contoso.com", True, 0)
    assert made["object_id"]
    call(asked, "PUT", "mailboxes/new@contoso.com", {"full": False, "aliases": ["n@contoso.com"]})
    assert call(asked, "GET", "mailboxes/new@contoso.com")["aliases"] == ["n@contoso.com"]
    assert len(call(asked, "GET", "mailboxes")) == 2
    call(asked, "PUT", "mailboxes/new@contoso.com", {"address": "other@x.y"}, expect=400)
    call(asked, "DELETE", "mailboxes/new@contoso.com")
    call(asked, "GET", "mailboxes/new@contoso.com", expect=404)
    call(asked, "PUT", "mailboxes", {}, expect=404)


def test_healing_a_mailbox_by_hand_forgets_the_denial() -> None:
    asked = Asked()
    call(asked, "PUT", "mailboxes/alerts@contoso.com", {"denied": "ErrorAccessDenied"})
    assert told(asked.send())[0] == 403
    call(asked, "PUT", "mailboxes/alerts@contoso.com", {"denied": ""})
    assert told(asked.send())[0] == 202
    assert asked.lab.denied_at == {}


def test_applications_and_tenants() -> None:
    asked = Asked()
    assert [app["client_id"] for app in call(asked, "GET", "apps")] == [APP]
    call(asked, "PUT", f"apps/{APP}", {"secrets": [{"value": "new"}]})
    assert asked.grant(client_secret="new") is not None
    assert told(asked.grant()) == (401, "invalid_client")
    call(asked, "PUT", "apps/other", {"secrets": [{"value": "s"}]})
    assert told(asked.grant(client_id="other", client_secret="nope")) == (401, "invalid_client")
    call(asked, "DELETE", "apps/other")
    call(asked, "DELETE", "apps/other", expect=404)
    guid = "77777777-7777-4777-8777-777777777777"
    call(asked, "POST", "tenants", {"id": guid, "domains": ["fabrikam.com"]})
    assert len(call(asked, "GET", "tenants")) == 2
    assert told(asked.grant("fabrikam.com")) == (400, "unauthorized_client")


def test_faults_are_queued_listed_and_cleared() -> None:
    asked = Asked()
    assert call(asked, "POST", "faults", [{"kind": "503"}, {"kind": "close"}]) == {"added": 2}
    call(asked, "POST", "faults", {"kind": "504", "times": 0})
    call(asked, "POST", "faults", {"kind": "nonsense"}, expect=400)
    assert told(asked.send())[0] == 503
    listed = call(asked, "GET", "faults")
    assert [(each["fault"]["kind"], each["left"]) for each in listed["waiting"]] == [
        ("close", 1),
        ("504", 0),
    ]
    assert listed["happened"] == {"503": 1}
    call(asked, "DELETE", "faults")
    assert told(asked.send())[0] == 202


def test_tokens_are_revoked() -> None:
    asked = Asked()
    token = asked.token()
    call(asked, "POST", "revoke", {"token": token})
    assert told(asked.send(authorization=f"Bearer {token}"))[0] == 401
    call(asked, "POST", "revoke", {"token": "nonsense"}, expect=404)
    other = asked.token()
    call(asked, "POST", "revoke", {})
    assert told(asked.send(authorization=f"Bearer {other}"))[0] == 401


def test_counts_tell_everything_and_a_reset_forgets_it() -> None:
    asked = Asked()
    asked.grant()
    asked.send(PLAIN.replace(b"To:", b"To: a@b.c,"))
    counts = call(asked, "GET", "counts")
    assert (counts["token_requests"], counts["messages"], counts["deliveries"]) == (1, 1, 2)
    assert counts["mailboxes"]["alerts@contoso.com"]["in_flight_max"] == 1
    assert counts["connections"] == 7
    assert call(asked, "GET", "requests")[0]["status"] == 202
    call(asked, "POST", "reset")
    assert call(asked, "GET", "counts")["messages"] == 0


def test_messages_are_found_by_recipient_sender_id_and_field() -> None:
    asked = Asked()
    for number in range(3):
        asked.send(PLAIN.replace(b"one", b"n%d" % number))
    assert call(asked, "GET", "recipients") == {"ops@contoso.com": 3}
    page = call(asked, "GET", "messages?recipient=ops@contoso.com&limit=2")
    assert ([each["number"] for each in page["messages"]], page["next"]) == ([1, 2], 2)
    page = call(asked, "GET", "messages?recipient=ops@contoso.com&after=2")
    assert ([each["number"] for each in page["messages"]], page["next"]) == ([3], None)
    for query, count in (
        ("sent=alerts@contoso.com", 3),
        ("message_id=<1@ups>", 3),
        ("message_id=<1@ups>&after=1", 2),
        ("header=X-Test&value=n1", 1),
        ("limit=2", 2),
    ):
        assert len(call(asked, "GET", f"messages?{query}")["messages"]) == count
    call(asked, "GET", "messages?after=x", expect=400)
    assert call(asked, "GET", "deliveries?by=X-Test")["n1"] == {"ops@contoso.com": 1}
    assert call(asked, "GET", "deliveries") == {"<1@ups>": {"ops@contoso.com": 3}}


def test_one_message_with_its_octets_and_its_source() -> None:
    asked = Asked()
    asked.send(PLAIN.replace(b"To:", b"Bcc: b@x.y\r\nTo:"))
    shown = call(asked, "GET", "messages/1")
    assert shown["body"]
    assert shown["head"] != shown["delivered_head"]
    raw = Control(asked.lab, "key").handle(request("GET", "/_sandbox/messages/1/raw", b"", KEY))
    assert raw.body == PLAIN
    call(asked, "GET", "messages/2", expect=404)
    call(asked, "GET", "messages/x", expect=404)
    asked.send(PLAIN + b"x\r\n" * 30_000)
    call(asked, "GET", "messages/2/raw", expect=404)


@pytest.mark.parametrize(("method", "word"), [("POST", "knobs"), ("GET", "nothing"), ("GET", "")])
def test_other_paths_are_not_found(method: str, word: str) -> None:
    call(Asked(), method, word, expect=404)


def test_every_route_says_what_it_does() -> None:
    for (method, word), handler in ROUTES.items():
        assert f"{method} {word}" in (handler.__doc__ or ""), handler
