"""Packets keep their borders, bring descriptors, and say when the other end is gone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from relayd.master.channel import MAX_PACKET_BYTES, Channel, Packet, pair
from relayd.master.frames import Garbage


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = pair()
    yield Channel(ours), Channel(theirs)
    ours.close()
    theirs.close()


def test_packets_arrive_one_by_one(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    assert theirs.send({"event": "ready"})
    assert theirs.send({"event": "status", "connections": 3})
    assert ours.receive() == Packet({"event": "ready"}, ())
    assert ours.receive() == Packet({"event": "status", "connections": 3}, ())
    with pytest.raises(BlockingIOError):
        ours.receive()


def test_descriptors_ride_along_and_are_not_inherited(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    read_end, write_end = os.pipe()
    assert ours.send({"do": "control"}, [write_end])
    os.close(write_end)
    packet = theirs.receive()
    assert packet is not None
    assert not os.get_inheritable(packet.fds[0])
    os.write(packet.fds[0], b"x")
    os.close(packet.fds[0])
    assert os.read(read_end, 10) == b"x"
    os.close(read_end)


def test_the_end_is_none_and_sending_then_is_false(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.close()
    assert ours.receive() is None
    assert ours.send({"do": "drain"}) is False


def test_unread_packets_at_the_other_ends_death_are_no_error(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    assert ours.send({"do": "drain"})
    theirs.close()
    assert ours.receive() is None


def test_a_full_queue_makes_nobody_wait(ends: tuple[Channel, Channel]) -> None:
    ours, _ = ends
    sent = 0
    while ours.send({"text": "x" * 1000}):
        sent += 1
        assert sent < 100_000
    assert sent > 0


def test_too_large_is_told_to_the_sender(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(Garbage):
        ends[0].send({"text": "x" * MAX_PACKET_BYTES})


@pytest.mark.parametrize("octets", [b"nope", b"[1]", b"x" * (MAX_PACKET_BYTES + 1)])
def test_garbage_is_one_packet_and_the_next_is_fine(
    ends: tuple[Channel, Channel], octets: bytes
) -> None:
    ours, theirs = ends
    theirs.sock.send(octets)
    theirs.send({"event": "ready"})
    with pytest.raises(Garbage):
        ours.receive()
    assert ours.receive() == Packet({"event": "ready"}, ())
