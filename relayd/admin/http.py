"""The little of HTTP that a scrape needs, as values: one GET or HEAD, one answer, then the end.

A request is what stands before the first empty line; there is never a body, a second request or
a header that changes how long something is, so nothing can be smuggled past it. Whatever is not
plainly a request is refused, with fixed texts.

Source: RFC 9112 §2-3 (message, request line), §9.6 (close); RFC 9110 §15.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from email.utils import format_datetime
from typing import Final, NamedTuple

from relayd.values import frozen

MOST_OCTETS: Final = 8192
MOST_HEADERS: Final = 64
END: Final = b"\r\n\r\n"

TEXT: Final = "text/plain; charset=utf-8"
JSON: Final = "application/json"

_REASONS: Final[Mapping[int, str]] = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
_LINE: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}) ([\x21-\x7e]+) HTTP/(\d)\.\d")
_FIELD: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class Request(NamedTuple):
    """What is asked. path: without the query; accept: the header, "" if none."""

    method: str
    path: str
    accept: str


@frozen
class Response:
    """What is answered."""

    status: int
    body: bytes
    content_type: str = TEXT


class Refused(Exception):
    """No request that is answered here; the response says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.response = Response(status, text.encode() + b"\n")


def parse(head: bytes, *, names: Collection[str] = ()) -> Request:
    """Return the request in `head`, which ends with the empty line.

    names: host names by which we may be called, lower case; empty: by any. Addresses and
           localhost are always fine.
    raises: Refused.
    """
    first, *rest = head.removesuffix(END).split(b"\r\n")
    if len(rest) > MOST_HEADERS:
        raise Refused(431, "too many headers")
    if any(_CONTROL.search(line) for line in (first, *rest)):
        raise Refused(400, "a control character")
    line = _LINE.fullmatch(first.decode("latin-1"))
    if line is None:
        raise Refused(400, "no HTTP request")
    method, target, version = line.groups()
    if version != "1":
        raise Refused(505, "HTTP/1.0 or HTTP/1.1 only")
    headers = _headers(rest)
    if method not in ("GET", "HEAD"):
        raise Refused(405, "GET or HEAD only")
    if not target.startswith("/"):
        raise Refused(400, "a path only")
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        # SECURITY: with no body there is no doubt where the request ends.
        raise Refused(413, "a request has no body here")
    if names and not _is_called(headers.get("host", ""), names):
        # SECURITY: DNS rebinding: a web page that has its own name point to 127.0.0.1 could
        # read what is here with the browser of somebody who sits at this host.
        raise Refused(421, "not called so: use the address, or localhost")
    return Request(method, target.partition("?")[0], headers.get("accept", ""))


def _headers(lines: list[bytes]) -> dict[str, str]:
    """Return the headers by lower-case name; one that comes twice is joined with a comma."""
    found: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line.decode("latin-1"))
        if field is None:
            raise Refused(400, "no header")
        # Not in the pattern: spaces within a value would cost their number squared.
        name, value = field[1].lower(), field[2].strip(" \t")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _is_called(host: str, names: Collection[str]) -> bool:
    """Tell whether a Host header is an address, localhost or one of `names`."""
    if not host:
        return True  # HTTP/1.0; a browser always says it
    name = re.sub(r":\d*$", "", host).lower()
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return name in names or name == "localhost" or name.endswith(".localhost")
    return True


def render(response: Response, *, now: datetime, with_body: bool = True) -> bytes:
    """Return the response's octets; with_body False: as HEAD wants it."""
    lines = [
        f"HTTP/1.1 {response.status} {_REASONS[response.status]}",
        f"Date: {format_datetime(now, usegmt=True)}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        *(["Allow: GET, HEAD"] if response.status == 405 else []),
        "Connection: close",
    ]
    head = "\r\n".join(lines).encode("ascii") + END
    return head + response.body if with_body else head
