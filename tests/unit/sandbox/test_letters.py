"""relayd.sandbox.letters: what Exchange would not take, the sandbox does not take."""

from __future__ import annotations

import base64
import json

import pytest

from relayd.sandbox.knobs import Mailbox
from relayd.sandbox.letters import decode, may_send_as
from relayd.sandbox.refusals import Refusal
from tests.sandbox_lab import PLAIN, Asked, field_of, told

BASE64 = base64.b64encode(PLAIN)
INVALID_BASE64 = (400, "ErrorMimeContentInvalidBase64String")


@pytest.mark.parametrize(
    "body", [BASE64, base64.encodebytes(PLAIN), BASE64[:40] + b"\r\n" + BASE64[40:]]
)
def test_base64_may_have_lines(body: bytes) -> None:
    assert decode(body) == PLAIN


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\r\n",
        b"not base64!",
        BASE64[:-1],
        BASE64.rstrip(b"=") + b"=" * 4,
        base64.b64encode(b"a") + b"QQ==",
        b" " + BASE64,
        base64.urlsafe_b64encode(b"\xff\xfe\xfd" * 9),
        PLAIN,
    ],
)
def test_what_is_no_standard_base64_is_refused(body: bytes) -> None:
    assert isinstance(decode(body), Refusal)
    assert told(Asked().post(body)) == INVALID_BASE64


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("text/plain", (202, "")),
        ("TEXT/PLAIN", (202, "")),
        ("text/plain; charset=utf-8", (400, "UnableToDeserializePostBody")),
        ("application/json", (400, "UnableToDeserializePostBody")),
        ("message/rfc822", (400, "UnableToDeserializePostBody")),
        ("", (400, "BadRequest")),
    ],
)
def test_the_content_type_decides(kind: str, answer: tuple[int, str]) -> None:
    assert told(Asked().send(kind=kind)) == answer


def test_parameters_of_text_plain_are_a_knob() -> None:
    asked = Asked()
    asked.knobs(text_plain_parameters=True)
    assert told(asked.send(kind="text/plain; charset=utf-8")) == (202, "")


def test_a_json_message_is_delivered_and_may_skip_sent_items() -> None:
    asked = Asked()
    message = {
        "message": {
            "subject": "x",
            "toRecipients": [{"emailAddress": {"address": "ops@contoso.com"}}],
        },
        "saveToSentItems": False,
    }
    kind = "application/json; charset=utf-8"
    assert told(asked.post(json.dumps(message).encode(), kind=kind)) == (202, "")
    assert asked.lab.store.inboxes() == {"ops@contoso.com": 1}
    assert asked.lab.store.sent_counts() == {}


@pytest.mark.parametrize(
    ("octets", "answer"),
    [
        (b"no header\r\n\r\nx", (400, "ErrorMimeContentInvalid")),
        (PLAIN.replace(b"\r\n", b"\n"), (400, "ErrorMimeContentInvalid")),
        (b"From: x@y.z\r\n" + PLAIN, (400, "ErrorMimeContentInvalid")),
        (
            PLAIN.replace(b"From: alerts@contoso.com", b"From: nobody"),
            (400, "ErrorMimeContentInvalid"),
        ),
        (PLAIN.replace(b"ops@contoso.com", b"ops"), (400, "ErrorInvalidRecipients")),
        (
            PLAIN.replace(b"ops@contoso.com", b"undisclosed-recipients:;"),
            (400, "ErrorInvalidRecipients"),
        ),
        (PLAIN.replace(b"To: ops@contoso.com\r\n", b""), (400, "ErrorInvalidRecipients")),
        (PLAIN.replace(b"From: alerts@", b"From: boss@"), (403, "ErrorSendAsDenied")),
        (PLAIN.replace(b"From: alerts@", b"From: alarm@"), (202, "")),
        (PLAIN.replace(b"From: alerts@", b"From: HelpDesk@"), (202, "")),
        (PLAIN.replace(b"To:", b"Bcc:"), (202, "")),
    ],
)
def test_a_message_is_judged_as_exchange_would(octets: bytes, answer: tuple[int, str]) -> None:
    asked = Asked()
    assert told(asked.send(octets)) == answer
    assert asked.lab.store.total == (answer[0] == 202)


def test_which_defects_are_refused_is_a_knob() -> None:
    asked = Asked()
    asked.knobs(refuse_defects=["line-too-long"])
    assert told(asked.send(PLAIN.replace(b"\r\n", b"\n"))) == (202, "")
    answer = asked.send(PLAIN + b"x" * 2000 + b"\r\n")
    assert told(answer) == (400, "ErrorMimeContentInvalid")
    assert field_of(answer, "x-sandbox-reason") == "line-too-long"
    (stored,) = asked.lab.store.inbox("ops@contoso.com")
    assert stored.defects == ("bare-newline",)


def test_a_large_message_is_read_in_a_thread_with_the_same_result() -> None:
    asked = Asked()
    assert told(asked.send(PLAIN + b"x" * 70 + b"\r\n")) == (202, "")
    assert told(asked.send(PLAIN + (b"x" * 70 + b"\r\n") * 3000)) == (202, "")
    assert told(asked.send(b"no header\r\n\r\n" + b"x" * 200_000)) == (
        400,
        "ErrorMimeContentInvalid",
    )


def test_who_may_send_as_whom() -> None:
    mailbox = Mailbox(address="A@b.c", aliases=("Alias@b.c",), send_as=("Other@b.c",))
    for address in ("a@B.c", "alias@b.c", "OTHER@b.c"):
        assert may_send_as(mailbox, address)
    assert not may_send_as(mailbox, "boss@b.c")
    assert may_send_as(Mailbox(address="a@b.c", send_as=("*",)), "boss@b.c")
