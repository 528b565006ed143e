"""sd_notify without a library; without systemd every call does nothing, and none ever fails.

The master says READY=1 when its first workers serve, RELOADING=1 with MONOTONIC_USEC while
it changes configuration (and READY=1 after), STOPPING=1, WATCHDOG=1 at half of WATCHDOG_USEC,
EXTEND_TIMEOUT_USEC where a drain or a migration takes longer than the unit may know, and
STATUS= with one line for `systemctl status`. Listening sockets go into the fd store, so that a
killed master's successor finds them.

Source: sd_notify(3), sd_watchdog_enabled(3), sd_pid_notify_with_fds(3), systemd.service(5).
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Final

from relayd.clock import SYSTEM, Clock

_LONGEST_STATUS: Final = 400


class Notifier:
    """Talks to the service manager named by NOTIFY_SOCKET, if any."""

    def __init__(self, environ: Mapping[str, str], *, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        path = environ.get("NOTIFY_SOCKET", "")
        # "@" is how an abstract address is written; other families (vsock) are not for us.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        if not path.startswith(("@", "/")):
            self._address = ""
        self._status = ""
        self.watchdog_s = _watchdog_s(environ)
        """How often to say WATCHDOG=1, seconds; 0.0: nobody waits for it."""

    @property
    def is_wanted(self) -> bool:
        """Tell whether a service manager listens."""
        return bool(self._address)

    def ready(self) -> None:
        """Say that mail is taken (again)."""
        self._send([f"MAINPID={os.getpid()}", "READY=1"])

    def reloading(self) -> None:
        """Say that a reload began; `ready` ends it."""
        usec = int(self._clock.monotonic() * 1_000_000)
        self._send(["RELOADING=1", f"MONOTONIC_USEC={usec}"])

    def extend(self, seconds: float) -> None:
        """Ask for patience: what is under way may need so long from now."""
        if math.isfinite(seconds):
            self._send([f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}"])

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._send(["STOPPING=1"])

    def watchdog(self) -> None:
        """Say that the loop turns."""
        self._send(["WATCHDOG=1"])

    def status(self, text: str) -> None:
        """Set the line of `systemctl status`; the same line twice is sent once."""
        # SECURITY: a newline would start another assignment, MAINPID= for one.
        line = "".join(c if c.isprintable() else " " for c in text)[:_LONGEST_STATUS]
        if line != self._status:
            self._status = line
            self._send([f"STATUS={line}"])

    def store(self, name: str, fd: int) -> None:
        """Leave a copy of `fd` with the service manager; returned by LISTEN_FDS at a restart."""
        self._send(["FDSTORE=1", f"FDNAME={name}"], [fd])

    def forget(self, name: str) -> None:
        """Have the service manager close what was stored under `name`."""
        self._send(["FDSTOREREMOVE=1", f"FDNAME={name}"])

    def _send(self, lines: Sequence[str], fds: Sequence[int] = ()) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.connect(self._address)
                octets = "\n".join(lines).encode("utf-8", "replace")
                if fds:
                    socket.send_fds(sock, [octets], list(fds))
                else:
                    sock.send(octets)
        except OSError:
            # The service manager is away or busy: mail must not suffer from that.
            return


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Return half of WATCHDOG_USEC, seconds, when it is meant for this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return max(0, int(environ.get("WATCHDOG_USEC", "0"))) / 2_000_000
    except ValueError:
        return 0.0
