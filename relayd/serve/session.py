"""One connection, one greenlet: moves octets and asks for decisions; knows no queue.

`run` is the only loop. Every wait has a deadline, every way out says the right reply
first, and no exception text reaches the client. The listener closes the wire, logs what
`run` returned, and catches what passes through it: a bug in a desk is answered 451 here,
then goes on up with its traceback.

Source: RFC 5321 §3.8 (421), §4.5.3.2 (time-outs); RFC 2920 §3.2 (replies in groups).
"""

from __future__ import annotations

import enum
import ssl
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Protocol, TypeAlias, assert_never

from relayd.clock import SYSTEM, Clock
from relayd.errors import RelaydError
from relayd.observe import metrics
from relayd.smtp import replies, sasl
from relayd.smtp.commands import (
    Auth,
    BadCommand,
    Command,
    Data,
    Ehlo,
    Expn,
    Hangup,
    Helo,
    Help,
    Mail,
    Noop,
    Profile,
    Quit,
    Rcpt,
    Rset,
    StartTls,
    Unknown,
    Vrfy,
)
from relayd.smtp.replies import Reply
from relayd.smtp.sasl import Credentials
from relayd.smtp.server import (
    AuthResponse,
    ContentEnd,
    ContentPiece,
    ContentTerms,
    LineTooLong,
    Owing,
    ServerProtocol,
    Signal,
)
from relayd.smtp.states import BETWEEN, State
from relayd.values import frozen


class PeerGone(RelaydError):
    """The connection broke or the handshake failed; nothing more can be said."""


class PeerSilent(RelaydError):
    """The peer neither sent nor took an octet before the deadline."""


class Wire(Protocol):
    """The socket as a session sees it; blocks its greenlet, never past a deadline."""

    def receive(self, deadline: float) -> bytes:
        """Return 1..65536 octets; b"" at end of file, or after `wake`.

        deadline: monotonic; what has come by then is returned, also when it is over already.
        raises:   PeerSilent, PeerGone.
        """
        ...

    def has_input(self) -> bool:
        """Tell whether octets wait to be received; never blocks."""
        ...

    def send(self, octets: bytes) -> None:
        """Send all of `octets`; raises PeerSilent, PeerGone."""
        ...

    @property
    def is_secure(self) -> bool:
        """True once TLS is up."""
        ...

    def start_tls(self, context: ssl.SSLContext) -> tuple[str, str]:
        """Do the server's handshake; return protocol version and cipher.

        raises: PeerGone with the reason, PeerSilent.
        """
        ...

    def wake(self) -> None:
        """Make a blocked `receive` return b""; what was sent before is still read."""
        ...


class Desk(Protocol):
    """Whom the session asks: one for each session, holding one transaction, replaced whole.

    Commands arrive in legal order and with legal arguments; every answer is a reply, and a
    421 ends the session. RelaydError raised anywhere is answered by its constants; any other
    exception 451 4.3.0, and the session ends.
    """

    def on_connect(self) -> Reply:
        """Return the greeting (replies.banner), or a 4xx/5xx that ends the session."""
        ...

    def on_hello(self, hello: Ehlo | Helo) -> Reply:
        """Return replies.hello(hostname, keywords); without keywords for Helo."""
        ...

    def may_start_tls(self) -> ssl.SSLContext | Reply:
        """Return the context for the handshake, or why not (TLS_NOT_OFFERED, TLS_UNAVAILABLE)."""
        ...

    def tls_started(self, protocol: str, cipher: str) -> None:
        """Forget hello, login and transaction (RFC 3207 §4.2): "TLSv1.3", "TLS_AES_…"."""
        ...

    def may_authenticate(self, mechanism: str) -> Reply | None:
        """Return None to go on; else AUTH_NOT_OFFERED, AUTH_NEEDS_TLS, before a secret is sent."""
        ...

    def on_auth(self, credentials: Credentials) -> Reply:
        """Return AUTH_OK or a refusal; the desk does the hashing, the delay and the log line."""
        ...

    def on_mail(self, mail: Mail) -> Reply:
        """Open a transaction: SENDER_OK or a refusal. size: refuse with MESSAGE_TOO_LARGE."""
        ...

    def on_rcpt(self, rcpt: Rcpt) -> Reply:
        """Add a recipient: RECIPIENT_OK or a refusal."""
        ...

    def on_data(self) -> ContentTerms | Reply:
        """Return what content may come (354 is said), or a refusal; at least one RCPT stands."""
        ...

    def on_piece(self, octets: bytes) -> None:
        """Keep content: canonical CRLF, unstuffed, 1 octet..256 KiB; failures wait for `on_end`."""
        ...

    def on_end(self, end: ContentEnd) -> Reply:
        """Make the message durable, then answer replies.queued(id); raises SpoolUnavailable.

        Not called for content the session refuses by itself (too large, bare newlines on a
        strict listener): then `on_unfit` is.
        """
        ...

    def on_unfit(self, end: ContentEnd, reply: Reply) -> None:
        """Tell the operator of content that the session refuses with `reply`."""
        ...

    def reset(self) -> None:
        """Forget the open transaction, if any: RSET, EHLO, and after every content end."""
        ...

    def drop(self) -> None:
        """The session ended, always called once, last; forget everything, never raise."""
        ...


class End(enum.Enum):
    """Why a session ended; the value is the metric's label."""

    QUIT = "quit"
    LEFT = "left"  #: the peer closed between transactions, or before saying anything
    LOST = "lost"  #: the connection broke inside a transaction
    REFUSED = "refused"  #: the greeting was a refusal, or a reply was 421
    IDLE = "idle"
    SLOW = "slow"  #: content stopped or crawled
    DRAINED = "drained"  #: we are shutting down
    ERRORS = "errors"
    NOT_SMTP = "not-smtp"  #: HTTP, TLS on a plain port, endless lines; `detail` says which
    TLS_FAILED = "tls-failed"


@frozen(kw_only=True)
class Farewell:
    """What the listener logs.

    end:        why it ended.
    detail:     the Hangup's reason or the wire's error; "" if none.
    refusal:    the first recipient refused, else the first refusal since a message was last
                accepted; None: nothing refused.
    transcript: the redacted dialogue that led to `refusal`, at most 20 lines, unescaped;
                () when nothing was refused.
    """

    end: End
    detail: str = ""
    refusal: Reply | None = None
    transcript: tuple[str, ...] = ()


@frozen(kw_only=True)
class Manners:
    """What a listener sets for its sessions; made once. Seconds and octets per second."""

    profile: Profile = "device"
    idle_timeout_s: float = 300.0
    data_timeout_s: float = 180.0
    min_data_rate: int = 500
    max_errors: int = 50


MAX_TRANSCRIPT: Final = 20
_MAX_HELD_BACK: Final = 16 * 1024
FIRST_MAIL_S: Final = 3.0
"""How long a session that has sent nothing yet may still begin to, while we are leaving."""

_GRACE_S: Final = 60.0
"""Content may crawl for so long before its average rate is judged."""

_REDACTED: Final = b"<redacted>"

_Answer: TypeAlias = Reply | ContentTerms | ssl.SSLContext
_Ended: TypeAlias = tuple[End, str]


class Session:
    """Serves one SMTP session to its end; the listener's greenlet runs it."""

    __slots__ = (
        "_clock",
        "_content_octets",
        "_deadline",
        "_desk",
        "_draining",
        "_had_mail",
        "_is_woken",
        "_manners",
        "_mechanism",
        "_out",
        "_patient_until",
        "_protocol",
        "_refusal",
        "_said",
        "_waited_s",
        "_waiting",
        "_wire",
    )

    def __init__(self, wire: Wire, desk: Desk, manners: Manners, *, clock: Clock = SYSTEM) -> None:
        self._wire = wire
        self._desk = desk
        self._manners = manners
        self._clock = clock
        self._protocol = ServerProtocol(
            manners.profile, max_errors=manners.max_errors, secure=wire.is_secure
        )
        self._mechanism: sasl.Mechanism | None = None
        self._out = b""  # replies of a pipelined group, sent before the next blocking wait
        self._said = deque[bytes](maxlen=MAX_TRANSCRIPT)  # both sides; ours end in CRLF
        self._refusal: _Refused | None = None
        self._deadline = 0.0  # monotonic; for the command line being waited for; 0: none
        self._waited_s = 0.0  # of the open content: time spent waiting for octets, and them
        self._content_octets = 0
        self._draining = False
        self._had_mail = False
        self._is_woken = False
        self._patient_until = 0.0  # monotonic; while draining: for a first MAIL
        self._waiting = False

    def run(self) -> Farewell:
        """Serve until QUIT, end of file, or something we cannot go on from.

        raises: whatever is no RelaydError, after 451 where a reply was owed, or will be.
        """
        is_bug = True
        try:
            end, detail = self._serve()
            is_bug = False
        finally:
            # Who sends content waits for a word at its end.
            in_content = is_bug and self._protocol.state is State.CONTENT
            if in_content or self._protocol.is_owing:
                with suppress(PeerGone, PeerSilent):
                    self._say(self._protocol.farewell(replies.LOCAL_ERROR))
                    self._flush()
            self._desk.drop()
        if self._refusal is None:
            return Farewell(end=end, detail=detail)
        return Farewell(
            end=end,
            detail=detail,
            refusal=self._refusal.reply,
            transcript=self._refusal.transcript,
        )

    def drain(self) -> None:
        """Ask for an end after the open transaction, at once between transactions.

        Who has had no transaction yet gets FIRST_MAIL_S to begin one: many devices take 421 in
        answer to their first MAIL for a refusal, and never come back with that message.
        """
        self._draining = True
        self._patient_until = self._clock.monotonic() + FIRST_MAIL_S
        if self._waiting:
            self._is_woken = True
            self._wire.wake()

    # --- the loop

    def _serve(self) -> _Ended:
        try:
            return self._greet() or self._talk()
        except PeerGone as gone:
            return self._left(), str(gone)
        except PeerSilent as silent:  # it does not take our replies: nothing can be said
            return End.IDLE, str(silent)

    def _greet(self) -> _Ended | None:
        # RFC 5321 §4.3.1 wants clients to wait for the greeting; cameras do not.
        if self._manners.profile == "strict" and self._wire.has_input():
            return self._leave(replies.OUT_OF_STEP, End.NOT_SMTP, "early-talker")
        try:
            reply = self._desk.on_connect()
        except RelaydError:
            reply = replies.UNAVAILABLE
        if reply.code != 220:
            self._note_refusal(reply, weight=2)
            return self._leave(reply, End.REFUSED)
        self._say(reply.octets)
        return None

    def _talk(self) -> _Ended:
        protocol = self._protocol
        while True:
            if self._draining and self._is_leaving():
                return self._leave(replies.SHUTTING_DOWN, End.DRAINED)
            event = protocol.next_event()
            if event is Signal.NEED_DATA:
                ended = self._receive()
            elif isinstance(event, ContentPiece):
                self._desk.on_piece(event.octets)
                continue
            elif event is Signal.PAUSED:
                raise AssertionError(event)  # nothing is owed and nothing is closed here
            else:
                self._deadline = 0.0
                ended = self._answer(event)
            if ended is not None:
                self._flush()
                return ended

    def _receive(self) -> _Ended | None:
        if self._out:
            self._flush()
        protocol = self._protocol
        in_content = protocol.state is State.CONTENT
        now = self._clock.monotonic()
        if in_content:
            deadline = now + self._manners.data_timeout_s
        else:
            # One deadline for the whole line: octets that drip in do not push it on.
            deadline = self._deadline = self._deadline or now + self._manners.idle_timeout_s
        self._waiting = protocol.state in BETWEEN
        if self._waiting and self._draining:
            deadline = min(deadline, self._patient_until)
        try:
            octets = self._wire.receive(deadline)
        except PeerSilent:
            if in_content:
                return self._leave(replies.TOO_SLOW, End.SLOW, "no octet for data_timeout")
            if self._draining and self._clock.monotonic() < self._deadline:
                return None
            return self._leave(replies.IDLE_TIMEOUT, End.IDLE)
        finally:
            self._waiting = False
        if not octets:
            is_end, self._is_woken = not self._is_woken, False
            return (self._left(), "") if is_end else None
        protocol.receive_data(octets)
        if in_content:
            return self._judge_rate(len(octets), self._clock.monotonic() - now)
        return None

    def _judge_rate(self, octets: int, waited_s: float) -> _Ended | None:
        """Only time spent waiting for the peer counts: our own disk is not its fault."""
        self._content_octets += octets
        self._waited_s += waited_s
        if self._waited_s < _GRACE_S:
            return None
        if self._content_octets >= self._waited_s * self._manners.min_data_rate:
            return None
        return self._leave(replies.TOO_SLOW, End.SLOW, "below min_data_rate")

    def _is_leaving(self) -> bool:
        """Tell whether a session that was asked to leave may do so now."""
        if self._protocol.state not in BETWEEN:
            return False
        return self._had_mail or self._clock.monotonic() >= self._patient_until

    def _left(self) -> End:
        return End.LEFT if self._protocol.state in BETWEEN else End.LOST

    def _leave(self, reply: Reply, end: End, detail: str = "") -> _Ended:
        """Say a reply nobody asked for, and end."""
        if end in (End.SLOW, End.NOT_SMTP):
            self._note_refusal(reply, weight=2)
        self._say(self._protocol.farewell(reply))
        self._flush()
        return end, detail

    # --- questions and answers

    def _answer(self, event: Owing) -> _Ended | None:
        protocol = self._protocol
        line = protocol.line
        self._said.append(line[:500] if type(event) in _OPEN_WORDS else _shown(event, line))
        if isinstance(event, Hangup) and event.reply is None:
            return End.NOT_SMTP, event.reason
        try:
            answer = self._ask(event)
        except RelaydError as error:
            answer = replies.refusal(error)
        if not isinstance(answer, Reply):
            return self._go_on(answer)
        octets = protocol.send(answer)
        self._say(octets)
        if not answer.is_positive:
            self._note_refusal(answer, weight=_weight(event, protocol.line, answer))
        elif (
            self._refusal is not None and isinstance(event, ContentEnd) and not self._has_left_out()
        ):
            self._refusal = None
        return _ended(event, octets) if protocol.state is State.CLOSED else None

    def _go_on(self, granted: ContentTerms | ssl.SSLContext) -> _Ended | None:
        """Say yes to DATA or STARTTLS, and change to what was asked for."""
        if isinstance(granted, ContentTerms):
            self._say(self._protocol.send(replies.START_MAIL, granted))
            self._waited_s, self._content_octets = 0.0, 0
            return None
        self._say(self._protocol.send(replies.START_TLS))
        return self._start_tls(granted)

    def _ask(self, event: Owing) -> _Answer:
        if isinstance(event, Command):
            refused = self._protocol.out_of_order(event)
            if refused is not None:
                return refused
        match event:
            case Mail():
                self._had_mail = True
                return self._desk.on_mail(event)
            case Rcpt():
                return self._desk.on_rcpt(event)
            case Data():
                return self._desk.on_data()
            case ContentEnd():
                return self._end_content(event)
            case Ehlo() | Helo():
                self._desk.reset()
                return self._desk.on_hello(event)
            case Rset():
                self._desk.reset()
                return replies.RESET
            case Quit():
                return replies.BYE
            case Noop():
                return replies.NOOP
            case Auth():
                return self._begin_auth(event)
            case AuthResponse():
                return self._step_auth(event.octets)
            case StartTls():
                return self._desk.may_start_tls()
            case Vrfy():
                return replies.CANNOT_VERIFY
            case Expn():
                return replies.NOT_IMPLEMENTED
            case Help():
                return replies.HELP
            case Unknown(is_smtp=is_smtp):
                return replies.NOT_IMPLEMENTED if is_smtp else replies.UNKNOWN_COMMAND
            case BadCommand() | LineTooLong():
                return event.reply
            case Hangup():
                return event.reply or replies.OUT_OF_STEP
            case _:
                assert_never(event)

    def _end_content(self, end: ContentEnd) -> Reply:
        try:
            if end.too_large:
                return self._unfit(end, replies.MESSAGE_TOO_LARGE)
            if end.bare_newline and self._manners.profile == "strict":
                return self._unfit(end, replies.BARE_NEWLINE)
            return self._desk.on_end(end)
        finally:
            self._desk.reset()

    def _unfit(self, end: ContentEnd, reply: Reply) -> Reply:
        self._desk.on_unfit(end, reply)
        return reply

    def _begin_auth(self, auth: Auth) -> Reply:
        refused = self._desk.may_authenticate(auth.mechanism)
        if refused is not None:
            return refused
        self._mechanism = sasl.begin(auth.mechanism)
        return self._step_auth(auth.initial)

    def _step_auth(self, response: bytes | None) -> Reply:
        if self._mechanism is None:
            return replies.AUTH_UNKNOWN_MECHANISM
        step = self._mechanism.step(response)
        if isinstance(step, sasl.Challenge):
            return replies.challenge(step.text)
        self._mechanism = None
        return self._desk.on_auth(step) if isinstance(step, Credentials) else step

    def _start_tls(self, context: ssl.SSLContext) -> _Ended | None:
        self._flush()
        try:
            version, cipher = self._wire.start_tls(context)
        except (PeerGone, PeerSilent) as failed:
            return End.TLS_FAILED, str(failed)
        self._protocol.tls_started()
        self._desk.tls_started(version, cipher)
        return None

    # --- what was said

    def _say(self, octets: bytes) -> None:
        metrics.count("relayd_smtp_replies_total", code=octets[:3].decode())
        self._said.append(octets)
        self._out += octets
        if len(self._out) > _MAX_HELD_BACK:
            self._flush()

    def _flush(self) -> None:
        if self._out:
            octets, self._out = self._out, b""
            self._wire.send(octets)

    def _has_left_out(self) -> bool:
        return self._refusal is not None and self._refusal.weight == _LEFT_OUT

    def _note_refusal(self, reply: Reply, *, weight: int) -> None:
        """Keep the first of the weightiest refusals, and what led to it."""
        if self._refusal is None or self._refusal.weight < weight:
            self._refusal = _Refused(reply, weight, _transcript(self._said))


@frozen
class _Refused:
    """weight: 3 for a recipient, who is left out though the message is accepted; 2 for what else
    a desk or the content's end refused, 1 for slips of the language.
    """

    reply: Reply
    weight: int
    transcript: tuple[str, ...]


_LEFT_OUT: Final = 3
_WEIGHTY: Final = Mail | Rcpt | Data | ContentEnd | Auth | AuthResponse | Hangup


_NO_RECIPIENT: Final = (421, 503)
"""What RCPT is answered where not the recipient is refused, but what was before it."""


def _weight(event: Owing, line: bytes, reply: Reply) -> int:
    is_rcpt = isinstance(event, Rcpt) and reply.code not in _NO_RECIPIENT
    if is_rcpt or (isinstance(event, BadCommand) and line[:4].upper() == b"RCPT"):
        return _LEFT_OUT
    return 2 if isinstance(event, _WEIGHTY) else 1


def _ended(event: Owing, octets: bytes) -> _Ended:
    """Return why the session is closed. octets: our last words."""
    if octets == replies.TOO_MANY_ERRORS.octets:
        return End.ERRORS, ""
    match event:
        case Quit():
            return End.QUIT, ""
        case Hangup(reason=reason):
            return End.NOT_SMTP, reason
        case ContentEnd() if octets.startswith(b"2"):
            return End.QUIT, "lf-dot"
        case _:
            return End.REFUSED, ""


_OPEN_WORDS: Final = frozenset({Mail, Rcpt, Data, Ehlo, Helo, Rset, Noop, Quit, StartTls})
"""Lines of which the transcript may have the whole: `_shown` need not look at them."""


def _shown(event: Owing, line: bytes) -> bytes:
    """Return a line of the peer's as the transcript may have it: never a secret."""
    if isinstance(event, ContentEnd):
        return b"<%d octets of content>" % event.size
    if isinstance(event, AuthResponse):
        return _REDACTED
    said = line.strip()
    # SECURITY: whatever a client makes of AUTH, a password comes behind it.
    if said[:4].upper() == b"AUTH":
        return b"AUTH " + _REDACTED
    # SECURITY: a client out of step sends its password where a command belongs.
    if isinstance(event, Unknown | BadCommand | LineTooLong) and len(said.split(maxsplit=1)) < 2:
        return said[:4] + b"..." if len(said) > 8 else said
    return line[:500]


def _transcript(said: Iterable[bytes]) -> tuple[str, ...]:
    lines = list[str]()
    for octets in said:
        text = octets.decode("utf-8", "backslashreplace")
        if octets.endswith(b"\r\n"):
            lines += [f"S: {line}" for line in text.split("\r\n")[:-1]]
        else:
            lines.append(f"C: {text}")
    return tuple(lines[-MAX_TRANSCRIPT:])
