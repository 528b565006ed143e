"""A value changes where it stands; all the rest of somebody's file stays, or it is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.cli.tomledit import CannotEdit, Change, changed, render, value_at

PACKAGED = (Path(__file__).parents[3] / "conf/relayd.toml").read_text()
UPSTREAM = ("upstream", "fabrikam")
KEYS = ("tenant", "client_id", "client_secret_file", "mailbox", "cloud")


def lines_of(before: str, after: str) -> list[str]:
    """Return the lines of `after` that `before` does not have."""
    return [line for line in after.splitlines() if line not in before.splitlines()]


def test_in_the_packaged_file_the_examples_are_filled_in_where_they_stand() -> None:
    after = changed(PACKAGED, [Change(UPSTREAM, key, f"a-{key}") for key in KEYS])
    after = changed(after, [Change(("listener", 0), "address", ["0.0.0.0:25", "[::]:25"])])
    after = changed(after, [Change(("cloud", "lab"), "ca_file", "/etc/ca.pem")])
    assert len(after.splitlines()) == len(PACKAGED.splitlines())
    new = lines_of(PACKAGED, after)
    assert [line.partition(" #")[0].rstrip() for line in new] == [
        "[upstream.fabrikam]",
        'tenant = "a-tenant"',
        'client_id = "a-client_id"',
        'client_secret_file = "a-client_secret_file"',
        'mailbox = "a-mailbox"',
        'cloud = "a-cloud"',
        'address = ["0.0.0.0:25", "[::]:25"]',
        "[cloud.lab]",
        'ca_file = "/etc/ca.pem"',
    ]
    assert new[4].endswith('# sends everything; "sender": the mailbox of From')
    assert new[1].index("# or the") == new[4].index("# sends") == new[5].index("# gcc-high")


def test_what_has_its_value_already_is_not_touched() -> None:
    text = 'a={b=1}\n[upstream.x]\n  tenant   =  "t" # mine\n'
    assert changed(text, [Change(("upstream", "x"), "tenant", "t")]) is text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[t]\nk = "old" # why\n', '[t]\nk = "new" # why\n'),
        ('[t]\nk = "o#d"    # why\n', '[t]\nk = "new"    # why\n'),
        ("[t]\nk = 'old'\nz = 1\n", '[t]\nk = "new"\nz = 1\n'),
        ("[t]\n  k = 1\n", '[t]\n  k = "new"\n'),
        ("[t]\nk = [ # these\n 1,\n 2]\nz = 1\n", '[t]\nk = "new"\nz = 1\n'),
        ('[t]\nk = """\nold\n[t]\n"""\n', '[t]\nk = "new"\n'),
        ('[t]\nz = 1\n# k = "old"  # why\n', '[t]\nz = 1\nk = "new"    # why\n'),
        ("[t]\nz = 1", '[t]\nk = "new"\nz = 1\n'),
        ("[t]\nz = 1\n[u]\nk = 1\n", '[t]\nk = "new"\nz = 1\n[u]\nk = 1\n'),
        ("[t]\nz = 1\n\n#[u]\n#k = 2\n", '[t]\nk = "new"\nz = 1\n\n#[u]\n#k = 2\n'),
        ("z = 1\n", 'z = 1\n\n[t]\nk = "new"\n'),
        ("", '[t]\nk = "new"\n'),
        # The example stands inside another table: uncovering it would take z from that one.
        ("[a]\n#[t]\n#k = 1\nz = 1\n", '[a]\n#[t]\n#k = 1\nz = 1\n\n[t]\nk = "new"\n'),
    ],
)
def test_a_value_is_replaced_uncovered_or_added(text: str, expected: str) -> None:
    assert changed(text, [Change(("t",), "k", "new")]) == expected


def test_rows_of_a_list_are_told_apart_and_one_can_follow() -> None:
    text = '[[d]]\nn = "a"\n[[d]]\nn = "b"\n'
    text = changed(text, [Change(("d", 1), "n", "B"), Change(("d", 2), "n", "c")])
    assert text == '[[d]]\nn = "a"\n[[d]]\nn = "B"\n\n[[d]]\nn = "c"\n'


@pytest.mark.parametrize(
    ("text", "table", "words"),
    [
        ("t = {k = 1}\n", ("t",), 'by hand: k = "new"'),
        ("[t]\nt.k = 1\n[u]\n", ("t", "t"), "line 2: k is written in a way"),
        ("t = 1\n", ("t",), "[t] is no table"),
        ("t = {z = 1}\n", ("t",), '[t] k has no place there; write it by hand: k = "new"'),
    ],
)
def test_what_is_not_understood_is_refused_with_the_line_to_write(
    text: str, table: tuple[str, ...], words: str
) -> None:
    with pytest.raises(CannotEdit) as caught:
        changed(text, [Change(table, "k", "new")])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ('[[upstream]]\nname = "contoso"\n', Change(("upstream", "contoso"), "tenant", "t")),
        ('upstream = "contoso"\n', Change(("upstream", "contoso"), "tenant", "t")),
        ("", Change(("listener", 1), "name", "lan")),
    ],
)
def test_a_table_of_another_kind_is_refused_in_words(text: str, change: Change) -> None:
    with pytest.raises(CannotEdit, match="is no table"):
        changed(text, [change])


def test_values_are_written_so_that_toml_reads_them_back() -> None:
    for value in ("", 'a"b\\', "ä \t", ["a", "b"], []):
        assert tomllib.loads(f"k = {render(value)}")["k"] == value
    assert value_at({"a": [{"b": 1}]}, ("a", 0, "b")) == 1
    assert value_at({"a": 1}, ("a", "b")) is None


@given(
    st.sampled_from(["tenant", "mailbox", "new"]),
    st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), max_size=30),
    st.sampled_from(["fabrikam", "contoso", "with space"]),
)
def test_the_packaged_file_changes_by_that_one_value(key: str, value: str, name: str) -> None:
    wanted = tomllib.loads(PACKAGED)
    wanted.setdefault("upstream", {}).setdefault(name, {})[key] = value
    assert tomllib.loads(changed(PACKAGED, [Change(("upstream", name), key, value)])) == wanted
