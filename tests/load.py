"""Devices that never stop sending, and remember exactly what they were promised.

Each message bears `X-Load-Id` and a body of its own; `acknowledged` has the SHA-256 of the
body of every message that got its 250, and nothing else. A sender that loses its connection
sends a *new* message next, as devices do: nothing is sent twice from here.

What goes wrong is told apart: `broken` is a connection refused, reset or ended where it must
not be; `goodbyes` counts 421 before MAIL, which RFC 5321 §3.8 allows at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import smtplib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from tests.sandbox_client import SandboxClient


class Goodbye(Exception):
    """421 where nothing of ours was under way."""


@dataclass
class Load:
    """Senders in threads.

    port, host: SMTP. source: the address they come from, "" any; another one is another device.
    sizes:      octets of body, drawn from these.
    per_sender: messages each, 0 until `stop`.
    name:       begins every X-Load-Id, where two loads write to one sandbox.
    took_s:     from MAIL to 250, of each acknowledged message.
    """

    port: int
    senders: int = 4
    sizes: tuple[int, ...] = (400, 2_000, 20_000, 150_000)
    pause_s: float = 0.01
    new_connection_each: bool = False
    recipients: tuple[str, ...] = ("ops@contoso.com",)
    tolerate_outage: bool = True
    host: str = "127.0.0.1"
    source: str = ""
    sender: str = "device@contoso.com"
    name: str = ""
    per_sender: int = 0
    acknowledged: dict[str, str] = field(default_factory=dict)
    queue_ids: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    goodbyes: list[str] = field(default_factory=list)
    greetings: list[str] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin."""
        for number in range(self.senders):
            thread = threading.Thread(target=self._send_on, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Let every sender finish its message; may be called twice."""
        self._stop.set()
        self._join(60)

    def wait(self, *, seconds: float = 300) -> None:
        """Wait until every sender has sent its `per_sender` messages."""
        assert self.per_sender, "these senders never end by themselves"
        self._join(seconds)

    def _join(self, seconds: float) -> None:
        for thread in self._threads:
            thread.join(seconds)
            assert not thread.is_alive(), f"a sender hangs: no reply within {seconds:g} s"

    def _send_on(self, number: int) -> None:
        dice = random.Random(number)
        client: smtplib.SMTP | None = None
        count = 0
        while not self._stop.is_set():
            name = f"{self.name}{number}-{count}"
            count += 1
            try:
                if client is None:
                    client = self._connect()
                self._send(client, name, dice)
            except (OSError, smtplib.SMTPException, Goodbye) as error:
                self._note(error, client)
                if client is not None:
                    client.close()
                client = None
                self._stop.wait(0.05)
            if self.new_connection_each:
                _leave(client)
                client = None
            if self.per_sender and count >= self.per_sender:
                break
            self._stop.wait(self.pause_s)
        _leave(client)

    def _connect(self) -> smtplib.SMTP:
        source = (self.source, 0) if self.source else None
        client = smtplib.SMTP(local_hostname="device.test", timeout=60, source_address=source)
        try:
            code, text = client.connect(self.host, self.port)
            self.greetings.append(text.decode())
            _judge(code, text, 220)
            _judge(*client.ehlo(), 250)
        except BaseException:
            client.close()
            raise
        return client

    def _send(self, client: smtplib.SMTP, name: str, dice: random.Random) -> None:
        content, digest = letter(
            name, dice, dice.choice(self.sizes), sender=self.sender, recipients=self.recipients
        )
        began = time.monotonic()
        code, text = client.mail(self.sender)
        if code == 421:
            raise Goodbye(text.decode())
        if code == 250:
            for recipient in self.recipients:
                client.rcpt(recipient)
            code, text = client.data(content)
        if code == 250:
            self.acknowledged[name] = digest
            self.took_s.append(time.monotonic() - began)
            self.queue_ids[name] = text.decode().rpartition(" ")[2]
        else:
            self.refused.append(f"{code} {text!r}")

    def _note(self, error: Exception, client: smtplib.SMTP | None) -> None:
        if isinstance(error, Goodbye):
            self.goodbyes.append(str(error))
            return
        where = "connect" if client is None else "session"
        self.broken.append(f"{where}: {type(error).__name__}: {error}")


def letter(
    name: str, dice: random.Random, size: int, *, sender: str, recipients: tuple[str, ...]
) -> tuple[bytes, str]:
    """Return a message whose X-Load-Id is `name`, and the SHA-256 of its body."""
    text = dice.randbytes(size * 3 // 8).hex()
    body = "".join(f"{text[i : i + 76]}\r\n" for i in range(0, len(text), 76)).encode()
    head = (
        f"From: {sender}\r\nTo: {', '.join(recipients)}\r\n"
        f"Subject: load {name}\r\nX-Load-Id: {name}\r\n\r\n"
    )
    return head.encode() + body, hashlib.sha256(body).hexdigest()


def submit(
    port: int,
    name: str,
    *,
    sender: str = "device@contoso.com",
    recipients: tuple[str, ...] = ("ops@contoso.com",),
    size: int = 400,
    source: str = "",
) -> str:
    """Have one message accepted, over a connection of its own; returns its queue ID.

    raises: smtplib.SMTPException when it is refused, or one of its recipients is.
    """
    origin = (source, 0) if source else None
    with smtplib.SMTP(
        "127.0.0.1", port, "device.test", timeout=60, source_address=origin
    ) as client:
        client.ehlo()
        content, _ = letter(name, random.Random(name), size, sender=sender, recipients=recipients)
        code, text = client.mail(sender)
        for recipient in recipients:
            if code == 250:
                code, text = client.rcpt(recipient)
        if code == 250:
            code, text = client.data(content)
        if code != 250:
            raise smtplib.SMTPResponseException(code, text)
        return text.decode().rpartition(" ")[2]


@dataclass(frozen=True)
class Verdict:
    """What became of promises. twice: X-Load-Id -> how often it came, more than once."""

    lost: list[str]
    damaged: list[str]
    twice: dict[str, int]


def verdict(acknowledged: Mapping[str, str], client: SandboxClient) -> Verdict:
    """Compare what was promised with what came."""
    arrived: dict[str, list[str]] = {}
    for one in client.messages():
        arrived.setdefault(one.x_field("X-Load-Id"), []).append(one.body_sha256)
    return Verdict(
        lost=[name for name in acknowledged if name not in arrived],
        damaged=[
            name
            for name, digest in acknowledged.items()
            if any(one != digest for one in arrived.get(name, []))
        ],
        twice={n: len(arrived[n]) for n in acknowledged if len(arrived.get(n, [])) > 1},
    )


def _judge(code: int, text: bytes, wanted: int) -> None:
    if code == 421:
        raise Goodbye(text.decode())
    if code != wanted:
        raise smtplib.SMTPResponseException(code, text)


def _leave(client: smtplib.SMTP | None) -> None:
    if client is not None:
        with contextlib.suppress(OSError, smtplib.SMTPException):
            client.quit()
        client.close()


def run_for(load: Load, seconds: float) -> None:
    """Load for that long, with nothing else happening."""
    load.start()
    time.sleep(seconds)
    load.stop()
