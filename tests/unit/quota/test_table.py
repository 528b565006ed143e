"""Never more than the capacity, never more than the minute's sends, nobody forgotten."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relayd.quota.table import (
    WINDOW_S,
    Ask,
    Claim,
    Granted,
    Recalled,
    Said,
    SlotTable,
    TimedOut,
)
from relayd.spool.model import MailboxRef

BOX = MailboxRef("contoso", "alerts@contoso.com")
OTHER = MailboxRef("contoso", "other@contoso.com")
NEVER = float("inf")


class Bench:
    """A table, its clock, and short words for asking it."""

    def __init__(self, *, is_open: bool = True, capacity: int = 3, per_minute: int = 0) -> None:
        self.table = SlotTable(is_open=is_open)
        self.now = 1000.0
        self.capacity = capacity
        self.per_minute = per_minute
        self._grant = 0

    def ask(
        self,
        connection: int,
        *,
        box: MailboxRef = BOX,
        priority: int = 1,
        timeout_s: float = NEVER,
    ) -> list[Said]:
        self._grant += 1
        ask = Ask(
            connection=connection,
            grant=self._grant,
            mailbox=box,
            capacity=self.capacity,
            per_minute=self.per_minute,
            priority=priority,
            deadline=self.now + timeout_s,
        )
        return self.table.ask(ask, self.now)

    def release(self, connection: int, grant: int, used: int = 1) -> list[Said]:
        return self.table.release(connection, grant, used, self.now)

    def later(self, seconds: float) -> list[Said]:
        self.now += seconds
        return self.table.tick(self.now)


def granted(said: list[Said]) -> list[tuple[int, int]]:
    return [(one.connection, one.grant) for one in said if isinstance(one, Granted)]


def recalled(said: list[Said]) -> list[tuple[int, bool]]:
    return [(one.connection, one.hard) for one in said if isinstance(one, Recalled)]


def test_no_more_than_the_capacity_is_granted() -> None:
    bench = Bench()
    for number in (1, 2, 3):
        assert bench.ask(1) == [Granted(1, number, None)]
    assert granted(bench.ask(1)) == []
    assert granted(bench.release(1, 2)) == [(1, 4)]


def test_mailboxes_do_not_wait_for_each_other() -> None:
    bench = Bench(capacity=1)
    bench.ask(1)
    assert granted(bench.ask(1)) == []
    assert granted(bench.ask(1, box=OTHER)) == [(1, 3)]


def test_higher_priority_goes_first() -> None:
    bench = Bench(capacity=1)
    bench.ask(1)
    bench.ask(2, priority=2)
    bench.ask(2, priority=1)
    bench.ask(2, priority=0)
    order = [bench.release(*last)[0] for last in [(1, 1), (2, 4), (2, 3)]]
    assert order == [Granted(2, 4, None), Granted(2, 3, None), Granted(2, 2, None)]


def test_whoever_holds_least_goes_before_whoever_came_first() -> None:
    bench = Bench(capacity=2)
    bench.ask(1)
    bench.ask(1)
    bench.ask(1)  # grant 3, came first
    bench.ask(2)  # grant 4, holds nothing
    assert granted(bench.release(1, 1)) == [(2, 4)]


def test_equals_go_in_the_order_they_came() -> None:
    bench = Bench(capacity=1)
    bench.ask(1)
    bench.ask(2)
    bench.ask(3)
    assert granted(bench.release(1, 1)) == [(2, 2)]
    assert granted(bench.release(2, 2)) == [(3, 3)]


def test_the_end_of_a_connection_frees_its_slots_and_forgets_its_wishes() -> None:
    bench = Bench(capacity=2)
    bench.ask(1)
    bench.ask(1)
    bench.ask(1)
    bench.ask(2)
    assert granted(bench.table.left(1, bench.now)) == [(2, 4)]
    assert [one.held for one in bench.table.use(bench.now)] == [1]


def test_a_wish_may_be_taken_back() -> None:
    bench = Bench(capacity=1)
    bench.ask(1)
    bench.ask(2)
    bench.ask(3)
    assert granted(bench.release(2, 2)) == []
    assert granted(bench.release(1, 1)) == [(3, 3)]


def test_an_unknown_grant_is_ignored() -> None:
    bench = Bench()
    assert bench.release(1, 99) == []
    bench.ask(1)
    assert bench.release(2, 1) == []
    assert bench.table.use(bench.now)[0].held == 1


def test_a_wish_ends_with_its_time() -> None:
    bench = Bench(capacity=1)
    bench.ask(1)
    bench.ask(2, timeout_s=5)
    assert TimedOut(2, 2) not in bench.later(4.9)
    assert TimedOut(2, 2) in bench.later(0.1)
    assert granted(bench.release(1, 1)) == []


def test_somebody_with_nothing_gets_one_back_from_the_richest() -> None:
    bench = Bench()
    for connection in (1, 1, 2):
        bench.ask(connection)
    assert recalled(bench.ask(3)) == [(1, True)]


def test_a_fair_share_is_not_taken_away() -> None:
    bench = Bench()
    for connection in (1, 1, 2):
        bench.ask(connection)
    assert recalled(bench.ask(2)) == [(1, False)]  # 2 against 1: only what is idle
    assert recalled(bench.ask(1)) == [(2, False)]


def test_high_priority_gets_one_back_whatever_the_shares() -> None:
    bench = Bench()
    for connection in (1, 1, 2):
        bench.ask(connection)
    assert recalled(bench.ask(1, priority=0)) == [(2, True)]


def test_nobody_recalls_from_itself() -> None:
    bench = Bench(capacity=1)
    bench.ask(1)
    assert recalled(bench.ask(1)) == []


def test_a_recall_is_repeated_each_second_while_somebody_waits() -> None:
    bench = Bench(capacity=1)
    bench.ask(1)
    assert recalled(bench.ask(2)) == [(1, True)]
    assert recalled(bench.later(0.5)) == []
    assert recalled(bench.later(0.5)) == [(1, True)]
    bench.release(1, 1)
    assert bench.later(10) == []


def test_the_minute_holds_so_many_sends_and_no_more() -> None:
    bench = Bench(capacity=50, per_minute=30)
    sends = 0
    while said := bench.ask(1):
        (one,) = said
        assert isinstance(one, Granted)
        assert one.sends is not None
        assert one.sends <= 5
        sends += one.sends
    assert sends == 30


def test_sends_given_back_unused_may_be_made_by_others() -> None:
    bench = Bench(capacity=2, per_minute=2)
    (one,) = bench.ask(1)
    assert one == Granted(1, 1, 1)
    bench.ask(1)
    assert granted(bench.ask(2)) == []
    assert granted(bench.release(1, 1, used=0)) == [(2, 3)]


def test_a_used_send_is_free_again_a_minute_later() -> None:
    bench = Bench(capacity=1, per_minute=1)
    bench.ask(1)
    bench.later(10)
    bench.release(1, 1, used=1)
    assert granted(bench.ask(1)) == []
    assert bench.table.next_due() == bench.now + WINDOW_S
    assert granted(bench.later(59.9)) == []
    assert granted(bench.later(0.2)) == [(1, 2)]


def test_high_priority_waits_for_no_pacing_but_counts() -> None:
    bench = Bench(capacity=3, per_minute=1)
    bench.ask(1)
    assert granted(bench.ask(1)) == []
    assert bench.ask(1, priority=0) == [Granted(1, 3, 1)]
    bench.release(1, 1)
    bench.later(1)
    bench.release(1, 3)
    assert granted(bench.later(59.5)) == []  # its send still counts
    assert granted(bench.later(0.6)) == [(1, 2)]


def test_a_dead_connection_may_have_made_all_its_sends() -> None:
    bench = Bench(capacity=3, per_minute=6)
    bench.per_minute = 6
    bench.ask(1)
    bench.table.left(1, bench.now)
    assert bench.table.use(bench.now)[0].sent == 1


def test_without_pacing_a_grant_is_good_for_any_number() -> None:
    assert Bench().ask(1) == [Granted(1, 1, None)]


def test_a_new_table_grants_nothing_until_it_is_opened() -> None:
    bench = Bench(is_open=False, capacity=2)
    assert bench.ask(1) == []
    for grant in (7, 8):
        bench.table.claim(
            Claim(connection=2, grant=grant, mailbox=BOX, capacity=2, per_minute=0, sends=None),
            bench.now,
        )
    assert granted(bench.table.open(bench.now)) == []
    assert granted(bench.release(2, 7)) == [(1, 1)]


def test_claims_beyond_the_capacity_are_waited_out() -> None:
    bench = Bench(capacity=1)
    for grant in (7, 8):
        bench.table.claim(
            Claim(connection=2, grant=grant, mailbox=BOX, capacity=1, per_minute=0, sends=None),
            bench.now,
        )
    assert granted(bench.ask(1)) == []
    assert granted(bench.release(2, 7)) == []
    assert granted(bench.release(2, 8)) == [(1, 1)]


def test_claimed_sends_of_the_last_minute_count() -> None:
    bench = Bench(capacity=2, per_minute=3)
    bench.table.claim(
        Claim(
            connection=2,
            grant=7,
            mailbox=BOX,
            capacity=2,
            per_minute=3,
            sends=0,
            recent=[50.0, 10.0, 70.0, -1.0],
        ),
        bench.now,
    )
    assert granted(bench.ask(1)) == [(1, 1)]
    assert granted(bench.ask(1)) == []
    bench.release(2, 7, used=0)
    assert granted(bench.later(10.1)) == [(1, 2)]


def test_a_mailbox_nobody_uses_is_forgotten() -> None:
    bench = Bench(per_minute=6)
    bench.ask(1)
    bench.release(1, 1)
    assert bench.table.use(bench.now)
    bench.later(61)
    assert bench.table.use(bench.now) == ()
    assert bench.table.next_due() == NEVER


def test_a_changed_capacity_is_obeyed_from_the_next_question() -> None:
    bench = Bench(capacity=1)
    bench.ask(1)
    assert granted(bench.ask(1)) == []
    bench.capacity = 3
    assert granted(bench.ask(1)) == [(1, 2), (1, 3)]


class Table(RuleBasedStateMachine):
    """Random workers; an obvious second book is kept beside the table's."""

    CAPACITY = 3
    PER_MINUTE = 6

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(is_open=True)
        self.now = 1000.0
        self.grant = 0
        self.wishes: dict[tuple[int, int], int] = {}  # -> priority
        self.held: dict[tuple[int, int], int] = {}  # -> sends
        self.sent: list[float] = []
        self.high = 0

    def hear(self, said: list[Said]) -> None:
        for one in said:
            match one:
                case Granted(connection, grant, sends):
                    assert sends is not None
                    assert sends >= 1
                    priority = self.wishes.pop((connection, grant))
                    self.held[connection, grant] = sends
                    if priority:
                        assert self.in_window() <= self.PER_MINUTE
                case TimedOut(connection, grant):
                    del self.wishes[connection, grant]
                case Recalled(connection):
                    assert any(key[0] == connection for key in self.held)

    def in_window(self) -> int:
        return sum(self.held.values()) + sum(1 for at in self.sent if at > self.now - WINDOW_S)

    @rule(connection=st.integers(1, 3), priority=st.integers(0, 2), patience=st.floats(0, 90))
    def ask(self, connection: int, priority: int, patience: float) -> None:
        self.grant += 1
        self.wishes[connection, self.grant] = priority
        ask = Ask(
            connection=connection,
            grant=self.grant,
            mailbox=BOX,
            capacity=self.CAPACITY,
            per_minute=self.PER_MINUTE,
            priority=priority,
            deadline=self.now + patience,
        )
        self.hear(self.table.ask(ask, self.now))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        used = data.draw(st.integers(0, self.held.pop(key)))
        self.sent += [self.now] * used
        self.hear(self.table.release(*key, used, self.now))

    @precondition(lambda self: self.wishes)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.wishes)))
        del self.wishes[key]
        self.hear(self.table.release(*key, 0, self.now))

    @rule(connection=st.integers(1, 3))
    def die(self, connection: int) -> None:
        for key in [key for key in self.held if key[0] == connection]:
            self.sent += [self.now] * self.held.pop(key)
        for key in [key for key in self.wishes if key[0] == connection]:
            del self.wishes[key]
        said = self.table.left(connection, self.now)
        assert not [one for one in said if one.connection == connection]
        self.hear(said)

    @rule(seconds=st.floats(0, 70))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.hear(self.table.tick(self.now))

    @invariant()
    def capacity_holds(self) -> None:
        assert len(self.held) <= self.CAPACITY

    @invariant()
    def books_agree(self) -> None:
        use = self.table.use(self.now)
        assert sum(one.held for one in use) == len(self.held)
        assert sum(one.waiting for one in use) == len(self.wishes)

    @invariant()
    def nobody_waits_for_what_is_there(self) -> None:
        has_slot = len(self.held) < self.CAPACITY
        for priority in self.wishes.values():
            # Time that went by without a tick is the caller's; the rules tick at once.
            assert not (has_slot and (priority == 0 or self.in_window() < self.PER_MINUTE))

    @invariant()
    def somebody_will_look_again(self) -> None:
        assert not self.wishes or self.table.next_due() < NEVER


TestTable = Table.TestCase
TestTable.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("workers", [2, 3, 4, 7])
def test_workers_that_all_have_work_share_evenly(workers: int) -> None:
    """Each always wants one more, and gives one back when asked to at its next completion."""
    bench, served = Bench(), dict.fromkeys(range(workers), 0)
    holding: list[tuple[int, int]] = []
    owed: dict[int, int] = {}

    def hear(said: list[Said]) -> None:
        holding.extend(granted(said))
        for connection, hard in recalled(said):
            owed[connection] = owed.get(connection, 0) + hard

    for connection in range(workers):
        hear(bench.ask(connection))
        hear(bench.ask(connection))
    for _ in range(60 * workers):
        connection, grant = holding.pop(0)
        served[connection] += 1
        if owed.get(connection):
            owed[connection] -= 1
            hear(bench.release(connection, grant))
            hear(bench.ask(connection))
        else:
            holding.append((connection, grant))
        hear(bench.later(0.1))
    assert max(served.values()) <= 3 * min(served.values()), served
