"""Logins: right ones quickly, wrong ones slower and slower, nobody locked out by another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.access import passwords
from relayd.access.logins import Accepted, Allowance, Rejected, Unavailable, Verdict, Verifier
from relayd.access.users import Users, UsersFile
from relayd.clock import FakeClock
from relayd.config.model import Config, Secret, Server, User

CAMERA, UPS = "10.0.0.1", "10.0.0.2"


class Counter:
    """A stand-in for the hash: a password is right if the hash ends with it."""

    def __init__(self) -> None:
        self.hashes: list[str] = []
        self.at_work = 0
        self.most_at_work = 0
        self.hold = threading.Event()
        self.hold.set()

    def verify(self, stored: str, password: str) -> bool:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        self.hold.wait(10)
        self.hashes.append(stored)
        self.at_work -= 1
        return stored.endswith(f"${password}")


class Door:
    """A verifier with its clock and its hash counted."""

    def __init__(self, folder: Path, counter: Counter, wait_s: float = 10.0) -> None:
        self.clock = FakeClock()
        users = Users(
            Config(
                server=Server(state_dir=str(folder)),
                user=(
                    User(name="ups", password_hash=Secret("h1$right")),
                    User(name="camera", password_hash=Secret("h2$right")),
                    User(name="empty"),
                ),
            )
        )
        self.verifier = Verifier(users, clock=self.clock, wait_s=wait_s)
        self.counter = counter

    def tries(self, peer: str, name: str, password: str, times: int = 1) -> list[Verdict]:
        return [self.verifier.verify(peer, name, password) for _ in range(times)]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr(passwords, "verify", counter.verify)
    return counter


@pytest.fixture
def door(tmp_path: Path, counter: Counter) -> Iterator[Door]:
    door = Door(tmp_path, counter)
    yield door
    door.verifier.close()


def accepted(verdict: Verdict | None) -> bool:
    return isinstance(verdict, Accepted)


def test_a_right_password_is_hashed_once_and_then_remembered(door: Door) -> None:
    assert all(map(accepted, door.tries(UPS, "ups", "right", 50)))
    assert len(door.counter.hashes) == 1


def test_memory_ends(door: Door) -> None:
    door.tries(UPS, "ups", "right")
    door.clock.advance(601)
    door.tries(UPS, "ups", "right")

    assert len(door.counter.hashes) == 2


def test_a_wrong_password_is_never_remembered(door: Door) -> None:
    door.tries(UPS, "ups", "right")

    assert not accepted(door.tries(UPS, "ups", "wrong")[0])
    assert not accepted(door.tries(UPS, "camera", "wrong")[0])


def test_after_five_wrong_tries_nothing_is_hashed(door: Door) -> None:
    verdicts = door.tries(CAMERA, "camera", "wrong", 9)

    assert all(isinstance(verdict, Rejected) for verdict in verdicts)
    assert len(door.counter.hashes) == 5


def test_while_slowed_even_the_right_password_tells_nothing(door: Door) -> None:
    door.tries(CAMERA, "camera", "right")
    door.tries(CAMERA, "camera", "wrong", 5)

    assert not accepted(door.tries(CAMERA, "camera", "right")[0])  # though remembered

    door.clock.advance(61)
    assert accepted(door.tries(CAMERA, "camera", "right")[0])


def test_a_right_password_forgives_the_wrong_ones_before(door: Door) -> None:
    for _ in range(3):
        door.tries(CAMERA, "camera", "wrong", 4)
        assert accepted(door.tries(CAMERA, "camera", "right")[0])


def test_a_minute_buys_one_more_try(door: Door) -> None:
    door.tries(CAMERA, "camera", "wrong", 9)
    door.clock.advance(60)
    door.tries(CAMERA, "camera", "wrong", 3)

    assert len(door.counter.hashes) == 6


def test_a_camera_does_not_lock_out_anybody_else(door: Door) -> None:
    for _ in range(60):  # an hour of a wrongly set camera behind the same address as a UPS
        door.tries(CAMERA, "camera", "wrong", 10)
        door.clock.advance(60)

    assert accepted(door.tries(CAMERA, "ups", "right")[0])
    assert accepted(door.tries(UPS, "camera", "right")[0])


def test_names_cannot_be_tried_out_from_one_place(door: Door) -> None:
    for n in range(100):
        door.tries(CAMERA, f"name{n}", "guess")

    assert len(door.counter.hashes) == 20
    assert accepted(door.tries(UPS, "ups", "right")[0])


def test_a_host_with_a_whole_ipv6_network_is_one_place(door: Door) -> None:
    for n in range(1, 100):
        door.tries(f"fd00::{n:x}", f"name{n}", "guess")

    assert len(door.counter.hashes) == 20


def test_an_unknown_name_costs_what_a_known_one_costs(door: Door) -> None:
    (unknown,) = door.tries(UPS, "nobody", "right")
    (without,) = door.tries(UPS, "empty", "right")

    assert isinstance(unknown, Rejected)
    assert isinstance(without, Rejected)
    assert (unknown.reason, without.reason) == ("no such user", "the user has no password hash")
    assert door.counter.hashes == [passwords.DUMMY_HASH] * 2


def test_the_dummy_opens_nothing_even_if_somebody_knew_its_password(door: Door) -> None:
    guess = passwords.DUMMY_HASH.rpartition("$")[2]

    assert not accepted(door.tries(UPS, "nobody", guess)[0])
    assert not accepted(door.tries(UPS, "empty", guess)[0])


def test_many_right_logins_at_once_are_hashed_once(door: Door) -> None:
    jobs = [gevent.spawn(door.verifier.verify, UPS, "ups", "right") for _ in range(30)]
    gevent.joinall(jobs, timeout=10)

    assert all(accepted(job.value) for job in jobs)
    assert len(door.counter.hashes) == 1


def test_many_wrong_logins_at_once_do_not_pass_the_gate_together(door: Door) -> None:
    jobs = [gevent.spawn(door.verifier.verify, UPS, "ups", f"w{n}") for n in range(30)]
    gevent.joinall(jobs, timeout=10)

    assert len(door.counter.hashes) == 5
    assert door.counter.most_at_work == 1


def test_who_waits_too_long_is_told_to_come_back(tmp_path: Path, counter: Counter) -> None:
    door = Door(tmp_path, counter, wait_s=0.02)
    counter.hold.clear()
    try:
        jobs = [gevent.spawn(door.verifier.verify, UPS, "ups", "right") for _ in range(3)]
        gevent.joinall(jobs, timeout=10)
    finally:
        counter.hold.set()
    assert [type(job.value) for job in jobs] == [Unavailable] * 3, [job.value for job in jobs]
    door.verifier.close()


def test_others_run_while_a_password_is_hashed(door: Door) -> None:
    door.counter.hold.clear()
    job = gevent.spawn(door.verifier.verify, UPS, "ups", "right")
    gevent.spawn(door.counter.hold.set)  # would never run if the hub were blocked

    job.join(timeout=10)

    assert accepted(job.value)


def test_a_changed_password_is_forgotten_at_once(tmp_path: Path, counter: Counter) -> None:
    hashes = [passwords.DUMMY_HASH.replace("AAA", letter * 3, 1) for letter in "BC"]
    file = UsersFile(str(tmp_path / "users.toml"))
    file.add(User(name="new", password_hash=Secret(hashes[0])))
    door = Door(tmp_path, counter)
    password = passwords.DUMMY_HASH.rpartition("$")[2]

    door.tries(UPS, "new", password, 2)
    file.set_password("new", hashes[1])
    door.tries(UPS, "new", password, 2)

    assert counter.hashes == hashes
    door.verifier.close()


def test_endless_credentials_are_not_looked_at(door: Door) -> None:
    assert not accepted(door.tries(UPS, "x" * 2000, "y")[0])
    assert not accepted(door.tries(UPS, "x", "y" * 2000)[0])
    assert door.counter.hashes == []


def test_odd_octets_are_judged_like_others(door: Door) -> None:
    assert not accepted(door.tries("not an address", "ups\udcff", "\udcff")[0])


def test_what_is_remembered_is_bounded(door: Door) -> None:
    for n in range(2000):
        door.verifier._remember(str(n).encode(), 0.0)

    assert len(door.verifier._remembered) == 1024


def test_secrets_do_not_show(door: Door) -> None:
    verdict = door.tries(UPS, "ups", "right")[0]

    assert "right" not in repr(verdict)


def test_what_is_remembered_tells_nobody_the_password(tmp_path: Path, counter: Counter) -> None:
    doors = [Door(tmp_path, counter) for _ in range(2)]
    for door in doors:
        assert accepted(door.tries(UPS, "ups", "right")[0])
    first, second = ([*door.verifier._remembered] for door in doors)

    assert b"right" not in b"".join([*first, *second])
    assert first != second, "a key of this process only is in it"


@given(waits=st.lists(st.floats(0, 100), max_size=50))
def test_an_allowance_gives_no_more_than_its_rate(waits: list[float]) -> None:
    allowance = Allowance(most=5, refill_s=10.0)
    now, taken = 0.0, 0
    for wait in waits:
        now += wait
        while allowance.left("k", now) >= 1:
            allowance.take("k", now)
            taken += 1

    assert taken <= 5 + now / 10 + 1e-6


def test_an_allowance_forgets_the_longest_unused() -> None:
    allowance = Allowance(most=1, refill_s=1e9, kept=2)
    for key in "abc":
        allowance.take(key, 0.0)

    assert [allowance.left(key, 0.0) for key in "abc"] == [1.0, 0.0, 0.0]


def test_a_login_after_the_end_is_judged_all_the_same(door: Door) -> None:
    door.verifier.close()
    assert accepted(door.verifier.verify("192.0.2.1", "ups", "right"))
    assert not accepted(door.verifier.verify("192.0.2.1", "ups", "wrong"))
