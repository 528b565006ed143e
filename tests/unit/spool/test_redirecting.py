"""Another way out for what waits: in parts, journalled, and only for what still stands so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.spool.leasing import TakeLeases
from relayd.spool.model import Course, MailboxRef, Redirect, State
from relayd.spool.redirecting import AT_ONCE, ReadAstray, ReadCourses, RedirectAll
from relayd.spool.wishes import Ask
from tests.spooling import ALERTS, OTHER, SCANS, Bench, way

MENDED = MailboxRef("contoso", "relay@contoso.com")
WAITING = frozenset({State.READY, State.DEFERRED, State.HELD})


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.core.close()


def to(mailbox: MailboxRef, *courses: Course) -> tuple[Redirect, ...]:
    return tuple(
        Redirect(course=one, mailbox=mailbox, set_from="R@contoso.com", reply_to_original=True)
        for one in courses
    )


def test_the_row_the_journal_and_the_fence_say_what_happened(bench: Bench) -> None:
    message = bench.put()
    (course,) = bench.do(ReadCourses((message,), WAITING, with_content=True))
    assert bench.do(RedirectAll(to(MENDED, course), "configuration")) == 1
    assert bench.rows(
        "SELECT upstream, mailbox, header_from, set_from, reply_to_original, state, fence"
        " FROM delivery"
    ) == [("contoso", MENDED.mailbox, "r@contoso.com", "R@contoso.com", 1, 0, 1)]
    ((serial, number, outcome, text),) = bench.rows(
        "SELECT serial, number, outcome, text FROM attempt"
    )
    assert (serial, number, outcome) == (1, 0, "moved")
    assert text.startswith("contoso/alerts@contoso.com -> contoso/relay@contoso.com")
    # What was read before that is over.
    assert bench.do(RedirectAll(to(SCANS, course), "configuration")) == 0
    assert len(bench.rows("SELECT 1 FROM attempt")) == 1


def test_mail_astray_is_found_in_parts_one_mailbox_at_a_time(bench: Bench) -> None:
    for _ in range(3):
        bench.core.apply([bench.accept(way(ALERTS)) for _ in range(250)])
    bench.core.apply([bench.accept(way(one)) for one in (SCANS, MENDED, OTHER)])
    found = []
    while courses := bench.do(ReadAstray((MENDED,))):
        assert len({one.mailbox for one in courses}) == 1
        assert bench.do(RedirectAll(to(MENDED, *courses), "configuration")) == len(courses)
        found.append(len(courses))
    assert found == [AT_ONCE, 250, 1]
    assert bench.rows(
        "SELECT mailbox, count(*) FROM delivery GROUP BY mailbox ORDER BY mailbox"
    ) == [(MENDED.mailbox, 752), (OTHER.mailbox, 1)]


def test_what_may_not_be_moved_does_not_hide_what_may(bench: Bench) -> None:
    bench.put(way(ALERTS))
    bench.rows("UPDATE delivery SET state = 2, held_by = 'ambiguous'")
    message = bench.put(way(SCANS))
    bench.do(Ask("hold", (message,)))
    assert [one.message for one in bench.do(ReadAstray((MENDED,)))] == [message]


def test_an_upstream_with_many_mailboxes_is_not_looked_at(bench: Bench) -> None:
    bench.put(way(ALERTS))
    assert bench.do(ReadAstray((OTHER,))) == []
    assert bench.do(ReadAstray(())) == []


def test_only_the_asked_states_and_only_with_content(bench: Bench) -> None:
    kept, gone, leased = bench.put(), bench.put(), bench.put(way(SCANS))
    bench.rows("DELETE FROM content WHERE id = ?", gone)
    bench.do(TakeLeases(SCANS, 1))
    every = (kept, gone, leased, kept)
    found = bench.do(ReadCourses(every, WAITING, with_content=False))
    assert [one.message for one in found] == [kept, gone]
    found = bench.do(ReadCourses(every, WAITING, with_content=True))
    assert [(one.message, one.device, one.header_from) for one in found] == [
        (kept, "ups", "ups@contoso.com")
    ]


def test_a_wish_and_its_redirect_are_one_commit(bench: Bench) -> None:
    message = bench.put()
    bench.do(Ask("hold", (message,)))
    courses = bench.do(ReadCourses((message,), WAITING, with_content=True))
    assert bench.do(Ask("release", (message,), to(MENDED, *courses))) == 1
    rows = bench.rows("SELECT serial, outcome FROM attempt ORDER BY serial")
    assert rows == [(1, "held"), (2, "moved"), (3, "released")]
