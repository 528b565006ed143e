"""A worker's answers to operators: pages, wishes, export, and clients that misbehave.

A real spool, a courier that is only asked for its upstreams, and socket pairs as clients.
"""

from __future__ import annotations

import base64
import json
import selectors
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import cast

import gevent
import pytest
from gevent import socket
from structlog.testing import capture_logs

from relayd.access.replan import Replanner
from relayd.cache.client import Client
from relayd.cache.frames import Refused
from relayd.cli.answers import rows_of
from relayd.config.model import Config, Device, Upstream, User
from relayd.deliver.courier import Courier
from relayd.deliver.roster import UpstreamStatus
from relayd.errors import CacheUnavailable, SpoolFull, SpoolUnavailable
from relayd.master import report
from relayd.master.board import Board
from relayd.master.channel import Channel, pair
from relayd.master.checker import Loaded
from relayd.master.child import status_packets
from relayd.master.crew import Child, Crew, Life
from relayd.master.frames import Decoder, Frame, Json, encode
from relayd.master.household import Household
from relayd.master.launch import Launch
from relayd.master.log import Log
from relayd.master.settings import select
from relayd.operator import Operator, follow, tell_unknown
from relayd.serve.session import PeerGone
from relayd.spool.door import SqliteDoor
from relayd.spool.model import MailboxRef, QueueId, State, queue_id_text
from relayd.spool.moves import WISHES, Wish
from relayd.spool.queries import Reader
from tests.spooling import ALERTS, FAILED, SCANS, SENT, SqliteBackend, deferred, denied, put, way


class FakeCourier:
    """Knows its upstreams; nothing is delivered."""

    def __init__(self) -> None:
        self.rows: tuple[UpstreamStatus, ...] = (status("contoso"),)
        self.clock_trouble = ""

    def upstreams(self) -> tuple[UpstreamStatus, ...]:
        return self.rows


def status(name: str, state: str = "up", cause: str = "", text: str = "") -> UpstreamStatus:
    retry_in_s = 0.0 if state == "up" else 20.0
    return UpstreamStatus(
        name=name, state=state, cause=cause, text=text, down_s=0.0, retry_in_s=retry_in_s,
        in_flight=0, mailboxes_waiting=0, resting={},
    )  # fmt: skip


class FakeCache:
    """Answers `status`, or fails."""

    def __init__(self) -> None:
        self.tokens: object = []
        self.slots: object = []
        self.failure: Exception | None = None

    def call(self, method: str, payload: object, *, timeout_s: float) -> dict[str, object]:
        assert method == "status"
        if self.failure is not None:
            raise self.failure
        return {"tokens": self.tokens, "slots": self.slots}


class Room:
    """An Operator and what is around it."""

    def __init__(
        self,
        folder: Path,
        *upstreams: Upstream,
        patience_s: float = 5.0,
        keep_sent_s: float = 0.0,
    ) -> None:
        self.backend = SqliteBackend(folder, keep_sent_s=keep_sent_s)
        self.door: SqliteDoor = self.backend.open()
        self.clock = self.backend.clock
        self.courier = FakeCourier()
        self.cache = FakeCache()
        self.spoken: list[str] = []
        self.config = Config(
            spool=self.backend.settings,
            upstream=upstreams or (Upstream(name="contoso", mailbox=ALERTS.mailbox),),
            device=(Device(name="ups", networks=("192.0.2.0/24",), default_from="a@contoso.com"),),
            user=(
                User(name="printer1", upstream="contoso", from_="p@contoso.com", allow_to=("*",)),
            ),
        )
        self.operator = Operator(
            self.config,
            self.door,
            cast("Courier", self.courier),
            cast("Client", self.cache),
            self._converse,
            clock=self.clock,
            patience_s=patience_s,
        )

    def _converse(self, client: socket.socket, name: str) -> None:
        self.spoken.append(name)
        client.sendall(b"220 hello\r\n")
        raise PeerGone("the operator left")

    def put(self) -> QueueId:
        return put(self.door, self.clock)

    def ask(self, request: Frame, peer: Json = None) -> list[Frame]:
        """Return all replies to one request."""
        return list(Decoder().feed(self.raw(request, peer)))

    def raw(self, request: Frame, peer: Json = None, down: Json = None) -> bytes:
        ours, theirs = socket.socketpair()
        serving = gevent.spawn(self.operator.serve, request, theirs.detach(), peer, down)
        octets = b""
        with ours:
            while piece := ours.recv(65536):
                octets += piece
        serving.get(timeout=10)
        return octets

    def result(self, request: Frame) -> dict[str, Json]:
        """Return the last reply's result."""
        reply = self.ask(request)[-1]
        assert reply["ok"] is True, reply
        result = reply["result"]
        assert isinstance(result, dict)
        return result

    def refusal(self, request: Frame) -> tuple[str, Json]:
        reply = self.ask(request)[-1]
        assert reply["ok"] is False, reply
        return str(reply["error"]), reply["exit"]

    def state(self, message: QueueId) -> State:
        story = self.door.show(message)
        assert story is not None
        return story.deliveries[0].state

    def close(self) -> None:
        self.operator.close()
        self.backend.close()


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path)
    yield room
    room.close()


# ---- looking


def test_a_list_and_a_story_come_from_the_spool(room: Room) -> None:
    message = room.put()
    (page,) = room.ask({"command": "queue.list"})
    assert json.dumps(page).count(queue_id_text(message)) == 1
    story = room.result({"command": "queue.show", "id": queue_id_text(message)})
    assert "waits for its turn" in json.dumps(story)


def test_a_story_knows_which_upstream_is_down(room: Room) -> None:
    message = room.put()
    room.courier.rows = (status("contoso", "down", "dns-failed", "no such name"),)
    story = room.result({"command": "queue.show", "id": queue_id_text(message)})
    assert "Upstream contoso is down" in json.dumps(story)


def test_a_list_says_what_a_mailbox_waits_for_and_asks_once_in_a_while(room: Room) -> None:
    room.put()
    figures = {"sent_last_minute": 30, "per_minute": 30, "held": 1, "capacity": 4}
    room.cache.slots = [{"upstream": "contoso", "mailbox": ALERTS.mailbox, **figures}, "nonsense"]
    assert listed(room) == ["30 of 30 in the last minute (messages_per_minute)"]
    room.cache.slots = []
    room.clock.advance(4)
    assert listed(room) == ["30 of 30 in the last minute (messages_per_minute)"]
    room.clock.advance(6)
    assert listed(room) == [""]
    row = replace(status("contoso"), resting={ALERTS.mailbox: 9.0})
    room.courier.rows = (row,)
    assert listed(room) == ["alerts@contoso.com rests for 9 s"]


def test_a_list_says_that_the_spool_cannot_be_written(room: Room) -> None:
    room.put()
    room.door._core.trouble = SpoolFull("the disk is full")
    assert listed(room) == ["the spool cannot be written"]
    room.door._core.trouble = None


def listed(room: Room) -> list[Json]:
    """Return the reasons of `queue list`."""
    return [row["reason"] for row in rows_of(room.result({"command": "queue.list"})["messages"])]


def test_content_is_exported_in_pieces_as_it_was_kept(room: Room) -> None:
    octets = b"a: b\r\n\r\n" + bytes(range(256)) * 2000
    message = put(room.door, room.clock, octets=octets)
    replies = room.ask({"command": "queue.export", "id": queue_id_text(message)})
    parts = [cast("dict[str, str]", reply["result"])["octets"] for reply in replies]
    assert b"".join(base64.b64decode(part) for part in parts) == octets
    assert len(parts) > 2
    assert [bool(reply.get("more")) for reply in replies] == [True] * (len(parts) - 1) + [False]


def test_what_cannot_be_exported_is_refused_in_words(room: Room) -> None:
    words, code = room.refusal({"command": "queue.export", "id": "1JV7SEQSLMJCW"})
    assert (words, code) == ("1JV7SEQSLMJCW: no such message", 1)
    message = room.put()
    room.door.delete([message])
    words, _ = room.refusal({"command": "queue.export", "id": queue_id_text(message)})
    assert words.endswith("its content is not kept any more")


@pytest.mark.parametrize("mistyped", ["lJW5N6Z292GE8", "ZZZZZZZZZZZZZ", "1Y2P0IJ32E8E8"])
def test_an_id_greater_than_any_is_one_that_nobody_knows(room: Room, mistyped: str) -> None:
    """SQLite has no such number: the answer was none at all, and the log said control.bug."""
    for command in ("queue.show", "queue.export"):
        words, code = room.refusal({"command": command, "id": mistyped})
        assert "no such message" in words
        assert code == 1
    known = queue_id_text(room.put())
    answers = [
        room.result(
            {"command": f"queue.{wish}", "ids": [mistyped, known], "to_upstream": "contoso"}
        )
        for wish in (*WISHES, "move")
    ]
    assert [one["missing"] for one in answers] == [[mistyped.upper()]] * len(answers)


# ---- wishes


@pytest.mark.parametrize(
    ("command", "state"),
    [("queue.hold", State.HELD), ("queue.delete", State.DELETED)],
)
def test_a_wish_reaches_the_ids_it_names(room: Room, command: str, state: State) -> None:
    message, other = room.put(), room.put()
    answer = room.result({"command": command, "ids": [queue_id_text(message).lower()]})
    assert answer == {"count": 1, "missing": [], "untouched": []}
    assert (room.state(message), room.state(other)) == (state, State.READY)


def test_a_release_and_a_retry_reach_what_waits_for_them(room: Room) -> None:
    message = room.put()
    room.door.hold([message])
    assert room.result({"command": "queue.release", "ids": [queue_id_text(message)]})["count"] == 1
    (lease,) = room.door.lease(ALERTS, limit=1)
    room.door.settle(lease, FAILED)
    assert room.result({"command": "queue.retry", "ids": [queue_id_text(message)]})["count"] == 1
    assert room.state(message) is State.READY


def test_ids_that_nobody_knows_or_that_are_past_it_are_named(room: Room) -> None:
    message, unknown = room.put(), "1JV7SEQSLMJCW"
    answer = room.result({"command": "queue.release", "ids": [queue_id_text(message), unknown]})
    assert answer == {
        "count": 0, "missing": [unknown], "untouched": [queue_id_text(message)],
        "refused": [], "probes": [],
    }  # fmt: skip


def test_a_wish_by_filter_reaches_what_it_matches(room: Room) -> None:
    mine = put(room.door, room.clock, way(ALERTS, "ops@contoso.com"))
    other = room.put()
    wish: Frame = {"command": "queue.hold", "to": "OPS@"}
    assert room.result({**wish, "dry_run": True}) == {"count": 1}
    assert room.state(mine) is State.READY
    assert room.result(wish) == {"count": 1}
    assert (room.state(mine), room.state(other)) == (State.HELD, State.READY)


def test_a_wish_by_filter_goes_page_by_page_and_counts_each_message_once(room: Room) -> None:
    def three_ways() -> None:  # which no page ends with
        put(room.door, room.clock, *(way(ALERTS, f"{name}@contoso.com") for name in "abc"))

    gevent.joinall([gevent.spawn(three_ways) for _ in range(151)], raise_error=True)
    assert room.result({"command": "queue.hold", "dry_run": True}) == {"count": 151}
    replies = room.ask({"command": "queue.hold"})
    assert len(replies) > 2
    assert all(reply.get("more") for reply in replies[:-1])
    assert cast("dict[str, Json]", replies[-1]["result"])["count"] == 151
    assert room.door.counts().by_state == {(State.HELD, "contoso"): 453}


def test_who_wished_what_is_in_the_log(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    message = room.put()
    room.ask({"command": "queue.hold", "ids": [queue_id_text(message)]}, {"uid": 1234, "pid": 1})
    out = capsys.readouterr().out
    assert "queue.wished" in out
    assert "1234" in out


def one_of_each(room: Room) -> dict[str, QueueId]:
    """Return messages by where they stand; "left" is FAILED, its content gone."""
    names = ("ready", "held", "failed", "sent", "deleted", "left", "leased")
    messages = {name: room.put() for name in names[:-1]}
    leases = {lease.message: lease for lease in room.door.lease(ALERTS, limit=6)}
    for name, settlement in (("sent", SENT), ("held", denied(room.clock))):
        room.door.settle(leases[messages[name]], settlement)
    for name in ("ready", "failed", "deleted", "left"):
        room.door.settle(leases[messages[name]], FAILED)
    room.door.retry([messages["ready"]])
    room.door.delete([messages["deleted"]])
    with closing(sqlite3.connect(room.backend.path)) as spool, spool:
        spool.execute("DELETE FROM content WHERE id = ?", (messages["left"],))
    other = put(room.door, room.clock, way(SCANS))
    room.door.lease(SCANS, limit=1)
    return {**messages, "leased": other}


REACHED: dict[Wish, set[str]] = {
    "retry": {"held", "failed", "leased"},
    "hold": {"ready", "leased"},
    "release": {"held", "leased"},
    "delete": {"ready", "held", "failed", "left", "leased"},
    "resend": set(),
}


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("is_named", [True, False])
def test_what_a_dry_run_counts_is_what_is_done(room: Room, wish: Wish, *, is_named: bool) -> None:
    """A filter counted all that it matched: "would retry: 4947", and then 0 were tried."""
    messages = one_of_each(room)
    ids: list[Json] = [queue_id_text(one) for one in messages.values()]
    request: Frame = {
        "command": f"queue.{wish}",
        **({"ids": ids} if is_named else {"state": "all"}),
    }
    before = {name: outcomes(room, message) for name, message in messages.items()}
    told = room.result({**request, "dry_run": True})
    assert told["count"] == len(REACHED[wish])
    done = room.result(request)
    assert done == told
    if is_named:
        left = {name for name in messages if name not in REACHED[wish]}
        refused = [row["id"] for row in rows_of(done.get("refused"))]
        assert {*cast("list[str]", done["untouched"]), *refused} == {
            queue_id_text(messages[name]) for name in left
        }
        for name in left:
            assert outcomes(room, messages[name]) == before[name], "nothing done, nothing written"


def outcomes(room: Room, message: QueueId) -> list[str]:
    story = room.door.show(message)
    assert story is not None
    return [one.outcome for one in story.journal]


def test_a_message_under_way_can_be_wished_for(room: Room) -> None:
    message = room.put()
    room.door.lease(ALERTS, limit=1)
    answer = room.result({"command": "queue.hold", "ids": [queue_id_text(message)]})
    assert answer["untouched"] == []


def test_which_messages_were_meant_is_in_the_log_where_they_are_few(room: Room) -> None:
    ids: list[Json] = [queue_id_text(room.put()) for _ in range(5)]
    sixth: list[Json] = [queue_id_text(room.put())]
    with capture_logs() as lines:
        for request in (
            {"command": "queue.hold", "ids": [*ids, "1JV7SEQSLMJCW"]},
            {"command": "queue.hold", "ids": ids},
            {"command": "queue.delete", "state": "all"},
            {"command": "queue.delete", "ids": sixth},
        ):
            room.result(request)
    assert [line.get("id") for line in lines] == [",".join(map(str, ids)), None, None, None]


@pytest.mark.parametrize("word", ["release", "retry"])
def test_what_a_code_holds_is_tried_by_one_and_each_that_was_meant_remembers(
    room: Room, word: str
) -> None:
    ours = way(ALERTS, header_from=ALERTS.mailbox)
    first, later = (put(room.door, room.clock, ours) for _ in range(2))
    leases = room.door.lease(ALERTS, limit=2)
    room.door.settle(leases[0], denied(room.clock))
    room.door.settle(leases[1], denied(room.clock))
    request: Frame = {"command": f"queue.{word}", "ids": [queue_id_text(later)]}
    assert room.result({**request, "dry_run": True})["probes"] == []
    for _ in range(2):
        told = room.result(request)
        assert (told["count"], told["probes"]) == (1, ["ErrorSendAsDenied"])
    did = {"release": "released", "retry": "retried"}[word]
    assert (outcomes(room, first), outcomes(room, later)) == (
        ["misconfigured"], ["misconfigured", did, did],
    )  # fmt: skip
    (probe,) = room.door.lease(ALERTS, limit=5)
    assert probe.message == first
    room.door.settle(probe, SENT)
    (lease,) = room.door.lease(ALERTS, limit=5)
    room.door.settle(lease, SENT)
    assert outcomes(room, later)[-1] == "sent"


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Room]:
    """A room that keeps the content of sent mail for an hour."""
    room = Room(tmp_path, keep_sent_s=3600.0)
    yield room
    room.close()


def sent(room: Room) -> QueueId:
    message = room.put()
    (lease,) = room.door.lease(ALERTS, limit=1)
    room.door.settle(lease, SENT)
    return message


def test_sent_mail_is_sent_again_while_its_content_is_kept(keeping: Room) -> None:
    message = sent(keeping)
    request: Frame = {"command": "queue.resend", "ids": [queue_id_text(message)]}
    assert keeping.result({**request, "dry_run": True})["count"] == 1
    assert keeping.result(request) == {
        "count": 1,
        "missing": [],
        "untouched": [],
        "refused": [],
        "probes": [],
    }
    assert keeping.state(message) is State.READY
    assert keeping.result(request)["untouched"] == [queue_id_text(message)]


def test_sent_mail_without_content_says_what_is_kept_how_long(keeping: Room) -> None:
    message = sent(keeping)
    keeping.clock.advance(3601)
    keeping.door.sweep()
    kept = sent(keeping)
    ids: list[Json] = [queue_id_text(message), "1JV7SEQSLMJCW"]
    why = 'its content is not kept any more, [spool] keep_sent_content is "1h"'
    assert keeping.result({"command": "queue.resend", "ids": ids}) == {
        "count": 0, "missing": ids[1:], "untouched": [], "refused": [{"id": ids[0], "why": why}],
        "probes": [],
    }  # fmt: skip
    request: Frame = {"command": "queue.resend", "state": "sent"}
    assert keeping.result({**request, "dry_run": True}) == {"count": 1, "refused": [], "probes": []}
    assert keeping.result(request) == {"count": 1, "refused": [], "probes": []}
    assert (keeping.state(message), keeping.state(kept)) == (State.SENT, State.READY)


# ---- another way out

ACS = Upstream(name="acs", mailbox="relay@fabrikam.com", on_foreign_sender="reject")
RIGHT = MailboxRef("contoso", "right@contoso.com")


@pytest.fixture
def mended(tmp_path: Path) -> Iterator[Room]:
    """A room whose upstream's mailbox is another than its mail was accepted for."""
    room = Room(tmp_path, Upstream(name="contoso", mailbox="right@contoso.com"), ACS)
    yield room
    room.close()


def wrong(room: Room, sender: str = "a@contoso.com") -> QueueId:
    return put(room.door, room.clock, way(ALERTS, header_from=sender))


@pytest.mark.parametrize("word", ["release", "retry"])
def test_what_is_sent_goes_through_the_mailbox_of_now(mended: Room, word: str) -> None:
    message = wrong(mended)
    (lease,) = mended.door.lease(ALERTS, limit=1)
    mended.door.settle(lease, denied(mended.clock, cause="ErrorInvalidUser"))
    assert mended.result({"command": f"queue.{word}", "ids": [queue_id_text(message)]}) == {
        "count": 1, "missing": [], "untouched": [], "refused": [], "probes": [],
    }  # fmt: skip
    assert [one.message for one in mended.door.lease(RIGHT, limit=1)] == [message]
    assert mended.door.holds() == ()


def test_failed_mail_is_tried_again_through_the_mailbox_of_now(mended: Room) -> None:
    message = wrong(mended)
    (lease,) = mended.door.lease(ALERTS, limit=1)
    mended.door.settle(lease, FAILED)
    assert mended.result({"command": "queue.retry", "state": "failed"})["count"] == 1
    (lease,) = mended.door.lease(RIGHT, limit=1)
    assert (lease.message, lease.set_from) == (message, "a@contoso.com")


def test_a_hold_or_delete_moves_nothing(mended: Room) -> None:
    message = wrong(mended)
    mended.result({"command": "queue.hold", "ids": [queue_id_text(message)]})
    story = mended.door.show(message)
    assert story is not None
    assert story.deliveries[0].mailbox == ALERTS.mailbox


def test_waiting_mail_follows_the_configuration_and_the_log_says_how_much(
    mended: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        wrong(mended)
    replanner = Replanner(mended.config)
    assert follow(mended.door, replanner) == 3
    assert follow(mended.door, replanner) == 0
    line = capsys.readouterr().out
    assert line.count("queue.redirected") == 1
    for words in ("deliveries=3", "alerts@contoso.com", "right@contoso.com"):
        assert words in line


def test_where_somebody_else_was_quicker_nothing_is_told(
    mended: Room, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong(mended)
    monkeypatch.setattr(mended.door, "redirect", lambda *_: 0)
    assert follow(mended.door, Replanner(mended.config)) == 0
    assert "queue.redirected" not in capsys.readouterr().out


def test_mail_is_moved_to_another_upstream(mended: Room) -> None:
    ours, foreign, sent = (wrong(mended, f"{one}@fabrikam.com") for one in ("relay", "x", "relay"))
    leases = {one.message: one for one in mended.door.lease(ALERTS, limit=3)}
    mended.door.settle(leases[sent], SENT)
    mended.door.settle(leases[ours], denied(mended.clock))
    mended.door.settle(leases[foreign], denied(mended.clock))
    ids: list[Json] = [queue_id_text(one) for one in (ours, foreign, sent)]
    request: Frame = {"command": "queue.move", "to_upstream": "acs", "ids": [*ids, "1JV7SEQSLMJCW"]}
    why = (
        "From header x@fabrikam.com is not in mailbox and allowed_senders of upstream 'acs',"
        ' and on_foreign_sender is "reject"'
    )
    expected = {
        "count": 1, "missing": ["1JV7SEQSLMJCW"], "untouched": [ids[2]],
        "refused": [{"id": ids[1], "why": why}],
    }  # fmt: skip
    assert mended.result({**request, "dry_run": True}) == expected
    assert mended.state(ours) is State.HELD
    assert mended.result(request) == expected
    (lease,) = mended.door.lease(MailboxRef("acs", "relay@fabrikam.com"), limit=5)
    assert (lease.message, lease.set_from) == (ours, "relay@fabrikam.com")
    mended.door.settle(lease, SENT)
    mended.door.hold([foreign])
    again = mended.result({**request, "ids": [ids[0]]})
    assert (again["count"], again["untouched"]) == (0, [ids[0]])


def test_what_is_there_already_is_untouched(mended: Room) -> None:
    message = put(mended.door, mended.clock, way(MailboxRef("acs", "relay@fabrikam.com"),
                                                 header_from="relay@fabrikam.com"))  # fmt: skip
    told = mended.result(
        {"command": "queue.move", "to_upstream": "acs", "ids": [queue_id_text(message)]}
    )
    assert (told["count"], told["untouched"]) == (0, [queue_id_text(message)])
    request: Frame = {"command": "queue.move", "to_upstream": "acs", "state": "all"}
    assert mended.result(request) == {"count": 0, "refused": []}


def test_an_upstream_that_is_not_there_is_refused_with_those_that_are(mended: Room) -> None:
    words, code = mended.refusal({"command": "queue.move", "to_upstream": "gone", "ids": []})
    assert words == "no [upstream.gone] is configured; there are: contoso, acs"
    assert code == 2


LAB = MailboxRef("lab", "a@lab.example")
GONE = "upstream lab not configured: put it back, then relayd reload"


def of_lab(room: Room, by: str) -> QueueId:
    """Return a message of an upstream that is not configured. by: what it is held by, or FAILED."""
    message = put(room.door, room.clock, way(LAB))
    (lease,) = room.door.lease(LAB, limit=1)
    if by == "failed":
        room.door.settle(lease, FAILED)
    elif by == "code":
        room.door.settle(lease, denied(room.clock))
    else:
        room.door.settle(lease, deferred(room.clock))
        if by == "operator":
            room.door.hold([message])
        else:
            room.door.adopt(["contoso"])
    return message


@pytest.mark.parametrize("by", ["code", "missing", "operator", "failed"])
@pytest.mark.parametrize("word", ["release", "retry"])
def test_what_has_no_way_out_is_neither_released_nor_tried(room: Room, by: str, word: str) -> None:
    """It said "released: 1 message", and a minute later it was held again."""
    message = of_lab(room, by)
    story = room.door.show(message)
    ids: list[Json] = [queue_id_text(message)]
    told = room.result({"command": f"queue.{word}", "ids": ids})
    if (by, word) == ("failed", "release"):
        assert (told["untouched"], told["refused"]) == (ids, [])
    else:
        why = f"{GONE}; or relayd queue move --upstream OTHER, or delete"
        assert (told["count"], told["refused"]) == (0, [{"id": ids[0], "why": why}])
    assert room.door.show(message) == story


def test_a_filter_names_some_of_what_has_no_way_out_and_does_the_rest(room: Room) -> None:
    for _ in range(21):
        of_lab(room, "missing")
    ours = room.put()
    room.door.hold([ours])
    request: Frame = {"command": "queue.release", "state": "held"}
    for is_dry in (True, False):
        told = room.result({**request, "dry_run": is_dry})
        assert (told["count"], len(rows_of(told["refused"]))) == (1, 20)
    assert room.state(ours) is State.READY


def test_of_a_message_with_two_ways_out_only_the_one_that_is_there_is_tried(room: Room) -> None:
    message = put(room.door, room.clock, way(ALERTS), way(LAB))
    room.door.hold([message])
    assert room.result({"command": "queue.release", "ids": [queue_id_text(message)]})["count"] == 1
    story = room.door.show(message)
    assert story is not None
    assert {one.upstream: one.state for one in story.deliveries} == {
        "contoso": State.READY, "lab": State.HELD,
    }  # fmt: skip


def test_sent_mail_of_an_upstream_that_is_gone_is_not_sent_again(keeping: Room) -> None:
    message = put(keeping.door, keeping.clock, way(LAB))
    (lease,) = keeping.door.lease(LAB, limit=1)
    keeping.door.settle(lease, SENT)
    ids: list[Json] = [queue_id_text(message)]
    told = keeping.result({"command": "queue.resend", "ids": ids})
    assert told["refused"] == [{"id": ids[0], "why": GONE}]


def test_the_queue_says_whose_upstream_is_gone(room: Room) -> None:
    of_lab(room, "code")
    (page,) = room.ask({"command": "queue.list"})
    assert '"reason": "upstream lab not configured"' in json.dumps(page)


def test_the_log_says_how_much_waits_for_an_upstream_that_is_gone(
    room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    room.put()
    for by in ("missing", "failed", "code"):
        of_lab(room, by)
    assert tell_unknown(room.door, ["contoso"]) == {"lab"}
    line = capsys.readouterr().out
    assert line.count("upstream.unknown") == 1
    for words in ("upstream=lab", "messages=2", GONE):
        assert words in line
    assert tell_unknown(room.door, ["contoso", "lab"]) == frozenset()
    assert capsys.readouterr().out == ""


# ---- figures for the master


def test_three_hundred_upstreams_arrive_at_the_master_and_fit_its_answer(room: Room) -> None:
    """They were one packet, which did not fit from about 150 on: status knew of none."""
    text = "no answer from login.microsoftonline.com: " + "x" * 300
    room.courier.rows = tuple(status(f"tenant{n}", "down", "dns-failed", text) for n in range(300))
    selector = selectors.DefaultSelector()
    household = Household(Launch(path="/x"), Board(), Log(fd=2), selector, list)
    ours, theirs = (Channel(sock) for sock in pair())
    child = Child(
        pid=1, kind="worker", number=1, serial=1, row=1, generation=1, channel=ours, born_at=0.0,
        life=Life.READY,
    )  # fmt: skip
    for packet in status_packets(room.operator.figures()):
        assert theirs.send(packet)
        household._listen(child)
    crew = Crew("worker", 1, Loaded(select(Config()), fd=-1), (), 1)
    crew.adopt(child)
    household.crews = [crew]
    answer = report.status(household, crew, {})
    upstreams = answer["upstreams"]
    assert isinstance(upstreams, dict)
    assert len(upstreams) == 300
    assert answer["queue"] == {}
    encode(answer)
    selector.close()
    theirs.close()
    ours.close()


def test_what_the_worker_has_imported_is_told_without_what_is_kept_out(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kept_out", None)
    modules = room.result({"command": "debug.worker"})["modules"]
    assert isinstance(modules, list)
    assert "relayd.operator" in modules
    assert "kept_out" not in modules


# ---- devices, and SMTP for `relayd send`


def test_devices_are_told_without_any_secret(room: Room) -> None:
    assert room.result({"command": "devices"}) == {
        "devices": [
            {
                "name": "ups", "kind": "device", "upstream": "", "from": "a@contoso.com",
                "networks": ["192.0.2.0/24"], "to": [], "priority": "normal",
            },
            {
                "name": "printer1", "kind": "user", "upstream": "contoso", "from": "p@contoso.com",
                "networks": [], "to": ["*"], "priority": "normal",
            },
        ]
    }  # fmt: skip


def test_who_may_send_a_mail_is_told_with_the_reason_of_the_others(room: Room) -> None:
    request: Frame = {"command": "devices", "to": ["a@contoso.com"], "from": "ups"}
    asked = {row["name"]: row["refusal"] for row in rows_of(room.result(request)["devices"])}
    assert asked == {"ups": None, "printer1": None}
    request = {"command": "devices", "to": ["a@contoso.com", "you@example.com"]}
    asked = {row["name"]: row["refusal"] for row in rows_of(room.result(request)["devices"])}
    assert asked["printer1"] is None
    refusal = asked["ups"]
    assert isinstance(refusal, dict)
    assert refusal["reply"] == "550 5.7.1 Recipient not allowed"
    assert "you@example.com not in own_domains of upstream 'contoso'" in str(refusal["why"])
    assert 'into [[device]] "ups"' in str(refusal["do"])
    request = {"command": "devices", "to": ["a@contoso.com"], "size": 10**9}
    (first, _) = rows_of(room.result(request)["devices"])
    assert "552 5.3.4" in str(first["refusal"])
    _, code = room.refusal({"command": "devices", "to": ["nobody at all@"]})
    assert code == 2


def test_smtp_becomes_a_session_of_the_device(room: Room) -> None:
    octets = room.raw({"command": "smtp", "device": "ups"})
    assert octets.endswith(b"220 hello\r\n")
    assert Decoder().feed(octets.removesuffix(b"220 hello\r\n"))[0]["ok"] is True
    assert room.spoken == ["ups"]


@pytest.mark.parametrize("device", ["nobody", "", None, ["ups"]])
def test_smtp_as_somebody_unknown_names_those_there_are(room: Room, device: Json) -> None:
    words, code = room.refusal({"command": "smtp", "device": device})
    assert "there are: ups, printer1" in words
    assert code == 1
    assert room.spoken == []


# ---- clients that misbehave


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"command": None},
        {"command": ["queue.list"]},
        {"command": "queue.shred"},
        {"command": "queue.show"},
        {"command": "queue.show", "id": "x" * 50_000},
        {"command": "queue.show", "id": {"a": [1]}},
        {"command": "queue.list", "state": "stuck"},
        {"command": "queue.list", "since": "yesterday"},
        {"command": "queue.delete", "ids": [None, 3, {}]},
        {"command": "queue.export", "id": 7},
    ],
)
def test_garbage_is_refused_as_wrong_usage_and_costs_nobody_else_anything(
    room: Room, request_: Frame
) -> None:
    _, code = room.refusal(request_)
    assert code == 2
    assert room.ask({"command": "queue.list"})[-1]["ok"] is True


@pytest.mark.parametrize(
    "request_",
    [
        {"command": "queue.list", "limit": -1},
        {"command": "queue.list", "limit": "many", "to": ["x"], "from": {"y": 1}},
        {"command": "queue.list", "to": "'; DROP TABLE delivery; --", "message_id": "%"},
        {"command": "queue.list", "device": "\ud800"},
        {"command": "queue.hold", "ids": "1JV7SEQSLMJCW", "state": "sent"},
        {"command": "queue.hold", "ids": []},
    ],
)
def test_odd_members_do_no_harm(room: Room, request_: Frame) -> None:
    message = room.put()
    assert room.ask(request_)
    assert room.state(message) is State.READY


def test_a_client_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    room = Room(tmp_path, patience_s=0.05)
    message = put(room.door, room.clock, octets=b"a: b\r\n\r\n" + bytes(3_000_000))
    ours, theirs = socket.socketpair()
    request = {"command": "queue.export", "id": queue_id_text(message)}
    gevent.spawn(room.operator.serve, request, theirs.detach()).get(timeout=10)
    with ours:
        while ours.recv(1 << 20):  # what fitted into the kernel, then the end
            pass
    room.close()


def test_a_client_that_leaves_is_no_matter(room: Room) -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    gevent.spawn(room.operator.serve, {"command": "queue.list"}, theirs.detach()).get(timeout=10)


def test_a_bug_in_an_answer_costs_the_asker_only(
    room: Room, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room.courier, "upstreams", lambda: 1 / 0)
    assert room.raw({"command": "queue.show", "id": queue_id_text(room.put())}) == b""
    assert "control.bug" in capsys.readouterr().out
    assert room.ask({"command": "devices"})[-1]["ok"] is True


def test_an_answer_too_large_for_a_frame_says_so(room: Room) -> None:
    message = put(
        room.door, room.clock, way(ALERTS, *(f"{n}@{'b' * 60}.com" for n in range(20_000)))
    )
    words, _ = room.refusal({"command": "queue.show", "id": queue_id_text(message)})
    assert words == "the answer is too large; ask for less"


def test_a_spool_that_fails_says_to_try_again(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SpoolUnavailable("disk I/O error")

    monkeypatch.setattr(Reader, "show", fail)
    request: Frame = {"command": "queue.show", "id": "1JV7SEQSLMJCW"}
    assert room.refusal(request) == ("disk I/O error; try again", 75)


def test_a_worker_that_leaves_says_to_try_again(room: Room) -> None:
    room.operator.close()
    room.operator.close()
    words, code = room.refusal({"command": "queue.list"})
    assert (words, code) == ("this worker is leaving; try again", 75)


# ---- figures for `status`


def upstream_of(room: Room) -> dict[str, Json]:
    upstreams = room.operator.figures()["upstreams"]
    assert isinstance(upstreams, dict)
    row = upstreams["contoso"]
    assert isinstance(row, dict)
    return row


def test_figures_count_by_state_and_tell_the_oldest(room: Room) -> None:
    assert room.operator.figures()["queue"] == {}
    room.clock.advance(10)
    room.put()
    room.clock.advance(30)
    room.door.hold([room.put()])
    figures = room.operator.figures()
    assert figures["queue"] == {"ready": 1, "held": 1}
    assert figures["oldest_s"] == 30.0


def test_an_upstream_that_is_up_has_its_token_and_what_is_held(room: Room) -> None:
    room.cache.tokens = [{"upstreams": ["contoso"], "expires_in_s": 600}]
    room.put()
    (lease,) = room.door.lease(ALERTS, limit=1)
    room.door.settle(lease, denied(room.clock))
    row = upstream_of(room)
    assert row["state"] == "up"
    assert row["token_expires_s"] == 600
    assert row["held"] == {"ErrorSendAsDenied": 1}
    assert row["held_messages"] == 1
    assert "why" not in row


@pytest.mark.parametrize("state", ["down", "probing"])
def test_an_upstream_that_is_not_up_says_why_and_what_to_do(room: Room, state: str) -> None:
    room.courier.rows = (status("contoso", state, "7000215", "AADSTS7000215: Invalid secret"),)
    row = upstream_of(room)
    assert (row["state"], row["cause"]) == (state, "7000215")
    assert "The client secret is wrong" in str(row["why"])
    assert "Make a new secret" in str(row["do"])


@pytest.mark.parametrize(
    "tokens",
    [
        None,
        "nonsense",
        ["nonsense"],
        [{"upstreams": ["contoso"], "expires_in_s": 0}],
        [{"upstreams": "contoso", "expires_in_s": 5}],
        [{"expires_in_s": "soon"}],
    ],
)
def test_a_token_that_is_not_there_is_left_out(room: Room, tokens: object) -> None:
    room.cache.tokens = tokens
    assert "token_expires_s" not in upstream_of(room)


@pytest.mark.parametrize("failure", [CacheUnavailable("away"), Refused("bug", "no", {})])
def test_figures_do_without_the_cache_daemon(room: Room, failure: Exception) -> None:
    room.cache.failure = failure
    assert "token_expires_s" not in upstream_of(room)


def test_figures_tell_of_a_wrong_clock_and_so_does_the_queue(room: Room) -> None:
    assert room.operator.figures()["clock"] == {"right": True}
    room.courier.clock_trouble = "the clock of this host shows 1970"
    clock = room.operator.figures()["clock"]
    assert isinstance(clock, dict)
    assert clock["right"] is False
    assert "shows 1970" in clock["why"]
    assert "timedatectl" in clock["do"]
    room.put()
    (page,) = room.ask({"command": "queue.list"})
    assert '"reason": "the clock is wrong"' in json.dumps(page)


def test_an_outage_another_worker_met_is_why_mail_waits_here_too(room: Room) -> None:
    room.put()
    told: Json = {
        "contoso": {"cause": "7000215", "text": "wrong", "retry_in_s": 20}, "x": "garbage",
    }  # fmt: skip
    cases: list[tuple[Json, str]] = [
        (told, "contoso is down (AADSTS7000215)"),
        (None, ""),
        ("garbage", ""),
    ]
    for down, reason in cases:
        octets = room.raw({"command": "queue.list"}, None, down)
        assert f'"reason":"{reason}"'.encode() in octets


def test_figures_have_the_fullest_mailboxes_first_and_no_more_than_20(room: Room) -> None:
    rows = [
        {"mailbox": f"m{n}", "sent_last_minute": n, "per_minute": 30, "waiting": 0}
        for n in range(30)
    ]
    rows.append({"mailbox": "unpaced", "sent_last_minute": 99, "per_minute": 0, "waiting": 1})
    room.cache.slots = [*rows, "nonsense"]
    quota = room.operator.figures()["quota"]
    assert isinstance(quota, list)
    assert [row["mailbox"] for row in cast("list[dict[str, Json]]", quota)] == [
        f"m{n}" for n in range(29, 9, -1)
    ]


def test_figures_tell_when_a_credential_ends_where_that_is_known(room: Room) -> None:
    assert "credential_expires" not in upstream_of(room)
    known = Upstream(name="contoso", credential_expires="2026-12-24")
    room.operator._config = replace(room.config, upstream=(known,))
    assert upstream_of(room)["credential_expires"] == "2026-12-24"


def test_figures_of_many_upstreams_fit_a_packet(room: Room) -> None:
    rows: Sequence[UpstreamStatus] = [
        status(f"upstream-{n}", "down", "7000215", "x" * 300) for n in range(40)
    ]
    room.courier.rows = tuple(rows)
    assert len(json.dumps(room.operator.figures())) < 60_000
