"""The AppArmor profile allows each file that a running relay opens, locks, maps or runs.

No kernel with AppArmor is needed: strace tells what the relay does, with Debian's Python, through a
delivery, a reload and a stop; the rules of the profile and of what it includes are matched here.
Where the test has folders of its own, the packaged ones are put in their place.
"""

from __future__ import annotations

import re
import shutil
import smtplib
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.relay_process import RelayProcess, free_port
from tests.sandbox_process import start_sandbox

ROOT = Path(__file__).parent.parent.parent
PROFILE = ROOT / "packaging/debian/etc/apparmor"
INCLUDED = Path("/etc/apparmor.d")
DEBIAN = "/usr/bin/python3"
MODULES = (
    "argon2, cryptography, dkim, gevent, msal, prometheus_client, requests, structlog, urllib3"
)
CALLS = "%file,bind,connect,flock,fcntl,mmap"

# ---- rules


class Rule(NamedTuple):
    """A file rule. rights: of "rwlkmx"; path: a regular expression."""

    path: re.Pattern[str]
    rights: frozenset[str]
    is_denied: bool


_RULE: Final = re.compile(r"^\s*((?:owner |deny |audit )*)([/@]\S*)\s+([a-zA-Z]+),$")
_INCLUDE: Final = re.compile(r"^\s*#?include (?:if exists )?<([^>]+)>")
_VARIABLE: Final = re.compile(r"^(@\{\w+\})\s*\+?=\s*(.*)$")


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a profile, and in place of an include those of what it names."""
    if path.is_dir():
        for each in sorted(path.iterdir()):
            yield from lines_of(each)
    elif path.exists():
        for line in path.read_text().splitlines():
            if found := _INCLUDE.match(line):
                yield from lines_of(INCLUDED / found[1])
            else:
                yield line.partition(" #")[0].rstrip()


def rules() -> list[Rule]:
    """Return the file rules of the profile."""
    lines = list(lines_of(PROFILE))
    values: dict[str, list[str]] = {}
    for line in lines:
        if found := _VARIABLE.match(line):
            values.setdefault(found[1], []).extend(found[2].replace('"', "").split())
    out = []
    for line in lines:
        if found := _RULE.match(line):
            path = found[2]
            while variable := re.search(r"(@\{\w+\})/?", path):
                choice = ",".join(each.rstrip("/") for each in values[variable[1]])
                path = path.replace(variable[1], "{" + choice + "}", 1)
            path = re.sub("/+", "/", path)
            rights = set(found[3].lower().replace("i", "").replace("p", "").replace("u", ""))
            out.append(Rule(re.compile(pattern(path)), frozenset(rights), "deny" in found[1]))
    return out


def pattern(glob: str) -> str:
    """Return AppArmor's globbing as a regular expression.

    Source: apparmor.d(5), Globbing.
    """
    out = ""
    at = 0
    while at < len(glob):
        one = glob[at]
        if glob.startswith("**", at):
            out, at = out + ".*", at + 1
        elif one == "[":
            end = glob.index("]", at)
            out, at = out + glob[at : end + 1].replace("[^", "[^/"), end
        else:
            tokens = {"*": "[^/]*", "?": "[^/]", "{": "(?:", "}": ")", ",": "|"}
            out += tokens.get(one, re.escape(one))
        at += 1
    return out


# ---- what the relay does


class Deed(NamedTuple):
    """right: one of "rwlkmx", as AppArmor names it."""

    path: str
    right: str


_CALL: Final = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+)")
_NAMED: Final = re.compile(r'(?:(AT_FDCWD|\d+)(?:<([^>]*)>)?, )?"((?:[^"\\]|\\.)*)"')
_WRITES: Final = ("unlink", "mkdir", "rmdir", "rename", "chmod", "mknod", "link", "utime", "trunc")


def deeds(trace: Iterator[str]) -> Iterator[Deed]:
    """Yield what AppArmor would be asked about."""
    for line in trace:
        found = _CALL.match(line)
        if found is None or (int(found[3]) < 0 and "ENOENT" in line):
            continue
        call, given = found[1], found[2]
        names = [
            name if name.startswith("/") else f"{folder or Path.cwd()}/{name}".rstrip("/")
            for _, folder, name in _NAMED.findall(given)
        ]
        of_descriptor = re.findall(r"\d+<(/[^>]*)>", given)
        if call in ("open", "openat"):
            is_written = re.search(r"O_WRONLY|O_RDWR|O_CREAT|O_TMPFILE", given)
            is_read = "O_WRONLY" not in given and "O_PATH" not in given
            yield from [Deed(names[0], "w")] if is_written else []
            yield from [Deed(names[0], "r")] if is_read else []
        elif call == "execve":
            yield Deed(names[0], "x")
        elif call in ("bind", "connect"):
            path = re.search(r'sun_path="([^"]+)"', given)
            yield from [Deed(path[1], "w")] if path else []
        elif call == "flock" or (call == "fcntl" and "SETLK" in given):
            yield from [Deed(path, "k") for path in of_descriptor[:1]]
        elif call == "mmap":
            is_code = "PROT_EXEC" in given
            yield from [Deed(path, "m") for path in of_descriptor if is_code]
        elif call.startswith(_WRITES):
            yield from [Deed(name, "w") for name in names]


def packaged(path: str, folder: Path) -> str:
    """Return where the packaged relay has what this one has at `path`."""
    places = {
        f"{folder}/relay/run": "/run/relayd",
        f"{folder}/relay/state": "/var/lib/relayd",
        f"{folder}/relay/spool": "/var/spool/relayd",
        f"{folder}/relay": "/etc/relayd",
        f"{folder}/sandbox": "/etc/relayd",
        str(ROOT): "/usr/lib/python3/dist-packages",
    }
    path = re.sub("/+", "/", path).replace("/proc/self/", "/proc/1/")
    for here, there in places.items():
        if path == here or path.startswith(here + "/"):
            return there + path.removeprefix(here)
    # Merged /usr: the kernel tells AppArmor the one path there is.
    return re.sub(r"^/(bin|sbin|lib|lib64)/", r"/usr/\1/", path)


@cache
def debian_can() -> bool:
    done = subprocess.run([DEBIAN, "-c", f"import {MODULES}"], capture_output=True, check=False)
    return done.returncode == 0


def send(relay: RelayProcess) -> None:
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as client:
        client.sendmail("alerts@contoso.com", ["a@contoso.com"], b"Subject: x\r\n\r\nx\r\n")


@pytest.mark.slow(10)
@pytest.mark.timeout(180)
def test_the_profile_allows_what_a_running_relay_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("strace") or not debian_can() or not (INCLUDED / "abstractions").is_dir():
        pytest.skip("needs strace, AppArmor's abstractions and Debian's own python3-* packages")
    # The packaged relay cannot write beside its modules either.
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    trace = tmp_path / "trace"
    command = ["strace", "-D", "-ff", "-qq", "-y", "-s", "4096", "-o", str(trace), "-e"]
    command += [f"trace={CALLS}", DEBIAN, "-m", "relayd"]
    become = f"import os, sys; os.execvp('strace', {command} + sys.argv[1:])"
    with start_sandbox(tmp_path) as sandbox:
        relay = RelayProcess(
            tmp_path / "relay", sandbox.upstream_toml(), admin=f"127.0.0.1:{free_port()}"
        )
        relay.start(program=("-c", become))
        send(relay)
        relay.wait_empty()
        relay.ask("reload")
        send(relay)
        relay.wait_empty()
        assert relay.stop(seconds=60) == 0
    allowed = rules()
    assert len(allowed) > 100
    done = {
        Deed(packaged(deed.path, tmp_path), deed.right)
        for each in sorted(tmp_path.glob("trace.*"))
        for deed in deeds(iter(each.read_text(errors="replace").splitlines()))
        # What a descriptor stands for was asked about when it was opened; a memfd never is.
        if not re.match(r"/proc/self/fd/\d+$", deed.path)
    }
    assert len(done) > 200
    missing = sorted(deed for deed in done if not is_allowed(deed, allowed))
    assert not missing, "\n".join(f"{d.right} {d.path}" for d in missing)


def is_allowed(deed: Deed, allowed: list[Rule]) -> bool:
    # A folder is asked about with a slash at its end, which strace does not show.
    return any(
        deed.right in rule.rights and not rule.is_denied and rule.path.fullmatch(path)
        for rule in allowed
        for path in (deed.path, deed.path + "/")
    )
