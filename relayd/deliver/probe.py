"""Whether Microsoft would let this application send through a mailbox, without any mail.

The only permission relayd has is Mail.Send, and nothing that can be read with it tells. So a
sendMail is posted that names no recipient at all and is not to be saved: Exchange opens the
mailbox and judges the application before it looks at recipients, then refuses the message.

    400 ErrorInvalidRecipients   mailbox and permission are there; this is the good answer
    202                          likewise (never seen); nobody is named who could get it
    anything else                what it would mean for a mail, by deliver.catalogue

It cannot tell whether the mailbox may send as another From: only a real mail does.

Each such request after ErrorAccessDenied prolongs that refusal at Exchange: ask
`deliver.silence` first.

Source: learn.microsoft.com/graph/api/user-sendmail; Exchange ResponseCode list.
"""

from __future__ import annotations

import enum
import json
from typing import Final
from urllib.parse import quote

import urllib3

from relayd.clock import SYSTEM, Clock
from relayd.config.model import Config, Upstream
from relayd.deliver import catalogue
from relayd.deliver.outcome import Answer
from relayd.values import frozen

BODY: Final = json.dumps(
    {
        "message": {
            "subject": "relayd asks whether it may send",
            "body": {"contentType": "Text", "content": ""},
            "toRecipients": [],
        },
        "saveToSentItems": False,
    }
).encode("ascii")

DENIED: Final = "ErrorAccessDenied"
SENDER: Final = "sender"
_MAX_MAILBOXES: Final = 10
_GOOD: Final = frozenset({"errorinvalidrecipients"})
_MAX_BODY_BYTES: Final = 64 * 1024


class Verdict(enum.Enum):
    """What the answer says of the way out."""

    MAY_SEND = "may send"
    REFUSED = "refused"  #: an administrator must act
    UNKNOWN = "unknown"  #: busy, broken, or not reached: it says nothing about the permission


@frozen
class Probed:
    """The verdict, and the answer it was taken from (status 0: none came)."""

    verdict: Verdict
    answer: Answer

    @property
    def cause(self) -> str:
        """Return the code for `relayd explain`: Microsoft's own, else the status."""
        return self.answer.code or (f"HTTP {self.answer.status}" if self.answer.status else "")


def mailboxes(config: Config, upstream: Upstream) -> tuple[str, ...]:
    """Return through which mailboxes `upstream` sends, as far as the configuration names them.

    With mailbox = "sender" those are the senders without a wildcard; at most 10.
    """
    if upstream.mailbox != SENDER:
        named = upstream.mailbox_id or upstream.mailbox
        return (named,) if named else ()
    own = [one for one in (*config.device, *config.user) if one.upstream == upstream.name]
    senders = [text for one in own for text in (one.from_, one.default_from) if text]
    senders += [text for text in upstream.allowed_senders if "*" not in text and "@" in text]
    return tuple(dict.fromkeys(text.lower() for text in senders))[:_MAX_MAILBOXES]


def ask(
    pool: urllib3.PoolManager,
    graph_url: str,
    mailbox: str,
    token: str,
    *,
    timeout_s: float,
    clock: Clock = SYSTEM,
) -> Probed:
    """Post the message that names nobody; takes at most about `timeout_s`; raises ValueError.

    graph_url: such as "https://graph.microsoft.com/v1.0".
    token:     an access token; ValueError when it is no line of ASCII.
    """
    # SECURITY: a token is octets from outside; a line break in it would add headers.
    if not token.isascii() or not token.isprintable():
        raise ValueError("the access token is not one line of ASCII")
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Accept": "application/json",
        "User-Agent": "relayd",
    }
    began = clock.monotonic()
    try:
        response = pool.request(
            "POST",
            f"{graph_url.rstrip('/')}/users/{quote(mailbox, safe='@')}/sendMail",
            body=BODY,
            headers=headers,
            timeout=urllib3.Timeout(total=timeout_s),
            preload_content=False,
            retries=False,
        )
        try:
            octets = response.read(_MAX_BODY_BYTES, decode_content=True)
        finally:
            response.close()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        text = catalogue.bounded(str(error)) or type(error).__name__
        return Probed(Verdict.UNKNOWN, Answer(text=text))
    outcome = catalogue.classify(
        response.status,
        {name.lower(): value for name, value in response.headers.items()},
        octets,
        clock.monotonic() - began,
        now=clock.utcnow(),
    )
    return judged(outcome.answer)


def judged(answer: Answer) -> Probed:
    """Return what an answer to that message means."""
    row = catalogue.entry_for(answer)
    if answer.code.lower() in _GOOD or row.verdict is catalogue.Verdict.SENT:
        return Probed(Verdict.MAY_SEND, answer)
    refusals = (catalogue.Verdict.CONFIGURATION, catalogue.Verdict.TOKEN)
    return Probed(Verdict.REFUSED if row.verdict in refusals else Verdict.UNKNOWN, answer)
