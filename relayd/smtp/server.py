"""The server side of one SMTP session, without input or output.

    receive_data(octets) ... next_event() ... decide ... send(reply) -> octets

The caller owns the socket, the clock and the decisions; this class owns the order of
things. One reply is owed at a time: after an event that needs one, `next_event` says
PAUSED until `send`, so pipelined commands wait their turn (RFC 2920 §3.2). A caller that
reads only when told NEED_DATA keeps the buffer below MAX_BUFFER.

What the peer may do wrong is an event too: BadCommand, LineTooLong, Hangup. Refusals are
counted; past `max_errors` the reply becomes 421 and the session ends.

Source: RFC 5321 §4.1, §4.5.3.1; RFC 2920; RFC 3207 §4.2; RFC 4954 §4.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias

from relayd.errors import LocalProtocolError
from relayd.smtp import replies
from relayd.smtp.commands import (
    Auth,
    BadCommand,
    Command,
    Data,
    Hangup,
    Line,
    Mail,
    Profile,
    StartTls,
    parse_command,
    parse_ordinary,
)
from relayd.smtp.data import ContentReader
from relayd.smtp.replies import Reply
from relayd.smtp.sasl import MAX_RESPONSE
from relayd.smtp.states import AFTER_REFUSAL, NEXT, State, out_of_order
from relayd.values import frozen

MAX_LINE: Final = 4096
"""Longest command line, octets with its line end; RFC 5321 §4.5.3.1.4 asks for 512 and growth."""

MAX_AUTH_LINE: Final = MAX_RESPONSE + 2
MAX_BUFFER: Final = 256 * 1024
_MAX_SKIPPED: Final = 64 * 1024
_SHOWN: Final = 60
_CLIENT_HELLO: Final = b"\x16\x03"
_CR: Final = 13
_SHUT: Final = frozenset({State.TLS, State.CLOSED})
_ONCE: Final = frozenset({Auth, StartTls})
"""Commands that a state alone does not make legal."""

_ENDLESS_LINE: Final = Hangup("endless-line", replies.LINE_TOO_LONG)


class Signal(enum.Enum):
    """What `next_event` says when there is no event."""

    NEED_DATA = "need-data"  #: feed more octets
    PAUSED = "paused"  #: a reply or the TLS handshake comes first, or all is over


@frozen
class ContentTerms:
    """How content may come. limit: most octets, 1..2**40; lf_dot: LF "." LF ends it too."""

    limit: int
    lf_dot: bool = False


@frozen
class ContentPiece:
    """Some content, 1 octet..512 KiB, canonical. No reply is owed."""

    octets: bytes


@frozen(kw_only=True)
class ContentEnd:
    """The lone dot.

    size:         octets on the wire, the last line "." not counted, dropped ones included.
    too_large:    past the limit; answer MESSAGE_TOO_LARGE.
    bare_newline: a CR or LF stood alone; mended on "device", refused on "strict".
    nuls:         NUL octets taken out.
    """

    size: int
    too_large: bool = False
    bare_newline: bool = False
    nuls: int = 0


@frozen
class AuthResponse:
    """The line after a 334, without its line end; a secret."""

    octets: bytes

    def __repr__(self) -> str:
        return "AuthResponse()"


@frozen
class LineTooLong:
    """A line passed its limit and was dropped up to its end; answer `reply`."""

    reply: Reply


Owing: TypeAlias = Line | LineTooLong | AuthResponse | ContentEnd
"""Events that a reply is owed for; a Hangup without a reply is not, the session is closed."""

Event: TypeAlias = Owing | ContentPiece


class ServerProtocol:
    """One session.

    secure:     TLS is up (from the first octet, or by STARTTLS).
    errors:     refusals since a message was last accepted.
    line:       the line that the last event was read from, for the transcript; of an
                over-long one its first 60 octets, of a response that cannot be read "AUTH".
    """

    __slots__ = (
        "_buffer",
        "_content",
        "_max_errors",
        "_owed",
        "_profile",
        "_skipped",
        "_smtputf8",
        "_start",
        "authenticated",
        "errors",
        "line",
        "secure",
        "state",
    )

    def __init__(self, profile: Profile, *, max_errors: int, secure: bool = False) -> None:
        self._profile: Profile = profile
        self._max_errors = max_errors
        self._buffer = b""  # bytes, not bytearray: an idle session owns nothing
        self._start = 0  # octets of `_buffer` that are used up
        self._skipped = 0  # octets of an over-long line thrown away; 0: none is being skipped
        self._owed: Owing | None = None
        self._content: ContentReader | None = None  # set in CONTENT only
        self._smtputf8 = False  # of the open transaction
        self.secure = secure
        self.authenticated = False
        self.errors = 0
        self.line = b""
        self.state = State.HELLO

    @property
    def is_owing(self) -> bool:
        """True while an event waits for `send`."""
        return self._owed is not None

    def receive_data(self, data: bytes) -> None:
        """Add octets from the peer; nothing is parsed until `next_event`.

        raises: LocalProtocolError - MAX_BUFFER would be passed: events were left unread.
        """
        if self._buffer:
            data = self._buffer[self._start :] + data
        if len(data) > MAX_BUFFER:
            raise LocalProtocolError("octets received before the last were used")
        self._buffer, self._start = data, 0

    def next_event(self) -> Event | Signal:
        """Return the next thing the peer said, or what must come first."""
        if self._owed is not None or self.state in _SHUT:
            return Signal.PAUSED
        event: Event | None
        if self._content is not None:
            event = self._next_content(self._content)
        elif self._buffer:
            event = self._next_line()
        else:
            return Signal.NEED_DATA
        if event is None:
            return Signal.NEED_DATA
        if isinstance(event, Hangup) and event.reply is None:
            self._close()
        elif not isinstance(event, ContentPiece):
            self._owed = event
        return event

    def out_of_order(self, command: Command) -> Reply | None:
        """Return the refusal of a command that may not come now; None if it may."""
        kind = type(command)
        if kind not in NEXT[self.state]:
            return out_of_order(self.state, kind)
        if kind is StartTls and self.secure:
            return replies.TLS_ACTIVE
        if kind is Auth and self.authenticated:
            return replies.ALREADY_AUTHENTICATED
        return None

    def send(self, reply: Reply, terms: ContentTerms | None = None) -> bytes:
        """Return the octets of the reply to the last event, and move as it allows.

        reply:  becomes 421 when the peer made too many errors.
        terms:  with 354, how the content may come.
        raises: LocalProtocolError - no reply is owed, a positive one to what may not come
                here, or 354 without terms.
        """
        event = self._owed
        if event is None:
            raise LocalProtocolError("no reply is owed")
        if reply.code >= 500:
            self.errors += 1
            if self.errors > self._max_errors:
                reply = replies.TOO_MANY_ERRORS
        octets = reply.octets
        if reply.closes:
            self._close()
        elif isinstance(event, Command):
            self._answer_command(event, reply, terms)
        elif isinstance(event, ContentEnd):
            octets += self._end_transaction(reply)
        elif isinstance(event, AuthResponse):
            self._answer_auth(reply)
        elif isinstance(event, Hangup):
            self._close()
        self._owed = None
        return octets

    def farewell(self, reply: Reply) -> bytes:
        """Return the octets of a reply nobody asked for (421), and close."""
        self._owed = None
        self._close()
        return reply.octets

    def tls_started(self) -> None:
        """Forget all that came before the handshake (RFC 3207 §4.2)."""
        if self.state is not State.TLS:
            raise LocalProtocolError("TLS without STARTTLS")
        self._forget_input()
        self.secure = True
        self.authenticated = False
        self.state = State.SECURED if self._profile == "device" else State.HELLO

    # --- replies move the session

    def _answer_command(self, command: Command, reply: Reply, terms: ContentTerms | None) -> None:
        kind = type(command)
        if not reply.is_positive:
            self.state = AFTER_REFUSAL.get(self.state, {}).get(kind, self.state)
            return
        after = NEXT[self.state].get(kind)
        if after is None or (kind in _ONCE and self.out_of_order(command) is not None):
            raise LocalProtocolError(f"accepted {kind.__name__} in {self.state}")
        if kind is Data:
            self._open_content(reply, terms)
        elif kind is Auth:
            self._answer_auth(reply)
            return
        elif kind is StartTls:
            # SECURITY: what was sent in the clear behind STARTTLS may be an attacker's
            # (CVE-2011-0411); it must be gone before the first octet inside TLS.
            self._forget_input()
        if isinstance(command, Mail):
            self._smtputf8 = command.smtputf8
        self.state = after

    def _answer_auth(self, reply: Reply) -> None:
        """334 asks for a line; anything else ends the attempt, wherever it began."""
        self.authenticated = reply.code == 235
        self.state = State.SASL if reply.code == 334 else State.READY

    def _open_content(self, reply: Reply, terms: ContentTerms | None) -> None:
        if reply.code != 354 or terms is None:
            raise LocalProtocolError("DATA needs 354 and terms")
        self._content = ContentReader(
            terms.limit, strict=self._profile == "strict", lf_dot=terms.lf_dot
        )

    def _end_transaction(self, reply: Reply) -> bytes:
        """Return what must be said after `reply`."""
        ended_bare = self._content is not None and self._content.ended_bare
        self._content = None
        self.state = State.READY
        if reply.is_positive:
            self.errors = 0
        if not ended_bare:
            return b""
        # SECURITY: only a device was trusted to end with LF "." LF; whatever stands behind
        # such an end may be somebody's smuggled transaction.
        return self.farewell(replies.BYE)

    def _close(self) -> None:
        self._content = None
        self._forget_input()
        self.state = State.CLOSED

    def _forget_input(self) -> None:
        self._buffer, self._start, self._skipped = b"", 0, 0

    # --- octets become events

    def _next_content(self, reader: ContentReader) -> ContentPiece | ContentEnd | Hangup | None:
        if not reader.done:
            octets = self._buffer[self._start :] if self._start else self._buffer
            if not octets:
                return None
            piece, used = reader.feed(octets)
            self._buffer, self._start = (octets, used) if used < len(octets) else (b"", 0)
            if reader.hopeless:
                return Hangup("endless-content", replies.MESSAGE_TOO_LARGE)
            if piece:
                return ContentPiece(piece)
            if not reader.done:
                return None
        return ContentEnd(
            size=reader.size,
            too_large=reader.too_large,
            bare_newline=reader.bare_newline,
            nuls=reader.nuls,
        )

    def _next_line(self) -> Line | LineTooLong | AuthResponse | None:
        buffer, start = self._buffer, self._start
        end = buffer.find(b"\n", start)
        if (
            end > start
            and buffer[end - 1] == _CR
            and not self._skipped
            and self.state is not State.SASL
        ):
            line = buffer[start : end - 1]
            command = parse_ordinary(line)  # what it takes, nothing below would refuse
            if command is not None:
                self.line = line
                self._start = end + 1
                if self._start == len(buffer):
                    self._buffer, self._start = b"", 0
                return command
        return self._any_line(end)

    def _any_line(self, end: int) -> Line | LineTooLong | AuthResponse | None:
        """Take the line that ends at `end`, where its LF is; -1: it is not there yet."""
        if self._is_client_hello():
            return Hangup("tls-on-plain-port", None)
        if end < 0:
            return self._open_line()
        line = self._buffer[self._start : end]
        self._start = end + 1
        if self._start == len(self._buffer):
            self._buffer, self._start = b"", 0
        if not self._skipped and len(line) < self._limit(line):
            return self._judge(line)
        return self._end_skipping(line)

    def _is_client_hello(self) -> bool:
        if self.secure or self._skipped:
            return False
        return self._buffer.startswith(_CLIENT_HELLO, self._start)

    def _open_line(self) -> Hangup | None:
        """Keep a line without its end, or throw away what no line may have."""
        line = self._buffer[self._start :]
        if not self._skipped:
            if len(line) < self._limit(line):
                return None
            self._show(line[:_SHOWN])
        self._skipped += len(line)
        self._buffer, self._start = b"", 0
        return _ENDLESS_LINE if self._skipped > _MAX_SKIPPED else None

    def _end_skipping(self, line: bytes) -> LineTooLong | Hangup:
        if not self._skipped:
            self._show(line[:_SHOWN])
        skipped, self._skipped = self._skipped + len(line), 0
        if skipped > _MAX_SKIPPED:  # the same however the line was cut
            return _ENDLESS_LINE
        return LineTooLong(self._leave_sasl(replies.AUTH_TOO_LONG, replies.LINE_TOO_LONG))

    def _show(self, line: bytes) -> None:
        """Keep a line that cannot be read for the transcript."""
        # SECURITY: of a response to AUTH not an octet, it is a password.
        self.line = b"AUTH" if self.state is State.SASL else line

    def _leave_sasl(self, in_sasl: Reply, elsewhere: Reply) -> Reply:
        """Return the reply to a line that cannot be read; it ends an attempt to log in."""
        if self.state is not State.SASL:
            return elsewhere
        self.state = State.READY
        return in_sasl

    def _limit(self, line: bytes) -> int:
        """Return the most octets of a line, with its end, that opens like `line`."""
        if self.state is State.SASL or line[:5].upper() in (b"AUTH ", b"AUTH\t"):
            return MAX_AUTH_LINE
        return MAX_LINE

    def _judge(self, line: bytes) -> Line | AuthResponse:
        if self._profile == "device":
            line = line.rstrip(b"\r")
        elif line.endswith(b"\r"):
            line = line[:-1]
        else:
            self._show(line)
            bad = replies.BARE_LF_IN_COMMAND
            return BadCommand(self._leave_sasl(bad, bad))
        self.line = line
        if self.state is State.SASL:
            return AuthResponse(line)
        return parse_command(line, self._profile, smtputf8=self._smtputf8)
