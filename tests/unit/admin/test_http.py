"""Only what is plainly a GET or HEAD of a path is a request; all else is refused in fixed words."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.admin.http import END, MOST_HEADERS, Refused, Request, Response, parse, render

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
HOST = "Host: 127.0.0.1:8025"


def head(*lines: str) -> bytes:
    return "\r\n".join(lines).encode("latin-1") + END


def refused(octets: bytes, names: tuple[str, ...] = ()) -> int:
    with pytest.raises(Refused) as caught:
        parse(octets, names=names)
    assert caught.value.response.body.endswith(b"\n")
    return caught.value.response.status


def test_a_scrape_is_a_request() -> None:
    octets = head(
        "GET /metrics HTTP/1.1", HOST, "Accept: text/plain", "accept: */*;q=0.1", "X-Empty:"
    )
    assert parse(octets) == Request("GET", "/metrics", "text/plain, */*;q=0.1")


def test_a_query_is_no_part_of_the_path() -> None:
    assert parse(head("HEAD /readyz?verbose=1 HTTP/1.0")) == Request("HEAD", "/readyz", "")


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (400, ["GET /metrics"]),
        (400, ["GET  /metrics HTTP/1.1"]),
        (400, ["GET /me trics HTTP/1.1"]),
        (400, [""]),
        (400, ["", "GET /metrics HTTP/1.1"]),
        (400, ["\x16\x03\x01 a TLS client hello"]),
        (400, ["EHLO printer"]),
        (400, ["GET http://example.com/ HTTP/1.1", HOST]),
        (400, ["GET * HTTP/1.1", HOST]),
        (400, ["GET /metrics HTTP/1.1", "Host : a"]),
        (400, ["GET /metrics HTTP/1.1", " folded"]),
        (400, ["GET /metrics HTTP/1.1", "no colon"]),
        (400, ["GET /metrics HTTP/1.1", "A: b\nTransfer-Encoding: chunked"]),
        (400, ["GET /metrics HTTP/1.1", "A: b\rC: d"]),
        (400, ["GET /metrics HTTP/1.1", "A: \x00"]),
        (405, ["POST /metrics HTTP/1.1", HOST, "Content-Length: 3"]),
        (405, ["OPTIONS /metrics HTTP/1.1", HOST]),
        (413, ["GET /metrics HTTP/1.1", HOST, "Content-Length: 3"]),
        (413, ["GET /metrics HTTP/1.1", HOST, "Content-Length: 0", "Content-Length: 5"]),
        (413, ["GET /metrics HTTP/1.1", HOST, "Content-Length: +0"]),
        (413, ["GET /metrics HTTP/1.1", HOST, "transfer-encoding: identity"]),
        (431, ["GET /metrics HTTP/1.1", *["A: b"] * (MOST_HEADERS + 1)]),
        (505, ["GET /metrics HTTP/2.0"]),
    ],
)
def test_what_is_not_plainly_a_request_is_refused(status: int, lines: list[str]) -> None:
    assert refused(head(*lines)) == status


def test_a_length_of_nothing_is_no_body() -> None:
    assert parse(head("GET /healthz HTTP/1.1", "Content-Length: 0")).path == "/healthz"


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8025",
        "[::1]:8025",
        "[::1]",
        "localhost",
        "LOCALHOST:8025",
        "a.localhost",
        "Relay",
    ],
)
def test_on_loopback_addresses_localhost_and_our_own_name_are_us(host: str) -> None:
    assert parse(head("GET / HTTP/1.1", f"Host: {host}"), names=("relay",)).path == "/"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8025", "localhost.evil", "127.1.x"])
def test_on_loopback_a_foreign_name_is_not_us(host: str) -> None:
    assert refused(head("GET / HTTP/1.1", f"Host: {host}"), ("relay",)) == 421
    assert parse(head("GET / HTTP/1.1", f"Host: {host}")).path == "/"


@given(st.binary(max_size=200))
def test_any_octets_are_a_request_or_refused(octets: bytes) -> None:
    try:
        request = parse(octets + END)
    except Refused:
        return
    assert request.method in ("GET", "HEAD")
    assert request.path.startswith("/")


def test_an_answer_closes_and_says_its_length() -> None:
    octets = render(Response(200, b"ok\n"), now=NOW)
    lines = octets.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert b"Content-Length: 3" in lines
    assert b"Connection: close" in lines
    assert b"Date: Fri, 20 Nov 2026 10:00:00 GMT" in lines
    assert octets.endswith(b"\r\n\r\nok\n")


def test_an_answer_to_head_is_the_same_without_its_body() -> None:
    whole = render(Response(200, b"ok\n"), now=NOW)
    assert render(Response(200, b"ok\n"), now=NOW, with_body=False) + b"ok\n" == whole


def test_who_posts_is_told_what_is_allowed() -> None:
    assert b"Allow: GET, HEAD\r\n" in render(Response(405, b""), now=NOW)


def test_a_header_full_of_spaces_costs_no_more_than_its_length() -> None:
    octets = head("GET / HTTP/1.1", HOST, "A: x" + " " * 1_000_000 + "y", "Accept:  a  b \t ")
    assert parse(octets).accept == "a  b"
