"""`relayd send`: a test mail in through the running relay, followed to its end.

The relay's control socket becomes an SMTP session that speaks as a [[device]] or [[user]]: the
same desk, the same rules, the same spool and way out as for the device itself. Nothing of the
configuration is read here: members of relayd-admin need not be able to.
"""

from __future__ import annotations

import argparse
import contextlib
import email.policy
import mimetypes
import os
import smtplib
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from email.message import EmailMessage
from typing import Final, NamedTuple

from relayd.cli import daemon, terminal
from relayd.cli import main as command_line
from relayd.cli.daemon import ask, ask_each
from relayd.cli.explain import smtp_meanings
from relayd.master.client import NotRunning
from relayd.master.frames import VERSION, Decoder, Frame, Garbage, Json, encode

_WITHIN_S: Final = 60.0
_FOLLOW_S: Final = 60.0
_LOOK_S: Final = 0.25
_WRONG_USAGE: Final = 2
_EPILOG: Final = """\
examples:
  relayd send --to admin@contoso.com --wait
  relayd send --to admin@contoso.com --device ups --from ups@nas.local
  relayd send --to office@contoso.com --attach scan.pdf

exit: 0 queued, or with --wait sent (Microsoft took it);
      75 still queued after 60 s; 1 refused, failed or held; 69 not running"""


def add_send(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `send`."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--to", action="append", required=True, metavar="ADDR", help="recipient; may be given again"
    )
    parser.add_argument("--from", dest="from_", default="", metavar="ADDR", help="sender")
    parser.add_argument(
        "--device",
        default="",
        metavar="NAME",
        help="[[device]] or [[user]] to send as; default: the first",
    )
    parser.add_argument(
        "--subject", default="Test mail from relayd", metavar="TEXT", help="subject of the mail"
    )
    parser.add_argument(
        "--attach", action="append", default=[], metavar="FILE", help="file to go with it"
    )
    parser.add_argument("--at", default="", metavar="TIME", help="not available yet")
    parser.add_argument("--wait", action="store_true", help="follow it until Microsoft took it")
    parser.set_defaults(act=send)


def send(options: argparse.Namespace) -> int:
    """Send it, and follow it if asked."""
    problem = _problem(options)
    if problem:
        terminal.complain(problem)
        return _WRONG_USAGE
    try:
        octets = build(options).as_bytes(policy=email.policy.SMTP)
    except ValueError as error:
        terminal.complain(f"no mail can be made of this: {error}")
        return _WRONG_USAGE
    except OSError as error:
        terminal.complain(f"cannot attach {error.filename}: {error.strerror}")
        return command_line.FAILED
    device = options.device or _first_submitter(options)
    try:
        queue_id = _submit(options, device, octets)
    except smtplib.SMTPResponseException as error:
        return _refused(options, device, error)
    except (smtplib.SMTPException, OSError) as error:
        terminal.complain(f"the relay broke the session off ({error}); it may be restarting")
        return command_line.TEMPORARY
    if not options.wait:
        return _say(options, queue_id, _Standing("queued", "", "", command_line.OK))
    if sys.stderr.isatty():
        print(f"{queue_id}: queued; waiting for Microsoft", file=sys.stderr)
    return _follow(options, queue_id)


def _problem(options: argparse.Namespace) -> str:
    if options.at:
        return "--at is not available yet; send it now, or by cron"
    for address in (*options.to, options.from_):
        if not address.isascii() or not address.isprintable():
            return f"{address}: Microsoft 365 has no mailbox with such letters; use ASCII"
    return ""


def _first_submitter(options: argparse.Namespace) -> str:
    for page in ask_each(options, {"command": "devices"}):
        rows = page.get("devices")
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, Mapping):
                return str(row.get("name"))
    terminal.complain(
        "no [[device]] and no [[user]] is configured: nobody may send;"
        " next step: relayd setup, or relayd device add"
    )
    raise SystemExit(command_line.FAILED)


def build(options: argparse.Namespace) -> EmailMessage:
    """Return the message; raises OSError for an attachment that cannot be read, ValueError."""
    message = EmailMessage()
    if options.from_:
        message["From"] = options.from_
    message["To"] = ", ".join(options.to)
    message["Subject"] = options.subject
    message.set_content(f"Sent by `relayd send` on {socket.gethostname()}.\n")
    for path in options.attach:
        kind = (mimetypes.guess_type(path)[0] or "application/octet-stream").split("/")
        with open(path, "rb") as stream:
            octets = stream.read()
        name = os.path.basename(path)
        message.add_attachment(octets, maintype=kind[0], subtype=kind[1], filename=name)
    return message


# ---- in


def _submit(options: argparse.Namespace, device: str, octets: bytes) -> str:
    """Hand it in; returns the queue id. raises: SMTPResponseException - refused."""
    # No QUIT: its answer changes nothing any more, and is 421 if the relay is leaving by then.
    with contextlib.closing(_smtp(options, device)) as client:
        _expect(250, *client.mail(options.from_))
        for address in options.to:
            _expect(250, *client.rcpt(address))
        _, text = _expect(250, *client.data(octets))
        return text.decode("ascii", "replace").rpartition(" ")[2]


def _expect(wanted: int, code: int, text: bytes) -> tuple[int, bytes]:
    if code != wanted:
        raise smtplib.SMTPResponseException(code, text)
    return code, text


def _smtp(options: argparse.Namespace, device: str) -> smtplib.SMTP:
    """Return an SMTP client on the control socket; exits with words when that fails."""
    path = daemon.control_path(options.config)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(_WITHIN_S)
    try:
        sock.connect(path)
        sock.sendall(encode({"v": VERSION, "command": "smtp", "device": device}))
        reply = _reply(sock)
    except (OSError, Garbage) as error:
        sock.close()
        is_allowed = not isinstance(error, PermissionError)
        away = NotRunning(f"{path}: {error}", permitted=is_allowed)
        raise SystemExit(daemon.not_running(away)) from error
    if reply.get("ok") is not True:
        sock.close()
        terminal.complain(str(reply.get("error")))
        code = reply.get("exit")
        raise SystemExit(code if isinstance(code, int) else command_line.FAILED)
    client = smtplib.SMTP(local_hostname="relayd.send")
    client.sock = sock
    client.file = None
    try:
        _expect(220, *client.getreply())
        client.ehlo()
    except BaseException:
        client.close()
        raise
    return client


def _reply(sock: socket.socket) -> Frame:
    """Read exactly the one frame: what follows is SMTP."""
    decoder = Decoder()
    while True:
        octet = sock.recv(1)
        if not octet:
            raise ConnectionError("closed without an answer")
        frames = decoder.feed(octet)
        if frames:
            return frames[0]


def _refused(options: argparse.Namespace, device: str, error: smtplib.SMTPResponseException) -> int:
    text = error.smtp_error
    words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    reply = f"{error.smtp_code} {words}"
    if options.json:
        return _say(options, "", _Standing("refused", reply, "", command_line.FAILED))
    terminal.complain(f"refused as {device}: {reply}")
    for _, meaning, action in smtp_meanings(f"{error.smtp_code} {words.partition(' ')[0]}"):
        print(f"  {meaning}\n  do: {action}", file=sys.stderr)
    return command_line.FAILED


# ---- out


class _Standing(NamedTuple):
    """Where a message stands; state "" while that may change. code: what to exit with."""

    state: str
    why: str
    do: str
    code: int


def _follow(options: argparse.Namespace, queue_id: str) -> int:
    deadline = time.monotonic() + _FOLLOW_S
    while True:
        standing = _standing(ask(options, {"command": "queue.show", "id": queue_id}))
        if not standing.state and time.monotonic() >= deadline:
            standing = standing._replace(state="queued")
        if standing.state:
            return _say(options, queue_id, standing)
        time.sleep(_LOOK_S)


def _standing(story: Frame) -> _Standing:
    rows = story.get("deliveries")
    ways = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    states = {str(row.get("state")) for row in ways}
    why = _joined(row.get("why") for row in ways)
    do = _joined(row.get("do") for row in ways)
    if states == {"sent"}:
        is_whole = not any(_failures(row.get("results")) for row in ways)
        return _Standing("sent", why, do, command_line.OK if is_whole else command_line.FAILED)
    for state in ("failed", "held"):
        if state in states:
            return _Standing(state, why, do, command_line.FAILED)
    return _Standing("", why, do, command_line.TEMPORARY)


def _failures(results: Json) -> bool:
    return isinstance(results, Mapping) and any(results.values())


def _joined(words: Iterable[Json]) -> str:
    return " ".join(dict.fromkeys(str(word) for word in words if word))


def _say(options: argparse.Namespace, queue_id: str, standing: _Standing) -> int:
    state, why, do, code = standing
    if options.json:
        terminal.print_json({"id": queue_id, "state": state, "why": why, "do": do})
        return code
    print(f"{queue_id}: {state}" + (f" - {terminal.safe(why)}" if why else ""))
    if do:
        print(f"  do: {terminal.safe(do)}")
    return code
