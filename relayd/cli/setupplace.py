"""Putting what `relayd setup` planned in place: checked before, all of it or nothing.

    problems, warnings = judged(site, drafts)     as `relayd check` would, without touching a file
    placed = put(site, drafts)                    what was there is kept beside, unless packaged
    placed.take_back()                            the relay refused it

DURABILITY: each file is whole at any moment (cli.files), the secret comes before relayd.toml, which
names it. Signals wait meanwhile: Ctrl-C leaves all of it or nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import grp
import os
import re
import secrets
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from relayd.check import check
from relayd.cli import files
from relayd.cli.files import Owner
from relayd.cli.setupplan import Draft, Site
from relayd.clock import SYSTEM
from relayd.errors import ConfigError

_GROUP: Final = "relayd"
_STAGE: Final = ".setup-"
_STAGE_NAME: Final = re.compile(r"\.setup-[0-9a-f]{16}")
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ENDS: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


# ---- looking before


def judged(site: Site, drafts: Sequence[Draft]) -> tuple[list[str], list[str]]:
    """Return problems and warnings of the configuration as it would be.

    The folder is built anew beside itself: new files as they will be, links to all others.
    raises: OSError - nothing can be written there.
    """
    # Undisturbed, or a hang-up would leave the stage behind; it takes a second or two.
    with _undisturbed(), _stage(site.folder) as stage:
        for draft in drafts:
            _lay(stage, site.folder, draft)
        _link_the_rest(stage, site.folder)
        try:
            checked = check(os.path.join(stage, os.path.basename(site.config)))
        except ConfigError as error:
            return [text.replace(stage, site.folder) for text in error.problems], []
        return [], [text.replace(stage, site.folder) for text in checked.warnings]


@contextlib.contextmanager
def _stage(folder: str) -> Iterator[str]:
    os.makedirs(folder, mode=0o755, exist_ok=True)
    for name in os.listdir(folder):
        if _STAGE_NAME.fullmatch(name):
            _clear(os.path.join(folder, name))
    stage = os.path.join(folder, f"{_STAGE}{secrets.token_hex(8)}")
    # SECURITY: the secret lies in it for as long as the check takes.
    os.mkdir(stage, 0o700)
    descriptor = os.open(stage, _FOLDER)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(descriptor)


def _clear(stage: str) -> None:
    """Remove the stage of a run that was killed; one that is at work has it locked."""
    try:
        descriptor = os.open(stage, _FOLDER)
    except OSError:
        return  # gone, or not ours
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(stage, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


def _lay(stage: str, folder: str, draft: Draft) -> None:
    path = os.path.join(stage, os.path.relpath(draft.path, folder))
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    inside = f'"{folder}/secrets/'.encode(), f'"{stage}/secrets/'.encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(draft.octets if draft.is_secret else draft.octets.replace(*inside))


def _link_the_rest(stage: str, folder: str) -> None:
    """Link what does not change; a folder in which something does is linked by its entries."""
    for entry in os.scandir(folder):
        mine = os.path.join(stage, entry.name)
        if entry.name.startswith(_STAGE):
            continue
        if not os.path.lexists(mine):
            os.symlink(entry.path, mine)
        elif entry.is_dir():
            _link_the_rest(mine, entry.path)


# ---- putting


@dataclass(slots=True)
class Placed:
    """Files that were put in place. kept: copies of what was there; folders: made for them."""

    done: list[tuple[Draft, Owner]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    def take_back(self) -> None:
        """Put everything back as it was; raises OSError."""
        with _undisturbed():
            for draft, owner in reversed(self.done):
                if draft.before is None:
                    files.remove(draft.path)
                else:
                    files.replace(draft.path, draft.before, owner)
            for path in self.kept:
                files.remove(path)
            for folder in self.folders:
                with contextlib.suppress(OSError):  # somebody put something there meanwhile
                    os.rmdir(folder)
            self.done, self.kept, self.folders = [], [], []


def put(site: Site, drafts: Sequence[Draft]) -> Placed:
    """Put every file in place. raises: OSError, KeyboardInterrupt - and all is as it was."""
    placed = Placed()
    with _undisturbed():
        try:
            _look_unchanged(drafts)
            for draft in drafts:
                _put(site, draft, placed)
        except OSError:
            with contextlib.suppress(OSError):
                placed.take_back()
            raise
        if signal.sigpending() & _ENDS:  # it ends us right below, before anybody hears of it
            placed.take_back()
    return placed


def _look_unchanged(drafts: Sequence[Draft]) -> None:
    """Raise OSError where somebody else wrote since we looked: minutes, if questions were asked."""
    for draft in drafts:
        try:
            with open(draft.path, "rb") as file:
                there = file.read()
        except FileNotFoundError:
            there = None
        if there != draft.before:
            words = "somebody else changed it meanwhile; say it again"
            raise OSError(errno.EBUSY, words, draft.path)


def _put(site: Site, draft: Draft, placed: Placed) -> None:
    # A link stays one: what it leads to is written.
    draft = dataclasses.replace(draft, path=os.path.realpath(draft.path))
    owner = owner_of(site, draft)
    folder = os.path.dirname(draft.path)
    if files.make_folder(folder, owner):
        placed.folders.append(folder)
    if draft.before is None:
        files.put(draft.path, draft.octets, owner)
    else:
        if not draft.is_secret and draft.before != site.template.encode():
            copy = f"{draft.path}.before-setup-{SYSTEM.utcnow():%Y%m%dT%H%M%S.%fZ}"
            files.put(copy, draft.before, owner)
            placed.kept.append(copy)
        files.replace(draft.path, draft.octets, owner)
    placed.done.append((draft, owner))


def owner_of(site: Site, draft: Draft) -> Owner:
    """Return whose a file will be: as it is; else root's and readable for the relay."""
    if draft.before is not None and not draft.is_secret:
        return files.owner_like(draft.path)
    if os.geteuid() != 0:
        return Owner(os.geteuid(), os.getegid(), 0o640)
    try:
        group = grp.getgrnam(_GROUP).gr_gid
    except KeyError:  # no package: whoever the configuration is for
        group = os.stat(site.config).st_gid if os.path.exists(site.config) else 0
    return Owner(0, group, 0o640)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep what would end this program waiting."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
