"""The real master over fake children: `python -m tests.process.run_master CONFIG OPTIONS`.

OPTIONS is JSON: {"timings": {…}, "preflight": […], "again": […]}.
"""

from __future__ import annotations

import json
import sys

from relayd.errors import ConfigError, ListenError
from relayd.master import start
from relayd.master.launch import Launch, Timings
from tests.process.fake_child import ENTRIES


def main() -> int:
    options = json.loads(sys.argv[2])
    launch = Launch(
        path=sys.argv[1],
        entries=ENTRIES,
        timings=Timings(**options.get("timings", {})),
        again=tuple(options.get("again", (sys.executable, *sys.orig_argv[1:]))),
        preflight=tuple(options.get("preflight", (sys.executable, "-c", "print('fine')"))),
    )
    try:
        return start.run(launch)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 78
    except ListenError as error:
        print(error, file=sys.stderr)
        return 69


if __name__ == "__main__":
    sys.exit(main())
