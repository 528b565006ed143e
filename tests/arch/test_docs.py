"""The documents say what the code says: settings, events, metrics, the shipped file.

docs/settings.md has a table for each table of relayd.toml, `| key | type | default | meaning |`;
type and default are compared with the model, key by key, in both directions.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from pathlib import Path

import pytest

from relayd.config import later, units
from relayd.config.build import convert, key_of, keys_of
from relayd.config.codec import hints
from relayd.config.model import (
    Admin,
    Cloud,
    Config,
    Device,
    Http,
    Limits,
    Listener,
    Log,
    RateLimits,
    Secret,
    Server,
    Spool,
    Submitter,
    TlsSettings,
    Upstream,
    User,
)
from relayd.observe.events import EVENTS
from relayd.observe.metrics import METRICS

ROOT = Path(__file__).parent.parent.parent
SETTINGS = (ROOT / "docs/settings.md").read_text()

TABLES: dict[str, type[object]] = {
    "[server]": Server,
    "[[listener]]": Listener,
    "[tls]": TlsSettings,
    "[limits]": Limits,
    "[spool]": Spool,
    "[upstream.NAME]": Upstream,
    "[[device]]": Device,
    "[[user]]": User,
    "limits of a device or user": RateLimits,
    "[cloud.NAME]": Cloud,
    "[http]": Http,
    "[admin]": Admin,
    "[log]": Log,
}
"""Heading in docs/settings.md -> class of the model."""

AUTO = {("[server]", "workers"), ("[limits]", "max_message_size")}
NAMED_BY_HEADER = {Upstream, Cloud}


def documented(heading: str) -> dict[str, tuple[str, str, str]]:
    """Return key -> (type, default, meaning) of the table under a heading."""
    section = re.search(
        rf"^## `?{re.escape(heading)}`?\n(.*?)(?=^## |\Z)", SETTINGS, re.MULTILINE | re.DOTALL
    )
    assert section, f"docs/settings.md has no section {heading}"
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+) \|$", section[1], re.MULTILINE)
    return {key: (kind, default, meaning) for key, kind, default, meaning in rows}


def fields(row: type[object]) -> dict[str, tuple[object, dataclasses.Field[object]]]:
    kinds = hints(row)
    every = dataclasses.fields(typing.cast("type[typing.Any]", row))
    return {
        key_of(field.name): (kinds[field.name], field)
        for field in every
        if not (row in NAMED_BY_HEADER and field.name == "name")
        # What a user shares with a device is documented there.
        and not (row is User and field.name in hints(Submitter) and field.name != "name")
    }


def shown_type(kind: object) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return str(args[1])
    if origin is tuple:
        return f"list of {shown_type(args[0])}s"
    if origin is typing.Literal:
        return ", ".join(f"`{each}`" for each in args if each)
    if kind is RateLimits:
        return "table"
    return {str: "text", int: "number", bool: "true or false", Secret: "secret"}[
        typing.cast("type[object]", kind)
    ]


def shown_default(heading: str, key: str, kind: object, field: dataclasses.Field[object]) -> str:
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "required"
    if (heading, key) in AUTO:
        return '`"auto"`'
    value = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if typing.get_origin(kind) is typing.Annotated:
        measure = typing.get_args(kind)[1]
        text = units.show_seconds(value) if measure == "duration" else units.show_octets(value)  # type: ignore[arg-type]  # by its mark
        return f'`"{text}"`'
    if isinstance(value, tuple):
        inner = typing.get_args(kind)[0]
        if value and typing.get_origin(inner) is typing.Annotated:
            return "`[" + ", ".join(f'"{units.show_seconds(each)}"' for each in value) + "]`"
        return "`[]`"
    if isinstance(value, int):
        return f"`{value}`"
    return f'`"{value}"`' if isinstance(value, str) and value else "none"


def setting_rows(heading: str) -> dict[str, tuple[str, str]]:
    """Return key -> (type, default) as the model has them."""
    return {
        key: (shown_type(kind), shown_default(heading, key, kind, field))
        for key, (kind, field) in fields(TABLES[heading]).items()
    }


@pytest.mark.parametrize("heading", TABLES)
def test_settings_have_the_models_keys_types_and_defaults(heading: str) -> None:
    said = {key: row[:2] for key, row in documented(heading).items() if key in keys_now(heading)}
    assert said == setting_rows(heading)


def keys_now(heading: str) -> set[str]:
    extra = later.KEYS.get(TABLES[heading], {})
    return set(documented(heading)) - set(extra)


@pytest.mark.parametrize("heading", TABLES)
def test_settings_have_the_keys_that_come_later(heading: str) -> None:
    row = TABLES[heading]
    said = documented(heading)
    assert set(later.KEYS.get(row, {})) <= set(said)
    for each in row.__mro__:
        for key in (*later.VALUES.get(each, {}), *later.KEYS.get(each, {})):
            if key_of(key) in said:
                assert "not available yet" in said[key_of(key)][2], key


@pytest.mark.parametrize("table", sorted(later.TABLES))
def test_tables_that_come_later_are_documented(table: str) -> None:
    section = SETTINGS.partition("## Not available yet")[2]
    row = re.search(rf"^\| `\[+{re.escape(table)}\]+` \| (.*?) \|", section, re.MULTILINE)
    assert row, table
    said = set(re.findall(r"`(\w+)`", row[1]))
    assert said == {key for key in later.TABLES[table] if f"{table}.{key}" not in later.TABLES}


def test_every_table_of_the_model_is_documented() -> None:
    known = {re.sub(r"[\[\]]|\.NAME", "", heading) for heading in TABLES}
    assert set(hints(Config)) - {"source"} <= known


def test_examples_in_the_settings_are_toml() -> None:
    examples = re.findall(r"^```toml\n(.*?)^```", SETTINGS, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 10
    for example in examples:
        tomllib.loads(example)


def test_the_shipped_file_mentions_every_key() -> None:
    said: dict[str, set[str]] = {}
    table = ""
    for line in (ROOT / "conf/relayd.toml").read_text().splitlines():
        if header := re.match(r"#?\[+([\w.]+)\]+", line):
            table = header[1].split(".")[0]
        elif key := re.match(r"#?(\w+) = ", line):
            said.setdefault(table, set()).add(key[1])
    for heading, row in TABLES.items():
        if row in {RateLimits, Admin}:
            continue
        table = re.sub(r"[\[\]]|\.NAME", "", heading)
        shared = set(hints(Submitter)) if row is User else set()
        wanted = {
            key
            for key in keys_of(row)
            if not key.endswith(("_file", "_env", "_credential")) or key.startswith(("ca_", "cert"))
        } - {key_of(field) for field in shared}
        forms = {key.removesuffix("_file") for key in said[table]}
        assert wanted <= said[table] | forms | {"name"}, heading


def test_values_of_the_shipped_file_are_the_defaults() -> None:
    text = (ROOT / "conf/relayd.toml").read_text()
    for heading in ("[server]", "[limits]", "[spool]", "[http]", "[log]"):
        section = re.search(rf"(?ms)^{re.escape(heading)}\n(.*?)\n\n", text + "\n\n")
        assert section, heading
        values = tomllib.loads(re.sub(r"^#", "", section[1], flags=re.MULTILINE))
        for key, (kind, field) in fields(TABLES[heading]).items():
            if key in values and values[key] not in ("auto", "") and kind is not Secret:
                assert convert(kind, values[key]) == field.default, key


def test_the_log_document_has_every_event() -> None:
    text = (ROOT / "docs/logs.md").read_text()
    rows = re.findall(r"(?m)^\| `([a-z_]+\.[a-z_]+)` \| (.+?) \|$", text)
    assert dict(rows) == dict(EVENTS)
    assert [name for name, _ in rows] == sorted(EVENTS)


def test_the_metrics_document_has_every_metric() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(relayd_\w+)` \| (\w+) \| (.*?) \| (.+) \|$", text, re.MULTILINE)
    said = {name: (kind, labels.replace("`", ""), words) for name, kind, labels, words in rows}
    assert said == {
        name: (each.kind, ", ".join(each.labels) or "-", each.help)
        for name, each in METRICS.items()
    }
