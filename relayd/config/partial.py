"""relayd.toml as far as this user may read it, for commands that look and do not run anything.

`load` refuses a configuration with one unreadable secret; an operator who may not read secrets
still wants to know which rule decides, or where the way out ends. So here nothing is refused:
what is wrong is listed, and its default stands in the value's place.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

from relayd.config import build, read, whole
from relayd.config.model import Config
from relayd.config.read import Problem, Tree
from relayd.config.resolve import resolve
from relayd.values import frozen

_SECRETS: Final = ("client_secret", "next_client_secret")


@frozen
class Seen:
    """What could be read. found: what keeps whole files from being read, worded.

    problems: everything else, as `load` would refuse it.
    """

    config: Config
    tree: Tree
    problems: tuple[Problem, ...]

    @property
    def found(self) -> tuple[str, ...]:
        """What is wrong with whole files; then nothing of `config` can be relied upon."""
        return tuple(self.tree.found)

    def secret_problem(self, upstream: str) -> Problem | None:
        """Return why the upstream's secret could not be read; None if it could."""
        return next((one for one in self.problems if is_secret(one, upstream)), None)

    def other_problems(self, upstream: str) -> list[str]:
        """Return what is wrong on this upstream's way, its secret apart; worded."""
        return [
            self.tree.word(one)
            for one in self.problems
            if not is_secret(one, upstream) and _is_on_the_way(one, upstream)
        ]

    def secret_key(self, upstream: str) -> str:
        """Return the key that gives the secret: "client_secret_file"; "" if none does."""
        table = self.tree.get(("upstream", upstream))
        keys = table if isinstance(table, dict) else {}
        return next((str(key) for key in keys if str(key).startswith(_SECRETS[0])), "")

    def secret_place(self, upstream: str) -> str:
        """Return where the secret stands, for people: a file, $NAME, a credential."""
        key = self.secret_key(upstream)
        value = self.tree.get(("upstream", upstream, key))
        if key.endswith("_file"):
            return os.path.join(os.path.dirname(self.tree.root) or ".", str(value))
        if key.endswith("_env"):
            return f"${value}"
        if key.endswith("_credential"):
            return f"systemd credential {value}"
        return str(self.tree.place(("upstream", upstream, key)).file) if key else ""


def look(path: str, environment: Mapping[str, str] = os.environ) -> Seen:
    """Return what can be read of the configuration in `path`; raises nothing."""
    tree = read.read(path)
    written, problems, _ = build.build(tree, environment)
    told = {problem.path for problem in problems}
    problems += [one for one in whole.problems(written) if one.path not in told]
    host = written.server.hostname or socket.gethostname() or "localhost"
    config = resolve(written, host=host, cpus=1)
    return Seen(config, tree, tuple(problems))


def is_secret(problem: Problem, upstream: str) -> bool:
    """Tell whether a problem is about an upstream's secret only."""
    path = problem.path
    return (
        path[:2] == ("upstream", upstream) and len(path) > 2 and str(path[2]).startswith(_SECRETS)
    )


def _is_on_the_way(problem: Problem, upstream: str) -> bool:
    path = problem.path
    return path[:2] == ("upstream", upstream) or path[:1] in (("http",), ("cloud",))
