"""`relayd device list` and `show`: what became last of each device, and of who is none.

The running relay is asked, nothing of the configuration is read: members of relayd-admin see it
all. What was refused, and the setting that would let it in, comes from where it was refused
(`access.plan`, `serve.desk`) by way of `serve.callers`.
"""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence
from typing import Final

from relayd.cli import main as command_line
from relayd.cli import terminal
from relayd.cli.answers import list_of, mapping_of, number_of, rows_of, text_of
from relayd.cli.daemon import ask, ask_each
from relayd.master.frames import Frame, Json

_MOST_STRANGERS: Final = 10


def list_(options: argparse.Namespace) -> int:
    """Show devices, what became of them last, and who else knocked."""
    devices = [row for row in _devices(options) if row.get("kind") == "device"]
    callers = rows_of(ask(options, {"command": "callers"}).get("callers"))
    rows = [_listed(row, [c for c in callers if c.get("device") == row["name"]]) for row in devices]
    strangers = [c for c in callers if not c.get("device") and not _has_logged_in(c)]
    rows += [_listed({"networks": [c.get("ip")]}, [c]) for c in strangers]
    if options.json:
        terminal.print_json(rows)
        return command_line.OK
    cells = [_list_cells(row) for row in rows if row["name"]]
    heads = ("NAME", "NETWORKS", "UPSTREAM", "ACCEPTED", "REFUSED", "LAST MAIL", "LAST REFUSAL")
    print(terminal.table(cells, heads) if cells else _NONE_YET)
    if strangers:
        print("\nwho is no device and did not log in:")
        for c in strangers[:_MOST_STRANGERS]:
            print(terminal.safe(f"  {_stranger_words(c)}"))
        if len(strangers) > _MOST_STRANGERS:
            print(f"  and {len(strangers) - _MOST_STRANGERS} more: relayd --json device list")
    return command_line.OK


def _has_logged_in(caller: Frame) -> bool:
    """Tell whether a caller is a user, and not one who only gave the name of one."""
    refusal = mapping_of(caller.get("refusal"))
    is_name_only = refusal.get("login") == caller.get("user") and not caller.get("accepted")
    return bool(caller.get("user")) and not is_name_only


_NONE_YET: Final = "no devices yet: relayd device add IP --name NAME --from ADDRESS"


def _devices(options: argparse.Namespace) -> list[Frame]:
    pages = ask_each(options, {"command": "devices"})
    return [row for page in pages for row in rows_of(page.get("devices"))]


def _listed(device: Frame, callers: Sequence[Frame]) -> dict[str, Json]:
    last = _latest(callers, "last")
    refusal = _latest(callers, "refusal")
    return {
        "name": text_of(device.get("name")),
        "networks": list_of(device.get("networks")),
        "upstream": text_of(device.get("upstream")),
        "from": text_of(device.get("from")),
        "to": list_of(device.get("to")),
        "priority": text_of(device.get("priority")),
        "accepted": round(sum(number_of(c.get("accepted")) for c in callers)),
        "refused": round(sum(number_of(c.get("refused")) for c in callers)),
        "last_at": text_of(last.get("at")),
        "refused_at": text_of(refusal.get("at")),
        "reason": text_of(refusal.get("reason")) or text_of(refusal.get("reply")),
    }


def _latest(callers: Sequence[Frame], key: str) -> Frame:
    """Return the latest `last` or `refusal` of some rows, with the address it came from."""
    found = [{**mapping_of(c[key]), "ip": c.get("ip")} for c in callers if c.get(key)]
    return max(found, key=lambda one: text_of(one.get("at")), default={})


def _list_cells(row: Frame) -> Sequence[str]:
    return (
        text_of(row["name"]),
        " ".join(text_of(one) for one in list_of(row["networks"])),
        text_of(row["upstream"]),
        text_of(row["accepted"]),
        text_of(row["refused"]),
        _when(row["last_at"]) or "-",
        f"{_when(row['refused_at'])}: {row['reason']}" if row["refused_at"] else "-",
    )


def _stranger_words(caller: Frame) -> str:
    refusal = mapping_of(caller.get("refusal"))
    times = number_of(caller.get("refused"))
    return (
        f"{caller.get('ip')}  refused {'once' if times == 1 else f'{times:g} times'}, last"
        f" {_when(refusal.get('at'))}: {refusal.get('reason') or refusal.get('reply')}"
    )


def _when(value: Json) -> str:
    """Return a moment as people read it, UTC."""
    return text_of(value).partition(".")[0].replace("T", " ").removesuffix("Z")


def show(options: argparse.Namespace) -> int:
    """Show one device, user or address."""
    ip = _ip(options.name)
    devices = _devices(options)
    if ip:
        known = next((row for row in devices if _has(row, ip)), None)
        request: Frame = {"command": "callers", "ip": ip}
    else:
        known = next((row for row in devices if row.get("name") == options.name), None)
        request = {"command": "callers", "name": options.name}
    answer = ask(options, request)
    callers = rows_of(answer.get("callers"))
    if known is None and not callers:
        terminal.complain(_unknown(options.name, ip, devices))
        return command_line.FAILED
    story: dict[str, Json] = {
        **_listed(known or {}, callers),
        "kind": text_of((known or {}).get("kind")),
        "up_s": answer.get("up_s"),
        "last": _latest(callers, "last"),
        "refusal": _latest(callers, "refusal"),
    }
    if options.json:
        terminal.print_json(story)
    else:
        print("\n".join(terminal.safe(line) for line in _show_lines(story, options.name)))
    return command_line.OK


def _ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def _has(row: Frame, ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    networks = [ipaddress.ip_network(text_of(one)) for one in list_of(row.get("networks"))]
    return any(address in network for network in networks)


def _unknown(name: str, ip: str, devices: Sequence[Frame]) -> str:
    if ip:
        return (
            f"{ip} is in no device's networks and has not come by since relayd started;"
            f" relayd device add {ip} --name NAME"
        )
    names = [text_of(row.get("name")) for row in devices]
    told = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return f"no device or user named {name}; there are: {told or 'none yet'}"


def _show_lines(story: Frame, asked: str) -> list[str]:
    lines = [_who(story, asked)]
    last, refusal = mapping_of(story["last"]), mapping_of(story["refusal"])
    up = terminal.duration(number_of(story["up_s"]))
    lines.append(
        f"  since relayd started {up} ago: {story['accepted']} accepted, {story['refused']} refused"
    )
    if last:
        words = f"{_when(last.get('at'))} from {last.get('ip')}, id {last.get('id')}"
        lines.append(f"  last mail     {words}, sender {last.get('from') or '<>'}")
    else:
        name = text_of(story["name"]) or "NAME"
        earlier = f"relayd queue list --state all --device {name}"
        lines.append(f"  last mail     none; before that: {earlier}")
    if not refusal:
        return [*lines, "  last refusal  none"]
    said = f"{refusal['code']} {refusal.get('reply')}" if refusal.get("code") else "no reply"
    lines.append(f"  last refusal  {_when(refusal.get('at'))} from {refusal.get('ip')}: {said}")
    for key, head in _DETAILS:
        if refusal.get(key):
            lines.append(f"  {head:13} {refusal[key]}")
    dialogue = [text_of(one) for one in list_of(refusal.get("transcript"))]
    return lines + (["  dialogue"] if dialogue else []) + [f"    {line}" for line in dialogue]


_DETAILS: Final = (
    ("reason", "why"),
    ("do", "do"),
    ("sender", "sender"),
    ("recipient", "recipient"),
    ("login", "login as"),
    ("session", "session"),
)


def _who(story: Frame, asked: str) -> str:
    if not story["name"]:
        return f"{asked} is no device and did not log in"
    networks = " ".join(text_of(one) for one in list_of(story["networks"]))
    words = [f"{story['kind']} {story['name']}", networks]
    words.append(f"upstream {story['upstream']}" if story["upstream"] else "")
    words.append(f"From {story['from']}" if story["from"] else "")
    to = " ".join(text_of(one) for one in list_of(story["to"]))
    words.append(f"may write to {to or 'own domains'}")
    words.append(f"priority {story['priority']}" if story["priority"] != "normal" else "")
    return ", ".join(filter(None, words))
