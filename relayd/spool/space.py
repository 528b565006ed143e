"""Whether the spool's file system may be trusted, and whether it has room.

Locks, mmap and fsync on network file systems are not what SQLite needs: such a spool loses
mail without a word, so it is refused at the start. Room is looked at before a message
begins, because the middle of one is too late: low priority is refused first, high last.

Source: sqlite.org/wal.html (same host only), statvfs(3), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from relayd.clock import Clock
from relayd.errors import ConfigError, SpoolFull

_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "ncpfs", "gfs2", "ocfs2"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone"}
)
_FACTORS: Final[Mapping[int, float]] = {0: 0.5, 1: 1.0, 2: 2.0}
_FREE_INODES: Final = 1000
_LOOK_S: Final = 1.0


def refuse_network(folder: str, *, mounts: str = "/proc/self/mountinfo") -> None:
    """Raise ConfigError if `folder` lies on a network file system."""
    kind = _file_system(os.path.realpath(folder), mounts)
    if kind in _NETWORK:
        raise ConfigError(
            [
                (
                    f"[spool] url: {folder} is on a {kind} file system; the spool needs a local "
                    "disk, or mail would be lost when locks or flushes are not honoured"
                )
            ]
        )


def _file_system(folder: str, mounts: str) -> str:
    """Return the kind of the mount that `folder` lies on; "" where nobody says."""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.readlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        left, found, right = line.partition(" - ")
        fields = left.split()
        if not found or len(fields) < 5:
            continue
        point = fields[4].encode("latin-1", "replace").decode("unicode_escape")  # "\040" is a blank
        if len(point) >= len(best) and (folder + "/").startswith(point.rstrip("/") + "/"):
            best, kind = point, right.split()[0]
    return kind


class Space:
    """Room left on one file system; looked at once a second at most."""

    def __init__(
        self, folder: str, *, min_free_bytes: int, max_message_bytes: int, clock: Clock
    ) -> None:
        self._folder = folder
        self.floor_bytes = min_free_bytes + max_message_bytes * 3 // 2
        self._clock = clock
        self._looked_at = float("-inf")
        self.free_bytes = 0
        self.is_read_only = False
        self._free_inodes: int | None = None

    def check(self, priority: int) -> None:
        """Raise SpoolFull when a message of this priority should not begin."""
        now = self._clock.monotonic()
        if now - self._looked_at >= _LOOK_S:
            self._look()
            self._looked_at = now
        factor = _FACTORS.get(priority, 1.0)
        wanted = int(self.floor_bytes * factor)
        if self.free_bytes < wanted:
            raise SpoolFull(f"{self._folder}: {self.free_bytes} octets free, {wanted} wanted")
        if self._free_inodes is not None and self._free_inodes < _FREE_INODES * factor:
            raise SpoolFull(f"{self._folder}: {self._free_inodes} inodes free")

    def look_again(self) -> None:
        """Have the next `check` look at the disk, however short ago the last did."""
        self._looked_at = float("-inf")

    def _look(self) -> None:
        found = os.statvfs(self._folder)
        self.free_bytes = found.f_bavail * found.f_frsize
        self.is_read_only = bool(found.f_flag & os.ST_RDONLY)
        self._free_inodes = found.f_favail if found.f_files else None
