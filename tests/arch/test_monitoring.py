"""conf/monitoring asks for metrics that there are, and names commands that there are.

What an alert fires for is in relayd-alerts-test.yml, run here by promtool where it is installed
(tools/clients.sh takes it out of Debian's package).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd.cli.main import COMMANDS
from relayd.observe.metrics import METRICS

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "conf/monitoring"
ALERTS = (FOLDER / "relayd-alerts.yml").read_text()
TESTS = (FOLDER / "relayd-alerts-test.yml").read_text()
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())

OF_PROMETHEUS = {"job", "instance", "le"}
PROMTOOL = shutil.which("promtool") or str(Path(sys.executable).parent / "promtool")
with_promtool = pytest.mark.skipif(
    not Path(PROMTOOL).exists(),
    reason="promtool is not here: sh tools/clients.sh takes it out of Debian's package prometheus",
)


def alerts() -> dict[str, str]:
    """Return the text of each alert by its name."""
    parts = re.split(r"(?m)^      - alert: (\w+)$", ALERTS)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def expression(alert: str) -> str:
    """Return an alert's expr, one line or a block."""
    found = re.search(r"(?ms)^        expr: (.*?)^        \w+:", alert)
    assert found
    return found[1]


def panel_expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def asked() -> Iterator[tuple[str, str]]:
    """Return where, and what, is asked of Prometheus."""
    for name, text in alerts().items():
        yield name, expression(text)
    yield from panel_expressions()
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"]


def metric_of(name: str) -> str:
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return base if base in METRICS and METRICS[base].kind == "histogram" else name


@pytest.mark.parametrize(("where", "text"), list(asked()))
def test_what_is_asked_for_is_counted_and_has_these_labels(where: str, text: str) -> None:
    names = {metric_of(name) for name in re.findall(r"\brelayd_\w+", text)}
    assert names or "up{" in text, where
    assert names <= set(METRICS), where
    known = OF_PROMETHEUS.union(*(METRICS[name].labels for name in names))
    used = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", text))
    for group in re.findall(r"\b(?:by|without) \(([^)]*)\)", text):
        used |= set(re.findall(r"\w+", group))
    assert used <= known, where


def test_selectors_of_each_metric_use_its_own_labels_only() -> None:
    for where, text in asked():
        for name, selector in re.findall(r"\b(relayd_\w+)\{([^}]*)\}", text):
            used = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", selector))
            assert used <= OF_PROMETHEUS.union(METRICS[metric_of(name)].labels), where


def test_every_gauge_and_counter_is_on_the_dashboard() -> None:
    text = " ".join(expr for _, expr in panel_expressions())
    shown = {metric_of(name) for name in re.findall(r"\brelayd_\w+", text)}
    assert shown == set(METRICS)


def test_panels_have_their_own_place_a_description_and_the_variable_datasource() -> None:
    taken: set[tuple[int, int]] = set()
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"], panel["title"]
            sources = {
                panel["datasource"]["uid"],
                *(t["datasource"]["uid"] for t in panel["targets"]),
            }
            assert sources == {"${datasource}"}


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_what_it_is_what_it_means_and_what_to_type(name: str) -> None:
    text = alerts()[name]
    assert re.findall(r"(?m)^          (\w+): \S", text) == [
        "severity", "summary", "description", "command",
    ]  # fmt: skip
    assert re.search(r"severity: (critical|warning|info)$", text, re.MULTILINE)


@pytest.mark.parametrize("name", alerts())
def test_an_alert_is_tested_just_before_and_just_after_it_fires(name: str) -> None:
    assert len(re.findall(rf"alertname: {name}, eval_time: \w+\}}", TESTS)) == 1
    assert (
        len(
            re.findall(rf"- alertname: {name}\n        eval_time: .*\n        exp_alerts:\n", TESTS)
        )
        == 1
    )


def test_commands_named_there_exist() -> None:
    texts = [ALERTS, *(panel.get("description", "") for panel in DASHBOARD["panels"])]
    named = {
        word
        for text in texts
        for command in re.findall(r"(?m)^          command: (.*)$|`(.*?)`", text)
        for word in re.findall(r"(?:^|[;&] )relayd ([a-z]+)", "".join(command))
    }
    assert {"status", "queue", "check", "reload", "explain"} <= named
    assert named <= {command.name for command in COMMANDS}


def test_the_scrape_example_asks_as_the_rules_and_the_dashboard_expect() -> None:
    text = (FOLDER / "prometheus.yml").read_text()
    assert "job_name: relayd " in text
    assert "127.0.0.1:8025" in text
    assert 'up{job="relayd"}' in ALERTS


def test_the_document_names_every_alert() -> None:
    said = re.findall(r"(?m)^\| `(Relayd\w+)` \|", (ROOT / "docs/metrics.md").read_text())
    assert said == list(alerts())


# ---- by promtool


def promtool(*words: str, folder: Path = FOLDER) -> None:
    done = subprocess.run(
        [PROMTOOL, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@with_promtool
@pytest.mark.slow(6)
@pytest.mark.timeout(300)
def test_the_rules_are_rules_and_fire_when_they_must() -> None:
    promtool("check", "rules", "relayd-alerts.yml")
    promtool("test", "rules", "relayd-alerts-test.yml")


@with_promtool
@pytest.mark.slow(1)
def test_the_scrape_example_is_a_configuration(tmp_path: Path) -> None:
    text = (FOLDER / "prometheus.yml").read_text()
    rules = str(FOLDER / "relayd-alerts.yml")
    (tmp_path / "p.yml").write_text(text.replace("/etc/prometheus/relayd-alerts.yml", rules))
    promtool("check", "config", "p.yml", folder=tmp_path)


@with_promtool
@pytest.mark.slow(1)
def test_what_the_panels_ask_is_promql(tmp_path: Path) -> None:
    lines = ["groups:", "- name: panels", "  rules:"]
    for number, (_, expr) in enumerate(panel_expressions()):
        plain = expr.replace("$__rate_interval", "5m").replace("$instance", ".*")
        lines.append(f"  - record: panel:{number}")
        lines.append(f"    expr: {json.dumps(plain.replace('$upstream', '.*'))}")
    (tmp_path / "panels.yml").write_text("\n".join(lines))
    promtool("check", "rules", "panels.yml", folder=tmp_path)
