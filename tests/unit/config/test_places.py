"""Lines of keys: the scan agrees with tomllib on what there is."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from relayd.config.places import Path, Place, find_lines

TEXT = '''# comment with [brackets] and key = "x"
top = 1
[server]            # the server
hostname = "a # no comment [x]"
"quoted key" = 'lit # eral'
dotted.inner . deep = 3

[[device]]
name = "ups"
networks = [        # a list [over] lines
  "10.0.0.1",
  # name = "not a key"
  "10.0.0.2",
]
limits = { per_minute = 30, on = "x" }
  [device.extra]
  a = 1
[[device]]
name = """
name = "still inside"
"""
text = \'\'\'
[not.a.table]
\'\'\'
after = true
[upstream.contoso]
tenant = "x"
[ upstream . "con toso" ]
tenant = 1979-05-27T07:32:00Z'''

WANTED: dict[Path, int] = {
    ("top",): 2,
    ("server",): 3,
    ("server", "hostname"): 4,
    ("server", "quoted key"): 5,
    ("server", "dotted", "inner", "deep"): 6,
    ("device", 0): 8,
    ("device", 0, "name"): 9,
    ("device", 0, "networks"): 10,
    ("device", 0, "limits"): 15,
    ("device", 0, "extra"): 16,
    ("device", 0, "extra", "a"): 17,
    ("device", 1): 18,
    ("device", 1, "name"): 19,
    ("device", 1, "text"): 22,
    ("device", 1, "after"): 25,
    ("upstream", "contoso"): 26,
    ("upstream", "contoso", "tenant"): 27,
    ("upstream", "con toso"): 28,
    ("upstream", "con toso", "tenant"): 29,
}


def test_every_key_and_header_is_found_on_its_line() -> None:
    tomllib.loads(TEXT)
    assert find_lines(TEXT) == WANTED


def test_windows_line_ends_count_as_lines() -> None:
    assert find_lines(TEXT.replace("\n", "\r\n")) == WANTED


def test_nothing_is_found_in_nothing() -> None:
    assert find_lines("") == {}
    assert find_lines("# only a comment") == {}
    assert find_lines("\n\n") == {}


@given(st.text(alphabet="ab=[]{}\"'#.\n \\,1", max_size=60))
def test_the_scan_ends_on_any_text(text: str) -> None:
    lines = find_lines(text)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def test_a_place_is_shown_as_file_and_line() -> None:
    assert str(Place("relayd.toml", 3)) == "relayd.toml:3"
    assert str(Place("relayd.toml")) == "relayd.toml"
