"""python -m relayd, and the `relayd` program."""

from __future__ import annotations

import sys

from relayd.cli.main import main as command_line


def main() -> int:
    """Run the command line; returns its exit code."""
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
