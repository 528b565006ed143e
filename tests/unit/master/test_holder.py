"""Who holds a port: found in /proc, named with the command that ends it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from relayd.master.holder import Holder, holder_of, unseen

TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid …
   0: 00000000:0019 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0
   1: 0100007F:0019 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0
   2: 0101A8C0:024B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0
"""
TCP6 = """  sl  local_address                         remote_address   st
   0: 00000000000000000000000001000000:1A0B 00000000000000000000000000000000:0000 0A \
00000000:00000000 00:00000000 00000000     0        0 4714 1 0
"""


def fake_proc(folder: Path, inode: int, cgroup: str = "0::/system.slice/exim4.service\n") -> Path:
    (folder / "net").mkdir()
    (folder / "net/tcp").write_text(TCP.replace("…", "timeout inode"))
    (folder / "net/tcp6").write_text(TCP6)
    (folder / "123/fd").mkdir(parents=True)
    (folder / "123/fd/5").symlink_to(f"socket:[{inode}]")
    (folder / "123/fd/6").symlink_to("/dev/null")
    (folder / "123/comm").write_text("exim4\n")
    (folder / "123/cgroup").write_text(cgroup)
    (folder / "99").mkdir()
    return folder


def test_a_service_is_named_with_the_command_that_ends_it(tmp_path: Path) -> None:
    holder = holder_of("192.0.2.1", 25, fake_proc(tmp_path, 4711))
    assert holder == Holder(123, "exim4", "exim4")
    assert (
        holder.advice()
        == "held by exim4 (pid 123): systemctl stop exim4 && systemctl disable exim4"
    )


def test_a_program_without_a_unit_is_named_with_its_pid(tmp_path: Path) -> None:
    holder = holder_of("0.0.0.0", 25, fake_proc(tmp_path, 4711, "0::/user.slice\n"))
    assert holder is not None
    assert holder.advice() == "held by exim4 (pid 123): kill 123"


@pytest.mark.parametrize(
    ("unit", "name", "advice"),
    [
        (
            "postfix@-",
            "master",
            "postfix's master (pid 9): systemctl stop postfix && systemctl disable postfix",
        ),
        (
            "postfix",
            "master",
            "postfix's master (pid 9): systemctl stop postfix && systemctl disable postfix",
        ),
        (
            "relayd@lab",
            "relayd",
            "relayd (pid 9): systemctl stop relayd@lab && systemctl disable relayd@lab",
        ),
        ("user@1000", "python3", "python3 (pid 9): kill 9"),
        ("docker", "docker-proxy", "docker-proxy (pid 9): see `docker ps`"),
        ("", "docker-proxy", "docker-proxy (pid 9): see `docker ps`"),
    ],
)
def test_the_command_ends_what_holds_the_port_and_nothing_around_it(
    unit: str, name: str, advice: str
) -> None:
    assert Holder(9, name, unit).advice().startswith(f"held by {advice}")


def test_of_a_holder_that_is_not_shown_the_user_is(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, 1)
    assert unseen("0.0.0.0", 25, proc) == (
        "held by a process of user root; which one, as root: ss -ltnp 'sport = :25'"
    )
    tcp = proc / "net/tcp"
    tcp.write_text(tcp.read_text().replace("00000000     0        0 4711", "0 4294967294 0 4711"))
    assert "a process of uid 4294967294;" in unseen("0.0.0.0", 25, proc)
    assert unseen("0.0.0.0", 26, proc).startswith("held by another process; which one, as root:")


@pytest.mark.parametrize(
    ("host", "port", "inode", "found"),
    [
        ("127.0.0.1", 25, 4712, False),  # a session, not a listener
        ("192.168.1.1", 587, 4713, True),
        ("192.168.1.2", 587, 4713, False),  # another address of ours
        ("::", 587, 4713, True),
        ("::1", 6667, 4714, True),
        ("10.0.0.1", 6666, 4711, False),
    ],
)
def test_only_what_stands_in_the_way_counts(
    tmp_path: Path, host: str, port: int, inode: int, *, found: bool
) -> None:
    assert (holder_of(host, port, fake_proc(tmp_path, inode)) is not None) is found


def test_what_may_not_be_looked_at_is_nobody(tmp_path: Path) -> None:
    assert holder_of("0.0.0.0", 25, tmp_path) is None


def test_systemd_is_asked_for_its_socket_units() -> None:
    assert "systemctl list-sockets" in Holder(1, "systemd", "init").advice()


def test_a_real_listener_is_this_process() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        holder = holder_of("127.0.0.1", listener.getsockname()[1])
    assert holder is not None
    assert holder.pid == os.getpid()
