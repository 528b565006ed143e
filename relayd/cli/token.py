"""`relayd token`: the access tokens of the running relay; what they allow, never they themselves.

The relay does the asking, so that its own way out and its own secret are tried, and members of
group relayd-admin need not be able to read that secret. With the relay down, `test` asks Entra
from here where the secret can be read.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from relayd.cli import daemon, terminal
from relayd.cli import main as command_line
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.frames import Frame, Json

_EACH_S: Final = 45.0
_EXIT: Final = """
exit: 0 done, 1 one of them failed, 2 no such upstream,
      69 not running"""
_EXAMPLES: Final[Mapping[str, str]] = {
    "test": """\
examples:
  relayd token test
  relayd token test contoso
  relayd --json token test | jq '.[].roles'

Uses what the relay holds, or has Entra asked. With the relay down it is
asked from here, by root or the relay's own user.
""",
    "refresh": """\
examples:
  relayd token refresh
  relayd token refresh contoso

After a change of permissions in Entra: a token has those of the moment it was
made. Until the new one is there the old one stays in use.
""",
    "drop": """\
examples:
  relayd token drop contoso

The next mail has Entra asked for another.
""",
}
_HELP: Final[Mapping[str, str]] = {
    "test": "get one, and say what it allows and how long",
    "refresh": "have Entra asked for a new one",
    "drop": "forget it",
}


def add_token(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `token`."""
    parser.epilog = (
        "examples:\n"
        "  relayd token test\n"
        "  relayd token refresh contoso\n\n"
        "`relayd token COMMAND --help` shows more." + _EXIT
    )
    commands = parser.add_subparsers(metavar="COMMAND", dest="what", required=True)
    for name, words in _HELP.items():
        sub = commands.add_parser(
            name,
            help=words,
            description=f"{words[0].upper()}{words[1:]}.",
            epilog=_EXAMPLES[name] + _EXIT.removeprefix("\n"),
            formatter_class=parser.formatter_class,
        )
        sub.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS)
        sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
        sub.add_argument(
            "upstream",
            metavar="UPSTREAM",
            nargs="?",
            default="",
            help="only this one; default: all",
        )
        sub.set_defaults(act=token)


def token(options: argparse.Namespace) -> int:
    """Do one of the three."""
    request: Frame = {"command": f"token.{options.what}", "upstream": options.upstream}
    told: list[Frame] = []
    for row in _rows(options, request):
        told.append(row)
        if not options.json:
            print("\n".join(lines(row)), flush=True)
    if options.json:
        terminal.print_json(told)
    is_well = bool(told) and all(row.get("state") != "failed" for row in told)
    return command_line.OK if is_well else command_line.FAILED


def _rows(options: argparse.Namespace, request: Frame) -> Iterator[Frame]:
    if options.what != "test":
        yield from daemon.ask_each(options, request, timeout_s=_EACH_S)
        return
    path = daemon.control_path(options.config)
    try:
        # An answer that never came, told apart from a refusal, which ask_each prints.
        client.ask(path, {"command": "ping"}, timeout_s=daemon.ANSWER_WITHIN_S)
    except NotRunning as error:
        yield from _from_here(options, error)
        return
    yield from daemon.ask_each(options, request, timeout_s=_EACH_S)


def _from_here(options: argparse.Namespace, error: NotRunning) -> Iterator[Frame]:
    """Ask Entra from this process, as the relay's own user."""
    # Imported late: MSAL costs what a question to the running relay need not.
    from relayd.cli.doctor import become_service  # noqa: PLC0415
    from relayd.config.partial import look  # noqa: PLC0415
    from relayd.errors import TokenUnavailable  # noqa: PLC0415
    from relayd.identity.credentials import credential_for  # noqa: PLC0415
    from relayd.identity.oauth import Entra  # noqa: PLC0415
    from relayd.wayout import failed_row, meant, token_row  # noqa: PLC0415

    become_service(options.config)
    seen = look(options.config)
    unreadable = [*seen.found]
    try:
        upstreams = meant(seen.config, options.upstream) if not unreadable else []
    except ValueError as wrong:
        terminal.complain(str(wrong))
        raise SystemExit(2) from None
    for upstream in upstreams:
        problem = seen.secret_problem(upstream.name)
        if problem is not None:
            unreadable.append(seen.tree.word(problem))
    if unreadable:
        for words in unreadable:
            terminal.complain(words)
        raise SystemExit(daemon.not_running(error, options.config))
    terminal.complain("relayd is not running; Entra is asked from here")
    entra = Entra()
    for upstream in upstreams:
        try:
            issued = entra.fetch(credential_for(seen.config, upstream))
        except TokenUnavailable as why:
            yield failed_row(upstream, why)
        except LookupError as wrong:
            terminal.complain(str(wrong))
            raise SystemExit(command_line.FAILED) from None
        else:
            yield token_row(upstream, issued.value, issued.life_s)


def lines(row: Frame) -> Iterator[str]:
    """Yield what is shown of one upstream."""
    name, state = str(row.get("upstream")), str(row.get("state"))
    head = terminal.paint(terminal.safe(name), "bold")
    match state:
        case "ok":
            left = terminal.duration(_number(row.get("expires_in_s")))
            yield f"{head}: {terminal.paint('ok', 'green')}, good for {left}"
            roles = _texts(row.get("roles"))
            yield from _field("roles", ", ".join(roles) or "none: Exchange must grant them")
            yield from _field("application", row.get("app_id"))
            yield from _field("object id", row.get("object_id"))
            yield from _field("tenant", row.get("tenant"))
            yield from _field("for", row.get("audience"))
        case "dropped":
            yield f"{head}: dropped; the next mail has Entra asked for another"
        case "none":
            yield f"{head}: none was held"
        case _:
            cause = str(row.get("cause") or "")
            label = f" ({cause})" if cause else ""
            why = terminal.safe(f"{row.get('why')}{label}")
            yield f"{head}: {terminal.paint('no token', 'red')}: {why}"
            yield from _field("do", row.get("do") or f"relayd doctor {name}")


def _field(name: str, value: Json) -> Iterator[str]:
    if value:
        yield f"  {name:12}{terminal.safe(str(value))}"


def _texts(value: Json) -> Sequence[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _number(value: Json) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
