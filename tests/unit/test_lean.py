"""What is left out when libraries are imported, and that gevent patches all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    """Run a program; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return done.stdout


def test_what_nobody_uses_looks_as_if_it_were_not_installed() -> None:
    code = (
        "import sys\n"
        "from relayd import lean\n"
        "lean.leave_out()\n"
        "import structlog\n"
        "print(structlog.dev.rich, [n for n in sys.modules if n.startswith(('rich.', 'pygments'))])"
    )
    assert run(code) == "None []\n"


def test_a_module_that_is_there_already_is_left() -> None:
    code = (
        "import sys, types\n"
        "sys.modules['rich'] = there = types.ModuleType('rich')\n"
        "from relayd import lean\n"
        "lean.leave_out()\n"
        "print(sys.modules['rich'] is there)"
    )
    assert run(code) == "True\n"


def test_gevent_patches_and_asks_no_package_about_it() -> None:
    code = (
        "import sys\n"
        "from relayd import lean\n"
        "lean.patch()\n"
        "from gevent import monkey\n"
        "print(monkey.is_module_patched('socket'), monkey.is_module_patched('threading'))\n"
        "print({'pkg_resources', 'importlib.metadata', 'zipfile'} & set(sys.modules))"
    )
    assert run(code) == "True True\nset()\n"


def test_who_subscribed_to_gevents_events_hears_of_them() -> None:
    code = (
        "from zope.event import subscribers\n"
        "heard = []\n"
        "subscribers.append(lambda event: heard.append(type(event).__name__))\n"
        "from relayd import lean\n"
        "lean.patch()\n"
        "print('GeventWillPatchAllEvent' in heard, 'GeventDidPatchAllEvent' in heard)"
    )
    assert run(code) == "True True\n"


def test_a_pkg_resources_that_is_loaded_already_is_left() -> None:
    code = (
        "import sys, types\n"
        "sys.modules['pkg_resources'] = there = types.ModuleType('pkg_resources')\n"
        "there.iter_entry_points = None\n"
        "from relayd import lean\n"
        "lean.patch()\n"
        "print(sys.modules['pkg_resources'] is there)"
    )
    assert run(code) == "True\n"
