"""relayd.sandbox.compose: sendMail's JSON form, by Graph's rules."""

from __future__ import annotations

import base64
import email
import email.policy
import json
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import pytest

from relayd.sandbox.compose import CannotCompose, Composed, compose

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)


def person(address: str, name: str = "") -> dict[str, Any]:
    return {"emailAddress": {"address": address, **({"name": name} if name else {})}}


def message(**changes: Any) -> dict[str, Any]:
    return {
        "subject": "Störung",
        "body": {"contentType": "Text", "content": "Seit 10 Uhr."},
        "toRecipients": [person("ops@contoso.com", "Öps")],
        **changes,
    }


def made(**changes: Any) -> Composed:
    body = json.dumps({"message": message(**changes)}).encode()
    return compose(body, mailbox="alerts@contoso.com", now=NOW)


def read(composed: Composed) -> EmailMessage:
    parsed = email.message_from_bytes(composed.mime, policy=email.policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


def refused(**changes: Any) -> str:
    with pytest.raises(CannotCompose) as caught:
        made(**changes)
    return caught.value.code


def test_a_whole_message_becomes_mime() -> None:
    parsed = read(
        made(
            ccRecipients=[person("c@x.y")],
            bccRecipients=[person("b@x.y")],
            replyTo=[person("r@x.y")],
            importance="high",
            internetMessageHeaders=[{"name": "X-Test", "value": "1"}],
            attachments=[
                {
                    "@odata.type": "#microsoft.graph.fileAttachment",
                    "name": "scan.pdf",
                    "contentType": "application/pdf",
                    "contentBytes": base64.b64encode(b"%PDF").decode(),
                    "isInline": True,
                    "contentId": "c1",
                }
            ],
        )
    )
    assert parsed["From"] == "alerts@contoso.com"
    assert parsed["To"] == "Öps <ops@contoso.com>"
    assert (parsed["Cc"], parsed["Bcc"], parsed["Reply-To"]) == ("c@x.y", "b@x.y", "r@x.y")
    assert (parsed["Subject"], parsed["Importance"], parsed["X-Test"]) == ("Störung", "high", "1")
    text, attachment = list(parsed.iter_parts())
    assert isinstance(text, EmailMessage)
    assert isinstance(attachment, EmailMessage)
    assert text.get_content().strip() == "Seit 10 Uhr."
    assert attachment.get_filename() == "scan.pdf"
    assert attachment.get_content() == b"%PDF"
    assert attachment["Content-ID"] == "<c1>"


def test_html_and_another_author() -> None:
    parsed = read(
        made(**{"from": person("x@y.z"), "body": {"contentType": "HTML", "content": "<b>x</b>"}})
    )
    assert parsed.get_content_type() == "text/html"
    assert parsed["From"] == "x@y.z"


def test_sent_items_are_kept_unless_told_not_to() -> None:
    assert made().save_to_sent
    body = json.dumps({"Message": message(), "saveToSentItems": False}).encode()
    assert not compose(body, mailbox="a@b.c", now=NOW).save_to_sent


@pytest.mark.parametrize(
    "body", [b"", b"x", b"[]", b"{}", b'{"message":[]}', b'{"message":{},"z":1}']
)
def test_what_is_no_sendmail_body_is_refused(body: bytes) -> None:
    with pytest.raises(CannotCompose):
        compose(body, mailbox="a@b.c", now=NOW)


def test_a_flag_must_be_a_flag() -> None:
    with pytest.raises(CannotCompose):
        compose(b'{"message":{},"saveToSentItems":"no"}', mailbox="a@b.c", now=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"toRecipient": []},
        {"toRecipients": {}},
        {"toRecipients": ["a@b.c"]},
        {"toRecipients": [{"emailAddress": {}}]},
        {"subject": 1},
        {"subject": "a\r\nBcc: x@y.z"},
        {"body": "text"},
        {"body": {"contentType": "RTF"}},
        {"importance": "urgent"},
        {"attachments": [{"name": "x"}]},
        {"attachments": [{"@odata.type": "#microsoft.graph.itemAttachment"}]},
        {
            "attachments": [
                {
                    "@odata.type": "#microsoft.graph.fileAttachment",
                    "name": "x",
                    "contentBytes": "!",
                }
            ]
        },
        {
            "attachments": [
                {
                    "@odata.type": "#microsoft.graph.fileAttachment",
                    "name": "x",
                    "contentType": "nonsense",
                    "contentBytes": "",
                }
            ]
        },
        {
            "attachments": [
                {
                    "@odata.type": "#microsoft.graph.fileAttachment",
                    "name": "x",
                    "contentBytes": "",
                    "isInline": "yes",
                }
            ]
        },
    ],
)
def test_what_graph_cannot_read_is_refused(changes: dict[str, Any]) -> None:
    assert refused(**changes) == "UnableToDeserializePostBody"


def test_an_address_that_is_none_is_refused() -> None:
    assert refused(toRecipients=[person("not an address")]) == "ErrorInvalidRecipients"
    assert refused(toRecipients=[person("a@b@c")]) == "ErrorInvalidRecipients"


def test_own_headers_have_graphs_rules() -> None:
    def headers(*pairs: tuple[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "value": value} for name, value in pairs]

    code = "InvalidInternetMessageHeader"
    assert refused(internetMessageHeaders=headers(("List-Id", "x"))) == code
    assert refused(internetMessageHeaders=headers(("X-A", "x" * 996))) == code
    assert refused(internetMessageHeaders=headers(("X-A", "a\nb"))) == code
    six = headers(*((f"X-{n}", "v") for n in range(6)))
    assert refused(internetMessageHeaders=six) == "InvalidInternetMessageHeaderCollection"
