"""Sends through Microsoft Graph: POST {graph}/users/{mailbox}/sendMail with the whole MIME.

    token        from the cache; refused with 401: dropped, fetched once more, tried once more
    head         made equal to the envelope (message.outgoing); Graph has no other envelope
    size         above the limit it is refused here, before Microsoft does it in riddles
    recipients   an address that Graph cannot use must not lose the others: halves are tried;
                 a part that was answered is never forgotten, whatever befalls the next
    answer       classed by deliver.catalogue

A large message streams from the spool: head, base64 and socket hold one piece at a time.

Source: learn.microsoft.com/graph/api/user-sendmail, /graph/outlook-send-mime-message.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

import structlog

from relayd.clock import SYSTEM, Clock
from relayd.config.model import Upstream
from relayd.deliver import catalogue
from relayd.deliver.body import encode, encode_whole, encoded_bytes
from relayd.deliver.outcome import (
    Ambiguous,
    Answer,
    Deferred,
    Divided,
    Failed,
    Misconfigured,
    Outcome,
    Result,
    Sent,
)
from relayd.deliver.transport import Grip, OpenContent
from relayd.errors import LeaseLost, SpoolUnavailable, TokenUnavailable
from relayd.identity.tokens import Token
from relayd.message.headers import HEAD_LIMIT, split_to_send
from relayd.message.outgoing import outgoing_head
from relayd.net.hotpath import Body, HotPath
from relayd.net.http import Response, Stage, Unanswered
from relayd.observe import metrics
from relayd.spool.model import Lease, queue_id_text
from relayd.values import frozen

log = structlog.get_logger()

_WHOLE_BYTES: Final = 96 * 1024
"""Up to here a message is encoded at once."""

_MAX_POSTS: Final = 40
"""For one lease; what is left is tried with the next."""

_DIVISIBLE: Final = frozenset({"errorinvalidrecipients", "errorexceededmaxrecipientlimit"})
_PATHS_KEPT: Final = 10_000

_CODES: Final[dict[Stage, str]] = {
    "dns": "dns-failed",
    "connect": "connect-failed",
    "tls": "tls-failed",
    "proxy": "proxy-failed",
    "send": "send-interrupted",
    "answer": "no-answer",
    "garbled": "not-understood",
    "time": "no-time",
}


class Tokens(Protocol):
    """What is needed of identity.tokens.TokenClient."""

    def token(self, upstream: Upstream) -> Token:
        """Return a good token; raises TokenUnavailable."""
        ...

    def drop(self, upstream: Upstream, token: Token) -> None:
        """Forget a token that was refused."""
        ...


@frozen
class _Letter:
    """One message as it lies in the spool: its head, and the body or where to read it.

    body_bytes: length of the body. body: None: read it, from `body_start` on.
    """

    head: bytes
    body_start: int
    body_bytes: int
    body: bytes | None


@dataclass(slots=True)
class _Job:
    """One `send`: what does not change between its POSTs, and how many are left."""

    grip: Grip
    content: OpenContent
    letter: _Letter
    token: Token
    posts_left: int = _MAX_POSTS
    may_renew_token: bool = True


class GraphTransport:
    """One upstream's way through Graph; any number of greenlets may send at once.

    hot:               POSTs to the origin of `graph_url`.
    graph_url:         such as "https://graph.microsoft.com/v1.0".
    message_id_domain: this relay's host name.
    send_timeout_s:    for one POST; it ends earlier when the lease does.
    """

    name: Final = "graph"

    def __init__(
        self,
        upstream: Upstream,
        graph_url: str,
        hot: HotPath,
        tokens: Tokens,
        *,
        message_id_domain: str,
        send_timeout_s: float = 120.0,
        clock: Clock = SYSTEM,
    ) -> None:
        self._upstream = upstream
        self._base = urlsplit(graph_url).path.rstrip("/")
        self._hot = hot
        self._tokens = tokens
        self._domain = message_id_domain
        self._send_timeout_s = send_timeout_s
        self._clock = clock
        self._paths: dict[str, bytes] = {}
        self._bearer: tuple[str, bytes] = ("", b"")  # a token's value, the headers with it

    def send(self, grip: Grip, content: OpenContent) -> Result:
        """Send to all recipients of the lease; see Transport.send."""
        lease = grip.lease
        if lease.size_bytes > self._upstream.mime_limit:
            return self._too_large(lease.size_bytes)
        try:
            token = self._tokens.token(self._upstream)
        except TokenUnavailable as error:
            return token_failure(error)
        job = _Job(grip, content, _read_letter(lease, content), token)
        parts = self._deliver(job, lease.recipients)
        return parts[0][1] if len(parts) == 1 else _merged(parts)

    def close(self) -> None:
        """Give idle connections up."""
        self._hot.close()

    def _deliver(
        self, job: _Job, recipients: tuple[str, ...]
    ) -> list[tuple[tuple[str, ...], Outcome]]:
        """Send to `recipients`; where one of them spoils it, to each half.

        raises: what reading the content raises, only when these are all recipients of the lease.
        """
        is_part = len(recipients) < len(job.grip.lease.recipients)
        outcome = (self._attempt_part if is_part else self._attempt)(job, recipients)
        if len(recipients) == 1 or not _is_divisible(outcome):
            return [(recipients, outcome)]
        middle = len(recipients) // 2
        parts = self._deliver(job, recipients[:middle])
        last = parts[-1][1]
        if isinstance(last, Sent | Failed):
            return parts + self._deliver(job, recipients[middle:])
        if isinstance(last, Ambiguous):  # that is true of those who were asked for alone
            last = catalogue.local("not-tried", "")
        return [*parts, (recipients[middle:], last)]  # it would fare the same

    def _attempt_part(self, job: _Job, recipients: tuple[str, ...]) -> Outcome:
        """Do the same for some of the recipients; never raises.

        Others may have been sent to: who is told of an exception instead would try them again.
        """
        lease, posts_left = job.grip.lease, job.posts_left
        try:
            return self._attempt(job, recipients)
        except (SpoolUnavailable, LeaseLost) as error:
            return catalogue.local("unreadable", str(error))
        except Exception as error:  # unknown is temporary (ADR 0006)
            log.exception("courier.bug", id=queue_id_text(lease.message))
            unforeseen = catalogue.local("unknown-error", type(error).__name__)
            return unforeseen if job.posts_left == posts_left else Ambiguous(unforeseen.answer)

    def _attempt(self, job: _Job, recipients: tuple[str, ...]) -> Outcome:
        lease = job.grip.lease
        head = outgoing_head(
            job.letter.head,
            recipients=recipients,
            set_from=lease.set_from,
            reply_to_original=lease.reply_to_original,
            mailbox=lease.mailbox.mailbox,
            message_id_domain=self._domain,
            queue_id=queue_id_text(lease.message),
            now=self._clock.utcnow(),
            accepted_at=lease.accepted_at,
        )
        total = len(head) + job.letter.body_bytes
        if total > self._upstream.mime_limit:
            return self._too_large(total)
        outcome = self._post(job, head)
        if _is_token_refused(outcome) and job.may_renew_token:
            job.may_renew_token = False
            self._tokens.drop(self._upstream, job.token)
            try:
                job.token = self._tokens.token(self._upstream)
            except TokenUnavailable as error:
                return token_failure(error)
            outcome = self._post(job, head)
        return outcome

    def _post(self, job: _Job, head: bytes) -> Outcome:
        grip, letter = job.grip, job.letter
        if job.posts_left <= 0:
            return catalogue.local("no-time", "enough tries with parts of the recipients for now")
        job.posts_left -= 1
        length = encoded_bytes(len(head) + letter.body_bytes)
        if letter.body is not None:
            return self._exchanged(job, Body(length, encode_whole(head + letter.body)))
        with _opened(grip.lease, job.content) as pieces:
            body = Body(length, b"", encode(_stream(head, pieces, letter.body_start)))
            return self._exchanged(job, body)

    def _exchanged(self, job: _Job, body: Body) -> Outcome:
        grip = job.grip
        limit_s = min(self._send_timeout_s, grip.seconds_left())
        result = self._hot.post(
            self._path(grip.lease.mailbox.mailbox),
            self._headers(job),
            body,
            deadline=self._clock.monotonic() + limit_s,
            may_begin=grip.may_begin,
        )
        return self._classed(result, body.length)

    def _classed(self, result: Response | Unanswered, length: int) -> Outcome:
        name = self._upstream.name
        metrics.observe("relayd_send_seconds", result.elapsed_s, upstream=name)
        if isinstance(result, Unanswered):
            metrics.count("relayd_graph_requests_total", upstream=name, status=result.stage)
            return catalogue.local(_CODES[result.stage], result.text)
        metrics.count("relayd_graph_requests_total", upstream=name, status=result.status)
        return catalogue.classify(
            result.status,
            result.headers,
            result.body,
            result.elapsed_s,
            request_bytes=length,
            sent_all=result.sent_all,
            now=self._clock.utcnow(),
        )

    def _headers(self, job: _Job) -> bytes:
        value, headers = self._bearer
        if value is not job.token.value:
            value, headers = self._bearer = job.token.value, _headers_with(job.token.value)
        return headers + request_id(job.grip.lease, job.posts_left).encode("ascii") + b"\r\n"

    def _path(self, mailbox: str) -> bytes:
        path = self._paths.get(mailbox)
        if path is None:
            if len(self._paths) >= _PATHS_KEPT:
                self._paths.clear()
            path = f"{self._base}/users/{quote(mailbox, safe='@')}/sendMail".encode("ascii")
            self._paths[mailbox] = path
        return path

    def _too_large(self, size: int) -> Outcome:
        limit = self._upstream.mime_limit
        return catalogue.local("RequestTooLarge", f"{size} octets; at most {limit} go this way")


def _headers_with(token: str) -> bytes:
    """Return the headers of every POST; the last one, client-request-id, lacks its value."""
    # SECURITY: a token is octets from outside; a line break in it would add headers.
    if not token.isascii() or not token.isprintable():
        raise ValueError("the access token is not one line of ASCII")
    return (
        f"Authorization: Bearer {token}\r\n"
        "Content-Type: text/plain\r\n"
        "Accept: application/json\r\n"
        "Accept-Encoding: identity\r\n"
        "User-Agent: relayd\r\n"
        "client-request-id: "
    ).encode("ascii")


def token_failure(error: TokenUnavailable) -> Outcome:
    """Return what the lack of a token means: the whole upstream waits, no message fails."""
    answer = Answer(code=error.cause, text=catalogue.bounded(error.text))
    if error.configuration:
        return Misconfigured(answer, whole_upstream=True)
    return Deferred(answer, error.retry_after_s, whole_upstream=True)


def request_id(lease: Lease, nonce: int) -> str:
    """Return the client-request-id of one POST: a UUID (version 8) made from the lease.

    The same lease gives the same one, so that it can be told from the journal afterwards;
    Graph only echoes it.
    """
    seed = b"%d.%d.%d.%d.%d" % (lease.message, lease.delivery, lease.fence, lease.attempt, nonce)
    text = hashlib.blake2b(seed, digest_size=16).hexdigest()
    return f"{text[:8]}-{text[8:12]}-8{text[13:16]}-a{text[17:20]}-{text[20:]}"


def _is_divisible(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and outcome.answer.code.lower() in _DIVISIBLE


def _is_token_refused(outcome: Outcome) -> bool:
    return (
        isinstance(outcome, Misconfigured)
        and outcome.whole_upstream
        and outcome.answer.status == 401
    )


def _merged(parts: list[tuple[tuple[str, ...], Outcome]]) -> Result:
    """Return one outcome when all parts were sent, else all of them."""
    if all(isinstance(outcome, Sent) for _, outcome in parts):
        return parts[-1][1]
    return Divided(tuple(parts))


def _read_letter(lease: Lease, content: OpenContent) -> _Letter:
    """Find the head; the body of a small message too, the length of a large one's."""
    if lease.content is not None and len(lease.content) <= _WHOLE_BYTES:
        head, start = split_to_send(lease.content)
        return _Letter(head, start, len(lease.content) - start, lease.content[start:])
    buffer, total = bytearray(), 0
    with _opened(lease, content) as pieces:
        for piece in pieces:
            total += len(piece)
            if len(buffer) <= HEAD_LIMIT:
                buffer += piece
    if total <= _WHOLE_BYTES:
        head, start = split_to_send(bytes(buffer))
        return _Letter(head, start, total - start, bytes(buffer[start:]))
    head, start = split_to_send(bytes(buffer))
    return _Letter(head, start, total - start, None)


def _opened(lease: Lease, content: OpenContent) -> AbstractContextManager[Iterator[bytes]]:
    if lease.content is not None:
        return contextlib.nullcontext(iter((lease.content,)))
    return content()


def _stream(head: bytes, pieces: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """Yield the new head, then the content without its first `skip` octets."""
    yield head
    for piece in pieces:
        if skip >= len(piece):
            skip -= len(piece)
            continue
        yield piece[skip:] if skip else piece
        skip = 0
