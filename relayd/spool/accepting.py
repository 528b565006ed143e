"""Messages come in: the rows of many in a few statements, and the way to undo one.

# DURABILITY: content file (if any) durable under its name, then these rows, then 250. The
# commit of the batch is the moment from which the message is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from json.encoder import encode_basestring_ascii
from typing import Final

from relayd.clock import micros
from relayd.spool.model import PRIORITIES, Lease, NewDelivery, NewMessage, QueueId, State
from relayd.spool.schema import CODES
from relayd.spool.transaction import (
    SIBLINGS,
    Operation,
    Transaction,
    Value,
    marks,
    sibling_values,
)
from relayd.values import frozen

# Columns by name: newer code may have added some while we have the database open.
_MESSAGE: Final = """
    INSERT INTO message (id, sender, priority, accepted_at, expires_at, size_bytes, body_sha256,
      message_id, subject, session, listener, ip, helo, device, user)
    SELECT * FROM ({values}) WHERE column1 NOT NULL
    """
_CONTENT: Final = """
    INSERT INTO content (id, size, crc, octets)
    SELECT * FROM ({values}) WHERE column1 NOT NULL
    """
_DELIVERY: Final = """
    INSERT INTO delivery (id, message, upstream, mailbox, header_from, set_from,
      reply_to_original, recipients, priority, expires_at, state, fence, due, held_by,
      holder, leased_at, lease_until)
    SELECT * FROM ({values}) WHERE column1 NOT NULL
    """
_PAGE: Final = 4096
_LOWEST: Final = max(PRIORITIES.values())


@frozen
class Birth:
    """One delivery of a message that is about to be committed.

    state: LEASED (to us, by the same commit), READY or HELD. until: the lease's end.
    """

    id: int
    message: QueueId
    way: NewDelivery
    state: State
    held_by: str
    until: float

    def row(self, message: Sequence[Value], holder: int) -> tuple[Value, ...]:
        """Return its row, in the order of the statement. message: the row of its message."""
        way = self.way
        leased = self.state is State.LEASED
        _, _, priority, accepted, expires, *_ = message
        return (
            self.id,
            self.message,
            way.mailbox.upstream,
            way.mailbox.mailbox,
            way.header_from,
            way.set_from,
            int(way.reply_to_original),
            _json_list(way.recipients),
            priority,
            expires,
            CODES[self.state],
            int(leased),
            accepted,
            self.held_by,
            holder if leased else None,
            accepted if leased else None,
            self.until if leased else None,
        )

    def lease(self, message: NewMessage, content: bytes | None) -> Lease:
        """Return the lease it was born with. content: None when it is in a file."""
        return Lease(
            delivery=self.id,
            message=self.message,
            fence=1,
            attempt=1,
            mailbox=self.way.mailbox,
            sender=message.sender,
            recipients=self.way.recipients,
            header_from=self.way.header_from,
            set_from=self.way.set_from,
            reply_to_original=self.way.reply_to_original,
            priority=_rank(message.priority),
            accepted_at=message.accepted_at,
            expires_at=message.expires_at,
            size_bytes=message.size_bytes,
            device=message.device,
            session=message.session,
            content=content,
            expires_boottime=self.until,
        )


@frozen
class Accept(Operation[None]):
    """Insert a message; its rows are in the order of the statements above."""

    id: QueueId
    message: Sequence[Value]
    content: Sequence[Value]
    deliveries: Sequence[Sequence[Value]]
    born: Sequence[int]  # deliveries that are LEASED from the start
    held: Sequence[Birth] = ()  # and those that are HELD by a Hold there was a moment ago

    def run(self, batch: Transaction) -> None:
        """Insert this one alone."""
        accept_all(batch, [self])

    def undo(self) -> Undo:
        """Return what takes this back."""
        return Undo(self.id, tuple(self.born))


def accept_all(batch: Transaction, accepts: Sequence[Accept]) -> None:
    """Insert them all."""
    if not accepts:
        return
    batch.bulk(_MESSAGE, [one.message for one in accepts])
    batch.bulk(_CONTENT, [one.content for one in accepts])
    batch.bulk(_DELIVERY, [row for one in accepts for row in one.deliveries])
    for one in accepts:
        for birth in one.held:
            _hold_as_now(batch, birth)
    octets = sum(len(one.content[3]) for one in accepts if isinstance(one.content[3], bytes))
    batch.effects.pages += octets // _PAGE + len(accepts) // 2 + 6


def _hold_as_now(batch: Transaction, birth: Birth) -> None:
    """Set a delivery free whose Hold went before it came: nothing else ever would."""
    cause = batch.holds.get((*birth.way.mailbox, birth.way.header_from), "")
    if cause != birth.held_by:
        batch.run(
            "UPDATE delivery SET state = ?, held_by = ? WHERE id = ?",
            CODES[State.HELD if cause else State.READY],
            cause,
            birth.id,
        )


@frozen
class Undo(Operation[bool]):
    """Take back a message whose client was told 451; False if somebody delivers it already.

    Then it stays, and will arrive twice: once now, once when the client tries again.

    born: its deliveries that were born leased to us; nobody was told of them.
    """

    message: QueueId
    born: tuple[int, ...] = ()

    def run(self, batch: Transaction) -> bool:
        """Remove what nobody but us has had in hand."""
        ids = sibling_values(self.message)
        born = f"state = 3 AND fence = 1 AND id IN ({marks(len(self.born))})"
        own = f"(state <= 2 AND fence = 0 OR {born})"
        batch.run(f"DELETE FROM delivery WHERE id IN {SIBLINGS} AND {own}", *ids, *self.born)
        if batch.scalar(f"SELECT 1 FROM delivery WHERE id IN {SIBLINGS}", *ids) is not None:
            return False
        batch.run("DELETE FROM content WHERE id = ?", self.message)
        batch.run("DELETE FROM message WHERE id = ?", self.message)
        batch.effects.dropped.append(self.message)
        return True


def _json_list(texts: Sequence[str]) -> str:
    """Return json.dumps of it, in a third of the time."""
    return f"[{', '.join(map(encode_basestring_ascii, texts))}]"


def _rank(priority: int) -> int:
    return min(max(priority, 0), _LOWEST)


def _text(value: str) -> str:
    """Return what SQLite can store; a peer may have sent anything."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")


def message_row(draft: QueueId, message: NewMessage) -> tuple[Value, ...]:
    """Return a message's row, in the order of the statement."""
    texts = (
        message.sender,
        message.message_id,
        message.subject,
        message.helo,
        message.device,
        message.user,
    )
    if not "".join(texts).isascii():
        texts = tuple(map(_text, texts))  # type: ignore[assignment]  # of the same length
    sender, message_id, subject, helo, device, user = texts
    priority = message.priority
    return (
        draft,
        sender,
        priority if 0 <= priority <= _LOWEST else _rank(priority),
        micros(message.accepted_at),
        micros(message.expires_at),
        message.size_bytes,
        message.body_sha256,
        message_id,
        subject,
        message.session,
        message.listener,
        message.ip,
        helo,
        device,
        user,
    )
