"""`relayd explain CODE`: what an AADSTS, Graph or SMTP code means, and what to do.

One source with the relay itself: the tables it decides by (identity.aadsts, deliver.catalogue),
and a row here for every refusal in smtp.replies and every hold of our own. Codes may be pasted as
they stand in a log: "AADSTS7000215: Invalid client secret", "HTTP 429",
"550 5.7.1 Relaying denied".
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from typing import Final

from relayd.cli import main as command_line
from relayd.cli import terminal
from relayd.deliver import catalogue
from relayd.deliver.catalogue import Verdict
from relayd.deliver.outcome import Answer
from relayd.identity import aadsts
from relayd.spool import moves

_EPILOG: Final = """\
examples:
  relayd explain AADSTS7000215          Entra: from the log, or `relayd status`
  relayd explain ErrorAccessDenied      Graph
  relayd explain 429 503                Graph, by HTTP status
  relayd explain entra-unreachable      a cause that relayd names itself
  relayd explain 550 5.7.1              what relayd answered a device

exit: 0 explained, 1 unknown code"""

_AADSTS: Final = re.compile(r"\bAADSTS(\d{4,9})\b", re.IGNORECASE)
_SMTP: Final = re.compile(r"\b([245]\d\d)[ -]([245]\.\d{1,3}\.\d{1,3})\b")
_ENHANCED: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")

_TRANSCRIPT: Final = "look at the transcript in `session.closed` in the log"

SMTP: Final[Mapping[str, tuple[str, str]]] = {
    "421 4.3.0": (
        "no worker served at that time, or something failed before the session began",
        "relayd status tells why now; of then the log has `relay.unavailable` or `session.bug`",
    ),
    "421 4.3.2": (
        "too many connections, or relayd is stopping",
        "if relayd was not stopped or reloaded then: raise [limits] max_connections",
    ),
    "421 4.4.2": (
        "the client was silent for too long, or sent too slowly",
        "look at its network; [limits] idle_timeout, data_timeout and min_data_rate are the limits",
    ),
    "421 4.7.0": (
        "too many connections from one device, or too many errors in one session",
        "see `session.closed` in the log; [limits] max_connections_per_device and max_errors",
    ),
    "450 4.7.1": (
        "the device sends more than its limits allow",
        "find out why; if it is right so, raise `limits` of the [[device]]",
    ),
    "451 4.3.0": (
        "something failed here; nothing was kept, the device has to send it again",
        "look at the log at that time; `relayd status` shows the last errors",
    ),
    "451 4.3.5": (
        "no upstream is configured yet",
        "relayd setup asks for what it needs and writes it; the steps stand in docs/first-run.md",
    ),
    "452 4.3.1": (
        "the spool's disk is too full to take mail",
        "free space there (df -h /var/spool/relayd, df -i); [limits] min_free_disk is the limit",
    ),
    "452 4.5.3": (
        "too many recipients in one message",
        "the device sends the rest by itself, or raise [limits] max_recipients",
    ),
    "454 4.7.0": (
        "TLS or logins cannot be done for the moment",
        "look for `certificate.refused` and `auth.failed` in the log",
    ),
    "500 5.5.2": ("a line that is no SMTP command", _TRANSCRIPT),
    "500 5.5.6": ("a login longer than any can be", _TRANSCRIPT),
    "501 5.1.3": ("a recipient address that cannot be read", "correct it in the device"),
    "501 5.1.7": ("a sender address that cannot be read", "correct it in the device"),
    "501 5.5.2": ("a command or login with octets that do not belong there", _TRANSCRIPT),
    "501 5.5.4": ("a command without what it needs, or with too much", _TRANSCRIPT),
    "501 5.7.0": ("the device broke its login off", "try again; then look at the device's log"),
    "502 5.5.1": (
        "a command this listener does not offer, such as AUTH or STARTTLS",
        "set `auth` and `tls` of the [[listener]], or turn it off in the device",
    ),
    "503 5.5.1": ("commands in the wrong order", _TRANSCRIPT),
    "504 5.5.4": (
        "a way to log in that is not offered",
        "set the device to PLAIN or LOGIN (sometimes called password or basic)",
    ),
    "521 5.5.2": (
        "a CR or LF stood alone in the message, on a strict listener",
        'use a listener with profile = "device" for that client',
    ),
    "530 5.7.0": (
        "login, or STARTTLS before it, is needed",
        "add a [[device]] with this address in its networks, or log in: relayd user add NAME",
    ),
    "535 5.7.8": (
        "wrong name or password",
        "`auth.failed` in the log says which; a new password: relayd user passwd NAME",
    ),
    "538 5.7.11": (
        "a password in the clear is not taken on this listener",
        "turn STARTTLS on in the device, or set auth_without_tls = true on that [[listener]] only",
    ),
    "550 5.5.2": (
        "a CR or LF stood alone in the message, on a strict listener",
        'use a listener with profile = "device" for that client',
    ),
    "550 5.7.1": (
        "this device may not send to that recipient, or not at all",
        "`message.refused` in the log names the rule; networks or allow_to of the [[device]]",
    ),
    "552 5.3.4": (
        "the message is larger than its way out carries",
        "send it smaller (scan at a lower resolution); [limits] max_message_size is the limit",
    ),
    "553 5.6.7": (
        "an address with letters Microsoft 365 has no mailbox for",
        "use an address in ASCII",
    ),
    "553 5.7.1": (
        "this device may not use that sender",
        'allow_from of the [[device]], or on_foreign_sender = "rewrite" of the upstream',
    ),
    "554 5.4.0": (
        "the message goes round in a loop",
        "find who forwards it back to relayd: its Received lines tell",
    ),
    "554 5.5.0": (
        "the client does not speak SMTP, or talks before it is greeted",
        "look what runs at that address; a browser, a scanner of ports, a wrong port in a device",
    ),
    "554 5.5.1": (
        "no recipient was accepted, or TLS was asked for twice",
        "see the replies to RCPT before it: " + _TRANSCRIPT,
    ),
    "554 5.6.0": (
        "the header lines of the message are longer than can be read, 252 KiB in all",
        "look what the device writes there: To and Cc with thousands of names are the usual cause",
    ),
    "555 5.5.4": (
        "a parameter of MAIL or RCPT that is not offered",
        "the device asks for more than EHLO offered; " + _TRANSCRIPT,
    ),
}
"""Code and enhanced code -> (meaning, what to do)."""

HELD: Final[Mapping[str, tuple[str, str]]] = {
    moves.OPERATOR: (
        "an operator keeps the message back (relayd queue hold)",
        "relayd queue release ID",
    ),
    moves.CORRUPT: (
        "the spool cannot give the message back: its content is damaged or gone",
        "look at the disk; have the device send it again, then relayd queue delete ID",
    ),
    moves.AMBIGUOUS: (
        "the message may have been sent: no answer came, and `ambiguous` of the upstream says hold",
        "relayd queue show ID says what to look for in Sent Items; then release or delete it",
    ),
}
"""Why a message is held, where it is no code of Microsoft's -> (meaning, what to do)."""

_BY_ITSELF: Final = "Nothing: relayd tries again by itself."
_NOTHING: Final[Mapping[Verdict, str]] = {
    Verdict.DEFERRED: _BY_ITSELF,
    Verdict.BUSY: _BY_ITSELF,
    Verdict.DOWN: _BY_ITSELF,
    Verdict.AMBIGUOUS: "Nothing: `ambiguous` of the upstream says whether it is tried again or"
    " held.",
}
"""What to do where the table has no advice."""


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `explain`."""
    parser.epilog = _EPILOG
    parser.add_argument("code", metavar="CODE", nargs="+", help="as it stands in a log or a reply")
    parser.set_defaults(act=explain)


def explain(options: argparse.Namespace) -> int:
    """Say what a code means."""
    code = " ".join(options.code)
    found = meanings(code)
    # "550 5.7.1" is one code, "429 503" are two.
    are_codes = _SMTP.search(code) is None and all(map(meanings, options.code))
    for one in options.code:
        if are_codes or not one[:1].isdigit():
            found += [row for row in meanings(one) if row not in found]
    if options.json:
        terminal.print_json([{"code": c, "meaning": m, "do": d} for c, m, d in found])
        return command_line.OK if found else command_line.FAILED
    if not found:
        terminal.complain(_unknown(code))
        return command_line.FAILED
    for index, (name, meaning, action) in enumerate(found):
        before = "" if index == 0 else "\n"
        print(f"{before}{terminal.paint(name, 'bold')}: {meaning}")
        if action:
            print(f"  do: {action}")
    return command_line.OK


def _unknown(code: str) -> str:
    number = _AADSTS.search(code)
    if number is not None:
        page = f"https://login.microsoftonline.com/error?code={number[1]}"
        return f"AADSTS{number[1]} is not known here; Microsoft's own words: {page}"
    return (
        f"{code!r} is not known here; it takes AADSTS numbers, Graph's codes, HTTP statuses, SMTP"
        " replies and the causes that relayd names itself"
    )


def meanings(code: str) -> list[tuple[str, str, str]]:
    """Return (code, meaning, what to do) from every table that knows it."""
    text = code.strip()
    number = _AADSTS.search(text)
    if number is not None:
        text = f"AADSTS{number[1]}"
    elif text.upper().startswith("HTTP "):
        text = text[5:].strip()
    found: list[tuple[str, str, str]] = []
    entra = aadsts.explain(text)
    if entra is not None:
        name = f"AADSTS{text}" if text.isdecimal() else text
        found.append((name, entra.meaning, entra.action))
    graph = catalogue.explain(text)
    if graph is not None:
        action = graph.advice or _NOTHING.get(graph.verdict, "")
        found.append((graph.code or f"HTTP {text}", graph.words, action))
    if text.lower() in HELD:
        found.append((text.lower(), *HELD[text.lower()]))
    found += smtp_meanings(text)
    return found or _status(text)


def _status(text: str) -> list[tuple[str, str, str]]:
    """Return what an HTTP status means that is only in the table together with a code."""
    if not (text.isdecimal() and text.isascii() and 300 <= int(text) <= 599):
        return []
    row = catalogue.entry_for(Answer(status=int(text)))
    codes = [one.code for one in catalogue.ENTRIES if one.code and one.status == int(text)]
    action = f"the code beside it says more: {', '.join(codes)}" if codes else row.advice
    action = action or _NOTHING.get(row.verdict, "")
    return [(f"HTTP {text}", row.words, action)]


def smtp_meanings(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (code, meaning, what to do) of the refusals in a reply, a code or an enhanced code."""
    reply = _SMTP.search(text)
    wanted = f"{reply[1]} {reply[2]}" if reply is not None else text
    is_enhanced = _ENHANCED.fullmatch(wanted) is not None
    for name, (meaning, action) in SMTP.items():
        code, _, enhanced = name.partition(" ")
        if wanted in (name, code) or (is_enhanced and wanted == enhanced):
            yield name, meaning, action
