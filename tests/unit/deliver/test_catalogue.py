"""Microsoft's answers, one by one, and any octets at all."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.deliver import catalogue
from relayd.deliver.catalogue import ENTRIES, Verdict, classify, explain, local, retry_after
from relayd.deliver.outcome import Ambiguous, Deferred, Failed, Misconfigured, Outcome, Sent

JSON = {"content-type": "application/json"}
NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)


def error(code: str, message: str = "words", **inner: object) -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "innerError": inner}}).encode()


def classed(status: int, body: bytes = b"", **headers: str) -> Outcome:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return classify(status, JSON | named, body, 0.3, now=NOW)


def test_a_request_id_is_kept_as_one_short_line() -> None:
    headers = {"request-id": "\x1b]0;x\x07" + "9" * 30_000}
    outcome = classify(202, headers, b"", 0.1)
    assert isinstance(outcome, Sent)
    assert outcome.answer.request_id.isprintable()
    assert len(outcome.answer.request_id) <= 300


def test_202_is_sent_and_keeps_the_request_id() -> None:
    outcome = classed(202, request_id="abc")

    assert isinstance(outcome, Sent)
    assert outcome.answer.request_id == "abc"


@pytest.mark.parametrize(
    ("status", "code", "kind", "whole"),
    [
        (400, "ErrorMimeContentInvalidBase64String", Failed, False),
        (400, "ErrorMimeContentInvalid", Failed, False),
        (500, "ErrorMimeContentConversionFailed", Deferred, False),
        (400, "ErrorInvalidRecipients", Failed, False),
        (400, "ErrorMessageSizeExceeded", Failed, False),
        (400, "UnableToDeserializePostBody", Failed, False),
        (400, "InvalidInternetMessageHeader", Failed, False),
        (401, "InvalidAuthenticationToken", Misconfigured, True),
        (403, "NoPermissionsInAccessToken", Misconfigured, False),
        (403, "ErrorAccessDenied", Misconfigured, False),
        (403, "Authorization_RequestDenied", Misconfigured, False),
        (403, "ErrorSendAsDenied", Misconfigured, False),
        (403, "ErrorAccountDisabled", Misconfigured, False),
        (403, "ErrorMessageSubmissionBlocked", Misconfigured, False),
        (404, "ErrorInvalidUser", Misconfigured, False),
        (404, "ResourceNotFound", Misconfigured, False),
        (404, "MailboxNotEnabledForRESTAPI", Misconfigured, False),
        (408, "ErrorTimeoutExpired", Ambiguous, False),
        (409, "ErrorIrresolvableConflict", Deferred, False),
        (412, "ErrorIrresolvableConflict", Deferred, False),
        (429, "ApplicationThrottled", Deferred, False),
        (503, "ApplicationThrottled", Deferred, False),
        (429, "UnknownError", Deferred, False),
        (500, "ErrorMailboxStoreUnavailable", Deferred, False),
        (500, "ErrorMailboxMoveInProgress", Deferred, False),
        (500, "ErrorInternalServerError", Ambiguous, False),
        (500, "UnknownError", Ambiguous, False),
        (502, "UnknownError", Ambiguous, False),
        (504, "UnknownError", Ambiguous, False),
        (503, "ErrorServerBusy", Deferred, False),
        (503, "serviceNotAvailable", Deferred, True),
        (503, "UnknownError", Deferred, True),
        (507, "ErrorQuotaExceeded", Misconfigured, False),
        (509, "", Deferred, False),
    ],
)
def test_the_catalogue_is_obeyed(
    status: int,
    code: str,
    kind: type[object],
    whole: bool,  # noqa: FBT001  a column of the table
) -> None:
    outcome = classed(status, error(code) if code else b"")

    assert type(outcome) is kind
    assert getattr(outcome, "whole_upstream", False) is whole
    assert outcome.answer.code == code


@pytest.mark.parametrize("status", [401, 403, 404, 407, 413, 429, 500, 502, 503, 504, 507, 509])
@pytest.mark.parametrize("body", [b"", b"<html><title>Bad</title>", b"[]", b'{"error": 7}'])
def test_a_status_alone_is_enough(status: int, body: bytes) -> None:
    outcome = classed(status, body)

    assert outcome == classify(status, {}, b"", 0.1) or outcome.answer.text
    assert outcome.answer.code == ("web-page" if status in (403, 404) and b"<" in body else "")


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        (403, "text/html; charset=utf-8", b"Blocked"),
        (404, "", b"\r\n<!DOCTYPE html><HTML><title>Not found</title>"),
    ],
)
def test_a_filter_on_the_way_refuses_for_no_mailbox(
    status: int, content_type: str, body: bytes
) -> None:
    outcome = classify(status, {"content-type": content_type}, body, 0.1)

    assert isinstance(outcome, Deferred)
    assert (outcome.whole_mailbox, outcome.whole_upstream) == (True, False)
    assert outcome.answer.code == "web-page"
    row = explain("web-page")
    assert row is not None
    assert "filter" in row.words


def test_what_is_no_page_is_microsofts_own_refusal() -> None:
    assert isinstance(classify(403, {"content-type": "text/html"}, b" ", 0.1), Misconfigured)
    xml = b"<m:error><m:code>Forbidden</m:code></m:error>"
    assert isinstance(classify(403, {"content-type": "application/xml"}, xml, 0.1), Misconfigured)
    coded = classify(403, {"content-type": "text/html"}, error("ErrorAccessDenied"), 0.1)
    assert coded.answer.code == "ErrorAccessDenied"


@pytest.mark.parametrize("status", [200, 201, 204])
def test_no_other_success_is_success(status: int) -> None:
    assert isinstance(classed(status), Ambiguous)


def test_a_bogus_200_for_an_over_limit_message_was_not_sent() -> None:
    outcome = classify(200, {}, b"", 1.0, request_bytes=4 * 1024 * 1024 + 1)

    assert isinstance(outcome, Failed)
    assert outcome.enhanced == "5.3.4"


@pytest.mark.parametrize("status", [400, 413])
@pytest.mark.parametrize(
    "text", ["The maximum request length supported is 4MB.", "Maximum request length exceeded."]
)
def test_too_large_is_known_by_its_words_too(status: int, text: str) -> None:
    outcome = classed(status, error("BadRequest", text))

    assert isinstance(outcome, Failed)
    assert outcome.enhanced == "5.3.4"


def test_413_of_a_gateway_is_too_large() -> None:
    outcome = classify(413, {"content-type": "text/html"}, b"<html>Too Large</html>", 0.1)

    assert isinstance(outcome, Failed)
    assert outcome.enhanced == "5.3.4"


@pytest.mark.parametrize(("status", "kind"), [(418, Deferred), (400, Deferred), (599, Ambiguous)])
def test_what_nobody_described_never_loses_mail(status: int, kind: type[object]) -> None:
    assert type(classed(status, error("SomethingNew"))) is kind


def test_a_redirect_is_not_followed_and_stops_the_upstream() -> None:
    outcome = classed(302)

    assert isinstance(outcome, Deferred)
    assert outcome.whole_upstream


def test_the_deepest_known_code_decides() -> None:
    body = {
        "error": {
            "code": "BadRequest",
            "message": "m",
            "innerError": {
                "code": "ErrorSendAsDenied",
                "innererror": {"code": "x.y.z", "request-id": "deep"},
            },
        }
    }
    outcome = classed(403, json.dumps(body).encode())

    assert isinstance(outcome, Misconfigured)
    assert outcome.answer.code == "ErrorSendAsDenied"
    assert outcome.answer.request_id == "deep"


def test_codes_are_compared_without_case() -> None:
    assert isinstance(classed(503, error("SERVICENOTAVAILABLE")), Deferred)


@pytest.mark.parametrize(("elapsed_s", "kind"), [(1.0, Deferred), (30.0, Ambiguous)])
def test_a_503_after_a_long_wait_may_have_been_acted_on(
    elapsed_s: float, kind: type[object]
) -> None:
    assert type(classify(503, {}, error("UnknownError"), elapsed_s)) is kind


def test_a_503_with_retry_after_was_not_acted_on() -> None:
    outcome = classify(503, {"retry-after": "17"}, b"", 30.0)

    assert isinstance(outcome, Deferred)
    assert outcome.retry_after_s == 17.0
    assert outcome.whole_upstream


@pytest.mark.parametrize("status", [202, 200, 408, 500, 502, 503, 504])
def test_an_answer_before_the_request_was_complete_means_not_sent(status: int) -> None:
    outcome = classify(status, {}, b"", 60.0, sent_all=False)

    assert isinstance(outcome, Deferred)


def test_a_refusal_before_the_request_was_complete_is_a_refusal() -> None:
    assert isinstance(classify(413, {}, b"", 1.0, sent_all=False), Failed)


def test_throttling_rests_the_mailbox_as_long_as_the_server_wishes() -> None:
    outcome = classed(429, error("ApplicationThrottled"), retry_after="42")

    assert outcome == Deferred(outcome.answer, 42.0, whole_mailbox=True)


def test_a_used_up_day_rests_for_hours() -> None:
    outcome = classed(429, error("ErrorExceededMessageLimit"))

    assert isinstance(outcome, Deferred)
    assert outcome.whole_mailbox
    assert outcome.retry_after_s == 3600.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("-3", None),
        ("0", None),
        ("-0.0", None),
        ("0.25", 0.25),
        ("99999999", 86_400.0),
        ("Fri, 20 Nov 2026 10:00:30 GMT", 30.0),
        ("Fri, 20 Nov 2026 09:00:00 GMT", None),
        ("Fri, 20 Nov 2026 10:00:00 GMT", None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("Fri, 99 Nov 2026 10:00:30 GMT", None),
    ],
)
def test_retry_after_in_all_its_forms(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": value}, NOW) == seconds


def test_a_retry_after_date_is_taken_against_the_servers_own_clock() -> None:
    headers = {
        "retry-after": "Fri, 20 Nov 2026 10:00:30 GMT",
        "date": "Fri, 20 Nov 2026 10:00:20 GMT",
    }

    assert retry_after(headers, NOW.replace(year=1970)) == 10.0
    assert retry_after({"retry-after": headers["retry-after"]}) is None


def test_no_retry_after_is_none() -> None:
    assert retry_after({}) is None


def test_a_web_page_is_told_as_one() -> None:
    page = b"<html><head><title>Blocked by\r\n policy</title></head></html>"

    answer = classify(403, {"content-type": "text/html"}, page, 0.1).answer

    assert answer.text == "a web page, not Graph's own answer: Blocked by policy"
    assert "text/html" in classify(502, {"content-type": "text/html"}, b"<html>", 0.1).answer.text


DENIAL = error("ErrorInvalidRecipients", "no")
RAW_DEFLATE = zlib.compressobj(wbits=-zlib.MAX_WBITS)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(DENIAL)),
        (" X-GZIP ", gzip.compress(DENIAL)),
        ("deflate", zlib.compress(DENIAL)),
        ("deflate", RAW_DEFLATE.compress(DENIAL) + RAW_DEFLATE.flush()),
        ("gzip", DENIAL),  # undone on the way, and the header forgotten
        ("deflate", DENIAL),
        ("identity", DENIAL),
        ("gzip", gzip.compress(DENIAL + b" " * 10_000_000)[:65_536]),
    ],
    ids=[
        "gzip",
        "loosely-named",
        "deflate",
        "bare-deflate",
        "gzip-undone",
        "deflate-undone",
        "identity",
        "cut-off",
    ],  # by octets they would have another name each second
)
def test_a_compressed_refusal_is_understood(encoding: str, body: bytes) -> None:
    outcome = classify(400, {"content-encoding": encoding}, body, 0.1)

    assert isinstance(outcome, Failed)
    assert (outcome.answer.code, outcome.answer.text) == ("ErrorInvalidRecipients", "no")


def test_plain_words_that_begin_as_a_deflated_text_does_stay_plain() -> None:
    answer = classify(400, {"content-encoding": "deflate"}, b"busy", 0.1).answer
    assert answer.text == "busy"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", ""])
def test_what_cannot_be_undone_is_read_as_it_is(encoding: str) -> None:
    outcome = classify(403, {"content-encoding": encoding}, b"\x1f\x8b\x08 <html>", 0.1)

    assert outcome.answer.code == "web-page"


def test_a_bomb_does_not_unfold() -> None:
    bomb = gzip.compress(bytes(20_000_000))

    tracemalloc.start()
    classify(400, {"content-encoding": "gzip"}, bomb, 0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 2_000_000


def test_plain_words_are_kept_and_an_oauth_error_understood() -> None:
    assert classify(429, {}, b"Too Many Requests", 0.1).answer.text == "Too Many Requests"
    answer = classed(401, b'{"error": "invalid_client", "error_description": "AADSTS7"}').answer
    assert (answer.code, answer.text) == ("invalid_client", "AADSTS7")


def test_remote_text_is_one_bounded_printable_line() -> None:
    answer = classed(500, error("X\r\nY", "a\r\nmessage.sent id=1\x1b[2J" + "b" * 5000)).answer

    assert len(answer.text) <= 300
    assert answer.text.isprintable()
    assert answer.code.isprintable()


@given(
    status=st.integers(0, 999),
    headers=st.dictionaries(
        st.sampled_from(["retry-after", "date", "content-type", "request-id"]), st.text()
    ),
    body=st.one_of(
        st.binary(max_size=300),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["error", "code", "message", "innerError", "request-id"]), inner
                )
            ),
            max_leaves=12,
        ).map(lambda value: json.dumps(value).encode()),
    ),
    elapsed_s=st.floats(0, 200),
    sent_all=st.booleans(),
)
def test_any_answer_is_an_outcome_and_only_202_is_sent(
    status: int,
    headers: dict[str, str],
    body: bytes,
    elapsed_s: float,
    sent_all: bool,  # noqa: FBT001
) -> None:
    outcome = classify(status, headers, body, elapsed_s, sent_all=sent_all)

    assert isinstance(outcome, Sent) == (status == 202 and sent_all)
    if isinstance(outcome, Failed):
        assert outcome.enhanced.startswith("5.")
    assert catalogue.entry_for(outcome.answer).words


def test_deep_json_is_no_answer() -> None:
    body = b'{"error":{"code":"ErrorAccessDenied","innerError":' + b'{"innerError":' * 20_000

    assert isinstance(classed(403, body), Misconfigured)


def test_every_row_is_plain_and_complete() -> None:
    seen = set()
    for row in ENTRIES:
        assert (row.code.lower(), row.status if not row.code else None) not in seen
        seen.add((row.code.lower(), row.status if not row.code else None))
        assert row.words.endswith(".")
        ends = row.verdict in (Verdict.PERMANENT, Verdict.RECIPIENTS, Verdict.TOO_LARGE)
        assert bool(row.enhanced) == (ends or row.tries > 0)
        if row.verdict is Verdict.CONFIGURATION:
            assert row.advice, f"{row.code}: an administrator must be told what to do"


def test_every_code_and_status_can_be_explained() -> None:
    for row in ENTRIES:
        assert explain(row.code or str(row.status)) is row
    assert explain("ErrorNobodyKnows") is None
    assert explain("0") is None
    assert explain("erroraccessdenied") is not None


@pytest.mark.parametrize(
    ("code", "kind", "whole"),
    [
        ("dns-failed", Deferred, True),
        ("connect-failed", Deferred, True),
        ("tls-failed", Deferred, True),
        ("proxy-failed", Deferred, True),
        ("send-interrupted", Deferred, False),
        ("no-answer", Ambiguous, False),
        ("not-understood", Ambiguous, False),
        ("no-time", Deferred, False),
        ("unknown-error", Deferred, False),
        ("RequestTooLarge", Failed, False),
    ],
)
def test_what_happens_before_an_answer(code: str, kind: type[object], whole: bool) -> None:  # noqa: FBT001
    outcome = local(code, "why\n")

    assert type(outcome) is kind
    assert getattr(outcome, "whole_upstream", False) is whole
    assert (outcome.answer.code, outcome.answer.text) == (code, "why")
