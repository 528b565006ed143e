"""run, check, reload, stop, version: the daemon itself, from the command line.

All but `run` and `check` only talk to control.sock, so they start fast and work for members
of group relayd-admin, who need not be able to read the configuration. A configuration that is
broken, or not readable, must not blind them: they look in the default runtime_dir and say so.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from relayd import __version__
from relayd.cli import main as command_line
from relayd.cli import terminal
from relayd.cli.answers import list_of
from relayd.config.model import Server
from relayd.master import client
from relayd.master.client import NotRunning
from relayd.master.frames import Frame, Json

ANSWER_WITHIN_S: Final = 10.0
RELOAD_WITHIN_S: Final = 600.0
STOP_WITHIN_S: Final = 900.0
AS_ADMIN: Final = "say it again with sudo, or as a member of group relayd-admin"
_INSTANCE: Final = re.compile(r"/etc/relayd/([^/]+)/relayd\.toml")


def ask(
    options: argparse.Namespace, request: Frame, *, timeout_s: float = ANSWER_WITHIN_S
) -> Frame:
    """Ask the running relay, whoever of its processes answers; returns the reply's "result".

    Prints why and exits when it is not running (69), or refuses (the exit code it names).
    """
    reply = _reply(options, request, timeout_s)
    if reply.get("ok") is not True:
        raise SystemExit(_refusal(reply))
    result = reply.get("result")
    return result if isinstance(result, Mapping) else {}


def ask_each(
    options: argparse.Namespace, request: Frame, *, timeout_s: float = ANSWER_WITHIN_S
) -> Iterator[Frame]:
    """Ask and yield the "result" of each reply, for answers that come in several frames.

    timeout_s: for each of them.
    """
    path = control_path(options.config)
    try:
        for reply in client.stream(path, request, timeout_s=timeout_s, is_each=True):
            if reply.get("ok") is not True:
                raise SystemExit(_refusal(reply))
            result = reply.get("result")
            yield result if isinstance(result, Mapping) else {}
    except NotRunning as error:
        raise SystemExit(not_running(error, options.config)) from error


def control_path(config: str) -> str:
    """Return where control.sock should be; says so when the configuration could not be read."""
    runtime_dir, trouble = runtime_dir_of(config)
    if trouble:
        terminal.complain(f"{trouble}; looking in {runtime_dir}")
    return os.path.join(runtime_dir, client.CONTROL_SOCKET)


def runtime_dir_of(config: str) -> tuple[str, str]:
    """Return [server] runtime_dir, and what kept us from reading it ("" if nothing)."""
    return setting_of(config, "server", "runtime_dir", Server().runtime_dir)


def setting_of(config: str, table: str, key: str, default: str) -> tuple[str, str]:
    """Return one text of the configuration, and what kept us from reading it ("" if nothing).

    Reads no more of the configuration than this one key, so that nothing else in it matters.
    """
    import tomllib  # noqa: PLC0415  the master shares this program and must not import it

    found = default
    trouble = ""
    for path in _files(config):
        try:
            with open(path, "rb") as stream:
                members = tomllib.load(stream).get(table, {})
        except PermissionError:
            continue  # an operator need not be able to read secrets
        except OSError as error:
            trouble = f"{path}: {error.strerror}"
        except ValueError as error:
            trouble = f"{path}: {error}"
        else:
            value = members.get(key, found) if isinstance(members, dict) else found
            found = value if isinstance(value, str) and value else found
    return found, trouble


def unread(config: str) -> str:
    """Return which file of the configuration this user may not read, in words; "" for none.

    What stands in it may lead elsewhere: then only the default places were looked in.
    """
    for path in _files(config):
        try:
            with open(path, "rb"):
                continue
        except PermissionError as error:
            return f"{path} cannot be read ({error.strerror or 'Permission denied'})"
        except OSError:
            continue
    return ""


def is_certain(config: str) -> bool:
    """Tell whether a relay of a configuration nobody read would have been found.

    The one installed is in the default place, and answers root and group relayd-admin.
    """
    if unit_of(config) != "relayd.service":
        return False
    from relayd.master.control import admin_gid  # noqa: PLC0415  only where nobody answers

    return os.geteuid() == 0 or admin_gid() in (os.getegid(), *os.getgroups())


def _files(config: str) -> list[str]:
    folder = os.path.join(os.path.dirname(config), "conf.d")
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".toml"))
    except OSError:
        names = []
    return [config, *(os.path.join(folder, name) for name in names)]


def _reply(options: argparse.Namespace, request: Frame, timeout_s: float) -> dict[str, Json]:
    try:
        return client.ask(control_path(options.config), request, timeout_s=timeout_s)
    except NotRunning as error:
        raise SystemExit(not_running(error, options.config)) from error


def _refusal(reply: Mapping[str, Json]) -> int:
    """Print a refusal and return the exit code it names."""
    terminal.complain(str(reply.get("error", "refused")))
    for problem in list_of(reply.get("problems")):
        print(f"  {terminal.safe(str(problem))}", file=sys.stderr)
    return _exit_code(reply)


def unit_of(config: str) -> str:
    """Return the unit that a configuration belongs to by its place, as packaged; "" for none."""
    path = os.path.abspath(config)
    if path == "/etc/relayd/relayd.toml":
        return "relayd.service"
    instance = _INSTANCE.fullmatch(path)
    return f"relayd@{instance[1]}.service" if instance else ""


def start_command(config: str) -> str:
    """Return what starts the relay of a configuration: its unit, or itself."""
    unit = unit_of(config).removesuffix(".service")
    return f"systemctl start {unit}" if unit else f"{command_line.itself(config)} run"


def not_running(error: NotRunning, config: str) -> int:
    """Say that nobody answers, how to start it, and where its last words are."""
    if not error.permitted:
        terminal.complain(
            f"{error}: only root, the relay's own user and group relayd-admin may ask"
        )
        return command_line.UNAVAILABLE
    why = unread(config)
    if why and not is_certain(config):
        return not_found(f"nobody answers in the default place ({error})", why)
    unit, itself = unit_of(config).removesuffix(".service"), command_line.itself(config)
    why = f"journalctl -u {unit} -n 30" if unit else "what it wrote where it was started"
    terminal.complain(f"relayd is not running ({error})")
    print(
        f"  start it:            {start_command(config)}\n"
        f"  why it stopped:      {why}\n"
        f"  is its configuration right?  {itself} check",
        file=sys.stderr,
    )
    return command_line.UNAVAILABLE


def not_found(what: str, why: str) -> int:
    """Say that a relay was not found for want of its configuration. why: of `unread`."""
    terminal.complain(f"{what}, and {why}: relayd may run elsewhere")
    print(f"  {AS_ADMIN}", file=sys.stderr)
    return command_line.UNAVAILABLE


# -- run ---------------------------------------------------------------------------------


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    parser.epilog = (
        "examples:\n"
        "  relayd run                                as the systemd unit does\n"
        "  relayd --config ./relayd.toml run         in a terminal; Ctrl-C stops it\n\n"
        "signals: HUP reload, TERM graceful stop, INT/QUIT fast stop, USR1 reopen logs,\n"
        "         USR2 upgrade in place, TTIN/TTOU one worker more or less\n"
        "exit:    0 stopped as told, 69 cannot listen or runs already,\n"
        "         78 the configuration cannot be used"
    )
    parser.set_defaults(act=run)


def run(options: argparse.Namespace) -> int:
    """Be the master."""
    from relayd.master import launch, start  # noqa: PLC0415  a command imports what it needs

    return start.run(launch.of_this_process(options.config))


# -- check -------------------------------------------------------------------------------


def add_check(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check`."""
    parser.add_argument(
        "--preflight",
        metavar="FORM",
        type=int,
        help="also whether this relayd can go on for one that runs; `relayd upgrade` asks",
    )
    parser.epilog = (
        "examples:\n"
        "  relayd check\n"
        "  relayd check --config /etc/relayd/relayd.toml.new && echo fine\n"
        "  relayd --json check | jq .problems\n\n"
        "exit: 0 it can be used (warnings allowed), 78 it cannot,\n"
        "      75 --preflight: it can, but only after a restart"
    )
    parser.set_defaults(act=check)


def check(options: argparse.Namespace) -> int:
    """Print every problem and warning of the configuration."""
    from relayd.check import check as whole_check  # noqa: PLC0415  imports every room
    from relayd.check import needs_restart  # noqa: PLC0415
    from relayd.errors import ConfigError  # noqa: PLC0415

    problems: Sequence[str] = ()
    warnings: Sequence[str] = ()
    code = command_line.CONFIG
    try:
        checked = whole_check(options.config)
        warnings = checked.warnings
        why = "" if options.preflight is None else needs_restart(checked.config, options.preflight)
        if why:
            problems, code = [why], command_line.TEMPORARY
    except ConfigError as error:
        problems = error.problems
    if options.json:
        answer = {"ok": not problems, "problems": list(problems), "warnings": list(warnings)}
        terminal.print_json(answer)
        return code if problems else command_line.OK
    for problem in problems:
        print(f"{terminal.paint('error', 'red')}    {terminal.safe(problem)}")
    for warning in warnings:
        print(f"{terminal.paint('warning', 'yellow')}  {terminal.safe(warning)}")
    if problems:
        count = len(problems)
        print(f"{count} problem{'s' if count > 1 else ''}: {options.config} cannot be used")
        return code
    print(f"{terminal.paint('ok', 'green')}       {options.config} can be used")
    return command_line.OK


# -- reload, stop, version ---------------------------------------------------------------


def add_reload(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `reload`."""
    parser.epilog = (
        "examples:\n"
        "  relayd check && relayd reload\n"
        "  relayd --json reload\n\n"
        "exit: 0 the new configuration is in force,\n"
        "      1 it was refused and the old one stays, 69 not running"
    )
    parser.set_defaults(act=reload)


def reload(options: argparse.Namespace) -> int:
    """Have the configuration read again; wait until it is in force, or refused."""
    reply = _reply(options, {"command": "reload"}, RELOAD_WITHIN_S)
    if options.json:
        terminal.print_json({k: v for k, v in reply.items() if k != "v"})
        return command_line.OK if reply.get("ok") is True else _exit_code(reply)
    if reply.get("ok") is not True:
        return _refusal(reply)
    result = reply.get("result")
    workers = result.get("workers") if isinstance(result, Mapping) else "?"
    print(f"reloaded: {workers} workers serve with the new configuration")
    return command_line.OK


def add_stop(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `stop`."""
    parser.add_argument("--fast", action="store_true", help="do not wait for what is under way")
    parser.epilog = (
        "examples:\n"
        "  relayd stop\n"
        "  relayd stop --fast\n\n"
        "Under systemd `systemctl stop relayd` does the same.\n"
        "exit: 0 stopped, 69 was not running"
    )
    parser.set_defaults(act=stop)


def stop(options: argparse.Namespace) -> int:
    """Have the relay finish what is under way and go; wait for it."""
    ask(options, {"command": "stop", "fast": options.fast}, timeout_s=STOP_WITHIN_S)
    if options.json:
        terminal.print_json({"ok": True})
    else:
        print("stopped")
    return command_line.OK


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `version`."""
    parser.epilog = "examples:\n  relayd version\n  relayd --json version\n\nexit: 0"
    parser.set_defaults(act=version)


def version(options: argparse.Namespace) -> int:
    """Show which relayd this is."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    if options.json:
        terminal.print_json({"version": __version__, "python": python})
    else:
        print(f"relayd {__version__} (Python {python})")
    return command_line.OK


def _exit_code(reply: Mapping[str, Json]) -> int:
    code = reply.get("exit")
    return code if isinstance(code, int) else command_line.FAILED
