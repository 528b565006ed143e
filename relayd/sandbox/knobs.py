"""What can be turned while the sandbox runs: knobs, applications, mailboxes, faults.

All are frozen: the control API swaps a whole value, so a request that is under way goes on
with what it began with. Defaults are Microsoft's own figures and the strict side of what
is uncertain; durations are in the sandbox's seconds, `time_factor` of which pass in a real
one.

Source: Exchange Online limits; Microsoft Graph throttling limits; Entra error codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TooLarge = Literal["413-empty", "413-json", "400-json", "200"]
Defect = Literal[
    "no-header",
    "bad-header-line",
    "duplicate-from",
    "duplicate-header",
    "bare-newline",
    "nul",
    "raw-8bit-header",
    "line-too-long",
    "no-boundary-in-multipart",
    "start-boundary-not-found",
    "close-boundary-not-found",
    "multipart-invariant-violation",
    "misplaced-envelope-header",
    "invalid-multipart-content-transfer-encoding",
    "other",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """The sandbox as a whole.

    too_large_answer:      what a body over `body_limit` octets gets; "200" is the bogus one.
    text_plain_parameters: take "text/plain; charset=…" as well as bare "text/plain".
    refuse_defects:        what Exchange is taken to refuse with ErrorMimeContentInvalid;
                           other defects are only written down with the message.
    strip_*, rewrite_*:    what Exchange does to headers besides taking Bcc and Return-Path.
    known_x_headers:       X- headers that survive `strip_x_headers` (named properties).
    concurrency, linger_s: requests at once for one application and mailbox, and how long an
                           answered one still counts.
    drain_per_minute:      transport's pace for one mailbox; 0: at once.
    recipients_exceeded:   what the 10,001st recipient of a day gets.
    retry_after:           "auto", "none", or the header's text.
    time_factor:           windows, lingering, Retry-After and denials run so many times faster.
    keep_alive_s:          an idle connection is closed after this, real seconds; 0: never.
    requests_per_connection: then it is closed without a word; 0: never.
    """

    token_latency_s: float = 0.0
    token_lifetime_s: int = 3599
    token_refresh_in_s: int = 0
    graph_latency_s: float = 0.0
    graph_audiences: tuple[str, ...] = (
        "https://graph.microsoft.com",
        "https://graph.microsoft.us",
        "https://dod-graph.microsoft.us",
        "https://microsoftgraph.chinacloudapi.cn",
        "00000003-0000-0000-c000-000000000000",
    )
    any_mailbox: bool = False
    body_limit: int = 4_194_304
    too_large_answer: TooLarge = "413-json"
    text_plain_parameters: bool = False
    refuse_defects: tuple[Defect, ...] = (
        "no-header",
        "bad-header-line",
        "duplicate-from",
        "bare-newline",
        "nul",
        "no-boundary-in-multipart",
    )
    strip_auto_submitted: bool = False
    strip_custom_headers: bool = False
    strip_x_headers: bool = False
    known_x_headers: tuple[str, ...] = ()
    rewrite_message_id: bool = False
    rewrite_alias: bool = False
    concurrency: int = 4
    concurrency_retry_after_s: float = 5.0
    linger_s: float = 0.0
    requests_per_window: int = 10_000
    requests_window_s: float = 600.0
    octets_per_window: int = 150_000_000
    octets_window_s: float = 300.0
    recipients_per_day: int = 10_000
    recipients_exceeded: Literal["429", "accept"] = "429"
    drain_per_minute: int = 0
    retry_after: str = "auto"
    time_factor: float = 1.0
    keep_alive_s: float = 0.0
    requests_per_connection: int = 0
    keep_bodies: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSecret:
    """A client secret of an application. id: what people paste by mistake."""

    value: str
    id: str = ""
    expired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An application registered in one tenant.

    roles: application permissions in its tokens. () with `exchange_rbac` is a token without
           roles that Exchange lets in all the same.
    """

    client_id: str
    tenant: str
    object_id: str = ""
    secrets: tuple[AppSecret, ...] = ()
    roles: tuple[str, ...] = ("Mail.Send",)
    exchange_rbac: bool = False
    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One directory. id: GUID. domains: its verified names, lower-case."""

    id: str
    domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailbox:
    """One mailbox, and all that can be wrong with it.

    address:      primary SMTP address. upn: sign-in name when it is another, else "".
    send_as:      other addresses it may put into From; "*" any.
    denied:       an error code that every request for it gets with 403 ("": none), e.g.
                  "ErrorAccessDenied" as Exchange's RBAC does.
    heals_after_s: such a denial ends after so long without any request; each request in
                  between starts it again, as Exchange's cache does. 0: it never ends.
    """

    address: str
    upn: str = ""
    object_id: str = ""
    display_name: str = ""
    aliases: tuple[str, ...] = ()
    send_as: tuple[str, ...] = ()
    exists: bool = True
    licensed: bool = True
    on_premises: bool = False
    full: bool = False
    blocked: bool = False
    disabled: bool = False
    denied: str = ""
    heals_after_s: float = 0.0
    max_send_size: int = 36_700_160
    recipient_limit: int = 500


FaultKind = Literal[
    "commit-504",
    "commit-close",
    "commit-hang",
    "hang-commit",
    "hang-close",
    "close",
    "latency",
    "429",
    "429-plain",
    "500",
    "502",
    "503",
    "504",
    "error",
    "aadsts",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing to go wrong, `times` times (0: always), for requests that match.

    operation:   "send" (sendMail) or "token".
    mailbox:     only for this one, as in the table; "" any.
    probability: of happening to a request that matches; `seed` makes it repeatable.
    delay_s:     real seconds: the hang, or how long the answer takes.
    status, code, message: of "error"; `code` also replaces the code of 429, 500, 503 and is
                 the number of "aadsts".
    retry_after: the header's text; "" none.
    """

    kind: FaultKind
    operation: Literal["send", "token"] = "send"
    mailbox: str = ""
    times: int = 1
    probability: float = 1.0
    seed: int = 0
    delay_s: float = 0.0
    status: int = 500
    code: str = ""
    message: str = ""
    retry_after: str = ""
