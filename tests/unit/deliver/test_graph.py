"""One message to Graph: the request that goes out, and what each answer leads to."""

from __future__ import annotations

import base64
import contextlib
import json
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from email import message_from_bytes
from itertools import pairwise

import pytest
from structlog.testing import capture_logs

from relayd.clock import FakeClock
from relayd.config.model import Http, Upstream
from relayd.deliver.graph import GraphTransport, request_id
from relayd.deliver.lane import Carried
from relayd.deliver.outcome import (
    Ambiguous,
    Deferred,
    Divided,
    Failed,
    Misconfigured,
    Outcome,
    Result,
    Sent,
)
from relayd.errors import LeaseLost, SpoolUnavailable, TokenUnavailable
from relayd.identity.tokens import Token
from relayd.net.hotpath import Body, HotPath
from relayd.net.http import Response, Unanswered, pool
from relayd.observe import metrics
from relayd.spool.model import Lease, MailboxRef
from tests.deliver_fakes import CONTENT, lease_of
from tests.raw_server import ACCEPTED, Conversation, RawServer, accepting, certificates

UPSTREAM = Upstream(name="contoso", mailbox="alerts@contoso.com")
TAKEN = Response(202, {"request-id": "r1"}, b"", True, 0.3)


def answer(status: int, code: str = "", **headers: str) -> Response:
    body = json.dumps({"error": {"code": code, "message": "m"}}).encode() if code else b""
    return Response(status, headers, body, True, 0.3)


class Tokens:
    def __init__(self, *values: str) -> None:
        self.values = list(values) or ["t1"]
        self.dropped: list[str] = []
        self.failure: TokenUnavailable | None = None

    def token(self, upstream: Upstream) -> Token:
        if self.failure is not None and not self.values:
            raise self.failure
        return Token(self.values[0], 1e9, "f")

    def drop(self, upstream: Upstream, token: Token) -> None:
        self.dropped.append(token.value)
        self.values.pop(0)


class Hot:
    """Takes the place of HotPath: remembers requests, answers by `plan`."""

    def __init__(self, plan: Callable[[bytes], Response | Unanswered]) -> None:
        self.plan = plan
        self.paths: list[bytes] = []
        self.headers: list[bytes] = []
        self.messages: list[bytes] = []
        self.deadlines: list[float] = []
        self.is_closed = False

    def post(
        self,
        path: bytes,
        headers: bytes,
        body: Body,
        *,
        deadline: float,
        may_begin: Callable[[], bool] | None = None,
    ) -> Response | Unanswered:
        if may_begin is not None and not may_begin():
            return Unanswered("time", "", False, 0.0)
        whole = body.whole or b"".join(body.pieces or ())
        assert len(whole) == body.length
        self.paths.append(path)
        self.headers.append(headers)
        self.messages.append(base64.b64decode(whole, validate=True))
        self.deadlines.append(deadline)
        return self.plan(self.messages[-1])

    def close(self) -> None:
        self.is_closed = True


def sequence(*answers: Response | Unanswered) -> Hot:
    left = list(answers)
    return Hot(lambda _: left.pop(0))


def transport_for(
    hot: Hot, tokens: Tokens | None = None, upstream: Upstream = UPSTREAM
) -> GraphTransport:
    return GraphTransport(
        upstream,
        "https://graph.example.com/v1.0",
        hot,  # type: ignore[arg-type]  # a fake
        tokens or Tokens(),
        message_id_domain="relay.example.lan",
        clock=FakeClock(),
    )


def send(
    hot: Hot,
    *,
    tokens: Tokens | None = None,
    upstream: Upstream = UPSTREAM,
    pieces: tuple[bytes, ...] = (),
    **changes: object,
) -> Result:
    clock = FakeClock()
    carried = Carried(lease_of(clock, **changes), clock)
    return transport_for(hot, tokens, upstream).send(carried, lambda: opened(pieces))


def opened(pieces: tuple[bytes, ...]) -> AbstractContextManager[Iterator[bytes]]:
    return contextlib.nullcontext(iter(pieces))


def addresses(message: bytes) -> set[str]:
    parsed = message_from_bytes(message)
    text = ",".join(str(parsed.get(name, "")) for name in ("To", "Cc", "Bcc"))
    return {part.strip() for part in text.split(",") if part.strip()}


# --- the request -----------------------------------------------------------------------------


def test_the_request_is_what_graph_wants() -> None:
    hot = sequence(TAKEN)

    result = send(hot, recipients=("b@example.com", "hidden@example.com"))

    assert isinstance(result, Sent)
    assert result.answer.request_id == "r1"
    assert hot.paths == [b"/v1.0/users/alerts@contoso.com/sendMail"]
    lines = hot.headers[0].split(b"\r\n")
    assert b"Authorization: Bearer t1" in lines
    assert b"Content-Type: text/plain" in lines
    assert b"Accept-Encoding: identity" in lines
    assert hot.headers[0].endswith(b"\r\n")
    assert addresses(hot.messages[0]) == {"b@example.com", "hidden@example.com"}
    assert hot.messages[0].endswith(b"\r\n\r\nhello\r\n")


@pytest.mark.parametrize(
    ("mailbox", "path"),
    [
        ("a+b@contoso.com", b"a%2Bb@contoso.com"),
        ("x_fab.com#ext#@contoso.com", b"x_fab.com%23ext%23@contoso.com"),
        ("a/../b@contoso.com", b"a%2F..%2Fb@contoso.com"),
        ("a b\r\nX: y@contoso.com", b"a%20b%0D%0AX%3A%20y@contoso.com"),
        ("jörg@contoso.com", b"j%C3%B6rg@contoso.com"),
    ],
)
def test_a_mailbox_is_quoted_into_the_path(mailbox: str, path: bytes) -> None:
    hot = sequence(TAKEN)

    send(hot, mailbox=MailboxRef("contoso", mailbox), set_from="alerts@contoso.com")

    assert hot.paths == [b"/v1.0/users/" + path + b"/sendMail"]


def test_the_request_id_is_a_guid_that_belongs_to_one_try() -> None:
    lease = lease_of(FakeClock())
    first = request_id(lease, 0)

    assert first == request_id(lease, 0)
    assert [len(part) for part in first.split("-")] == [8, 4, 4, 4, 12]
    others = [replace(lease, fence=2), replace(lease, attempt=2), replace(lease, delivery=2)]
    assert len({first, request_id(lease, 1), *(request_id(one, 0) for one in others)}) == 5


@pytest.mark.parametrize("value", ["a\r\nX: y", "ä", "a\x00"])
def test_a_token_cannot_carry_headers(value: str) -> None:
    with pytest.raises(ValueError, match="token"):
        send(sequence(TAKEN), tokens=Tokens(value))


def test_the_deadline_is_the_shorter_of_send_timeout_and_lease() -> None:
    hot = sequence(TAKEN, TAKEN)
    now = FakeClock().monotonic()

    send(hot)
    send(hot, expires_boottime=now + 65.0)

    assert hot.deadlines == [now + 120.0, now + 60.0]


def test_nothing_begins_on_a_lease_that_is_over() -> None:
    result = send(sequence(), expires_boottime=FakeClock().boottime())

    assert isinstance(result, Deferred)
    assert result.answer.code == "no-time"


# --- size ------------------------------------------------------------------------------------


def test_content_in_pieces_is_the_same_as_content_whole() -> None:
    body = bytes(range(256)) * 2000
    content = CONTENT + body
    whole, pieces = sequence(TAKEN), sequence(TAKEN)

    send(whole, content=content, size_bytes=len(content))
    for size in (1000, 262_144):
        parts = tuple(content[at : at + size] for at in range(0, len(content), size))
        pieces = sequence(TAKEN)
        send(pieces, content=None, size_bytes=len(content), pieces=parts)
        assert pieces.messages == whole.messages

    assert whole.messages[0].endswith(body)


@pytest.mark.parametrize("size", [0, 300_000])
def test_a_bcc_line_behind_a_broken_head_is_not_sent_as_text(size: int) -> None:
    # A device whose second line was no field: everybody read who was hidden.
    broken = (
        b"Subject: x\r\ndisk full\r\nBcc: boss@contoso.com,\r\n b@c.d\r\nTo: ops@contoso.com\r\n"
    )
    content = broken + b"\r\nBcc: in the body\r\n" + b"z" * size
    whole, cut = sequence(TAKEN), sequence(TAKEN)

    send(whole, content=content, size_bytes=len(content))
    parts = tuple(content[at : at + 1000] for at in range(0, len(content), 1000))
    send(cut, content=None, size_bytes=len(content), pieces=parts)

    assert cut.messages == whole.messages
    (message,) = whole.messages
    assert b"boss" not in message
    opening = b"\r\n\r\ndisk full\r\nTo: ops@contoso.com\r\n\r\nBcc: in the body\r\n"
    assert message.endswith(opening + b"z" * size)


def test_small_content_from_the_spool_is_encoded_whole() -> None:
    hot = sequence(TAKEN)

    send(hot, content=None, pieces=(CONTENT[:20], CONTENT[20:]))

    assert hot.messages[0].endswith(b"hello\r\n")


def test_a_message_above_the_limit_is_refused_before_it_is_read() -> None:
    upstream = replace(UPSTREAM, mime_limit=10_000)

    result = send(sequence(), upstream=upstream, size_bytes=10_001, content=None)

    assert isinstance(result, Failed)
    assert result.enhanced == "5.3.4"
    assert "10001 octets" in result.answer.text


def test_the_head_counts_too() -> None:
    upstream = replace(UPSTREAM, mime_limit=len(CONTENT) + 10)

    result = send(sequence(), upstream=upstream)

    assert isinstance(result, Failed)
    assert result.enhanced == "5.3.4"


@pytest.mark.slow(1)
def test_a_large_message_is_never_whole_in_memory() -> None:
    piece = bytes(262_144)

    class Draining(Hot):
        def post(
            self,
            path: bytes,
            headers: bytes,
            body: Body,
            *,
            deadline: float,
            may_begin: Callable[[], bool] | None = None,
        ) -> Response:
            assert sum(len(piece) for piece in body.pieces or ()) == body.length
            return TAKEN

    parts = (CONTENT, *[piece] * 11)
    tracemalloc.start()
    send(Draining(lambda _: TAKEN), content=None, size_bytes=11 * len(piece), pieces=parts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 6 * len(piece)


def test_content_that_cannot_be_read_is_the_couriers_affair() -> None:
    def broken() -> AbstractContextManager[Iterator[bytes]]:
        raise SpoolUnavailable("disk")

    clock = FakeClock()
    carried = Carried(lease_of(clock, content=None), clock)
    with pytest.raises(SpoolUnavailable):
        transport_for(sequence()).send(carried, broken)


# --- tokens ----------------------------------------------------------------------------------


def test_without_a_token_nothing_is_sent_and_the_upstream_waits() -> None:
    tokens = Tokens()
    tokens.values.clear()
    for is_configuration, kind in ((False, Deferred), (True, Misconfigured)):
        tokens.failure = TokenUnavailable(
            "7000215", "wrong\r\nsecret", configuration=is_configuration, retry_after_s=9.0
        )
        result = send(sequence(), tokens=tokens)
        assert isinstance(result, Deferred | Misconfigured)
        assert type(result) is kind
        assert result.whole_upstream
        assert (result.answer.code, result.answer.text) == ("7000215", "wrong secret")
        assert getattr(result, "retry_after_s", 9.0) == 9.0


def test_a_refused_token_is_dropped_and_the_next_tried_once() -> None:
    tokens = Tokens("old", "new")
    hot = sequence(answer(401, "InvalidAuthenticationToken"), TAKEN)

    assert isinstance(send(hot, tokens=tokens), Sent)

    assert tokens.dropped == ["old"]
    assert b"Bearer old" in hot.headers[0]
    assert b"Bearer new" in hot.headers[1]


def test_a_second_refusal_is_a_matter_of_configuration() -> None:
    hot = sequence(answer(401), answer(401))

    result = send(hot, tokens=Tokens("old", "new", "third"))

    assert isinstance(result, Misconfigured)
    assert result.whole_upstream
    assert len(hot.messages) == 2


def test_a_refused_token_without_a_successor_waits_for_one() -> None:
    tokens = Tokens("old")
    tokens.failure = TokenUnavailable("throttled", "t", configuration=False)

    result = send(sequence(answer(401)), tokens=tokens)

    assert isinstance(result, Deferred)
    assert result.whole_upstream


# --- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "code", "kind"),
    [
        ("dns", "dns-failed", Deferred),
        ("connect", "connect-failed", Deferred),
        ("tls", "tls-failed", Deferred),
        ("proxy", "proxy-failed", Deferred),
        ("send", "send-interrupted", Deferred),
        ("time", "no-time", Deferred),
        ("answer", "no-answer", Ambiguous),
        ("garbled", "not-understood", Ambiguous),
    ],
)
def test_what_went_wrong_without_an_answer(stage: str, code: str, kind: type[object]) -> None:
    result = send(sequence(Unanswered(stage, "why", stage in ("answer", "garbled"), 1.0)))  # type: ignore[arg-type]  # a column

    assert type(result) is kind
    assert not isinstance(result, Divided)
    assert (result.answer.code, result.answer.text) == (code, "why")


def test_calls_are_counted() -> None:
    def counted() -> object:
        return metrics.snapshot().get("relayd_graph_requests_total", {}).get("counted\t202", 0)

    before = counted()
    send(sequence(TAKEN), upstream=replace(UPSTREAM, name="counted"))

    assert counted() == before + 1  # type: ignore[operator]  # a counter's value


# --- recipients that spoil it for the others -------------------------------------------------

MANY = tuple(f"r{n}@example.com" for n in range(20))


def refusing(*bad: str) -> Hot:
    def plan(message: bytes) -> Response:
        return answer(400, "ErrorInvalidRecipients") if addresses(message) & set(bad) else TAKEN

    return Hot(plan)


def fates(result: Result) -> dict[str, Outcome]:
    assert isinstance(result, Divided)
    out: dict[str, Outcome] = {}
    for recipients, outcome in result.parts:
        for one in recipients:
            assert one not in out, "each recipient has one fate"
            out[one] = outcome
    return out


def test_one_bad_address_does_not_lose_the_others() -> None:
    hot = refusing(MANY[7])

    found = fates(send(hot, recipients=MANY))

    assert set(found) == set(MANY)
    assert [one for one in MANY if isinstance(found[one], Failed)] == [MANY[7]]
    assert len(hot.messages) <= 2 * 5 + 1, "halves, not one by one"


def test_nobody_gets_the_message_twice() -> None:
    hot = refusing(MANY[0], MANY[19])

    send(hot, recipients=MANY)

    taken = [m for m in hot.messages if not addresses(m) & {MANY[0], MANY[19]}]
    everybody = [one for message in taken for one in addresses(message)]
    assert sorted(everybody) == sorted(MANY[1:19])


def test_a_single_bad_address_is_failed_as_it_is() -> None:
    result = send(refusing(MANY[0]), recipients=MANY[:1])

    assert isinstance(result, Failed)


def test_too_many_at_once_are_sent_in_parts() -> None:
    def plan(message: bytes) -> Response:
        many = len(addresses(message)) > 5
        return answer(400, "ErrorExceededMaxRecipientLimit") if many else TAKEN

    hot = Hot(plan)
    result = send(hot, recipients=MANY)

    assert isinstance(result, Sent)
    assert [len(addresses(m)) for m in hot.messages] == [20, 10, 5, 5, 10, 5, 5]


def test_trouble_on_the_way_ends_the_dividing() -> None:
    left = [answer(400, "ErrorInvalidRecipients"), TAKEN, answer(429)]
    hot = Hot(lambda _: left.pop(0))

    found = fates(send(hot, recipients=MANY[:4]))

    assert [type(found[one]) for one in MANY[:4]] == [Sent, Sent, Deferred, Deferred]


def test_what_would_fare_the_same_is_not_tried() -> None:
    hot = sequence(answer(400, "ErrorInvalidRecipients"), answer(429))

    found = fates(send(hot, recipients=MANY[:4]))

    assert {type(one) for one in found.values()} == {Deferred}
    assert len(hot.messages) == 2


def test_who_was_never_asked_for_is_not_maybe_sent() -> None:
    hot = sequence(answer(400, "ErrorInvalidRecipients"), answer(504))

    found = fates(send(hot, recipients=MANY[:4]))

    assert [type(found[one]) for one in MANY[:4]] == [Ambiguous, Ambiguous, Deferred, Deferred]
    assert {found[one].answer.code for one in MANY[2:4]} == {"not-tried"}
    assert len(hot.messages) == 2


LARGE = (CONTENT, bytes(200_000))
HALVES = (answer(400, "ErrorInvalidRecipients"), TAKEN)


@pytest.mark.parametrize("fault", [SpoolUnavailable("bad sector"), LeaseLost("it is over")])
def test_what_was_sent_is_not_forgotten_when_the_rest_cannot_be_read(fault: Exception) -> None:
    opens: list[int] = []

    def content() -> AbstractContextManager[Iterator[bytes]]:
        opens.append(1)
        if len(opens) == 4:  # its length, all recipients, the first half, the second
            raise fault
        return opened(LARGE)

    clock = FakeClock()
    lease = lease_of(clock, content=None, size_bytes=200_100, recipients=MANY[:4])
    found = fates(transport_for(sequence(*HALVES)).send(Carried(lease, clock), content))

    assert [type(found[one]) for one in MANY[:4]] == [Sent, Sent, Deferred, Deferred]
    assert (found[MANY[3]].answer.code, found[MANY[3]].answer.text) == ("unreadable", str(fault))


@pytest.mark.parametrize(("is_out", "kind"), [(True, Ambiguous), (False, Deferred)])
def test_what_was_sent_is_not_forgotten_in_the_unforeseen(is_out: bool, kind: type[object]) -> None:  # noqa: FBT001  a column
    left = list(HALVES)

    def plan(_: bytes) -> Response:
        if not left:
            raise ZeroDivisionError
        return left.pop(0)

    def content() -> AbstractContextManager[Iterator[bytes]]:
        return opened(LARGE)

    clock = FakeClock()
    lease = lease_of(clock, content=None, size_bytes=200_100, recipients=MANY[:2])
    transport = transport_for(Hot(plan))
    if not is_out:
        attempt = transport._attempt

        def fails_early(job: object, recipients: tuple[str, ...]) -> Outcome:
            if not left:
                raise ZeroDivisionError
            return attempt(job, recipients)  # type: ignore[arg-type]  # passed on as it is

        transport._attempt = fails_early  # type: ignore[method-assign]  # the fault under test
    with capture_logs() as lines:
        found = fates(transport.send(Carried(lease, clock), content))

    assert [type(found[one]) for one in MANY[:2]] == [Sent, kind]
    assert found[MANY[1]].answer.code == "unknown-error"
    assert [line["event"] for line in lines] == ["courier.bug"]


def test_a_token_is_renewed_once_for_all_parts() -> None:
    refused = answer(401)
    hot = sequence(answer(400, "ErrorInvalidRecipients"), refused, TAKEN, refused)
    tokens = Tokens("old", "new", "third")

    found = fates(send(hot, tokens=tokens, recipients=MANY[:2]))

    assert tokens.dropped == ["old"]
    assert [type(found[one]) for one in MANY[:2]] == [Sent, Misconfigured]


def test_a_hopeless_list_is_divided_over_several_leases() -> None:
    hot = refusing(*MANY, *[f"x{n}@example.com" for n in range(100)])
    everybody = tuple(f"x{n}@example.com" for n in range(100))

    found = fates(send(hot, recipients=everybody))

    assert len(hot.messages) == 40
    assert {type(one) for one in found.values()} == {Failed, Deferred}


def test_each_part_has_its_own_request_id() -> None:
    hot = refusing(MANY[0])
    send(hot, recipients=MANY[:2])

    assert all(first != second for first, second in pairwise(hot.headers))


# --- for real --------------------------------------------------------------------------------


def test_over_the_wire() -> None:
    seen: list[tuple[bytes, bytes]] = []

    def script(talk: Conversation) -> None:
        while True:
            seen.append(talk.request())
            talk.say(ACCEPTED)

    with RawServer(script, tls=True) as server:
        hot = HotPath(pool(Http(), ca_file=certificates()[0]), f"{server.url}/v1.0")
        transport = GraphTransport(
            UPSTREAM, f"{server.url}/v1.0/", hot, Tokens(), message_id_domain="relay.example.lan"
        )
        clock = FakeClock()
        lease: Lease = lease_of(clock)
        parts = (CONTENT, bytes(200_000))
        assert isinstance(transport.send(Carried(lease, clock), lambda: opened(())), Sent)
        large = replace(lease, content=None, size_bytes=200_000 + len(CONTENT))
        assert isinstance(transport.send(Carried(large, clock), lambda: opened(parts)), Sent)
        transport.close()

    head, body = seen[0]
    assert head.startswith(b"POST /v1.0/users/alerts@contoso.com/sendMail HTTP/1.1\r\n")
    assert base64.b64decode(body, validate=True).endswith(b"hello\r\n")
    assert base64.b64decode(seen[1][1], validate=True).endswith(bytes(200_000))


def test_a_spool_that_breaks_in_the_middle_leaves_no_half_request_behind() -> None:
    def breaking() -> Iterator[bytes]:
        yield CONTENT + bytes(150_000)
        if opens.count(1) > 1:
            raise SpoolUnavailable("disk")
        yield bytes(150_000)

    opens: list[int] = []

    def content() -> AbstractContextManager[Iterator[bytes]]:
        opens.append(1)
        return contextlib.nullcontext(breaking())

    with RawServer(accepting) as server:
        hot = HotPath(pool(Http()), server.url)
        transport = GraphTransport(
            UPSTREAM, server.url, hot, Tokens(), message_id_domain="relay.example.lan"
        )
        clock = FakeClock()
        carried = Carried(lease_of(clock, content=None), clock)
        with pytest.raises(SpoolUnavailable):
            transport.send(carried, content)
        assert not hot._idle
