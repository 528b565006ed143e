"""Lists, stories and counts, beside a spool that is written to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from relayd.errors import SpoolUnavailable
from relayd.spool.leasing import TakeLeases
from relayd.spool.model import QueueId, State
from relayd.spool.queries import Filter, Reader
from relayd.spool.wishes import Ask
from tests.spooling import ALERTS, DAY, OTHER, Bench, way


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.core.close()


@pytest.fixture
def reader(bench: Bench) -> Iterator[Reader]:
    with closing(Reader(bench.path, bench.clock)) as made:
        yield made


def found(reader: Reader, wanted: Filter) -> list[QueueId]:
    return [one.id for one in reader.page(wanted)[0]]


def test_pages_follow_one_another_and_end(bench: Bench, reader: Reader) -> None:
    messages = [bench.put() for _ in range(7)]
    seen, after = [], 0
    for _ in range(4):
        listed, after = reader.page(Filter(), after=after, limit=2)
        seen += [one.id for one in listed]
    assert (seen, after) == (messages, 0)


def test_a_page_looks_at_a_bounded_number_of_rows(
    bench: Bench, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.spool.queries._SCANNED_AT_ONCE", 3)
    for _ in range(5):
        bench.put()
    wanted = bench.put(way(OTHER))
    first, after = reader.page(Filter(upstream="fabrikam"))
    assert (first, after > 0) == ([], True)
    second, after = reader.page(Filter(upstream="fabrikam"), after=after)
    assert ([one.id for one in second], after) == ([wanted], 0)


def test_filters(bench: Bench, reader: Reader) -> None:
    plain = bench.put()
    other = bench.put(way(OTHER, "Chef@Fabrikam.com"))
    bench.do(Ask("hold", (plain,)))
    bench.clock.advance(60)
    since = bench.clock.utcnow()
    late = bench.put()
    assert found(reader, Filter(states=(State.HELD,))) == [plain]
    assert found(reader, Filter(upstream="fabrikam")) == [other]
    assert found(reader, Filter(recipient="chef@fabrikam")) == [other]
    assert found(reader, Filter(sender="UPS@")) == [plain, other, late]
    assert found(reader, Filter(device="ups")) == [plain, other, late]
    assert found(reader, Filter(device="nas")) == []
    assert found(reader, Filter(message_id="<1@ups")) == [plain, other, late]
    assert found(reader, Filter(since=since)) == [late]


@pytest.mark.parametrize(
    "damage",
    [
        "recipients = '[not json'",
        "recipients = '{}'",
        "recipients = '[1]'",
        "recipients = CAST(X'ff' AS TEXT)",
        "done = 'x'",
        "done = '[]'",
        "state = 99",
        "expires_at = 9223372036854775807",
        "due = -9223372036854775807",
    ],
)
def test_a_damaged_row_hides_no_other(bench: Bench, reader: Reader, damage: str) -> None:
    bad, good = bench.put(), bench.put()
    bench.rows(f"UPDATE delivery SET {damage} WHERE id = ?", bad)  # noqa: S608 - constants
    assert found(reader, Filter()) == [bad, good]
    story = reader.show(bad)
    assert story is not None
    assert all(isinstance(one, str) for one in story.deliveries[0].recipients)


def test_a_story_tells_all_and_the_attempt_under_way(bench: Bench, reader: Reader) -> None:
    message = bench.put()
    bench.do(Ask("hold", (message,)))
    bench.clock.advance(5)
    bench.do(Ask("release", (message,)))
    bench.clock.advance(5)
    bench.do(TakeLeases(ALERTS, 1))
    story = reader.show(message)
    assert story is not None
    assert (story.session, story.ip, story.has_content) == ("S1", "192.0.2.5", True)
    assert [one.state for one in story.deliveries] == [State.LEASED]
    assert [one.outcome for one in story.journal] == ["held", "released", "sending"]
    assert story.journal[-1].finished_at is None
    assert story.journal[-1].holder
    assert reader.trace(message) == story.journal


def test_nothing_is_known_of_what_never_was(reader: Reader) -> None:
    assert reader.show(QueueId(4096)) is None
    assert reader.trace(QueueId(4096)) == ()


def test_counts_tell_ready_from_deferred_and_leave_history_out(
    bench: Bench, reader: Reader
) -> None:
    first = bench.clock.utcnow()
    messages = [bench.put() for _ in range(7)]
    bench.rows("UPDATE delivery SET state = 1, due = due + ? WHERE id = ?", DAY, messages[0])
    bench.rows("UPDATE delivery SET state = 4 WHERE id = ?", messages[1])
    bench.rows("UPDATE delivery SET state = 5 WHERE id = ?", messages[2])
    bench.do(Ask("hold", (messages[3],)))
    bench.do(Ask("delete", (messages[6],)))
    bench.do(TakeLeases(ALERTS, 1))
    counts = reader.counts()
    assert counts.by_state == {
        (State.READY, "contoso"): 1,
        (State.DEFERRED, "contoso"): 1,
        (State.HELD, "contoso"): 1,
        (State.LEASED, "contoso"): 1,
        (State.FAILED, "contoso"): 1,
    }
    assert counts.oldest == {("contoso", "normal"): first}


def test_counts_are_not_counted_again_at_once(bench: Bench, reader: Reader) -> None:
    bench.put()
    before = reader.counts()
    bench.put()
    assert reader.counts() is before
    bench.clock.advance(1.5)
    assert reader.counts().by_state[State.READY, "contoso"] == 2


def test_a_reader_never_makes_a_database(tmp_path: Path, bench: Bench) -> None:
    with pytest.raises(SpoolUnavailable):
        Reader(str(tmp_path / "none.db"), bench.clock)
    assert not (tmp_path / "none.db").exists()


def test_a_reader_cannot_write(bench: Bench, reader: Reader) -> None:
    message = bench.put()
    with pytest.raises(SpoolUnavailable, match="readonly"):
        reader._rows("DELETE FROM message")
    assert found(reader, Filter()) == [message]


def test_recipients_that_cannot_be_read_are_shown_as_they_are(bench: Bench, reader: Reader) -> None:
    bench.put()
    bench.rows("UPDATE delivery SET recipients = 'nonsense', expires_at = expires_at + 1")
    ((one,), _) = reader.page(Filter())
    assert one.recipients == ("nonsense",)
    assert one.expires_at - one.accepted_at > timedelta(days=5)
