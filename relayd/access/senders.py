"""What From a message goes out with, and through which mailbox.

    `from` of the device or user    replaces always; nothing the device said is judged
    `allow_from`                    if given, names what may be kept
    else                            `default_from`, the mailbox and its allowed_senders are kept
    anything else                   on_foreign_sender: rewritten to the mailbox, or refused
    no sender, or an impossible one default_from, else the mailbox

Judged are the header's first From address and the envelope's sender. Rewriting is the
default because a UPS that says ups@nas.local must get through: its mail matters more than
its name, which stays as display name and in Reply-To.

With mailbox = "sender" the mail leaves through the sender's own mailbox, so only
addresses in allowed_senders are kept, whatever allow_from says.

Source: RFC 6409 §6.1.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from relayd.access.patterns import compiled
from relayd.config.model import Submitter, Upstream, User
from relayd.message.address import Address, parse_path
from relayd.values import frozen

SENDER: Final = "sender"
"""[upstream.*] mailbox: that of the sender."""


@frozen
class Keep:
    """The device's own From goes out. address: it, completed."""

    address: Address


@frozen
class SetFrom:
    """Another one does. reply_to_original: the device's goes into Reply-To."""

    address: Address
    reply_to_original: bool


@frozen
class Refuse:
    """None may. code: 553 for the envelope's sender, 550 for the header's; enhanced 5.7.1.

    do: the setting that would let it in, a sentence.
    """

    code: int
    text: str
    log_reason: str
    do: str


Judgement: TypeAlias = Keep | SetFrom | Refuse


def judge(
    submitter: Submitter,
    upstream: Upstream,
    *,
    envelope_sender: Address | None,
    header_from: Address | None,
    default_domain: str = "",
) -> Judgement:
    """Return what becomes of the sender of one message; O(patterns).

    envelope_sender: None for "<>"; header_from: None where there is no address in From.
    default_domain:  completes a local part without a domain; "": it is impossible.
    """
    envelope = _possible(envelope_sender, default_domain)
    header = _possible(header_from, default_domain)
    said = header or envelope
    if submitter.from_:
        target = parse_path(submitter.from_)
        return Keep(target) if said and said.key == target.key else SetFrom(target, False)
    if said is None:
        return _instead(submitter, upstream, reply_to_original=False)
    if not may_send_as(submitter, upstream, said):
        if upstream.on_foreign_sender == "rewrite":
            return _instead(submitter, upstream, reply_to_original=True)
        return _foreign(submitter, upstream, said, in_header=header is not None)
    if upstream.on_foreign_sender == "reject":
        refusal = judge_envelope(submitter, upstream, envelope)
        if refusal is not None:
            return refusal
    return Keep(said)


def judge_again(
    submitter: Submitter,
    upstream: Upstream,
    planned: Address,
    *,
    was_foreign: bool,
    was_mailbox: bool,
) -> Judgement:
    """Return what becomes of a From that was planned when other settings were in force.

    planned:     what the message was to go out with.
    was_foreign: it stands in place of the device's own, which goes into Reply-To.
    was_mailbox: it is the mailbox that the message was to leave through.
    """
    if submitter.from_:
        return SetFrom(parse_path(submitter.from_), reply_to_original=False)
    if was_foreign:
        return _instead(submitter, upstream, reply_to_original=True)
    if may_send_as(submitter, upstream, planned):
        return Keep(planned)
    mailbox = _mailbox_address(upstream) if was_mailbox else None
    if mailbox is not None:
        return SetFrom(mailbox, reply_to_original=False)
    if upstream.on_foreign_sender == "rewrite":
        return _instead(submitter, upstream, reply_to_original=True)
    return _foreign(submitter, upstream, planned, in_header=True)


def judge_envelope(
    submitter: Submitter,
    upstream: Upstream,
    sender: Address | None,
    *,
    default_domain: str = "",
) -> Refuse | None:
    """Return the refusal that MAIL earns already; None where the header may yet decide."""
    if upstream.on_foreign_sender != "reject" or submitter.from_:
        return None
    envelope = _possible(sender, default_domain)
    if envelope is None or may_send_as(submitter, upstream, envelope):
        return None
    return _foreign(submitter, upstream, envelope, in_header=False)


def may_send_as(submitter: Submitter, upstream: Upstream, address: Address) -> bool:
    """Tell whether `address` may stand in From as the device wrote it."""
    if submitter.default_from and parse_path(submitter.default_from).key == address.key:
        return True
    if upstream.mailbox == SENDER and not compiled(upstream.allowed_senders).matches(address):
        return False
    if submitter.allow_from:
        return compiled(submitter.allow_from).matches(address)
    if upstream.mailbox == SENDER:
        return True
    own = _mailbox_address(upstream)
    return (own is not None and own.key == address.key) or compiled(
        upstream.allowed_senders
    ).matches(address)


def _possible(address: Address | None, default_domain: str) -> Address | None:
    """Return an address completed; None for one that nobody could have as sender."""
    if address is None:
        return None
    if not address.domain:
        return Address(address.local, default_domain) if default_domain else None
    return None if address.is_literal else address  # user@[192.0.2.1]: a device without a name


def _instead(submitter: Submitter, upstream: Upstream, *, reply_to_original: bool) -> Judgement:
    """Return the sender to put in place of the device's."""
    mailbox = _mailbox_address(upstream)
    default = parse_path(submitter.default_from) if submitter.default_from else None
    # A device without a sender goes by its own name if it has one; a foreign sender by the
    # mailbox that really sends.
    first, second = (mailbox, default) if reply_to_original else (default, mailbox)
    target = first or second
    if target is None:
        return Refuse(
            550,
            "Sender address not allowed",
            f"no default_from for '{submitter.name}', and upstream '{upstream.name}' sends "
            "through the sender's own mailbox",
            f'Write default_from = "ADDRESS" into {shown_name(submitter)}.',
        )
    return SetFrom(target, reply_to_original)


def _foreign(
    submitter: Submitter, upstream: Upstream, address: Address, *, in_header: bool
) -> Refuse:
    where = "From header" if in_header else "MAIL FROM"
    rule = (
        f"allow_from of '{submitter.name}'"
        if submitter.allow_from
        else f"mailbox and allowed_senders of upstream '{upstream.name}'"
    )
    return Refuse(
        550 if in_header else 553,
        "Sender address not allowed",
        f'{where} {address} is not in {rule}, and on_foreign_sender is "reject"',
        f'Add "{address}" to '
        + (
            f"allow_from of {shown_name(submitter)}"
            if submitter.allow_from
            else f"allowed_senders of [upstream.{upstream.name}]"
        )
        + f', or write on_foreign_sender = "rewrite" into [upstream.{upstream.name}].',
    )


def shown_name(submitter: Submitter) -> str:
    """Return a device or user as its table is written."""
    return f'[[{"user" if isinstance(submitter, User) else "device"}]] "{submitter.name}"'


def _mailbox_address(upstream: Upstream) -> Address | None:
    """Return the mailbox sent through as address; None where it is the sender's own."""
    if upstream.mailbox == SENDER or "@" not in upstream.mailbox:
        return None
    return parse_path(upstream.mailbox)
