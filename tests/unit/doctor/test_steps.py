"""A step is a value of four kinds."""

from __future__ import annotations

import pytest

from relayd.deliver import catalogue
from relayd.doctor.steps import State, ok, problem, skipped, warning
from relayd.identity import aadsts


def test_each_kind_says_how_it_went() -> None:
    assert ok("dns", "found").state is State.OK
    assert warning("tls", "opened", "do").state is State.WARNING
    assert problem("tcp", "nobody").state is State.PROBLEM
    assert skipped("token", "dns comes first").state is State.SKIPPED


def test_commands_are_kept_in_their_order() -> None:
    step = problem("secret", "no", "do this:", ["chown x", "chmod y"])
    assert (step.do, step.commands) == ("do this:", ("chown x", "chmod y"))
    assert ok("dns", "found").commands == ()


@pytest.mark.parametrize(
    ("advice", "here"),
    [
        (
            "Check the way out (port 443, route), step by step: relayd doctor",
            "Check the way out (port 443, route)",
        ),
        ("Check the name server: relayd doctor", "Check the name server"),
        ("Give it (relayd doctor prints the commands), then wait.",
         "Give it (the commands stand here), then wait."),
        ("relayd doctor says whose certificate it is.",
         "The other steps say whose certificate it is."),
        ("sudo relayd doctor contoso", "sudo relayd doctor contoso"),
    ],
)  # fmt: skip
def test_an_advice_of_everybodys_does_not_send_to_doctor_from_doctor(
    advice: str, here: str
) -> None:
    assert problem("relay", "x", advice).do == here
    assert warning("relay", "x", advice).do == here


def test_no_advice_of_the_tables_sends_to_doctor_from_doctor() -> None:
    tables = [row.advice for row in catalogue.ENTRIES]
    tables += [one.action for one in (*aadsts.AADSTS.values(), *aadsts.OWN.values())]
    assert any("relayd doctor" in advice for advice in tables)
    assert [text for one in tables if "relayd doctor" in (text := problem("x", "", one).do)] == []
