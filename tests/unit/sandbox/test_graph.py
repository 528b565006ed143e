"""relayd.sandbox.graph: who may send, how much at once, and what faults do to the mail."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from relayd.clock import FakeClock
from relayd.sandbox.graph import Graph
from relayd.sandbox.http import Response
from relayd.sandbox.knobs import Fault, FaultKind
from relayd.sandbox.lab import Watcher
from relayd.sandbox.store import Stored
from tests.sandbox_lab import APP, PLAIN, Asked, field_of, request, run, told

DENIED = (403, "ErrorAccessDenied")


def strike(asked: Asked, kind: FaultKind, **fields: Any) -> None:
    asked.lab.faults.add([Fault(kind=kind, **fields)])


def delivered(asked: Asked) -> int:
    return asked.lab.store.total


def status(response: Response | None) -> int:
    return response.status if response is not None else 0


def test_a_message_is_taken_with_the_fields_microsoft_sends() -> None:
    asked = Asked()
    answer = asked.send(
        client_request_id="0f8fad5b-d9cb-469f-a165-70867728950e", user_agent="relayd/1"
    )
    assert told(answer) == (202, "")
    assert field_of(answer, "client-request-id") == "0f8fad5b-d9cb-469f-a165-70867728950e"
    assert field_of(answer, "content-type") == "text/plain"
    assert "ServerInfo" in json.loads(field_of(answer, "x-ms-ags-diagnostic"))
    (stored,) = asked.lab.store.inbox("ops@contoso.com")
    assert stored.post.request_id == field_of(answer, "request-id")
    assert stored.post.app == APP
    assert dict(stored.post.request_fields)["user-agent"] == "relayd/1"
    assert "authorization" not in dict(stored.post.request_fields)
    assert stored.header_from == "alerts@contoso.com"


def test_immutable_ids_are_confirmed() -> None:
    answer = Asked().send(prefer='IdType="ImmutableId"')
    assert field_of(answer, "preference-applied") == 'IdType="ImmutableId"'


@pytest.mark.parametrize(
    "path",
    [
        "/v1.0/users/alerts@contoso.com/sendmail",
        "/v1.0/users('alerts@contoso.com')/microsoft.graph.sendMail",
        "/v1.0/users/55555555-5555-4555-8555-555555555555/sendMail",
    ],
)
def test_a_mailbox_is_reached_by_each_of_its_paths(path: str) -> None:
    asked = Asked()
    fields = {"content-type": "text/plain", "authorization": f"Bearer {asked.token()}"}
    graph = Graph(asked.lab, asked.wait, asked.watcher)
    asked_for = request("POST", path, base64.b64encode(PLAIN), fields)
    answer = run(graph.handle(asked_for, graph.enter(asked_for.head)))
    assert told(answer) == (202, "")
    assert asked.lab.store.sent_counts() == {"alerts@contoso.com": 1}


@pytest.mark.parametrize(
    ("method", "path", "answer"),
    [
        ("GET", "/v1.0/users/a/sendMail", (405, "Request_BadRequest")),
        ("POST", "/v1.0/users/a/messages", (400, "BadRequest")),
        ("POST", "/v1.0/me/sendMail", (400, "BadRequest")),
    ],
)
def test_other_paths_are_refused(method: str, path: str, answer: tuple[int, str]) -> None:
    asked = Asked()
    graph = Graph(asked.lab, asked.wait, asked.watcher)
    asked_for = request(method, path, b"", {})
    assert graph.enter(asked_for.head) is None
    assert told(run(graph.handle(asked_for, None))) == answer


def test_a_token_that_is_old_foreign_revoked_or_absent_gets_401() -> None:
    asked = Asked()
    old = asked.token(lifetime_s=60)
    assert isinstance(asked.lab.clock, FakeClock)
    asked.lab.clock.advance(61)
    foreign = asked.token(audience="https://outlook.office365.com")
    revoked = asked.token()
    assert asked.lab.mint.revoke(revoked)
    for bearer in (f"Bearer {old}", f"Bearer {foreign}", f"Bearer {revoked}", "", "Basic x"):
        answer = asked.send(authorization=bearer)
        assert told(answer) == (401, "InvalidAuthenticationToken")
        assert "invalid_token" in field_of(answer, "www-authenticate")
    assert delivered(asked) == 0


def test_a_token_without_the_role_is_denied_unless_exchange_grants_it() -> None:
    asked = Asked()
    asked.app(roles=[])
    answer = asked.send()
    assert told(answer) == DENIED
    assert "Mail.Send" in field_of(answer, "x-sandbox-reason")
    asked.app(exchange_rbac=True)
    assert told(asked.send()) == (202, "")


def test_the_error_envelope_is_microsofts() -> None:
    answer = Asked().send(to="nobody@contoso.com")
    assert answer is not None
    error = json.loads(answer.body)["error"]
    assert error["code"] == "ErrorInvalidUser"
    assert error["message"] == "The requested user 'nobody@contoso.com' is invalid."
    assert error["innerError"]["date"] == "2026-11-20T10:00:00"
    assert error["innerError"]["request-id"] == field_of(answer, "request-id")


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"exists": False}, (404, "ErrorInvalidUser")),
        ({"licensed": False}, (404, "MailboxNotEnabledForRESTAPI")),
        ({"on_premises": True}, (404, "MailboxNotEnabledForRESTAPI")),
        ({"disabled": True}, (403, "ErrorAccountDisabled")),
        ({"blocked": True}, (403, "ErrorMessageSubmissionBlocked")),
        ({"full": True}, (507, "ErrorQuotaExceeded")),
        ({"denied": "Authorization_RequestDenied"}, (403, "Authorization_RequestDenied")),
        ({"recipient_limit": 0}, (400, "ErrorExceededMaxRecipientLimit")),
        ({"max_send_size": 50}, (400, "ErrorMessageSizeExceeded")),
    ],
)
def test_what_is_wrong_with_a_mailbox(changes: dict[str, Any], answer: tuple[int, str]) -> None:
    asked = Asked()
    asked.mailbox(**changes)
    assert told(asked.send()) == answer
    assert delivered(asked) == 0


def test_a_denial_heals_only_while_nobody_asks() -> None:
    asked, clock = Asked(), FakeClock()
    asked.lab.clock = clock
    asked.mailbox(denied="ErrorAccessDenied", heals_after_s=1800.0)
    assert told(asked.send()) == DENIED
    clock.advance(1700)
    assert told(asked.send()) == DENIED
    clock.advance(1700)
    assert told(asked.send()) == DENIED
    clock.advance(1800)
    assert told(asked.send()) == (202, "")


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ("413-empty", (413, "")),
        ("413-json", (413, "BadRequest")),
        ("400-json", (400, "BadRequest")),
        ("200", (200, "")),
    ],
)
def test_a_body_over_the_limit_gets_the_answer_that_was_chosen(
    how: str, answer: tuple[int, str]
) -> None:
    asked = Asked()
    asked.knobs(too_large_answer=how, body_limit=len(base64.b64encode(PLAIN)) - 1)
    assert told(asked.send()) == answer
    assert delivered(asked) == 0


def test_a_body_of_just_the_limit_passes() -> None:
    asked = Asked()
    asked.knobs(body_limit=len(base64.b64encode(PLAIN)))
    assert told(asked.send()) == (202, "")


def test_too_many_at_once_get_429_with_a_time_and_without() -> None:
    asked = Asked()
    asked.knobs(concurrency=1, concurrency_retry_after_s=120, time_factor=60)
    head = request(
        "POST",
        "/v1.0/users/alerts@contoso.com/sendMail",
        b"",
        {"authorization": f"Bearer {asked.token()}"},
    ).head
    ticket = Graph(asked.lab, asked.wait, asked.watcher).enter(head)
    assert ticket is not None
    answer = asked.send()
    assert told(answer) == (429, "ApplicationThrottled")
    assert field_of(answer, "retry-after") == "2"
    asked.knobs(retry_after="none")
    assert field_of(asked.send(), "retry-after") == ""
    asked.knobs(retry_after="Fri, 20 Nov 2026 10:01:00 GMT")
    assert field_of(asked.send(), "retry-after").endswith("GMT")
    assert asked.lab.limiter.seen["alerts@contoso.com"].in_flight_max == 2


def test_windows_of_octets_and_recipients() -> None:
    asked = Asked()
    asked.knobs(octets_per_window=10)
    assert told(asked.send()) == (429, "ApplicationThrottled")
    asked.knobs(octets_per_window=0, recipients_per_day=1)
    assert told(asked.send()) == (202, "")
    answer = asked.send()
    assert told(answer) == (429, "ErrorSubmissionQuotaExceeded")
    assert int(field_of(answer, "retry-after")) > 80_000


def test_transport_has_a_pace_of_its_own() -> None:
    asked = Asked()
    asked.knobs(drain_per_minute=30, time_factor=2)
    for _ in range(2):
        asked.send()
    first, second = asked.lab.store.inbox("ops@contoso.com")
    assert (second.post.drained_at - first.post.drained_at).total_seconds() == 1.0


@pytest.mark.parametrize(
    ("kind", "before", "after", "ending"),
    [
        ("commit-504", 1, 1, 504),
        ("commit-close", 1, 1, 0),
        ("commit-hang", 1, 1, 202),
        ("hang-commit", 0, 1, 202),
        ("hang-close", 0, 0, 0),
        ("close", 0, 0, 0),
        ("latency", 0, 1, 202),
        ("429", 0, 0, 429),
        ("429-plain", 0, 0, 429),
        ("500", 0, 0, 500),
        ("502", 0, 0, 502),
        ("503", 0, 0, 503),
        ("504", 0, 0, 504),
        ("error", 0, 0, 409),
    ],
)
def test_a_fault_commits_when_it_says_and_ends_as_it_says(
    kind: FaultKind, before: int, after: int, ending: int
) -> None:
    asked = Asked()
    strike(asked, kind, delay_s=30.0, status=409)
    seen = list[int]()
    asked.during = lambda: seen.append(delivered(asked))
    assert status(asked.send()) == ending
    assert (seen, delivered(asked)) == ([before], after)
    assert asked.waited == [30.0]
    assert told(asked.send()) == (202, "")


def test_a_fault_without_delay_does_not_wait() -> None:
    asked = Asked()
    strike(asked, "commit-504")
    strike(asked, "503", retry_after="9", code="ErrorServerBusy")
    assert status(asked.send()) == 504
    answer = asked.send()
    assert told(answer) == (503, "ErrorServerBusy")
    assert field_of(answer, "retry-after") == "9"
    assert asked.waited == []


def test_mail_that_is_refused_is_refused_under_a_committing_fault_too() -> None:
    asked = Asked()
    strike(asked, "commit-504")
    assert told(asked.post(b"!!!")) == (400, "ErrorMimeContentInvalidBase64String")
    assert delivered(asked) == 0


def test_latency_is_a_knob() -> None:
    asked = Asked()
    asked.knobs(graph_latency_s=0.3)
    asked.send()
    assert asked.waited == [0.3]


def test_an_alias_is_rewritten_and_a_message_id_replaced_where_that_is_on() -> None:
    asked = Asked()
    octets = PLAIN.replace(b"From: alerts@", b"From: alarm@")
    asked.send(octets)
    asked.knobs(rewrite_alias=True, rewrite_message_id=True)
    asked.send(octets)
    kept, rewritten = asked.lab.store.inbox("ops@contoso.com")
    assert b"From: alarm@contoso.com" in (kept.delivered_head() or b"")
    head = rewritten.delivered_head() or b""
    assert b"From: <alerts@contoso.com>\r\n" in head
    assert b"<1@ups>" not in head
    assert b"prod.outlook.com" in head


def test_a_message_without_from_gets_the_mailbox() -> None:
    asked = Asked()
    assert told(asked.send(b"To: ops@contoso.com\r\n\r\nx")) == (202, "")
    (stored,) = asked.lab.store.inbox("ops@contoso.com")
    assert stored.header_from == "alerts@contoso.com"
    assert b"From: <alerts@contoso.com>" in (stored.delivered_head() or b"")


def test_whoever_watches_is_told_of_both_ends() -> None:
    class Notes(Watcher):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def sent(self, stored: Stored) -> None:
            self.lines.append(f"sent {stored.number}")

        def refused(self, status: int, code: str, reason: str) -> None:
            self.lines.append(f"refused {status} {code}")

    notes = Notes()
    asked = Asked(watcher=notes)
    asked.send()
    asked.send(to="nobody@contoso.com")
    strike(asked, "close")
    asked.send()
    assert notes.lines == ["sent 1", "refused 404 ErrorInvalidUser", "refused 0 close"]


def test_the_last_requests_are_remembered_with_their_reasons() -> None:
    asked = Asked()
    asked.send()
    asked.send(b"To: nobody\r\n\r\n")
    first, second = asked.lab.requests
    assert (first["status"], second["status"]) == (202, 400)
    assert "nobody" in str(second["reason"])


def test_a_reason_forges_no_field() -> None:
    answer = Asked().send(PLAIN.replace(b"ops@contoso.com", b'"x\xc3\xa4'))
    assert told(answer) == (400, "ErrorInvalidRecipients")
    assert field_of(answer, "x-sandbox-reason").isascii()
