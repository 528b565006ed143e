"""What was read at the start is what is imported later, whatever lies on disk by then."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.master import pinned

ROOT = Path(__file__).parents[3]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "some_daemon"
    (folder / "room").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "late.py").write_text("from some_daemon.room import desk\nVALUE = desk.VALUE\n")
    (folder / "room" / "__init__.py").write_text("")
    (folder / "room" / "desk.py").write_text("VALUE = 'old'\nWHERE = __file__\n")
    (folder / "broken.py").write_text("this is no Python\n")
    (folder / "data" / "table.py.txt").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = list(sys.meta_path)
    importlib.import_module("some_daemon")
    yield folder
    sys.meta_path[:] = before
    for name in [one for one in sys.modules if one.startswith("some_daemon")]:
        del sys.modules[name]


def test_new_files_change_nothing_for_who_started_before(package: Path) -> None:
    pinned.pin("some_daemon")
    (package / "room" / "desk.py").write_text("VALUE = 'new'\n")
    (package / "late.py").unlink()
    late = importlib.import_module("some_daemon.late")
    assert late.VALUE == "old"
    desk = importlib.import_module("some_daemon.room.desk")
    assert str(package / "room" / "desk.py") == desk.WHERE
    room = importlib.import_module("some_daemon.room")
    assert list(room.__path__) == [str(package / "room")]


def test_what_cannot_be_read_fails_when_it_is_wanted(package: Path) -> None:
    found = pinned.pin("some_daemon")
    assert "some_daemon.broken" not in found.pins
    with pytest.raises(SyntaxError):
        importlib.import_module("some_daemon.broken")
    assert package.exists()


def test_other_packages_are_left_to_others() -> None:
    assert pinned.Pinned({}, -1).find_spec("json") is None


def test_all_of_the_daemon_is_there_and_nothing_else_comes_along() -> None:
    code = (
        "import sys\n"
        "from relayd.master import pinned\n"
        "before = set(sys.modules)\n"
        "pins = pinned.pin().pins\n"
        "print(*sorted(set(sys.modules) - before))\n"
        "print(*sorted(pins))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    imported, pins = done.stdout.split("\n")[:2]
    assert imported == ""
    files = (ROOT / "relayd").rglob("*.py")
    names = {".".join(one.relative_to(ROOT).with_suffix("").parts) for one in files}
    wanted = {one.removesuffix(".__init__") for one in names if not one.endswith("__main__")}
    left_out = {one for one in wanted if one.split(".")[1:2] in (["cli"], ["sandbox"])}
    assert set(pins.split()) == wanted - left_out
