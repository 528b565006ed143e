"""Titles are set without the package that brings threads along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow(1)
def test_the_title_is_set_and_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys; from relayd.master.title import set_title; "
        "assert set_title('relayd: a test'); set_title('relayd: again'); "
        "assert not {'logging', 'threading', 'setproctitle'} & set(sys.modules); "
        "print(open('/proc/self/cmdline').read().rstrip(chr(0)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[3],
        text=True,
    )
    assert done.stdout.strip() == "relayd: again"


@pytest.mark.slow(1)
def test_without_the_extension_nothing_happens() -> None:
    code = (
        "import importlib.machinery as m; from relayd.master import title; "
        "m.PathFinder.find_spec = classmethod(lambda *a: None); "
        "assert title.set_title('x') is False"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
