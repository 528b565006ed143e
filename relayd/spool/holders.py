"""Who holds a lease, in words that another process can check after the holder died.

A name is "boot_id:pid:start time"; the start time (field 22 of /proc/pid/stat, clock ticks
since boot) tells a process from a later one with the same pid.

Source: proc_pid_stat(5).
"""

from __future__ import annotations

from relayd.clock import boot_id


def name_of(pid: int) -> str:
    """Return a process's name as a holder; it must be alive."""
    return f"{boot_id()}:{pid}:{_start_time(pid)}"


def pid_of(name: str) -> int:
    """Return the pid in a holder's name; 0 if it makes no sense."""
    parts = name.split(":")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else 0


def is_alive(name: str) -> bool:
    """Tell whether the process that `name` meant runs now; one that waits to be reaped does not."""
    parts = name.split(":")
    if len(parts) != 3 or parts[0] != boot_id():
        return False
    return _start_time(pid_of(name)) == parts[2] != ""


def _start_time(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except OSError:
        return ""
    fields = line[line.rfind(b")") + 2 :].split()  # the name may hold blanks and brackets
    if len(fields) < 20 or fields[0] in {b"Z", b"X"}:
        return ""
    return fields[19].decode("ascii")
