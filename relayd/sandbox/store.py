"""What was delivered: every message once, every mailbox a list of the messages in it.

    message   one POST that was committed; kept as received, Bcc and all
    delivery  (recipient, message): one for each recipient, inside and outside alike
    sent      (mailbox, message): the copy in Sent Items, with Bcc

Bodies above 64 KiB are kept as length and SHA-256 only, unless asked; of all content the
oldest goes first when the room is used up; records, hashes and counts stay until
`max_records`. With a journal each message is also a line of JSON on disk before it counts.

What a recipient reads is made when it is looked at: `delivered_head` takes off what Exchange
takes off.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from relayd.sandbox import mime
from relayd.sandbox.fields import Json
from relayd.sandbox.knobs import Knobs
from relayd.sandbox.mime import Examined, Recipient

_SMALL_BODY_BYTES: Final = 64 * 1024

_ALWAYS_STRIPPED: Final = ("bcc", "return-path")
_STANDARD_FIELDS: Final = frozenset(
    {
        "from",
        "sender",
        "reply-to",
        "to",
        "cc",
        "bcc",
        "subject",
        "date",
        "message-id",
        "in-reply-to",
        "references",
        "comments",
        "keywords",
        "received",
        "return-path",
        "importance",
        "priority",
        "sensitivity",
        "auto-submitted",
        "resent-from",
        "resent-to",
        "resent-cc",
        "resent-bcc",
        "resent-date",
        "resent-message-id",
        "resent-sender",
        "mime-version",
        "content-type",
        "content-transfer-encoding",
        "content-disposition",
        "content-id",
        "content-description",
        "content-language",
        "content-class",
        "thread-topic",
        "thread-index",
        "disposition-notification-to",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """The request that brought a message. request_fields: without credentials."""

    request_id: str
    client_request_id: str
    app: str
    mailbox: str
    form: str  # "mime" or "json"
    save_to_sent: bool
    request_fields: tuple[tuple[str, str], ...]
    at: datetime
    drained_at: datetime


@dataclass(slots=True)
class Stored:
    """One message. head, body: None when not kept (too large, or too old)."""

    number: int
    post: Post
    recipients: tuple[Recipient, ...]
    header_from: str
    message_id: str
    subject: str
    size_bytes: int
    body_bytes: int
    body_sha256: str
    defects: tuple[str, ...]
    x_fields: tuple[tuple[str, str], ...]
    stripped: tuple[str, ...]
    replaced: tuple[tuple[str, str], ...]
    head: bytes | None
    body: bytes | None

    def summary(self) -> dict[str, Json]:
        """Return what a list shows, JSON-able."""
        return {
            "number": self.number,
            "mailbox": self.post.mailbox,
            "app": self.post.app,
            "form": self.post.form,
            "save_to_sent": self.post.save_to_sent,
            "request_id": self.post.request_id,
            "client_request_id": self.post.client_request_id,
            "arrived_at": self.post.at.isoformat(),
            "drained_at": self.post.drained_at.isoformat(),
            "request_fields": dict(self.post.request_fields),
            "recipients": [{"address": r.address, "field": r.field} for r in self.recipients],
            "from": self.header_from,
            "message_id": self.message_id,
            "subject": self.subject,
            "size_bytes": self.size_bytes,
            "body_bytes": self.body_bytes,
            "body_sha256": self.body_sha256,
            "defects": list(self.defects),
            "x_fields": [list(pair) for pair in self.x_fields],
        }

    def delivered_head(self) -> bytes | None:
        """Return the header block a recipient gets; None when it is not kept."""
        if self.head is None:
            return None
        gone = (*self.stripped, *(name.lower() for name, _ in self.replaced))
        new = "".join(f"{name}: {value}\r\n" for name, value in self.replaced)
        return new.encode() + mime.without(self.head, gone)


@dataclass(slots=True)
class Store:
    """All mailboxes. content_budget: octets of content kept; journal: a file to append to."""

    content_budget: int = 64 * 1024 * 1024
    max_records: int = 500_000
    journal: str = ""
    deliveries: int = 0
    dropped: int = 0
    _messages: dict[int, Stored] = field(default_factory=dict)
    _inboxes: dict[str, deque[int]] = field(default_factory=dict)
    _sent: dict[str, deque[int]] = field(default_factory=dict)
    _by_message_id: dict[str, list[int]] = field(default_factory=dict)
    _content: deque[int] = field(default_factory=deque)
    _content_bytes: int = 0
    _last: int = 0
    _same: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = field(
        default_factory=dict
    )

    def commit(
        self,
        examined: Examined,
        recipients: tuple[Recipient, ...],
        header_from: str,
        post: Post,
        knobs: Knobs,
        *,
        replaced: tuple[tuple[str, str], ...] = (),
    ) -> Stored:
        """Deliver a message into every mailbox it names.

        header_from: the author's address. replaced: fields with another value for recipients.
        raises:      OSError - the journal cannot be written; nothing was delivered.
        """
        self._last += 1
        body = examined.body
        keep = len(body) <= _SMALL_BODY_BYTES or knobs.keep_bodies
        stored = Stored(
            number=self._last,
            post=post,
            recipients=recipients,
            header_from=header_from,
            message_id=examined.first("message-id").strip(),
            subject=examined.first("subject"),
            size_bytes=len(examined.head) + len(body) + 2,
            body_bytes=len(body),
            body_sha256=hashlib.sha256(body).hexdigest(),
            defects=examined.defects,
            x_fields=tuple(
                (name, value) for name, value in examined.fields if name.lower().startswith("x-")
            ),
            stripped=_stripped(examined, knobs),
            replaced=replaced,
            head=examined.head,
            body=body if keep else None,
        )
        if self.journal:
            self._append(stored)
        self._remember(stored)
        return stored

    def once(self, fields: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """Return an equal tuple that is kept anyway: a client's posts bear the same few fields."""
        return self._same.setdefault(fields, fields) if len(self._same) < 1024 else fields

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def total(self) -> int:
        """How many messages were committed since the start or the last reset."""
        return self._last

    def message(self, number: int) -> Stored | None:
        """Return one message, None if there is none of that number any more."""
        return self._messages.get(number)

    def messages(self, after: int, limit: int) -> list[Stored]:
        """Return messages with higher numbers than `after`, oldest first."""
        first = max(after + 1, next(iter(self._messages), 1))
        found = (self._messages.get(number) for number in range(first, self._last + 1))
        return _page(found, limit)

    def inbox(self, address: str, after: int = 0, limit: int = 1000) -> list[Stored]:
        """Return what was delivered to `address`, oldest first."""
        return self._listed(self._inboxes, address, after, limit)

    def sent(self, mailbox: str, after: int = 0, limit: int = 1000) -> list[Stored]:
        """Return Sent Items of `mailbox`, oldest first."""
        return self._listed(self._sent, mailbox, after, limit)

    def inboxes(self) -> Mapping[str, int]:
        """Return how many messages each recipient has."""
        return {address: len(numbers) for address, numbers in self._inboxes.items()}

    def sent_counts(self) -> Mapping[str, int]:
        """Return how many messages each Sent Items folder has."""
        return {mailbox: len(numbers) for mailbox, numbers in self._sent.items()}

    def with_message_id(self, message_id: str) -> list[Stored]:
        """Return every message with that Message-ID, in the order they came."""
        return [self._messages[number] for number in self._by_message_id.get(message_id, ())]

    def with_field(self, name: str, value: str) -> list[Stored]:
        """Return every message whose X- field `name` is `value`."""
        pair = (name.lower(), value)
        return [
            stored
            for stored in self._messages.values()
            if any((key.lower(), text) == pair for key, text in stored.x_fields)
        ]

    def counted_by(self, name: str) -> dict[str, dict[str, int]]:
        """Return for each value of a field the number of deliveries by recipient.

        name: an X- field, or "message-id".
        """
        lower, counts = name.lower(), dict[str, dict[str, int]]()
        for stored in self._messages.values():
            values = (
                [stored.message_id]
                if lower == "message-id"
                else [text for key, text in stored.x_fields if key.lower() == lower]
            )
            for value in values:
                by_recipient = counts.setdefault(value, {})
                for recipient in stored.recipients:
                    key = recipient.address.lower()
                    by_recipient[key] = by_recipient.get(key, 0) + 1
        return counts

    def clear(self) -> None:
        """Forget everything but the journal on disk."""
        for held in (self._messages, self._inboxes, self._sent, self._by_message_id):
            held.clear()
        self._content.clear()
        self._content_bytes = self.deliveries = self.dropped = self._last = 0

    def _remember(self, stored: Stored) -> None:
        number = stored.number
        self._messages[number] = stored
        if stored.message_id:
            self._by_message_id.setdefault(stored.message_id, []).append(number)
        for recipient in stored.recipients:
            self._inboxes.setdefault(recipient.address.lower(), deque()).append(number)
            self.deliveries += 1
        if stored.post.save_to_sent:
            self._sent.setdefault(stored.post.mailbox, deque()).append(number)
        self._content.append(number)
        self._content_bytes += _weight(stored)
        while self._content_bytes > self.content_budget:
            self._drop_content(self._content.popleft())
        while len(self._messages) > self.max_records:
            self._drop_oldest()

    def _drop_content(self, number: int) -> None:
        stored = self._messages.get(number)
        if stored is not None:
            self._content_bytes -= _weight(stored)
            stored.head = stored.body = None

    def _drop_oldest(self) -> None:
        number, stored = next(iter(self._messages.items()))
        self._drop_content(number)
        del self._messages[number]
        self.dropped += 1
        lists = [self._inboxes[recipient.address.lower()] for recipient in stored.recipients]
        if stored.post.save_to_sent:
            lists.append(self._sent[stored.post.mailbox])
        for numbers in lists:
            numbers.popleft()
        if stored.message_id:
            self._by_message_id[stored.message_id].remove(number)
            if not self._by_message_id[stored.message_id]:
                del self._by_message_id[stored.message_id]

    def _listed(
        self, folders: Mapping[str, deque[int]], name: str, after: int, limit: int
    ) -> list[Stored]:
        numbers = folders.get(name.lower(), ())
        return _page((self._messages.get(number) for number in numbers if number > after), limit)

    def _append(self, stored: Stored) -> None:
        line = stored.summary()
        line["head"] = (stored.head or b"").decode("latin-1")
        line["body"] = None if stored.body is None else stored.body.decode("latin-1")
        octets = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        descriptor = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, octets)
        finally:
            os.close(descriptor)


def _page(found: Iterator[Stored | None], limit: int) -> list[Stored]:
    out: list[Stored] = []
    for stored in found:
        if len(out) >= limit:
            break
        if stored is not None:
            out.append(stored)
    return out


def _weight(stored: Stored) -> int:
    return len(stored.head or b"") + len(stored.body or b"")


def _stripped(examined: Examined, knobs: Knobs) -> tuple[str, ...]:
    """Return lower-case names of the fields a recipient does not get."""
    names = list(_ALWAYS_STRIPPED)
    if knobs.strip_auto_submitted:
        names.append("auto-submitted")
    known = {name.lower() for name in knobs.known_x_headers}
    for key, _ in examined.fields:
        name = key.lower()
        if name.startswith("x-"):
            if knobs.strip_x_headers and name not in known:
                names.append(name)
        elif knobs.strip_custom_headers and name not in _STANDARD_FIELDS:
            names.append(name)
    return tuple(names)
