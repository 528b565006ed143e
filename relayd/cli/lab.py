"""`relayd sandbox`: a Microsoft 365 on localhost until Ctrl-C.

Prints what to paste into relayd.toml, where the inbox page is, and then one line for each
message and each refusal. With --json standard output holds exactly one line, for programs.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import errno
import json
import os
import shlex
import signal
from typing import Final

from relayd.cli.terminal import complain, safe, size
from relayd.config.model import Log
from relayd.errors import ListenError
from relayd.master.holder import holder_of
from relayd.observe import log
from relayd.sandbox.knobs import Knobs
from relayd.sandbox.lab import Watcher
from relayd.sandbox.server import Options, Place, Sandbox
from relayd.sandbox.store import Stored

_OK: Final = 0
_USAGE: Final = 2


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; raises ListenError."""
    if options.print_config and 0 in (options.listen[1], options.inbox[1]):
        complain("--print-config needs fixed ports in --listen and --inbox")
        return _USAGE
    journal = log.configure(Log(level="info"), process="sandbox")
    try:
        return asyncio.run(_serve(_chosen(options), options))
    except OSError as error:
        raise ListenError(f"the sandbox cannot start: {_why(error, options)}") from error
    except ValueError as error:
        complain(str(error))
        return _USAGE
    finally:
        journal.close()


def _why(error: OSError, options: argparse.Namespace) -> str:
    """Return what is in the way, with the command that frees a port."""
    if error.errno != errno.EADDRINUSE:
        return str(error)
    for option, (host, port) in (("--listen", options.listen), ("--inbox", options.inbox)):
        if port and (holder := holder_of(host, port)) is not None:
            return f"{host}:{port} is {holder.advice()}; or another port: {option} {host}:PORT"
    return "a port is in use; choose others with --listen and --inbox"


def _chosen(options: argparse.Namespace) -> Options:
    return Options(
        state_dir=os.path.expanduser(options.state_dir),
        listen=options.listen,
        inbox=options.inbox,
        tenant=options.tenant,
        client_id=options.client_id,
        secret=options.secret,
        mailboxes=tuple(options.mailbox) or (_default_mailbox(options.tenant),),
        knobs=Knobs(any_mailbox=options.any_mailbox, keep_bodies=_keeps_bodies(options)),
        control_key=options.control_key,
        keep=options.keep,
    )


def _keeps_bodies(options: argparse.Namespace) -> bool:
    """People want to see their scan; a kill test of 100,000 messages wants its memory."""
    return bool(not options.json if options.keep_bodies is None else options.keep_bodies)


def _default_mailbox(tenant: str) -> str:
    name, dot, rest = tenant.lower().partition(".onmicrosoft.com")
    return f"alerts@{name}.com" if dot and not rest else f"alerts@{tenant.lower()}"


async def _serve(chosen: Options, options: argparse.Namespace) -> int:
    watcher = Watcher() if options.json or options.quiet else _Teller()
    sandbox = Sandbox(chosen, watcher)
    if options.print_config:
        print(snippet(sandbox.place(chosen.listen, chosen.inbox)), end="")
        return _OK
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    place = await sandbox.start()
    try:
        print(_ready(place) if options.json else _welcome(place), flush=True)
        await stopped.wait()
    finally:
        await sandbox.stop()
    return _OK


def _ready(place: Place) -> str:
    """Return the one line that programs read."""
    facts = dataclasses.asdict(place)
    facts |= {"ready": True, "pid": os.getpid(), "base": place.base, "inbox": place.inbox_url}
    return json.dumps(facts)


def _welcome(place: Place) -> str:
    return (
        "# Put this into relayd.toml:\n\n"
        f"{snippet(place)}\n"
        "# Or have it written; type the client_secret above when it asks:\n\n"
        f"relayd setup {_options(place)}\n\n"
        f"Inbox page:   {place.inbox_url}\n"
        f"Control API:  {place.base}/_sandbox/  with  "
        f"Authorization: Bearer {place.control_key}\n"
        f"Mailboxes:    {', '.join(place.mailboxes)}\n"
        "Stop with Ctrl-C.\n"
        "ready"
    )


def snippet(place: Place) -> str:
    """Return [cloud.lab] and [upstream.lab] for relayd.toml."""
    cloud = {
        "authority": place.base,
        "graph": f"{place.base}/v1.0",
        "graph_scope": "https://graph.microsoft.com/.default",
        "ca_file": place.ca_file,
    }
    upstream = {
        "cloud": "lab",
        "tenant": place.tenant,
        "client_id": place.client_id,
        "credential": "secret",
        "client_secret": place.client_secret,
        "mailbox": place.mailboxes[0],
    }
    return f"[cloud.lab]\n{_settings(cloud)}\n[upstream.lab]\n{_settings(upstream)}"


def _options(place: Place) -> str:
    """Return the options of `relayd setup` that lead here."""
    who = f"--tenant {place.tenant} --client-id {place.client_id} --mailbox {place.mailboxes[0]}"
    where = f"--authority {place.base} --graph {place.base}/v1.0"
    return f"{who} \\\n    {where} --ca-file {shlex.quote(place.ca_file)}"


def _settings(values: dict[str, str]) -> str:
    # A JSON string is a TOML basic string.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


class _Teller(Watcher):
    """Says what happens, a line each."""

    def sent(self, stored: Stored) -> None:
        """Tell of a message."""
        names = ", ".join(recipient.address for recipient in stored.recipients)
        at = stored.post.at.strftime("%H:%M:%S")
        mark = f"  defects: {', '.join(stored.defects)}" if stored.defects else ""
        line = f"{stored.header_from} -> {names}  {stored.subject!r}  {size(stored.size_bytes)}"
        print(f"{at}  {safe(line)}{mark}", flush=True)

    def refused(self, status: int, code: str, reason: str) -> None:
        """Tell of a refusal."""
        print(safe(f"refused: {status or 'no answer'} {code}: {reason}"), flush=True)
