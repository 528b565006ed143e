"""Slots of several workers together: never too many, soon given on, safe while cached is away."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relayd.cache.client import Client
from relayd.cache.frames import Payload
from relayd.cache.server import Server
from relayd.errors import CacheUnavailable
from relayd.quota.desk import SlotDesk
from relayd.quota.slots import SlotClient
from relayd.spool.model import MailboxRef
from tests.cache_loop import Turning

BOX = MailboxRef("contoso", "alerts@contoso.com")
OTHER = MailboxRef("contoso", "other@contoso.com")
LONG_S = 10.0


class House:
    """A daemon that can die and come back, and workers that hold on."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.clients: list[Client] = []
        self.desk: SlotDesk | None = None
        self.loop: Turning | None = None

    def up(self, *, expected: int = 0, grace_s: float = 0.0) -> None:
        desk = SlotDesk(expected=expected, grace_s=grace_s)
        self.desk = desk
        self.loop = Turning(Server(self.path, desk.handlers(), on_close=desk.left), desk.tick)
        self.loop.__enter__()

    def down(self) -> None:
        if self.loop is not None:
            self.loop.__exit__(None, None, None)
            self.loop = None

    def worker(
        self, number: int = 1, *, linger_s: float = 60.0, away_grace_s: float = 0.0
    ) -> SlotClient:
        client = Client(self.path)
        slots = SlotClient(client, number=number, linger_s=linger_s, away_grace_s=away_grace_s)
        client.start()
        self.clients.append(client)
        if self.loop is not None:
            assert client.wait_connected(LONG_S)
        return slots

    def back(self) -> None:
        """Wait until every worker is connected again."""
        for client in self.clients:
            assert client.wait_connected(LONG_S)

    def gone(self) -> None:
        """Wait until every worker has noticed."""
        until(lambda: all(client.away_s > 0 for client in self.clients))

    def use(self) -> list[tuple[int, int]]:
        """Return (held, waiting) for each mailbox, as the daemon sees it."""
        assert self.loop is not None
        seen: list[tuple[int, int]] = []

        def look() -> None:
            assert self.desk is not None
            for one in self.desk.status():
                assert isinstance(one, dict)
                seen.append((int(str(one["held"])), int(str(one["waiting"]))))

        self.loop.do(look)
        return seen


def until(what: Callable[[], bool]) -> None:
    wait = threading.Event()
    for _ in range(2000):
        if what():
            return
        wait.wait(0.005)
    pytest.fail("it never came")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(str(tmp_path / "cache.sock"))
    yield made
    for client in made.clients:
        client.close()
    made.down()


def behind(work: Callable[[], bool]) -> tuple[threading.Thread, list[bool]]:
    got: list[bool] = []
    thread = threading.Thread(target=lambda: got.append(work()))
    thread.start()
    return thread, got


def test_nothing_lingers_at_first(house: House) -> None:
    house.up()
    assert not house.worker().try_acquire(BOX)


def test_a_released_slot_lingers_for_the_next_message(house: House) -> None:
    house.up()
    slots = house.worker()
    assert slots.acquire(BOX, 1, LONG_S)
    assert not slots.try_acquire(BOX)
    slots.release(BOX)
    for _ in range(100):
        assert slots.try_acquire(BOX)
        slots.release(BOX)
    assert house.use() == [(1, 0)]
    assert slots.acquire(BOX, 1, 0.0)  # takes the lingering one, whatever the time


def test_it_goes_back_when_nobody_came(house: House) -> None:
    house.up()
    slots = house.worker(linger_s=0.01)
    slots.acquire(BOX, 1, LONG_S)
    slots.release(BOX)
    until(lambda: house.use() == [])
    slots.acquire(OTHER, 1, LONG_S)
    slots.release(OTHER)
    until(lambda: house.use() == [])


def test_workers_together_stay_within_the_capacity(house: House) -> None:
    house.up()
    workers = [house.worker(number) for number in (1, 2)]
    lock, flying, most, sent = threading.Lock(), 0, 0, 0

    def deliver(slots: SlotClient) -> None:
        nonlocal flying, most, sent
        for _ in range(40):
            assert slots.try_acquire(BOX) or slots.acquire(BOX, 3, LONG_S)
            with lock:
                flying += 1
                most = max(most, flying)
            with lock:
                flying -= 1
                sent += 1
            slots.release(BOX)

    threads = [
        threading.Thread(target=deliver, args=(slots,)) for slots in workers for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sent == 320
    assert most <= 3


def test_a_lingering_slot_is_given_up_when_another_worker_needs_it(house: House) -> None:
    house.up()
    first, second = house.worker(1), house.worker(2)
    first.acquire(BOX, 1, LONG_S)
    first.release(BOX)
    assert second.acquire(BOX, 1, LONG_S)
    assert not first.try_acquire(BOX)


def test_a_busy_slot_is_given_up_after_its_message(house: House) -> None:
    house.up()
    first, second = house.worker(1), house.worker(2)
    first.acquire(BOX, 1, LONG_S)
    thread, got = behind(lambda: second.acquire(BOX, 1, LONG_S))
    until(lambda: first._mailboxes[BOX].recalled == 1)
    assert got == []
    first.release(BOX)
    assert not first.try_acquire(BOX)
    thread.join()
    assert got == [True]


class Scripted(Client):
    """A connection to nobody, which grants; `mishap` happens while the first call waits."""

    def __init__(self, mishap: Callable[[Scripted], None]) -> None:
        super().__init__("/nowhere")
        self._mishap = mishap
        self.calls: list[Payload] = []
        self.told: list[tuple[str, Payload]] = []

    def tell(self, method: str, payload: Payload) -> None:
        self.told.append((method, payload))

    def connect(self) -> None:
        for hook in self._connect_hooks:
            hook(self.tell)

    def call(self, method: str, payload: Payload, *, timeout_s: float = 1.0) -> Payload:
        self.calls.append(payload)
        if len(self.calls) == 1:
            self._mishap(self)
        return {"granted": True, "sends": None}


def be_too_late(_client: Scripted) -> None:
    raise CacheUnavailable("too late")


@pytest.mark.parametrize("mishap", [Scripted.connect, be_too_late])
def test_a_grant_that_got_lost_is_given_back_and_asked_for_again(
    mishap: Callable[[Scripted], None],
) -> None:
    """It was under way when the connection ended or the time was over."""
    client = Scripted(mishap)
    slots = SlotClient(client, number=1)
    client.connect()
    assert slots.acquire(BOX, 1, LONG_S)
    assert len(client.calls) == 2
    released = [payload for method, payload in client.told if method == "slot.release"]
    assert [payload["grant"] for payload in released] == [client.calls[0]["grant"]]
    assert slots.held() == {BOX: 1}


def test_a_slot_given_up_goes_to_a_waiter_of_the_same_worker(house: House) -> None:
    house.up()
    slots = house.worker()
    slots.acquire(BOX, 1, LONG_S)
    thread, got = behind(lambda: slots.acquire(BOX, 1, LONG_S))
    until(lambda: house.use() == [(1, 1)])
    held = slots._mailboxes[BOX].busy[0].grant
    slots.release(BOX)
    thread.join()
    assert got == [True]
    assert slots._mailboxes[BOX].busy[0].grant == held, "the daemon had no hand in it"


def test_a_slot_is_kept_for_the_next_message_unless_somebody_else_is_to_have_it(
    house: House,
) -> None:
    house.up()
    first, second = house.worker(1), house.worker(2)
    assert first.acquire(BOX, 1, LONG_S)
    for _ in range(5):
        assert first.again(BOX)
    assert first.again(BOX, unused=True)
    assert first._mailboxes[BOX].busy[0].used == 6
    thread, got = behind(lambda: second.acquire(BOX, 1, LONG_S))
    until(lambda: first._mailboxes[BOX].recalled == 1)

    assert not first.again(BOX)

    thread.join()
    assert got == [True]
    assert first.held() == {}
    assert not first.again(OTHER), "what was never held is not kept"


def test_a_slot_is_not_kept_from_urgent_mail_nor_beyond_its_sends(house: House) -> None:
    house.up()
    slots = house.worker()
    assert slots.acquire(BOX, 1, LONG_S, per_minute=12)
    assert slots.again(BOX)  # a grant is good for a sixth of a minute's sends
    assert not slots.again(BOX)

    assert slots.acquire(OTHER, 1, LONG_S)
    high, high_got = behind(lambda: slots.acquire(OTHER, 1, LONG_S, priority=0))
    until(lambda: slots._mailboxes[OTHER].urgent == 1)
    assert not slots.again(OTHER)
    high.join()
    assert high_got == [True]


def test_a_slot_that_comes_too_late_lingers_and_goes_back(house: House) -> None:
    house.up()
    slots, other = house.worker(linger_s=0.01), house.worker(2)
    other.acquire(BOX, 2, LONG_S)
    slots.acquire(BOX, 2, LONG_S)
    thread, got = behind(lambda: slots.acquire(BOX, 2, LONG_S))
    until(lambda: house.use() == [(2, 1)])
    slots.release(BOX)
    thread.join()
    slots.release(BOX)
    until(lambda: house.use() == [(1, 0)])  # the one still asked for came, lingered, went back
    assert got == [True]
    assert slots._mailboxes == {}


def test_urgent_mail_gets_a_slot_given_up_here_before_others(house: House) -> None:
    house.up()
    slots = house.worker()
    slots.acquire(BOX, 1, LONG_S)
    normal, normal_got = behind(lambda: slots.acquire(BOX, 1, LONG_S))
    until(lambda: slots._mailboxes[BOX].waiting == 1)
    high, high_got = behind(lambda: slots.acquire(BOX, 1, LONG_S, priority=0))
    until(lambda: slots._mailboxes[BOX].urgent == 1)
    slots.release(BOX)
    assert not slots.try_acquire(BOX), "who only passes by does not overtake it"
    high.join()
    assert (normal_got, high_got) == ([], [True])
    slots.release(BOX)
    normal.join()
    assert normal_got == [True]


def test_a_wait_ends_with_its_time(house: House) -> None:
    house.up()
    first, second = house.worker(1), house.worker(2)
    first.acquire(BOX, 1, LONG_S)
    assert not second.acquire(BOX, 1, 0.01)
    until(lambda: house.use() == [(1, 0)])  # the daemon's own clock rings a moment later


def test_high_priority_goes_first(house: House) -> None:
    house.up()
    first, second = house.worker(1), house.worker(2)
    first.acquire(BOX, 1, LONG_S)
    low, low_got = behind(lambda: second.acquire(BOX, 1, LONG_S, priority=2))
    until(lambda: house.use() == [(1, 1)])
    high, high_got = behind(lambda: second.acquire(BOX, 1, LONG_S, priority=0))
    until(lambda: house.use() == [(1, 2)])
    first.release(BOX)
    high.join()
    assert (low_got, high_got) == ([], [True])
    second.release(BOX)
    low.join()
    assert low_got == [True]


def test_who_let_urgent_mail_go_first_gets_the_slot_beside_it(house: House) -> None:
    """Both come free at once: the one who waits longer looks first, and must look again."""
    house.up()
    slots = house.worker()
    for _ in range(2):
        slots.acquire(BOX, 2, LONG_S)
    normal, normal_got = behind(lambda: slots.acquire(BOX, 2, 3600.0))  # nothing else wakes it
    until(lambda: slots._mailboxes[BOX].waiting == 1)
    high, high_got = behind(lambda: slots.acquire(BOX, 2, 3600.0, priority=0))
    until(lambda: slots._mailboxes[BOX].urgent == 1)
    mailbox, waiters = slots._mailboxes[BOX], slots._changed._waiters  # type: ignore[attr-defined]  # to see who has looked
    with slots._lock:
        mailbox.idle += mailbox.busy
        mailbox.busy.clear()
        slots._changed.notify(1)
    until(lambda: len(waiters) == 2)  # the normal one has let the other go first
    with slots._lock:
        slots._changed.notify(1)
    high.join()
    normal.join()

    assert (high_got, normal_got) == ([True], [True])


def test_pacing_is_obeyed_across_workers(house: House) -> None:
    house.up()
    workers = [house.worker(number) for number in (1, 2)]
    sent = 0
    for _ in range(8):
        for slots in workers:
            if slots.try_acquire(BOX) or slots.acquire(BOX, 3, 0.01, per_minute=6):
                sent += 1
                slots.release(BOX)
    assert sent == 6
    assert workers[0].acquire(BOX, 3, LONG_S, per_minute=6, priority=0)


def test_an_unused_slot_does_not_count_for_pacing(house: House) -> None:
    house.up()
    slots = house.worker()
    for _ in range(10):
        assert slots.try_acquire(BOX) or slots.acquire(BOX, 1, LONG_S, per_minute=1)
        slots.release(BOX, unused=True)


def test_without_pacing_a_lingering_slot_asks_nobody(house: House) -> None:
    house.up()
    slots = house.worker()
    slots.acquire(BOX, 1, LONG_S)
    slots.release(BOX)
    house.down()
    for _ in range(10):
        assert slots.try_acquire(BOX)
        slots.release(BOX)


def test_while_the_daemon_is_away_a_worker_has_its_share(house: House) -> None:
    workers = [house.worker(number) for number in (1, 2, 3)]
    got = [slots.acquire(BOX, 2, 0.01) for slots in workers]
    assert got == [True, True, False]
    assert not workers[0].acquire(BOX, 2, 0.01)
    workers[0].release(BOX)
    assert workers[0].acquire(BOX, 2, 0.01)


def test_a_share_is_paced_too(house: House) -> None:
    slots = house.worker()
    sent = 0
    for _ in range(10):
        if slots.acquire(BOX, 2, 0.0, per_minute=6) or slots.acquire(BOX, 2, 0.01, per_minute=6):
            sent += 1
            slots.release(BOX)
    assert sent == 3


def test_a_short_absence_is_waited_out(house: House) -> None:
    slots = house.worker(away_grace_s=60.0)
    assert not slots.acquire(BOX, 1, 0.01)
    thread, got = behind(lambda: slots.acquire(BOX, 1, LONG_S))
    house.up()
    thread.join()
    assert got == [True]


def test_what_is_held_is_claimed_before_anybody_is_granted(house: House) -> None:
    house.up()
    first, second = house.worker(1, away_grace_s=60.0), house.worker(2, away_grace_s=60.0)
    assert first.acquire(BOX, 1, LONG_S)
    house.down()
    house.gone()
    assert first.held() == {BOX: 1}
    house.up(expected=2, grace_s=60.0)
    house.back()
    assert not second.acquire(BOX, 1, 0.05)
    first.release(BOX)
    assert second.acquire(BOX, 1, LONG_S)


def test_a_share_in_use_is_claimed_too(house: House) -> None:
    first, second = house.worker(1), house.worker(2)
    assert first.acquire(BOX, 1, LONG_S)
    house.up(expected=2, grace_s=60.0)
    house.back()
    assert not second.acquire(BOX, 1, 0.05)
    first.release(BOX)
    assert second.acquire(BOX, 1, LONG_S)


def test_a_new_daemon_waits_for_all_workers_or_its_grace(house: House) -> None:
    house.up(expected=2, grace_s=60.0)
    first = house.worker(1)
    assert not first.acquire(BOX, 1, 0.05)
    house.worker(2)
    assert first.acquire(BOX, 1, LONG_S)


def test_after_the_grace_it_grants_whoever_is_there(house: House) -> None:
    house.up(expected=2, grace_s=0.05)
    assert house.worker(1).acquire(BOX, 1, LONG_S)


def test_a_wait_outlives_the_daemon(house: House) -> None:
    house.up()
    first, second = house.worker(1, away_grace_s=60.0), house.worker(2, away_grace_s=60.0)
    first.acquire(BOX, 1, LONG_S)
    thread, got = behind(lambda: second.acquire(BOX, 1, LONG_S))
    until(lambda: house.use() == [(1, 1)])
    house.down()
    house.gone()
    house.up(expected=2, grace_s=60.0)
    until(lambda: house.use() == [(1, 1)])
    assert got == []
    first.release(BOX)
    thread.join()
    assert got == [True]


def test_sends_of_the_last_minute_are_remembered_for_the_new_daemon(house: House) -> None:
    house.up()
    slots = house.worker(away_grace_s=60.0)
    for _ in range(3):
        assert slots.try_acquire(BOX) or slots.acquire(BOX, 2, LONG_S, per_minute=4)
        slots.release(BOX)
    assert slots.try_acquire(BOX) or slots.acquire(BOX, 2, LONG_S, per_minute=4)
    house.down()
    house.gone()
    house.up(expected=1, grace_s=60.0)
    house.back()
    assert not slots.acquire(BOX, 2, 0.05, per_minute=4)


def test_the_slots_of_a_dead_worker_go_to_others(house: House) -> None:
    house.up()
    first, second = house.worker(1), house.worker(2)
    first.acquire(BOX, 1, LONG_S)
    house.clients[0].close()
    assert second.acquire(BOX, 1, LONG_S)


def test_releasing_what_is_not_held_changes_nothing(house: House) -> None:
    house.up()
    slots = house.worker()
    slots.release(BOX)
    assert not slots.try_acquire(BOX)
    assert slots.held() == {}


def test_many_mailboxes_leave_nothing_behind(house: House) -> None:
    house.up()
    slots = house.worker(linger_s=0.0)
    for number in range(200):
        ref = MailboxRef("contoso", f"box{number}@contoso.com")
        assert slots.acquire(ref, 1, LONG_S)
        slots.release(ref)
    until(lambda: house.use() == [])
    assert not slots._mailboxes


def test_what_one_worker_was_told_to_leave_alone_all_hear(house: House) -> None:
    house.up()
    first, second = house.worker(1), house.worker(2)
    assert second.acquire(OTHER, 1, LONG_S)
    heard: queue.Queue[tuple[MailboxRef, float]] = queue.Queue()
    second.on_rest(lambda ref, rest_s: heard.put((ref, rest_s)))
    first.rest(BOX, 12.5)
    assert heard.get(timeout=LONG_S) == (BOX, 12.5)


def test_a_rest_told_while_the_daemon_is_away_harms_nobody(house: House) -> None:
    house.worker(1).rest(BOX, 1.0)


def test_that_an_upstream_is_back_all_others_hear(house: House) -> None:
    house.up()
    first, second = house.worker(1), house.worker(2)
    assert second.acquire(OTHER, 1, LONG_S)
    heard: queue.Queue[str] = queue.Queue()
    second.on_back(heard.put)
    first.back("contoso")
    assert heard.get(timeout=LONG_S) == "contoso"
