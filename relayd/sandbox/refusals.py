"""Graph's error answers: one value each, worded as Microsoft's, and why in our own words.

`reason` is for whoever tries the sandbox; it travels in a field of its own, so that nobody
comes to depend on texts Microsoft never sends.

Source: Microsoft Graph error responses; fact sheet §1.8.
"""

from __future__ import annotations

from dataclasses import dataclass

from relayd.sandbox.knobs import Knobs, Mailbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An error answer. reason: the sandbox's own explanation, for people."""

    status: int
    code: str
    text: str
    reason: str = ""
    retry_after: str = ""
    empty: bool = False


def invalid_mime(reason: str) -> Refusal:
    """The content is not what Exchange takes for a message."""
    return Refusal(
        status=400,
        code="ErrorMimeContentInvalid",
        text="The MIME content is invalid.",
        reason=reason,
    )


def invalid_recipients(reason: str) -> Refusal:
    """An address in To, Cc or Bcc does not parse."""
    return Refusal(
        status=400,
        code="ErrorInvalidRecipients",
        text="At least one recipient is not valid.",
        reason=reason,
    )


def no_recipients() -> Refusal:
    """Nobody is named in To, Cc and Bcc."""
    return Refusal(
        status=400,
        code="ErrorInvalidRecipients",
        text="At least one recipient is not valid., A message can't be sent because it contains "
        "no recipients.",
    )


def send_as_denied(mailbox: str, address: str) -> Refusal:
    """From names somebody else."""
    return Refusal(
        status=403,
        code="ErrorSendAsDenied",
        text="The user account which was used to submit this request does not have the right to "
        "send mail on behalf of the specified sending account., Cannot submit message.",
        reason=f"From is {address}, which {mailbox} neither is nor may send as",
    )


def too_many_recipients(count: int, limit: int) -> Refusal:
    """More recipients than the mailbox may name in one message."""
    return Refusal(
        status=400,
        code="ErrorExceededMaxRecipientLimit",
        text="The message exceeds the maximum number of recipients.",
        reason=f"{count} recipients, {limit} allowed",
    )


def too_large_for_mailbox(size: int, limit: int) -> Refusal:
    """The message is over the mailbox's MaxSendSize."""
    return Refusal(
        status=400,
        code="ErrorMessageSizeExceeded",
        text="The message exceeds the maximum supported size.",
        reason=f"{size} octets, {limit} allowed",
    )


def quota_exceeded(retry_after: str) -> Refusal:
    """The mailbox sent to its number of recipients for a day."""
    return Refusal(
        status=429,
        code="ErrorSubmissionQuotaExceeded",
        text="The message couldn't be sent because the sender's submission quota was exceeded. "
        "Please try again later.",
        retry_after=retry_after,
    )


def access_denied(code: str, reason: str) -> Refusal:
    """This application may not send as this mailbox."""
    return Refusal(
        status=403,
        code=code,
        text="Access is denied. Check credentials and try again.",
        reason=reason,
    )


def invalid_user(name: str) -> Refusal:
    """No such mailbox."""
    return Refusal(
        status=404,
        code="ErrorInvalidUser",
        text=f"The requested user '{name}' is invalid.",
        reason="there is no such mailbox, or it is known by another sign-in name (knob `upn`)",
    )


def not_deserialized(reason: str) -> Refusal:
    """Not a content type, or not a form, that sendMail takes."""
    return Refusal(
        status=400,
        code="UnableToDeserializePostBody",
        text="were unable to deserialize",
        reason=reason,
    )


def bad_base64(reason: str) -> Refusal:
    """The body is not standard base64."""
    return Refusal(
        status=400,
        code="ErrorMimeContentInvalidBase64String",
        text="Invalid base64 string for MIME content.",
        reason=reason,
    )


def unfit(mailbox: Mailbox) -> Refusal | None:
    """Return why this mailbox cannot send at all."""
    if mailbox.on_premises or not mailbox.licensed:
        return Refusal(
            status=404,
            code="MailboxNotEnabledForRESTAPI",
            text="The mailbox is either inactive, soft-deleted, or is hosted on-premise.",
        )
    if mailbox.disabled:
        return Refusal(status=403, code="ErrorAccountDisabled", text="Account is disabled.")
    if mailbox.blocked:
        return Refusal(
            status=403,
            code="ErrorMessageSubmissionBlocked",
            text="Cannot send mail. Message submission is blocked for this account.",
        )
    if mailbox.full:
        return Refusal(
            status=507, code="ErrorQuotaExceeded", text="Mailbox has exceeded maximum mailbox size."
        )
    return None


def too_large(knobs: Knobs) -> Refusal:
    """The body is over Graph's limit; Microsoft was seen to say so in four ways."""
    text = "The maximum request length supported is 4MB."
    if knobs.too_large_answer == "413-json":
        return Refusal(status=413, code="BadRequest", text=text)
    if knobs.too_large_answer == "400-json":
        return Refusal(status=400, code="BadRequest", text=text)
    status = 200 if knobs.too_large_answer == "200" else 413
    return Refusal(status=status, code="too-large", text=text, empty=True)


def no_such_path(path: str) -> Refusal:
    """No such resource here."""
    if path.lower().startswith("/v1.0/me/"):
        return Refusal(
            status=400,
            code="BadRequest",
            text="/me request is only valid with delegated authentication flow.",
        )
    segment = path.rstrip("/").rpartition("/")[2]
    return Refusal(
        status=400,
        code="BadRequest",
        text=f"Resource not found for the segment '{segment}'.",
        reason="the sandbox knows POST /v1.0/users/{id}/sendMail only",
    )
