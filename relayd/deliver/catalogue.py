"""What Microsoft's answers to a send mean, in plain words, and what to do about each.

`ENTRIES` is the only table: the courier decides by it, `relayd explain CODE` prints it. An
answer is classed by its code first and by its status second, because gateways change the
status and Microsoft moves codes between statuses; messages are never parsed for meaning,
with the one exception of "maximum request length", which comes under the code BadRequest.

Answers that nobody described are DEFERRED or AMBIGUOUS, never PERMANENT: a new code must not
lose mail. Status 0 stands for what happened before there was an answer at all.

Source: learn.microsoft.com/graph/errors, /graph/throttling, exchange ResponseCode list.
"""

from __future__ import annotations

import email.utils
import enum
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from relayd.deliver.outcome import (
    Ambiguous,
    Answer,
    Deferred,
    Failed,
    Misconfigured,
    Outcome,
    Sent,
)
from relayd.values import frozen

REQUEST_LIMIT_BYTES: Final = 4 * 1024 * 1024
"""Graph's limit for the body of a write request, octets after base64."""

LONG_WAIT_S: Final = 20.0
"""A 503 that took so long may have been acted on (seen: UnknownError after 30 s)."""

MAX_RETRY_AFTER_S: Final = 86_400.0
_LONG_BACKOFF_S: Final = 3600.0
_MAX_TEXT: Final = 300
_UUID_LENGTH: Final = 36
_MAX_DEPTH: Final = 16
_MAX_BODY_BYTES: Final = 65_536
_GZIP: Final = zlib.MAX_WBITS | 16
_NO_HEADER: Final = -zlib.MAX_WBITS
# Much software sends "deflate" without the header that RFC 9110 §8.4.1.2 wants.
_WINDOWS: Final[Mapping[str, tuple[int, ...]]] = {
    "gzip": (_GZIP,),
    "x-gzip": (_GZIP,),
    "deflate": (zlib.MAX_WBITS, _NO_HEADER),
}


class Verdict(enum.Enum):
    """What an answer means for the message."""

    SENT = "sent"
    PERMANENT = "permanent"  #: this message will never go
    RECIPIENTS = "recipients"  #: one of the recipients will never go
    TOO_LARGE = "too large"  #: not by this way
    CONFIGURATION = "configuration"  #: an administrator must act, for this mailbox or sender
    TOKEN = "token"  # noqa: S105  a verdict; the credential or token is refused
    DEFERRED = "deferred"  #: not sent; later, this message alone
    BUSY = "busy"  #: not sent; the mailbox must rest
    EXHAUSTED = "exhausted"  #: not sent; the mailbox must rest for hours
    DOWN = "down"  #: not sent; the whole upstream is away
    AMBIGUOUS = "ambiguous"  #: perhaps sent


@frozen(kw_only=True)
class Entry:
    """One row. status: 0 before any answer, None for any; code: "" for the status alone.

    words:    what it means, one sentence.
    advice:   what the administrator does; "" if nothing but wait.
    enhanced: RFC 3463 status for a report, for verdicts that end a message.
    tries:    a DEFERRED answer becomes permanent at this attempt; 0 never.
    """

    code: str
    status: int | None
    verdict: Verdict
    words: str
    advice: str = ""
    enhanced: str = ""
    tries: int = 0


def _row(  # one line for each row of the table
    code: str,
    status: int | None,
    verdict: Verdict,
    words: str,
    advice: str = "",
    enhanced: str = "",
    tries: int = 0,
) -> Entry:
    return Entry(
        code=code,
        status=status,
        verdict=verdict,
        words=words,
        advice=advice,
        enhanced=enhanced,
        tries=tries,
    )


_REPORT_BUG: Final = "A fault of relayd's: please report it, with `relayd queue trace ID`."
_PERMISSION: Final = (
    "Give the application Mail.Send for the mailbox (RBAC for Applications: relayd doctor prints "
    "the commands), then wait: a change takes 30 minutes to 2 hours, and each try before then "
    "prolongs the refusal."
)
_SPAM_BLOCK: Final = (
    "Microsoft has blocked the mailbox for sending spam. Look at 'Restricted entities' in the "
    "Defender portal, find the device that sent it, then release the mailbox."
)
_NO_MAILBOX: Final = (
    "Check `mailbox` of the upstream: it must exist in this tenant, have an Exchange Online "
    "licence or be a shared mailbox, and be written as its user principal name or object id "
    "(`mailbox_id`); relayd doctor prints the commands that show it. Corrected and reloaded, what "
    "is held goes there by itself."
)
_LARGE: Final = (
    "Send a smaller file (scan at a lower resolution), or give large mail another way out."
)
_WAIT: Final = "Nothing: relayd waits as long as Microsoft asks."

_WEB_PAGE: Final = "web-page"
"""Our own code. Graph says in JSON why it refuses, so this is not the mailbox's fault."""

ENTRIES: Final[tuple[Entry, ...]] = (
    # --- what Graph and Exchange say -----------------------------------------------------
    _row("", 202, Verdict.SENT, "Microsoft took the message; it is queued there."),
    _row(
        "ErrorMimeContentInvalidBase64String",
        400,
        Verdict.PERMANENT,
        "Microsoft could not decode what relayd sent.",
        _REPORT_BUG,
        "5.6.0",
    ),
    _row(
        "ErrorMimeContentInvalid",
        400,
        Verdict.PERMANENT,
        "Microsoft could not read the message: its MIME structure is broken.",
        "Look at the message with `relayd queue export`; the device wrote it so.",
        "5.6.0",
    ),
    _row(
        "ErrorMimeContentConversionFailed",
        500,
        Verdict.DEFERRED,
        "Microsoft failed to convert the message.",
        "Given up after three tries; `relayd queue export` shows the message.",
        "5.6.0",
        tries=3,
    ),
    _row(
        "ErrorInvalidRecipients",
        400,
        Verdict.RECIPIENTS,
        "Microsoft cannot use an address of a recipient.",
        "Correct the address in the device's address book.",
        "5.1.3",
    ),
    _row(
        "ErrorExceededMaxRecipientLimit",
        400,
        Verdict.PERMANENT,
        "The message has more recipients than the mailbox may write to at once.",
        "Send to fewer, or raise RecipientLimits of the mailbox (Set-Mailbox).",
        "5.5.3",
    ),
    _row(
        "ErrorMessageSizeExceeded",
        400,
        Verdict.TOO_LARGE,
        "The message is larger than the mailbox may send.",
        "Raise MaxSendSize of the mailbox (Set-Mailbox), or send a smaller file.",
        "5.3.4",
    ),
    _row(
        "RequestTooLarge",
        413,
        Verdict.TOO_LARGE,
        "The message is larger than Microsoft Graph takes in one request.",
        _LARGE,
        "5.3.4",
    ),
    _row(
        "UnableToDeserializePostBody",
        400,
        Verdict.PERMANENT,
        "Microsoft could not read the request.",
        _REPORT_BUG,
        "5.6.0",
    ),
    _row(
        "InvalidInternetMessageHeader",
        400,
        Verdict.PERMANENT,
        "Microsoft refuses a header of the message.",
        _REPORT_BUG,
        "5.6.0",
    ),
    _row(
        "InvalidInternetMessageHeaderCollection",
        400,
        Verdict.PERMANENT,
        "Microsoft refuses the number of extra headers.",
        _REPORT_BUG,
        "5.6.0",
    ),
    _row(
        "InvalidAuthenticationToken",
        401,
        Verdict.TOKEN,
        "Microsoft refuses the access token.",
        "Check the clock of this host, `cloud` and `tenant`; a new token is asked for by itself.",
    ),
    _row(
        "CompactToken",
        401,
        Verdict.TOKEN,
        "Microsoft cannot read the access token.",
        "Check `cloud`: the token is perhaps for another one.",
    ),
    _row(
        "NoPermissionsInAccessToken",
        None,
        Verdict.CONFIGURATION,
        "The access token carries no permission.",
        _PERMISSION,
    ),
    _row(
        "ErrorAccessDenied",
        403,
        Verdict.CONFIGURATION,
        "The application may not send from this mailbox.",
        _PERMISSION,
    ),
    _row(
        "Authorization_RequestDenied",
        403,
        Verdict.CONFIGURATION,
        "The application lacks a permission.",
        _PERMISSION,
    ),
    _row(
        "ErrorSendAsDenied",
        403,
        Verdict.CONFIGURATION,
        "The mailbox may not send as this From address.",
        "Give the mailbox Send As for the address, or set `from` of the device or leave "
        "`on_foreign_sender` at rewrite.",
    ),
    _row(
        "ErrorAccountDisabled",
        403,
        Verdict.CONFIGURATION,
        "The account of the mailbox is disabled.",
        "Enable the account in Entra, or send through another mailbox.",
    ),
    _row(
        "ErrorMessageSubmissionBlocked",
        403,
        Verdict.CONFIGURATION,
        "Microsoft has blocked sending from the mailbox.",
        _SPAM_BLOCK,
    ),
    _row(
        "ErrorAccountSuspend",
        403,
        Verdict.CONFIGURATION,
        "Microsoft has suspended the mailbox.",
        _SPAM_BLOCK,
    ),
    _row(
        "ErrorMessageBlocked",
        403,
        Verdict.CONFIGURATION,
        "Microsoft has blocked the message.",
        _SPAM_BLOCK,
    ),
    _row(
        "ErrorInvalidUser",
        404,
        Verdict.CONFIGURATION,
        "Microsoft does not know the mailbox.",
        _NO_MAILBOX,
    ),
    _row(
        "ResourceNotFound",
        404,
        Verdict.CONFIGURATION,
        "Microsoft does not find the mailbox.",
        _NO_MAILBOX,
    ),
    _row(
        "Request_ResourceNotFound",
        404,
        Verdict.CONFIGURATION,
        "Microsoft does not find the mailbox's user.",
        _NO_MAILBOX,
    ),
    _row(
        "MailboxNotEnabledForRESTAPI",
        404,
        Verdict.CONFIGURATION,
        "The mailbox is inactive, deleted, on-premises, or licensed only minutes ago.",
        _NO_MAILBOX,
    ),
    _row(
        "ErrorItemNotFound",
        404,
        Verdict.DEFERRED,
        "Microsoft does not find the draft; it is made anew.",
    ),
    _row(
        "ErrorTimeoutExpired",
        408,
        Verdict.AMBIGUOUS,
        "Exchange did not finish in time; the message may have gone.",
    ),
    _row(
        "ErrorIrresolvableConflict",
        409,
        Verdict.DEFERRED,
        "Exchange changed the item at the same moment.",
    ),
    _row(
        "ApplicationThrottled",
        429,
        Verdict.BUSY,
        "Too many requests at once for the mailbox, or too many octets.",
        _WAIT + " If it is frequent, lower `concurrency`; another program uses the mailbox too.",
    ),
    _row("TooManyRequests", 429, Verdict.BUSY, "Too many requests.", _WAIT),
    _row(
        "ErrorExceededMessageLimit",
        429,
        Verdict.EXHAUSTED,
        "The mailbox has used up what it may send in a day.",
        "Wait, or spread devices over several mailboxes.",
    ),
    _row(
        "ErrorSubmissionQuotaExceeded",
        429,
        Verdict.EXHAUSTED,
        "The mailbox has used up what it may send in a day.",
        "Wait, or spread devices over several mailboxes.",
    ),
    _row(
        "ErrorInternalServerTransientError",
        500,
        Verdict.AMBIGUOUS,
        "A passing fault inside Exchange; the message may have gone.",
    ),
    _row(
        "ErrorInternalServerError",
        500,
        Verdict.AMBIGUOUS,
        "A fault inside Exchange; the message may have gone.",
    ),
    _row(
        "ErrorMailboxStoreUnavailable",
        500,
        Verdict.BUSY,
        "The mailbox's database is away for the moment.",
        "Nothing: relayd tries again.",
    ),
    _row(
        "ErrorMailboxMoveInProgress",
        500,
        Verdict.BUSY,
        "Microsoft is moving the mailbox.",
        "Nothing: relayd tries again.",
    ),
    _row(
        "ErrorServerBusy",
        503,
        Verdict.BUSY,
        "The mailbox's server is busy.",
        "Nothing: relayd tries again.",
    ),
    _row(
        "serviceNotAvailable",
        503,
        Verdict.DOWN,
        "Microsoft Graph is not available.",
        "See the service health in the admin centre; relayd tries again.",
    ),
    _row(
        "ErrorQuotaExceeded",
        507,
        Verdict.CONFIGURATION,
        "The mailbox is full; each sent message is kept in its Sent Items.",
        "Empty the mailbox and give it a retention policy.",
    ),
    _row(
        "quotaLimitReached",
        507,
        Verdict.CONFIGURATION,
        "The mailbox is full; each sent message is kept in its Sent Items.",
        "Empty the mailbox and give it a retention policy.",
    ),
    # --- statuses without a code that says more ---------------------------------------------
    _row("", 401, Verdict.TOKEN, "Microsoft refuses the access token."),
    _row(
        "",
        403,
        Verdict.CONFIGURATION,
        "The request was forbidden, by Microsoft or by a gateway on the way.",
        _PERMISSION,
    ),
    _row("", 404, Verdict.CONFIGURATION, "Nothing answers at this address.", _NO_MAILBOX),
    _row(
        "",
        407,
        Verdict.DOWN,
        "The proxy wants a login.",
        "Put the proxy's user and password into [http] proxy, or let this host through.",
    ),
    _row(
        _WEB_PAGE,
        None,
        Verdict.BUSY,
        "A filter or portal on the way answered with a web page; Microsoft was not asked.",
        "Let this host reach graph.microsoft.com on port 443 without a filter or a login:"
        " relayd doctor",
    ),
    _row("", 408, Verdict.AMBIGUOUS, "Time-out at Microsoft; the message may have gone."),
    _row(
        "",
        413,
        Verdict.TOO_LARGE,
        "The message is larger than Microsoft Graph takes in one request.",
        _LARGE,
        "5.3.4",
    ),
    _row("", 429, Verdict.BUSY, "Too many requests.", _WAIT),
    _row("", 500, Verdict.AMBIGUOUS, "A fault at Microsoft; the message may have gone."),
    _row("", 502, Verdict.AMBIGUOUS, "A gateway failed; the message may have gone."),
    _row("", 503, Verdict.DOWN, "The service is not available.", "Nothing: relayd tries again."),
    _row("", 504, Verdict.AMBIGUOUS, "A gateway gave up waiting; the message may have gone."),
    _row(
        "",
        507,
        Verdict.CONFIGURATION,
        "The mailbox is full.",
        "Empty the mailbox and give it a retention policy.",
    ),
    _row("", 509, Verdict.BUSY, "The bandwidth allowed for the mailbox is used up.", _WAIT),
    # --- before there was an answer ----------------------------------------------------------
    _row(
        "dns-failed",
        0,
        Verdict.DOWN,
        "The name of the server could not be looked up.",
        "Check /etc/resolv.conf and the name server: relayd doctor",
    ),
    _row(
        "connect-failed",
        0,
        Verdict.DOWN,
        "No connection to the server.",
        "Check the way out (firewall, port 443, route), step by step: relayd doctor",
    ),
    _row(
        "tls-failed",
        0,
        Verdict.DOWN,
        "The server's certificate was refused, or TLS could not be agreed on.",
        "relayd doctor says whose certificate it is, and whether this host's clock is right.",
    ),
    _row(
        "proxy-failed",
        0,
        Verdict.DOWN,
        "The proxy refused to open the way.",
        "Check [http] proxy and that it may connect to Graph on port 443.",
    ),
    _row(
        "send-interrupted",
        0,
        Verdict.DEFERRED,
        "The connection broke before the whole message was written: not sent.",
    ),
    _row(
        "no-answer",
        0,
        Verdict.AMBIGUOUS,
        "The message was written, but no answer came; it may have gone.",
    ),
    _row(
        "not-understood",
        0,
        Verdict.AMBIGUOUS,
        "The answer was no HTTP; the message may have gone.",
        "A gateway on the way may be broken: curl -v https://graph.microsoft.com",
    ),
    _row(
        "no-time",
        0,
        Verdict.DEFERRED,
        "Time ran out before the first octet was written: not sent.",
    ),
    _row(
        "expired",
        0,
        Verdict.PERMANENT,
        "The message could not be sent within its time (max_age).",
        "`relayd queue show` tells what stood in the way; `relayd queue retry` sends it after all.",
        "5.4.7",
    ),
    _row(
        "unreadable",
        0,
        Verdict.DEFERRED,
        "The message could not be read from the spool: not sent.",
        "Look at the disk, and in the log for lines that begin with spool.",
    ),
    _row(
        "not-tried",
        0,
        Verdict.DEFERRED,
        "Not tried, because nobody knows what became of the same message to other recipients.",
    ),
    _row(
        "unknown-error",
        0,
        Verdict.DEFERRED,
        "Something unforeseen happened inside relayd; the log has it.",
        _REPORT_BUG,
    ),
)

_UNFORESEEN: Final[Mapping[int, Entry]] = {
    2: _row("", 200, Verdict.AMBIGUOUS, "Success, but not the one promised (202)."),
    3: _row(
        "",
        300,
        Verdict.DOWN,
        "Something on the way redirects the request (a portal that wants a login?).",
        "Let this host through without a login; relayd never follows with its token.",
    ),
    4: _row("", 400, Verdict.DEFERRED, "Microsoft refused, for a reason not known here."),
    5: _row("", 500, Verdict.AMBIGUOUS, "A fault at Microsoft; the message may have gone."),
}
_NO_TOKEN: Final = _row(
    "",
    0,
    Verdict.DOWN,
    "No access token could be had.",
    "relayd doctor tells why; the log's token.failed has Entra's own words.",
)
_NONSENSE: Final = _row("", None, Verdict.AMBIGUOUS, "The answer makes no sense.")

_BY_CODE: Final[Mapping[str, Entry]] = {row.code.lower(): row for row in ENTRIES if row.code}
_BY_STATUS: Final[Mapping[int | None, Entry]] = {row.status: row for row in ENTRIES if not row.code}
_TOO_LARGE: Final = _BY_CODE["requesttoolarge"]
_DOWN: Final = _BY_STATUS[503]
_TAKEN: Final = 202
_REFUSALS: Final = frozenset({403, 404})


def explain(code: str, status: int | None = None) -> Entry | None:
    """Return the row for a code, or for a status given as text; None if nobody described it."""
    found = _BY_CODE.get(code.lower())
    if found is None and status is None and code.isascii() and code.isdigit() and code != "0":
        status = int(code)
    return found if found is not None else _BY_STATUS.get(status)


def entry_for(answer: Answer) -> Entry:
    """Return the row that decides about `answer`: by code, by status, by kind of status."""
    found = _BY_CODE.get(answer.code.lower()) if answer.code else None
    if found is None:
        found = _BY_STATUS.get(answer.status)
    if found is None:
        found = _UNFORESEEN.get(answer.status // 100, _NONSENSE) if answer.status else _NO_TOKEN
    return found


def local(code: str, text: str, *, retry_after_s: float | None = None) -> Outcome:
    """Return the outcome for what happened without an answer; `code` is a row of status 0."""
    row = _BY_CODE[code.lower()]
    return outcome_of(row, Answer(code=code, text=bounded(text)), retry_after_s=retry_after_s)


def classify(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    elapsed_s: float,
    *,
    request_bytes: int = 0,
    sent_all: bool = True,
    now: datetime | None = None,
) -> Outcome:
    """Tell what an answer to sendMail means; never raises, whatever came.

    headers:       names in lower case.
    body:          as received, bounded by the reader; gzip and deflate are undone.
    elapsed_s:     from the first octet of the request to the answer.
    request_bytes: the request's body; tells an over-limit 200 from a riddle.
    sent_all:      False: the answer came before the request was complete, so that nothing
                   can have been sent.
    now:           for a Retry-After that is a date and comes without Date.
    """
    if status == _TAKEN and sent_all:
        return Sent(Answer(status=status, request_id=_request_id(headers)))
    body = _plain(body, headers.get("content-encoding", ""))
    codes, text, inner_id = _read_body(body, headers.get("content-type", ""))
    answer = Answer(
        status=status,
        code=_deciding(codes) or (_WEB_PAGE if _is_a_portals(status, headers, body) else ""),
        request_id=_request_id(headers) or bounded(inner_id),
        text=text,
    )
    row = entry_for(answer)
    wish = retry_after(headers, now)
    if "maximum request length" in text.lower() or (
        200 <= status < 300 and request_bytes > REQUEST_LIMIT_BYTES
    ):
        row = _TOO_LARGE
    if status == 503 and wish is None and elapsed_s >= LONG_WAIT_S:
        return Ambiguous(answer) if sent_all else outcome_of(_DOWN, answer)
    if row.verdict in (Verdict.SENT, Verdict.AMBIGUOUS) and not sent_all:
        return Deferred(answer, wish)
    return outcome_of(row, answer, retry_after_s=wish)


def outcome_of(row: Entry, answer: Answer, *, retry_after_s: float | None = None) -> Outcome:
    """Return what a row of the table means for one attempt."""
    match row.verdict:
        case Verdict.SENT:
            return Sent(answer)
        case Verdict.PERMANENT | Verdict.RECIPIENTS | Verdict.TOO_LARGE:
            return Failed(answer, row.enhanced)
        case Verdict.CONFIGURATION:
            return Misconfigured(answer)
        case Verdict.TOKEN:
            return Misconfigured(answer, whole_upstream=True)
        case Verdict.DEFERRED:
            return Deferred(answer, retry_after_s)
        case Verdict.BUSY:
            return Deferred(answer, retry_after_s, whole_mailbox=True)
        case Verdict.EXHAUSTED:
            wish = _LONG_BACKOFF_S if retry_after_s is None else retry_after_s
            return Deferred(answer, wish, whole_mailbox=True)
        case Verdict.DOWN:
            return Deferred(answer, retry_after_s, whole_upstream=True)
        case Verdict.AMBIGUOUS:
            return Ambiguous(answer)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the server's wish in seconds, above 0, at most 86400; None if it has none.

    Garbage, 0, less than 0 and a moment that is past are none: taken as they are, they would
    switch our own pauses off. A date is taken against the answer's own Date, so that a wrong
    clock here does no harm.
    """
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        moment, base = _http_date(value), _http_date(headers.get("date", "")) or now
        if moment is None or base is None:
            return None
        seconds = (moment - base).total_seconds()
    if not math.isfinite(seconds) or seconds <= 0:
        return None
    return min(seconds, MAX_RETRY_AFTER_S)


def _request_id(headers: Mapping[str, str]) -> str:
    value = headers.get("request-id", "")
    # Nearly always a UUID: every message sent has one.
    return value if len(value) <= _UUID_LENGTH and value.isprintable() else bounded(value)


def bounded(text: str) -> str:
    """Return remote text fit to keep: one line, printable, at most 300 characters."""
    # SECURITY: the peer writes this; a line feed would forge a log line, an escape a terminal.
    clean = "".join(c if c.isprintable() else " " for c in text[: 4 * _MAX_TEXT])
    return " ".join(clean.split())[:_MAX_TEXT]


def _http_date(value: str) -> datetime | None:
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _deciding(codes: Sequence[str]) -> str:
    """Of the codes from outermost to deepest, the deepest that is known, else the deepest."""
    for code in reversed(codes):
        if code.lower() in _BY_CODE:
            return code
    return codes[-1] if codes else ""


_TITLE: Final = re.compile(r"<title[^>]{0,200}>([^<]{1,300})", re.IGNORECASE)


def _plain(body: bytes, encoding: str) -> bytes:
    """Return the body without its compression, at most 64 KiB; as it is where that fails.

    We ask for none, but a proxy that inspects TLS may compress all the same.
    """
    windows = _WINDOWS.get(encoding.strip().lower(), ())
    for window in windows:
        unfolding = zlib.decompressobj(window)
        try:
            # SECURITY: without a limit 64 KiB would become 64 MiB.
            plain = unfolding.decompress(body, _MAX_BODY_BYTES)
        except zlib.error:
            continue
        if plain and (window != _NO_HEADER or unfolding.eof):  # plain text may begin like that
            return plain
    return body


def _read_body(body: bytes, content_type: str) -> tuple[list[str], str, str]:
    """Return (codes from outermost to deepest, text for people, innermost request-id)."""
    if not body.strip():
        return [], "", ""
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        return [], _not_json(body, content_type), ""
    node = value.get("error") if isinstance(value, dict) else None
    if isinstance(node, str):  # OAuth's form: {"error": "invalid_client", …}
        return [bounded(node)], _text_of(value, "error_description"), ""
    codes: list[str] = []
    text = _text_of(node, "message")
    request_id = ""
    for _ in range(_MAX_DEPTH):
        if not isinstance(node, dict):
            break
        code = _text_of(node, "code")
        if code:
            codes.append(code)
        request_id = _text_of(node, "request-id") or request_id
        node = node.get("innerError", node.get("innererror"))
    return codes, text, request_id


def _text_of(node: object, key: str) -> str:
    value = node.get(key) if isinstance(node, dict) else None
    return bounded(value) if isinstance(value, str) else ""


def _is_a_portals(status: int, headers: Mapping[str, str], body: bytes) -> bool:
    """Tell whether a refusal came from something on the way."""
    if status not in _REFUSALS or not body.strip():
        return False
    return "html" in headers.get("content-type", "").lower() or b"<html" in body[:1024].lower()


def _not_json(body: bytes, content_type: str) -> str:
    text = body[:4096].decode("utf-8", "replace")
    title = _TITLE.search(text)
    if title:
        return bounded(f"a web page, not Graph's own answer: {title[1]}")
    if "<" in text[:64]:
        return bounded(f"a web page, not Graph's own answer ({content_type or 'no type'})")
    return bounded(text)
