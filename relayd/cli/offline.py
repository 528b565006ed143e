"""The spool of a relay that is not running, read as its owner, nothing changed in it.

Only what is needed of the configuration is read ([spool] url), because a configuration that
cannot be used is often why nothing runs.

SECURITY: root becomes the spool's owner, and cannot go back, before SQLite opens anything: no
file of the spool may ever belong to root (the relay could not write it), and what a peer wrote
is not parsed with root's rights.

Imported only when nobody answers at control.sock: it costs what the command line avoids.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from relayd.cli import daemon, terminal
from relayd.cli import main as command_line
from relayd.cli.answers import mapping_of
from relayd.clock import SYSTEM
from relayd.config.model import Spool
from relayd.master.frames import Frame
from relayd.queueview import STOPPED, look
from relayd.spool.door import spool_path
from relayd.spool.queries import Reader
from relayd.spool.turnstile import Turnstile

_WRONG_USAGE: Final = 2


def answers(config: str, request: Frame) -> Iterator[Frame]:
    """Yield the results the running relay would give to queue.list or queue.show.

    raises: SystemExit with words, SpoolUnavailable, ConfigError.
    """
    url, trouble = daemon.setting_of(config, "spool", "url", Spool().url)
    path = spool_path(url)
    if trouble:
        terminal.complain(f"{trouble}; looking for the spool at {path}")
    why = daemon.unread(config)
    if why and not os.path.exists(path):
        what = f"neither relayd nor its spool is in the default place ({path})"
        raise SystemExit(daemon.not_found(what, why))
    become_owner(path)
    terminal.complain("relayd is not running; this is what its spool has")
    reader = _open(path)
    try:
        now = replace(STOPPED, start=daemon.start_command(config))
        for reply in look(reader, request, lambda: now):
            if reply.get("ok") is not True:
                terminal.complain(str(reply.get("error")))
                raise SystemExit(command_line.FAILED)
            result = reply.get("result")
            yield mapping_of(result)
    except ValueError as error:  # an ID or a filter that is none
        terminal.complain(str(error))
        raise SystemExit(_WRONG_USAGE) from None
    finally:
        reader.close()


def become_owner(path: str) -> None:
    """Leave root behind for good; exits with words when the spool is not ours to read."""
    try:
        os.stat(path)
        # SECURITY: whose the name is, not what it leads to: its folder is the relay's, and a link
        # laid there to a file of root's, or a file that became root's, would leave us root.
        owner = os.lstat(path)
        if owner.st_uid == 0:
            owner = os.stat(os.path.dirname(path))
    except FileNotFoundError:
        terminal.complain(f"relayd is not running, and there is no spool yet at {path}")
        raise SystemExit(command_line.UNAVAILABLE) from None
    except PermissionError:
        raise SystemExit(_not_ours(path)) from None
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
        os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
    elif os.geteuid() != owner.st_uid:
        raise SystemExit(_not_ours(path))


def _not_ours(path: str) -> int:
    terminal.complain(
        f"relayd is not running, and only root and its owner may read the spool at {path};"
        " say it again with sudo"
    )
    return command_line.UNAVAILABLE


def _open(path: str) -> Reader:
    # DURABILITY: a log that a crash left behind is recovered at the first look into it, and no
    # relay that starts just now may be at it at the same time.
    turnstile = Turnstile(path + ".turnstile")
    try:
        with turnstile:
            reader = Reader(path, SYSTEM, mode="ro")
            try:
                reader.counts()
            except BaseException:
                reader.close()
                raise
            return reader
    finally:
        turnstile.close()
