"""The systemd unit that runs a configuration: whether there is one, starting it.

A configuration belongs to a unit by its place, as the package has it: /etc/relayd/relayd.toml to
relayd.service, /etc/relayd/NAME/relayd.toml to relayd@NAME.service. Any other is nobody's.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import Final

_INSTANCE: Final = re.compile(r"/etc/relayd/([^/]+)/relayd\.toml")
_BOOTED: Final = "/run/systemd/system"
_WITHIN_S: Final = 400.0
"""Longer than the unit's TimeoutStartSec, so that systemd's answer comes first."""


def unit_of(config: str) -> str:
    """Return the unit that a configuration belongs to; "" for none."""
    path = os.path.abspath(config)
    if path == "/etc/relayd/relayd.toml":
        return "relayd.service"
    instance = _INSTANCE.fullmatch(path)
    return f"relayd@{instance[1]}.service" if instance else ""


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
