"""Settings that name addresses are compiled, or complained of with words."""

from __future__ import annotations

from relayd.access.patterns import address_problems, compiled, pattern_problems
from relayd.message.address import Address


def test_a_list_is_compiled_once() -> None:
    assert compiled(("*@b",)) is compiled(("*@b",))
    assert compiled(("*@b",)).matches(Address("a", "b"))


def test_problems_name_place_value_and_remedy() -> None:
    (problem,) = address_problems('[[device]] "ups" from', "ups")
    assert problem == (
        '[[device]] "ups" from: "ups" is no address (it has no domain); write "alerts@example.com"'
    )
    (problem,) = pattern_problems("[upstream.x] own_domains", ["ok.example", "a b"])
    assert problem.startswith("[upstream.x] own_domains: 'a b' is no address and no pattern")


def test_what_is_not_set_is_fine() -> None:
    assert address_problems("x", "") == []
    assert pattern_problems("x", ["*", "a@b", "b.example"]) == []
