"""A Debian booted for tests: real systemd as PID 1 of a container, driven by nsenter.

    with Guest(tree, "bookworm") as guest:
        guest.run("systemctl", "start", "relayd")

The guest is a copy of a tree and is removed with it. It shares the network namespace of this
process, which `tools/boot.sh` makes for each suite: port 25 of the guest is port 25 here, and
nothing leaves it. Everything is ended by pid.

Source: systemd-nspawn(1), nsenter(1), cgroups(7).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from tests.relay_process import wait_until

ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
PATIENCE_S = 120.0
"""For anything that has to happen: an idle machine needs a hundredth of it."""

# A guest's cgroups hang below those of its starter: each needs its own, or two share them.
_START = """
for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
    if [ -w "$hierarchy/cgroup.procs" ] && mkdir "$hierarchy/$1" 2>/dev/null; then
        echo $$ > "$hierarchy/$1/cgroup.procs"
    fi
done
shift
exec "$@"
"""
_HIERARCHIES = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")


class Guest:
    """One booted copy of `tree`. room: the folder its copy is made in."""

    def __init__(self, tree: Path, room: Path) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="run-", dir=room))
        self.root = self.home / "guest"
        self.console = self.home / "console"
        self._tree = tree
        self._cgroup = f"relayd-{self.home.name}"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        try:
            subprocess.run(["cp", "-a", "--reflink=auto", self._tree, self.root], check=True)
            self.boot()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    # ── life ────────────────────────────────────────────────────────────────────────────

    def boot(self) -> None:
        """Boot it, or boot it again; returns when systemd has started everything."""
        command = ["systemd-nspawn", "--boot", "--register=no", "--keep-unit", "--quiet"]
        command += ["--console=pipe", "--directory", str(self.root)]
        with self.console.open("ab") as out:
            self._nspawn = subprocess.Popen(
                ["/bin/sh", "-c", _START, "sh", self._cgroup, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=ENVIRONMENT | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            )
        wait_until(self._is_up, seconds=PATIENCE_S, told=self._console_text)

    def _is_up(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, self._console_text()
        pid = self._nspawn.pid
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            self._leader = int(children[0]) if children else 0
        if not self._leader:
            return False
        said = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return said in {"running", "degraded"}

    def _console_text(self) -> str:
        return self.console.read_text(errors="replace")[-4000:]

    def power_off(self) -> None:
        """Have it shut down in order; returns when it has."""
        self.run("systemctl", "poweroff", "--no-block")
        self._wait_gone()

    def cut_power(self) -> None:
        """End everything in it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._leader, signal.SIGKILL)
        self._wait_gone()

    def _wait_gone(self) -> None:
        assert self._nspawn is not None
        self._nspawn.wait(PATIENCE_S)
        self._nspawn, self._leader = None, 0

    def remove(self) -> None:
        """End it and remove all of it; may be called at any time, and twice."""
        if self._nspawn is not None:
            if self._leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._leader, signal.SIGKILL)
            try:
                self._nspawn.wait(30)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait(30)
            self._nspawn, self._leader = None, 0
        for hierarchy in _HIERARCHIES:
            _remove_cgroup(Path(hierarchy) / self._cgroup)
        shutil.rmtree(self.home, ignore_errors=True)

    # ── inside ──────────────────────────────────────────────────────────────────────────

    def run(
        self,
        *command: str,
        check: bool = True,
        user: str = "",
        give: str | None = None,
        seconds: float = PATIENCE_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the guest, as root or as `user`; `give` is its standard input."""
        who = ["runuser", "-u", user, "--"] if user else []
        done = subprocess.run(
            [*self._enter(), *who, *command],
            input=give,
            stdin=subprocess.DEVNULL if give is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env=ENVIRONMENT,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in the guest and do not wait; its output is one pipe."""
        return subprocess.Popen(
            [*self._enter(), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=ENVIRONMENT,
        )

    def _enter(self) -> list[str]:
        assert self._leader, "the guest is not up"
        flags = ["-m", "-u", "-i", "-p", "-C", "-r", "-w"]
        return ["nsenter", "-t", str(self._leader), *flags, "--"]

    def out(self, *command: str, user: str = "") -> str:
        """Return what a command prints, without the last newline."""
        return self.run(*command, user=user).stdout.rstrip("\n")

    def json(self, *command: str, user: str = "") -> Any:
        """Return what a command prints, read as JSON."""
        return json.loads(self.out(*command, user=user))

    def path(self, inside: str) -> Path:
        """Return where a file of the guest is for us; not for /run and /tmp."""
        return self.root / inside.removeprefix("/")

    def put(self, inside: str, text: str, *, mode: int = 0o644, owner: str = "root:root") -> None:
        """Write a file, with folders where there are none."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        self.run("chown", owner, inside)

    # ── systemd ─────────────────────────────────────────────────────────────────────────

    def show(self, unit: str, *names: str) -> list[str]:
        """Return properties of a unit, in the order asked for."""
        text = self.out("systemctl", "show", unit, *(f"--property={name}" for name in names))
        found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        return [found.get(name, "") for name in names]

    def state(self, unit: str = "relayd") -> str:
        """Return "active running", "failed failed", …"""
        return " ".join(self.show(unit, "ActiveState", "SubState"))

    def main_pid(self, unit: str = "relayd") -> int:
        """Return the main process of a unit, as the guest numbers it; 0: none."""
        return int(self.show(unit, "MainPID")[0] or 0)

    def wait_state(self, wanted: str, unit: str = "relayd") -> None:
        """Wait until a unit is as wanted."""
        wait_until(
            lambda: self.state(unit) == wanted,
            seconds=PATIENCE_S,
            told=lambda: f"{unit} is not {wanted}:\n{self.status(unit)}",
        )

    def status(self, unit: str = "relayd") -> str:
        """Return what `systemctl status` shows."""
        return self.run("systemctl", "status", "-l", "--no-pager", unit, check=False).stdout

    def journal(self, unit: str = "relayd") -> str:
        """Return everything a unit has said since the boot."""
        return self.run("journalctl", "-b", "-q", "-o", "cat", "--no-pager", "-u", unit).stdout

    def os_release(self) -> str:
        """Return VERSION_CODENAME."""
        text = self.path("/usr/lib/os-release").read_text()
        return next(
            line.partition("=")[2]
            for line in text.splitlines()
            if line.startswith("VERSION_CODENAME=")
        )


def _remove_cgroup(folder: Path) -> None:
    """Remove a cgroup and all below it, when its processes have gone."""
    if not folder.is_dir():
        return
    deadline = time.monotonic() + 10
    while folder.is_dir() and time.monotonic() < deadline:
        for below, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(below)
        if folder.is_dir():
            time.sleep(0.05)
