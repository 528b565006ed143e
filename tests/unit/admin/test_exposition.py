"""The page says what was counted, in both formats, and nothing that was not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from relayd.admin.exposition import render
from relayd.master.frames import Json
from relayd.observe.metrics import METRICS, Registry

OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


def counted() -> Json:
    registry = Registry()
    registry.count("relayd_messages_sent_total", 3, upstream="contoso")
    registry.count("relayd_auth_total", 2, method="PLAIN", result='ba"d\n\\')
    registry.gauge("relayd_connections", 5)
    registry.observe("relayd_send_seconds", 0.2, upstream="contoso")
    registry.observe("relayd_send_seconds", 0.07, upstream="contoso")
    registry.observe("relayd_send_seconds", 500.0, upstream="contoso")
    return cast("Json", registry.snapshot())


Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str, *, is_open: bool = False) -> Samples:
    # The library's parsers bear no types.
    parse = cast("Callable[[str], Iterable[Metric]]", parse_open if is_open else parse_text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def page(totals: Json) -> Samples:
    return samples(render(totals)[0].decode())


def test_counters_gauges_and_histograms_are_those_that_were_counted() -> None:
    found = page(counted())
    assert found["relayd_messages_sent_total", (("upstream", "contoso"),)] == 3
    assert found["relayd_auth_total", (("method", "PLAIN"), ("result", 'ba"d\n\\'))] == 2
    assert found["relayd_connections", ()] == 5
    name, upstream = "relayd_send_seconds_bucket", ("upstream", "contoso")
    assert found[name, (("le", "0.05"), upstream)] == 0
    assert found[name, (("le", "0.1"), upstream)] == 1
    assert found[name, (("le", "0.25"), upstream)] == 2
    assert found[name, (("le", "120.0"), upstream)] == 2
    assert found[name, (("le", "+Inf"), upstream)] == 3
    assert found["relayd_send_seconds_count", (upstream,)] == 3
    assert found["relayd_send_seconds_sum", (upstream,)] == 500.27


def test_open_metrics_is_given_to_who_asks_for_it_and_says_the_same() -> None:
    octets, content_type = render(counted(), OPEN_METRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert octets.endswith(b"# EOF\n")
    assert samples(octets.decode(), is_open=True) == page(counted())
    assert render(counted(), "*/*")[1].startswith("text/plain; version=")
    assert render(counted(), "x" * 100_000)[1].startswith("text/plain; version=")


def test_a_counter_without_labels_is_zero_from_the_start() -> None:
    found = page({})
    assert found["relayd_worker_restarts_total", ()] == 0
    assert found["relayd_accept_seconds_count", ()] == 0
    assert not any(name.startswith("relayd_connections") for name, _ in found)


def test_every_metric_of_the_table_has_its_kind_and_its_help() -> None:
    text = render({})[0].decode()
    for name, metric in METRICS.items():
        assert f"# TYPE {name} {metric.kind}\n" in text
        assert f"# HELP {name} {metric.help}\n" in text


def test_what_another_version_counted_is_left_out() -> None:
    strange: Json = {
        "relayd_from_the_future_total": {"": 1},
        "relayd_messages_sent_total": {"a\tb": 1, "": 2, "contoso": "many"},
        "relayd_accept_seconds": {"": [1, 2, 3]},
        "relayd_send_seconds": {"contoso": 7},
        "relayd_connections": 5,
    }
    assert not [
        key for key in page(strange) if key[0].startswith(("relayd_m", "relayd_s", "relayd_c"))
    ]
    assert page([]) == page({})
