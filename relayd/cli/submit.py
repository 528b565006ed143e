"""A message handed in by SMTP to the relay of this host: what `sendmail` does with it.

    submit(place, mail)   -> Outcome: who was taken, who was refused with which reply

Small on purpose: smtplib would cost more time to load than the whole session takes. Nothing is
sent where a refusal may be over soon (4xx): the caller keeps the message and tries again. Where
some recipients are refused for good, the others get it.

Source: RFC 5321 §3.3, §4.5.2 (dots), §4.5.3.1.10 (452 too many recipients).
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from relayd.values import frozen

_CONNECT_S: Final = 5.0
_PATIENCE_S: Final = 5.0
"""How long a relay that is just being restarted is waited for."""

_AGAIN_S: Final = 0.2
_COMMAND_S: Final = 60.0
_DOT_S: Final = 300.0
_LONGEST_LINE: Final = 4096
_TOO_MANY: Final = "4.5.3"


class Place(NamedTuple):
    """Where the relay listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return it as address:port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Reply(NamedTuple):
    """One SMTP reply; text: of its last line, printable."""

    code: int
    text: str

    def __str__(self) -> str:
        """Return it as it came."""
        return f"{self.code} {self.text}"

    @property
    def is_temporary(self) -> bool:
        """Tell whether trying again later may help."""
        return 400 <= self.code < 500


class Away(Exception):
    """The relay does not answer, or left; `maybe_taken`: after the whole message was sent."""

    def __init__(self, text: str, *, maybe_taken: bool = False) -> None:
        super().__init__(text)
        self.maybe_taken = maybe_taken


class Refused(Exception):
    """The relay refused all of it; about: "relay", "sender", "message"."""

    def __init__(self, reply: Reply, about: str) -> None:
        super().__init__(str(reply))
        self.reply = reply
        self.about = about


@frozen
class Mail:
    """sender: "" is the null sender. content: CRLF lines, dots as they are."""

    sender: str
    recipients: Sequence[str]
    content: bytes
    is_8bit: bool = False


@dataclass(slots=True)
class Outcome:
    """ids: of the relay's queue. refused: recipient to reply."""

    ids: list[str] = field(default_factory=list)
    refused: dict[str, Reply] = field(default_factory=dict)


def submit(places: Sequence[Place], mail: Mail) -> Outcome:
    """Hand it in; raises Away, Refused."""
    outcome = Outcome()
    left = list(mail.recipients)
    with Session(places) as session:
        parameters = " BODY=8BITMIME" if mail.is_8bit and "8BITMIME" in session.offers else ""
        if "SIZE" in session.offers:
            parameters += f" SIZE={len(mail.content)}"
        while left:
            try:
                session.expect(f"MAIL FROM:<{mail.sender}>{parameters}", "sender")
                left = _transaction(session, mail.content, left, outcome)
            except (Away, Refused) as error:
                if not outcome.ids:
                    raise
                # Others have it already: sent as a whole again, they would get it twice.
                reply = error.reply if isinstance(error, Refused) else Reply(451, str(error))
                outcome.refused |= dict.fromkeys(left, reply)
                break
        session.leave()
    return outcome


def verify(places: Sequence[Place], sender: str, recipients: Sequence[str]) -> dict[str, Reply]:
    """Ask of each recipient whether the relay would take it; sends nothing."""
    with Session(places) as session:
        session.expect(f"MAIL FROM:<{sender}>", "sender")
        answers = {one: session.command(f"RCPT TO:<{one}>") for one in recipients}
        session.leave()
    return answers


def _transaction(
    session: Session, content: bytes, recipients: Sequence[str], outcome: Outcome
) -> list[str]:
    """Name recipients and send the content; returns those for another transaction."""
    taken = 0
    rest: list[str] = []
    for recipient in recipients:
        reply = session.command(f"RCPT TO:<{recipient}>")
        if 200 <= reply.code < 300:
            taken += 1
        elif taken and reply.code == 452 and reply.text.startswith(_TOO_MANY):
            rest.append(recipient)
        elif reply.is_temporary:
            raise Refused(reply, "relay")
        else:
            outcome.refused[recipient] = reply
    if taken:
        outcome.ids.append(session.send(content))
    return rest


class Session:
    """One connection to the relay, greeted; owned by one caller.

    places: tried in order, again and again for a few seconds while nobody answers.
    offers: what EHLO showed.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._buffer = b""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.socket = connected(places)
                self.offers = self._greeted()
                return
            except (Away, Refused) as error:
                is_final = isinstance(error, Refused) and not error.reply.is_temporary
                if is_final or time.monotonic() > deadline:
                    raise
            time.sleep(_AGAIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def _greeted(self) -> frozenset[str]:
        try:
            banner = self._reply(_COMMAND_S)[0]
            if banner.code != 220:
                raise Refused(banner, "relay")
            self._write(b"EHLO localhost\r\n")
            reply, lines = self._reply(_COMMAND_S)
            if reply.code != 250:
                raise Refused(reply, "relay")
        except BaseException:
            self.socket.close()
            raise
        return frozenset(line.split(" ")[0].upper() for line in lines[1:])

    def command(self, line: str) -> Reply:
        """Send a line, return the reply; raises Away. 421 is the relay leaving."""
        self._write(line.encode("ascii") + b"\r\n")
        reply, _ = self._reply(_COMMAND_S)
        if reply.code == 421:
            raise Refused(reply, "relay")
        return reply

    def expect(self, line: str, about: str) -> None:
        """Send a line; raises Refused for any reply but 2xx, Away."""
        reply = self.command(line)
        if not 200 <= reply.code < 300:
            raise Refused(reply, about)

    def send(self, content: bytes) -> str:
        """Send the content and return its queue id; raises Refused, Away."""
        reply = self.command("DATA")
        if reply.code != 354:
            raise Refused(reply, "message")
        stuffed = re.sub(rb"(?m)^\.", b"..", content)
        if stuffed and not stuffed.endswith(b"\r\n"):
            stuffed += b"\r\n"
        self._write(stuffed)
        try:
            self._write(b".\r\n")
            reply, _ = self._reply(_DOT_S)
        except Away as error:
            raise Away(str(error), maybe_taken=True) from error
        if reply.code != 250:
            raise Refused(reply, "message")
        return reply.text.rpartition(" ")[2]

    def leave(self) -> None:
        """Say QUIT; its answer changes nothing any more."""
        try:
            self.socket.sendall(b"QUIT\r\n")
        except OSError:
            return

    def _write(self, octets: bytes) -> None:
        self.socket.settimeout(_DOT_S)
        try:
            self.socket.sendall(octets)
        except OSError as error:
            raise Away(f"the relay left ({error.strerror or error})") from error

    def _reply(self, timeout_s: float) -> tuple[Reply, list[str]]:
        """Read one reply: its last line, and all lines' texts."""
        lines: list[str] = []
        deadline = time.monotonic() + timeout_s
        while True:
            line = self._line(deadline)
            lines.append(line[4:])
            if line[3:4] != "-":
                break
        code = line[:3]
        if not (len(code) == 3 and code.isdecimal()):
            raise Away(f"what answers speaks no SMTP: {line[:80]}")
        return Reply(int(code), lines[-1]), lines

    def _line(self, deadline: float) -> str:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LONGEST_LINE:
                raise Away("what answers speaks no SMTP")
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                octets = self.socket.recv(4096)
            except TimeoutError as error:
                raise Away("the relay does not answer") from error
            except OSError as error:
                raise Away(f"the relay left ({error.strerror or error})") from error
            if not octets:
                raise Away("the relay closed the connection")
            self._buffer += octets
        line, _, self._buffer = self._buffer.partition(b"\n")
        text = line.rstrip(b"\r").decode("ascii", "replace")
        return "".join(c if c.isprintable() else "?" for c in text)


def connected(places: Sequence[Place]) -> socket.socket:
    """Return a connection to the first place that answers; raises Away."""
    troubles: list[str] = []
    for place in places:
        try:
            return socket.create_connection(place, _CONNECT_S)
        except OSError as error:
            troubles.append(f"{place}: {error.strerror or error}")
    raise Away(f"nobody answers at {'; '.join(troubles)}")
