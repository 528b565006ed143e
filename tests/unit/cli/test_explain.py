"""Every code relayd or Microsoft says is explained, as it stands in a log."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd import errors
from relayd.cli.explain import SMTP, meanings
from relayd.deliver import catalogue
from relayd.identity import aadsts
from relayd.smtp import replies
from tests.control_socket import relayd

REFUSALS = [
    f"{reply.code} {reply.enhanced}"
    for reply in vars(replies).values()
    if isinstance(reply, replies.Reply) and reply.code >= 400
] + [f"{one.code} {one.enhanced}" for one in vars(errors).values() if hasattr(one, "enhanced")]


@pytest.mark.parametrize("reply", sorted(set(REFUSALS)))
def test_every_refusal_a_device_can_hear_is_explained(reply: str) -> None:
    assert reply in SMTP
    assert [name for name, _, _ in meanings(reply)] == [reply]


@pytest.mark.parametrize("reply", sorted(set(SMTP)))
def test_nothing_is_explained_that_no_device_hears(reply: str) -> None:
    assert reply in REFUSALS


@pytest.mark.parametrize("reply", sorted(SMTP))
def test_each_explanation_says_what_to_do(reply: str) -> None:
    meaning, action = SMTP[reply]
    assert meaning
    assert action
    assert not meaning.endswith(".")
    assert not action.endswith(".")


def test_every_code_of_the_tables_is_explained() -> None:
    assert all(meanings(f"AADSTS{code}") for code in aadsts.AADSTS)
    assert all(meanings(code) for code in aadsts.ERRORS)
    assert all(meanings(row.code) for row in catalogue.ENTRIES if row.code)
    assert all(meanings(str(row.status)) for row in catalogue.ENTRIES if row.status)


@pytest.mark.parametrize(
    ("pasted", "names"),
    [
        ("AADSTS7000215", ["AADSTS7000215"]),
        ("7000215", ["AADSTS7000215"]),
        ("cause=aadsts7000215 text=x", ["AADSTS7000215"]),
        ("AADSTS7000215: Invalid client secret provided.", ["AADSTS7000215"]),
        ("invalid_client", ["invalid_client"]),
        ("erroraccessdenied", ["ErrorAccessDenied"]),
        ("429", ["HTTP 429"]),
        ("HTTP 429", ["HTTP 429"]),
        ("500", ["HTTP 500", "500 5.5.2", "500 5.5.6"]),
        ("550 5.7.1", ["550 5.7.1"]),
        ("550 5.7.1 Relaying denied", ["550 5.7.1"]),
        ("550-5.7.1 Relaying denied", ["550 5.7.1"]),
        ("5.1.7", ["501 5.1.7"]),
        ("550", ["550 5.5.2", "550 5.7.1"]),
        (" 530 ", ["530 5.7.0"]),
        ("dns-failed", ["dns-failed"]),
        ("entra-unreachable", ["entra-unreachable"]),
        ("Ambiguous", ["ambiguous"]),
        ("400", ["HTTP 400"]),
        ("HTTP 418", ["HTTP 418"]),
        ("999", []),
        ("", []),
        ("0", []),
        ("5.7", []),
        ("AADSTS99999999", []),
    ],
)
def test_codes_are_known_as_they_stand_in_logs(pasted: str, names: list[str]) -> None:
    assert [name for name, _, _ in meanings(pasted)] == names


@given(text=st.text())
def test_nothing_pasted_breaks_it(text: str) -> None:
    meanings(text)


def test_an_explanation_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayd("explain", "550", "5.7.1") == 0
    out = capsys.readouterr().out
    assert out.startswith("550 5.7.1: this device may not send to that recipient")
    assert "\n  do: " in out


def test_a_status_that_needs_its_code_names_the_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayd("explain", "HTTP", "400") == 0
    assert "the code beside it says more: ErrorMimeContent" in capsys.readouterr().out


def test_of_two_codes_both_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayd("explain", "ErrorAccessDenied", "AADSTS7000215") == 0
    out = capsys.readouterr().out
    assert "ErrorAccessDenied: " in out
    assert out.count("AADSTS7000215: ") == 1


def test_where_only_waiting_helps_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayd("explain", "send-interrupted") == 0
    assert "do: Nothing: relayd tries again by itself." in capsys.readouterr().out
    assert relayd("explain", "no-answer") == 0
    assert "do: Nothing: `ambiguous` of the upstream says" in capsys.readouterr().out


def test_numbers_side_by_side_are_explained_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayd("explain", "429", "503") == 0
    assert re.findall(r"(?m)^HTTP \d+", capsys.readouterr().out) == ["HTTP 429", "HTTP 503"]
    assert relayd("explain", "429", "503", "nonsense") == 1


def test_a_reply_of_two_words_is_one_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayd("explain", "550", "5.7.1", "Recipient", "not", "allowed") == 0
    assert re.findall(r"(?m)^\d{3} \S+", capsys.readouterr().out) == ["550 5.7.1:"]
    assert relayd("explain", "550", "5.7.1") == 0
    assert re.findall(r"(?m)^\d{3} \S+", capsys.readouterr().out) == ["550 5.7.1:"]


def test_several_meanings_are_apart(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayd("explain", "550") == 0
    assert len(re.findall(r"(?m)^550 ", capsys.readouterr().out)) == 2


def test_a_meaning_without_advice_is_only_a_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayd("explain", "HTTP", "202") == 0
    assert "do:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("AADSTS99999999", "https://login.microsoftonline.com/error?code=99999999"),
        ("NeverHeardOf", "'NeverHeardOf' is not known here; it takes AADSTS numbers"),
    ],
)
def test_an_unknown_code_says_where_to_look(
    code: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert relayd("explain", code) == 1
    assert words in capsys.readouterr().err


def test_as_json_it_is_an_array(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayd("--json", "explain", "5.1.7") == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "code": "501 5.1.7",
            "meaning": "a sender address that cannot be read",
            "do": "correct it in the device",
        }
    ]
    assert relayd("--json", "explain", "NeverHeardOf") == 1
    assert json.loads(capsys.readouterr().out) == []
