"""`relayd device`: who may submit without a password, and what became of it last.

`add` writes conf.d/NAME.toml, has the whole configuration checked as `relayd check` does, takes
the file back when that fails, and has the running relay take it over; then it prints what to type
into the device. `list` and `show` are in `cli.deviceview`.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from relayd.cli import daemon, deviceview, terminal
from relayd.cli import main as command_line
from relayd.cli.actions import Action, add_actions
from relayd.cli.answers import list_of, number_of, text_of
from relayd.config.model import Config
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.frames import Frame, Json

_WRONG_USAGE: Final = 2
_DISCARD_PORT: Final = 9


_ACTIONS: Final = (
    Action(
        "add",
        "let an address or a network submit without a password",
        "  relayd device add 192.168.10.5 --name ups --from ups@contoso.com\n"
        "  relayd device add 192.168.10.0/28 --name scanners --to contoso.com --to '*'",
        "exit: 0 done, 1 refused, 2 wrong usage, 78 the configuration cannot be used",
    ),
    Action(
        "list",
        "show devices, their last mail and last refusal, and who else knocked",
        "  relayd device list\n  relayd --json device list | jq '.[] | select(.refused > 0)'",
        "exit: 0 shown, 69 not running",
    ),
    Action(
        "show",
        "one device or address: last mail, last refusal, what would let it in",
        "  relayd device show ups\n  relayd device show 192.168.10.5",
        "exit: 0 shown, 1 nobody knows it, 69 not running",
    ),
    Action(
        "delete",
        "remove a device that `device add` made",
        "  relayd device delete ups",
        "exit: 0 done, 1 refused, 78 the configuration cannot be used",
    ),
)

_EPILOG: Final = """\
examples:
  relayd device add 192.168.10.5 --name ups --from ups@contoso.com
  relayd device list
  relayd device show ups          last refusal, and what would let it in
  relayd device delete ups

exit: 0 done, 1 refused, 2 wrong usage, 69 not running, 78 configuration"""


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `device`."""
    parser.epilog = _EPILOG
    subs = add_actions(parser, _ACTIONS, _ACTS)
    _add_settings(subs["add"])
    subs["show"].add_argument("name", metavar="NAME|IP")
    subs["delete"].add_argument("name", metavar="NAME")


def _add_settings(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("network", metavar="IP|NETWORK")
    sub.add_argument("--name", required=True, metavar="NAME", help="what logs and lists call it")
    sub.add_argument(
        "--from", dest="from_", metavar="ADDR", default="", help="always set From to this"
    )
    sub.add_argument(
        "--to",
        action="append",
        default=[],
        metavar="ADDR",
        help="whom it may write to, '*': anybody; may be given again; default: the upstream's"
        " own domains",
    )
    sub.add_argument(
        "--priority",
        metavar="HOW",
        choices=("high", "normal", "low"),
        default="normal",
        help="high, normal or low; high waits for no quota",
    )
    sub.add_argument(
        "--upstream", metavar="NAME", default="", help="the way out; default: the only one there is"
    )


# ---- add and delete


def add(options: argparse.Namespace) -> int:
    """Write a device, check it, have it taken over, and say what to type into it."""
    from relayd.check import check  # noqa: PLC0415  imports every room
    from relayd.cli import devicefile, files  # noqa: PLC0415
    from relayd.config import load  # noqa: PLC0415

    network, complaint = devicefile.network_of(options.network)
    if complaint:
        terminal.complain(complaint)
        return _WRONG_USAGE
    path = devicefile.path_of(options.config, options.name)
    if not _may_write(os.path.dirname(path)):
        return _not_ours(path, PermissionError(13, "Permission denied"))
    known = check(options.config).warnings  # what is wrong already is told as that: exit 78
    before = load.examine(options.config)
    complaint = devicefile.conflict(before, options.name, network) or (
        f"{path} is there already; choose another name" if os.path.lexists(path) else ""
    )
    if complaint:
        terminal.complain(complaint)
        return command_line.FAILED
    try:
        owner = files.owner_like(options.config)
        is_new = files.make_folder(os.path.dirname(path), owner)
        files.put(path, devicefile.render(_values(options, network)), owner)
    except OSError as error:
        return _not_ours(path, error)
    problems: Sequence[str] = ["interrupted"]
    try:
        warnings, problems = _judged(options, before.config)
        state, problems = ("", problems) if problems else _reload(options)
    finally:
        if problems:
            _take_back(path, is_new_folder=is_new)
    if problems:
        terminal.complain(f"{options.name} was not added:")
        _print_problems(problems)
        return command_line.FAILED
    settings = to_type_in(load.load(options.config), network)
    if options.json:
        terminal.print_json(
            {
                "name": options.name, "networks": [network], "file": path, "running": state,
                "warnings": [one for one in warnings if one not in known], "settings": settings,
            }
        )  # fmt: skip
        return command_line.OK
    print(terminal.safe(f"added {options.name} ({network}) in {path}; {_STATES[state]}"))
    for warning in warnings:
        if warning not in known:
            print(f"{terminal.paint('warning', 'yellow')}  {terminal.safe(warning)}")
    print("\n".join(_typing_lines(settings, options.from_)))
    itself = command_line.itself(options.config)
    print(f"then try it: {itself} send --device {options.name} --to ADDRESS --wait")
    return command_line.OK


def _may_write(folder: str) -> bool:
    """Tell whether this user may write there, or where the folder would be made."""
    there = folder if os.path.isdir(folder) else os.path.dirname(folder)
    return not os.path.isdir(there) or os.access(there, os.W_OK | os.X_OK)


def _take_back(path: str, *, is_new_folder: bool) -> None:
    from relayd.cli import files  # noqa: PLC0415

    files.remove(path)
    if is_new_folder:
        with contextlib.suppress(OSError):  # somebody put something there meanwhile
            os.rmdir(os.path.dirname(path))


def _values(options: argparse.Namespace, network: str) -> Mapping[str, str | list[str]]:
    return {
        "name": options.name,
        "networks": [network],
        "upstream": options.upstream,
        "from": options.from_,
        "allow_to": options.to,
        "priority": "" if options.priority == "normal" else options.priority,
    }


def _judged(options: argparse.Namespace, before: Config) -> tuple[Sequence[str], Sequence[str]]:
    """Return warnings and problems of the configuration with the new device in it."""
    from relayd.check import check  # noqa: PLC0415
    from relayd.cli import devicefile  # noqa: PLC0415
    from relayd.errors import ConfigError  # noqa: PLC0415

    try:
        checked = check(options.config)
    except ConfigError as error:
        return (), error.problems
    complaint = devicefile.shadow(before, checked.config, options.name)
    return checked.warnings, [complaint] if complaint else []


_STATES: Final = {
    "reloaded": "the running relay took it over",
    "stopped": "relayd is not running and takes it over when it starts",
    "unasked": "this user may not ask the running relay; have it taken over: sudo relayd reload",
}


def _reload(options: argparse.Namespace) -> tuple[str, Sequence[str]]:
    """Have the running relay take the change over; returns the key of _STATES, or problems."""
    path = daemon.control_path(options.config)
    try:
        reply = client.ask(path, {"command": "reload"}, timeout_s=daemon.RELOAD_WITHIN_S)
    except NotRunning as error:
        return ("stopped" if error.permitted else "unasked"), ()
    if reply.get("ok") is True:
        return "reloaded", ()
    problems = [text_of(one) for one in list_of(reply.get("problems"))]
    return "", problems or [text_of(reply.get("error"))]


def delete(options: argparse.Namespace) -> int:
    """Remove a device that `add` made; others are named by file and line."""
    from relayd.cli import devicefile, files  # noqa: PLC0415
    from relayd.config import load  # noqa: PLC0415

    loaded = load.examine(options.config)
    names = [one.name for one in loaded.config.device]
    if options.name not in names:
        told = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        terminal.complain(f"no device named {options.name}; there are: {told or 'none'}")
        return command_line.FAILED
    path = devicefile.path_of(options.config, options.name)
    place = loaded.tree.place(("device", names.index(options.name), "name"))
    if place.file != path or not devicefile.is_written(path, options.name):
        terminal.complain(
            f"{options.name} was not made by `relayd device add`, or its file was changed since;"
            f" remove it by hand at {place}, then relayd reload"
        )
        return command_line.FAILED
    try:
        owner = files.owner_like(path)
        with open(path, "rb") as file:
            octets = file.read()
        files.remove(path)
    except OSError as error:
        return _not_ours(path, error)
    state, problems = _reload(options)
    if problems:
        files.put(path, octets, owner)
        terminal.complain(f"{options.name} was not deleted, the relay refused the change:")
        _print_problems(problems)
        return command_line.FAILED
    if options.json:
        terminal.print_json({"name": options.name, "file": path, "running": state})
    else:
        words = _STATES[state].replace("took it over", "knows").replace("takes it over", "knows")
        print(terminal.safe(f"deleted {options.name} ({path}); {words}"))
    return command_line.OK


def _not_ours(path: str, error: OSError) -> int:
    terminal.complain(f"{path}: {error.strerror or error}; say it again with sudo")
    return command_line.FAILED


def _print_problems(problems: Iterable[str]) -> None:
    for problem in problems:
        print(f"  {terminal.safe(problem)}", file=sys.stderr)


# ---- what to type into the device


def to_type_in(config: Config, network: str) -> list[dict[str, Json]]:
    """Return the ways in that a device of this network can use, plainest first.

    Keys: `host` an address of ours on its network or "", `name` of this host, `port`,
    `encryption`, `login` whether a login is asked for all the same.
    """
    first = ipaddress.ip_network(network)[0]
    rows: list[dict[str, Json]] = []
    for listener in config.listener:
        for address in listener.address:
            host, _, port = address.rpartition(":")
            here = ipaddress.ip_address(host.strip("[]"))
            if here.version != first.version or (here.is_loopback and not first.is_loopback):
                continue
            shown = _address_towards(str(first)) if here.is_unspecified else str(here)
            rows.append(
                {
                    "host": shown, "name": config.server.hostname, "port": int(port),
                    "encryption": _ENCRYPTION[listener.tls], "login": listener.auth == "required",
                }
            )  # fmt: skip
    return sorted(rows, key=lambda row: (row["login"] is True, number_of(row["port"])))


_ENCRYPTION: Final = {
    "off": "none",
    "opportunistic": "none, or STARTTLS if it can",
    "required": "STARTTLS",
    "implicit": "SSL/TLS",
}


def _address_towards(ip: str) -> str:
    """Return which of our addresses packets to `ip` leave from; "" if there is no way there."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((ip, _DISCARD_PORT))  # UDP: sends nothing, only asks the routing table
        except OSError:
            return ""
        return str(sock.getsockname()[0])


def _typing_lines(settings: Sequence[Frame], sender: str) -> list[str]:
    if not settings:
        return [
            terminal.paint("it cannot reach this relay yet:", "yellow")
            + ' no listener has an address on its network; write address = ["0.0.0.0:25"]'
            " into a [[listener]], then relayd reload"
        ]
    lines = ["type into the device:"]
    for number, row in enumerate(settings):
        if number:
            lines.append("or:")
        host, name = text_of(row["host"]), text_of(row["name"])
        login = "asked for here: relayd user add NAME" if row["login"] else "none"
        lines += [
            f"  server      {terminal.safe(host or name)}" + (f"  ({name})" if host else ""),
            f"  port        {row['port']}",
            f"  encryption  {row['encryption']}",
            f"  login       {login}",
        ]
    if sender:
        lines.append(f"  sender      {terminal.safe(sender)} (whatever it says is replaced)")
    return lines


_ACTS: Final[Mapping[str, Callable[[argparse.Namespace], int]]] = {
    "add": add,
    "list": deviceview.list_,
    "show": deviceview.show,
    "delete": delete,
}
