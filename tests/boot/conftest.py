"""Booted guests for the tests of this folder, and the table of what they found.

`tools/boot.sh` makes packages and trees and starts these tests once for each suite, in a network
of their own; started otherwise they are skipped. They run in the order of the files: what a test
leaves in its guest, the next one of the same file finds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.boot.guest import Guest
from tests.boot.lab import Lab

HERE = Path(__file__).parent
SUITE = os.environ.get("BOOT_SUITE", "")
ROOM = Path(os.environ.get("BOOT_ROOM", ""))
_WHY_NOT = os.environ.get("BOOT_SKIP", "") or "run by `make test-boot`"

_SOURCES = "/etc/apt/sources.list.d/relayd.sources"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip all of it where there are no trees."""
    for item in items:
        if not SUITE and HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=_WHY_NOT))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write a line of the table for each check."""
    if not SUITE or "tests/boot/" not in report.nodeid:
        return
    if report.when != "call" and report.passed:
        return
    words = report.nodeid.rpartition("::")[2].removeprefix("test_").replace("_", " ")
    notes = ", ".join(str(value) for name, value in report.user_properties if name == "note")
    if report.when != "call":
        words += f" ({report.when})"
    said = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}[report.outcome]
    with (ROOM / f"results-{SUITE}").open("a") as table:
        table.write(f"{SUITE:<9} {said:<7} {report.duration:6.1f} s  {words}")
        table.write(f"  [{notes}]\n" if notes else "\n")


def offer(guest: Guest, which: str) -> None:
    """Put a repository into the guest, and have apt read it. which: "old", or "new" with both."""
    place = guest.path("/srv/repository")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(ROOM / "repository" / which, place)
    shutil.copy(place / "relayd.sources", guest.path(_SOURCES))
    # The guest has no network: only this source is read again.
    only = (f"Dir::Etc::SourceList={_SOURCES}", "Dir::Etc::SourceParts=-")
    options = (f"--option={each}" for each in (*only, "APT::Get::List-Cleanup=0"))
    guest.run("apt-get", "update", *options)


def tree(name: str) -> Path:
    """Return a tree: "bare", or "full" with all that the package depends on."""
    return (ROOM / SUITE / name).resolve()


@pytest.fixture(scope="module")
def bare() -> Iterator[Guest]:
    """A Debian that never heard of relayd, and has it in apt's sources."""
    with Guest(tree("bare"), ROOM) as guest:
        offer(guest, "new")
        yield guest


@pytest.fixture(scope="module")
def full() -> Iterator[Guest]:
    """The same, with everything that relayd depends on."""
    with Guest(tree("full"), ROOM) as guest:
        yield guest


@pytest.fixture(scope="module")
def lab(full: Guest) -> Iterator[Lab]:
    """The guest with relayd, and a Microsoft 365 of its own."""
    with Lab(full) as lab:
        yield lab


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Put words behind the test's line of the table."""
    return lambda words: record_property("note", words)
