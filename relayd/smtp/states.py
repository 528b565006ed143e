"""The states of an SMTP session, and the only table that moves between them.

Rule 1: what may follow what lives in NEXT and nowhere else.
Rule 2: a command moves the session only when our reply is positive; a refused command
        leaves it where it was, but for the rows of AFTER_REFUSAL.
Rule 3: no octets, no sockets, no policy, no clock in this file.

    HELLO --EHLO--> READY --MAIL--> SENDER --RCPT--> RECIPIENTS --DATA--> CONTENT
      |              |  ^              `-RCPT refused-> UNWANTED             |
      STARTTLS     AUTH |                                                    |
      v              v  `----------------- end of content -------------------'
     TLS -> SECURED  SASL

SECURED is HELLO after TLS on the device profile: MAIL and AUTH are taken without a second
EHLO, because plug-ins and printers forget it. Strict goes back to HELLO (RFC 3207 §4.2).

Source: RFC 5321 §3.3 and §4.1.4 (order), RFC 3207 §4.2, RFC 4954 §4.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from relayd.smtp import replies
from relayd.smtp.commands import (
    Auth,
    Command,
    Data,
    Ehlo,
    Expn,
    Helo,
    Help,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Rset,
    StartTls,
    Unknown,
    Vrfy,
)
from relayd.smtp.replies import Reply


class State(enum.Enum):
    """Where the conversation stands."""

    HELLO = "hello"  #: connected; no EHLO yet
    SECURED = "secured"  #: TLS is up; no EHLO since (device profile)
    READY = "ready"  #: greeted; no transaction open
    SENDER = "sender"  #: MAIL accepted
    UNWANTED = "unwanted"  #: MAIL accepted, every RCPT so far refused
    RECIPIENTS = "recipients"  #: at least one RCPT accepted
    SASL = "sasl"  #: 334 sent; the next line is a response
    CONTENT = "content"  #: 354 sent; octets are content until the lone dot
    TLS = "tls"  #: 220 sent; waiting for `tls_started`
    CLOSED = "closed"  #: nothing more may be said

    __hash__ = object.__hash__  # Enum's own hashes the name, in Python, on every look-up


def _row(
    here: State, reset: State, more: Mapping[type[Command], State]
) -> Mapping[type[Command], State]:
    """Return what is legal in `here`. reset: where RSET leads."""
    return {
        Ehlo: State.READY,
        Helo: State.READY,
        Rset: reset,
        Quit: State.CLOSED,
        Noop: here,
        Vrfy: here,
        Expn: here,
        Help: here,
        Unknown: here,
        **more,
    }


_GREETED: Final[Mapping[type[Command], State]] = {
    Mail: State.SENDER,
    Auth: State.READY,  # with 334 it goes by SASL
    StartTls: State.TLS,
}

NEXT: Final[Mapping[State, Mapping[type[Command], State]]] = {
    State.HELLO: _row(State.HELLO, State.HELLO, {StartTls: State.TLS}),
    State.SECURED: _row(State.SECURED, State.SECURED, _GREETED),
    State.READY: _row(State.READY, State.READY, _GREETED),
    State.SENDER: _row(State.SENDER, State.READY, {Rcpt: State.RECIPIENTS}),
    State.UNWANTED: _row(State.UNWANTED, State.READY, {Rcpt: State.RECIPIENTS}),
    State.RECIPIENTS: _row(
        State.RECIPIENTS, State.READY, {Rcpt: State.RECIPIENTS, Data: State.CONTENT}
    ),
    State.SASL: {},
    State.CONTENT: {},
    State.TLS: {},
    State.CLOSED: {},
}

AFTER_REFUSAL: Final[Mapping[State, Mapping[type[Command], State]]] = {
    State.SENDER: {Rcpt: State.UNWANTED},
}
"""The only moves a negative reply makes."""

BETWEEN: Final = frozenset({State.HELLO, State.SECURED, State.READY})
"""No transaction is open and no answer is awaited: a 421 harms nobody here."""

_IN_TRANSACTION: Final = frozenset({State.SENDER, State.UNWANTED, State.RECIPIENTS})

_TOO_EARLY: Final[Mapping[type[Command], Reply]] = {
    Mail: replies.NEED_HELLO,
    Auth: replies.NEED_HELLO,
    Rcpt: replies.NEED_MAIL,
    Data: replies.NEED_MAIL,
}

_IN_THE_WAY: Final[Mapping[type[Command], Reply]] = {
    Mail: replies.NESTED_MAIL,
    Auth: replies.NOT_IN_TRANSACTION,
    StartTls: replies.NOT_IN_TRANSACTION,
    Data: replies.NEED_RECIPIENT,
}


def out_of_order(state: State, command: type[Command]) -> Reply | None:
    """Return the refusal of a command that may not come in `state`; None if it may."""
    if command in NEXT[state]:
        return None
    if state is State.UNWANTED and command is Data:
        return replies.NO_VALID_RECIPIENTS  # RFC 2920 §3.1: to a client that pipelined
    table = _IN_THE_WAY if state in _IN_TRANSACTION else _TOO_EARLY
    return table.get(command, replies.BAD_SEQUENCE)
