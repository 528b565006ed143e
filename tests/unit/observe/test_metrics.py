"""Counting: cumulative, bounded, cheap to read; several processes' numbers become one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.observe import metrics
from relayd.observe.metrics import MAX_SERIES, METRICS, OTHER, Registry, lasting, merge


def test_a_counter_adds_up_for_each_combination_of_labels() -> None:
    registry = Registry()
    registry.count("relayd_messages_accepted_total", device="ups", upstream="contoso")
    registry.count("relayd_messages_accepted_total", device="ups", upstream="contoso")
    registry.count("relayd_messages_accepted_total", 3, device="nas", upstream="contoso")
    assert registry.snapshot() == {
        "relayd_messages_accepted_total": {"ups\tcontoso": 2, "nas\tcontoso": 3}
    }


def test_the_order_of_labels_does_not_matter() -> None:
    registry = Registry()
    registry.count("relayd_messages_accepted_total", device="ups", upstream="contoso")
    registry.count("relayd_messages_accepted_total", upstream="contoso", device="ups")
    assert registry.snapshot() == {"relayd_messages_accepted_total": {"ups\tcontoso": 2}}


def test_a_number_and_its_text_are_the_same_label() -> None:
    registry = Registry()
    registry.count("relayd_smtp_replies_total", code=250)
    registry.count("relayd_smtp_replies_total", code="250")
    assert registry.snapshot() == {"relayd_smtp_replies_total": {"250": 2}}


def test_a_gauge_is_set() -> None:
    registry = Registry()
    registry.gauge("relayd_connections", 5)
    registry.gauge("relayd_connections", 3)
    assert registry.snapshot() == {"relayd_connections": {"": 3}}


def test_a_histogram_sorts_into_the_bucket_whose_bound_is_not_below() -> None:
    registry = Registry()
    bounds = METRICS["relayd_accept_seconds"].buckets
    registry.observe("relayd_accept_seconds", bounds[0])
    registry.observe("relayd_accept_seconds", bounds[0] + 0.001)
    registry.observe("relayd_accept_seconds", bounds[-1] + 1)
    series = registry.snapshot()["relayd_accept_seconds"][""]
    assert isinstance(series, list)
    assert len(series) == len(bounds) + 2
    assert series[0] == pytest.approx(2 * bounds[0] + 0.001 + bounds[-1] + 1)
    assert (series[1], series[2], series[-1]) == (1, 1, 1)


def test_a_snapshot_is_a_copy_that_json_carries() -> None:
    registry = Registry()
    registry.observe("relayd_send_seconds", 1, upstream="contoso")
    before = registry.snapshot()
    registry.observe("relayd_send_seconds", 1, upstream="contoso")
    assert before != registry.snapshot()
    assert json.loads(json.dumps(before)) == before


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("relayd_no_such_total", {}),
        ("relayd_messages_sent_total", {}),
        ("relayd_messages_sent_total", {"upstrm": "contoso"}),
        ("relayd_connections", {}),
    ],
)
def test_what_the_table_does_not_have_cannot_be_counted(
    name: str, labels: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="metric table"):
        Registry().count(name, **labels)


def test_invented_label_values_end_in_one_series() -> None:
    registry = Registry()
    for number in range(MAX_SERIES + 50):
        registry.count("relayd_messages_sent_total", upstream=f"u{number}")
    registry.count("relayd_messages_sent_total", upstream="u0")
    series = registry.snapshot()["relayd_messages_sent_total"]
    assert len(series) == MAX_SERIES + 1
    assert series[OTHER] == 50
    assert series["u0"] == 2


def test_a_label_cannot_hide_a_tab_or_be_endless() -> None:
    registry = Registry()
    registry.count("relayd_messages_sent_total", upstream="a\tb" + "x" * 500)
    (key,) = registry.snapshot()["relayd_messages_sent_total"]
    assert "\t" not in key
    assert len(key) <= 80


def test_merging_adds_counters_and_keeps_the_gauge_as_its_row_says() -> None:
    one: metrics.Snapshot = {
        "relayd_messages_sent_total": {"a": 1},
        "relayd_connections": {"": 2},
        "relayd_queue_messages": {"READY\ta": 7},
        "relayd_spool_free_bytes": {"": 100},
    }
    two: metrics.Snapshot = {
        "relayd_messages_sent_total": {"a": 2, "b": 5},
        "relayd_connections": {"": 3},
        "relayd_queue_messages": {"READY\ta": 9},
        "relayd_spool_free_bytes": {"": 90},
        "relayd_from_a_newer_version": {"": 1},
    }
    assert merge([one, two]) == {
        "relayd_messages_sent_total": {"a": 3, "b": 5},
        "relayd_connections": {"": 5},
        "relayd_queue_messages": {"READY\ta": 9},
        "relayd_spool_free_bytes": {"": 90},
    }


def test_merging_leaves_what_it_was_given_alone() -> None:
    one: metrics.Snapshot = {"relayd_messages_sent_total": {"a": 1}}
    merge([one, one])
    assert one == {"relayd_messages_sent_total": {"a": 1}}


def test_histograms_of_another_version_are_not_mixed() -> None:
    old: metrics.Snapshot = {"relayd_accept_seconds": {"": [1.0, 2]}}
    new: metrics.Snapshot = {"relayd_accept_seconds": {"": [1.0, 2, 3]}}
    assert merge([old, new]) == new
    assert merge([{"relayd_accept_seconds": {"": 5}}, new]) == new


def test_of_a_dead_process_all_but_its_gauges_lasts() -> None:
    registry = Registry()
    registry.count("relayd_messages_sent_total", upstream="a")
    registry.gauge("relayd_connections", 5)
    registry.observe("relayd_accept_seconds", 1)
    assert set(lasting(registry.snapshot())) == {
        "relayd_messages_sent_total",
        "relayd_accept_seconds",
    }


@given(st.lists(st.lists(st.floats(0, 200), max_size=20), max_size=5))
def test_merged_histograms_are_what_one_process_would_have_counted(
    rounds: list[list[float]],
) -> None:
    together, snapshots = Registry(), []
    for values in rounds:
        alone = Registry()
        for value in values:
            alone.observe("relayd_send_seconds", value, upstream="a")
            together.observe("relayd_send_seconds", value, upstream="a")
        snapshots.append(alone.snapshot())
    merged, counted = merge(snapshots), together.snapshot()
    assert merged.keys() == counted.keys()
    for name in merged:
        assert merged[name]["a"] == pytest.approx(counted[name]["a"])


def test_every_row_is_whole() -> None:
    for name, metric in METRICS.items():
        assert name.startswith("relayd_")
        assert name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(metric.buckets)
        assert metric.help.endswith(".")
    assert list(METRICS) == sorted(METRICS)


def test_the_house_counts_in_one_registry() -> None:
    metrics.count("relayd_smtp_replies_total", code="test")
    metrics.gauge("relayd_workers", 2)
    metrics.observe("relayd_accept_seconds", 0.1)
    assert metrics.snapshot()["relayd_smtp_replies_total"]["test"] == 1


@pytest.mark.slow(0.3)
def test_metrics_are_lean_enough_for_the_master() -> None:
    probe = (
        "import sys; from relayd.observe import metrics, logfmt, events;"
        "print({'gevent', 'ssl', 'structlog', 'logging', 'threading'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True)
    assert done.stdout.strip() == b"set()"


def test_all_series_of_a_gauge_are_set_at_once_and_those_gone_are_forgotten() -> None:
    registry = Registry()
    registry.gauges("relayd_upstream_up", {("contoso",): 1, ("fab\trikam",): 0})
    assert registry.snapshot() == {"relayd_upstream_up": {"contoso": 1, "fab rikam": 0}}
    registry.gauges("relayd_upstream_up", {("contoso",): 0})
    assert registry.snapshot() == {"relayd_upstream_up": {"contoso": 0}}


def test_gauges_past_the_limit_are_folded_as_those_of_processes_are() -> None:
    registry = Registry()
    registry.gauges("relayd_upstream_up", {(f"u{n}",): float(n != 230) for n in range(250)})
    series = registry.snapshot()["relayd_upstream_up"]
    assert len(series) == MAX_SERIES
    assert series[OTHER] == 0
    assert series["u0"] == 1


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("relayd_nothing", ("a",)),
        ("relayd_messages_sent_total", ("a",)),
        ("relayd_upstream_up", ("a", "b")),
    ],
)
def test_gauges_of_another_kind_or_with_other_labels_are_a_bug(
    name: str, labels: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=name):
        Registry().gauges(name, {labels: 1})


def test_a_registry_that_was_cleared_counts_from_nothing() -> None:
    registry = Registry()
    registry.count("relayd_messages_sent_total", 7, upstream="contoso")
    registry.clear()
    assert registry.snapshot() == {}
    registry.count("relayd_messages_sent_total", upstream="contoso")
    assert registry.snapshot() == {"relayd_messages_sent_total": {"contoso": 1}}


@settings(max_examples=20)
@given(st.integers(1, 300), st.integers(10, 5000))
def test_the_pieces_of_a_snapshot_are_all_of_it(count: int, most: int) -> None:
    registry = Registry()
    for number in range(count):
        registry.count("relayd_messages_sent_total", upstream=f"u{number}")
        registry.observe("relayd_send_seconds", 0.1, upstream=f"u{number}")
        registry.count("relayd_smtp_replies_total", code=number)
    parts = list(metrics.pieces(registry.snapshot(), most))
    assert all(parts)
    assert merge(parts) == registry.snapshot()
    whole = {name: series for part in parts for name, series in part.items()}
    assert whole == registry.snapshot()


def test_every_metric_with_all_its_series_fits_in_packets() -> None:
    registry = Registry()
    for name, metric in METRICS.items():
        for number in range(MAX_SERIES if metric.labels else 1):
            labels: dict[str, object] = dict.fromkeys(metric.labels, f"{number:060}")
            do = {"counter": registry.count, "histogram": registry.observe}
            do.get(metric.kind, registry.gauge)(name, 123_456_789.25, **labels)
    parts = list(metrics.pieces(registry.snapshot()))
    assert len(parts) > 3
    for part in parts:
        assert len(json.dumps({"event": "counters", "counters": part}).encode()) < 65536
