"""The inbox: what arrived, for people. Plain HTML, no script, nothing from elsewhere.

    /                     mailboxes
    /mailbox/ADDRESS      what was delivered to it
    /sent/ADDRESS         its Sent Items
    /message/N?to=ADDRESS one message as that recipient got it; /raw: its source as text

SECURITY: everything shown was written by whoever sent the mail. All of it passes `_text`
(html.escape) or `quote`, HTML parts are shown as their text, and the content policy forbids
script even if an escape were forgotten.
"""

from __future__ import annotations

import email.policy
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from email.errors import MessageError
from email.message import Message
from email.parser import BytesParser
from html import escape
from html.parser import HTMLParser
from typing import Final
from urllib.parse import quote

from relayd.sandbox.http import Request, Response
from relayd.sandbox.lab import Lab
from relayd.sandbox.store import Stored

_PAGE: Final = 200
_TEXT_SHOWN: Final = 200_000
_PARSER: Final = BytesParser(policy=email.policy.compat32)
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_SHOWN_FIELDS: Final = ("from", "to", "cc", "reply-to", "subject", "date", "message-id")

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #667085; --line: #e3e6ec;
  --paper: #fff; --back: #f5f6f8; --mark: #0b62c4; --warn: #9a4d00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #303744;
  --paper: #1b2029; --back: #12151b; --mark: #7db4ff; --warn: #ffb36b; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif }
header, main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem }
header { padding-top: 1.25rem; display: flex; gap: .75rem; align-items: baseline; flex-wrap: wrap }
header a.home { font-weight: 650; color: var(--ink) }
header span { color: var(--soft) }
h1 { font-size: 1.3rem; margin: 1.1rem 0 .7rem; overflow-wrap: anywhere }
h2 { font-size: 1rem; margin: 1.6rem 0 .5rem }
a { color: var(--mark); text-decoration: none }
a:hover { text-decoration: underline }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden }
table { width: 100%; border-collapse: collapse }
th, td { padding: .5rem .9rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
tr:last-child > td, tr:last-child > th { border-bottom: 0 }
thead th { font-size: .78rem; font-weight: 600; color: var(--soft) }
.fields th { width: 9rem; font-weight: 500; color: var(--soft); white-space: nowrap }
.n, .when { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums;
  width: 1% }
.soft { color: var(--soft) }
.warn { color: var(--warn) }
pre { margin: 0; padding: .9rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13.5px/1.55 ui-monospace, "DejaVu Sans Mono", Menlo, monospace }
.empty { padding: 1.6rem .9rem; color: var(--soft) }
footer { margin-top: 2rem; padding-top: .9rem; padding-bottom: 1.6rem; color: var(--soft);
  font-size: .85rem; border-top: 1px solid var(--line) }
"""


@dataclass(frozen=True, slots=True)
class _Part:
    """An attachment. size_bytes: decoded."""

    name: str
    kind: str
    size_bytes: int


class Pages:
    """Answers the inbox port."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def handle(self, request: Request) -> Response:
        """Answer one request for a page."""
        head = request.head
        if head.method not in ("GET", "HEAD"):
            return _plain(405, "only GET")
        if head.path == "/style.css":
            return _answer(200, "text/css; charset=utf-8", _STYLE)
        words = [word for word in head.path.split("/") if word]
        match words:
            case []:
                return self._home()
            case ["mailbox", address]:
                return self._folder(address, sent=False)
            case ["sent", address]:
                return self._folder(address, sent=True)
            case ["message", number]:
                return self._message(number, head.query.get("to", ""))
            case ["message", number, "raw"]:
                return self._raw(number)
            case _:
                return _plain(404, "no such page")

    def _home(self) -> Response:
        store = self._lab.store
        received, sent = store.inboxes(), store.sent_counts()
        names = sorted({*received, *sent, *self._lab.directory.mailboxes})
        rows = "".join(
            f'<tr><td><a href="/mailbox/{quote(name)}">{_text(name)}</a></td>'
            f'<td class="n">{received.get(name, 0)}</td>'
            f'<td class="n">{_sent_link(name, sent.get(name, 0))}</td></tr>'
            for name in names
        )
        table = (
            "<table><thead><tr><th>Mailbox</th><th class=n>Received</th><th class=n>Sent</th>"
            f"</tr></thead><tbody>{rows}</tbody></table>"
        )
        last = list(reversed(store.messages(max(0, store.total - 20), 20)))
        recent = f"<h2>Last arrived</h2>{_messages(last, '')}" if last else ""
        return self._page("Mailboxes", _card(table if names else _NOTHING) + recent, refresh=True)

    def _folder(self, address: str, *, sent: bool) -> Response:
        store = self._lab.store
        key = address.lower()
        count = (store.sent_counts() if sent else store.inboxes()).get(key, 0)
        found = (store.sent if sent else store.inbox)(key, 0, count)
        shown = list(reversed(found))[:_PAGE]
        note = f'<p class="soft">The newest {_PAGE} of {count}.</p>' if count > len(shown) else ""
        title = f"Sent by {address}" if sent else address
        return self._page(title, note + _messages(shown, "" if sent else key), refresh=True)

    def _message(self, number: str, to: str) -> Response:
        stored = self._lab.store.message(int(number)) if number.isdigit() else None
        if stored is None:
            return _plain(404, "no such message; the oldest make room for new ones")
        head = stored.delivered_head()
        subject = stored.subject or "(no subject)"
        if head is None:
            parsed = None
            notice = '<p class="empty">The content made room for newer mail.</p>'
        elif stored.body is None:
            parsed = _PARSER.parsebytes(head + b"\r\n")
            notice = (
                f'<p class="empty">The body, {_size(stored.body_bytes)}, was not kept '
                f"(SHA-256 {_text(stored.body_sha256)}).</p>"
            )
        else:
            parsed, notice = _PARSER.parsebytes(head + b"\r\n" + stored.body), ""
        title = _decoded(parsed, "subject") if parsed is not None else subject
        parts = [_fields(stored, parsed, to)]
        if notice:
            parts.append(_card(notice))
        elif parsed is not None:
            text, attached = _content(parsed)
            parts.append(_card(f"<pre>{_text(text)}</pre>" if text else _NO_TEXT))
            parts.append(_attachments(attached))
        parts.append(
            f'<p><a href="/message/{stored.number}/raw">Source as received by the sandbox</a></p>'
        )
        return self._page(title or "(no subject)", "".join(parts))

    def _raw(self, number: str) -> Response:
        stored = self._lab.store.message(int(number)) if number.isdigit() else None
        if stored is None or stored.head is None:
            return _plain(404, "not kept")
        body = stored.body if stored.body is not None else b"(body not kept)\r\n"
        octets = stored.head + b"\r\n" + body
        return _plain(200, octets.decode("utf-8", "replace"))

    def _page(self, title: str, content: str, *, refresh: bool = False) -> Response:
        again = '<meta http-equiv="refresh" content="5">' if refresh else ""
        store = self._lab.store
        html = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"{again}<title>{_text(title)} · relayd sandbox</title>"
            '<link rel="stylesheet" href="/style.css"></head><body>'
            '<header><a class="home" href="/">Sandbox inbox</a>'
            f"<span>{_many(store.total, 'message')}, "
            f"{_many(store.deliveries, 'delivery', 'deliveries')}</span></header>"
            f"<main><h1>{_text(title)}</h1>{content}</main>"
            "<footer>This is a relayd sandbox, not Microsoft 365: nothing here has left this "
            "machine. Mail is kept in memory and gone when the sandbox stops."
            "</footer></body></html>"
        )
        return _answer(200, "text/html; charset=utf-8", html)


_NOTHING: Final = (
    '<p class="empty">Nothing has arrived yet. This page looks again every five seconds.</p>'
)
_NO_TEXT: Final = '<p class="empty">This message has no text.</p>'


def _messages(found: list[Stored], to: str) -> str:
    if not found:
        return _card(_NOTHING)
    target = f"?to={quote(to)}" if to else ""
    rows = "".join(
        f'<tr><td><a href="/message/{stored.number}{target}">'
        f"{_text(_unworded(stored.subject) or '(no subject)')}</a>"
        f'<br><span class="soft">{_text(stored.header_from)} → {_text(_names(stored))}</span></td>'
        f'<td class="n">{_size(stored.size_bytes)}</td>'
        f'<td class="when">{_at(stored.post.at)}</td></tr>'
        for stored in found
    )
    return _card(
        "<table><thead><tr><th>Message</th><th class=n>Size</th><th class=when>Arrived (UTC)</th>"
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _fields(stored: Stored, parsed: Message | None, to: str) -> str:
    rows: list[tuple[str, str]] = []
    if to:
        rows.append(("Delivered to", _text(to)))
    if parsed is not None:
        rows += [
            (name.title().replace("-Id", "-ID"), _text(_decoded(parsed, name)))
            for name in _SHOWN_FIELDS
            if parsed.get(name) is not None
        ]
    everyone = ", ".join(f"{r.address} ({r.field})" for r in stored.recipients)
    rows += [
        ("Sent through", f"{_text(stored.post.mailbox)} as {_text(stored.post.form)}"),
        ("All recipients", _text(everyone)),
        ("Arrived", _at(stored.post.at) + " UTC"),
        ("request-id", _text(stored.post.request_id)),
        ("Size", _size(stored.size_bytes)),
    ]
    if stored.defects:
        rows.append(("Defects", f'<span class="warn">{_text(", ".join(stored.defects))}</span>'))
    body = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return _card(f'<table class="fields"><tbody>{body}</tbody></table>') + "<h2>Text</h2>"


def _attachments(parts: list[_Part]) -> str:
    if not parts:
        return ""
    rows = "".join(
        f'<tr><td>{_text(part.name)}</td><td class="soft">{_text(part.kind)}</td>'
        f'<td class="n">{_size(part.size_bytes)}</td></tr>'
        for part in parts
    )
    return f"<h2>Attachments</h2>{_card(f'<table><tbody>{rows}</tbody></table>')}"


def _content(parsed: Message) -> tuple[str, list[_Part]]:
    """Return the text to show and the attachments of a message."""
    plain: list[str] = []
    rich: list[str] = []
    attached: list[_Part] = []
    for part in _leaves(parsed):
        kind, name = part.get_content_type(), part.get_filename()
        inline = name is None and part.get_content_disposition() != "attachment"
        if inline and kind == "text/plain":
            plain.append(_part_text(part))
        elif inline and kind == "text/html":
            rich.append(_html_text(_part_text(part)))
        else:
            attached.append(_Part(_unworded(name or "(no name)"), kind, len(_octets(part))))
    return "\n".join(plain or rich)[:_TEXT_SHOWN].replace("\r\n", "\n"), attached


def _leaves(parsed: Message) -> Iterable[Message]:
    return (part for part in parsed.walk() if not part.is_multipart())


def _octets(part: Message) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _part_text(part: Message) -> str:
    try:
        return _octets(part).decode(part.get_content_charset("utf-8"), "replace")
    except (LookupError, UnicodeError):  # a charset nobody knows
        return _octets(part).decode("latin-1")


class _TextOnly(HTMLParser):
    """Collects what a browser would show as text."""

    _LINE_ENDS: Final = frozenset({"br", "p", "div", "tr", "li", "h1", "h2", "h3", "h4", "table"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "style", "head", "title"):
            self._hidden += 1
        elif tag in self._LINE_ENDS:
            self.pieces.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style", "head", "title"):
            self._hidden = max(0, self._hidden - 1)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(" ".join(data.split()) + " " if data.strip() else "")


def _html_text(html: str) -> str:
    parser = _TextOnly()
    try:
        parser.feed(html[:_TEXT_SHOWN])
        parser.close()
    except AssertionError:  # html.parser's answer to some broken declarations
        return html
    return "".join(parser.pieces).strip()


def _decoded(parsed: Message, name: str) -> str:
    return _unworded(str(parsed.get(name, "")))


def _unworded(value: str) -> str:
    """Return a header value with its encoded-words decoded, on one line."""
    flat = "".join(value.splitlines())
    octets = flat.encode("utf-8", "surrogateescape")
    flat = octets.decode("utf-8", "replace")
    try:
        header = email.policy.SMTPUTF8.header_factory("subject", flat)
        return str(header)
    except (MessageError, ValueError, IndexError, LookupError):
        return flat


def _sent_link(name: str, count: int) -> str:
    return f'<a href="/sent/{quote(name)}">{count}</a>' if count else "0"


def _names(stored: Stored) -> str:
    names = [recipient.address for recipient in stored.recipients]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _many(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _size(octets: int) -> str:
    if octets < 10_000:
        return f"{octets} B"
    return f"{octets / 1000:.0f} kB" if octets < 1_000_000 else f"{octets / 1_000_000:.1f} MB"


def _at(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _card(content: str) -> str:
    return f'<div class="card">{content}</div>'


def _text(value: str) -> str:
    shown = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in value)
    return escape(shown)


def _plain(status: int, text: str) -> Response:
    return _answer(status, "text/plain; charset=utf-8", text)


def _answer(status: int, kind: str, text: str) -> Response:
    fields = (
        ("Content-Type", kind),
        ("Content-Security-Policy", _POLICY),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
    )
    return Response(status=status, fields=fields, body=text.encode("utf-8", "replace"))
