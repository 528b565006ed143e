"""`relayd send`: a test mail in through the running relay, followed to its end.

The relay's control socket becomes an SMTP session that speaks as a [[device]] or [[user]]: the
same desk, the same rules, the same spool and way out as for the device itself. Which one, if none
is named, is asked of the relay: the first that may send this mail. Nothing of the configuration is
read here: members of relayd-admin need not be able to.
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
from collections.abc import Iterable, Mapping, Sequence
from email.message import EmailMessage
from typing import Final, NamedTuple

from relayd.cli import daemon, terminal
from relayd.cli import main as command_line
from relayd.cli.answers import mapping_of, rows_of, text_of
from relayd.cli.daemon import ask, ask_each
from relayd.cli.explain import smtp_meanings
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.frames import VERSION, Decoder, Frame, Garbage, Json, encode

_WITHIN_S: Final = 60.0
_FOLLOW_S: Final = 60.0
_LOOK_S: Final = 0.25
_WRONG_USAGE: Final = 2
_MOST_NAMES: Final = 5
_EPILOG: Final = """\
examples:
  relayd send --to admin@contoso.com --wait
  relayd send --to admin@contoso.com --device ups --from ups@nas.local
  relayd send --to office@contoso.com --attach scan.pdf

exit: 0 queued, or with --wait sent (Microsoft took it);
      75 still queued after 60 s; 1 refused, failed, held or deleted;
      69 not running"""


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
        help="[[device]] or [[user]] to send as; default: the first that may send this",
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
    mail = _described(options, len(octets))
    device = options.device or _chosen(options, mail)
    if not device:
        return command_line.FAILED
    try:
        queue_id = _submit(options, device, octets)
    except smtplib.SMTPResponseException as error:
        return _refused(options, device, error, mail)
    except (smtplib.SMTPException, OSError) as error:
        terminal.complain(f"the relay broke the session off ({error}); it may be restarting")
        return command_line.TEMPORARY
    if not options.wait:
        return _say(options, queue_id, device, _Standing("queued", "", "", command_line.OK))
    if sys.stderr.isatty():
        print(f"{queue_id}: queued; waiting for Microsoft", file=sys.stderr)
    return _follow(options, queue_id, device)


def _problem(options: argparse.Namespace) -> str:
    if options.at:
        return "--at is not available yet; send it now, or by cron"
    for address in (*options.to, options.from_):
        if not address.isascii() or not address.isprintable():
            return f"{address}: Microsoft 365 has no mailbox with such letters; use ASCII"
    return ""


# ---- as whom


def _described(options: argparse.Namespace, size: int) -> Frame:
    """Return the question who may send this mail."""
    return {"command": "devices", "to": options.to, "from": options.from_, "size": size}


def _submitters(options: argparse.Namespace, mail: Frame) -> list[Frame]:
    """Return who there is; "refusal" says why the relay would not take this mail from one."""
    return [row for page in ask_each(options, mail) for row in rows_of(page.get("devices"))]


def _chosen(options: argparse.Namespace, mail: Frame) -> str:
    """Return the first that may send it, and say so; "" where nobody may, which is told too."""
    there = _submitters(options, mail)
    if not there:
        terminal.complain(
            "no [[device]] and no [[user]] is configured: nobody may send;"
            " next step: relayd setup, or relayd device add"
        )
        raise SystemExit(command_line.FAILED)
    # A relay of an older version tells no refusal: then the first is tried.
    may = [text_of(row.get("name")) for row in there if not row.get("refusal")]
    if not may:
        _say_nobody(options, there)
        return ""
    if not options.json:
        kind = next(text_of(row.get("kind")) for row in there if row.get("name") == may[0])
        terminal.complain(f"speaking as [[{kind}]] {may[0]}{_others(may[1:], len(there))}")
    return may[0]


def _others(may: Sequence[str], count: int) -> str:
    """Return who else could be named, as the end of a sentence."""
    if may:
        more = f" and {len(may) - _MOST_NAMES} more" if len(may) > _MOST_NAMES else ""
        return f"; as another: --device NAME ({', '.join(may[:_MOST_NAMES])}{more})"
    return f", the only one of {count} that may send this" if count > 1 else ""


def _say_nobody(options: argparse.Namespace, there: Sequence[Frame]) -> None:
    """Say why not, as of the first one; the others are named."""
    name, refusal = text_of(there[0].get("name")), mapping_of(there[0].get("refusal"))
    reply = text_of(refusal.get("reply"))
    if options.json:
        _say(options, "", name, _refusal_standing(reply, refusal))
        return
    others = f" (nor {_others_named(there[1:])})" if there[1:] else ""
    terminal.complain(f"{name} may not send this{others}: {reply}")
    _explain(refusal)


def _others_named(rows: Sequence[Frame]) -> str:
    names = [text_of(row.get("name")) for row in rows]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _explain(refusal: Frame) -> None:
    """Say which rule decided and the setting that would let it in, as explain-access does."""
    print(f"  {terminal.safe(text_of(refusal.get('why')))}", file=sys.stderr)
    if refusal.get("do"):
        print(f"  do: {terminal.safe(text_of(refusal.get('do')))}", file=sys.stderr)


def _refusal_of(options: argparse.Namespace, device: str, mail: Frame) -> Frame:
    """Return why the relay does not take this mail from `device`; empty where it says nothing."""
    path, within_s = daemon.control_path(options.config), daemon.ANSWER_WITHIN_S
    try:
        replies = [*client.stream(path, mail, timeout_s=within_s, is_each=True)]
    except NotRunning:  # it may be stopping, which the reply said already
        return {}
    pages = (mapping_of(one.get("result")) for one in replies)
    rows = (row for page in pages for row in rows_of(page.get("devices")))
    return next((mapping_of(row.get("refusal")) for row in rows if row.get("name") == device), {})


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
    with contextlib.closing(_smtp(options, device)) as smtp:
        if options.device and not options.json:
            terminal.complain(f"speaking as {device}")
        _expect(250, *smtp.mail(options.from_))
        for address in options.to:
            _expect(250, *smtp.rcpt(address))
        _, text = _expect(250, *smtp.data(octets))
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
        raise SystemExit(daemon.not_running(away, options.config)) from error
    if reply.get("ok") is not True:
        sock.close()
        terminal.complain(str(reply.get("error")))
        code = reply.get("exit")
        raise SystemExit(code if isinstance(code, int) else command_line.FAILED)
    smtp = smtplib.SMTP(local_hostname="relayd.send")
    smtp.sock = sock
    smtp.file = None
    try:
        _expect(220, *smtp.getreply())
        smtp.ehlo()
    except BaseException:
        smtp.close()
        raise
    return smtp


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


def _refused(
    options: argparse.Namespace, device: str, error: smtplib.SMTPResponseException, mail: Frame
) -> int:
    text = error.smtp_error
    words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    reply = f"{error.smtp_code} {words}"
    # A session knows more than the rules (a relay that stops); where they agree, they say why.
    refusal = _refusal_of(options, device, mail)
    if refusal.get("reply") != reply:
        refusal = {}
    if options.json:
        return _say(options, "", device, _refusal_standing(reply, refusal))
    terminal.complain(f"refused as {device}: {reply}")
    if refusal:
        _explain(refusal)
        return command_line.FAILED
    for _, meaning, action in smtp_meanings(f"{error.smtp_code} {words.partition(' ')[0]}"):
        print(f"  {meaning}\n  do: {action}", file=sys.stderr)
    return command_line.FAILED


def _refusal_standing(reply: str, refusal: Frame) -> _Standing:
    return _Standing("refused", reply, text_of(refusal.get("do")), command_line.FAILED)


# ---- out


class _Standing(NamedTuple):
    """Where a message stands; state "" while that may change. code: what to exit with."""

    state: str
    why: str
    do: str
    code: int


def _follow(options: argparse.Namespace, queue_id: str, device: str) -> int:
    deadline = time.monotonic() + _FOLLOW_S
    while True:
        standing = _standing(ask(options, {"command": "queue.show", "id": queue_id}))
        if not standing.state and time.monotonic() >= deadline:
            standing = standing._replace(state="queued")
        if standing.state:
            return _say(options, queue_id, device, standing)
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
    for state in ("failed", "held", "deleted"):
        if state in states:
            return _Standing(state, why, do, command_line.FAILED)
    return _Standing("", why, do, command_line.TEMPORARY)


def _failures(results: Json) -> bool:
    return isinstance(results, Mapping) and any(results.values())


def _joined(words: Iterable[Json]) -> str:
    return " ".join(dict.fromkeys(str(word) for word in words if word))


def _say(options: argparse.Namespace, queue_id: str, device: str, standing: _Standing) -> int:
    state, why, do, code = standing
    if options.json:
        terminal.print_json(
            {"id": queue_id, "device": device, "state": state, "why": why, "do": do}
        )
        return code
    print(f"{queue_id}: {state}" + (f" - {terminal.safe(why)}" if why else ""))
    if do:
        print(f"  do: {terminal.safe(do)}")
    return code
