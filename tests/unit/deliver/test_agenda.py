"""The loop sleeps as long as there is nothing to do, and no longer."""

from __future__ import annotations

from datetime import timedelta

import pytest

from relayd.spool.model import State
from tests.courier_scene import OTHER, Scene


def test_the_loop_sleeps_until_the_first_due_moment(scene: Scene) -> None:
    scene.door.put(mailbox=OTHER).state = State.DEFERRED
    scene.door.rows[1].due = scene.clock.now + timedelta(seconds=7)
    scene.start()

    assert scene.agenda.sleeps_until == pytest.approx(scene.clock.monotonic() + 7)
