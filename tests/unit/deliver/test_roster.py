"""Upstreams and mailboxes are known, shown and forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relayd.spool.model import MailboxRef
from tests.courier_scene import Scene, new


def test_an_unknown_upstream_is_not_touched_and_told_once(scene: Scene) -> None:
    scene.start()
    gone = MailboxRef("gone", "x@y")

    assert not scene.courier.wants(new(gone), 1)
    scene.courier.offer([gone, gone])
    scene.settle()

    assert scene.events() == ["upstream.unknown"]
    with pytest.raises(LookupError):
        scene.courier.take(replace(scene.door.put().lease, mailbox=gone))
