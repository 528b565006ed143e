"""What becomes of a submission: who submits, may they, and through which mailboxes it leaves.

    submitter_for   peer address and login -> device or user
    check_mail      at MAIL: sender and declared size
    check_rcpt      at RCPT: may this one be written to
    plan            at the final dot: the deliveries, or a refusal

A refusal is a value; the desk makes the reply of it. Its text is fixed and plain, because
clients show it; its `log_reason` names the rule that decided, for the log.

Nobody relays by accident: without `allow_to`, only the upstream's own_domains are written to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from relayd.access import users as users_room
from relayd.access.networks import DeviceTable
from relayd.access.patterns import address_problems, compiled, pattern_problems
from relayd.access.senders import (
    SENDER,
    Keep,
    Refuse,
    SetFrom,
    judge,
    judge_envelope,
    may_send_as,
    shown_name,
)
from relayd.access.users import Users
from relayd.config.model import Config, Submitter, Upstream, User
from relayd.config.resolve import HEADROOM
from relayd.message.address import Address, parse_path
from relayd.message.envelope import Envelope
from relayd.spool.model import PRIORITIES, MailboxRef, NewDelivery
from relayd.values import frozen

NO_UPSTREAM: Final = ("no [upstream.*] is configured yet", "Set one up: relayd setup")
"""Reason and remedy where nothing can leave."""

STRANGER: Final = "no [[device]] has this address in its networks, and there was no login"
"""Why a peer that nobody knows may not send; for the remedy see `let_in`."""

MOST_RECIPIENTS: Final = 500
"""Recipients of one message at Exchange, unless an administrator raised it."""
_LARGE: Final = 35_000_000  # Exchange's default MaxSendSize: the bound where large mail may go


@frozen(kw_only=True)
class Refusal:
    """No, and why.

    text:       for the client.
    log_reason: for the administrator, names the rule.
    do:         for the administrator, the setting that would let it in; a sentence.
    """

    code: int
    enhanced: str
    text: str
    log_reason: str
    do: str


@frozen(kw_only=True)
class Plan:
    """Yes. priority: as in spool.model; max_age_s: from acceptance until given up."""

    deliveries: tuple[NewDelivery, ...]
    priority: int
    max_age_s: float


class Planner:
    """Decides for one worker. users: shared with the Verifier; None: the planner's own."""

    __slots__ = ("_config", "_devices", "_limits", "_most", "_upstreams", "_users")

    def __init__(self, config: Config, users: Users | None = None) -> None:
        self._config = config
        self._users = users if users is not None else Users(config)
        self._devices = DeviceTable(config.device)
        self._upstreams = {upstream.name: upstream for upstream in config.upstream}
        if len(config.upstream) == 1:
            # Users added at run time are not resolved by the loader: the only one there is.
            self._upstreams[""] = config.upstream[0]
        self._limits = {each.name: self._limited(_carried(each)) for each in config.upstream}
        self._most = max(self._limits.values(), default=self._limited(_LARGE))

    def submitter_for(self, ip: str, user_name: str | None) -> Submitter | None:
        """Return who submits; None: nobody we know.

        user_name: of the login that succeeded; it wins over the device on whose network it
                   is, and takes the device's priority if that is higher.
        """
        device = self._devices.find(ip)
        if user_name is None:
            return device
        user = self._users.find(user_name)
        if user is None or device is None:
            return user
        if PRIORITIES[device.priority] < PRIORITIES[user.priority]:
            return replace(user, priority=device.priority)
        return user

    def still(self, ip: str, user_name: str) -> Submitter | None:
        """Return who a login speaks for now; None: the user is gone. One stat of users.toml."""
        self._users.refresh()
        return self.submitter_for(ip, user_name) if self._users.find(user_name) else None

    def size_limit(self, submitter: Submitter | None) -> int:
        """Return the largest message to take, octets; None: of whoever may yet log in."""
        upstream = self._upstream(submitter) if submitter is not None else None
        return self._most if upstream is None else self._limits[upstream.name]

    def _limited(self, carried: int) -> int:
        return min(carried, self._config.limits.max_message_size or carried)

    def check_mail(self, submitter: Submitter, sender: Address | None, size: int) -> Refusal | None:
        """Judge MAIL. size: SIZE=, 0 when not said."""
        upstream = self._upstream(submitter)
        if upstream is None:
            return self._no_way_out(submitter)
        if size > self._limits[upstream.name]:
            return self._too_large(submitter, upstream, size)
        verdict = judge_envelope(
            submitter, upstream, sender, default_domain=self._config.server.default_domain
        )
        return None if verdict is None else _refused(verdict)

    def check_rcpt(self, submitter: Submitter, address: Address) -> Refusal | None:
        """Judge RCPT."""
        upstream = self._upstream(submitter)
        if upstream is None:
            return self._no_way_out(submitter)
        whole = address if address.domain else self._completed(address, upstream)
        return self._check_recipient(submitter, upstream, whole)

    def plan(
        self, submitter: Submitter, envelope: Envelope, header_from: Address | None, size: int
    ) -> Plan | Refusal:
        """Return how the message leaves; O(recipients).

        header_from: first address of the From header, None if it has none.
        size:        octets received.
        """
        upstream = self._upstream(submitter)
        if upstream is None:
            return self._no_way_out(submitter)
        if size > self._limits[upstream.name]:
            return self._too_large(submitter, upstream, size)
        verdict = judge(
            submitter,
            upstream,
            envelope_sender=envelope.sender,
            header_from=header_from,
            default_domain=self._config.server.default_domain,
        )
        if isinstance(verdict, Refuse):
            return _refused(verdict)
        recipients = self._recipients(submitter, upstream, envelope.recipients)
        if isinstance(recipients, Refusal):
            return recipients
        return Plan(
            deliveries=_deliveries(upstream, verdict, recipients),
            priority=PRIORITIES[submitter.priority],
            max_age_s=submitter.max_age or self._config.spool.max_age,
        )

    def _upstream(self, submitter: Submitter) -> Upstream | None:
        return self._upstreams.get(submitter.upstream)

    def _no_way_out(self, submitter: Submitter) -> Refusal:
        if not self._upstreams:
            reason, do = NO_UPSTREAM
        elif submitter.upstream:
            reason = f"upstream '{submitter.upstream}' of '{submitter.name}' is not configured"
            do = f"Write another upstream into {shown_name(submitter)}, then relayd reload."
        else:
            reason = f"'{submitter.name}' names no upstream, and there are several"
            do = f'Write upstream = "NAME" into {shown_name(submitter)}, then relayd reload.'
        return Refusal(
            code=451,
            enhanced="4.3.5",
            text="No way out is configured yet, try again later",
            log_reason=reason,
            do=do,
        )

    def check_size(self, submitter: Submitter, size: int) -> Refusal | None:
        """Judge a size, octets."""
        upstream = self._upstream(submitter)
        if upstream is None:
            return self._no_way_out(submitter)
        return (
            self._too_large(submitter, upstream, size)
            if size > self._limits[upstream.name]
            else None
        )

    def _too_large(self, submitter: Submitter, upstream: Upstream, size: int) -> Refusal:
        limit = self._limits[upstream.name]
        return Refusal(
            code=552,
            enhanced="5.3.4",
            text=f"Message too large, at most {limit} octets",
            log_reason=f"{size} octets are more than the {limit} that '{submitter.name}' may send",
            do=self._larger(upstream, limit),
        )

    def _larger(self, upstream: Upstream, limit: int) -> str:
        """Return what sets the limit."""
        # By default max_message_size is what the upstreams carry: raising it would change nothing.
        if limit < _carried(upstream):
            return "Raise max_message_size in [limits], or have the device send smaller mail."
        return f"[upstream.{upstream.name}] carries no more: have the device send smaller mail."

    def _completed(self, address: Address, upstream: Upstream) -> Address:
        """Return a recipient that has no domain ("postmaster") with one, where it is known."""
        domain = self._config.server.default_domain
        return Address(address.local, domain or _own_domain(upstream))

    def _check_recipient(
        self, submitter: Submitter, upstream: Upstream, address: Address
    ) -> Refusal | None:
        if not address.domain:  # it would spoil the message for all the others at Exchange
            return Refusal(
                code=501,
                enhanced="5.1.3",
                text="Recipient has no domain",
                log_reason=f"recipient {address} has no domain; set default_domain in [server], "
                f"or own_domains of upstream '{upstream.name}'",
                do='Write default_domain = "example.com" into [server].',
            )
        if may_send_to(submitter, upstream, address):
            return None
        kind = "user" if isinstance(submitter, User) else "device"
        rule = (
            f"allow_to of {kind} '{submitter.name}'"
            if submitter.allow_to
            else f"own_domains of upstream '{upstream.name}', and {kind} '{submitter.name}' has "
            "no allow_to"
        )
        return Refusal(
            code=550,
            enhanced="5.7.1",
            text="Recipient not allowed",
            log_reason=f"recipient {address} not in {rule}",
            do=_widened(submitter, upstream, address),
        )

    def _recipients(
        self, submitter: Submitter, upstream: Upstream, addresses: Iterable[Address]
    ) -> tuple[str, ...] | Refusal:
        """Return whom to send to, each once; or the refusal of one that RCPT let through."""
        found: dict[str, str] = {}
        for address in addresses:
            whole = address if address.domain else self._completed(address, upstream)
            # SECURITY: asked again, so that no path round RCPT makes an open relay.
            refusal = self._check_recipient(submitter, upstream, whole)
            if refusal is not None:
                return refusal
            found.setdefault(whole.key, str(whole))
        return tuple(found.values())


def let_in(ip: str) -> str:
    """Return what lets a peer in that no [[device]] and no login speaks for."""
    device, user = f"relayd device add {ip} --name NAME", "relayd user add NAME"
    return f"Make it a device: {device}. Or have it log in: {user}"


def may_send_to(submitter: Submitter, upstream: Upstream, address: Address) -> bool:
    """Tell whether `address` may be written to: `allow_to`, else the upstream's own_domains."""
    return compiled(submitter.allow_to or _own_domains(upstream)).matches(address)


def _widened(submitter: Submitter, upstream: Upstream, address: Address) -> str:
    """Return the line that lets a recipient in, and leaves those in who are."""
    now = submitter.allow_to or _own_domains(upstream)
    line = ", ".join(f'"{each}"' for each in (*now, str(address)))
    return f'Write allow_to = [{line}] into {shown_name(submitter)}; "*" would be anybody.'


def _own_domains(upstream: Upstream) -> tuple[str, ...]:
    if upstream.own_domains:
        return upstream.own_domains
    domain = upstream.mailbox.rpartition("@")[2] if "@" in upstream.mailbox else ""
    return (domain,) if domain else ()


def _own_domain(upstream: Upstream) -> str:
    return next((name for name in _own_domains(upstream) if not name.startswith("*")), "")


def _carried(upstream: Upstream) -> int:
    """Return what a way out carries, octets, our own additions taken off."""
    return upstream.mime_limit - HEADROOM if upstream.large == "refuse" else _LARGE


def _deliveries(
    upstream: Upstream, verdict: Keep | SetFrom, recipients: tuple[str, ...]
) -> tuple[NewDelivery, ...]:
    sender = str(verdict.address)
    whole = NewDelivery(
        mailbox=mailbox_for(upstream, sender),
        recipients=recipients,
        header_from=sender.lower(),
        # Also where the device's own is kept: what was judged is what goes out, though
        # the head may write it in a way that others read differently.
        set_from=sender,
        reply_to_original=isinstance(verdict, SetFrom) and verdict.reply_to_original,
    )
    if len(recipients) <= MOST_RECIPIENTS:
        return (whole,)
    starts = range(0, len(recipients), MOST_RECIPIENTS)
    parts = [recipients[start : start + MOST_RECIPIENTS] for start in starts]
    return tuple(replace(whole, recipients=part) for part in parts)


def mailbox_for(upstream: Upstream, sender: str) -> MailboxRef:
    """Return the mailbox that mail from `sender` leaves through."""
    mailbox = sender if upstream.mailbox == SENDER else upstream.mailbox_id or upstream.mailbox
    return MailboxRef(upstream.name, mailbox.lower())


def _refused(verdict: Refuse) -> Refusal:
    return Refusal(
        code=verdict.code, enhanced="5.7.1", text=verdict.text, log_reason=verdict.log_reason,
        do=verdict.do,
    )  # fmt: skip


# ---- check -------------------------------------------------------------------------------


def problems(config: Config) -> list[str]:
    """Return what makes users, senders or recipients of this configuration unusable."""
    found = users_room.problems(config)
    for where, submitter in _submitters(config):
        for key in ("from_", "default_from"):
            text = getattr(submitter, key)
            found += address_problems(f"{where} {key.rstrip('_')}", text)
        for key in ("allow_from", "allow_to"):
            found += pattern_problems(f"{where} {key}", getattr(submitter, key))
    for upstream in config.upstream:
        where = f"[upstream.{upstream.name}]"
        if upstream.mailbox != SENDER:
            found += address_problems(f"{where} mailbox", upstream.mailbox)
        elif upstream.mailbox_id:
            found.append(f'{where} mailbox_id: means nothing with mailbox = "sender"; take it out')
        for key in ("allowed_senders", "own_domains"):
            found += pattern_problems(f"{where} {key}", getattr(upstream, key))
    return found


def warnings(config: Config) -> list[str]:
    """Return what is allowed but will refuse or hold mail; `problems` must be none.

    Networks that are wide or never reached are the loader's to warn of.
    """
    upstreams = {upstream.name: upstream for upstream in config.upstream}
    found: list[str] = []
    for where, submitter in _submitters(config):
        upstream = upstreams.get(submitter.upstream)
        if upstream is not None:
            found += _sender_warnings(where, submitter, upstream)
    return found


def _sender_warnings(where: str, submitter: Submitter, upstream: Upstream) -> Iterator[str]:
    if upstream.mailbox == SENDER and not (submitter.from_ or submitter.default_from):
        yield (
            f"{where} default_from: is not set, nor is from, so mail whose sender is not in "
            f'allowed_senders of upstream "{upstream.name}" is refused; '
            'write default_from = "ups@example.com"'
        )
    for key in ("from_", "default_from"):
        text = getattr(submitter, key)
        if text and not may_send_as(Submitter(name=""), upstream, parse_path(text)):
            yield (
                f'{where} {key.rstrip("_")}: "{text}" is neither mailbox nor in allowed_senders '
                f'of upstream "{upstream.name}"; add it there, and give the mailbox Send As for it'
            )
    if "*" in submitter.allow_from and upstream.mailbox != SENDER:
        yield (
            f'{where} allow_from: "*" keeps senders that Exchange does not let '
            f'"{upstream.mailbox}" send as, and their mail is held; leave it out to rewrite them'
        )


def _submitters(config: Config) -> Iterator[tuple[str, Submitter]]:
    for device in config.device:
        yield f'[[device]] "{device.name}"', device
    for user in config.user:
        yield f'[[user]] "{user.name}"', user
