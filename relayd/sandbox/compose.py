"""sendMail's JSON form turned into MIME, by the rules Graph has for it.

Only properties Graph knows are taken, with the types it wants; the rest is
UnableToDeserializePostBody, as there. The result goes the way of a MIME request, so that
mailboxes hold one kind of thing.

Source: Microsoft Graph message resource, fileAttachment, internetMessageHeader.
"""

from __future__ import annotations

import base64
import binascii
import email.policy
import json
import uuid
from dataclasses import dataclass
from datetime import datetime
from email.errors import HeaderParseError
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Final

from relayd.sandbox.fields import Json

_MAX_HEADERS: Final = 5
_MAX_HEADER_VALUE: Final = 995
_FILE: Final = "#microsoft.graph.fileAttachment"
_LISTS: Final = {
    "toRecipients": "To",
    "ccRecipients": "Cc",
    "bccRecipients": "Bcc",
    "replyTo": "Reply-To",
}
_KNOWN: Final = {
    "subject",
    "body",
    "from",
    "sender",
    "importance",
    "internetMessageHeaders",
    "attachments",
    "singleValueExtendedProperties",
    "categories",
    "isReadReceiptRequested",
    "isDeliveryReceiptRequested",
    *_LISTS,
}


class CannotCompose(ValueError):
    """The JSON is not a message. code: Graph's; the text is the message."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Composed:
    """mime: with CRLF. save_to_sent: `saveToSentItems`."""

    mime: bytes
    save_to_sent: bool


def compose(body: bytes, *, mailbox: str, now: datetime) -> Composed:
    """Make MIME of a sendMail JSON body; raises CannotCompose."""
    try:
        source: Json = json.loads(body)
    except ValueError as error:
        raise CannotCompose("UnableToDeserializePostBody", "were unable to deserialize") from error
    root = _object(source, "body")
    folded = {name.lower(): value for name, value in root.items()}
    _refuse_unknown(set(folded), {"message", "savetosentitems"})
    save = folded.get("savetosentitems", True)
    if not isinstance(save, bool):
        raise _odd("saveToSentItems")
    message = _object(folded.get("message"), "message")
    _refuse_unknown(set(message), _KNOWN)
    try:
        return Composed(_render(message, mailbox, now), save)
    except (HeaderParseError, IndexError) as error:
        raise _odd("message") from error
    except CannotCompose:
        raise
    except ValueError as error:  # a line end in a header value
        raise _odd("message") from error


def _render(message: dict[str, Json], mailbox: str, now: datetime) -> bytes:
    out = EmailMessage(policy=email.policy.SMTP)
    from_ = message.get("from")
    out["From"] = mailbox if from_ is None else _address(from_, "from")
    for key, name in _LISTS.items():
        people = [_address(person, key) for person in _list(message.get(key), key)]
        if people:
            out[name] = people
    out["Subject"] = _text(message.get("subject", ""), "subject")
    out["Date"] = format_datetime(now)
    out["Message-ID"] = f"<{uuid.uuid4().hex}@sandbox.invalid>"
    importance = _text(message.get("importance", "normal"), "importance").lower()
    if importance not in ("low", "normal", "high"):
        raise _odd("importance")
    if importance != "normal":
        out["Importance"] = importance
    for name, value in _own_headers(message):
        out[name] = value
    content = _object(message.get("body", {"contentType": "Text", "content": ""}), "body")
    kind = _text(content.get("contentType", "Text"), "body.contentType").lower()
    if kind not in ("text", "html"):
        raise _odd("body.contentType")
    out.set_content(
        _text(content.get("content", ""), "body.content"),
        subtype="html" if kind == "html" else "plain",
    )
    for attachment in _list(message.get("attachments"), "attachments"):
        _attach(out, _object(attachment, "attachments"))
    return out.as_bytes()


def _own_headers(message: dict[str, Json]) -> list[tuple[str, str]]:
    headers = _list(message.get("internetMessageHeaders"), "internetMessageHeaders")
    if len(headers) > _MAX_HEADERS:
        raise CannotCompose(
            "InvalidInternetMessageHeaderCollection",
            "Maximum number of headers in one message should be less than or equal to 5.",
        )
    out = []
    for header in headers:
        pair = _object(header, "internetMessageHeaders")
        name = _text(pair.get("name"), "internetMessageHeaders.name")
        value = _text(pair.get("value"), "internetMessageHeaders.value")
        if not name.lower().startswith("x-"):
            raise CannotCompose(
                "InvalidInternetMessageHeader",
                f"The internet message header name '{name}' should start with 'x-' or 'X-'.",
            )
        if len(value) > _MAX_HEADER_VALUE or not (name + value).isprintable() or " " in name:
            raise CannotCompose(
                "InvalidInternetMessageHeader", f"The header '{name}' is too long or not printable."
            )
        out.append((name, value))
    return out


def _attach(out: EmailMessage, attachment: dict[str, Json]) -> None:
    if attachment.get("@odata.type") != _FILE:
        raise _odd("attachments.@odata.type")
    name = _text(attachment.get("name"), "attachments.name")
    kind = _text(attachment.get("contentType", "application/octet-stream"), "contentType")
    main, slash, sub = kind.partition(";")[0].strip().partition("/")
    if not (main.isalnum() and slash and sub) or main == "multipart":
        raise _odd("attachments.contentType")
    try:
        octets = base64.b64decode(
            _text(attachment.get("contentBytes"), "attachments.contentBytes"), validate=True
        )
    except binascii.Error as error:
        raise _odd("attachments.contentBytes") from error
    inline = attachment.get("isInline", False)
    if not isinstance(inline, bool):
        raise _odd("attachments.isInline")
    identifier = attachment.get("contentId")
    out.add_attachment(
        octets,
        maintype=main if main != "message" else "application",
        subtype=sub,
        filename=name,
        disposition="inline" if inline else "attachment",
        cid=f"<{_text(identifier, 'attachments.contentId')}>" if identifier else None,
    )


def _address(value: Json, where: str) -> Address:
    pair = _object(_object(value, where).get("emailAddress"), where)
    spec, name = _text(pair.get("address"), where), pair.get("name")
    try:
        return Address(_text(name, where) if name is not None else "", addr_spec=spec)
    except (ValueError, IndexError, HeaderParseError) as error:
        raise CannotCompose(
            "ErrorInvalidRecipients", "At least one recipient is not valid."
        ) from error


def _odd(where: str) -> CannotCompose:
    return CannotCompose("UnableToDeserializePostBody", f"were unable to deserialize: {where}")


def _refuse_unknown(names: set[str], known: set[str]) -> None:
    unknown = {name for name in names - known if not name.startswith("@odata.")}
    if unknown:
        raise _odd(", ".join(sorted(unknown)))


def _object(value: Json, where: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise _odd(where)
    return value


def _list(value: Json, where: str) -> list[Json]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _odd(where)
    return value


def _text(value: Json, where: str) -> str:
    if not isinstance(value, str):
        raise _odd(where)
    return value
