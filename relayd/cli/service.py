"""The systemd unit that runs a configuration: whether there is one, starting it.

Which one a configuration belongs to, `daemon.unit_of` says.
"""

from __future__ import annotations

import os
import subprocess
from typing import Final

from relayd.cli.daemon import unit_of

_BOOTED: Final = "/run/systemd/system"
_WITHIN_S: Final = 400.0
"""Longer than the unit's TimeoutStartSec, so that systemd's answer comes first."""


class Service:
    """The unit of a configuration, asked and told by systemctl. unit: "" where there is none."""

    def __init__(self, config: str, booted: str = _BOOTED) -> None:
        unit = unit_of(config)
        is_here = os.path.isdir(booted) and bool(unit) and self._tell("cat", unit) == ""
        self.unit = unit if is_here else ""

    def enable_and_start(self) -> str:
        """Start it, now and at each boot; returns why it did not, "" when it did."""
        return self._tell("enable", "--now", self.unit)

    def restart(self) -> str:
        """Stop it gracefully and start it again; returns why it did not, "" when it did."""
        return self._tell("restart", self.unit)

    def _tell(self, *words: str) -> str:
        try:
            done = subprocess.run(
                ("systemctl", *words),
                capture_output=True,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=_WITHIN_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"systemctl {' '.join(words)}: {error}"
        return "" if done.returncode == 0 else (done.stderr.strip() or f"exit {done.returncode}")
