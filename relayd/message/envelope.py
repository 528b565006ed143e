"""What SMTP said about a message, as one frozen value that is replaced whole.

Sender and recipients come from MAIL and RCPT, never from headers. `Origin` is what the
relay saw of the client; it ends in the Received header, the log and the spool.

Source: RFC 5321 §2.3.1 (envelope and content), RFC 3848 (protocol names).
"""

from __future__ import annotations

from relayd.message.address import Address
from relayd.values import frozen


@frozen(kw_only=True)
class Origin:
    """Who handed the message in.

    session:  session id, as in the log.
    ip:       peer address as text, "::ffff:" folded away.
    helo:     what the client called itself; untrusted, bounded, not yet escaped.
    device:   name of the [[device]] that matched; "" if none.
    user:     name of the [[user]] logged in; "" if none.
    protocol: "SMTP", "ESMTP", "ESMTPS", "ESMTPA", "ESMTPSA", "UTF8SMTP…" (RFC 3848).
    """

    session: str
    listener: str
    ip: str
    helo: str
    device: str
    user: str
    protocol: str


@frozen(kw_only=True)
class Envelope:
    """One transaction's envelope. sender: None for the null sender "<>"."""

    sender: Address | None
    recipients: tuple[Address, ...]
    origin: Origin
