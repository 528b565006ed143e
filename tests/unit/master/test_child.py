"""The contract of birth: what the board hands out is the Pulse that a child is promised."""

from __future__ import annotations

from relayd.master.board import Board
from relayd.master.channel import Channel, pair
from relayd.master.child import ChildContext, Pulse, status_packets
from relayd.master.frames import Frame, Json


def test_a_row_of_the_board_is_a_pulse() -> None:
    pulse: Pulse = Board().row(0, max_connections=1, max_per_device=1)
    context = ChildContext(
        kind="worker",
        number=1,
        serial=1,
        config_fd=3,
        listeners=(("lan", 4),),
        channel_fd=5,
        pulse=pulse,
    )
    assert context.pulse.enter("ups")
    assert not context.pulse.enter("ups")


def through_a_channel(figures: Frame) -> list[dict[str, Json]]:
    """Return the packets as the master reads them; one that does not fit is an error."""
    ours, theirs = (Channel(sock) for sock in pair())
    out = []
    for packet in status_packets(figures):
        assert theirs.send(packet)
        received = ours.receive()
        assert received is not None
        out.append(received.members)
    ours.close()
    theirs.close()
    return out


def test_the_figures_of_three_hundred_upstreams_fit_their_packets() -> None:
    row: Frame = {"state": "down", "text": "é" * 300, "why": "w" * 800, "do": "d" * 300}
    upstreams = {f"upstream-{number}": row for number in range(300)}
    *parts, last = through_a_channel({"queue": {"ready": 1}, "upstreams": upstreams})
    assert last == {"event": "status", "queue": {"ready": 1}}
    assert {part["event"] for part in parts} == {"upstreams"}
    told: dict[str, Json] = {}
    for part in parts:
        rows = part["upstreams"]
        assert isinstance(rows, dict)
        assert not told.keys() & rows.keys()
        told |= rows
    assert told == upstreams


def test_a_worker_that_cannot_tell_of_its_upstreams_says_so() -> None:
    assert through_a_channel({"connections": 1}) == [
        {"event": "status", "upstreams": {}, "connections": 1}
    ]
