"""A step is a value of four kinds."""

from __future__ import annotations

from relayd.doctor.steps import State, ok, problem, skipped, warning


def test_each_kind_says_how_it_went() -> None:
    assert ok("dns", "found").state is State.OK
    assert warning("tls", "opened", "do").state is State.WARNING
    assert problem("tcp", "nobody").state is State.PROBLEM
    assert skipped("token", "dns comes first").state is State.SKIPPED


def test_commands_are_kept_in_their_order() -> None:
    step = problem("secret", "no", "do this:", ["chown x", "chmod y"])
    assert (step.do, step.commands) == ("do this:", ("chown x", "chmod y"))
    assert ok("dns", "found").commands == ()
