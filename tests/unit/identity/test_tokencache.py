"""One question at a time, the last good token while it lives, failures believed for a while."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import count

import pytest

from relayd.clock import FakeClock
from relayd.config.model import Secret
from relayd.errors import TokenUnavailable
from relayd.identity.credentials import Credential
from relayd.identity.tokencache import Fetched, Outcome, TokenCache
from relayd.identity.tokens import Token
from tests.fake_entra import jwt

WHO = Credential(
    authority="https://login.example",
    tenant="t",
    client_id="app",
    kind="secret",
    secret=Secret("s1"),
    next_secret=Secret(),
    scope="x/.default",
    ca_file="",
    proxy="",
    token_timeout_s=15.0,
)
WRONG = TokenUnavailable("7000215", "the secret is wrong", configuration=True)
DOWN = TokenUnavailable("entra-unreachable", "cannot connect", configuration=False)


class Bench:
    """A token cache whose questions the test answers by hand."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.asked: list[tuple[Credential, Callable[[Fetched], None]]] = []
        self.forgotten: list[str] = []
        self.cache = TokenCache(
            lambda who, landed: self.asked.append((who, landed)),
            forgotten=self.forgotten.append,
            clock=self.clock,
        )
        self._numbers = count(1)

    def ask(self, who: Credential = WHO, asker: int = 1) -> list[Outcome]:
        got: list[Outcome] = []
        self.cache.ask(who, upstream="contoso", asker=asker, told=got.append)
        return got

    def refresh(self, who: Credential = WHO) -> list[Outcome]:
        got: list[Outcome] = []
        self.cache.refresh(who, upstream="contoso", asker=1, told=got.append)
        return got

    def entra_says(self, outcome: TokenUnavailable | None = None, life_s: float = 3600) -> None:
        """Answer the oldest open question; None: with a new token."""
        _, landed = self.asked.pop(0)
        landed(Fetched(outcome or jwt(next(self._numbers)), life_s))

    def have_token(self, life_s: float = 3600) -> Token:
        got = self.ask()
        self.entra_says(life_s=life_s)
        assert isinstance(got[0], Token)
        return got[0]

    def later(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.cache.tick()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def failure(got: list[Outcome]) -> TokenUnavailable:
    (only,) = got
    assert isinstance(only, TokenUnavailable)
    return only


def test_a_thousand_askers_are_one_question(bench: Bench) -> None:
    answers = [bench.ask() for _ in range(1000)]
    assert len(bench.asked) == 1
    bench.entra_says()
    (token,) = answers[0]
    assert isinstance(token, Token)
    assert answers == [[token]] * 1000


def test_a_held_token_costs_no_question(bench: Bench) -> None:
    token = bench.have_token()
    assert bench.ask() == [token]
    assert not bench.asked


def test_its_end_is_counted_from_the_question_not_the_answer(bench: Bench) -> None:
    got, start = bench.ask(), bench.clock.boottime()
    bench.clock.advance(9)
    bench.entra_says(life_s=100)
    assert isinstance(got[0], Token)
    assert got[0].expires_boottime == start + 100


@pytest.mark.parametrize(
    ("life_s", "refreshed_s"), [(3600, 2880), (86400, 69120), (1800, 1200), (600, 300), (60, 30)]
)
def test_it_is_refreshed_early_while_the_old_one_is_handed_out(
    bench: Bench, life_s: float, refreshed_s: float
) -> None:
    token = bench.have_token(life_s)
    bench.later(refreshed_s - 1)
    assert not bench.asked
    bench.later(1)
    assert len(bench.asked) == 1
    assert bench.ask() == [token]
    bench.entra_says()
    (fresh,) = bench.ask()
    assert fresh != token


def test_the_last_good_token_is_handed_out_to_its_end_while_entra_is_down(bench: Bench) -> None:
    token = bench.have_token(3600)
    for _ in range(58):
        bench.later(60)
        if bench.asked:
            bench.entra_says(DOWN)
        assert bench.ask() == [token]
    bench.later(116)  # 3596 s: too late for another request
    if bench.asked:
        bench.entra_says(DOWN)
    assert failure(bench.ask()).cause == "entra-unreachable"


def test_a_wrong_secret_on_refresh_takes_no_good_token_away(bench: Bench) -> None:
    token = bench.have_token(3600)
    bench.later(2880)
    bench.entra_says(WRONG)
    assert bench.ask() == [token]
    (state,) = bench.cache.states()
    assert (state.cause, state.configuration) == ("7000215", True)


def test_a_wrong_secret_is_believed_for_a_minute(bench: Bench) -> None:
    got = bench.ask()
    bench.entra_says(WRONG)
    assert failure(got).retry_after_s == 60
    bench.clock.advance(59)
    again = failure(bench.ask())
    assert (again.cause, again.configuration, again.retry_after_s) == ("7000215", True, 1)
    assert not bench.asked
    bench.clock.advance(1)
    assert bench.ask() == []
    assert len(bench.asked) == 1


def test_passing_troubles_are_asked_about_ever_more_rarely(bench: Bench) -> None:
    pauses = []
    for _ in range(8):
        got = bench.ask()
        bench.entra_says(DOWN)
        pause = failure(got).retry_after_s
        assert pause is not None
        pauses.append(pause)
        bench.clock.advance(pause)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    bench.ask()
    bench.entra_says()
    bench.cache.drop(WHO.fingerprint(), jwt(1))
    bench.clock.advance(60)
    got = bench.ask()
    bench.entra_says(DOWN)
    assert failure(got).retry_after_s == 1  # a success ends the row


@pytest.mark.parametrize(("wish", "pause"), [(47.0, 47.0), (3600.0, 3600.0), (0.0, 1.0)])
def test_retry_after_is_obeyed(bench: Bench, wish: float, pause: float) -> None:
    got = bench.ask()
    bench.entra_says(TokenUnavailable("throttled", "wait", configuration=False, retry_after_s=wish))
    assert failure(got).retry_after_s == pause
    bench.clock.advance(pause - 0.5)
    bench.ask()
    assert not bench.asked


def test_retry_after_is_obeyed_in_the_background_too(bench: Bench) -> None:
    bench.have_token(3600)
    bench.later(2880)
    bench.entra_says(
        TokenUnavailable("throttled", "wait", configuration=False, retry_after_s=300.0)
    )
    bench.later(299)
    assert not bench.asked
    bench.later(1)
    assert bench.asked


def test_a_changed_secret_has_no_past(bench: Bench) -> None:
    bench.ask()
    bench.entra_says(WRONG)
    mended = dataclasses.replace(WHO, secret=Secret("s2"))
    got = bench.ask(mended)
    assert bench.asked[0][0] == mended
    bench.entra_says()
    assert isinstance(got[0], Token)
    assert got[0].fingerprint == mended.fingerprint()


def test_a_changed_secret_never_gets_the_old_token(bench: Bench) -> None:
    bench.have_token()
    assert bench.ask(dataclasses.replace(WHO, secret=Secret("s2"))) == []


def test_an_operators_refresh_asks_at_once(bench: Bench) -> None:
    bench.ask()
    bench.entra_says(WRONG)
    got = bench.refresh()
    assert len(bench.asked) == 1
    bench.entra_says()
    assert isinstance(got[0], Token)


def test_an_operators_refresh_begins_the_pauses_anew(bench: Bench) -> None:
    for _ in range(5):
        bench.refresh()
        bench.entra_says(DOWN)
    assert failure(bench.ask()).retry_after_s == 1


def test_an_operators_refresh_replaces_a_good_token_too(bench: Bench) -> None:
    token = bench.have_token()
    got = bench.refresh()
    bench.entra_says()
    assert isinstance(got[0], Token)
    assert got[0] != token
    assert bench.ask() == got


def test_an_operators_refresh_joins_a_question_under_way(bench: Bench) -> None:
    first, second = bench.ask(), bench.refresh()
    assert len(bench.asked) == 1
    bench.entra_says()
    assert first == second


def test_what_an_operator_forgets_is_asked_for_at_the_next_question(bench: Bench) -> None:
    assert bench.cache.forget(WHO) is False
    bench.have_token()
    assert bench.cache.forget(WHO) is True
    bench.ask()
    assert len(bench.asked) == 1


def test_forgetting_ends_the_pause_after_a_failure(bench: Bench) -> None:
    bench.ask()
    bench.entra_says(WRONG)
    assert bench.cache.forget(WHO) is False
    bench.ask()
    assert len(bench.asked) == 1


def test_only_the_refused_token_is_dropped(bench: Bench) -> None:
    old = bench.have_token()
    bench.refresh()
    bench.entra_says()
    (new,) = bench.ask()
    bench.cache.drop(WHO.fingerprint(), old.value)
    assert bench.ask() == [new]
    bench.cache.drop("unknown", old.value)
    assert bench.ask() == [new]


def test_a_dropped_token_is_replaced_at_once_when_it_was_not_new(bench: Bench) -> None:
    token = bench.have_token()
    bench.clock.advance(31)
    bench.cache.drop(WHO.fingerprint(), token.value)
    assert bench.ask() == []
    assert len(bench.asked) == 1


def test_a_new_token_that_graph_refuses_is_no_reason_to_storm_entra(bench: Bench) -> None:
    token = bench.have_token()
    bench.clock.advance(1)
    bench.cache.drop(WHO.fingerprint(), token.value)
    why = failure(bench.ask())
    assert (why.cause, why.retry_after_s) == ("token-refused", 29)
    assert not bench.asked
    bench.clock.advance(29)
    bench.ask()
    assert bench.asked


def test_askers_do_not_wait_for_a_name_lookup_that_hangs(bench: Bench) -> None:
    got = bench.ask()
    bench.later(17.9)
    assert got == []
    bench.later(0.2)
    assert failure(got).cause == "entra-unreachable"
    assert failure(bench.ask()).configuration is False
    assert len(bench.asked) == 1  # the hanging one is not joined by another
    bench.entra_says()  # it comes in the end, and is welcome
    assert isinstance(bench.ask()[0], Token)
    assert len(got) == 1


def test_a_refresh_while_a_question_hangs_asks_anew(bench: Bench) -> None:
    bench.ask()
    bench.later(20)
    got = bench.refresh()
    assert len(bench.asked) == 2
    bench.entra_says(DOWN)  # the old one
    assert got == []
    bench.entra_says()
    assert isinstance(got[0], Token)


def test_what_nobody_wants_is_not_refreshed_and_then_forgotten(bench: Bench) -> None:
    bench.have_token(3600)
    bench.cache.left(1)
    bench.later(599)
    assert bench.cache.states() == ()
    assert bench.forgotten == []
    bench.later(1)
    assert bench.forgotten == [WHO.fingerprint()]
    assert bench.ask() == []


def test_a_worker_that_comes_back_in_time_finds_its_token(bench: Bench) -> None:
    token = bench.have_token(3600)
    bench.cache.left(1)
    bench.later(300)
    assert bench.ask(asker=2) == [token]
    bench.later(2700)
    assert len(bench.asked) == 1


def test_what_another_still_wants_is_kept(bench: Bench) -> None:
    bench.have_token(3600)
    bench.ask(asker=2)
    bench.cache.left(1)
    bench.later(2880)
    assert len(bench.asked) == 1


def test_the_state_tells_everything_but_secrets(bench: Bench) -> None:
    token = bench.have_token(3600)
    (state,) = bench.cache.states()
    assert state.upstreams == ("contoso",)
    assert state.expires_in_s == 3600
    assert state.roles == ("Mail.Send",)
    assert state.cause == ""
    assert token.value not in repr(state)
    assert "s1" not in repr(state)


def test_a_fetched_token_does_not_show_itself() -> None:
    assert "hush" not in repr(Fetched("hush", 1.0))
