"""relayd.sandbox.refusals: one value for each answer, with Microsoft's code and status."""

from __future__ import annotations

import pytest

from relayd.sandbox import refusals
from relayd.sandbox.knobs import Knobs, Mailbox
from relayd.sandbox.refusals import Refusal


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (refusals.invalid_mime("x"), 400, "ErrorMimeContentInvalid"),
        (refusals.bad_base64("x"), 400, "ErrorMimeContentInvalidBase64String"),
        (refusals.invalid_recipients("x"), 400, "ErrorInvalidRecipients"),
        (refusals.no_recipients(), 400, "ErrorInvalidRecipients"),
        (refusals.send_as_denied("a", "b"), 403, "ErrorSendAsDenied"),
        (refusals.too_many_recipients(2, 1), 400, "ErrorExceededMaxRecipientLimit"),
        (refusals.too_large_for_mailbox(2, 1), 400, "ErrorMessageSizeExceeded"),
        (refusals.quota_exceeded("5"), 429, "ErrorSubmissionQuotaExceeded"),
        (refusals.access_denied("ErrorAccessDenied", "x"), 403, "ErrorAccessDenied"),
        (refusals.invalid_user("a"), 404, "ErrorInvalidUser"),
        (refusals.not_deserialized("x"), 400, "UnableToDeserializePostBody"),
        (refusals.no_such_path("/v1.0/me/sendMail"), 400, "BadRequest"),
        (refusals.no_such_path("/v1.0/groups/"), 400, "BadRequest"),
    ],
)
def test_each_refusal_has_its_status_and_code(refusal: Refusal, status: int, code: str) -> None:
    assert (refusal.status, refusal.code) == (status, code)
    assert refusal.text


def test_a_healthy_mailbox_is_fit() -> None:
    assert refusals.unfit(Mailbox(address="a@b.c")) is None


def test_too_large_is_said_in_four_ways() -> None:
    told = {
        how: (refusal.status, refusal.empty)
        for how in ("413-empty", "413-json", "400-json", "200")
        for refusal in [refusals.too_large(Knobs(too_large_answer=how))]
    }
    assert told == {
        "413-empty": (413, True),
        "413-json": (413, False),
        "400-json": (400, False),
        "200": (200, True),
    }
