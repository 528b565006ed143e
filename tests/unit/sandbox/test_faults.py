"""relayd.sandbox.faults: a fault strikes whom it names, as often as it says."""

from __future__ import annotations

from typing import get_args

from relayd.sandbox.faults import SHAPES, FaultQueue
from relayd.sandbox.knobs import Fault, FaultKind


def struck(queue: FaultQueue, operation: str = "send", mailbox: str = "a@b.c") -> str:
    fault = queue.take(operation, mailbox)
    return fault.kind if fault else ""


def test_every_kind_has_a_shape() -> None:
    assert set(SHAPES) == set(get_args(FaultKind))


def test_faults_strike_in_order_and_are_used_up() -> None:
    queue = FaultQueue()
    queue.add([Fault(kind="503", times=2), Fault(kind="close")])
    assert [struck(queue) for _ in range(4)] == ["503", "503", "close", ""]
    assert dict(queue.happened) == {"503": 2, "close": 1}


def test_a_standing_fault_strikes_until_it_is_cleared() -> None:
    queue = FaultQueue()
    queue.add([Fault(kind="504", times=0)])
    assert [struck(queue) for _ in range(3)] == ["504"] * 3
    assert queue.waiting() == [(Fault(kind="504", times=0), 0)]
    queue.clear()
    assert struck(queue) == ""


def test_a_fault_spares_other_mailboxes_and_operations() -> None:
    queue = FaultQueue()
    queue.add([Fault(kind="503", mailbox="Other@b.c"), Fault(kind="aadsts", operation="token")])
    assert struck(queue) == ""
    assert struck(queue, mailbox="other@b.c") == "503"
    assert struck(queue, operation="token", mailbox="") == "aadsts"


def test_chance_is_repeatable_with_its_seed() -> None:
    def pattern(seed: int) -> list[str]:
        queue = FaultQueue()
        queue.add([Fault(kind="close", times=0, probability=0.5, seed=seed)])
        return [struck(queue) for _ in range(40)]

    assert pattern(1) == pattern(1)
    assert pattern(1) != pattern(2)
    assert {"", "close"} == set(pattern(1))
