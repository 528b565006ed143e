"""Answers every question of one session: who is this, what may it send, is the mail kept.

The session moves octets; the Desk decides. It holds who the peer is (device, user) and at most
one Transaction, a value replaced whole by each accepted MAIL and RCPT, so that no forgotten
field of one message can leak into the next. No socket here, no SMTP grammar.

Promise: `on_end` answers 250 only after `Draft.commit` has returned (durable).

Source: RFC 5321 §4.1.1, RFC 4954 §4 (AUTH), RFC 3207 §4 (STARTTLS), RFC 1870 (SIZE).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import field, replace
from datetime import timedelta
from typing import Final, Protocol

import structlog

from relayd.access.logins import Accepted, Rejected, Verdict
from relayd.access.plan import NO_UPSTREAM, STRANGER, Planner, Refusal, let_in
from relayd.clock import SYSTEM, Clock
from relayd.config.model import Config, Listener, Submitter
from relayd.errors import SpoolUnavailable
from relayd.master.child import Pulse
from relayd.message.address import Address
from relayd.message.envelope import Envelope, Origin
from relayd.message.glance import Glance, glance
from relayd.message.headers import is_too_long
from relayd.message.trace import received_line
from relayd.observe import metrics
from relayd.serve.callers import Callers, Refused
from relayd.serve.intake import Intake
from relayd.smtp import replies
from relayd.smtp.commands import Ehlo, Helo, Mail, Rcpt
from relayd.smtp.replies import Reply
from relayd.smtp.sasl import Credentials
from relayd.smtp.server import ContentEnd, ContentTerms
from relayd.spool.model import PRIORITIES, NewMessage, queue_id_text
from relayd.spool.store import Door
from relayd.values import frozen

log = structlog.get_logger()

COMMIT_LIMIT_S: Final = 8.0
"""From the final dot: past it the client has gone and will send again, so we undo and say 451."""

_HEAD_TOO_LONG: Final = Refusal(
    code=replies.HEAD_TOO_LONG.code,
    enhanced=replies.HEAD_TOO_LONG.enhanced or "",
    text=replies.HEAD_TOO_LONG.lines[0],
    log_reason="its header lines are longer than the 252 KiB that are read",
    do="Look what the device writes into To and Cc: one address of a group serves as well.",
)


class Gate(Protocol):
    """What is needed of access.logins.Verifier."""

    def verify(self, peer: str, name: str, password: str) -> Verdict:
        """Judge a login; blocks its greenlet for seconds at most."""
        ...


@frozen(kw_only=True)
class House:
    """What all desks of a worker share. context: a listener's TLS context now, None without TLS.

    callers: what is remembered of each peer.
    """

    config: Config
    planner: Planner
    verifier: Gate
    door: Door
    pulse: Pulse
    context: Callable[[str], ssl.SSLContext | None]
    clock: Clock = SYSTEM
    callers: Callers = field(default_factory=Callers)


@frozen(kw_only=True)
class Transaction:
    """One MAIL and what followed; replaced whole.

    origin: as trace, log and spool tell it. is_overfull: recipients were left out.
    """

    sender: Address | None
    origin: Origin
    recipients: tuple[Address, ...] = ()
    is_overfull: bool = False


class Desk:
    """One session's decisions.

    ip:        peer, "::ffff:" folded.
    is_tls:    implicit TLS is up.
    submitter: who it is, where the peer's address does not tell (`relayd send`).
    """

    __slots__ = (
        "_device", "_hello", "_house", "_intake", "_ip", "_listener", "_session", "_submitter",
        "_terms", "_tls", "_transaction", "_user", "_why",
    )  # fmt: skip

    def __init__(
        self,
        house: House,
        listener: Listener,
        *,
        session: str,
        ip: str,
        is_tls: bool,
        submitter: Submitter | None = None,
    ) -> None:
        self._house = house
        self._listener = listener
        self._session = session
        self._ip = ip
        self._tls = "implicit" if is_tls else ""
        self._hello: Ehlo | Helo | None = None
        self._user: str
        self._submitter: Submitter | None
        self._terms: ContentTerms | None  # of the submitter; None: not asked for yet
        self._speaks(submitter or house.planner.submitter_for(ip, None))
        self._device = self._submitter.name if self._submitter else ""
        self._transaction: Transaction | None = None
        self._intake: Intake | None = None
        self._why: Refused | None = None

    def _speaks(self, submitter: Submitter | None, user: str = "") -> None:
        """Note who speaks from now on, and forget what was worked out for another."""
        self._submitter, self._user, self._terms = submitter, user, None

    @property
    def why(self) -> Refused | None:
        """The first recipient refused, else the first refusal since a message was last accepted.

        With its rule; None: nothing was refused.
        """
        return self._why

    def _note(
        self,
        reply: Reply,
        reason: str,
        do: str,
        *,
        sender: str = "",
        recipient: str = "",
        login: str = "",
    ) -> Reply:
        """Keep why this peer was refused; returns `reply`."""
        # Of a recipient who was left out nobody else tells, the message may be accepted.
        if self._why is None or (recipient and not self._why.recipient):
            opened = self._transaction
            self._why = Refused(
                code=reply.code,
                reply=" ".join(reply.lines),
                reason=reason,
                do=do,
                sender=sender or (str(opened.sender or "") if opened else ""),
                recipient=recipient,
                login=login,
            )
        return reply

    @property
    def device(self) -> str:
        """Name of the [[device]] whose network the peer is in; "" if none."""
        return self._device

    @property
    def wanted_user(self) -> str:
        """Name of the configured user whose login was refused; "" if none, or of no such name.

        Only of those there are: whoever knocks must not have us remember names he makes up.
        """
        login = self._why.login if self._why is not None else ""
        user = self._house.planner.submitter_for(self._ip, login) if login else None
        return user.name if user is not None else ""

    @property
    def user(self) -> str:
        """Name of the user who logged in; "" if none."""
        return self._user

    # ---- the session before a message

    def on_connect(self) -> Reply:
        """Greet."""
        return replies.banner(self._house.config.server.hostname)

    def on_hello(self, hello: Ehlo | Helo) -> Reply:
        """Answer with our name, and to EHLO with what this peer may use."""
        self._hello = hello
        keywords = self._keywords() if isinstance(hello, Ehlo) else ()
        return replies.hello(self._house.config.server.hostname, keywords)

    def _keywords(self) -> tuple[str, ...]:
        words = [
            f"SIZE {self._house.planner.size_limit(self._submitter)}",
            "PIPELINING",
            "8BITMIME",
            "SMTPUTF8",
            "ENHANCEDSTATUSCODES",
        ]
        if not self._tls and self._may_use_tls():
            words.append("STARTTLS")
        if self._offers_auth():
            words.append("AUTH PLAIN LOGIN")
        hidden = self._submitter.hide if self._submitter else ()
        if not hidden:
            return tuple(words)
        dropped = {word.upper() for word in hidden}
        return tuple(word for word in words if word.split(" ")[0] not in dropped)

    def _may_use_tls(self) -> bool:
        return (
            self._listener.tls in ("opportunistic", "required")
            and self._house.context(self._listener.name) is not None
        )

    def _offers_auth(self) -> bool:
        listener = self._listener
        return (
            listener.auth != "off"
            and not self._user
            and bool(self._tls or listener.auth_without_tls)
        )

    def may_start_tls(self) -> ssl.SSLContext | Reply:
        """Give the listener's context."""
        if self._listener.tls not in ("opportunistic", "required"):
            return replies.TLS_NOT_OFFERED
        return self._house.context(self._listener.name) or replies.TLS_UNAVAILABLE

    def tls_started(self, protocol: str, cipher: str) -> None:
        """Forget all that was said in the clear (RFC 3207 §4.2)."""
        self.reset()
        self._hello = None
        self._speaks(self._house.planner.submitter_for(self._ip, None))
        self._tls = f"{protocol} {cipher}"

    def may_authenticate(self, mechanism: str) -> Reply | None:
        """Refuse before a secret is sent where it must not be."""
        del mechanism  # both of ours send the password as it is
        name = self._listener.name
        if self._listener.auth == "off":
            return self._note(
                replies.AUTH_NOT_OFFERED,
                f"auth of listener '{name}' is off",
                f'Switch the login off in the device, or write auth = "optional" into'
                f' [[listener]] "{name}".',
            )
        # SECURITY: a password in the clear is anybody's on the LAN; a listener must allow it.
        if not self._tls and not self._listener.auth_without_tls:
            reason = f"no TLS, and auth_without_tls of listener '{name}' is false"
            do = (
                "Switch STARTTLS on in the device. If it knows no TLS: auth_without_tls = true in"
                f' [[listener]] "{name}"; its password then crosses the network in clear.'
            )
            return self._note(replies.AUTH_NEEDS_TLS, reason, do)
        return None

    def on_auth(self, credentials: Credentials) -> Reply:
        """Verify, off the hub; count and log either way."""
        verdict = self._house.verifier.verify(self._ip, credentials.user, credentials.password)
        method = credentials.mechanism.lower()
        if isinstance(verdict, Accepted):
            return self._log_in(verdict.user.name, method)
        result = "refused" if isinstance(verdict, Rejected) else "unavailable"
        metrics.count("relayd_auth_total", method=method, result=result)
        log.warning(
            "auth.failed", session=self._session, ip=self._ip, device=self._device,
            user=credentials.user, method=method, reason=verdict.reason,
        )  # fmt: skip
        refused = isinstance(verdict, Rejected)
        reply = replies.AUTH_FAILED if refused else replies.AUTH_UNAVAILABLE
        do = "Give it the right name and password: relayd user list, relayd user passwd NAME"
        return self._note(reply, f"login: {verdict.reason}", do, login=credentials.user)

    def _log_in(self, name: str, method: str) -> Reply:
        self._speaks(self._house.planner.submitter_for(self._ip, name), name)
        metrics.count("relayd_auth_total", method=method, result="ok")
        log.info(
            "auth.ok", session=self._session, ip=self._ip, device=self._device, user=name,
            method=method,
        )  # fmt: skip
        return replies.AUTH_OK

    # ---- one message

    def on_mail(self, mail: Mail) -> Reply:
        """Open a transaction if this peer may send as that sender, and that much."""
        name = self._listener.name
        if self._listener.tls == "required" and not self._tls:
            return self._note(
                replies.TLS_REQUIRED,
                f"tls of listener '{name}' is required",
                "Switch STARTTLS on in the device, or write"
                f' tls = "opportunistic" into [[listener]] "{name}".',
            )
        if self._user:
            # A user deleted or changed meanwhile: an open session must not outlive that.
            now = self._house.planner.still(self._ip, self._user)
            if now is not self._submitter:
                self._speaks(now, self._user if now is not None else "")
        submitter = self._submitter
        sender = self._completed(mail.reverse_path)
        if self._listener.auth == "required" and not self._user:
            reason = f"auth of listener '{name}' is required"
            do = (
                "Have it log in: relayd user add NAME, and type that into the device. Or write"
                f' auth = "optional" into [[listener]] "{name}".'
            )
            return self._note(replies.AUTH_REQUIRED, reason, do, sender=str(sender or ""))
        if submitter is None:
            return self._stranger(sender)
        refusal = self._house.planner.check_mail(submitter, sender, mail.size)
        if refusal is not None:
            return self._refuse(refusal, sender=str(sender or ""))
        self._transaction = Transaction(sender=sender, origin=self._origin(smtputf8=mail.smtputf8))
        return replies.SENDER_OK

    def _stranger(self, sender: Address | None) -> Reply:
        """Answer a peer that no [[device]] and no login speaks for."""
        if not self._house.config.upstream:
            return self._note(replies.NOT_CONFIGURED, *NO_UPSTREAM)
        reply = replies.AUTH_REQUIRED if self._offers_auth() else replies.RELAY_DENIED
        log.warning(
            "message.refused", session=self._session, ip=self._ip, code=reply.code, reason=STRANGER
        )
        return self._note(reply, STRANGER, let_in(self._ip), sender=str(sender or ""))

    def _completed(self, address: Address | None) -> Address | None:
        if address is None or address.domain:
            return address
        domain = self._house.config.server.default_domain
        return Address(address.local, domain) if domain else address

    def on_rcpt(self, rcpt: Rcpt) -> Reply:
        """Add a recipient that this peer may write to."""
        transaction, submitter = self._transaction, self._submitter
        if transaction is None or submitter is None:
            return replies.NEED_MAIL
        address = self._completed(rcpt.forward_path) or rcpt.forward_path
        if len(transaction.recipients) >= self._house.config.limits.max_recipients:
            return self._too_many(transaction, address)
        refusal = self._house.planner.check_rcpt(submitter, address)
        if refusal is not None:
            return self._refuse(refusal, recipient=str(address))
        self._transaction = Transaction(
            sender=transaction.sender,
            origin=transaction.origin,
            recipients=(*transaction.recipients, address),
            is_overfull=transaction.is_overfull,
        )
        return replies.RECIPIENT_OK

    def _too_many(self, transaction: Transaction, address: Address) -> Reply:
        """Refuse a recipient; told once for a message, for there may be thousands."""
        if not transaction.is_overfull:
            self._transaction = replace(transaction, is_overfull=True)
            most = self._house.config.limits.max_recipients
            refusal = Refusal(
                code=replies.TOO_MANY_RECIPIENTS.code,
                enhanced=replies.TOO_MANY_RECIPIENTS.enhanced or "",
                text=replies.TOO_MANY_RECIPIENTS.lines[0],
                log_reason=f"max_recipients is {most}: this one, and who comes after, is left out",
                do="Raise max_recipients in [limits], or have the device write to fewer at once.",
            )
            self._refuse(refusal, recipient=str(address))
        return replies.TOO_MANY_RECIPIENTS

    def on_data(self) -> ContentTerms | Reply:
        """Open a draft and write our trace line as its first."""
        transaction, submitter = self._transaction, self._submitter
        if transaction is None or submitter is None:
            return replies.NEED_MAIL
        try:
            draft = self._house.door.draft(priority=PRIORITIES[submitter.priority])
        except SpoolUnavailable as error:
            return self._not_kept(error)
        only = str(transaction.recipients[0]) if len(transaction.recipients) == 1 else None
        trace = received_line(
            transaction.origin,
            only,
            queue_id=queue_id_text(draft.id),
            hostname=self._house.config.server.hostname,
            now=self._house.clock.utcnow(),
        )
        self._intake = Intake(draft, trace)
        if self._terms is None:
            self._terms = ContentTerms(
                self._house.planner.size_limit(submitter), lf_dot=submitter.lf_dot
            )
        return self._terms

    def on_piece(self, octets: bytes) -> None:
        """Keep a piece of content."""
        if self._intake is not None:
            self._intake.write(octets)

    def on_end(self, end: ContentEnd) -> Reply:
        """Make the message durable, then take responsibility for it."""
        began = self._house.clock.monotonic()
        transaction, submitter, intake = self._transaction, self._submitter, self._intake
        if transaction is None or submitter is None or intake is None:
            return replies.NEED_MAIL
        try:
            return self._kept(transaction, submitter, intake, end, began)
        except SpoolUnavailable as error:
            return self._not_kept(error)

    def _kept(
        self,
        transaction: Transaction,
        submitter: Submitter,
        intake: Intake,
        end: ContentEnd,
        began: float,
    ) -> Reply:
        head, body_sha256 = intake.finish()
        if is_too_long(head):
            return self._refuse(_HEAD_TOO_LONG, sender=str(transaction.sender or ""))
        seen = glance(
            head,
            hostname=self._house.config.server.hostname,
            subject=self._house.config.log.subjects,
        )
        if seen.is_loop:
            return self._loop(seen)
        queue_id = queue_id_text(intake.draft.id)
        message = self._planned(transaction, submitter, seen, intake, body_sha256, queue_id)
        if isinstance(message, Reply):
            return message
        # DURABILITY: 250 is only said after this returned; what it raises is answered 451 or 452.
        intake.draft.commit(message, deadline=began + COMMIT_LIMIT_S)
        self._intake = None
        took = self._house.clock.monotonic() - began
        self._accepted(queue_id, message, end, took)
        return replies.queued(queue_id)

    def on_unfit(self, end: ContentEnd, reply: Reply) -> None:
        """Tell why content was refused that never came to `on_end`."""
        submitter, refusal = self._submitter, None
        if end.too_large and submitter is not None:
            refusal = self._house.planner.check_size(submitter, end.size)
        do = (
            "Have the device send smaller mail."
            if end.too_large
            else f'Write profile = "device" into [[listener]] "{self._listener.name}".'
        )
        self._refuse(
            refusal
            or Refusal(
                code=reply.code, enhanced=reply.enhanced or "", text=reply.lines[0],
                log_reason=reply.lines[0], do=do,
            )
        )  # fmt: skip

    def _planned(
        self,
        transaction: Transaction,
        submitter: Submitter,
        seen: Glance,
        intake: Intake,
        body_sha256: str,
        queue_id: str,
    ) -> NewMessage | Reply:
        origin = transaction.origin
        envelope = Envelope(
            sender=transaction.sender, recipients=transaction.recipients, origin=origin
        )
        header_from = self._completed(seen.header_from)
        plan = self._house.planner.plan(submitter, envelope, header_from, intake.size_bytes)
        if isinstance(plan, Refusal):
            return self._refuse(plan, sender=str(header_from or transaction.sender or ""))
        now = self._house.clock.utcnow()
        return NewMessage(
            sender=str(transaction.sender or ""),
            priority=plan.priority,
            accepted_at=now,
            expires_at=now + timedelta(seconds=plan.max_age_s),
            size_bytes=intake.size_bytes,
            body_sha256=body_sha256,
            # What `message.outgoing` will add, so that it can be looked for by either name.
            message_id=seen.message_id or f"<{queue_id}@{self._house.config.server.hostname}>",
            subject=seen.subject if self._house.config.log.subjects else "",
            session=origin.session,
            listener=origin.listener,
            ip=origin.ip,
            helo=origin.helo,
            device=origin.device,
            user=origin.user,
            deliveries=plan.deliveries,
        )

    def _origin(self, *, smtputf8: bool) -> Origin:
        return Origin(
            session=self._session,
            listener=self._listener.name,
            ip=self._ip,
            helo=self._hello.name if self._hello else "",
            device=self._device,
            user=self._user,
            protocol=self._protocol(smtputf8=smtputf8),
        )

    def _protocol(self, *, smtputf8: bool) -> str:
        """Return the RFC 3848 name of how the message came."""
        if not isinstance(self._hello, Ehlo):
            return "SMTP"
        name = "UTF8SMTP" if smtputf8 else "ESMTP"
        return name + ("S" if self._tls else "") + ("A" if self._user else "")

    def _accepted(self, queue_id: str, message: NewMessage, end: ContentEnd, took: float) -> None:
        if self._why is not None and not self._why.recipient:
            self._why = None
        self._house.callers.accepted(
            self._ip,
            self._device,
            self._user,
            queue_id=queue_id,
            sender=message.sender,
            at=message.accepted_at,
        )
        metrics.observe("relayd_accept_seconds", took)
        device = self._user or self._device
        recipients = 0
        for delivery in message.deliveries:
            recipients += len(delivery.recipients)
            metrics.count(
                "relayd_messages_accepted_total", device=device, upstream=delivery.mailbox.upstream
            )
        subject = {"subject": message.subject} if message.subject else {}
        log.info(
            "message.accepted", id=queue_id, session=self._session, ip=self._ip,
            device=self._device, user=self._user, sender=message.sender,
            recipients=recipients, bytes=end.size, ms=round(took * 1000), **subject,
        )  # fmt: skip

    def _loop(self, seen: Glance) -> Reply:
        reason = f"mail loop: {seen.received} Received lines, {seen.ours} of them ours"
        log.warning(
            "message.refused", session=self._session, ip=self._ip, device=self._device,
            code=554, reason=reason,
        )  # fmt: skip
        do = "Look at the Received lines: a host it went through sends it back to this relay."
        return self._note(replies.TOO_MANY_HOPS, reason, do)

    def _not_kept(self, error: SpoolUnavailable) -> Reply:
        """Tell why nothing was kept: most devices do not try again, so this is lost mail."""
        reply = replies.refusal(error)
        reason = f"the spool cannot take it: {error}"
        log.error(
            "message.refused", session=self._session, ip=self._ip, device=self._device,
            user=self._user, code=reply.code, reason=reason,
        )  # fmt: skip
        do = "Look at the disk: relayd status. Then have the device send again."
        return self._note(reply, reason, do)

    def _refuse(self, refusal: Refusal, **about: str) -> Reply:
        log.warning(
            "message.refused", session=self._session, ip=self._ip, device=self._device,
            user=self._user, code=refusal.code, reason=refusal.log_reason, **about,
        )  # fmt: skip
        reply = Reply(refusal.code, (refusal.text,), refusal.enhanced)
        return self._note(reply, refusal.log_reason, refusal.do, **about)

    # ---- the end of a message or a session

    def reset(self) -> None:
        """Forget the open transaction."""
        self._transaction = None
        if self._intake is not None:
            self._intake.draft.discard()
            self._intake = None

    def drop(self) -> None:
        """Forget everything."""
        self.reset()
