"""What Entra's error codes mean, and what to do: one table, for the daemon and `relayd explain`.

A code (AADSTS7000215) is looked up first; an unknown one is judged by the OAuth `error`
beside it, because Microsoft promises those and not the codes; an unknown `error` is
temporary. `OWN` are our own codes for why there is no token; Entra's answers are never judged
by them.

Source: Microsoft Entra authentication and authorization error codes (AADSTS); RFC 6749 §5.2.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from relayd.values import frozen


class Kind(enum.Enum):
    """Who can mend it."""

    CONFIGURATION = "configuration"  #: only an administrator
    TRANSIENT = "transient"  #: time, or Microsoft
    BUG = "bug"  #: relayd asked wrongly; treated as transient, worth a report


@frozen
class Meaning:
    """meaning: plain words, no full stop; action: what mends it, an imperative."""

    kind: Kind
    meaning: str
    action: str


def _mend(meaning: str, action: str) -> Meaning:
    return Meaning(Kind.CONFIGURATION, meaning, action)


def _wait(meaning: str, action: str = "nothing; relayd tries again by itself") -> Meaning:
    return Meaning(Kind.TRANSIENT, meaning, action)


_LOGIN_AGAIN: Final = "sign in again"
_LOGIN: Final = "correct username and password of the upstream, or use an application instead"
_MFA: Final = "use an application (client_id and secret) instead of a user's password"
_CLOUD: Final = "set `cloud` of the upstream to the cloud the tenant lives in"

AADSTS: Final[Mapping[str, Meaning]] = {
    "7000215": _mend(
        "the client secret is wrong; often the secret's ID was copied instead of its value",
        "make a new secret under Certificates & secrets of the app registration and store its"
        " Value (not the Secret ID) as client_secret",
    ),
    "7000222": _mend(
        "the client secret has expired",
        "make a new secret under Certificates & secrets of the app registration and store its"
        " value as client_secret",
    ),
    "700027": _mend(
        "the certificate is not the one registered, or the clock is wrong",
        "upload the certificate to the app registration and check this host's clock",
    ),
    "7000218": _mend(
        "Entra got neither a secret nor a certificate",
        "set client_secret of the upstream, or allow public client flows in the app registration",
    ),
    "700016": _mend(
        "the application is not known in this tenant",
        "compare tenant and client_id of the upstream with the app registration's overview page",
    ),
    "700011": _mend(
        "the application was not found",
        "compare client_id of the upstream with the app registration's overview page",
    ),
    "7000112": _mend(
        "the application is disabled in this tenant",
        "enable it under Enterprise applications, Properties, Enabled for users to sign in",
    ),
    "90002": _mend(
        "the tenant was not found",
        "correct `tenant` of the upstream (a domain or GUID), or its `cloud`",
    ),
    "900023": _mend(
        "the tenant is neither a GUID nor a domain name",
        "correct `tenant` of the upstream",
    ),
    "90038": _mend("the tenant lives in another national cloud", _CLOUD),
    "900382": _mend("the tenant lives in another national cloud", _CLOUD),
    "70011": _mend(
        "the scope is not valid",
        "let graph_scope or smtp_scope of the cloud be <resource>/.default",
    ),
    "1002012": _mend(
        "the scope does not fit an application",
        "let graph_scope or smtp_scope of the cloud be <resource>/.default",
    ),
    "500011": _mend(
        "the resource asked for does not exist in this tenant",
        "correct graph_scope or smtp_scope of the cloud, or `cloud` of the upstream",
    ),
    "900144": Meaning(
        Kind.BUG,
        "the request lacked a parameter",
        "report it, with the log lines around it",
    ),
    "65001": _mend(
        "nobody has consented to the permissions",
        "grant admin consent under API permissions of the app registration",
    ),
    "53003": _mend(
        "Conditional Access blocks this sign-in",
        "exclude the application, or this site's address, in the Conditional Access policy",
    ),
    "530035": _mend(
        "security defaults block this sign-in",
        "use an application (client_id and secret) instead of a user's password",
    ),
    "50034": _mend("the user does not exist in this tenant", _LOGIN),
    "50126": _mend("user name or password is wrong", _LOGIN),
    "50055": _mend("the password has expired", _LOGIN),
    "50056": _mend("the user has no password in Entra", _LOGIN),
    "50057": _mend("the user is disabled", "enable the user, or name another one"),
    "50053": _mend(
        "the user is locked after too many tries, or the address is considered risky",
        "unlock the user in Entra and look at its sign-in log",
    ),
    "50076": _mend("multi-factor authentication is required", _MFA),
    "50079": _mend("multi-factor authentication is required", _MFA),
    "50158": _mend("another security challenge is required", _MFA),
    "50173": _mend("the sign-in was revoked, as by a new password", _LOGIN_AGAIN),
    "700082": _mend("the sign-in was not used for 90 days and has lapsed", _LOGIN_AGAIN),
    "70008": _mend("the sign-in has expired", _LOGIN_AGAIN),
    "70043": _mend("the sign-in is older than Conditional Access allows", _LOGIN_AGAIN),
    "70016": _wait("nobody has signed in on the device page yet", "finish the sign-in"),
    "70018": _mend("the code typed on the device page was wrong", _LOGIN_AGAIN),
    "70019": _mend("the code for the device page has expired", _LOGIN_AGAIN),
    "90033": _wait("Entra is unavailable for the moment"),
    "50033": _wait("Entra had a passing error"),
    "90006": _wait("an outside service of Entra does not answer"),
    "90012": _wait("Entra's request timed out"),
    "90024": _wait("Entra's request budget was passed"),
    "90090": _wait("an inner service of Entra failed"),
    "50087": _wait("Entra had a passing error at sign-out"),
    "90055": _wait("the tenant sends Entra too many requests"),
    "50196": Meaning(
        Kind.BUG,
        "Entra sees the same client ask again and again",
        "nothing for now; if it stays, report it, with the log lines around it",
    ),
}

ERRORS: Final[Mapping[str, Meaning]] = {
    "invalid_client": _mend(
        "Entra refuses the application's credential",
        "compare client_id and client_secret of the upstream with the app registration",
    ),
    "unauthorized_client": _mend(
        "the application may not ask for tokens in this way",
        "compare tenant and client_id of the upstream with the app registration",
    ),
    "invalid_tenant": AADSTS["90002"],
    "invalid_scope": AADSTS["70011"],
    "invalid_resource": AADSTS["500011"],
    "invalid_grant": _mend(
        "Entra refuses the sign-in",
        "look at the sign-in log of the application in Entra",
    ),
    "invalid_request": _mend(
        "Entra does not accept the request",
        "compare tenant, client_id and cloud of the upstream with the app registration",
    ),
    "access_denied": AADSTS["53003"],
    "interaction_required": AADSTS["50076"],
    "invalid_instance": _mend(
        "Entra does not know this authority",
        "correct `authority` of the upstream's cloud",
    ),
    "temporarily_unavailable": AADSTS["90033"],
    "server_error": AADSTS["50033"],
    "slow_down": AADSTS["90055"],
}

_LOOK: Final = "relayd doctor says which step of the way out fails"
_UPGRADED: Final = "relayd upgrade, or systemctl restart relayd: its processes are of two releases"
_BUG: Final = "report it, with the lines of the log around it; relayd tries again by itself"

OWN: Final[Mapping[str, Meaning]] = {
    "entra-unreachable": _wait(
        "Entra, which gives the access tokens, does not answer",
        f"check name server, firewall (port 443) and proxy; {_LOOK}",
    ),
    "entra-tls": _wait(
        "the certificate that Entra's address shows is not trusted",
        "if a proxy inspects TLS: set [http] ca_file to its CA, or exempt the host there;"
        " relayd doctor says whose certificate it is",
    ),
    "entra-unexpected": _wait(
        "what answers at Entra's address is not Entra",
        f"a proxy or a captive portal may be in the way; {_LOOK}",
    ),
    "proxy": _wait(
        "the proxy does not let us through to Entra",
        "check [http] proxy, its login, and that it may connect to login.microsoftonline.com"
        " port 443",
    ),
    "throttled": _wait(
        "Entra asks for fewer requests (HTTP 429)", "nothing; relayd waits as long as Entra asks"
    ),
    "credential": _mend(
        "the upstream's credential cannot be used, and Entra was not asked",
        "correct tenant, client_secret and cloud of the upstream: relayd check; then relayd reload",
    ),
    "token-refused": _mend(
        "Microsoft Graph refuses a token that Entra has only just issued",
        "compare graph_scope and `cloud` of the upstream with the tenant, and look at this host's"
        " clock (timedatectl)",
    ),
    "cache-unavailable": _wait(
        "the token daemon (relayd: cached) does not answer",
        "nothing at first, the master brings it back within seconds; if it stays, look for"
        " child.failed and child.died in the log",
    ),
    "internal": Meaning(Kind.BUG, "the token daemon met something nobody foresaw", _BUG),
    "malformed": Meaning(
        Kind.BUG, "the token daemon did not understand a worker's question", _UPGRADED
    ),
    "unknown-method": Meaning(
        Kind.BUG, "the token daemon does not know what a worker asks it for", _UPGRADED
    ),
}
"""Codes of identity.oauth, identity.tokens, identity.tokencache and cache.server."""


def explain(code: str) -> Meaning | None:
    """Return what `code` means; None if unknown.

    code: "AADSTS7000215", "7000215", an OAuth error or one of our own; any case.
    """
    word = code.strip().lower()
    return AADSTS.get(word.removeprefix("aadsts")) or ERRORS.get(word) or OWN.get(word)


def judge(codes: tuple[str, ...], error: str) -> Meaning | None:
    """Return the meaning of an answer: the first known code, else its `error`; None if unknown."""
    return next((AADSTS[code] for code in codes if code in AADSTS), ERRORS.get(error))
