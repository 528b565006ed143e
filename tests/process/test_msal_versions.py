"""The same verdicts with the MSAL of Debian 12, of Debian 13 and the newest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_PACKAGES = 75


@pytest.mark.slow(60)
@pytest.mark.timeout(600)
def test_every_msal_we_may_meet_gives_the_same_verdicts() -> None:
    done = subprocess.run(
        ["sh", str(ROOT / "tools" / "msal_versions.sh")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable},
    )
    if done.returncode == NO_PACKAGES:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    for version in ("msal 1.21.0", "msal 1.32.3"):
        assert version in done.stdout
