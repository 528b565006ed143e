"""Files of /etc that the command line writes: whole or not at all, with the right owner.

    put(path, octets, like="/etc/relayd/relayd.toml")   a new file; raises FileExistsError
    replace(path, octets, like=…)                       in place of what is there

DURABILITY: content, then name, then folder; a power cut leaves the old file or the new one.
"""

from __future__ import annotations

import os
import secrets
import stat

from relayd.values import frozen


@frozen
class Owner:
    """Whose a new file or folder is, and what others may do with it. mode: of a file."""

    uid: int
    gid: int
    mode: int


def owner_like(path: str) -> Owner:
    """Return owner and mode of a file that is there; raises OSError."""
    found = os.stat(path)
    return Owner(found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode) & 0o666)


def put(path: str, octets: bytes, owner: Owner) -> None:
    """Write a new file. raises: FileExistsError, OSError - nothing was written."""
    temporary = _written(path, octets, owner)
    try:
        os.link(temporary, path, follow_symlinks=False)
    finally:
        os.unlink(temporary)
    _sync(path)


def replace(path: str, octets: bytes, owner: Owner) -> None:
    """Write a file, also where there is one. raises: OSError - the old one stays."""
    temporary = _written(path, octets, owner)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync(path)


def remove(path: str) -> None:
    """Take a file away for good; raises OSError."""
    os.unlink(path)
    _sync(path)


def make_folder(path: str, owner: Owner) -> bool:
    """Make a folder where there is none, for those who may read a file of `owner`.

    returns: whether it was made. raises: OSError.
    """
    if os.path.isdir(path):
        return False
    mode = 0o700 | (owner.mode & 0o044) | (owner.mode & 0o044) >> 2
    os.mkdir(path, mode)
    if os.geteuid() == 0:
        os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
    os.chmod(path, mode)  # whatever the umask took
    return True


def _written(path: str, octets: bytes, owner: Owner) -> str:
    """Return a temporary file beside `path` that has the content and the owner."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}")
    # SECURITY: made anew, mine alone until it has its owner, and no link is followed.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with open(descriptor, "wb") as file:
            if os.geteuid() == 0:  # only root can give away
                os.fchown(file.fileno(), owner.uid, owner.gid)
            os.fchmod(file.fileno(), owner.mode)
            file.write(octets)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def _sync(path: str) -> None:
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
