"""The tree keeps its own rules: docstrings, a test for each module, names of events and metrics.

The tests that look at every room at once run in the full suite only (`slow`): a room may be
half built while `make check` runs beside it.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.observe.events import EVENTS
from relayd.observe.metrics import METRICS

ROOT = Path(__file__).parent.parent.parent
MODULES = sorted((ROOT / "relayd").rglob("*.py"))
LONGEST_DOCSTRING = 24
LATER_EVENTS = frozenset({"message.bounced"})  # promised by the interface; nobody reads NDRs yet

PATCH = "lean.patch()"  # the first thing a worker does, before it imports what it patches

# Spelt in pieces, so that this file does not contain what it looks for.
FORBIDDEN = re.compile(
    r"(?<![\w.])/wo" + "rk/|index-" + "url|PIP_" + "INDEX|ca-certificates-" + "local"
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def kept_files() -> Iterator[Path]:
    """Return every text file the repository keeps, or is about to."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if name and path.is_file() and b"\0" not in path.read_bytes()[:4096]:
            yield path


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_opens_with_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(tree_of(path))
    assert docstring, "no docstring"
    assert len(docstring.splitlines()) <= LONGEST_DOCSTRING


@pytest.mark.slow(1)
@pytest.mark.parametrize(
    "path", [path for path in MODULES if path.name != "__init__.py"], ids=name_of
)
def test_a_module_has_its_test_at_the_same_place(path: Path) -> None:
    inside = path.relative_to(ROOT / "relayd")
    name = inside.name if inside.name != "__main__.py" else "main.py"
    assert (ROOT / "tests/unit" / inside.parent / f"test_{name}").exists()


@pytest.mark.slow(1)
def test_a_unit_test_has_its_module() -> None:
    for path in (ROOT / "tests/unit").rglob("test_*.py"):
        inside = path.relative_to(ROOT / "tests/unit")
        module = ROOT / "relayd" / inside.parent / inside.name.removeprefix("test_")
        assert module.exists() or module.name == "main.py", name_of(path)


def test_a_todo_has_the_number_of_its_issue() -> None:
    for path in kept_files():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if re.search(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b", line):
                assert re.search(r"#\d+|issue", line), f"{name_of(path)}:{number}"


def test_nothing_in_the_tree_knows_the_machine_it_was_written_on() -> None:
    for path in kept_files():
        found = FORBIDDEN.search(path.read_text(errors="replace"))
        assert not found, f"{name_of(path)}: {found}"


def test_modules_do_no_work_but_definitions_when_imported() -> None:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign, ast.Assign)
    allowed = (ast.Import, ast.ImportFrom, ast.If, *definitions)
    for path in MODULES:
        for node in tree_of(path).body:
            if name_of(path) == "relayd/worker.py" and ast.unparse(node) == PATCH:
                continue
            is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert is_text or isinstance(node, allowed), f"{name_of(path)}:{node.lineno}"


# ---- names that stand in tables -------------------------------------------------------------


def calls(path: Path) -> Iterator[tuple[ast.Call, str, str]]:
    """Return every `receiver.method(…)` of a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            receiver = node.func.value
            name = receiver.attr if isinstance(receiver, ast.Attribute) else ""
            name = receiver.id if isinstance(receiver, ast.Name) else name
            yield node, name.lstrip("_"), node.func.attr


def texts(node: ast.expr) -> Iterator[str | None]:
    """Return the texts an argument may be; None for one that only running shows."""
    if isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        yield None


def logged() -> Iterator[tuple[str, str | None]]:
    methods = {"debug", "info", "warning", "error", "exception", "critical"}
    for path in MODULES:
        for call, receiver, method in calls(path):
            if receiver in {"log", "logger"} and method in methods and call.args:
                for event in texts(call.args[0]):
                    yield f"{name_of(path)}:{call.lineno}", event


@pytest.mark.slow(1)
def test_events_in_code_are_those_of_the_table() -> None:
    for place, event in logged():
        assert event is None or event in EVENTS, f"{place} logs {event}, which is not in EVENTS"


@pytest.mark.slow(1)
def test_events_of_the_table_are_in_code() -> None:
    code = "".join(path.read_text() for path in MODULES if path.name != "events.py")
    for event in EVENTS.keys() - LATER_EVENTS:
        assert f'"{event}"' in code, event


@pytest.mark.slow(1)
def test_metrics_in_code_are_those_of_the_table() -> None:
    kinds = {"count": "counter", "gauge": "gauge", "observe": "histogram"}
    for path in MODULES:
        for call, receiver, method in calls(path):
            if receiver != "metrics" or method not in kinds:
                continue
            place = f"{name_of(path)}:{call.lineno}"
            for name in filter(None, texts(call.args[0])):
                assert name in METRICS, f"{place} counts {name}"
                assert METRICS[name].kind == kinds[method], place
                labels = {each.arg for each in call.keywords}
                assert None in labels or labels == set(METRICS[name].labels), place
