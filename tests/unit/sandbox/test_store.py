"""relayd.sandbox.store: each recipient gets it once, and nothing grows without end."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

from relayd.sandbox import mime
from relayd.sandbox.knobs import Knobs
from relayd.sandbox.store import Post, Store, Stored

AT = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
MIME = (
    b"From: a@b.c\r\nTo: One@x.y\r\nBcc: two@x.y\r\nReturn-Path: <a@b.c>\r\n"
    b"Message-ID: <%d@h>\r\nX-Test: %d\r\nX-Known: k\r\nAuto-Submitted: yes\r\nFoo: bar\r\n"
    b"\r\nbody %d"
)


def commit(
    store: Store,
    number: int = 1,
    *,
    octets: bytes = b"",
    knobs: Knobs | None = None,
    save: bool = True,
    replaced: tuple[tuple[str, str], ...] = (),
) -> Stored:
    examined = mime.examine(octets or MIME % (number, number, number))
    post = Post(
        request_id="r",
        client_request_id="c",
        app="app",
        mailbox="a@b.c",
        form="mime",
        save_to_sent=save,
        request_fields=store.once((("user-agent", "relayd"),)),
        at=AT,
        drained_at=AT,
    )
    recipients = tuple(mime.recipients(examined))
    return store.commit(examined, recipients, "a@b.c", post, knobs or Knobs(), replaced=replaced)


def test_every_recipient_and_sent_items_get_a_message() -> None:
    store = Store()
    stored = commit(store)
    assert store.inboxes() == {"one@x.y": 1, "two@x.y": 1}
    assert store.sent_counts() == {"a@b.c": 1}
    assert store.inbox("ONE@x.y") == store.sent("a@b.c") == [stored]
    assert (store.total, len(store), store.deliveries) == (1, 1, 2)
    assert stored.body_sha256 == hashlib.sha256(b"body 1").hexdigest()


def test_without_saving_there_is_no_sent_copy() -> None:
    store = Store()
    commit(store, save=False)
    assert store.sent_counts() == {}


def test_a_recipient_sees_neither_bcc_nor_return_path() -> None:
    stored = commit(Store())
    head = stored.delivered_head()
    assert head is not None
    assert b"Bcc" not in head
    assert b"Return-Path" not in head
    assert b"X-Test: 1\r\n" in head
    assert stored.head is not None
    assert b"Bcc: two@x.y" in stored.head


def test_exchange_strips_what_the_knobs_say() -> None:
    knobs = Knobs(
        strip_auto_submitted=True,
        strip_custom_headers=True,
        strip_x_headers=True,
        known_x_headers=("x-known",),
    )
    head = commit(Store(), knobs=knobs).delivered_head()
    assert head is not None
    names = [name for name, _ in mime.cut(head)]
    assert names == ["from", "to", "message-id", "x-known"]


def test_a_replaced_field_stands_once() -> None:
    head = commit(Store(), replaced=(("Message-ID", "<new@x>"),)).delivered_head()
    assert head is not None
    assert head.startswith(b"Message-ID: <new@x>\r\n")
    assert head.lower().count(b"message-id") == 1


def test_duplicates_are_found_by_message_id_and_by_field() -> None:
    store = Store()
    for number in (1, 1, 2):
        commit(store, number)
    assert [each.number for each in store.with_message_id("<1@h>")] == [1, 2]
    assert [each.number for each in store.with_field("x-test", "2")] == [3]
    assert store.counted_by("X-Test") == {
        "1": {"one@x.y": 2, "two@x.y": 2},
        "2": {"one@x.y": 1, "two@x.y": 1},
    }
    assert store.counted_by("message-id")["<1@h>"]["one@x.y"] == 2


def test_pages_follow_each_other() -> None:
    store = Store()
    for number in range(1, 6):
        commit(store, number)
    assert [each.number for each in store.messages(0, 2)] == [1, 2]
    assert [each.number for each in store.messages(2, 2)] == [3, 4]
    assert [each.number for each in store.inbox("one@x.y", 4, 9)] == [5]


def test_a_large_body_is_a_length_and_a_hash_unless_asked_for() -> None:
    octets = b"To: one@x.y\r\n\r\n" + b"x" * 70_000
    thin, fat = (commit(Store(), octets=octets, knobs=Knobs(keep_bodies=k)) for k in (False, True))
    assert (thin.body, thin.body_bytes) == (None, 70_000)
    assert fat.body == b"x" * 70_000
    assert thin.body_sha256 == fat.body_sha256


def test_the_oldest_content_makes_room_but_its_record_stays() -> None:
    store = Store(content_budget=600)
    for number in range(1, 6):
        commit(store, number)
    first, last = store.message(1), store.message(5)
    assert first is not None
    assert last is not None
    assert (first.head, first.body, first.delivered_head()) == (None, None, None)
    assert first.body_sha256 == hashlib.sha256(b"body 1").hexdigest()
    assert last.body == b"body 5"


def test_records_are_bounded_and_the_dropped_are_counted() -> None:
    store = Store(max_records=3)
    for number in range(1, 6):
        commit(store, number)
    assert (len(store), store.dropped, store.total) == (3, 2, 5)
    assert [each.number for each in store.inbox("one@x.y")] == [3, 4, 5]
    assert [each.number for each in store.messages(0, 10)] == [3, 4, 5]
    assert store.with_message_id("<1@h>") == []
    assert store.sent_counts() == {"a@b.c": 3}


def test_the_journal_has_every_message_with_its_octets(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    store = Store(journal=str(path))
    commit(store, 1)
    commit(store, 2)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line["message_id"] for line in lines] == ["<1@h>", "<2@h>"]
    assert lines[0]["body"] == "body 1"
    assert lines[0]["head"].startswith("From: a@b.c")


def test_equal_request_fields_are_kept_once() -> None:
    store = Store()
    assert commit(store, 1).post.request_fields is commit(store, 2).post.request_fields


def test_clear_forgets_everything() -> None:
    store = Store()
    commit(store)
    store.clear()
    assert (len(store), store.total, store.deliveries, store.inboxes()) == (0, 0, 0, {})
    assert store.messages(0, 10) == []
