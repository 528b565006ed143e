"""Work is done, in few threads, and a failure costs only itself."""

from __future__ import annotations

import threading

from relayd.cache.pool import Pool


def test_no_more_threads_than_its_size() -> None:
    pool, gate, done = Pool(2, "few"), threading.Event(), threading.Semaphore(0)
    names: set[int] = set()

    def work() -> None:
        names.add(threading.get_ident())
        gate.wait(10)
        done.release()

    for _ in range(6):
        pool.submit(work)
    gate.set()
    for _ in range(6):
        assert done.acquire(timeout=10)
    assert len(names) <= 2


def fail() -> None:
    raise ZeroDivisionError


def test_work_that_fails_leaves_its_thread_to_the_next() -> None:
    pool, done = Pool(1, "one"), threading.Event()
    pool.submit(fail)
    pool.submit(done.set)
    assert done.wait(10)


def test_threads_are_started_only_when_needed() -> None:
    pool = Pool(8, "lazy")
    seen: set[int] = set()
    for _ in range(5):
        done = threading.Event()

        def work(done: threading.Event = done) -> None:
            seen.add(threading.get_ident())
            done.set()

        pool.submit(work)
        assert done.wait(10)
    assert len(seen) <= 2
