"""The contract of birth: what the board hands out is the Pulse that a child is promised."""

from __future__ import annotations

from relayd.master.board import Board
from relayd.master.child import ChildContext, Pulse


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
