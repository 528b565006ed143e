"""The socket's words reach the slot table, and its words the right connection."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.cache import frames
from relayd.cache.client import Client
from relayd.cache.frames import Payload, Refused
from relayd.cache.server import Server
from relayd.observe import metrics
from relayd.quota.desk import SlotDesk
from tests.cache_loop import Turning


class House:
    def __init__(self, path: str, desk: SlotDesk, loop: Turning) -> None:
        self.path = path
        self.desk = desk
        self.loop = loop
        self.clients: list[Client] = []

    def client(self) -> Client:
        made = Client(self.path)
        self.clients.append(made)
        made.on_connect(lambda tell: tell("slot.claimed", {}))
        made.start()
        assert made.wait_connected(10)
        return made


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    desk = SlotDesk(grace_s=0.0)
    path = str(tmp_path / "cache.sock")
    with Turning(Server(path, desk.handlers(), on_close=desk.left), desk.tick) as loop:
        made = House(path, desk, loop)
        yield made
        for client in made.clients:
            client.close()


def wish(grant: int, **changes: float | str) -> Payload:
    return {
        "upstream": "contoso",
        "mailbox": "a@contoso.com",
        "capacity": 1,
        "per_minute": 0,
        "priority": 1,
        "grant": grant,
        "timeout_s": 10.0,
        **changes,
    }


def test_a_grant_crosses_the_socket(house: House) -> None:
    client = house.client()
    answer = client.call("slot.acquire", wish(1), timeout_s=10)
    assert answer == {"granted": True, "sends": None}


def test_a_paced_grant_says_how_many_sends_it_is_good_for(house: House) -> None:
    client = house.client()
    answer = client.call("slot.acquire", wish(1, per_minute=30), timeout_s=10)
    assert answer == {"granted": True, "sends": 5}


def test_a_wait_that_is_over_is_answered_too(house: House) -> None:
    client = house.client()
    client.call("slot.acquire", wish(1), timeout_s=10)
    answer = client.call("slot.acquire", wish(2, timeout_s=0.01), timeout_s=10)
    assert answer == {"granted": False, "sends": 0}


def test_a_recall_reaches_the_holder(house: House) -> None:
    first, second = house.client(), house.client()
    heard: queue.Queue[Payload] = queue.Queue()
    first.on_push("recall", heard.put)
    first.call("slot.acquire", wish(1), timeout_s=10)
    second.tell("slot.acquire", wish(1))
    expected = {"upstream": "contoso", "mailbox": "a@contoso.com", "hard": True}
    assert heard.get(timeout=10) == expected


REST: Payload = {"upstream": "contoso", "mailbox": "a@contoso.com", "rest_s": 30.0}


def test_a_429_is_heard_by_all_but_the_one_who_got_it(house: House) -> None:
    first, second, third = house.client(), house.client(), house.client()
    heard: queue.Queue[tuple[str, Payload]] = queue.Queue()
    for name, client in (("first", first), ("second", second), ("third", third)):
        client.on_push("rest", lambda payload, name=name: heard.put((name, payload)))  # type: ignore[misc]
        client.call("slot.acquire", wish(1, mailbox=f"{name}@contoso.com"), timeout_s=10)
    first.tell("slot.rest", REST)
    told = sorted(heard.get(timeout=10) for _ in range(2))
    assert told == [("second", REST), ("third", REST)]
    first.call("slot.acquire", wish(2, mailbox="later@contoso.com"), timeout_s=10)
    assert heard.empty()


def test_that_an_upstream_is_back_is_heard_by_the_others(house: House) -> None:
    first, second = house.client(), house.client()
    heard: queue.Queue[Payload] = queue.Queue()
    for client in (first, second):
        client.on_push("back", heard.put)
        client.call("slot.acquire", wish(1, mailbox="x@contoso.com", capacity=9), timeout_s=10)
    first.tell("slot.back", {"upstream": "contoso"})
    assert heard.get(timeout=10) == {"upstream": "contoso"}
    first.call("slot.acquire", wish(2, mailbox="later@contoso.com"), timeout_s=10)
    assert heard.empty()


def test_who_comes_later_hears_how_much_of_a_rest_is_left(house: House) -> None:
    first = house.client()
    first.tell("slot.rest", REST)
    first.call("slot.acquire", wish(1), timeout_s=10)  # after it, on the same connection
    heard: queue.Queue[Payload] = queue.Queue()
    late = Client(house.path)
    house.clients.append(late)
    late.on_push("rest", heard.put)
    late.on_connect(lambda tell: tell("slot.claimed", {}))
    late.start()
    told = heard.get(timeout=10)
    assert 0 < frames.number(told, "rest_s") <= 30.0


def test_a_rest_that_is_over_is_forgotten(house: House) -> None:
    first = house.client()
    first.tell("slot.rest", {**REST, "rest_s": 0.0})
    heard: queue.Queue[Payload] = queue.Queue()
    late = Client(house.path)
    house.clients.append(late)
    late.on_push("rest", heard.put)
    late.on_connect(lambda tell: tell("slot.claimed", {}))
    first.call("slot.acquire", wish(1, mailbox="b@contoso.com"), timeout_s=10)
    late.start()
    late.wait_connected(10)
    late.call("slot.acquire", wish(1, mailbox="c@contoso.com"), timeout_s=10)
    assert heard.empty()


def test_the_status_counts(house: House) -> None:
    house.client().call("slot.acquire", wish(1, per_minute=30), timeout_s=10)
    assert house.desk.status() == [
        {
            "upstream": "contoso",
            "mailbox": "a@contoso.com",
            "capacity": 1,
            "per_minute": 30,
            "held": 1,
            "waiting": 0,
            "sent_last_minute": 5,
        }
    ]


def test_what_is_used_of_a_mailbox_is_a_gauge(house: House) -> None:
    wanted = wish(1, per_minute=30, capacity=4)
    house.client().call("slot.acquire", wanted, timeout_s=10)
    other = wish(2, per_minute=10, upstream="another", capacity=2)
    house.client().call("slot.acquire", other, timeout_s=10)
    house.desk.gauge()
    used = metrics.snapshot()["relayd_quota_used_ratio"]
    assert used["a@contoso.com\tconcurrency"] == 0.5
    assert used["a@contoso.com\tmessages_per_minute"] == pytest.approx(5 / 30)


def test_a_released_slot_goes_to_whoever_waits(house: House) -> None:
    first, second = house.client(), house.client()
    first.call("slot.acquire", wish(1), timeout_s=10)
    first.tell("slot.release", {"grant": 1, "used": 1})
    assert second.call("slot.acquire", wish(1), timeout_s=10)["granted"] is True


def test_a_claim_counts_and_is_released_like_any_slot(house: House) -> None:
    first, second = house.client(), house.client()
    claim = {key: value for key, value in wish(7).items() if key not in {"priority", "timeout_s"}}
    first.call("slot.claim", {**claim, "sends": 0, "recent": [1.5, "odd"]}, timeout_s=10)
    refused = second.call("slot.acquire", wish(1, timeout_s=0.01), timeout_s=10)
    assert refused["granted"] is False
    first.tell("slot.release", {"grant": 7, "used": 1})
    assert second.call("slot.acquire", wish(2), timeout_s=10)["granted"] is True


@pytest.mark.parametrize("key", ["upstream", "mailbox", "capacity", "grant", "timeout_s"])
def test_half_a_wish_is_refused(house: House, key: str) -> None:
    payload = {name: value for name, value in wish(1).items() if name != key}
    with pytest.raises(Refused, match="malformed"):
        house.client().call("slot.acquire", payload, timeout_s=10)


def test_the_next_look_is_never_in_the_past(house: House) -> None:
    assert house.desk.next_due_s() >= 0
