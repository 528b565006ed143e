"""Files become one tree; what cannot be read or merged is told with both places."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relayd.config.places import Place
from relayd.config.read import Problem, Tree, read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    return tmp_path


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def tree(folder: Path) -> Tree:
    made = read(str(folder / "relayd.toml"))
    made.found = [each.replace(f"{folder}/", "") for each in made.found]
    return made


def test_tables_merge_and_lists_of_tables_append_in_name_order(folder: Path) -> None:
    put(folder, "relayd.toml", '[server]\nworkers = 2\n[[device]]\nname = "a"\n')
    put(folder, "conf.d/20.toml", '[[device]]\nname = "c"\n')
    put(folder, "conf.d/10.toml", '[server]\nhostname = "h"\n[[device]]\nname = "b"\n')
    put(folder, "conf.d/.hidden.toml", "broken")
    put(folder, "conf.d/backup.toml~", "broken")
    made = tree(folder)
    assert not made.found
    assert made.data == {
        "server": {"workers": 2, "hostname": "h"},
        "device": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
    }


def test_every_key_keeps_its_own_place(folder: Path) -> None:
    put(folder, "relayd.toml", '[server]\nworkers = 2\n[[device]]\nname = "a"\n')
    put(folder, "conf.d/10.toml", '\n[[device]]\nname = "b"\nlimits = { x = 1 }\n')
    made = tree(folder)
    second = str(folder / "conf.d/10.toml")
    assert made.place(("server", "workers")).line == 2
    assert made.place(("device", 1, "name")) == Place(second, 3)
    assert made.place(("device", 1, "limits", "x")) == Place(second, 4)
    assert made.place(("device", 1, "missing")) == Place(second, 2)
    assert made.place(("device",)).line == 3
    assert made.place(("nothing",)) == Place(str(folder / "relayd.toml"))


def test_inline_tables_and_lists_of_them_have_places_too(folder: Path) -> None:
    put(folder, "relayd.toml", 'device = [{ name = "a" }, { name = "b" }]\n')
    made = tree(folder)
    assert made.place(("device", 1, "name")).line == 1


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        (
            "[server]\nworkers = 2\n",
            "[server]\nworkers = 2\n",
            "conf.d/10.toml:2: [server] workers: already set at relayd.toml:2; keep one of the two",
        ),
        (
            "[server]\nx = []\n",
            "[server]\nx = []\n",
            "conf.d/10.toml:2: [server] x: already set at relayd.toml:2; keep one of the two",
        ),
        (
            "[server]\nx = 1\n",
            "[server.x]\ny = 1\n",
            "conf.d/10.toml:1: [server] x: already set at relayd.toml:2; keep one of the two",
        ),
        (
            "[server]\nx = 1\n",
            "[[server.x]]\ny = 1\n",
            "conf.d/10.toml: [server] x: already set at relayd.toml:2; keep one of the two",
        ),
    ],
)
def test_a_value_set_twice_is_told_with_both_places(
    folder: Path, first: str, second: str, told: str
) -> None:
    put(folder, "relayd.toml", first)
    put(folder, "conf.d/10.toml", second)
    assert [each.replace(f"{folder}/", "") for each in tree(folder).found] == [told]


def test_every_file_that_cannot_be_read_is_told(folder: Path) -> None:
    (folder / "relayd.toml").mkdir()
    (folder / "conf.d/10.toml").write_bytes(b'a = "\xff"')
    put(folder, "conf.d/20.toml", "a = " + "[" * 5000)
    os.symlink("nowhere", folder / "conf.d/30.toml")
    assert [each.partition(" (")[0].partition(";")[0] for each in tree(folder).found] == [
        "relayd.toml: cannot be read",
        "conf.d/10.toml: not UTF-8 at octet 5",
        "conf.d/20.toml: not TOML: nested too deep",
        "conf.d/30.toml: cannot be read",
    ]


def test_a_file_that_is_not_there_says_where_to_get_one(tmp_path: Path) -> None:
    (told,) = read(str(tmp_path / "relayd.toml")).found
    assert "No such file" in told
    assert "--config" in told


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_says_who_may(folder: Path) -> None:
    put(folder, "relayd.toml", "")
    (folder / "relayd.toml").chmod(0)
    (folder / "conf.d").chmod(0)
    told = tree(folder).found
    (folder / "conf.d").chmod(0o700)
    assert "chmod 640" in told[0]
    assert "chmod 750" in told[1]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "relayd.toml").write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read(str(tmp_path / "relayd.toml")).data == {"a": 1}


def test_permissions_of_every_file_are_kept(folder: Path) -> None:
    put(folder, "relayd.toml", "")
    put(folder, "conf.d/10.toml", "")
    (folder / "relayd.toml").chmod(0o640)
    (folder / "conf.d/10.toml").chmod(0o604)
    assert list(tree(folder).modes.values()) == [0o640, 0o604]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a = b", "relayd.toml:1: not TOML: this is no value; "),
        ("a = 1 2", "relayd.toml:1: not TOML: something follows the value; "),
        ("\na", "relayd.toml:2: not TOML: "),
        ("a = 1\na = 2", "relayd.toml:2: not TOML: the key stands twice in this table; "),
        ("[a]\n[a]", "relayd.toml:2: not TOML: the table stands twice; "),
        ('a = "\\q"', "relayd.toml:1: not TOML: a single backslash; "),
        ("a = [1", "relayd.toml:1: not TOML: a list is not closed; "),
        ("[a", "relayd.toml:1: not TOML: a table's head is not closed; "),
        ("a.b = 1\na = 2", "relayd.toml:2: not TOML: "),
        ("a = 2000-13-01", "relayd.toml:1: not TOML: "),
    ],
)
def test_what_is_no_toml_is_told_in_our_words(folder: Path, text: str, told: str) -> None:
    put(folder, "relayd.toml", text)
    (said,) = tree(folder).found
    assert said.startswith(told)
    assert ";" in said


def test_a_path_is_shown_as_people_write_it() -> None:
    made = Tree(
        "f",
        data={
            "top": 1,
            "server": {"workers": 2},
            "device": [{"name": "ups", "limits": {"per_minute": 1}}, {}],
        },
    )
    assert made.where(("server",)) == "[server]"
    assert made.where(("server", "workers")) == "[server] workers"
    assert made.where(("device", 0)) == '[[device]] "ups"'
    assert made.where(("device", 0, "limits", "per_minute")) == '[[device]] "ups" limits.per_minute'
    assert made.where(("device", 1, "name")) == "[[device]] #2 name"
    assert made.where(("upstream", "contoso", "tenant")) == "[upstream.contoso] tenant"
    assert made.where(("top",)) == "top"
    assert made.where(()) == ""
    assert made.word(Problem((), "is empty; fill it")) == "f: is empty; fill it"
