"""One at a time, in turn."""

from __future__ import annotations

import fcntl
import threading
from contextlib import ExitStack
from pathlib import Path

from relayd.spool.turnstile import Turnstile


def test_one_is_inside_at_a_time_and_none_waits_forever(tmp_path: Path) -> None:
    inside: list[int] = []
    order: list[int] = []

    def run(number: int) -> None:
        turnstile = Turnstile(str(tmp_path / "t"))
        for _ in range(50):
            with turnstile:
                inside.append(number)
                assert inside == [number]
                order.append(number)
                inside.remove(number)
        turnstile.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == [0] * 50 + [1] * 50 + [2] * 50


def is_free(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_inside_the_room_is_taken_and_the_gate_is_free_for_the_next(tmp_path: Path) -> None:
    turnstile = Turnstile(str(tmp_path / "t"))
    with turnstile:
        assert (is_free(tmp_path / "t.a"), is_free(tmp_path / "t.b")) == (True, False)
    assert (is_free(tmp_path / "t.a"), is_free(tmp_path / "t.b")) == (True, True)
    turnstile.close()


def test_an_error_inside_lets_the_next_in(tmp_path: Path) -> None:
    turnstile, other = Turnstile(str(tmp_path / "t")), Turnstile(str(tmp_path / "t"))
    with ExitStack() as stack:
        stack.callback(turnstile.close)
        stack.callback(other.close)
        try:
            with turnstile:
                raise ValueError
        except ValueError:
            pass
        with other:
            pass
