"""What operators are told of tokens and mailboxes, and that it is never the token itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest

from relayd.cache.frames import Refused
from relayd.clock import FakeClock
from relayd.config.model import Cloud, Config, Http, Secret, Server, Upstream
from relayd.deliver.silence import Silence
from relayd.errors import CacheUnavailable, TokenUnavailable
from relayd.identity.tokens import Token, TokenClient
from relayd.master.frames import Frame
from relayd.spool.model import MailboxRef
from relayd.spool.store import Hold
from relayd.wayout import WayOut, blocked, failed_row, meant, stamp, token_row
from tests.fake_entra import TENANT_ID, jwt
from tests.sandbox_process import start_sandbox

BOX = "alerts@contoso.com"


class FakeTokens:
    """Gives what it has, or fails."""

    def __init__(self) -> None:
        self.value = jwt(1)
        self.failure: Exception | None = None
        self.refreshed = 0
        self.held = True

    def token(self, upstream: Upstream) -> Token:
        if self.failure is not None:
            raise self.failure
        return Token(self.value, 1600.0, "print")

    def refresh(self, upstream: Upstream) -> Token:
        self.refreshed += 1
        return self.token(upstream)

    def forget(self, upstream: Upstream) -> bool:
        if self.failure is not None:
            raise self.failure
        return self.held


class Room:
    """A WayOut and what is around it."""

    def __init__(self, folder: Path, *upstreams: Upstream, cloud: Cloud | None = None) -> None:
        self.clock = FakeClock()
        self.tokens = FakeTokens()
        self.holds: Sequence[Hold] = ()
        self.folder = folder
        self.config = Config(
            server=Server(state_dir=str(folder)),
            http=Http(),
            cloud=(cloud,) if cloud else (),
            upstream=upstreams or (upstream("contoso"), upstream("fabrikam")),
        )
        self.way_out = WayOut(
            self.config,
            cast("TokenClient", self.tokens),
            lambda: self.holds,
            clock=self.clock,
        )

    def ask(self, command: str, **members: str) -> list[Frame]:
        replies = list(self.way_out.commands()[command]({"command": command, **members}))
        assert [reply.get("more", False) for reply in replies][-1] is False
        return replies

    def results(self, command: str, **members: str) -> list[Frame]:
        return [cast("Frame", reply["result"]) for reply in self.ask(command, **members)]


def upstream(name: str, **more: str) -> Upstream:
    settings = {"mailbox": BOX, "tenant": "t", "client_id": "app", **more}
    return Upstream(name=name, client_secret=Secret("s1"), **settings)  # type: ignore[arg-type]  # words of the test


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_a_token_is_told_of_but_never_told(room: Room) -> None:
    first, second = room.results("token.test")
    assert (first["upstream"], second["upstream"]) == ("contoso", "fabrikam")
    assert (first["state"], first["expires_in_s"]) == ("ok", 600)
    assert (first["roles"], first["tenant"]) == (["Mail.Send"], TENANT_ID)
    assert room.tokens.value not in str(room.ask("token.test"))
    assert room.tokens.refreshed == 0


def test_one_upstream_may_be_asked_for_by_name(room: Room) -> None:
    (only,) = room.results("token.refresh", upstream="fabrikam")
    assert only["upstream"] == "fabrikam"
    assert room.tokens.refreshed == 1


def test_an_unknown_upstream_is_told_with_those_there_are(room: Room) -> None:
    with pytest.raises(ValueError, match="no upstream named 'x'; there are: contoso, fabrikam"):
        room.ask("token.test", upstream="x")


def test_without_any_upstream_the_next_step_is_told() -> None:
    with pytest.raises(ValueError, match="next step: relayd setup"):
        meant(Config(), "")


def test_a_failure_comes_with_meaning_and_advice_and_the_next_upstream_follows(room: Room) -> None:
    room.tokens.failure = TokenUnavailable("7000222", "…", configuration=True)
    first, second = room.results("token.test")
    assert (first["state"], first["cause"]) == ("failed", "AADSTS7000222")
    assert first["why"] == "the client secret has expired"
    assert "make a new secret" in str(first["do"])
    assert second["upstream"] == "fabrikam"


def test_a_failure_nobody_described_keeps_its_own_words(room: Room) -> None:
    room.tokens.failure = TokenUnavailable("news", "not trusted", configuration=False)
    (only,) = room.results("token.test", upstream="contoso")
    assert (only["cause"], only["why"], only["do"]) == ("news", "not trusted", "")


def test_both_kinds_of_rows_have_the_same_keys() -> None:
    why = TokenUnavailable("x", "y", configuration=False)
    assert list(token_row(upstream("c"), jwt(1), 5.0)) == list(failed_row(upstream("c"), why))


def test_a_cause_of_our_own_keeps_its_words_beside_the_advice() -> None:
    why = TokenUnavailable(
        "entra-unreachable", "cannot connect to x (refused)", configuration=False
    )
    row = failed_row(upstream("c"), why)
    assert (row["cause"], row["why"]) == ("entra-unreachable", "cannot connect to x (refused)")
    assert "name server" in str(row["do"])


def test_dropping_tells_whether_there_was_one(room: Room) -> None:
    (only,) = room.results("token.drop", upstream="contoso")
    assert only == {"upstream": "contoso", "state": "dropped"}
    room.tokens.held = False
    assert room.results("token.drop")[1]["state"] == "none"


@pytest.mark.parametrize("failure", [CacheUnavailable("away"), Refused("x", "no", {})])
def test_dropping_without_the_cache_daemon_fails_in_words(room: Room, failure: Exception) -> None:
    room.tokens.failure = failure
    (only,) = room.results("token.drop", upstream="contoso")
    assert (only["state"], only["cause"]) == ("failed", "cache-unavailable")


# ---- nothing leaves


def refusal(mailbox: str, cause: str = "ErrorInvalidUser", name: str = "contoso") -> Hold:
    moment = FakeClock().utcnow()
    return Hold(MailboxRef(name, mailbox), mailbox, cause, "", moment, moment)


@pytest.mark.parametrize(
    ("holds", "found"),
    [
        ([refusal(BOX.upper())], {"contoso": "ErrorInvalidUser"}),
        ([refusal(BOX), refusal(BOX, name="fabrikam")], {"contoso": "ErrorInvalidUser"}),
        ([refusal("former@contoso.com")], {}),
        ([refusal(BOX, "ErrorSendAsDenied")], {}),
        ([refusal("a@fabrikam.com", name="fabrikam")], {}),
        ([refusal(f"{box}@fabrikam.com", name="fabrikam") for box in "ab"],
         {"fabrikam": "ErrorInvalidUser"}),
        ([], {}),
    ],
)  # fmt: skip
def test_an_upstream_all_of_whose_mailboxes_are_refused_is_blocked(
    holds: list[Hold], found: Frame
) -> None:
    senders = ("a@fabrikam.com", "B@fabrikam.com", "*@fabrikam.com")
    many = replace(upstream("fabrikam"), mailbox="sender", allowed_senders=senders)
    assert blocked(Config(upstream=(upstream("contoso"), many)), holds) == found


def test_of_many_blocked_upstreams_a_hundred_are_named() -> None:
    names = [f"u{number}" for number in range(120)]
    holds = [refusal(BOX, name=name) for name in names]
    assert len(blocked(Config(upstream=tuple(map(upstream, names))), holds)) == 100


def test_an_upstream_whose_mailboxes_nobody_knows_is_not_said_to_be_blocked() -> None:
    unknown = replace(upstream("contoso"), mailbox="sender", allowed_senders=("*@contoso.com",))
    assert blocked(Config(upstream=(unknown,)), [refusal(BOX)]) == {}


# ---- holds and silence


def hold(room: Room, cause: str = "ErrorAccessDenied", name: str = "contoso") -> Hold:
    return Hold(
        mailbox=MailboxRef(name, BOX),
        header_from=BOX,
        cause=cause,
        text="Access is denied.",
        since=room.clock.now,
        probe_at=room.clock.now + timedelta(minutes=30),
    )


def test_what_is_held_back_is_told_with_when_it_is_tried(room: Room) -> None:
    room.holds = (hold(room), hold(room, name="fabrikam"))
    (only,) = room.results("upstream.holds", upstream="contoso")
    assert only == {
        "holds": [
            {
                "upstream": "contoso",
                "mailbox": BOX,
                "from": BOX,
                "cause": "ErrorAccessDenied",
                "text": "Access is denied.",
                "since": "2026-11-20T10:00:00Z",
                "probe_at": "2026-11-20T10:30:00Z",
            }
        ],
        "mailboxes": {"contoso": [BOX]},
    }


def test_a_denied_mailbox_is_not_asked_about_while_mail_is_held_for_it(room: Room) -> None:
    room.holds = (hold(room),)
    (only,) = room.results("mailbox.test", upstream="contoso", mailbox=BOX)
    assert (only["state"], only["until"]) == ("silent", "2026-11-20T10:30:00Z")


def test_nor_after_somebody_was_told_no(room: Room) -> None:
    Silence(str(room.folder), clock=room.clock).note("contoso", BOX)
    (only,) = room.results("mailbox.test", upstream="contoso", mailbox=BOX)
    assert (only["state"], only["until"]) == ("silent", "2026-11-20T10:30:00Z")


def test_other_refusals_silence_nobody(room: Room) -> None:
    room.holds = (hold(room, "ErrorSendAsDenied"), hold(room, name="fabrikam"))
    room.tokens.failure = TokenUnavailable("7000215", "wrong", configuration=True)
    (only,) = room.results("mailbox.test", upstream="contoso", mailbox=BOX)
    assert (only["state"], only["cause"]) == ("no token", "AADSTS7000215")


@pytest.mark.parametrize(
    ("name", "mailbox"), [("contoso", "ceo@contoso.com"), ("", BOX), ("contoso", "")]
)
def test_only_a_mailbox_the_relay_sends_through_may_be_asked_about(
    room: Room, name: str, mailbox: str
) -> None:
    (reply,) = room.ask("mailbox.test", upstream=name, mailbox=mailbox)
    assert (reply["ok"], reply["exit"]) == (False, 2)


def test_roots_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    cloud = Cloud(
        name="lab", authority="https://x", graph="https://x/v1.0", ca_file=str(tmp_path / "none")
    )
    room = Room(tmp_path, upstream("contoso", cloud="lab"), cloud=cloud)
    (only,) = room.results("mailbox.test", upstream="contoso", mailbox=BOX)
    assert only["state"] == "unknown"
    assert "none" in str(only["text"]) or "No such file" in str(only["text"])


@pytest.mark.slow(3)
def test_microsofts_answer_is_told_and_a_denial_begins_the_silence(tmp_path: Path) -> None:
    with start_sandbox(tmp_path) as sandbox:
        cloud = Cloud(
            name="lab",
            authority=sandbox.base,
            graph=f"{sandbox.base}/v1.0",
            ca_file=str(sandbox.facts["ca_file"]),
        )
        room = Room(tmp_path, upstream("contoso", cloud="lab"), cloud=cloud)
        room.tokens.value = sandbox.client.token()
        (good,) = room.results("mailbox.test", upstream="contoso", mailbox=BOX)
        assert good["state"] == "may send"
        sandbox.client.mailbox(BOX, denied="ErrorAccessDenied")
        (bad,) = room.results("mailbox.test", upstream="contoso", mailbox=BOX)
        assert (bad["state"], bad["cause"]) == ("refused", "ErrorAccessDenied")
        assert bad["request_id"]
        (silent,) = room.results("mailbox.test", upstream="contoso", mailbox=BOX)
        assert silent["state"] == "silent"
        assert sandbox.client.counts()["send_requests"] == 2


def test_a_moment_is_whole_seconds_of_utc() -> None:
    assert stamp(FakeClock().now.replace(microsecond=5)) == "2026-11-20T10:00:00Z"
