"""A sendMail body read and judged: content type, base64, MIME, author, recipients.

Everything here is about the message; who asks, how often and how much is graph's.

Source: Microsoft Graph user: sendMail; fact sheet §1.1, §1.4, §6.4.
"""

from __future__ import annotations

import asyncio
import binascii
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from relayd.sandbox import mime, refusals
from relayd.sandbox.compose import CannotCompose, compose
from relayd.sandbox.http import Request
from relayd.sandbox.knobs import Knobs, Mailbox
from relayd.sandbox.mime import BadAddress, Examined, Recipient
from relayd.sandbox.refusals import Refusal

_OFF_LOOP_BYTES: Final = 128 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A message that would be sent. header_from: "" if it has no From. form: "mime", "json"."""

    examined: Examined
    recipients: tuple[Recipient, ...]
    header_from: str
    form: str
    save_to_sent: bool


async def read(request: Request, mailbox: Mailbox, knobs: Knobs, now: datetime) -> Letter | Refusal:
    """Judge the body of a sendMail for `mailbox`; changes nothing."""
    kind, _, parameters = request.head.get("content-type").partition(";")
    form = kind.strip().lower()
    if not form:
        return Refusal(
            status=400,
            code="BadRequest",
            text="Write requests (excluding DELETE) must contain the Content-Type header "
            "declaration.",
        )
    if form == "application/json":
        try:
            composed = compose(request.body, mailbox=mailbox.address, now=now)
        except CannotCompose as error:
            return Refusal(status=400, code=error.code, text=str(error))
        letter = await _take_apart(composed.mime, knobs, "json", save=composed.save_to_sent)
    elif form == "text/plain" and (not parameters or knobs.text_plain_parameters):
        octets = decode(request.body)
        if isinstance(octets, Refusal):
            return octets
        letter = await _take_apart(octets, knobs, "mime", save=True)
    else:
        return refusals.not_deserialized(
            f"Content-Type {form!r} with parameters {parameters!r}: only bare text/plain and "
            "application/json are taken"
        )
    return letter if isinstance(letter, Refusal) else _judge(letter, mailbox)


def decode(body: bytes) -> bytes | Refusal:
    """Return the MIME in a text/plain body: standard alphabet, padded, line ends allowed."""
    try:
        octets = binascii.a2b_base64(body.translate(None, b"\r\n"), strict_mode=True)
    except binascii.Error as error:
        return refusals.bad_base64(str(error))
    return octets or refusals.bad_base64("empty")


def may_send_as(mailbox: Mailbox, address: str) -> bool:
    """Say whether `mailbox` may put `address` into From."""
    key = address.lower()
    own = {mailbox.address.lower(), *(alias.lower() for alias in mailbox.aliases)}
    return key in own or any(other in ("*", key) for other in map(str.lower, mailbox.send_as))


async def _take_apart(octets: bytes, knobs: Knobs, form: str, *, save: bool) -> Letter | Refusal:
    if len(octets) > _OFF_LOOP_BYTES:
        # 20 ms for 3 MB: other requests must not wait for that.
        examined = await asyncio.get_running_loop().run_in_executor(None, mime.examine, octets)
    else:
        examined = mime.examine(octets)
    bad = [defect for defect in examined.defects if defect in knobs.refuse_defects]
    if bad:
        return refusals.invalid_mime(", ".join(bad))
    try:
        header_from = mime.author(examined)
    except BadAddress as error:
        return refusals.invalid_mime(str(error))
    try:
        recipients = tuple(mime.recipients(examined))
    except BadAddress as error:
        return refusals.invalid_recipients(str(error))
    return Letter(
        examined=examined,
        recipients=recipients,
        header_from=header_from,
        form=form,
        save_to_sent=save,
    )


def _judge(letter: Letter, mailbox: Mailbox) -> Letter | Refusal:
    if letter.header_from and not may_send_as(mailbox, letter.header_from):
        return refusals.send_as_denied(mailbox.address, letter.header_from)
    if not letter.recipients:
        return refusals.no_recipients()
    if len(letter.recipients) > mailbox.recipient_limit:
        return refusals.too_many_recipients(len(letter.recipients), mailbox.recipient_limit)
    size = len(letter.examined.head) + len(letter.examined.body) + len(b"\r\n")
    if size > mailbox.max_send_size:
        return refusals.too_large_for_mailbox(size, mailbox.max_send_size)
    return letter
