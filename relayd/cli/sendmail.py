"""sendmail, mailq and newaliases for the programs of this host: what relayd-mta installs.

The message goes by SMTP to the relay of this host, and is safe in its spool when the exit is 0.
There is no queue here: what the relay does not take is kept in dead.letter, said on standard
error and in the journal, and the exit code says whether to try again (75). Any user may call it;
nothing is setuid, nothing of the configuration is read but /etc/relayd/sendmail.conf.

Only the standard library, and of it only what a plain message needs: cron calls this often.

Source: sendmail(1) of Postfix for the options; sysexits.h; docs/sendmail.md.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from relayd.cli import submit
from relayd.cli.letter import Letter, Origin, finished, read
from relayd.cli.submit import Away, Mail, Outcome, Place, Refused, Reply

OK: Final = 0
USAGE: Final = 64
DATA: Final = 65
NO_USER: Final = 67
UNAVAILABLE: Final = 69
IO_ERROR: Final = 74
TEMPORARY: Final = 75
NO_PERMISSION: Final = 77
CONFIG: Final = 78

SETTINGS: Final = "/etc/relayd/sendmail.conf"
_DEFAULT: Final = (Place("127.0.0.1", 25), Place("::1", 25))
_MOST_OCTETS: Final = 200 * 10**6
_VALUED: Final = "ABCFLNORVXbefhopr"
"""Letters of options with a value, in the same word or the next."""

_SWITCHES: Final = "GImnitUv"
_PLAIN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+(?:@[A-Za-z0-9_.-]+)?")
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]")
_SETTING: Final = re.compile(r'relay\s*=\s*"?([^"#\s]+)"?\s*(?:#.*)?')


class Wrong(Exception):
    """What was asked for cannot be done; `code` to exit with."""

    def __init__(self, text: str, code: int = USAGE) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class Call:
    """What the options ask for. mode: the letter of -b. sender: None where none was given."""

    mode: str = "m"
    sender: str | None = None
    name: str = ""
    from_header: bool = False
    ends_at_dot: bool = True
    recipients: list[str] = field(default_factory=list)


def main(words: Sequence[str] | None = None) -> int:
    """Be sendmail, mailq or newaliases, by the name it was called; returns the exit code."""
    program, *rest = sys.argv if words is None else words
    name = os.path.basename(program)
    try:
        call = parse(rest)
        call.mode = {"mailq": "p", "newaliases": "i"}.get(name, call.mode)
        return _act(call)
    except Wrong as error:
        _say(str(error))
        return error.code
    except KeyboardInterrupt:
        return 130


def _act(call: Call) -> int:
    match call.mode:
        case "m":
            return _send(call)
        case "s":
            return _speak()
        case "v":
            return _verify(call)
        case "p":
            from relayd.cli.mailq import show  # noqa: PLC0415  no program that sends needs it

            return show(os.environ.get("RELAYD_CONFIG", ""))
        case "i":
            _say("relayd has no aliases and does not read /etc/aliases; nothing done")
            return OK
        case "q":
            _say("relayd tries again by itself; at once: relayd queue retry --state deferred")
            return OK
        case _:
            raise Wrong(f"-b{call.mode}: the mail server here is relayd: systemctl start relayd")


def _say(text: str) -> None:
    print(f"sendmail: {flat(text)}", file=sys.stderr)


def flat(text: str) -> str:
    """Return text that steers no terminal and breaks no line of a log or a mailbox file."""
    return "".join(c if c.isprintable() else "?" for c in text)


# ---- options


def parse(words: Sequence[str]) -> Call:
    """Read the command line as Postfix's sendmail does; raises Wrong."""
    call = Call()
    for letter, value in _options(words, call.recipients):
        if letter in "fr":
            call.sender = _address(value, "-" + letter)
        elif letter == "F":
            call.name = value
        elif letter == "t":
            call.from_header = True
        elif letter == "i" or (letter == "o" and value == "i"):
            call.ends_at_dot = False
        elif letter == "I":
            call.mode = "i"
        elif letter == "q":
            call.mode = "q"
        elif letter == "b":
            call.mode = value[:1]
        elif letter == "B" and value.upper() not in ("8BITMIME", "7BIT"):
            raise Wrong(f"-B{value}: it is 8BITMIME or 7BIT")
    return call


def _options(words: Sequence[str], others: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (letter, value) of each option; what is none goes into `others`."""
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            others += left
            return
        if len(word) < 2 or not word.startswith("-"):
            others.append(word)
            continue
        if word[1] == "q":  # its value, an interval or a site, is only ever in the same word
            yield "q", word[2:]
            continue
        for at, letter in enumerate(word[1:], 2):
            if letter in _VALUED:
                if at == len(word) and not left:
                    raise Wrong(f"option -{letter} needs a value")
                yield letter, word[at:] or left.pop(0)
                break
            if letter not in _SWITCHES:
                raise Wrong(
                    f"unknown option -{letter}; usage: sendmail [-t] [-i] [-f sender] recipient..."
                )
            yield letter, ""


def _address(text: str, what: str) -> str:
    """Return one address as SMTP wants it, "" for the null sender; raises Wrong."""
    inner = text.strip()
    if "<" in inner:
        inner = inner.partition("<")[2].partition(">")[0].strip()
    if not inner or _PLAIN.fullmatch(inner):
        return inner
    from relayd.message.address import parse_path  # noqa: PLC0415  few addresses need it

    try:
        return str(parse_path(inner))
    except ValueError as error:
        raise Wrong(f"{what} {text!r}: {error}") from None


def recipients_of(call: Call, letter: Letter) -> list[str]:
    """Return whom it goes to, each once; raises Wrong."""
    lists = [os.fsencode(word) for word in call.recipients]
    if call.from_header:
        lists += letter.recipients()
    found: dict[str, None] = {}
    for one in lists:
        for address in _addresses(one):
            found.setdefault(address)
    if not found:
        if call.from_header:
            raise Wrong("no recipient in To, Cc or Bcc of the message, nor in the arguments")
        raise Wrong("no recipient; usage: sendmail [-t] [-i] [-f sender] recipient...")
    return list(found)


def _addresses(octets: bytes) -> list[str]:
    text = octets.decode("utf-8", "replace")
    if _PLAIN.fullmatch(text):
        return [text]
    from relayd.message.address import parse_address_list  # noqa: PLC0415  few need it

    mailboxes = parse_address_list(octets)
    if not mailboxes and text.strip() and not text.strip().endswith((":;", ": ;")):
        raise Wrong(f"no address in {text!r}", DATA)
    return [str(mailbox.address) for mailbox in mailboxes]


# ---- where the relay is


def places() -> Sequence[Place]:
    """Return where to try: $RELAYD_SMTP, else sendmail.conf, else port 25 of this host."""
    given = os.environ.get("RELAYD_SMTP", "")
    if given:
        return [_place(given, "$RELAYD_SMTP")]
    try:
        with open(SETTINGS, encoding="utf-8", errors="replace") as stream:
            lines = [line.strip() for line in stream]
    except OSError:
        return _DEFAULT
    found = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            setting = _SETTING.fullmatch(line)
            if setting is None:
                raise Wrong(f'{SETTINGS}:{number}: write relay = "127.0.0.1:25"', CONFIG)
            found.append(_place(setting[1], f"{SETTINGS}:{number}"))
    return found or _DEFAULT


def _place(text: str, source: str) -> Place:
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise Wrong(f"{source}: {text!r} is not ADDRESS:PORT, such as 127.0.0.1:25", CONFIG)
    return Place(host.removeprefix("[").removesuffix("]"), int(port))


# ---- sending


def _send(call: Call) -> int:
    try:
        with open(0, "rb", closefd=False) as stream:  # sys.stdin is None where it was closed
            octets = stream.read(_MOST_OCTETS + 1)
    except OSError as error:
        raise Wrong(f"cannot read the message: {error.strerror}", IO_ERROR) from error
    if len(octets) > _MOST_OCTETS:
        raise Wrong(f"the message is larger than {_MOST_OCTETS} octets; not sent", DATA)
    letter = read(octets, ends_at_dot=call.ends_at_dot)
    origin = origin_of(call)
    content = finished(letter, origin)
    to: Sequence[str] = call.recipients
    try:
        to = recipients_of(call, letter)
        mail = Mail(origin.sender, to, content, is_8bit=letter.is_8bit)
        outcome = submit.submit(places(), mail)
    except Wrong as error:
        return _failed(origin, content, to, str(error), error.code)
    except Away as error:
        words = f"{error}; is it running? systemctl status relayd"
        if error.maybe_taken:
            words = f"{error} after it had all of it: it may have been taken; relayd queue list"
        return _failed(origin, content, to, words, TEMPORARY)
    except Refused as error:
        words = f"{error.reply} ({error.about}){advice(error.reply)}"
        return _failed(origin, content, to, words, code_of(error.reply, error.about))
    return _told(origin, content, outcome)


def _told(origin: Origin, content: bytes, outcome: Outcome) -> int:
    if not outcome.refused:
        return OK
    words = "; ".join(
        f"{recipient}: {reply}{advice(reply, recipient)}"
        for recipient, reply in outcome.refused.items()
    )
    reply = next(iter(outcome.refused.values()))
    code = NO_USER if outcome.ids else code_of(reply, "recipient")
    return _failed(origin, content, list(outcome.refused), words, code)


def origin_of(call: Call) -> Origin:
    """Return who calls, and from where."""
    user = _user()
    # SECURITY: $LOGNAME is the caller's to choose; the uid is not.
    # Directories other than /etc/passwd have names that are no local part: "LAN\\ann", "ann@lan".
    sender = call.sender if call.sender is not None else _UNFIT.sub("_", user.pw_name)
    host = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname()) or "localhost"
    now_s = time.time()  # noqa: TID251  nothing waits for it: it becomes the Date
    unique = f"{int(now_s)}.{os.getpid()}.{os.urandom(4).hex()}"
    gecos = user.pw_gecos.partition(",")[0].replace("&", user.pw_name.capitalize())
    return Origin(
        sender=sender, name=call.name or ("" if call.sender is not None else gecos),
        uid=os.getuid(), host=host, unique=unique, now_s=now_s,
    )  # fmt: skip


def _user() -> pwd.struct_passwd:
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid)
    except KeyError:  # a container, or a dynamic user that is gone
        return pwd.struct_passwd((f"uid{uid}", "x", uid, os.getgid(), "", "/nonexistent", ""))


def code_of(reply: Reply, about: str) -> int:
    """Return the exit code for a refusal; about: "relay", "sender", "recipient", "message"."""
    if reply.is_temporary:
        return TEMPORARY
    if reply.code == 530 or reply.text.startswith("5.7."):
        return NO_PERMISSION
    return {"recipient": NO_USER, "sender": DATA, "message": DATA}.get(about, UNAVAILABLE)


def advice(reply: Reply, recipient: str = "") -> str:
    """Return what to do about a refusal, with a blank before it; "" where there is nothing."""
    if reply.code == 530:
        return (
            '; this host is no [[device]] of the relay yet: name = "localhost",'
            ' networks = ["127.0.0.0/8", "::1/128"]; then relayd reload'
        )
    if recipient and "@" not in recipient and not reply.is_temporary:
        return f"; {recipient} has no domain: set [server] default_domain; then relayd reload"
    if reply.text.startswith("5.7.1"):
        return "; allow_to of the [[device]] for this host says who may be written to"
    if reply.text.startswith("4.3.5"):
        return "; the relay is not configured yet: relayd check"
    return ""


def _failed(
    origin: Origin, content: bytes, recipients: Sequence[str], words: str, code: int
) -> int:
    """Say it, note it in the journal, keep the message; returns `code`."""
    import syslog  # noqa: PLC0415  only here

    from relayd.cli import deadletter  # noqa: PLC0415

    to = flat(", ".join(recipients)[:1000]) or "nobody"
    words = flat(words)
    _say(f"not sent to {to}: {words}")
    stamp = f"{origin.sender or 'MAILER-DAEMON'} {time.ctime(origin.now_s)}"
    home = os.environ.get("HOME") or _user().pw_dir
    try:
        place = deadletter.keep(content, home=home, stamp=stamp, recipients=to, why=words)
        kept = f"the message is in {place}"
    except OSError as error:
        kept = f"the message could not be kept ({error.strerror}) and is lost here"
    _say(kept)
    syslog.openlog("relayd-sendmail", syslog.LOG_PID, syslog.LOG_MAIL)
    line = f"not sent: uid={origin.uid} from=<{origin.sender}> to={to}: {words}; {kept}"
    syslog.syslog(syslog.LOG_ERR, line)
    return code


# ---- -bs and -bv


def _speak() -> int:
    """Join standard input and output with the relay until one side has had enough."""
    import selectors  # noqa: PLC0415  only here

    try:
        relay = submit.connected(places())
    except Away as error:
        print("421 4.3.2 relayd is not running", end="\r\n", flush=True)
        _say(str(error))
        return TEMPORARY
    with relay, selectors.PollSelector() as selector:
        relay.settimeout(None)  # it ends what is silent for too long itself
        selector.register(relay, selectors.EVENT_READ)
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                octets = os.read(key.fd, 65536)
                if key.fileobj is relay:
                    if not octets:
                        return OK
                    os.write(sys.stdout.fileno(), octets)
                elif octets:
                    relay.sendall(octets)
                else:
                    selector.unregister(key.fileobj)
                    relay.shutdown(socket.SHUT_WR)


def _verify(call: Call) -> int:
    """Say of each recipient whether the relay would take it; send nothing."""
    recipients = recipients_of(call, Letter((), b""))
    try:
        answers = submit.verify(places(), origin_of(call).sender, recipients)
    except Away as error:
        raise Wrong(f"{error}; is it running? systemctl status relayd", TEMPORARY) from error
    except Refused as error:
        words = f"{error.reply} ({error.about}){advice(error.reply)}"
        raise Wrong(words, code_of(error.reply, error.about)) from error
    worst = OK
    for recipient, reply in answers.items():
        is_taken = 200 <= reply.code < 300
        what = "deliverable" if is_taken else f"not taken: {reply}{advice(reply, recipient)}"
        print(f"{recipient}... {what}")
        worst = worst if is_taken else max(worst, code_of(reply, "recipient"))
    return worst


if __name__ == "__main__":
    sys.exit(main())
