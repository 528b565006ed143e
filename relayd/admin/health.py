"""Alive? Ready? What the master said, judged check by check; each reason is one sentence.

    {"ok": false, "checks": {"spool": {"ok": false, "text": "No space left on device"}, …}}

Ready means that a device's mail would be taken and kept. An upstream that is down is told, and
changes nothing: mail waits for it, and a load balancer that took this relay out would only move
the trouble.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from relayd.master.frames import Frame, Json

_SERVING: Final = ("running", "reload", "upgrade")
_MOST_NAMED: Final = 5


class Check(NamedTuple):
    """One look at one thing."""

    ok: bool
    text: str


class Health(NamedTuple):
    """All looks, by name."""

    checks: Mapping[str, Check]

    @property
    def ok(self) -> bool:
        """True when every check is."""
        return all(check.ok for check in self.checks.values())

    def render(self) -> bytes:
        """Return it as JSON, a line for each check."""
        rows = (
            f" {json.dumps(name)}: {json.dumps(check._asdict())}"
            for name, check in self.checks.items()
        )
        text = f'{{"ok": {json.dumps(self.ok)}, "checks": {{\n' + ",\n".join(rows) + "\n}}\n"
        return text.encode("ascii")


def silent(text: str) -> Health:
    """Return the health of a relay whose master gave no answer."""
    return Health({"master": Check(ok=False, text=text)})


def alive(pong: Frame) -> Health:
    """Return what an answer of the master to `ping` means: its loop turns."""
    text = f"relayd {pong.get('version')}, pid {pong.get('pid')}, answers"
    return Health({"master": Check(ok=True, text=text)})


def ready(status: Frame) -> Health:
    """Return whether mail would be taken and kept, by the master's answer to `status`."""
    return Health(
        {
            "master": _master(status),
            "workers": _workers(status),
            "listeners": _listeners(status),
            "spool": _spool(status),
            "upstreams": _upstreams(status),
        }
    )


def _master(status: Frame) -> Check:
    state = str(status.get("state"))
    return Check(ok=state.partition(":")[0] in _SERVING, text=state)


def _workers(status: Frame) -> Check:
    workers = [row for row in _rows(status.get("processes")) if row.get("kind") == "worker"]
    serving = sum(1 for row in workers if row.get("state") == "ready")
    why = f": {status['unavailable']}" if status.get("unavailable") else ""
    return Check(ok=serving > 0, text=f"{serving} of {status.get('workers')} serve{why}")


def _listeners(status: Frame) -> Check:
    addresses = [str(row.get("address")) for row in _rows(status.get("listeners"))]
    return Check(ok=bool(addresses), text=_named(addresses) if addresses else "none is open")


def _spool(status: Frame) -> Check:
    spool = status.get("spool")
    if not isinstance(spool, Mapping):
        return Check(ok=False, text="no worker has told of it yet")
    ok = spool.get("ok") is True
    return Check(ok=ok, text="mail can be kept" if ok else str(spool.get("text")))


def _upstreams(status: Frame) -> Check:
    if not status.get("upstreams_configured"):
        text = "not configured yet, mail is answered 451 4.3.5: relayd setup"
        return Check(ok=False, text=text)
    upstreams = status.get("upstreams")
    rows = upstreams if isinstance(upstreams, Mapping) else {}
    told = [_told(name, row) for name, row in sorted(rows.items()) if isinstance(row, Mapping)]
    return Check(ok=True, text=_named(told, "; ") if told else "not known yet; mail is kept")


def _told(name: str, row: Mapping[str, Json]) -> str:
    state, cause = row.get("state"), row.get("cause")
    if state != "up":
        return f"{name}: {state}{f' ({cause})' if cause else ''}, mail is kept"
    expires_s = row.get("token_expires_s")
    if isinstance(expires_s, int | float) and expires_s > 0:
        return f"{name}: up, token good for {round(expires_s)} s"
    return f"{name}: up, no token yet"


def _named(texts: Iterable[str], between: str = ", ") -> str:
    """Return the first few of many."""
    every = list(texts)
    more = len(every) - _MOST_NAMED
    return between.join(every[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _rows(value: Json) -> list[Mapping[str, Json]]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
