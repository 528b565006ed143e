"""relayd.toml -> Config: read, build, judge, resolve; all problems at once, or the value.

    Config = load("/etc/relayd/relayd.toml")

A problem reads `file:line: [table] key: what is wrong; what to do`. Nothing here looks at the
network, at certificates or at folders: that is `relayd.check`. The environment is read here
(`x_env`, $CREDENTIALS_DIRECTORY) and nowhere else.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping
from typing import Final

from relayd import clock
from relayd.config import build, read, whole
from relayd.config.model import Config
from relayd.config.places import Path
from relayd.config.read import Problem, Tree
from relayd.config.resolve import resolve
from relayd.errors import ConfigError
from relayd.values import frozen

_NAME_WAIT_S: Final = 2.0


@frozen
class Loaded:
    """A usable configuration, and what should be known of it.

    tree: where every key stands, to word further problems with.
    """

    config: Config
    warnings: list[str]
    tree: Tree


def load(path: str, environment: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration in `path` and conf.d beside it, resolved.

    raises: ConfigError - all problems, each with its place.
    """
    return examine(path, environment).config


def examine(path: str, environment: Mapping[str, str] = os.environ) -> Loaded:
    """Return the configuration with its warnings.

    raises: ConfigError - all problems, each with its place.
    """
    tree = read.read(path)
    written, problems, dangers = build.build(tree, environment)
    wrong = {problem.path for problem in problems}
    problems += [each for each in whole.problems(written) if not _is_told(each, wrong)]
    if tree.found or problems:
        raise ConfigError(tree.found + _worded(tree, problems))
    host = written.server.hostname or _host_name()
    config = resolve(written, host=host, cpus=len(os.sched_getaffinity(0)))
    dangers += whole.warnings(config, today=clock.SYSTEM.utcnow().date())
    if "." not in host:
        text = f'this host has no full name, mail will say "{host}"; set [server] hostname'
        dangers.append(Problem((), text))
    return Loaded(config, _worded(tree, dangers), tree)


def _is_told(problem: Problem, wrong: set[Path]) -> bool:
    """Say whether a key's own problem makes this one a mere consequence of it."""
    return problem.path in wrong


def _worded(tree: Tree, problems: list[Problem]) -> list[str]:
    """Return the problems as text, in the order in which they stand in the files."""
    worded = [(tree.place(each.path), tree.word(each)) for each in problems]
    order = {file: index for index, file in enumerate(tree.modes)}
    worded.sort(key=lambda each: (order.get(each[0].file, 0), each[0].line))
    return list(dict.fromkeys(text for _, text in worded))


def _host_name() -> str:
    """Return this host's full name, or its short one when DNS has none within two seconds."""
    short = socket.gethostname() or "localhost"
    found: list[str] = []
    # A thread, because the resolver knows no deadline; it is left behind when it hangs.
    asker = threading.Thread(target=lambda: found.append(socket.getfqdn()), daemon=True)
    asker.start()
    asker.join(_NAME_WAIT_S)
    full = found[0] if found else ""
    return full if "." in full and not full.startswith("localhost") else short
