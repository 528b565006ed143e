"""A line is one line, whatever a peer put into it, and reads back as what was logged."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.observe import logfmt

MOMENT = datetime(2026, 11, 20, 10, 0, 0, 123456, tzinfo=UTC)


def line(**fields: object) -> str:
    return logfmt.render("message.sent", fields, level="info", moment=MOMENT)


def test_the_event_comes_first_then_level_fields_and_moment() -> None:
    assert line(id="8ZK3", upstream="contoso", bytes=12) == (
        "message.sent level=info id=8ZK3 upstream=contoso bytes=12 ts=2026-11-20T10:00:00.123Z"
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain-text/1.0", "plain-text/1.0"),
        ("", '""'),
        ("two words", '"two words"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("a=b", '"a=b"'),
        ("back\\slash", '"back\\\\slash"'),
        ("line\r\nforged.event", '"line\\r\\nforged.event"'),
        ("tab\there", '"tab\\there"'),
        ("\x1b[31mred", '"\\x1b[31mred"'),
        ("\u202egnp.exe", '"\\u202egnp.exe"'),
        ("caf\u00e9", '"caf\u00e9"'),
        ("\U000e0041", '"\\U000e0041"'),
        ("\udcff", '"\\udcff"'),
        (b"octets\xff\n", '"octets\\\\xff\\n"'),
        (True, "true"),
        (False, "false"),
        (3, "3"),
        (0.034567, "0.035"),
        (("a", "b"), "a,b"),
        (["one two"], '"one two"'),
        (MOMENT, "2026-11-20T10:00:00.123Z"),
        (OSError(2, "No such file"), '"FileNotFoundError: [Errno 2] No such file"'),
        (KeyError(), "KeyError"),
        ({"a": 1}, "\"{'a': 1}\""),
    ],
)
def test_a_value_is_shown_so_that_it_stays_in_its_place(value: object, shown: str) -> None:
    assert line(x=value) == f"message.sent level=info x={shown} ts=2026-11-20T10:00:00.123Z"


def test_none_is_left_out() -> None:
    assert line(x=None, y=1) == "message.sent level=info y=1 ts=2026-11-20T10:00:00.123Z"


def test_a_key_cannot_break_the_line_either() -> None:
    assert " a_b_c=1 " in line(**{"a b\nc": 1})
    assert " _=1 " in line(**{"": 1})


def test_values_are_bounded() -> None:
    assert len(line(x="a" * 100_000)) < 600
    assert len(line(x=["a" * 400] * 1000)) < 600
    assert len(line(x=b"a" * 100_000)) < 600
    assert "30 in all" in line(x=list(range(30)))
    assert line(x="a" * 500, y="b" * 501).count("…") == 1


def test_a_traceback_keeps_its_end() -> None:
    shown = line(traceback="x" * 20_000 + "ValueError: the reason")
    assert "ValueError: the reason" in shown
    assert len(shown) < 8_200


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_moment_is_told_as_the_library_tells_it(moment: datetime) -> None:
    assert logfmt.stamp(moment) == moment.isoformat(timespec="milliseconds")[:-6] + "Z"


def test_moments_are_told_in_utc() -> None:
    east = MOMENT.astimezone(timezone(timedelta(hours=5)))
    assert logfmt.stamp(east) == "2026-11-20T10:00:00.123Z"


def test_json_has_the_same_fields_and_keeps_numbers() -> None:
    row = json.loads(
        logfmt.render_json(
            "message.sent",
            {"id": "8ZK3", "bytes": 12, "ok": True, "why": None, "helo": "\x1b\n\udcff"},
            level="info",
            moment=MOMENT,
        )
    )
    assert row == {
        "event": "message.sent",
        "level": "info",
        "ts": "2026-11-20T10:00:00.123Z",
        "id": "8ZK3",
        "bytes": 12,
        "ok": True,
        "why": None,
        "helo": "\x1b\n\udcff",
    }


def test_the_console_has_colours_only_when_asked() -> None:
    fields = {"helo": "\x1b[2J", "none": None}
    plain = logfmt.render_console("session.opened", fields, level="info", moment=MOMENT)
    tinted = logfmt.render_console(
        "session.opened", fields, level="error", moment=MOMENT, colours=True
    )
    assert "\x1b" not in plain
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d\.123 info    session\.opened       helo="\\x1b\[2J"', plain
    )
    assert tinted.count("\x1b") == 4
    assert '"\\x1b[2J"' in tinted


ANY = st.text() | st.binary() | st.integers() | st.floats() | st.booleans() | st.text('\x1b\n"\\= ')


@given(st.dictionaries(st.text(max_size=10), ANY, max_size=5))
def test_whatever_is_logged_is_one_printable_line_in_every_form(fields: dict[str, object]) -> None:
    for render in (logfmt.render, logfmt.render_json, logfmt.render_console):
        shown = render("x.y", fields, level="info", moment=MOMENT)
        assert shown.isprintable()
        assert len(shown.splitlines()) == 1


@given(st.dictionaries(st.text(max_size=10), ANY, max_size=5))
def test_a_line_looked_at_as_a_whole_is_the_line_looked_at_field_by_field(
    fields: dict[str, object],
) -> None:
    shown = "".join(
        f" {logfmt._key(name)}={logfmt.quote(logfmt.text(value))}" for name, value in fields.items()
    )

    assert line(**fields) == f"message.sent level=info{shown} ts=2026-11-20T10:00:00.123Z"


@given(st.text(max_size=300))
def test_a_quoted_value_ends_where_it_ought_to(text: str) -> None:
    shown = logfmt.quote(text)
    if shown.startswith('"'):
        assert re.fullmatch(r'"(?:[^"\\]|\\.)*"', shown)
    else:
        assert shown == text
        assert not set(shown) & set(' ="\\')
