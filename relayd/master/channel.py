"""One end of the packet socket between the master and a child (the words are in child.py).

A packet is one JSON object of at most 64 KiB; descriptors ride along as SCM_RIGHTS. Both
sides use this class: the master on a non-blocking socket, a child as it likes.

Source: unix(7), cmsg(3).
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

from relayd.master.frames import Frame, Garbage, Json, parse_object

MAX_PACKET_BYTES: Final = 64 * 1024
MAX_DESCRIPTORS: Final = 4
_ROOM_FOR_DESCRIPTORS: Final = socket.CMSG_LEN(MAX_DESCRIPTORS * array.array("i").itemsize)


class Packet(NamedTuple):
    """One received packet. fds: descriptors that came with it; the receiver owns them."""

    members: dict[str, Json]
    fds: tuple[int, ...]


def pair() -> tuple[socket.socket, socket.socket]:
    """Return both ends: the master's (non-blocking) and the child's (blocking)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


class Channel:
    """Sends and receives packets on `sock`, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self.sock.fileno()

    def close(self) -> None:
        """Close the socket; the other end reads end of file."""
        self.sock.close()

    def send(self, members: Frame, fds: Sequence[int] = ()) -> bool:
        """Send one packet with copies of `fds`.

        returns: False when the other end is gone, or its queue is full and the socket is
                 non-blocking; nothing was sent then.
        raises:  Garbage - larger than MAX_PACKET_BYTES.
        """
        octets = json.dumps(members, separators=(",", ":"), allow_nan=False).encode("ascii")
        if len(octets) > MAX_PACKET_BYTES:
            raise Garbage(f"packet of {len(octets)} octets")
        try:
            if fds:
                socket.send_fds(self.sock, [octets], list(fds), socket.MSG_NOSIGNAL)
            else:
                self.sock.send(octets, socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def receive(self) -> Packet | None:
        """Return the next packet; None at end of file.

        raises: BlockingIOError - none there and the socket is non-blocking.
                Garbage         - a packet that is no object; the channel itself goes on.
        """
        try:
            # Not socket.recv_fds: it drops the flags it is given, and descriptors would be
            # inherited by whatever the receiver executes.
            octets, ancillary, flags, _ = self.sock.recvmsg(
                MAX_PACKET_BYTES, _ROOM_FOR_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return None
        fds = _descriptors(ancillary)
        if not octets:
            _close(fds)
            return None
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise Garbage("packet too large")
            return Packet(parse_object(octets), tuple(fds))
        except Garbage:
            _close(fds)
            raise


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, octets in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(octets[: len(octets) - len(octets) % fds.itemsize])
    return list(fds)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
