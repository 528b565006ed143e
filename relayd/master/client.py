"""The other end of control.sock: ask the running master, or a worker through it.

    reply = client.ask(path, {"command": "queue.list", "state": "held"}, timeout_s=10)

Used by the command line, and by a starting master to see whether one runs already.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Final

from relayd.clock import SYSTEM
from relayd.master.frames import VERSION, Decoder, Frame, Garbage, Json, encode

CONTROL_SOCKET: Final = "control.sock"
_CLOSED: Final = "the connection was closed without an answer"


class NotRunning(Exception):
    """Nobody answers at the socket; `permitted` False: somebody may, but not to this user."""

    def __init__(self, text: str, *, permitted: bool = True) -> None:
        super().__init__(text)
        self.permitted = permitted


def ask(path: str, request: Frame, *, timeout_s: float) -> dict[str, Json]:
    """Return the (last) reply; raises NotRunning when there is none within `timeout_s`."""
    reply: dict[str, Json] = {}
    for reply in stream(path, request, timeout_s=timeout_s):  # noqa: B007  the last one is meant
        pass
    return reply


def stream(
    path: str, request: Frame, *, timeout_s: float, is_each: bool = False
) -> Iterator[dict[str, Json]]:
    """Yield each reply of a request; `timeout_s` is for all of them together.

    is_each: `timeout_s` is for each reply: an answer in many pages may take its time.
    raises: NotRunning - nobody there, not allowed in, silent for too long, or closed early.
    """
    deadline = _Deadline(timeout_s, is_each=is_each)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(path)
            sock.sendall(encode({"v": VERSION} | dict(request)))
            yield from _replies(sock, deadline)
        except PermissionError as error:
            raise NotRunning(f"{path}: permission denied", permitted=False) from error
        except (BrokenPipeError, ConnectionResetError) as error:
            # SECURITY: the master closes on strangers without a word, at times before we spoke.
            raise NotRunning(_CLOSED, permitted=False) from error
        except TimeoutError as error:
            raise NotRunning(f"{path}: no answer within {timeout_s:g} s") from error
        except OSError as error:
            raise NotRunning(f"{path}: {error.strerror or error}") from error
        except Garbage as error:
            raise NotRunning(f"{path}: the answer makes no sense ({error})") from error


class _Deadline:
    """When the answer, or its next reply, must be there."""

    def __init__(self, timeout_s: float, *, is_each: bool) -> None:
        self._timeout_s = timeout_s
        self._is_each = is_each
        self._at = SYSTEM.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return the seconds left; raises TimeoutError when there are none."""
        left_s = self._at - SYSTEM.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s

    def came(self) -> None:
        """Note a reply."""
        if self._is_each:
            self._at = SYSTEM.monotonic() + self._timeout_s


def _replies(sock: socket.socket, deadline: _Deadline) -> Iterator[dict[str, Json]]:
    decoder = Decoder()
    while True:
        sock.settimeout(deadline.left_s())
        data = sock.recv(65536)
        if not data:
            # SECURITY: the master closes on strangers without a word.
            raise NotRunning(_CLOSED, permitted=False)
        for frame in decoder.feed(data):
            yield frame
            if not frame.get("more"):
                return
            deadline.came()
