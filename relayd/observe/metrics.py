"""Counters, gauges and histograms: one table, counted in the process where it happens.

    metrics.count("relayd_messages_sent_total", upstream="contoso")
    metrics.observe("relayd_accept_seconds", 0.012)
    metrics.gauge("relayd_connections", 17)
    metrics.gauges("relayd_upstream_up", {("contoso",): 1})       all series at once

`snapshot()` is cumulative since the process began and fits in JSON; the master adds up what
living and retired processes sent it (`merge`, `lasting`), the page only renders. A label's
values are bounded: past MAX_SERIES a metric's further ones are counted as "other".

Source: https://prometheus.io/docs/concepts/metric_types/
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, TypeAlias

from relayd.values import frozen

Value: TypeAlias = "float | list[float]"
"""A counter's or gauge's number; a histogram's [sum, count of each bucket…, count above]."""

Snapshot: TypeAlias = "dict[str, dict[str, Value]]"
"""Metric name -> label values joined by a tab ("" where it has none) -> Value."""

MAX_SERIES: Final = 200
OTHER: Final = "other"
_LONGEST_LABEL: Final = 80
_MOST_REMEMBERED: Final = 10_000

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 8.0)
_CALL_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_QUEUE_SECONDS: Final = (0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0)


@frozen
class Metric:
    """One row of the table.

    fold: how the gauges of several processes become one: their sum, or the largest or
          smallest of what they say about the same thing.
    """

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    fold: Literal["sum", "max", "min"] = "sum"


METRICS: Final[Mapping[str, Metric]] = {
    "relayd_accept_seconds": Metric(
        "histogram", "From the final dot to the reply, seconds.", buckets=_SECONDS
    ),
    "relayd_auth_total": Metric("counter", "Logins tried.", ("method", "result")),
    "relayd_build_info": Metric("gauge", "1, with the version.", ("version",), fold="max"),
    "relayd_certificate_expiry_timestamp_seconds": Metric(
        "gauge", "When a listener's certificate ends, Unix time.", ("listener",), fold="min"
    ),
    "relayd_clock_right": Metric(
        "gauge", "1, or 0 while nothing is sent because the clock is wrong.", fold="min"
    ),
    "relayd_connections": Metric("gauge", "SMTP connections open now."),
    "relayd_credential_expiry_timestamp_seconds": Metric(
        "gauge", "When an upstream's credential ends, Unix time.", ("upstream",), fold="min"
    ),
    "relayd_graph_requests_total": Metric(
        "counter", "Answers of Graph, by HTTP status.", ("upstream", "status")
    ),
    "relayd_log_dropped_total": Metric(
        "counter", "Log lines dropped because standard error or the log file stalled."
    ),
    "relayd_messages_accepted_total": Metric(
        "counter", "Messages made durable and answered 250.", ("device", "upstream")
    ),
    "relayd_messages_deferred_total": Metric(
        "counter", "Attempts put off to a later time.", ("upstream", "reason")
    ),
    "relayd_messages_failed_total": Metric("counter", "Messages given up.", ("upstream", "reason")),
    "relayd_messages_sent_total": Metric(
        "counter", "Messages Microsoft took over (202, or 250).", ("upstream",)
    ),
    "relayd_queue_messages": Metric(
        "gauge", "Messages in the spool.", ("state", "upstream"), fold="max"
    ),
    "relayd_queue_oldest_seconds": Metric(
        "gauge", "Age of the oldest waiting message.", ("upstream", "priority"), fold="max"
    ),
    "relayd_queued_seconds": Metric(
        "histogram", "From accepted to sent, seconds.", ("upstream",), _QUEUE_SECONDS
    ),
    "relayd_quota_used_ratio": Metric(
        "gauge", "Part of an Exchange limit used, 0 to 1.", ("mailbox", "limit"), fold="max"
    ),
    "relayd_recipients_left_out_total": Metric(
        "counter", "Recipients given up of messages that went to others.", ("upstream",)
    ),
    "relayd_send_seconds": Metric(
        "histogram", "One Graph or SMTP call, seconds.", ("upstream",), _CALL_SECONDS
    ),
    "relayd_sessions_total": Metric(
        "counter", "SMTP sessions ended, by how.", ("listener", "result")
    ),
    "relayd_smtp_replies_total": Metric("counter", "SMTP replies, by code.", ("code",)),
    "relayd_spool_errors_total": Metric(
        "counter", "Troubles of the spool: the disk, damaged content, bugs.", ("kind",)
    ),
    "relayd_spool_free_bytes": Metric(
        "gauge", "Free space where the spool lies, octets.", fold="min"
    ),
    "relayd_spool_reserve_bytes": Metric(
        "gauge", "With less free space than this, mail is refused with 452; octets.", fold="max"
    ),
    "relayd_token_expiry_timestamp_seconds": Metric(
        "gauge", "When the access token at hand ends, Unix time.", ("upstream",), fold="max"
    ),
    "relayd_token_requests_total": Metric(
        "counter", "Tokens asked of Entra.", ("upstream", "result")
    ),
    "relayd_upstream_up": Metric(
        "gauge", "1, or 0 while an upstream is down and its mail waits.", ("upstream",), fold="min"
    ),
    "relayd_worker_restarts_total": Metric("counter", "Workers that died and were replaced."),
    "relayd_workers": Metric("gauge", "Workers serving now."),
}


class Registry:
    """The numbers of one process; any of its threads and greenlets may count.

    A value changes in one bytecode-atomic step (`cell[0] += n` has no point where CPython
    hands the GIL over), so there is no lock on the way of a message.
    """

    def __init__(self, table: Mapping[str, Metric] = METRICS) -> None:
        self._table = table
        self._cells: dict[tuple[object, ...], list[float]] = {}
        self._series: dict[str, dict[str, list[float]]] = {}

    def count(self, name: str, amount: float = 1, /, **labels: object) -> None:
        """Add `amount` to a counter; about half a microsecond once its series exists."""
        try:
            cell = self._cells[(name, *labels, *labels.values())]
        except KeyError:
            cell = self._cell(name, labels, "counter")
        cell[0] += amount

    def gauge(self, name: str, value: float, /, **labels: object) -> None:
        """Set a gauge."""
        self._cell(name, labels, "gauge")[0] = value

    def gauges(self, name: str, rows: Mapping[tuple[str, ...], float], /) -> None:
        """Set every series of a gauge at once; those that are not in `rows` are forgotten.

        rows: label values in the table's order -> value. A gauge that is set so is never set
              by `gauge`. Past MAX_SERIES the others are folded into one, "other".
        raises: ValueError - as `gauge`.
        """
        metric = self._table.get(name)
        if metric is None or metric.kind != "gauge":
            raise ValueError(f"{name} is no gauge of the metric table")
        series: dict[str, list[float]] = {}
        for labels, value in rows.items():
            if len(labels) != len(metric.labels):
                raise ValueError(f"{name} has {len(metric.labels)} labels, not {len(labels)}")
            key = "\t".join(map(_label, labels))
            if len(series) >= MAX_SERIES - 1 and key not in series:
                key = "\t".join([OTHER] * len(labels))
            before = series.get(key)
            folded = value if before is None else _fold(metric, before[0], value)
            series[key] = [folded if isinstance(folded, int | float) else value]
        self._series[name] = series

    def observe(self, name: str, value: float, /, **labels: object) -> None:
        """Sort `value` into a histogram's bucket."""
        try:
            cell = self._cells[(name, *labels, *labels.values())]
        except KeyError:
            cell = self._cell(name, labels, "histogram")
        cell[0] += value
        cell[1 + bisect_left(self._table[name].buckets, value)] += 1

    def snapshot(self) -> Snapshot:
        """Return everything counted since the process began, JSON-able, its own copy."""
        return {
            name: {
                key: list(cell) if self._table[name].kind == "histogram" else cell[0]
                for key, cell in list(series.items())
            }
            for name, series in list(self._series.items())
        }

    def clear(self) -> None:
        """Forget everything: what a forked child finds here was counted by its parent."""
        self._cells.clear()
        self._series.clear()

    def _cell(self, name: str, labels: Mapping[str, object], kind: str) -> list[float]:
        """Return the series' numbers, making them on first use.

        raises: ValueError - no such metric, of another kind, or with other labels: a bug that
                tests/arch finds before a customer does.
        """
        key = (name, *labels, *labels.values())
        if (known := self._cells.get(key)) is not None:
            return known
        metric = self._table.get(name)
        if metric is None or metric.kind != kind or set(metric.labels) != set(labels):
            raise ValueError(f"{name}{{{','.join(labels)}}} is no {kind} of the metric table")
        series = self._series.setdefault(name, {})
        values = [_label(labels[label]) for label in metric.labels]
        if len(series) >= MAX_SERIES and "\t".join(values) not in series:
            # Not remembered under `key`: a peer that invents names must not fill the memory.
            return series.setdefault("\t".join([OTHER] * len(values)), _zero(metric))
        cell = series.setdefault("\t".join(values), _zero(metric))
        if len(self._cells) < _MOST_REMEMBERED:
            self._cells[key] = cell
        return cell


def _label(value: object) -> str:
    return str(value).replace("\t", " ")[:_LONGEST_LABEL]


def _zero(metric: Metric) -> list[float]:
    return [0] * (len(metric.buckets) + 2 if metric.kind == "histogram" else 1)


def lasting(snapshot: Mapping[str, Mapping[str, Value]]) -> Snapshot:
    """Return what of a dead process still counts: all but its gauges."""
    return {
        name: dict(series)
        for name, series in snapshot.items()
        if name in METRICS and METRICS[name].kind != "gauge"
    }


def pieces(snapshot: Snapshot, most_octets: int = 32_000) -> Iterator[Snapshot]:
    """Yield a snapshot in parts whose JSON is about `most_octets` long, at most 200 series more."""
    part: Snapshot = {}
    size = 0
    for name, series in snapshot.items():
        part[name] = series
        size += len(json.dumps(series))
        if size >= most_octets:
            yield part
            part, size = {}, 0
    if part:
        yield part


def merge(snapshots: Iterable[Mapping[str, Mapping[str, Value]]]) -> Snapshot:
    """Return several processes' snapshots as one; names this version does not know are left."""
    total: Snapshot = {}
    for snapshot in snapshots:
        for name, series in snapshot.items():
            if name not in METRICS:
                continue
            into = total.setdefault(name, {})
            for key, value in series.items():
                into[key] = _fold(METRICS[name], into[key], value) if key in into else value
    return total


def _fold(metric: Metric, old: Value, new: Value) -> Value:
    if isinstance(old, list) and isinstance(new, list):
        # Buckets of another version cannot be added up; the newer process is believed.
        return [a + b for a, b in zip(old, new, strict=True)] if len(old) == len(new) else new
    if isinstance(old, list) or isinstance(new, list):
        return new
    if metric.fold == "sum" or metric.kind == "counter":
        return old + new
    return max(old, new) if metric.fold == "max" else min(old, new)


_REGISTRY: Final = Registry()
count: Final = _REGISTRY.count
gauge: Final = _REGISTRY.gauge
gauges: Final = _REGISTRY.gauges
observe: Final = _REGISTRY.observe
snapshot: Final = _REGISTRY.snapshot
clear: Final = _REGISTRY.clear
