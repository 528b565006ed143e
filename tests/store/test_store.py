"""What every store promises (store.py), held against each of them.

One of them is a database whose schema newer code changed: workers of two releases share it
while an upgrade goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import gevent
import pytest

from relayd.errors import LeaseLost, SpoolUnavailable
from relayd.spool.model import Course, Lease, MailboxRef, QueueId, Redirect, Settlement, State
from relayd.spool.moves import TURNED_BY
from tests.spooling import (
    ALERTS,
    FAILED,
    OTHER,
    RETURNED,
    SCANS,
    SENT,
    Backend,
    FutureBackend,
    MemoryBackend,
    SqliteBackend,
    Store,
    Taker,
    deferred,
    denied,
    new_message,
    put,
    way,
)

LARGE = b"Subject: scan\r\n\r\n" + b"0123456789abcde\n" * 20_000


class Make(Protocol):
    def __call__(self, *, ambiguous: str = "retry", keep_sent_s: float = 0.0) -> Backend: ...


BACKENDS = [MemoryBackend, SqliteBackend, FutureBackend]


@pytest.fixture(params=BACKENDS, ids=["memory", "sqlite", "sqlite changed by newer code"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[Backend] = []
    kind: Callable[..., Any] = request.param

    def backend(*, ambiguous: str = "retry", keep_sent_s: float = 0.0) -> Backend:
        made.append(kind(tmp_path, ambiguous=ambiguous, keep_sent_s=keep_sent_s))
        return made[-1]

    yield backend
    for one in made:
        one.close()


@pytest.fixture
def backend(make: Make) -> Backend:
    return make()


@pytest.fixture
def door(backend: Backend) -> Store:
    return backend.open()


def state_of(backend: Backend, message: QueueId) -> tuple[State, str]:
    found = [row[1:] for row in backend.states().values() if row[0] == message]
    assert len(found) == 1
    return found[0]


def read(door: Store, message: QueueId) -> bytes:
    with door.content(message) as pieces:
        return b"".join(pieces)


# -- accepting ------------------------------------------------------------------------------


def test_a_committed_message_can_be_leased_with_its_content(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock, octets=b"Subject: x\r\n\r\nhello\r\n")
    (lease,) = door.lease(ALERTS, limit=5)
    assert (lease.message, lease.attempt, lease.maybe_sent) == (message, 1, False)
    assert lease.content == b"Subject: x\r\n\r\nhello\r\n"
    assert lease.recipients == ("admin@contoso.com",)
    assert lease.sender == "ups@contoso.com"


def test_a_large_message_is_read_back_in_pieces_as_it_was(backend: Backend, door: Store) -> None:
    draft = door.draft()
    for at in range(0, len(LARGE), 5000):
        draft.write(LARGE[at : at + 5000])
    draft.commit(new_message(backend.clock, octets=LARGE), deadline=backend.clock.monotonic() + 8)
    with door.content(draft.id) as pieces:
        found = list(pieces)
    assert b"".join(found) == LARGE
    assert all(1 <= len(one) <= 262_144 for one in found)


def test_a_message_outlives_its_door(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock, octets=LARGE)
    backend.crash(door)
    again = backend.open()
    assert [lease.message for lease in again.lease(ALERTS, limit=1)] == [message]
    assert read(again, message) == LARGE


def test_a_discarded_draft_leaves_nothing(backend: Backend, door: Store) -> None:
    draft = door.draft()
    draft.write(LARGE)
    draft.discard()
    draft.discard()
    assert not backend.states()
    with pytest.raises(SpoolUnavailable):
        draft.write(b"more")
    with pytest.raises(SpoolUnavailable):
        draft.commit(new_message(backend.clock), deadline=backend.clock.monotonic() + 8)


def test_discarding_after_the_commit_changes_nothing(backend: Backend, door: Store) -> None:
    draft = door.draft()
    draft.write(LARGE)
    draft.commit(new_message(backend.clock, octets=LARGE), deadline=backend.clock.monotonic() + 8)
    draft.discard()
    assert read(door, draft.id) == LARGE


def test_a_commit_after_its_deadline_keeps_nothing(backend: Backend, door: Store) -> None:
    taker = Taker()
    door.set_taker(taker)
    draft = door.draft()
    draft.write(b"x")
    with pytest.raises(SpoolUnavailable):
        draft.commit(new_message(backend.clock), deadline=backend.clock.monotonic() - 1)
    assert not backend.states()
    assert len(taker.spared) == taker.set_aside == 1


def test_ids_rise_even_when_the_clock_goes_back(backend: Backend, door: Store) -> None:
    first = door.draft().id
    backend.clock.advance(-3600)
    second = door.draft().id
    put(door, backend.clock)
    door.close()
    assert first < second < backend.open().draft().id


def test_one_message_may_have_more_deliveries_than_fit_its_id(
    backend: Backend, door: Store
) -> None:
    ways = [way(ALERTS, f"a{number}@contoso.com") for number in range(70)]
    message = put(door, backend.clock, *ways)
    leases = door.lease(ALERTS, limit=100)
    assert len({lease.delivery for lease in leases}) == 70
    for lease in leases[:-1]:
        door.settle(lease, SENT)
    assert read(door, message)
    door.settle(leases[-1], SENT)
    with pytest.raises(SpoolUnavailable):
        read(door, message)


# -- born leased ----------------------------------------------------------------------------


def test_a_wanted_delivery_is_born_leased_and_taken_after_the_commit(
    backend: Backend, door: Store
) -> None:
    taker = Taker()
    door.set_taker(taker)
    message = put(door, backend.clock, octets=b"x")
    (lease,) = taker.taken
    assert (lease.message, lease.content, lease.fence, lease.attempt) == (message, b"x", 1, 1)
    assert state_of(backend, message)[0] is State.LEASED
    assert not door.lease(ALERTS, limit=1)
    assert not taker.offered
    door.settle(lease, SENT)
    assert state_of(backend, message)[0] is State.SENT


def test_an_unwanted_delivery_is_ready_and_offered(backend: Backend, door: Store) -> None:
    taker = Taker(wanted=False)
    door.set_taker(taker)
    put(door, backend.clock, way(ALERTS), way(SCANS))
    assert taker.offered == [ALERTS, SCANS]
    assert door.work().mailboxes == (ALERTS, SCANS)


# -- leasing --------------------------------------------------------------------------------


def test_priority_goes_first_then_age(backend: Backend, door: Store) -> None:
    order = []
    for priority in (2, 1, 0, 1):
        order.append((priority, put(door, backend.clock, priority=priority)))
        backend.clock.advance(1)
    leases = door.lease(ALERTS, limit=10)
    assert [lease.message for lease in leases] == [message for _, message in sorted(order)]


def test_at_most_limit_are_leased(backend: Backend, door: Store) -> None:
    for _ in range(3):
        put(door, backend.clock)
    assert len(door.lease(ALERTS, limit=2)) == 2
    assert len(door.lease(ALERTS, limit=0)) == 0
    assert len(door.lease(ALERTS, limit=2)) == 1


def test_two_doors_never_hold_the_same_delivery(backend: Backend, door: Store) -> None:
    other = backend.open()
    for _ in range(4):
        put(door, backend.clock)
    held = [*door.lease(ALERTS, limit=2), *other.lease(ALERTS, limit=4)]
    assert len({lease.delivery for lease in held}) == 4


def test_work_names_mailboxes_best_first_and_the_next_moment(backend: Backend, door: Store) -> None:
    put(door, backend.clock, way(SCANS), priority=2)
    put(door, backend.clock, way(OTHER), priority=0)
    put(door, backend.clock, way(ALERTS))
    assert door.work().mailboxes == (OTHER, ALERTS, SCANS)
    assert door.work().next_due_at is None
    (lease,) = door.lease(OTHER, limit=1)
    later = deferred(backend.clock, 60)
    door.settle(lease, later)
    assert door.work().mailboxes == (ALERTS, SCANS)
    assert door.work().next_due_at == later.due_at
    backend.clock.advance(61)
    assert door.work().mailboxes == (OTHER, ALERTS, SCANS)


def test_a_renewed_lease_outlives_its_first_end(backend: Backend, door: Store) -> None:
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    backend.clock.advance(200)
    renewed = door.renew(lease)
    assert renewed.expires_boottime > lease.expires_boottime
    backend.clock.advance(100)
    assert door.reclaim() == 0
    backend.clock.advance(200)
    assert door.reclaim() == 1
    with pytest.raises(LeaseLost):
        door.renew(renewed)


# -- settling -------------------------------------------------------------------------------


def told_of(door: Store, lease: Lease, settlement: Settlement) -> object:
    """Settle without waiting; return what was told, once it is."""
    heard: list[object] = []
    door.settle_soon(lease, settlement, heard.append)
    while not heard:
        gevent.idle()
    return heard[0]


def test_a_settlement_nobody_waits_for_is_told_when_durable(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    assert told_of(door, lease, SENT) is None
    assert state_of(backend, message) == (State.SENT, "")
    assert isinstance(told_of(door, lease, SENT), LeaseLost)
    door.close()
    assert isinstance(told_of(door, lease, SENT), SpoolUnavailable)


def test_sent_is_kept_as_history_without_content(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock, octets=LARGE)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, SENT)
    assert state_of(backend, message) == (State.SENT, "")
    assert backend.journal(lease.delivery) == ["sent"]
    with pytest.raises(SpoolUnavailable):
        read(door, message)


@pytest.mark.parametrize("octets", [b"small", LARGE], ids=["small", "large"])
def test_content_stays_until_every_delivery_is_sent(
    backend: Backend, door: Store, octets: bytes
) -> None:
    message = put(door, backend.clock, way(ALERTS), way(SCANS), octets=octets)
    (first,), (second,) = door.lease(ALERTS, limit=1), door.lease(SCANS, limit=1)
    door.settle(first, SENT)
    assert read(door, message) == octets
    door.settle(second, SENT)
    with pytest.raises(SpoolUnavailable):
        read(door, message)


def test_failed_keeps_its_content(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, FAILED)
    assert state_of(backend, message)[0] is State.FAILED
    assert read(door, message)


def test_deferred_waits_until_it_is_due_and_counts_the_attempt(
    backend: Backend, door: Store
) -> None:
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, deferred(backend.clock, 60))
    assert not door.lease(ALERTS, limit=1)
    backend.clock.advance(61)
    (again,) = door.lease(ALERTS, limit=1)
    assert (again.attempt, again.maybe_sent) == (2, False)
    assert again.fence > lease.fence


def test_returned_counts_no_attempt(backend: Backend, door: Store) -> None:
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, RETURNED)
    (again,) = door.lease(ALERTS, limit=1)
    assert again.attempt == 1


def test_an_ambiguous_outcome_is_remembered(backend: Backend, door: Store) -> None:
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(
        lease,
        Settlement(state=State.DEFERRED, outcome="ambiguous", due_at=backend.clock.utcnow()),
    )
    (again,) = door.lease(ALERTS, limit=1)
    assert again.maybe_sent


def test_a_settled_lease_cannot_be_settled_again(backend: Backend, door: Store) -> None:
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, RETURNED)
    with pytest.raises(LeaseLost):
        door.settle(lease, SENT)
    (again,) = door.lease(ALERTS, limit=1)
    with pytest.raises(LeaseLost):
        door.settle(lease, SENT)
    door.settle(again, SENT)


def test_only_the_recipients_left_are_offered_again(backend: Backend, door: Store) -> None:
    put(door, backend.clock, way(ALERTS, "a@x.org", "b@x.org", "c@x.org"))
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(
        lease,
        Settlement(
            state=State.DEFERRED,
            outcome="deferred",
            due_at=backend.clock.utcnow(),
            failed_recipients={"b@x.org": "no such mailbox"},
            sent_recipients=("a@x.org",),
        ),
    )
    (again,) = door.lease(ALERTS, limit=1)
    assert again.recipients == ("c@x.org",)


@pytest.mark.parametrize(
    ("sent", "ends"), [(("a@x.org",), State.SENT), ((), State.FAILED)], ids=["some", "none"]
)
def test_with_no_recipient_left_it_ends_by_whether_any_was_sent(
    backend: Backend, door: Store, sent: tuple[str, ...], ends: State
) -> None:
    message = put(door, backend.clock, way(ALERTS, "a@x.org", "b@x.org"))
    (lease,) = door.lease(ALERTS, limit=1)
    failed = {one: "no" for one in ("a@x.org", "b@x.org") if one not in sent}
    door.settle(
        lease,
        Settlement(
            state=State.DEFERRED,
            outcome="failed",
            due_at=backend.clock.utcnow(),
            failed_recipients=failed,
            sent_recipients=sent,
        ),
    )
    assert state_of(backend, message)[0] is ends


# -- holds ----------------------------------------------------------------------------------


def test_a_hold_keeps_back_what_is_like_it_and_nothing_else(backend: Backend, door: Store) -> None:
    refused = put(door, backend.clock)
    waiting = put(door, backend.clock)
    other = put(door, backend.clock, way(ALERTS, header_from="nas@contoso.com"))
    (lease,) = door.lease(ALERTS, limit=1)
    assert lease.message == refused
    door.settle(lease, denied(backend.clock))
    (hold,) = door.holds()
    assert (hold.mailbox, hold.header_from, hold.cause) == (
        ALERTS,
        "ups@contoso.com",
        "ErrorSendAsDenied",
    )
    assert [one.message for one in door.lease(ALERTS, limit=5)] == [other]
    taker = Taker()
    door.set_taker(taker)
    born = put(door, backend.clock)
    assert not taker.set_aside
    for message in (refused, waiting, born):
        assert state_of(backend, message) == (State.HELD, "ErrorSendAsDenied")


def test_a_hold_is_seen_by_the_other_doors(backend: Backend, door: Store) -> None:
    other = backend.open()
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, denied(backend.clock))
    other.work()
    assert [hold.cause for hold in other.holds()] == ["ErrorSendAsDenied"]
    assert state_of(backend, put(other, backend.clock))[0] is State.HELD


def test_one_probe_goes_when_the_hold_says_so_and_its_success_frees_all(
    backend: Backend, door: Store
) -> None:
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, denied(backend.clock, 1800))
    messages = [put(door, backend.clock) for _ in range(3)]
    assert door.work().mailboxes == ()
    assert door.work().next_due_at == denied(backend.clock, 1800).due_at
    backend.clock.advance(1801)
    assert door.work().mailboxes == (ALERTS,)
    (probe,) = door.lease(ALERTS, limit=5)
    assert probe.delivery == lease.delivery
    assert not door.lease(ALERTS, limit=5)
    taker = Taker()
    door.set_taker(taker)
    door.settle(probe, SENT)
    assert not door.holds()
    assert taker.offered == [ALERTS]
    assert [one.message for one in door.lease(ALERTS, limit=5)] == messages


def test_a_probe_that_is_refused_waits_for_the_next(backend: Backend, door: Store) -> None:
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, denied(backend.clock, 1800))
    backend.clock.advance(1801)
    (probe,) = door.lease(ALERTS, limit=1)
    door.settle(probe, denied(backend.clock, 1800))
    (hold,) = door.holds()
    assert hold.probe_at == denied(backend.clock, 1800).due_at
    assert not door.lease(ALERTS, limit=1)


def test_a_hold_that_holds_nothing_goes_when_it_is_due(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, denied(backend.clock, 60))
    door.delete([message])
    backend.clock.advance(61)
    assert not door.lease(ALERTS, limit=1)
    assert not door.holds()
    assert door.work().mailboxes == ()


def test_held_without_a_moment_makes_no_hold(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, Settlement(state=State.HELD, outcome="ambiguous", held_by="ambiguous"))
    assert state_of(backend, message) == (State.HELD, "ambiguous")
    assert not door.holds()


# -- crashes --------------------------------------------------------------------------------


def test_a_dead_holders_lease_comes_back_as_maybe_sent(backend: Backend, door: Store) -> None:
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    survivor = backend.open()
    assert survivor.reclaim() == 0
    backend.crash(door)
    assert survivor.reclaim() == 1
    (again,) = survivor.lease(ALERTS, limit=1)
    assert (again.delivery, again.maybe_sent, again.attempt) == (lease.delivery, True, 2)
    assert "ambiguous" in backend.journal(lease.delivery)
    with pytest.raises(LeaseLost):
        survivor.settle(lease, SENT)


def test_where_duplicates_are_worse_the_dead_holders_mail_is_held(make: Make) -> None:
    backend = make(ambiguous="hold")
    door = backend.open()
    message = put(door, backend.clock)
    door.lease(ALERTS, limit=1)
    backend.crash(door)
    assert backend.open().reclaim() == 1
    assert state_of(backend, message) == (State.HELD, "ambiguous")


def test_an_expired_lease_comes_back_though_its_holder_lives(backend: Backend, door: Store) -> None:
    put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    backend.clock.advance(241)
    assert door.reclaim() == 1
    with pytest.raises(LeaseLost):
        door.settle(lease, SENT)


# -- operators ------------------------------------------------------------------------------


def test_hold_and_release(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    assert door.hold([message, QueueId(4096)]) == 1
    assert state_of(backend, message) == (State.HELD, "operator")
    assert not door.lease(ALERTS, limit=1)
    assert door.release([message]) == 1
    assert len(door.lease(ALERTS, limit=1)) == 1


def test_delete_gives_up_and_drops_the_content(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock, octets=LARGE)
    assert door.delete([message]) == 1
    assert state_of(backend, message)[0] is State.DELETED
    with pytest.raises(SpoolUnavailable):
        read(door, message)
    assert door.retry([message]) == 0
    assert door.delete([message]) == 0


def test_of_sent_mail_delete_drops_kept_content_and_else_does_nothing(make: Make) -> None:
    """It said "deleted: 811" of mail that had no content, and noted it in each journal."""
    backend = make(keep_sent_s=3600)
    door = backend.open()
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, SENT)
    assert [door.delete([message]) for _ in range(2)] == [1, 0]
    assert state_of(backend, message)[0] is State.SENT
    assert backend.journal(lease.delivery)[-2:] == ["sent", "deleted"]
    assert door.resend([message]) == 0


def test_failed_mail_is_deleted_too(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, FAILED)
    assert read(door, message)
    assert door.delete([message]) == 1
    assert state_of(backend, message)[0] is State.DELETED
    with pytest.raises(SpoolUnavailable):
        read(door, message)


def test_deleted_while_a_part_is_being_sent_the_content_goes_with_that_part(
    backend: Backend, door: Store
) -> None:
    message = put(door, backend.clock, way(ALERTS), way(SCANS))
    (lease,) = door.lease(ALERTS, limit=1)
    assert door.delete([message]) == 1
    assert read(door, message)
    door.settle(lease, SENT)
    assert {row[1] for row in backend.states().values()} == {State.SENT, State.DELETED}
    with pytest.raises(SpoolUnavailable):
        read(door, message)


def test_retry_makes_deferred_and_failed_mail_ready(backend: Backend, door: Store) -> None:
    first, second = put(door, backend.clock), put(door, backend.clock)
    one, two = door.lease(ALERTS, limit=2)
    door.settle(one, deferred(backend.clock, 3000))
    door.settle(two, FAILED)
    assert door.retry([first, second]) == 2
    assert len(door.lease(ALERTS, limit=2)) == 2


def test_retry_of_held_mail_probes_its_hold_now(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, denied(backend.clock, 1800))
    assert door.retry([message]) == 1
    assert door.release([message]) == 1
    (probe,) = door.lease(ALERTS, limit=1)
    door.settle(probe, SENT)
    assert sorted(backend.journal(lease.delivery)) == [
        "misconfigured",
        "released",
        "retried",
        "sent",
    ]


@pytest.mark.parametrize(
    ("settlement", "wish", "ends"),
    [
        (RETURNED, "hold", (State.HELD, "operator")),
        (RETURNED, "delete", (State.DELETED, "")),
        (FAILED, "delete", (State.DELETED, "")),
        (SENT, "hold", (State.SENT, "")),
        (SENT, "delete", (State.SENT, "")),
    ],
)
def test_a_wish_made_while_it_was_leased_is_obeyed_at_settle(
    backend: Backend,
    door: Store,
    settlement: Settlement,
    wish: str,
    ends: tuple[State, str],
) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    assert getattr(door, wish)([message]) == 1
    assert state_of(backend, message)[0] is State.LEASED
    door.settle(lease, settlement)
    assert state_of(backend, message) == ends


def test_a_wish_can_be_taken_back_while_it_is_leased(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.hold([message])
    door.release([message])
    door.settle(lease, RETURNED)
    assert state_of(backend, message) == (State.READY, "")


def test_resend_needs_kept_content(make: Make) -> None:
    backend = make(keep_sent_s=3600)
    door = backend.open()
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, SENT)
    assert door.resend([message]) == 1
    (again,) = door.lease(ALERTS, limit=1)
    door.settle(again, SENT)
    backend.clock.advance(3601)
    door.sweep()
    assert door.resend([message]) == 0


def test_kept_content_goes_when_none_is_to_be_kept_any_more(make: Make) -> None:
    backend = make(keep_sent_s=86_400)
    door = backend.open()
    messages = [put(door, backend.clock), put(door, backend.clock, octets=LARGE)]
    for lease in door.lease(ALERTS, limit=2):
        door.settle(lease, SENT)
    waits = put(door, backend.clock)
    door.close()
    backend.keep_sent(0)
    door = backend.open()
    door.sweep()
    assert door.resend(messages) == 0
    assert door.hold([waits]) == 1
    assert read(door, waits)


def test_a_large_message_is_sent_again_with_its_content(make: Make) -> None:
    backend = make(keep_sent_s=3600)
    door = backend.open()
    message = put(door, backend.clock, octets=LARGE)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, SENT)
    door.sweep()
    assert door.resend([message]) == 1
    (again,) = door.lease(ALERTS, limit=1)
    assert (again.attempt, again.recipients) == (2, ("admin@contoso.com",))
    assert read(door, message) == LARGE
    assert backend.journal(again.delivery)[:2] == ["sent", "resent"]


def test_hasten_makes_an_upstreams_deferred_mail_due(backend: Backend, door: Store) -> None:
    put(door, backend.clock)
    put(door, backend.clock, way(OTHER))
    for box in (ALERTS, OTHER):
        (lease,) = door.lease(box, limit=1)
        door.settle(lease, deferred(backend.clock, 3000))
    assert door.hasten("contoso") == 1
    assert door.work().mailboxes == (ALERTS,)


def test_mail_of_a_removed_upstream_is_held_until_it_is_back(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    assert door.adopt(["fabrikam"]) == 1
    assert state_of(backend, message) == (State.HELD, "upstream contoso not configured")
    assert door.adopt(["contoso", "fabrikam"]) == 1
    assert len(door.lease(ALERTS, limit=1)) == 1


# -- another way out ------------------------------------------------------------------------

MENDED = MailboxRef("contoso", "relay@contoso.com")
WAITING = TURNED_BY["configuration"]


def redirected(course: Course, mailbox: MailboxRef = MENDED, sender: str = "") -> Redirect:
    """Return what gives a delivery another mailbox; sender: and another From."""
    return Redirect(
        course=course,
        mailbox=mailbox,
        set_from=sender or course.header_from,
        reply_to_original=course.reply_to_original,
    )


def follow(door: Store, *mailboxes: MailboxRef) -> int:
    """Have mail go as `mailboxes` say, as a worker does with its configuration."""
    total = 0
    while courses := door.astray(mailboxes or (MENDED,)):
        total += door.redirect([redirected(one) for one in courses], "configuration")
    return total


def test_what_a_wrong_mailbox_held_is_free_once_the_mailbox_is_another(
    backend: Backend, door: Store
) -> None:
    taker = Taker(wanted=False)
    door.set_taker(taker)
    first, second = put(door, backend.clock), put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, denied(backend.clock, cause="ErrorInvalidUser"))
    assert door.lease(ALERTS, limit=5) == []  # the second is held with it
    taker.offered.clear()
    assert follow(door) == 2
    assert taker.offered
    assert set(taker.offered) == {MENDED}
    assert door.holds() == ()
    assert backend.journal(lease.delivery) == ["misconfigured", "moved"]
    assert follow(door) == 0
    assert {one.message for one in door.lease(MENDED, limit=5)} == {first, second}


def test_a_redirected_delivery_goes_out_with_the_from_it_was_given(
    backend: Backend, door: Store
) -> None:
    message = put(door, backend.clock)
    (course,) = door.courses([message], WAITING)
    assert (course.mailbox, course.state, course.device) == (ALERTS, State.READY, "ups")
    door.redirect([redirected(course, sender="Relay@contoso.com")], "configuration")
    (lease,) = door.lease(MENDED, limit=1)
    assert (lease.set_from, lease.header_from) == ("Relay@contoso.com", "relay@contoso.com")
    assert lease.attempt == 1
    door.settle(lease, SENT)
    assert state_of(backend, message) == (State.SENT, "")


def test_a_hold_stays_while_it_holds_anything(backend: Backend, door: Store) -> None:
    first, _ = put(door, backend.clock), put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, denied(backend.clock))
    assert door.lease(ALERTS, limit=1) == []
    door.redirect([redirected(one) for one in door.courses([first], WAITING)], "configuration")
    assert [hold.mailbox for hold in door.holds()] == [ALERTS]


def test_of_two_holds_the_one_that_holds_nothing_goes(backend: Backend, door: Store) -> None:
    first, _ = put(door, backend.clock), put(door, backend.clock)
    leases = {one.message: one for one in door.lease(ALERTS, limit=2)}
    door.settle(leases.pop(first), denied(backend.clock, cause="ErrorAccessDenied"))
    (other,) = leases.values()
    door.settle(other, denied(backend.clock, cause="ErrorSendAsDenied"))
    door.redirect([redirected(one) for one in door.courses([first], WAITING)], "configuration")
    assert [hold.cause for hold in door.holds()] == ["ErrorSendAsDenied"]


def test_a_hold_of_the_new_mailbox_holds_what_comes_to_it(backend: Backend, door: Store) -> None:
    put(door, backend.clock, way(MENDED))
    message = put(door, backend.clock)
    (lease,) = door.lease(MENDED, limit=1)
    door.settle(lease, denied(backend.clock))
    assert follow(door) == 1
    assert door.lease(MENDED, limit=5) == []
    assert state_of(backend, message) == (State.HELD, "ErrorSendAsDenied")


def test_what_is_being_sent_is_not_redirected(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    (before,) = door.courses([message], WAITING)
    (lease,) = door.lease(ALERTS, limit=1)
    assert door.astray([MENDED]) == []
    assert door.redirect([redirected(before)], "operator") == 0
    (course,) = door.courses([message], frozenset({State.LEASED}))
    assert door.redirect([redirected(course)], "operator") == 0
    door.settle(lease, SENT)
    assert backend.journal(lease.delivery) == ["sent"]


def test_a_delivery_that_moved_meanwhile_is_left_alone(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    (course,) = door.courses([message], WAITING)
    door.hold([message])
    assert door.redirect([redirected(course)], "configuration") == 0
    assert state_of(backend, message) == (State.HELD, "operator")
    assert [one.mailbox for one in door.courses([message], WAITING)] == [ALERTS]


def test_a_delivery_that_is_held_by_another_meanwhile_is_left_alone(
    backend: Backend, door: Store
) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, replace(denied(backend.clock), due_at=None))
    (course,) = door.courses([message], WAITING)
    door.release([message])
    door.hold([message])
    assert door.redirect([redirected(course)], "configuration") == 0
    assert state_of(backend, message) == (State.HELD, "operator")


def test_what_a_person_holds_gets_the_new_mailbox_and_stays_held(
    backend: Backend, door: Store
) -> None:
    message = put(door, backend.clock)
    door.hold([message])
    assert follow(door) == 1
    assert state_of(backend, message) == (State.HELD, "operator")
    assert door.release([message]) == 1
    assert len(door.lease(MENDED, limit=5)) == 1


def test_what_waits_for_its_time_goes_on_waiting(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, deferred(backend.clock, 600))
    assert follow(door) == 1
    assert state_of(backend, message) == (State.DEFERRED, "")
    assert door.lease(MENDED, limit=1) == []
    backend.clock.advance(601)
    assert [one.attempt for one in door.lease(MENDED, limit=1)] == [2]


def test_what_may_have_gone_stays_where_it_may_be_looked_for(make: Make) -> None:
    backend = make(ambiguous="hold")
    door = backend.open()
    message = put(door, backend.clock)
    door.lease(ALERTS, limit=1)
    backend.crash(door)
    door = backend.open()
    assert door.reclaim() == 1
    assert follow(door) == 0
    assert state_of(backend, message) == (State.HELD, "ambiguous")
    # Once somebody has looked, it goes as is configured now.
    courses = door.courses([message], frozenset({State.HELD}))
    assert door.release([message], [redirected(one) for one in courses]) == 1
    assert [one.message for one in door.lease(MENDED, limit=1)] == [message]


def test_mail_of_an_upstream_that_is_gone_stays_held_until_it_is_back(
    backend: Backend, door: Store
) -> None:
    message = put(door, backend.clock)
    door.adopt(["fabrikam"])
    assert follow(door, OTHER) == 0
    assert state_of(backend, message) == (State.HELD, "upstream contoso not configured")
    # Back, with another mailbox: never tried on the old one.
    assert follow(door) == 1
    assert state_of(backend, message) == (State.HELD, "upstream contoso not configured")
    assert door.adopt(["contoso"]) == 1
    assert door.lease(ALERTS, limit=1) == []
    assert len(door.lease(MENDED, limit=1)) == 1


@pytest.mark.parametrize("wish", ["release", "retry"])
def test_a_wish_sends_by_the_way_out_it_is_given(backend: Backend, door: Store, wish: str) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, denied(backend.clock, cause="ErrorInvalidUser"))
    courses = door.courses([message], frozenset({State.HELD}))
    ask = door.release if wish == "release" else door.retry
    assert ask([message], [redirected(one) for one in courses]) == 1
    assert door.holds() == ()
    assert [one.message for one in door.lease(MENDED, limit=1)] == [message]


@pytest.mark.parametrize("wish", ["retry", "release"])
def test_a_wish_starts_nothing_that_has_no_way_out(
    backend: Backend, door: Store, wish: str
) -> None:
    message = put(door, backend.clock, way(ALERTS), way(OTHER))
    door.hold([message])
    ask = getattr(door, wish)
    assert ask([message], (), frozenset({"another"})) == 0
    assert ask([message], (), frozenset({"contoso"})) == 1
    assert [row[1:] for _, row in sorted(backend.states().items())] == [
        (State.READY, ""),
        (State.HELD, "operator"),
    ]


def test_failed_mail_is_retried_by_the_way_out_it_is_given(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock)
    (lease,) = door.lease(ALERTS, limit=1)
    door.settle(lease, FAILED)
    assert follow(door) == 0  # it waits for nothing
    failed = frozenset({State.FAILED})
    courses = door.courses([message], failed, with_content=True)
    assert door.retry([message], [redirected(one) for one in courses]) == 1
    assert [one.message for one in door.lease(MENDED, limit=1)] == [message]
    door.delete([message])
    assert door.courses([message], failed, with_content=True) == []


def test_an_operator_moves_mail_to_another_upstream(backend: Backend, door: Store) -> None:
    held, waits = put(door, backend.clock), put(door, backend.clock, way(SCANS))
    kept, gone = put(door, backend.clock), put(door, backend.clock, way(SCANS))
    (lease,) = door.lease(SCANS, limit=1)
    door.settle(lease, deferred(backend.clock, 600))
    door.hold([kept])
    (lease,) = door.lease(SCANS, limit=1)
    door.settle(lease, FAILED)
    door.adopt(["fabrikam"])
    everything = door.courses([held, waits, kept, gone], TURNED_BY["operator"])
    assert door.redirect([redirected(one, OTHER) for one in everything], "operator") == 4
    assert state_of(backend, kept) == (State.HELD, "operator")
    assert state_of(backend, gone) == (State.FAILED, "")
    assert {one.message for one in door.lease(OTHER, limit=9)} == {held, waits}
    door.adopt(["fabrikam"])
    assert {one.mailbox for one in door.courses([held, waits, kept, gone], frozenset(State))} == {
        OTHER
    }


# -- upkeep ---------------------------------------------------------------------------------


def test_what_is_too_old_is_given_up_and_told(backend: Backend, door: Store) -> None:
    old = put(door, backend.clock, max_age_s=60)
    held = put(door, backend.clock, max_age_s=60)
    young = put(door, backend.clock, max_age_s=7200)
    door.hold([held])
    backend.clock.advance(61)
    (expired,) = door.sweep()
    assert (expired.message, expired.mailbox, expired.sender) == (old, ALERTS, "ups@contoso.com")
    assert state_of(backend, old)[0] is State.FAILED
    assert state_of(backend, held) == (State.HELD, "operator")
    assert [lease.message for lease in door.lease(ALERTS, limit=5)] == [young]


def test_a_leased_message_does_not_expire(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock, max_age_s=60)
    door.lease(ALERTS, limit=1)
    backend.clock.advance(61)
    assert door.sweep() == ()
    assert state_of(backend, message)[0] is State.LEASED


def test_failed_content_then_history_go_when_their_time_is_over(
    backend: Backend, door: Store
) -> None:
    sent, failed = put(door, backend.clock), put(door, backend.clock)
    deleted = put(door, backend.clock, way(SCANS))
    one, two = door.lease(ALERTS, limit=2)
    door.settle(one, SENT)
    door.settle(two, FAILED)
    door.delete([deleted])
    door.sweep()
    assert read(door, failed)
    backend.clock.advance(31 * 86_400)
    door.sweep()
    with pytest.raises(SpoolUnavailable):
        read(door, failed)
    assert {row[0] for row in backend.states().values()} == {sent, failed, deleted}
    backend.clock.advance(60 * 86_400)
    door.sweep()
    assert not backend.states()


def test_retried_after_its_time_a_message_gets_a_new_one(backend: Backend, door: Store) -> None:
    message = put(door, backend.clock, max_age_s=60)
    backend.clock.advance(61)
    door.sweep()
    assert door.retry([message]) == 1
    assert door.sweep() == ()
    (lease,) = door.lease(ALERTS, limit=1)
    assert lease.expires_at > backend.clock.utcnow()


def test_a_closed_door_refuses(backend: Backend, door: Store) -> None:
    door.close()
    door.close()
    with pytest.raises(SpoolUnavailable):
        door.work()
