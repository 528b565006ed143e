"""Every way to be stuck is said in words a sysadmin can act on at 3 a.m.

The rows are real: a spool on disk, settled as the courier decides, read as the relay reads it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.deliver import catalogue
from relayd.deliver.decide import Policy, decide
from relayd.deliver.graph import token_failure
from relayd.deliver.outcome import Outcome
from relayd.errors import SpoolUnavailable, TokenUnavailable
from relayd.identity import aadsts
from relayd.master.frames import Frame, Json, encode
from relayd.queueview import (
    PAGE,
    STOPPED,
    Now,
    Outage,
    Plain,
    Use,
    advice,
    explained,
    look,
    meaning_of,
    outage_words,
    parse_filter,
    sentence,
    shown,
    stamp,
    told,
)
from relayd.spool.door import SqliteDoor
from relayd.spool.model import MailboxRef, QueueId, Redirect, Settlement, State, queue_id_text
from relayd.spool.moves import TURNED_BY
from relayd.spool.queries import Filter, Reader, Story
from tests.spooling import ALERTS, SCANS, SENT, SqliteBackend, put, way

POLICY = Policy(schedule=(60.0,))
RUNNING = Now()


class Desk:
    """One spool, one door, and what is said of a message."""

    def __init__(self, folder: Path) -> None:
        self.backend = SqliteBackend(folder)
        self.clock = self.backend.clock
        self.door: SqliteDoor = self.backend.open()

    def put(self) -> QueueId:
        return put(self.door, self.clock)

    def answered(self, outcome: Outcome, *, policy: Policy = POLICY) -> QueueId:
        """Accept a message and settle its first try by `outcome`."""
        message = self.put()
        self.try_again(outcome, policy=policy)
        return message

    def try_again(self, outcome: Outcome, *, policy: Policy = POLICY) -> None:
        (lease,) = self.door.lease(ALERTS, limit=1)
        self.door.settle(lease, decide(outcome, lease, policy, self.clock.utcnow()))

    def settled(self, settlement: Settlement) -> QueueId:
        message = self.put()
        (lease,) = self.door.lease(ALERTS, limit=1)
        self.door.settle(lease, settlement)
        return message

    def story(self, message: QueueId) -> Story:
        with closing(Reader(self.backend.path, self.clock)) as reader:
            story = reader.show(message)
        assert story is not None
        return story

    def says(self, message: QueueId, now: Now | None = None) -> Plain:
        story = self.story(message)
        return explained(story.deliveries[0], story, now or Now(holds=self.door.holds()))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.backend.close()


def graph(status: int, code: str = "", text: str = "", **headers: str) -> Outcome:
    body = json.dumps({"error": {"code": code, "message": text}}).encode() if code else b""
    return catalogue.classify(
        status, {name.replace("_", "-"): value for name, value in headers.items()}, body, 0.1
    )


# ---- held


def test_a_denied_mailbox_names_the_permission_and_when_it_is_tried(desk: Desk) -> None:
    message = desk.answered(graph(403, "ErrorAccessDenied", "Access is denied."))
    said = desk.says(message)
    assert said.why == (
        "Held (ErrorAccessDenied): The application may not send from this mailbox."
        " (Access is denied.)"
    )
    assert "Mail.Send" in said.do
    assert "One such message is tried at 2026-11-20T10:30:00Z; if that works, all go." in said.do
    assert "queue release" not in said.do, "asking keeps Exchange's denial alive"


def test_a_denied_sender_names_send_as_and_how_to_try_at_once(desk: Desk) -> None:
    message = desk.answered(graph(403, "ErrorSendAsDenied", "May not send as."))
    said = desk.says(message)
    assert said.why.startswith("Held (ErrorSendAsDenied): The mailbox may not send as this From")
    assert "Send As" in said.do
    assert f"To try at once: relayd queue release {queue_id_text(message)}" in said.do


def test_what_is_born_held_has_the_words_of_the_hold(desk: Desk) -> None:
    desk.answered(graph(403, "ErrorSendAsDenied", "May not send as."))
    later = desk.put()
    assert desk.story(later).journal == ()
    assert "The mailbox may not send as this From address." in desk.says(later).why
    assert "The mailbox may not send as this From address." in desk.says(later, STOPPED).why


def test_what_is_held_back_is_not_told_what_it_failed_of_before(desk: Desk) -> None:
    message = desk.answered(graph(429, "ApplicationThrottled"))
    desk.answered(graph(403, "ErrorSendAsDenied", "May not send as."))
    desk.door.retry([message])
    assert desk.door.lease(ALERTS, limit=1) == []
    for now in (None, STOPPED):
        assert (
            "Held (ErrorSendAsDenied): The mailbox may not send as" in desk.says(message, now).why
        )


def test_the_words_of_a_hold_are_those_of_its_mailbox_and_cause(desk: Desk) -> None:
    message = desk.answered(graph(403, "ErrorSendAsDenied", "Ours."))
    (mine,) = desk.door.holds()
    others = (
        replace(mine, cause="ErrorAccessDenied", text="Another cause."),
        replace(mine, mailbox=SCANS, text="Another mailbox."),
    )
    assert "(Ours.)" in desk.says(message, Now(holds=(*others, mine))).why
    assert "(Ours.)" in desk.says(message, Now(holds=others)).why


def test_a_refusal_without_a_code_has_the_advice_of_its_status(desk: Desk) -> None:
    message = desk.answered(graph(403))
    said = desk.says(message)
    assert said.why.startswith("Held (HTTP 403): The request was forbidden, by Microsoft or by a")
    assert "Mail.Send" in said.do


def test_held_by_an_operator_says_when_and_how_to_release(desk: Desk) -> None:
    message = desk.put()
    desk.door.hold([message])
    said = desk.says(message)
    assert said == Plain(
        "Held by an operator at 2026-11-20T10:00:00Z.",
        f"relayd queue release {queue_id_text(message)}",
    )


def test_a_corrupt_message_says_what_is_lost_and_who_sends_it_again(desk: Desk) -> None:
    message = put(desk.door, desk.clock, octets=b"a: b\r\n\r\n" + b"x" * 100_000)
    (desk.backend.folder / "content" / queue_id_text(message)).unlink()
    with pytest.raises(SpoolUnavailable), desk.door.content(message):
        pass
    said = desk.says(message)
    assert said.why == (
        "The spool cannot give the message back: its content is gone. Look at the disk."
    )
    assert said.do == f"Have ups send it again, then relayd queue delete {queue_id_text(message)}"


def test_what_may_have_gone_says_where_to_look_for_it(desk: Desk) -> None:
    message = desk.answered(graph(504), policy=Policy(schedule=(60.0,), ambiguous="hold"))
    said = desk.says(message)
    assert said.why == (
        "It may have been sent at 2026-11-20T10:00:00Z:"
        " a gateway gave up waiting; the message may have gone."
    )
    assert "<1@ups.local> in Sent Items of alerts@contoso.com" in said.do
    assert f"Not there: relayd queue release {queue_id_text(message)}" in said.do


def test_a_worker_that_died_while_sending_is_named(tmp_path: Path) -> None:
    backend = SqliteBackend(tmp_path, ambiguous="hold")
    first = backend.open()
    message = put(first, backend.clock)
    first.lease(ALERTS, limit=1)
    backend.crash(first)
    door = backend.open()
    door.reclaim()
    with closing(Reader(backend.path, backend.clock)) as reader:
        story = reader.show(message)
    assert story is not None
    said = explained(story.deliveries[0], story, RUNNING)
    assert "the worker died while sending" in said.why
    assert "Sent Items" in said.do
    backend.close()


def redirect(desk: Desk, message: QueueId, mailbox: MailboxRef) -> None:
    courses = desk.door.courses([message], TURNED_BY["operator"])
    turned = [
        Redirect(course=one, mailbox=mailbox, set_from=one.header_from, reply_to_original=False)
        for one in courses
    ]
    assert desk.door.redirect(turned, "operator") == len(turned) == 1


def test_what_was_moved_says_so_and_each_try_names_its_own_mailbox(desk: Desk) -> None:
    message = desk.answered(graph(404, "ErrorInvalidUser", "no such user"))
    desk.clock.advance(60)
    redirect(desk, message, SCANS)
    said = desk.says(message)
    assert said.why == (
        "It waits for its turn: scans@contoso.com sends only so many at once (`concurrency`)"
        " and in a minute (`messages_per_minute`). It was moved at 2026-11-20T10:01:00Z:"
        " contoso/alerts@contoso.com -> contoso/scans@contoso.com, by an operator."
    )
    (lease,) = desk.door.lease(SCANS, limit=1)
    desk.door.settle(lease, SENT)
    shown_ = told(desk.story(message), RUNNING)["attempts"]
    assert isinstance(shown_, list)
    rows = [one for one in shown_ if isinstance(one, dict)]
    assert [(one["outcome"], one["mailbox"]) for one in rows] == [
        ("misconfigured", "alerts@contoso.com"),
        ("moved", "scans@contoso.com"),
        ("sent", "scans@contoso.com"),
    ]


def test_a_move_is_no_try(desk: Desk) -> None:
    message = desk.answered(graph(504))
    before = desk.says(message)
    desk.door.redirect(
        [
            Redirect(course=one, mailbox=SCANS, set_from=one.header_from, reply_to_original=False)
            for one in desk.door.courses([message], TURNED_BY["configuration"])
        ],
        "configuration",
    )
    assert desk.says(message) == before


def test_what_may_have_gone_is_looked_for_where_it_was_sent(desk: Desk) -> None:
    message = desk.answered(graph(504), policy=Policy(schedule=(60.0,), ambiguous="hold"))
    redirect(desk, message, SCANS)
    assert "in Sent Items of alerts@contoso.com" in desk.says(message).do


def test_mail_of_a_removed_upstream_says_which_table_is_missing(desk: Desk) -> None:
    message = desk.put()
    desk.door.adopt(["another"])
    said = desk.says(message)
    assert said.why == "There is no [upstream.contoso] in the configuration any more."
    assert "relayd reload" in said.do
    assert f"relayd queue move --upstream OTHER {queue_id_text(message)}," in said.do
    assert f"relayd queue delete {queue_id_text(message)}" in said.do


ELSEWHERE = Now(upstreams=frozenset({"another"}))


def test_mail_held_by_a_code_says_first_that_its_upstream_is_gone(desk: Desk) -> None:
    """It went on saying when it is tried, and to release it, which did nothing."""
    message = desk.answered(graph(403, "ErrorSendAsDenied", "May not send as."))
    now = replace(ELSEWHERE, holds=desk.door.holds())
    said = desk.says(message, now)
    assert said == Plain(
        "There is no [upstream.contoso] in the configuration any more."
        " It was held by ErrorSendAsDenied before.",
        "Put it back, then relayd reload: ErrorSendAsDenied holds it still."
        f" Or relayd queue move --upstream OTHER {queue_id_text(message)},"
        f" or give it up: relayd queue delete {queue_id_text(message)}",
    )
    assert reasons(desk, now) == ["upstream contoso not configured"]
    back = replace(now, upstreams=frozenset({"contoso"}))
    assert desk.says(message, back).why.startswith("Held (ErrorSendAsDenied)")
    assert reasons(desk, back) == ["ErrorSendAsDenied"]


@pytest.mark.parametrize("outcome", [None, graph(429)])
def test_waiting_mail_of_a_removed_upstream_says_so_before_it_is_held(
    desk: Desk, outcome: Outcome | None
) -> None:
    message = desk.put() if outcome is None else desk.answered(outcome)
    said = desk.says(message, ELSEWHERE)
    assert said.why == "There is no [upstream.contoso] in the configuration any more."
    assert "this mail goes by itself" in said.do


def test_what_a_person_decides_about_needs_a_way_out_first(desk: Desk) -> None:
    held = desk.put()
    desk.door.hold([held])
    doubtful = desk.answered(graph(504), policy=Policy(schedule=(60.0,), ambiguous="hold"))
    failed = desk.answered(graph(400, "ErrorInvalidRecipients"))
    for message, word in ((held, "release"), (doubtful, "release"), (failed, "retry")):
        text = queue_id_text(message)
        assert (
            "Put [upstream.contoso] back and relayd reload, or relayd queue move --upstream OTHER"
            f" {text}, then relayd queue {word} {text}"
        ) in desk.says(message, ELSEWHERE).do
        assert "queue move" not in desk.says(message).do
    assert "There is no [upstream.contoso]" in desk.says(held, ELSEWHERE).why
    assert reasons(desk, ELSEWHERE) == ["operator", "ambiguous"]


# ---- waiting


def test_throttled_mail_says_that_waiting_is_all_there_is_to_do(desk: Desk) -> None:
    message = desk.answered(graph(429, "ApplicationThrottled", "Slow down.", retry_after="7"))
    said = desk.says(message)
    assert said.why == (
        "Tried once: Too many requests at once for the mailbox, or too many octets. (Slow down.)"
        " Tried again at 2026-11-20T10:00:07Z."
    )
    assert said.do.startswith("Nothing: relayd waits as long as Microsoft asks.")


def test_a_code_without_advice_says_how_to_try_at_once(desk: Desk) -> None:
    message = desk.answered(graph(409, "ErrorIrresolvableConflict"))
    assert desk.says(message).do == (
        f"Nothing; to try at once: relayd queue retry {queue_id_text(message)}"
    )


def test_an_unknown_refusal_is_said_with_microsofts_own_words(desk: Desk) -> None:
    message = desk.answered(graph(422, "NeverHeardOf", "Something else."))
    assert "(Something else.) Tried again at" in desk.says(message).why


def test_tries_are_counted_in_words(desk: Desk) -> None:
    message = desk.answered(graph(429))
    desk.clock.advance(3600)
    desk.try_again(graph(429))
    assert desk.says(message).why.startswith("Tried 2 times: Too many requests.")


WRONG_SECRET = TokenUnavailable(
    "7000215", "AADSTS7000215: Invalid client secret provided.", configuration=True
)


def test_a_wrong_secret_is_named_while_the_upstream_is_down(desk: Desk) -> None:
    message = desk.answered(token_failure(WRONG_SECRET))
    assert desk.story(message).deliveries[0].state is State.READY, "the upstream waits, not it"
    down = Now(down={"contoso": Outage("7000215", WRONG_SECRET.text, 42.4)})
    said = desk.says(message, down)
    assert said.why == (
        "Upstream contoso is down (AADSTS7000215): The client secret is wrong; often the secret's"
        " ID was copied instead of its value. (AADSTS7000215: Invalid client secret provided)"
    )
    assert said.do.startswith("Make a new secret under Certificates & secrets")
    assert said.do.endswith("Asked again in 42 s; then all goes.")


TRACED = TokenUnavailable(
    "7000215",
    f"{aadsts.AADSTS['7000215'].meaning}: {aadsts.AADSTS['7000215'].action} (Entra trace 3d76)",
    configuration=True,
)


@pytest.mark.parametrize("length", [1000, 200])
def test_what_to_do_is_said_once(desk: Desk, length: int) -> None:
    message = desk.answered(token_failure(TRACED))
    down = Now(down={"contoso": Outage("7000215", TRACED.text[:length], 42)})
    for now in (down, RUNNING):
        said = desk.says(message, now)
        assert "the client secret is wrong" in said.why.lower()
        assert "make a new secret" not in said.why
        assert said.do.startswith("Make a new secret under Certificates & secrets")
    assert ("(Entra trace 3d76)" in desk.says(message, down).why) == (length == 1000)


def test_a_wrong_secret_is_named_by_a_worker_that_did_not_try_itself(desk: Desk) -> None:
    message = desk.answered(token_failure(WRONG_SECRET))
    said = desk.says(message, RUNNING)
    assert said.why.startswith("It waits to be tried again. The last try (AADSTS7000215): No ")
    assert said.do.startswith("Make a new secret under Certificates & secrets")


def test_mail_never_tried_says_that_its_upstream_is_down(desk: Desk) -> None:
    message = desk.put()
    down = Now(down={"contoso": Outage("dns-failed", "no such name", 0.2)})
    said = desk.says(message, down)
    assert said.why == (
        "Upstream contoso is down (dns-failed): The name of the server could not be looked up."
        " (no such name)"
    )
    assert "resolv.conf" in said.do
    assert said.do.endswith("Asked again in 1 s; then all goes.")


def test_an_outage_of_another_upstream_is_no_reason(desk: Desk) -> None:
    message = desk.put()
    down = Now(down={"fabrikam": Outage("dns-failed", "", 5)})
    assert "waits for its turn" in desk.says(message, down).why


ALONE = "It waits for its turn: alerts@contoso.com sends only so many at once (`concurrency`)"
PACED = (
    "It waits for its turn: alerts@contoso.com has sent 30 in the last minute and may send 30"
    " (`messages_per_minute`); it goes on within a minute."
)


@pytest.mark.parametrize(
    ("use", "why", "reason"),
    [
        (None, f"{ALONE} and in a minute (`messages_per_minute`).", ""),
        (Use(29, 30, 1, 4), f"{ALONE} and in a minute (`messages_per_minute`).", ""),
        (Use(30, 30, 1, 4), PACED, "30 of 30 in the last minute (messages_per_minute)"),
        (Use(30, 30, 4, 4), PACED, "30 of 30 in the last minute (messages_per_minute)"),
        (Use(30, 0, 4, 4), f"{ALONE}.", "4 of 4 at once (concurrency)"),
        (Use(0, 0, 0, 0), f"{ALONE} and in a minute (`messages_per_minute`).", ""),
    ],
)
def test_mail_that_waits_its_turn_names_the_setting_that_makes_it_wait(
    desk: Desk, use: Use | None, why: str, reason: str
) -> None:
    """It named concurrency whatever it was, and who raised that mended nothing."""
    now = Now(quota={ALERTS: use} if use else {})
    assert desk.says(desk.put(), now) == Plain(why, "Nothing; if it stays so, see relayd status.")
    assert reasons(desk, now) == [reason]
    assert reasons(desk, Now(quota={SCANS: Use(30, 30, 4, 4)})) == [""]


def test_urgent_mail_waits_for_no_pacing(desk: Desk) -> None:
    put(desk.door, desk.clock, priority=0)
    assert reasons(desk, Now(quota={ALERTS: Use(30, 30, 1, 4)})) == [""]
    assert reasons(desk, Now(quota={ALERTS: Use(30, 30, 4, 4)})) == ["4 of 4 at once (concurrency)"]


def test_mail_of_a_mailbox_that_rests_says_for_how_long(desk: Desk) -> None:
    now = Now(resting={ALERTS: 12.4}, quota={ALERTS: Use(30, 30, 4, 4)})
    assert desk.says(desk.put(), now).why == (
        "It waits for its turn: alerts@contoso.com rests for 12 s after a refusal."
    )
    assert reasons(desk, now) == ["alerts@contoso.com rests for 12 s"]


def test_deferred_mail_whose_time_has_come_says_what_it_waits_for(desk: Desk) -> None:
    message = desk.answered(graph(429, "ApplicationThrottled", retry_after="7"))
    use = {ALERTS: Use(30, 30, 4, 4)}
    early = Now(quota=use, at=desk.clock.utcnow())
    assert desk.says(message, early).why.endswith("Tried again at 2026-11-20T10:00:07Z.")
    assert reasons(desk, early) == [""]
    late = replace(early, at=desk.clock.utcnow() + timedelta(seconds=7))
    assert "Tried again when its turn comes: alerts@contoso.com has" in desk.says(message, late).why
    assert reasons(desk, late) == ["30 of 30 in the last minute (messages_per_minute)"]


@pytest.mark.parametrize("is_tried", [False, True])
def test_a_spool_that_cannot_be_written_is_why_nothing_goes(desk: Desk, *, is_tried: bool) -> None:
    message = desk.answered(graph(429)) if is_tried else desk.put()
    down = {"contoso": Outage("dns-failed", "no such name", 5)}
    now = Now(spool="disk full", down=down)
    assert "Nothing is sent: the spool cannot be written (disk full)" in desk.says(message, now).why
    assert desk.says(message, now).do.startswith("Mend the disk")
    assert reasons(desk, now) == ["the spool cannot be written"]


def test_an_operators_retry_is_seen(desk: Desk) -> None:
    message = desk.answered(graph(429))
    desk.door.retry([message])
    assert desk.says(message).why.endswith("An operator asked for it at 2026-11-20T10:00:00Z.")


def test_mail_under_way_says_since_when(desk: Desk) -> None:
    message = desk.put()
    desk.door.lease(ALERTS, limit=1)
    assert desk.says(message) == Plain("It is being sent now, since 2026-11-20T10:00:00Z.", "")


def test_mail_that_may_have_gone_says_so_while_it_waits(desk: Desk) -> None:
    message = desk.answered(graph(504))
    assert desk.says(message).why.endswith("It may have gone already: an earlier try was cut.")


@pytest.mark.parametrize("outcome", [None, graph(429)])
def test_when_relayd_is_down_that_is_the_reason(desk: Desk, outcome: Outcome | None) -> None:
    message = desk.put() if outcome is None else desk.answered(outcome)
    said = desk.says(message, STOPPED)
    assert "not running" in said.why
    assert said.do == "systemctl start relayd"


# ---- over


def test_sent_mail_says_who_has_it_now(desk: Desk) -> None:
    message = desk.settled(SENT)
    assert desk.says(message) == Plain(
        "Microsoft took it over at 2026-11-20T10:00:00Z and delivers it; relayd is done.", ""
    )


def test_mail_sent_to_some_names_the_others(desk: Desk) -> None:
    message = put(desk.door, desk.clock, way(ALERTS, "a@contoso.com", "b@contoso.com"))
    (lease,) = desk.door.lease(ALERTS, limit=1)
    desk.door.settle(
        lease,
        Settlement(state=State.SENT, outcome="sent", failed_recipients={"b@contoso.com": "no"}),
    )
    assert "but not for b@contoso.com." in desk.says(message).why


def test_failed_mail_says_why_and_how_to_send_it_after_all(desk: Desk) -> None:
    message = desk.answered(graph(400, "ErrorInvalidRecipients", "Bad address."))
    said = desk.says(message)
    assert said.why == "Given up: Microsoft cannot use an address of a recipient. (Bad address.)"
    assert said.do == (
        "Correct the address in the device's address book."
        f" To send it after all: relayd queue retry {queue_id_text(message)}"
    )


def test_failed_mail_without_content_cannot_be_sent_after_all(desk: Desk) -> None:
    message = desk.answered(graph(400, "ErrorInvalidRecipients"))
    desk.clock.advance(31 * 86_400)
    desk.door.sweep()
    assert desk.says(message).do.endswith("Its content is not kept any more.")


def test_deleted_mail_says_that_an_operator_did_it(desk: Desk) -> None:
    message = desk.answered(graph(429))
    desk.door.delete([message])
    assert desk.says(message) == Plain("Deleted by an operator at 2026-11-20T10:00:00Z.", "")


def test_mail_deleted_while_it_was_being_sent_says_so(desk: Desk) -> None:
    message = desk.put()
    (lease,) = desk.door.lease(ALERTS, limit=1)
    desk.door.delete([message])
    desk.door.settle(lease, decide(graph(429), lease, POLICY, desk.clock.utcnow()))
    assert desk.says(message) == Plain("Deleted by an operator while it was being sent.", "")


def test_expired_mail_says_what_stood_in_the_way_and_each_thing_once(desk: Desk) -> None:
    """It sent the reader to where the words stood, and named the retry twice."""
    message = desk.answered(graph(429, "ApplicationThrottled", "Slow down."))
    desk.clock.advance(6 * 86_400)
    desk.door.sweep()
    desk.door.sweep()
    said = desk.says(message)
    assert said.why == (
        "Given up: Not delivered within its time. The last try (ApplicationThrottled):"
        " Too many requests at once for the mailbox, or too many octets. (Slow down.)"
    )
    assert said.do == f"To send it after all: relayd queue retry {queue_id_text(message)}"


def test_expired_mail_says_what_to_do_about_what_stood_in_the_way(desk: Desk) -> None:
    message = desk.answered(graph(403, "ErrorSendAsDenied", "May not send as."))
    desk.clock.advance(6 * 86_400)
    desk.door.sweep()
    said = desk.says(message)
    assert "The last try (ErrorSendAsDenied): The mailbox may not send as" in said.why
    assert "Send As" in said.do
    assert said.do.count("relayd queue retry") == 1


@pytest.mark.parametrize("is_tried", [False, True])
def test_expired_mail_says_no_more_than_is_known(desk: Desk, *, is_tried: bool) -> None:
    message = desk.put()
    desk.clock.advance(6 * 86_400)
    if is_tried:  # the last try itself found that its time was over
        desk.try_again(graph(429, "ApplicationThrottled", "Slow down."))
    else:
        desk.door.sweep()
    said = desk.says(message)
    assert said.why.count("The last try") == is_tried
    assert said.do == f"To send it after all: relayd queue retry {queue_id_text(message)}"


def test_only_what_counts_as_a_try_is_told_as_one(desk: Desk) -> None:
    """Two rows had the same number, and what an operator did had one too."""
    message = desk.answered(graph(429))
    desk.door.retry([message])
    desk.try_again(token_failure(WRONG_SECRET))
    desk.try_again(graph(504))
    desk.door.hold([message])
    redirect(desk, message, SCANS)
    desk.door.release([message])
    desk.door.lease(SCANS, limit=1)
    rows = told(desk.story(message), RUNNING)["attempts"]
    assert isinstance(rows, list)
    assert [(row["outcome"], row["number"]) for row in rows if row["counts"]] == [
        ("deferred", 1),
        ("ambiguous", 2),
        ("sending", 3),
    ]
    assert len(rows) == 8
    assert desk.story(message).deliveries[0].attempts == 2


# ---- requests and answers


def frames(desk: Desk, request: Frame) -> list[Frame]:
    with closing(Reader(desk.backend.path, desk.clock)) as reader:
        return list(look(reader, request, lambda: RUNNING))


def rows_of(frame: Frame) -> list[dict[str, Json]]:
    result = frame["result"]
    assert isinstance(result, dict)
    rows: list[dict[str, Json]] = result["messages"]
    return rows


def test_a_list_has_stable_keys(desk: Desk) -> None:
    desk.put()
    (frame,) = frames(desk, {"command": "queue.list"})
    (row,) = rows_of(frame)
    assert list(row) == [
        "id", "state", "from", "to", "device", "user", "upstream", "mailbox", "priority", "bytes",
        "accepted_at", "expires_at", "due_at", "held_by", "reason", "attempts", "maybe_sent",
        "results",
    ]  # fmt: skip
    assert row["state"] == "ready"
    assert row["priority"] == "normal"


def reasons(desk: Desk, now: Now) -> list[Json]:
    with closing(Reader(desk.backend.path, desk.clock)) as reader:
        (frame,) = look(reader, {"command": "queue.list"}, lambda: now)
    return [row["reason"] for row in rows_of(frame)]


def test_a_list_says_what_keeps_mail_back(desk: Desk) -> None:
    desk.answered(graph(429))
    desk.put()
    down = Now(down={"contoso": Outage("7000215", "", 5)})
    assert reasons(desk, RUNNING) == ["", ""]
    assert reasons(desk, down) == ["contoso is down (AADSTS7000215)"] * 2
    assert reasons(desk, replace(down, clock="it shows 1970")) == ["the clock is wrong"] * 2
    assert reasons(desk, STOPPED) == ["relayd is not running"] * 2


def test_a_list_says_by_what_mail_is_held_and_nothing_of_what_has_gone(desk: Desk) -> None:
    down = Now(down={"contoso": Outage("7000215", "", 5)})
    gone = desk.story(desk.settled(SENT)).deliveries[0]
    assert shown(gone, down)["reason"] == ""
    desk.answered(graph(403, "ErrorSendAsDenied", "May not send as."))
    assert reasons(desk, down) == ["ErrorSendAsDenied"]


@pytest.mark.parametrize("is_tried", [False, True])
def test_a_wrong_clock_is_why_nothing_goes(desk: Desk, *, is_tried: bool) -> None:
    message = desk.answered(graph(429)) if is_tried else desk.put()
    said = desk.says(message, Now(clock="the clock of this host shows 1970"))
    assert "Nothing is sent: the clock of this host shows 1970." in said.why
    assert "timedatectl" in said.do


def test_a_story_has_stable_keys(desk: Desk) -> None:
    message = desk.answered(graph(429))
    (frame,) = frames(desk, {"command": "queue.show", "id": queue_id_text(message).lower()})
    story = frame["result"]
    assert isinstance(story, dict)
    assert list(story) == [
        "id", "message_id", "subject", "session", "listener", "ip", "helo", "body_sha256",
        "has_content", "deliveries", "attempts",
    ]  # fmt: skip
    assert list(story["deliveries"][0])[-2:] == ["why", "do"]
    assert list(story["attempts"][0]) == [
        "number", "holder", "transport", "started_at", "finished_at", "outcome", "http_status",
        "code", "request_id", "text", "upstream", "mailbox", "counts",
    ]  # fmt: skip


def test_a_message_nobody_knows_is_refused_in_words(desk: Desk) -> None:
    (frame,) = frames(desk, {"command": "queue.show", "id": "1JV7SEQSLMJCW"})
    assert frame["error"] == "no such message: 1JV7SEQSLMJCW"


def test_a_long_list_comes_in_pages_and_a_limit_ends_it(desk: Desk) -> None:
    # Many greenlets: their commits share flushes.
    gevent.joinall([gevent.spawn(desk.put) for _ in range(PAGE + 50)], raise_error=True)
    pages = frames(desk, {"command": "queue.list"})
    assert sum(len(rows_of(page)) for page in pages) == PAGE + 50
    assert [page.get("more", False) for page in pages] == [True] * (len(pages) - 1) + [False]
    pages = frames(desk, {"command": "queue.list", "limit": PAGE + 1})
    assert sum(len(rows_of(page)) for page in pages) == PAGE + 1
    assert not pages[-1].get("more")


@pytest.mark.parametrize(
    ("since", "meant"),
    [
        ("2026-11-20T10:00:00Z", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("2026-11-20T11:00:00+01:00", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("2026-11-20T10:00:00", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("9999-01-01", datetime(2040, 1, 1, tzinfo=UTC)),
        ("0002-01-01", None),
        ("", None),
    ],
)
def test_since_is_a_moment_with_or_without_an_offset(since: str, meant: datetime | None) -> None:
    assert parse_filter({"since": since}).since == meant


@pytest.mark.parametrize("since", ["yesterday", "0001-01-01T00:00:00+14:00", {"a": 1}])
def test_a_since_that_is_no_moment_is_refused_in_words(since: Json) -> None:
    with pytest.raises(ValueError, match="write 2026-11-20T10:00:00Z"):
        parse_filter({"since": since})


def test_an_unknown_state_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="all, deferred, deleted, failed, held"):
        parse_filter({"state": "stuck"})
    assert parse_filter({}).states == (
        State.READY,
        State.DEFERRED,
        State.LEASED,
        State.HELD,
    )
    assert parse_filter({"state": "ALL"}).states == ()


@given(
    request=st.dictionaries(
        st.sampled_from(["state", "from", "to", "device", "upstream", "message_id", "since"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    )
)
def test_garbage_in_a_filter_is_a_filter_or_refused_as_a_wrong_value(
    request: dict[str, Json],
) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_filter(request), Filter)


def test_a_page_of_messages_to_many_is_split_to_fit_frames(desk: Desk) -> None:
    many = [f"{'a' * 60}{number}@{'b' * 60}.example" for number in range(500)]
    for _ in range(25):
        put(desk.door, desk.clock, way(ALERTS, *many))
    pages = frames(desk, {"command": "queue.list"})
    assert len(pages) > 2
    assert all(len(encode(page)) < 1024 * 1024 for page in pages)
    assert sum(len(rows_of(page)) for page in pages) == 25
    assert [bool(page.get("more")) for page in pages] == [True] * (len(pages) - 1) + [False]


# ---- words


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("7000215", 0, "make a new secret"),
        ("AADSTS7000215", 0, "make a new secret"),
        ("ErrorSendAsDenied", 403, "Give the mailbox Send As"),
        ("HTTP 403", 0, "Mail.Send"),
        ("", 403, "Mail.Send"),
        ("NeverHeardOf", 507, "Empty the mailbox"),
        ("", 0, ""),
        ("NeverHeardOf", 0, ""),
    ],
)
def test_advice_comes_from_the_code_or_else_from_the_status(
    code: str, status: int, words: str
) -> None:
    found = advice(code, status)
    assert words in found
    assert bool(found) == bool(words)


def test_a_meaning_is_known_for_every_code_of_the_tables() -> None:
    assert all(meaning_of(row.code) for row in catalogue.ENTRIES if row.code)
    assert meaning_of("invalid_client")
    assert meaning_of("NeverHeardOf") == ""


def test_an_outage_nobody_described_is_said_in_its_own_words() -> None:
    assert outage_words("lab", Outage("odd", "it is odd", 3)) == (
        "Upstream lab is down (odd): It is odd.",
        "Asked again in 3 s; then all goes.",
    )
    assert outage_words("lab", Outage("odd", "", 3))[0] == "Upstream lab is down (odd): Odd."


def test_moments_are_shown_in_utc() -> None:
    east = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=1)
    assert stamp(east) == "2026-01-01T01:00:00Z"
    assert stamp(None) == ""


def test_a_sentence_has_its_capital_and_its_stop() -> None:
    assert [sentence("look there"), sentence("Look."), sentence("")] == ["Look there.", "Look.", ""]
    assert sentence("set it (see above)") == "Set it (see above)."
    assert sentence("Set it (see above.)") == "Set it (see above.)"
