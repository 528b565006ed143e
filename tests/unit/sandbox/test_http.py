"""relayd.sandbox.http: any split of the octets gives the same requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.sandbox.http import BadRequest, Head, Receiver, Request, Response

LENGTH = (
    b"POST /a%20b?x=1&y= HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\nhello"
)
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: x\r\n\r\n"
)
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


def events(octets: bytes, cuts: list[int], keep: int = 1000) -> list[Head | Request]:
    receiver, out, start = Receiver(keep), list[Head | Request](), 0
    for cut in [*sorted(cuts), len(octets)]:
        receiver.feed(octets[start:cut])
        start = max(start, cut)
        while (event := receiver.next_event()) is not None:
            out.append(event)
    return out


def test_a_request_has_its_path_query_fields_and_body() -> None:
    head, request = events(LENGTH, [])
    assert isinstance(head, Head)
    assert (head.method, head.path, dict(head.query)) == ("POST", "/a b", {"x": "1", "y": ""})
    assert head.get("x-a") == "1, 2"
    assert head.get("missing") == ""
    assert isinstance(request, Request)
    assert (request.body, request.body_bytes, request.head) == (b"hello", 5, head)


def test_chunks_are_joined_and_trailers_ignored() -> None:
    request = events(CHUNKED, [])[1]
    assert isinstance(request, Request)
    assert request.body == b"hello world"


@given(st.lists(st.integers(0, len(CHUNKED + LENGTH + GET)), max_size=12))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    stream = CHUNKED + LENGTH + GET
    assert events(stream, cuts) == events(stream, [])
    assert len(events(stream, [])) == 6


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_awaited_but_never_breaks(octets: bytes) -> None:
    try:
        events(octets, [])
    except BadRequest:
        return


def test_of_a_far_too_large_body_only_the_beginning_is_kept() -> None:
    octets = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000
    request = events(octets, [100, 900], keep=10)[1]
    assert isinstance(request, Request)
    assert (len(request.body), request.body_bytes) == (10, 5000)


@pytest.mark.parametrize(
    "octets",
    [
        b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET  HTTP/1.1\r\nHost: h\r\n\r\n",
        b"G3T / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET relative HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET //[ HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX : 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 2000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000,
    ],
)
def test_what_is_not_http_is_refused(octets: bytes) -> None:
    with pytest.raises(BadRequest):
        events(octets, [])


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", True),
        (b"\r\nGET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
    ],
)
def test_a_connection_is_kept_as_the_client_wishes(head: bytes, *, kept: bool) -> None:
    first = events(head, [])[0]
    assert isinstance(first, Head)
    assert first.keep_alive is kept


def test_an_answer_bears_its_length_and_reason() -> None:
    answer = Response(status=202, fields=(("A", "b"),), body=b"xyz")
    assert answer.render() == b"HTTP/1.1 202 Accepted\r\nA: b\r\nContent-Length: 3\r\n\r\nxyz"
    assert answer.render(close=True, without_body=True).endswith(b"Connection: close\r\n\r\n")
    assert Response(status=599).render().startswith(b"HTTP/1.1 599 Unknown\r\n")


def test_a_line_end_in_an_echoed_value_forges_no_field() -> None:
    octets = Response(status=200, fields=(("A", "b\r\nSet-Cookie: c"),)).render()
    assert b"\r\nSet-Cookie" not in octets


def test_waiting_octets_are_counted() -> None:
    receiver = Receiver(10)
    receiver.feed(b"GET")
    assert receiver.waiting_bytes == 3
