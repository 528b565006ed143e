"""Durations and sizes: what is taken, what is not, and that shown values read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config.units import BadUnit, octets, seconds, show_octets, show_seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("8s", 8),
        ("250ms", 0.25),
        ("5m", 300),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("5d", 432_000),
        ("2w", 1_209_600),
        ("1.5s", 1.5),
        (" 5m ", 300),
    ],
)
def test_a_duration_is_read_in_seconds(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    "text", ["", " ", "5", "5 minutes", "m", "-5m", "1h30", "1e3s", "5M", "\u0665s"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadUnit, match="write"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("3000000", 3_000_000),
        ("35MB", 35_000_000),
        ("35MiB", 36_700_160),
        ("35 mib", 36_700_160),
        ("1.5kB", 1500),
        ("64KiB", 65_536),
        ("1GB", 10**9),
        ("1GiB", 2**30),
        ("12B", 12),
    ],
)
def test_a_size_is_read_in_octets(text: str, value: int) -> None:
    assert octets(text) == value


@pytest.mark.parametrize("text", ["", "MB", "-1", "1TB", "35 M B", "1e6", "0x10", "35Mbit"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadUnit, match="write"):
        octets(text)


@given(st.integers(0, 10**9))
def test_a_shown_duration_reads_back(milliseconds: int) -> None:
    assert seconds(show_seconds(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (35_000_000, "35MB"), (36_700_160, "35MiB"), (2**30, "1GiB"), (10**9, "1GB")]
    + [(2_983_616, "3.0MB"), (65_536, "65536")],
)
def test_a_size_is_shown_as_one_would_write_it(value: int, shown: str) -> None:
    assert show_octets(value) == shown
