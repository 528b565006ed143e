"""A desk and a wire for sessions in memory: fakes that keep what they are told."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

from relayd.clock import FakeClock
from relayd.message.headers import is_too_long
from relayd.serve.session import PeerSilent
from relayd.smtp import replies
from relayd.smtp.commands import Ehlo, Helo, Mail, Rcpt
from relayd.smtp.replies import Reply
from relayd.smtp.sasl import Credentials
from relayd.smtp.server import ContentEnd, ContentTerms


@dataclass
class FakeDesk:
    """Takes mail from example.com to example.com; who is who as in tests/dialog_script."""

    limit: int = 10_000_000
    lf_dot: bool = False
    auth: bool = True
    tls: bool = True
    secure: bool = False
    greeting: Reply = field(default_factory=lambda: replies.banner("relay.test"))
    kept: list[bytes] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    credentials: list[Credentials] = field(default_factory=list)
    ends: list[ContentEnd] = field(default_factory=list)
    unfit: list[tuple[ContentEnd, Reply]] = field(default_factory=list)
    trouble: dict[str, Exception] = field(default_factory=dict)  # by call
    _open: bytearray = field(default_factory=bytearray)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if call in self.trouble:
            raise self.trouble[call]

    def on_connect(self) -> Reply:
        self._note("connect")
        return self.greeting

    def on_hello(self, hello: Ehlo | Helo) -> Reply:
        self._note("hello")
        if isinstance(hello, Helo):
            return replies.hello("relay.test")
        words = [f"SIZE {self.limit}", "PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
        words += ["STARTTLS"] if self.tls and not self.secure else []
        words += ["AUTH PLAIN LOGIN"] if self.auth else []
        return replies.hello("relay.test", tuple(words))

    def may_start_tls(self) -> ssl.SSLContext | Reply:
        self._note("may_start_tls")
        return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if self.tls else replies.TLS_NOT_OFFERED

    def tls_started(self, protocol: str, cipher: str) -> None:
        self._note("tls_started")
        self.secure = True

    def may_authenticate(self, mechanism: str) -> Reply | None:
        self._note("may_authenticate")
        return None if self.auth else replies.AUTH_NOT_OFFERED

    def on_auth(self, credentials: Credentials) -> Reply:
        self._note("auth")
        self.credentials.append(credentials)
        good = (credentials.user, credentials.password) == ("printer1", "secret12")
        return replies.AUTH_OK if good else replies.AUTH_FAILED

    def on_mail(self, mail: Mail) -> Reply:
        self._note("mail")
        if mail.size > self.limit:
            return replies.MESSAGE_TOO_LARGE
        sender = mail.reverse_path
        if sender is not None and sender.domain not in ("", "example.com"):
            return replies.SENDER_REFUSED
        return replies.SENDER_OK

    def on_rcpt(self, rcpt: Rcpt) -> Reply:
        self._note("rcpt")
        if rcpt.forward_path.domain not in ("", "example.com"):
            return replies.RELAY_DENIED
        return replies.RECIPIENT_OK

    def on_data(self) -> ContentTerms | Reply:
        self._note("data")
        self._open = bytearray()
        return ContentTerms(self.limit, lf_dot=self.lf_dot)

    def on_piece(self, octets: bytes) -> None:
        if "piece" in self.trouble:
            raise self.trouble["piece"]
        self._open += octets

    def on_end(self, end: ContentEnd) -> Reply:
        self._note("end")
        self.ends.append(end)
        if is_too_long(bytes(self._open)):
            return replies.HEAD_TOO_LONG
        self.kept.append(bytes(self._open))
        return replies.queued(f"{len(self.kept):012d}")

    def on_unfit(self, end: ContentEnd, reply: Reply) -> None:
        self._note("unfit")
        self.unfit.append((end, reply))

    def reset(self) -> None:
        self.calls.append("reset")

    def drop(self) -> None:
        self.calls.append("drop")


@dataclass
class FakeWire:
    """Gives `incoming` one by one, then end of file; an exception in it is raised.

    wait_s: what each receive takes on `clock`; on_receive: called before each.
    """

    incoming: list[bytes | Exception]
    clock: FakeClock = field(default_factory=FakeClock)
    wait_s: float = 0.0
    is_secure: bool = False
    said: bytes = b""
    writes: list[bytes] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)
    on_receive: Callable[[], None] = lambda: None
    early: bool = False

    def receive(self, deadline: float) -> bytes:
        timeout_s = max(0.0, deadline - self.clock.monotonic())
        self.timeouts.append(timeout_s)
        self.on_receive()
        if self.wait_s > timeout_s:
            self.clock.advance(timeout_s)
            raise PeerSilent("no octet came")
        self.clock.advance(self.wait_s)
        if not self.incoming:
            return b""
        item = self.incoming.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def has_input(self) -> bool:
        return self.early

    def send(self, octets: bytes) -> None:
        self.said += octets
        self.writes.append(octets)

    def start_tls(self, context: ssl.SSLContext) -> tuple[str, str]:
        self.is_secure = True
        return "TLSv1.3", "TLS_AES_128_GCM_SHA256"

    def wake(self) -> None:
        self.incoming.insert(0, b"")


def codes(said: bytes) -> list[int]:
    """Return the codes of replies, one for each reply, in order."""
    return [int(line[:3]) for line in said.split(b"\r\n") if line[3:4] == b" "]
