"""Codes are explained; unknown ones are judged by their OAuth error, else not at all."""

from __future__ import annotations

import pytest

from relayd.identity.aadsts import AADSTS, ERRORS, OWN, Kind, explain, judge


@pytest.mark.parametrize("code", ["7000215", "AADSTS7000215", " aadsts7000215 "])
def test_a_code_is_found_however_it_is_typed(code: str) -> None:
    meaning = explain(code)
    assert meaning is not None
    assert meaning.kind is Kind.CONFIGURATION
    assert "Secret ID" in meaning.action


def test_an_oauth_error_is_explained_too() -> None:
    assert explain("invalid_client") is ERRORS["invalid_client"]


def test_what_nobody_knows_has_no_meaning() -> None:
    assert explain("AADSTS1") is None
    assert judge((), "") is None
    assert judge(("1",), "news") is None


def test_our_own_codes_are_explained_and_judge_no_answer_of_entras() -> None:
    assert explain("Entra-Unreachable") is OWN["entra-unreachable"]
    assert all(judge((), code) is None for code in OWN)
    assert not set(OWN) & (set(AADSTS) | set(ERRORS))


def test_the_code_counts_for_more_than_the_error() -> None:
    assert judge(("1", "90033"), "invalid_client") is AADSTS["90033"]


def test_an_unknown_code_is_judged_by_its_error() -> None:
    assert judge(("1",), "invalid_client") is ERRORS["invalid_client"]


def test_every_row_says_what_it_means_and_what_to_do_in_plain_words() -> None:
    for code, meaning in [*AADSTS.items(), *ERRORS.items(), *OWN.items()]:
        for words in (meaning.meaning, meaning.action):
            assert words, code
            assert not words.endswith("."), code
            assert words.isascii(), code


def test_what_passes_by_itself_is_not_the_administrators() -> None:
    for code in ("90033", "50033", "90006", "90012", "90024", "90090", "50087", "90055"):
        assert AADSTS[code].kind is Kind.TRANSIENT
    for code in ("900144", "50196"):
        assert AADSTS[code].kind is Kind.BUG
