"""`relayd explain-access`: would this mail be let in, and which rule decides.

The rules are asked in the order in which a session meets them, and by the same code as the
relay's own (access.plan), on the configuration as it is on disk; so the answer cannot differ from
the relay's but where that runs with an older configuration, which is then said.

Nothing is connected to but control.sock, and no password is needed: --user takes it as given.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from relayd.access.networks import DeviceTable, fold_ip
from relayd.access.plan import NO_UPSTREAM, STRANGER, Plan, Planner, Refusal, let_in
from relayd.access.users import Users, path_in, read_users
from relayd.cli import main as command_line
from relayd.cli import terminal
from relayd.cli.answers import mapping_of, moment_of, number_of
from relayd.config.model import Config, Listener, Submitter, User
from relayd.config.partial import Seen, look
from relayd.errors import ConfigError
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.message.address import Address, parse_path
from relayd.message.envelope import Envelope, Origin
from relayd.smtp import replies
from relayd.smtp.replies import Reply
from relayd.spool.model import PRIORITIES
from relayd.values import frozen

_WRONG_USAGE: Final = 2
_QUICK_S: Final = 2.0
_EPILOG: Final = """\
examples:
  relayd explain-access --ip 192.168.10.5 --from ups@nas.lan --to it@contoso.com
  relayd explain-access --ip 10.1.2.3 --user printer1 --from a@contoso.com \\
      --to you@example.com --size 4MB
  relayd --json explain-access --ip ::1 --from '<>' --to it@contoso.com

exit: 0 it is let in, 1 it is refused, 2 wrong usage,
      78 the configuration cannot be read"""


def add_explain_access(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `explain-access`."""
    parser.epilog = _EPILOG
    parser.add_argument("--ip", required=True, metavar="ADDRESS", help="where it comes from")
    parser.add_argument("--user", default="", metavar="NAME", help="who has logged in")
    parser.add_argument(
        "--from", dest="from_", required=True, metavar="ADDR", help="its sender; '<>': none"
    )
    parser.add_argument(
        "--to", action="append", required=True, metavar="ADDR", help="recipient; may be given again"
    )
    parser.add_argument("--size", default="", metavar="SIZE", help="how large it is: 4MB, 900000")
    parser.add_argument(
        "--listener", default="", metavar="NAME", help="where it arrives; default: the first"
    )
    parser.set_defaults(act=explain_access)


@frozen(kw_only=True)
class Rule:
    """One rule that was asked. do: the setting that would let it in; "" where it is let in."""

    name: str
    lets_in: bool
    text: str
    do: str = ""


@frozen(kw_only=True)
class Mail:
    """What is asked about. sender: None for "<>"."""

    ip: str
    user: str
    sender: Address | None
    recipients: tuple[Address, ...]
    size: int


@dataclass(slots=True)
class Verdict:
    """What came of it. reply: what the device would read; "" until something decided."""

    rules: list[Rule]
    reply: str = ""
    plan: Plan | None = None


def explain_access(options: argparse.Namespace) -> int:
    """Say which rule decides."""
    try:
        mail = read_mail(options)
    except ValueError as error:
        terminal.complain(str(error))
        return _WRONG_USAGE
    seen = look(options.config)
    if seen.found:
        raise ConfigError([*seen.found])
    listener = _listener(seen.config, options.listener)
    if listener is None:
        names = ", ".join(one.name for one in seen.config.listener)
        terminal.complain(f"no listener named {options.listener!r}; there are: {names}")
        return _WRONG_USAGE
    config, notes = _readable(seen)
    notes += _out_of_reach(listener, mail)
    notes += _differences(options, seen)
    verdict = judge(config, listener, mail)
    if options.json:
        terminal.print_json(shown(verdict, notes))
    else:
        print("\n".join(lines(verdict, notes)))
    return command_line.OK if verdict.plan is not None else command_line.FAILED


def read_mail(options: argparse.Namespace) -> Mail:
    """Return what the arguments say; raises ValueError with words."""
    if fold_ip(options.ip) is None:
        raise ValueError(f"--ip: {options.ip!r} is no address")
    sender = None
    if options.from_ not in ("", "<>"):
        sender = _address("--from", options.from_)
    size = 0
    if options.size:
        # Late: only this needs it.
        from relayd.config import units  # noqa: PLC0415

        try:
            size = int(options.size) if options.size.isdecimal() else units.octets(options.size)
        except ValueError as error:
            raise ValueError(f"--size: {error}") from error
    recipients = tuple(_address("--to", text) for text in options.to)
    return Mail(
        ip=str(fold_ip(options.ip)),
        user=options.user,
        sender=sender,
        recipients=recipients,
        size=size,
    )


def _address(argument: str, text: str) -> Address:
    try:
        return parse_path(text, lenient=True)
    except ValueError as error:
        raise ValueError(f"{argument}: {text!r}: {error}") from error


def _listener(config: Config, name: str) -> Listener | None:
    return next((one for one in config.listener if name in ("", one.name)), None)


# ---- judging


def judge(config: Config, listener: Listener, mail: Mail) -> Verdict:
    """Ask the rules in a session's order, until one refuses."""
    verdict = Verdict([])
    planner = Planner(config)
    submitter = _submitter(config, planner, listener, mail, verdict)
    if submitter is None:
        return verdict
    sender = _completed(config, mail.sender)
    refusal = planner.check_mail(submitter, sender, mail.size)
    if refusal is not None:
        return _refused(verdict, "size" if refusal.code == 552 else "sender", refusal)
    most = config.limits.max_recipients
    if len(mail.recipients) > most:
        text = f"more recipients than the {most} of [limits] max_recipients"
        return _replied(verdict, "recipients", replies.TOO_MANY_RECIPIENTS, text,
                        "Raise max_recipients in [limits]; most devices send the rest by"
                        " themselves.")  # fmt: skip
    recipients = tuple(_completed(config, one) or one for one in mail.recipients)
    for one in recipients:
        refusal = planner.check_rcpt(submitter, one)
        if refusal is not None:
            return _refused(verdict, "recipient", refusal)
    envelope = Envelope(sender=sender, recipients=recipients, origin=_origin(listener, mail))
    plan = planner.plan(submitter, envelope, sender, mail.size)
    if isinstance(plan, Refusal):
        return _refused(verdict, "sender", plan)
    _tell(verdict, config, submitter, sender, plan)
    limit = planner.size_limit(submitter)
    said = f"{mail.size} octets; " if mail.size else ""
    verdict.rules.append(
        Rule(name="size", lets_in=True, text=f"{said}at most {limit} octets are taken")
    )
    verdict.reply, verdict.plan = "250 2.0.0 Ok", plan
    return verdict


def _submitter(
    config: Config, planner: Planner, listener: Listener, mail: Mail, verdict: Verdict
) -> Submitter | None:
    """Return who submits; None: refused, and the verdict says why."""
    text = f"'{listener.name}' ({', '.join(listener.address)}), tls {listener.tls}, auth"
    text += f" {listener.auth}"
    if mail.user and listener.auth == "off":
        reason = f"auth of listener '{listener.name}' is off: nobody can log in there"
        do = f'Write auth = "optional" into [[listener]] "{listener.name}".'
        _replied(verdict, "listener", replies.AUTH_NOT_OFFERED, reason, do)
        return None
    if not mail.user and listener.auth == "required":
        reason = f"auth of listener '{listener.name}' is required"
        do = (
            'Have it log in (relayd user add NAME), or write auth = "optional" into [[listener]]'
            f' "{listener.name}".'
        )
        _replied(verdict, "listener", replies.AUTH_REQUIRED, reason, do)
        return None
    if listener.tls == "required":
        text += "; STARTTLS must come first"
    elif mail.user and not listener.auth_without_tls and listener.tls != "implicit":
        text += "; a login needs STARTTLS first"
    verdict.rules.append(Rule(name="listener", lets_in=True, text=text))
    submitter = planner.submitter_for(mail.ip, mail.user or None)
    device = DeviceTable(config.device).find(mail.ip)
    if submitter is not None:
        text = _who(config, submitter, device)
        verdict.rules.append(Rule(name="who", lets_in=True, text=text))
        return submitter
    if mail.user:
        reason = f"there is no user '{mail.user}'"
        do = f"relayd user add {mail.user}, or look for the right name: relayd user list"
        _replied(verdict, "who", replies.AUTH_FAILED, reason, do)
    elif not config.upstream:
        _replied(verdict, "who", replies.NOT_CONFIGURED, *NO_UPSTREAM)
    else:
        offers = listener.auth != "off" and (
            listener.auth_without_tls or listener.tls == "implicit"
        )
        reply = replies.AUTH_REQUIRED if offers else replies.RELAY_DENIED
        _replied(verdict, "who", reply, STRANGER, let_in(mail.ip))
    return None


def _who(config: Config, submitter: Submitter, device: Submitter | None) -> str:
    if not isinstance(submitter, User):
        return f"[[device]] '{submitter.name}', by its networks"
    own = next((one for one in Users(config).all() if one.name == submitter.name), submitter)
    text = f"[[user]] '{submitter.name}', by its login"
    if device is not None:
        text += f"; the login goes before [[device]] '{device.name}'"
        if PRIORITIES[submitter.priority] < PRIORITIES[own.priority]:
            text += f", whose priority {submitter.priority} it takes"
    return text


def _tell(
    verdict: Verdict, config: Config, submitter: Submitter, sender: Address | None, plan: Plan
) -> None:
    first = plan.deliveries[0]
    said = str(sender) if sender is not None else "<>"
    if sender is not None and first.set_from.lower() == said.lower():
        text = f"{said} stays in From"
    elif submitter.from_:
        text = f"{said} is replaced by `from` of '{submitter.name}': {first.set_from}"
    elif sender is None:
        text = f"without a sender, it goes out as {first.set_from}"
    else:
        text = f"{said} is rewritten to {first.set_from}"
    if first.reply_to_original:
        text += f"; Reply-To: {said}, if it has none"
    verdict.rules.append(Rule(name="sender", lets_in=True, text=text))
    upstream = next(one for one in config.upstream if one.name == first.mailbox.upstream)
    rule = (
        f"allow_to of '{submitter.name}'"
        if submitter.allow_to
        else f"own_domains of upstream '{upstream.name}'"
    )
    count = sum(len(one.recipients) for one in plan.deliveries)
    text = f"{count} allowed by {rule}"
    verdict.rules.append(Rule(name="recipient", lets_in=True, text=text))
    chosen = "named by it" if len(config.upstream) > 1 else "the only one there is"
    text = f"'{upstream.name}' ({chosen}), through mailbox {first.mailbox.mailbox}"
    verdict.rules.append(Rule(name="upstream", lets_in=True, text=text))


def _completed(config: Config, address: Address | None) -> Address | None:
    domain = config.server.default_domain
    if address is None or address.domain or not domain:
        return address
    return Address(address.local, domain)


def _origin(listener: Listener, mail: Mail) -> Origin:
    return Origin(
        session="", listener=listener.name, ip=mail.ip, helo="", device="", user=mail.user,
        protocol="ESMTP",
    )  # fmt: skip


def _refused(verdict: Verdict, name: str, refusal: Refusal) -> Verdict:
    verdict.rules.append(Rule(name=name, lets_in=False, text=refusal.log_reason, do=refusal.do))
    verdict.reply = f"{refusal.code} {refusal.enhanced} {refusal.text}"
    return verdict


def _replied(verdict: Verdict, name: str, reply: Reply, text: str, do: str) -> Verdict:
    verdict.rules.append(Rule(name=name, lets_in=False, text=text, do=do))
    verdict.reply = " ".join(filter(None, (str(reply.code), reply.enhanced, *reply.lines)))
    return verdict


def _out_of_reach(listener: Listener, mail: Mail) -> Iterator[str]:
    """Tell of a listener that a peer elsewhere cannot connect to."""
    ip = fold_ip(mail.ip)
    hosts = [fold_ip(text.rpartition(":")[0].strip("[]")) for text in listener.address]
    is_local = bool(hosts) and all(host is not None and host.is_loopback for host in hosts)
    if ip is not None and not ip.is_loopback and is_local:
        yield (
            f"listener '{listener.name}' can only be reached from this host; write"
            ' address = ["0.0.0.0:25", "[::]:25"] into a [[listener]]'
        )


# ---- what may differ from the running relay


def _readable(seen: Seen) -> tuple[Config, list[str]]:
    """Return the configuration to judge by, and notes of what this user could not read of it."""
    config, path, notes = seen.config, path_in(seen.config), []
    try:
        os.stat(path)
        read_users(path)
    except FileNotFoundError:
        pass
    except (OSError, ConfigError) as error:
        why = "; ".join(error.problems) if isinstance(error, ConfigError) else f"{path}: no access"
        notes.append(f"logins made by `relayd user` are not seen here ({why})")
        nowhere = dataclasses.replace(config.server, state_dir=os.devnull)
        config = dataclasses.replace(config, server=nowhere)
    wrong = [one for one in seen.problems if "secret" not in str(one.path[-1:])]
    if wrong:
        count = f"{len(wrong)} problem{'s' if len(wrong) > 1 else ''}"
        notes.append(
            f"the configuration has {count} (relayd check); what is wrong was left out here"
        )
    return config, notes


def _differences(options: argparse.Namespace, seen: Seen) -> Iterator[str]:
    """Yield why the running relay may decide otherwise."""
    path = os.path.join(seen.config.server.runtime_dir, client.CONTROL_SOCKET)
    try:
        reply = client.ask(path, {"command": "status"}, timeout_s=_QUICK_S)
    except NotRunning as error:
        if error.permitted:
            yield "relayd is not running; these are the rules it would start with"
        return
    status = mapping_of(reply.get("result"))
    read_at = datetime.now(UTC) - timedelta(seconds=number_of(status.get("up_s")))
    reload = mapping_of(status.get("reload"))
    reloaded_at = moment_of(reload.get("at"))
    if reload.get("result") == "done" and reloaded_at is not None:
        read_at = max(read_at, reloaded_at)
    elif reload.get("result") == "refused":
        yield "the last reload was refused: the running relay has an older configuration"
    for file in seen.tree.modes:
        changed_at = datetime.fromtimestamp(os.stat(file).st_mtime, UTC)
        if changed_at > read_at + timedelta(seconds=1):
            yield (
                f"{file} was changed since the running relay read it;"
                " relayd reload puts it in force"
            )
    running = str(status.get("config") or "")
    if running and os.path.realpath(running) != os.path.realpath(options.config):
        yield f"the running relay has another configuration: {running}"


# ---- showing


def shown(verdict: Verdict, notes: Sequence[str]) -> dict[str, object]:
    """Return it as JSON has it."""
    deliveries = verdict.plan.deliveries if verdict.plan is not None else ()
    return {
        "accepted": verdict.plan is not None,
        "reply": verdict.reply,
        "rules": [
            {"rule": one.name, "lets_in": one.lets_in, "text": one.text, "do": one.do}
            for one in verdict.rules
        ],
        "deliveries": [
            {
                "upstream": one.mailbox.upstream,
                "mailbox": one.mailbox.mailbox,
                "from": one.set_from,
                "recipients": [*one.recipients],
            }
            for one in deliveries
        ],
        "notes": [*notes],
    }


def lines(verdict: Verdict, notes: Sequence[str]) -> Iterator[str]:
    """Yield it for people."""
    for one in verdict.rules:
        mark = (
            terminal.paint("ok     ", "green") if one.lets_in else terminal.paint("refused", "red")
        )
        yield f"  {one.name:10} {mark}  {terminal.safe(one.text)}"
        if one.do:
            yield f"{'':22}{terminal.paint('do:', 'bold')} {terminal.safe(one.do)}"
    what = "Let in" if verdict.plan is not None else "Refused"
    yield f"{what}: {verdict.reply}"
    for note in notes:
        yield f"note: {terminal.safe(note)}"
