"""Whatever happens in whatever order: nothing is lost, nothing is in two hands.

The same steps are taken on a spool in memory and on SQLite; both must stand alike after each,
every visible move must be in NEXT, and a delivery is leased to one holder at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from relayd.errors import LeaseLost
from relayd.spool.model import NEXT, Lease, MailboxRef, QueueId, Redirect, Settlement, State
from relayd.spool.moves import TURNED_BY, Why
from tests.spooling import (
    ALERTS,
    FAILED,
    OTHER,
    RETURNED,
    SCANS,
    SENT,
    MemoryBackend,
    SqliteBackend,
    Store,
    Taker,
    deferred,
    denied,
    put,
    way,
)

BOXES = st.sampled_from([ALERTS, SCANS, OTHER])
FROMS = st.sampled_from(["ups@contoso.com", "nas@contoso.com"])
WAYS = st.lists(
    st.builds(lambda box, one: way(box, header_from=one), BOXES, FROMS), min_size=1, max_size=3
)
WISHES = st.sampled_from(["retry", "hold", "release", "delete"])
PICK = st.integers(0, 1000)


class Spools(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="stateful-"))
        self.memory = MemoryBackend(self.folder, ambiguous="hold")
        self.sqlite = SqliteBackend(self.folder, ambiguous="hold")
        self.doors: list[tuple[Store, Store]] = []
        self.leases: list[tuple[int, Lease, Lease]] = []  # door, as memory and as sqlite gave it
        self.accepted: list[QueueId] = []
        self.seen: dict[int, State] = {}
        self.hands: dict[int, tuple[int, float]] = {}  # delivery -> door, until

    def teardown(self) -> None:
        self.sqlite.close()
        shutil.rmtree(self.folder)

    def both(self, door: int, do: Callable[[Store], object]) -> object:
        """Do it to both; they must answer alike."""
        outcomes = []
        for one in self.doors[door % len(self.doors)]:
            try:
                outcomes.append(do(one))
            except LeaseLost:
                outcomes.append(LeaseLost)
        assert outcomes[0] == outcomes[1]
        return outcomes[0]

    @initialize()
    def begin(self) -> None:
        self.open()
        self.open()

    def open(self) -> None:
        self.doors.append((self.memory.open(), self.sqlite.open()))

    @rule(door=PICK, ways=WAYS, priority=st.integers(0, 2), wanted=st.booleans())
    def accept(self, *, door: int, ways: list[object], priority: int, wanted: bool) -> None:
        index = door % len(self.doors)
        takers = Taker(wanted=wanted), Taker(wanted=wanted)
        ids = []
        for one, taker, clock in zip(
            self.doors[index], takers, (self.memory.clock, self.sqlite.clock), strict=True
        ):
            one.work()  # sees the other doors' Holds
            one.set_taker(taker)
            ids.append(put(one, clock, *ways, priority=priority, max_age_s=5000))  # type: ignore[arg-type]  # hypothesis gives objects
        assert ids[0] == ids[1]
        self.accepted.append(ids[0])
        for mine, other in zip(takers[0].taken, takers[1].taken, strict=True):
            self.got(index, mine, other)

    def got(self, door: int, mine: Lease, other: Lease) -> None:
        assert mine == other
        assert mine.delivery not in self.hands
        self.hands[mine.delivery] = (door, mine.expires_boottime)
        self.leases.append((door, mine, other))

    @rule(door=PICK, box=BOXES, limit=st.integers(0, 3))
    def lease(self, door: int, box: object, limit: int) -> None:
        index = door % len(self.doors)
        mine, other = (one.lease(box, limit=limit) for one in self.doors[index])  # type: ignore[arg-type]  # likewise
        assert len(mine) == len(other) <= limit
        for first, second in zip(mine, other, strict=True):
            self.got(index, first, second)

    @precondition(lambda self: self.leases)
    @rule(
        pick=PICK,
        how=st.sampled_from(["sent", "failed", "returned", "deferred", "denied", "ambiguous"]),
    )
    def settle(self, pick: int, how: str) -> None:
        door, lease, _ = self.leases.pop(pick % len(self.leases))
        outcome = self.both(door, lambda one: one.settle(lease, self.settlement(how)))
        if outcome is not LeaseLost:
            assert self.hands.pop(lease.delivery)[0] == door

    def settlement(self, how: str) -> Settlement:
        clock = self.memory.clock
        made = {"sent": SENT, "failed": FAILED, "returned": RETURNED}
        return (
            made.get(how)
            or {
                "deferred": deferred(clock, 60),
                "denied": denied(clock, 1800),
                "ambiguous": Settlement(state=State.HELD, outcome="ambiguous", held_by="ambiguous"),
            }[how]
        )

    @precondition(lambda self: self.leases)
    @rule(pick=PICK)
    def renew(self, pick: int) -> None:
        door, lease, _ = self.leases[pick % len(self.leases)]
        outcome = self.both(door, lambda one: one.renew(lease))
        if isinstance(outcome, Lease):
            self.hands[lease.delivery] = (door, outcome.expires_boottime)

    @rule(seconds=st.sampled_from([1.0, 61.0, 241.0, 1801.0]))
    def time_passes(self, seconds: float) -> None:
        self.memory.clock.advance(seconds)
        self.sqlite.clock.advance(seconds)

    @rule(door=PICK)
    def crash(self, door: int) -> None:
        index = door % len(self.doors)
        memory, sqlite = self.doors[index]
        self.memory.crash(memory)
        self.sqlite.crash(sqlite)
        self.doors[index] = (self.memory.open(), self.sqlite.open())
        self.leases = [one for one in self.leases if one[0] != index]
        self.hands = {  # still leased, but to nobody: reclaim must find them
            one: (-1, 0.0) if held[0] == index else held for one, held in self.hands.items()
        }
        self.reclaim(door)

    @rule(door=PICK)
    def reclaim(self, door: int) -> None:
        now = self.memory.clock.boottime()
        lost = [one for one, (_, until) in self.hands.items() if until < now]
        assert self.both(door, lambda one: one.reclaim()) == len(lost)
        for one in lost:
            del self.hands[one]

    @precondition(lambda self: self.accepted)
    @rule(door=PICK, pick=PICK, wish=WISHES)
    def operate(self, door: int, pick: int, wish: str) -> None:
        message = self.accepted[pick % len(self.accepted)]
        self.both(door, lambda one: getattr(one, wish)([message]))

    @rule(door=PICK, box=BOXES)
    def follow(self, door: int, box: MailboxRef) -> None:
        """Have all of an upstream's mail go through one mailbox, as a worker does."""

        def once(one: Store) -> int:
            total = 0
            while courses := one.astray([box]):
                turned = [
                    Redirect(
                        course=each, mailbox=box, set_from=each.header_from, reply_to_original=False
                    )
                    for each in courses
                ]
                total += one.redirect(turned, "configuration")
            return total

        self.both(door, once)

    @precondition(lambda self: self.accepted)
    @rule(door=PICK, pick=PICK, box=BOXES, why=st.sampled_from(["operator", "wish"]))
    def redirect(self, *, door: int, pick: int, box: MailboxRef, why: Why) -> None:
        message = self.accepted[pick % len(self.accepted)]

        def once(one: Store) -> int:
            courses = one.courses([message], TURNED_BY["operator"], with_content=True)
            turned = [
                Redirect(course=each, mailbox=box, set_from="x@y.z", reply_to_original=True)
                for each in courses
            ]
            if why == "operator":
                return one.redirect(turned, why)
            return one.retry([message], turned)

        self.both(door, once)

    @rule(door=PICK)
    def sweep(self, door: int) -> None:
        self.both(door, lambda one: sorted(one.sweep(), key=lambda gone: gone.delivery))

    @rule(door=PICK, upstream=st.sampled_from(["contoso", "fabrikam"]))
    def hasten(self, door: int, upstream: str) -> None:
        self.both(door, lambda one: one.hasten(upstream))

    @rule(door=PICK)
    def look(self, door: int) -> None:
        self.both(door, lambda one: one.work())

    @invariant()
    def both_stand_alike_and_every_move_is_allowed(self) -> None:
        if not self.doors:
            return
        states = self.sqlite.states()
        assert states == self.memory.states()
        for delivery, (_, state, _) in states.items():
            before = self.seen.get(delivery, state)
            assert state is before or state in NEXT[before], (before, state)
            self.seen[delivery] = state

    @invariant()
    def nothing_is_lost(self) -> None:
        assert {row[0] for row in self.memory.states().values()} == set(self.accepted)
        for message, state, _ in self.memory.states().values():
            if state not in {State.SENT, State.FAILED, State.DELETED}:
                assert message in self.memory.spool.contents

    @invariant()
    def what_is_leased_is_in_a_hand(self) -> None:
        leased = {
            one for one, (_, state, _) in self.memory.states().items() if state is State.LEASED
        }
        assert leased == set(self.hands)


@pytest.mark.slow(12)
@pytest.mark.timeout(120)
def test_nothing_is_lost_and_nothing_is_in_two_hands() -> None:
    run_state_machine_as_test(
        Spools,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
