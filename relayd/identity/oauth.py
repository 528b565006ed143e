"""One token from Entra through MSAL, or the reason why not; nothing else ever comes out.

MSAL is not to be trusted with three things, differently in every version: what it raises
(HTTPError, KeyError 'error', MsalServiceError, JSONDecodeError, ValueError from the
constructor …), what it remembers (an HTTP 400 is replayed for 60 s after the portal was
mended), and how long it waits (for ever). So here it

    speaks through `Wire`, which bounds every request and remembers Entra's own last answer;
                the verdict is taken from that answer, not from MSAL's exception
    has a cache that keeps nothing: whoever asks has decided that a new token is needed
    is thrown away after each failure, so nothing is ever replayed

Imports msal and requests: only the cache daemon may import this. One thread at a time may
use one credential (the single flight above sees to that).

Source: RFC 6749 §4.4, §5.2; RFC 9110 §10.2.3 (Retry-After); docs of msal and requests.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, Final
from urllib.parse import urlsplit

import msal
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPSConnection

from relayd.clock import SYSTEM, Clock
from relayd.config.model import Secret
from relayd.errors import TokenUnavailable
from relayd.identity.aadsts import Kind, Meaning, judge
from relayd.identity.credentials import Credential
from relayd.values import frozen

UNREACHABLE: Final = "entra-unreachable"
THROTTLED: Final = "throttled"
TLS: Final = "entra-tls"
PROXY: Final = "proxy"
UNEXPECTED: Final = "entra-unexpected"
CREDENTIAL: Final = "credential"

REFUSED_SECRETS: Final = frozenset({"7000215", "7000222"})
"""After these the other secret is worth a try."""

_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_RETRY_AFTER_S: Final = 3600.0
_SYSTEM_ROOTS: Final = "/etc/ssl/certs/ca-certificates.crt"
_CODE: Final = re.compile(r"AADSTS(\d{4,8})")
_TRACE: Final = re.compile(r"\s+Trace ID:")
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]+")


@frozen
class Issued:
    """A token just issued. life_s: from the moment the question was sent."""

    value: str = field(repr=False)
    life_s: float


@frozen
class Reply:
    """An HTTP answer, wholly read; what MSAL wants of a response."""

    status_code: int
    headers: Mapping[str, str]
    text: str = field(repr=False)

    def raise_for_status(self) -> None:
        """Raise as requests does, so that MSAL's own `except` clauses fit."""
        if self.status_code >= 400:
            raise requests.HTTPError(f"HTTP {self.status_code}")


class _Lines:
    """The connections of one Wire, so that another thread can end what waits on them."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def add(self, sock: object) -> None:
        """Take in one that was opened; those closed since are forgotten."""
        self._sockets = [one for one in self._sockets if one.fileno() >= 0]
        inner = getattr(sock, "socket", sock)  # TLS inside TLS
        if isinstance(inner, socket.socket):
            self._sockets.append(inner)

    def cut(self) -> None:
        """Have every read and write under way end at once; from any thread."""
        for one in list(self._sockets):
            try:
                # TLS's own would take the ground from under the thread that reads.
                socket.socket.shutdown(one, socket.SHUT_RDWR)
            except OSError:
                continue  # closed meanwhile


class _Adapter(HTTPAdapter):
    """Requests' own, but that `lines` hears of each connection it opens."""

    def __init__(self, lines: _Lines) -> None:
        self._pools = _watched_pools(lines)
        super().__init__()

    def init_poolmanager(self, *settings: Any, **more: Any) -> None:
        """See requests."""
        super().init_poolmanager(*settings, **more)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **settings: Any) -> urllib3.ProxyManager:
        """See requests."""
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **settings)
        manager.pool_classes_by_scheme = self._pools
        return manager


def _watched_pools(lines: _Lines) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    class Connection(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            sock = super()._new_conn()
            # TLS takes the socket over: a second handle for as long as it makes itself.
            self._second = sock.dup()
            lines.add(self._second)
            return sock

        def connect(self) -> None:
            try:
                super().connect()
            finally:
                second = getattr(self, "_second", None)
                if second is not None:
                    second.close()
            lines.add(self.sock)

    class Pool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Connection

    return {"https": Pool, "http": urllib3.HTTPConnectionPool}


class Wire:
    """MSAL's http_client: never slower than `deadline`, never larger than 64 KiB.

    deadline: monotonic; set before each fetch.
    last:     Entra's answer to the last request; None if none came.
    """

    def __init__(self, credential: Credential, clock: Clock) -> None:
        self._clock = clock
        self._timeout_s = credential.token_timeout_s
        self._lines = _Lines()
        self._session = requests.Session()
        self._session.mount("https://", _Adapter(self._lines))
        # SECURITY: with the environment trusted, REQUESTS_CA_BUNDLE would replace `verify`,
        # and https_proxy and ~/.netrc would say where secrets go.
        self._session.trust_env = False
        self._session.verify = credential.ca_file or _roots()
        if credential.proxy:
            self._session.proxies = {"https": credential.proxy, "http": credential.proxy}
        self.deadline = 0.0
        self.last: Reply | None = None

    def get(
        self,
        url: str,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        **_more: object,
    ) -> Reply:
        """Send a GET, as MSAL does for discovery."""
        return self._send("GET", url, params=params, headers=headers, data=None)

    def post(
        self,
        url: str,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        **_more: object,
    ) -> Reply:
        """Send a POST, as MSAL does for tokens."""
        return self._send("POST", url, params=params, headers=headers, data=data)

    def close(self) -> None:
        """Close the pooled connections."""
        self._session.close()

    def _send(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        data: Mapping[str, str] | None,
    ) -> Reply:
        self.last = None
        with (
            self._in_time(),
            self._session.request(
                method,
                url,
                params=params,
                headers=headers,
                data=data,
                timeout=self._left_s(),
                stream=True,
                # SECURITY: a redirected POST would carry the secret to wherever it points.
                allow_redirects=False,
            ) as response,
        ):
            octets = b"".join(self._pieces(response))
            announced = response.headers.get("Content-Length", "")[:18]
            is_plain = "Content-Encoding" not in response.headers
            # urllib3 1.26 takes half an answer for a whole one.
            if (
                is_plain
                and announced.isascii()
                and announced.isdigit()
                and len(octets) < int(announced)
            ):
                raise requests.ConnectionError("the answer was cut off")
            reply = Reply(
                response.status_code, dict(response.headers), octets.decode("utf-8", "replace")
            )
        self.last = reply
        return reply

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        """Cut the connections at the deadline; raises Timeout for whatever comes of that.

        A time-out bounds each wait, not their number: an answer that comes octet by octet would
        keep the credential's single flight in the air for ever.
        """
        alarm = threading.Timer(self._left_s(), self._lines.cut)
        alarm.daemon = True
        alarm.start()
        try:
            yield
        except Exception:
            self._left_s()  # what is cut looks like anything
            raise
        finally:
            alarm.cancel()
        self._left_s()

    def _pieces(self, response: requests.Response) -> Iterator[bytes]:
        size = 0
        # Octet by octet (3 ms for an answer): a larger piece is waited for until it is full,
        # however slowly it comes, and the deadline would not be looked at meanwhile.
        for piece in response.iter_content(1):
            size += len(piece)
            if size > _MAX_ANSWER_BYTES:
                raise requests.exceptions.ContentDecodingError("the answer is too large")
            self._left_s()
            yield piece

    def _left_s(self) -> float:
        left = self.deadline - self._clock.monotonic()
        if left <= 0:
            raise requests.exceptions.Timeout(f"not done within {self._timeout_s:g} s")
        return left


class _Forgetful(msal.TokenCache):  # type: ignore[misc]  # msal has no types
    """Keeps nothing: MSAL 1.23 and later would answer a refresh with the old token."""

    def add(self, event: object, now: object = None) -> None:
        """Forget it."""


@dataclass(slots=True)
class _Application:
    """One MSAL application and the wire it speaks through; kept only while it succeeds."""

    wire: Wire
    client: msal.ConfidentialClientApplication


class Entra:
    """Fetches tokens; keeps one application for each credential that works.

    Different credentials may be fetched from different threads at once.
    """

    def __init__(self, *, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._applications: dict[str, _Application] = {}
        self._next_first: set[str] = set()

    def fetch(self, credential: Credential) -> Issued:
        """Ask Entra for a new token, at most `token_timeout_s` long (name lookup apart).

        raises: TokenUnavailable - and nothing else.
        """
        fingerprint = credential.fingerprint()
        deadline = self._clock.monotonic() + credential.token_timeout_s
        refusal: TokenUnavailable | None = None
        for is_next, secret in self._secrets(credential, fingerprint):
            try:
                issued = self._fetch(credential, fingerprint, secret, deadline)
            except TokenUnavailable as error:
                self.forget(fingerprint)
                refusal = refusal or error
                if error.cause not in REFUSED_SECRETS:
                    raise
            else:
                (self._next_first.add if is_next else self._next_first.discard)(fingerprint)
                return issued
        raise refusal or TokenUnavailable(
            CREDENTIAL, "client_secret is empty; set it", configuration=True
        )

    def uses_next_secret(self, fingerprint: str) -> bool:
        """Tell whether the last token came by `next_secret`."""
        return fingerprint in self._next_first

    def forget(self, fingerprint: str) -> None:
        """Let go of the application of a credential that is no longer wanted."""
        application = self._applications.pop(fingerprint, None)
        if application is not None:
            application.wire.close()

    def close(self) -> None:
        """Let go of all of them."""
        for fingerprint in list(self._applications):
            self.forget(fingerprint)

    def _secrets(self, credential: Credential, fingerprint: str) -> list[tuple[bool, Secret]]:
        """Return (is next, secret), the one that worked last first."""
        both = [(False, credential.secret), (True, credential.next_secret)]
        if fingerprint in self._next_first:
            both.reverse()
        return [(is_next, secret) for is_next, secret in both if secret]

    def _fetch(
        self, credential: Credential, fingerprint: str, secret: Secret, deadline: float
    ) -> Issued:
        if credential.kind != "secret":
            raise TokenUnavailable(
                CREDENTIAL, f"credential {credential.kind!r} is not available", configuration=True
            )
        where = urlsplit(credential.authority)
        if where.scheme != "https" or not where.hostname or not credential.tenant:
            words = f"tenant {credential.tenant!r} at {credential.authority!r}: no https URL"
            raise TokenUnavailable(CREDENTIAL, words, configuration=True)
        application = self._applications.get(fingerprint)
        wire = application.wire if application else Wire(credential, self._clock)
        wire.last, wire.deadline = None, deadline
        try:
            if application is None:
                application = _Application(wire, _client(credential, secret, wire))
            answer = application.client.acquire_token_for_client(scopes=[credential.scope])
        except Exception as error:  # MSAL raises what it likes; see above
            wire.close()
            raise _verdict(credential, wire.last, error) from error
        issued = _issued(answer)
        if issued is None:
            wire.close()
            raise _verdict(credential, wire.last, None)
        self._applications[fingerprint] = application
        return issued


def _client(credential: Credential, secret: Secret, wire: Wire) -> object:
    return msal.ConfidentialClientApplication(
        credential.client_id,
        client_credential=secret.reveal(),
        authority=f"{credential.authority}/{credential.tenant}",
        http_client=wire,
        token_cache=_Forgetful(),
        # Our authorities are configured, not guessed: asking login.microsoftonline.com about
        # them would fail offline, for a sandbox, and for China's host with 1.21.
        instance_discovery=False,
        # Since 1.26 this keeps MSAL_FORCE_REGION out; before, False would ask 169.254.169.254.
        azure_region=getattr(msal.ConfidentialClientApplication, "DISABLE_MSAL_FORCE_REGION", None),
    )


def _issued(answer: object) -> Issued | None:
    """Return the token in MSAL's answer; None if there is none that can be used."""
    if not isinstance(answer, dict):
        return None
    value = answer.get("access_token")
    try:
        life_s = float(answer.get("expires_in") or 0)
    except (TypeError, ValueError, OverflowError):
        return None
    if not isinstance(value, str) or not value or not 0 < life_s < float("inf"):
        return None
    # SECURITY: it goes into a header of each request; a line break in it would add others.
    if not (value.isascii() and value.isprintable()):
        return None
    return Issued(value, life_s)


def _verdict(
    credential: Credential, reply: Reply | None, error: Exception | None
) -> TokenUnavailable:
    """Say why there is no token: by Entra's own answer, else by what stopped us getting one."""
    host = urlsplit(credential.authority).netloc or credential.authority
    if reply is not None:
        return classify(reply, host)
    if isinstance(error, requests.RequestException):
        return _network(error, host, credential)
    if isinstance(error, OSError):  # requests: the CA file is not there
        return TokenUnavailable(TLS, _clean(str(error)), configuration=True)
    if isinstance(error, ValueError):  # nothing was sent: the configuration made no sense to MSAL
        words = f"tenant {credential.tenant!r} at {credential.authority} cannot be used"
        return TokenUnavailable(CREDENTIAL, words, configuration=True)
    words = f"MSAL failed before Entra was asked ({type(error).__name__})"
    return TokenUnavailable(UNEXPECTED, words, configuration=False)


def classify(reply: Reply, host: str) -> TokenUnavailable:
    """Return what an answer without a token means; unknown is temporary."""
    retry_after_s = retry_after(reply)
    members = _members(reply.text)
    name = members.get("error")
    error = name if isinstance(name, str) else ""
    codes = _codes(members)
    meaning = judge(codes, error)
    if reply.status_code == 429:
        words = f"{host} asks us to wait (HTTP 429)"
        return TokenUnavailable(THROTTLED, words, configuration=False, retry_after_s=retry_after_s)
    if meaning is not None and (reply.status_code < 500 or codes):
        return TokenUnavailable(
            codes[0] if codes else error,
            _words(meaning, members),
            configuration=meaning.kind is Kind.CONFIGURATION,
            retry_after_s=retry_after_s,
        )
    if reply.status_code >= 500:
        words = f"{host} answered HTTP {reply.status_code}"
        return TokenUnavailable(
            UNREACHABLE, words, configuration=False, retry_after_s=retry_after_s
        )
    if codes or error:
        said = _clean(_TRACE.split(str(members.get("error_description", "")))[0])
        return TokenUnavailable(
            codes[0] if codes else _clean(error),
            f"{host} says: {said}" if said else f"{host} says no more",
            configuration=False,
            retry_after_s=retry_after_s,
        )
    words = (
        f"{host} answered HTTP {reply.status_code} without a token;"
        " is a proxy or a captive portal in the way?"
    )
    return TokenUnavailable(UNEXPECTED, words, configuration=False, retry_after_s=retry_after_s)


def retry_after(reply: Reply) -> float | None:
    """Return the Retry-After header as seconds, above 0, at most 3600; None if it wishes nothing.

    That is: absent, unreadable, 0, or a date that is past. The pauses are then our own.
    """
    headers = {name.lower(): value for name, value in reply.headers.items()}
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _MAX_RETRY_AFTER_S) or None
    try:
        until = email.utils.parsedate_to_datetime(text)
        now = email.utils.parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    # Both by the server's clock: ours may be wrong.
    wait_s = (until.replace(tzinfo=UTC) - now.replace(tzinfo=UTC)).total_seconds()
    return min(wait_s, _MAX_RETRY_AFTER_S) if wait_s > 0 else None


def _members(text: str) -> Mapping[str, object]:
    try:
        members = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return members if isinstance(members, dict) else {}


def _codes(members: Mapping[str, object]) -> tuple[str, ...]:
    listed = members.get("error_codes")
    codes = (
        [str(code) for code in listed if isinstance(code, int)] if isinstance(listed, list) else []
    )
    described = members.get("error_description")
    if isinstance(described, str):
        codes += [code for code in _CODE.findall(described) if code not in codes]
    return tuple(codes)


def _words(meaning: Meaning, members: Mapping[str, object]) -> str:
    trace = members.get("trace_id")
    # Microsoft's support asks for it first.
    known = f" (Entra trace {_clean(trace)[:36]})" if isinstance(trace, str) and trace else ""
    return f"{meaning.meaning}: {meaning.action}{known}"


def _network(
    error: requests.RequestException, host: str, credential: Credential
) -> TokenUnavailable:
    """Say which step on the way to Entra failed."""
    proxy = urlsplit(credential.proxy)
    # SECURITY: without user and password, which a proxy's URL may hold.
    via = f" through the proxy {proxy.hostname}:{proxy.port}" if credential.proxy else ""
    cause, words = UNREACHABLE, f"cannot connect to {host}{via}"
    if isinstance(error, requests.exceptions.ProxyError):
        cause, words = PROXY, f"the proxy {proxy.hostname}:{proxy.port} does not let us through"
    elif isinstance(error, requests.exceptions.SSLError):
        cause = TLS
        words = (
            f"the certificate of {host} is not trusted; set [http] ca_file if a proxy inspects TLS"
        )
    elif isinstance(error, requests.exceptions.Timeout):
        words = f"no answer from {host}{via} within {credential.token_timeout_s:g} s"
    elif isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
        return TokenUnavailable(CREDENTIAL, f"not a URL: {host}", configuration=True)
    reason = _reason(error)
    return TokenUnavailable(cause, f"{words} ({reason})" if reason else words, configuration=False)


def _reason(error: BaseException) -> str:
    """Return the operating system's or TLS's own words, dug out of the layers around them."""
    todo: list[object] = [error]
    for _ in range(20):
        if not todo:
            return ""
        one = todo.pop(0)
        if isinstance(one, socket.gaierror):
            return "the name cannot be resolved"
        if (
            isinstance(one, OSError)
            and one.strerror
            and not isinstance(one, requests.RequestException)
        ):
            return _clean(one.strerror)
        if isinstance(one, BaseException):
            todo += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return ""


def _clean(words: str) -> str:
    """Return a remote's words as one bounded line of plain ASCII."""
    return _UNPRINTABLE.sub(" ", words).strip()[:300]


def _roots() -> str | bool:
    """Return Debian's root store, which holds the operator's own roots too; else requests'."""
    return _SYSTEM_ROOTS if os.path.exists(_SYSTEM_ROOTS) else True
