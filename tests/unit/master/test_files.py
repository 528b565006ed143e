"""Files: as many as the system allows, and some of them are no connections."""

from __future__ import annotations

import resource
import sys

import pytest

from relayd.master import files

INFINITE = resource.RLIM_INFINITY


def test_as_many_may_be_open_as_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert files.allowed() == 256
        files.allow()
        now = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert now == (files.most(), before[1])
        files.allow()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == now
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("soft", "hard", "most", "raised"),
    [
        (512, 1024, 1024, (1024, 1024)),
        (512, 10**6, 65_536, (65_536, 10**6)),
        (512, INFINITE, 65_536, (65_536, INFINITE)),
        (10**6, 10**6, 10**6, None),
        (INFINITE, INFINITE, sys.maxsize, None),
    ],
)
def test_the_limits_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
    soft: int,
    hard: int,
    most: int,
    raised: tuple[int, int] | None,
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    assert files.most() == most
    files.allow()
    assert set_to == ([] if raised is None else [raised])


@pytest.mark.parametrize(
    ("wanted", "openable", "left"),
    [(2000, 65_536, 2000), (2000, 4256, 2000), (2000, 4255, 1999), (2000, 1024, 384),
     (2000, 400, 100), (10, 40, 10), (2000, 1, 1)],
)  # fmt: skip
def test_connections_leave_files_for_the_way_out(wanted: int, openable: int, left: int) -> None:
    assert files.for_connections(wanted, openable) == left
