"""Addresses are read, sockets opened, kept or taken over, and every refusal says what to do."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from relayd.config.model import Listener
from relayd.errors import ListenError
from relayd.master import sockets
from relayd.master.sockets import Address, Bound, Given, open_all, parse_address

has_ipv6 = pytest.mark.skipif(
    not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"),
    reason="this system has no IPv6",
)


@pytest.fixture
def opened() -> Iterator[list[Bound]]:
    bound: list[Bound] = []
    yield bound
    sockets.close_all(bound)


def lan(*addresses: str) -> Listener:
    return Listener(name="lan", address=addresses)


@pytest.mark.parametrize(
    ("text", "shown", "family"),
    [
        ("192.0.2.1:25", "192.0.2.1:25", socket.AF_INET),
        ("[::]:25", "[::]:25", socket.AF_INET6),
        ("[0:0::1]:587", "[::1]:587", socket.AF_INET6),
        ("*:25", "0.0.0.0:25", socket.AF_INET),
        (":25", "0.0.0.0:25", socket.AF_INET),
        ("localhost:0", "127.0.0.1:0", socket.AF_INET),
        ("[192.0.2.1]:25", "192.0.2.1:25", socket.AF_INET),
    ],
)
def test_addresses_are_read(text: str, shown: str, family: socket.AddressFamily) -> None:
    address = parse_address(text)
    assert (str(address), address.family) == (shown, family)


@pytest.mark.parametrize(
    "text", ["", "25", "host:25", "192.0.2.1:", "192.0.2.1:99999", "[::1:25", "1.2.3:x", "a\0b:1"]
)
def test_what_is_no_address_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        parse_address(text)


def test_every_address_is_bound_and_listens(opened: list[Bound]) -> None:
    opened += open_all([lan("127.0.0.1:0", "127.0.0.2:0")]).bound
    for one in opened:
        assert not one.sock.getblocking()
        with socket.create_connection(one.sock.getsockname()):
            pass
    assert sockets.by_listener(opened) == tuple(("lan", one.fd) for one in opened)


def test_a_reload_keeps_what_stays_and_says_what_is_fresh(opened: list[Bound]) -> None:
    first = open_all([lan("127.0.0.1:0")])
    opened += first.bound
    second = open_all([lan("127.0.0.1:0", "127.0.0.2:0")], first.bound)
    opened += second.bound
    assert second.bound[0].sock is first.bound[0].sock
    assert second.fresh == second.bound[1:]


def test_a_renamed_listener_keeps_its_socket(opened: list[Bound]) -> None:
    first = open_all([lan("127.0.0.1:0")])
    opened += first.bound
    second = open_all([Listener(name="office", address=("127.0.0.1:0",))], first.bound)
    assert second.bound[0].sock is first.bound[0].sock
    assert second.bound[0].listener == "office"
    assert second.fresh == ()


def test_one_refusal_leaves_nothing_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ListenError) as caught:
            open_all([lan("127.0.0.1:0", f"127.0.0.1:{port}")])
        assert len(os.listdir("/proc/self/fd")) == before
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert f"(pid {os.getpid()})" in str(caught.value)
    assert 'listener "lan"' in str(caught.value)


def test_a_port_we_hold_ourselves_asks_for_a_restart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ListenError, match="systemctl restart relayd"):
            open_all([lan(f"127.0.0.1:{port}")], ours=lambda pid: pid == os.getpid())


def test_an_address_of_somebody_else_is_named(opened: list[Bound]) -> None:
    with pytest.raises(ListenError, match="does not have that address"):
        opened += open_all([lan("192.0.2.77:25")]).bound


def test_an_impossible_address_is_a_listen_error() -> None:
    with pytest.raises(ListenError, match="is no address"):
        open_all([lan("nowhere:25")])


def test_a_low_port_without_the_right_says_which_right() -> None:
    address = Address("127.0.0.1", 25, socket.AF_INET)
    refused = OSError(errno.EACCES, "Permission denied")
    text = sockets._why(address, "lan", refused, lambda _pid: False)
    assert text.endswith("needs root or CAP_NET_BIND_SERVICE")


def test_a_holder_that_may_not_be_seen_is_left_to_root() -> None:
    address = Address("127.0.0.1", 1, socket.AF_INET)
    assert "as root" in sockets._held(address, lambda _pid: False)


@pytest.mark.parametrize(
    ("number", "host", "expected"),
    [
        (errno.EAFNOSUPPORT, "::1", True),
        (errno.EADDRNOTAVAIL, "::", True),
        (errno.EADDRNOTAVAIL, "2001:db8::1", False),
        (errno.EACCES, "::", False),
    ],
)
def test_no_ipv6_is_told_from_a_wrong_address(number: int, host: str, *, expected: bool) -> None:
    address = Address(host, 25, socket.AF_INET6)
    assert sockets._is_without_ipv6(OSError(number, "no"), address) is expected


@has_ipv6
def test_both_families_of_a_port_stand_side_by_side(opened: list[Bound]) -> None:
    opened += open_all([lan("0.0.0.0:0")]).bound
    port = opened[0].sock.getsockname()[1]
    opened += open_all([lan(f"[::]:{port}")]).bound
    assert opened[1].where() == f"[::]:{port}"
    assert opened[1].sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def test_a_socket_of_the_same_address_is_taken_from_systemd(opened: list[Bound]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        address = "{}:{}".format(*given.getsockname())
        result = open_all([lan(address)], offered=[Given("kept-whatever", given)])
        assert result.bound[0].sock is given
        assert result.bound[0].origin == "systemd"
        assert result.fresh == result.bound


def test_a_socket_of_the_listeners_name_replaces_its_addresses(opened: list[Bound]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        result = open_all([lan("127.0.0.1:1")], offered=[Given("lan", given)])
        assert [one.sock for one in result.bound] == [given]
        again = open_all([lan("127.0.0.1:1")], result.bound)
        assert [one.sock for one in again.bound] == [given]
        assert again.fresh == ()


@has_ipv6
def test_one_socket_for_both_families_serves_both_addresses() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as given:
        port = given.getsockname()[1]
        wanted = [lan(f"0.0.0.0:{port}", f"[::]:{port}")]
        result = open_all(wanted, offered=[Given("", given)])
        assert [one.sock for one in result.bound] == [given]
        assert sockets.is_wanted(Given("", given), wanted)


@has_ipv6
def test_addresses_in_another_order_find_the_one_socket_again(opened: list[Bound]) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as given:
        port = given.getsockname()[1]
        four, six = f"0.0.0.0:{port}", f"[::]:{port}"
        first = open_all([lan(four, six)], offered=[Given("kept-a", given)])
        again = open_all([lan(six, four)], first.bound)
        opened += again.bound
        assert [one.sock for one in again.bound] == [given]
        assert again.bound[0].store_name == first.bound[0].store_name
        assert again.fresh == ()


@has_ipv6
def test_an_address_written_in_another_way_is_the_same(opened: list[Bound]) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as given:
        port = given.getsockname()[1]
        first = open_all([lan(f"[::1]:{port}")], offered=[Given("", given)])
        again = open_all([lan(f"[0:0::1]:{port}")], first.bound)
        opened += again.bound
        assert again.bound == first.bound


def test_a_renamed_listener_keeps_what_systemd_gave_and_a_refusal_closes_none(
    opened: list[Bound],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        text = f"127.0.0.1:{given.getsockname()[1]}"
        first = open_all([lan(text)], offered=[Given("lan", given)])
        renamed = Listener(name="devices", address=(text,))
        again = open_all([renamed], first.bound)
        opened += again.bound
        assert [(one.listener, one.sock, one.origin) for one in again.bound] == [
            ("devices", given, "systemd")
        ]
        assert again.fresh == ()
        other = Listener(name="other", address=("192.0.2.77:25",))
        with pytest.raises(ListenError):
            open_all([renamed, other], first.bound)
        assert given.fileno() >= 0


def test_what_is_kept_for_one_name_is_not_given_to_another() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        text = f"127.0.0.1:{given.getsockname()[1]}"
        first = open_all([lan("127.0.0.1:1")], offered=[Given("lan", given)])
        thief = Listener(name="aaa", address=(text,))
        with pytest.raises(ListenError, match="held by"):
            open_all([thief, lan("127.0.0.1:1")], first.bound, ours=lambda _pid: False)


def test_an_offer_nobody_asks_for_is_not_wanted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        assert not sockets.is_wanted(Given("kept-a", given), [lan("127.0.0.1:1")])
        assert sockets.is_wanted(Given("lan", given), [lan("127.0.0.1:1")])


def test_words_for_another_process_are_not_believed_but_taken_away() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "PATH": "/bin"}
    assert sockets.given(environ) == []
    assert environ == {"PATH": "/bin"}


def test_a_store_name_has_no_colon() -> None:
    with socket.socket() as sock:
        assert Bound("lan", "[::1]:25", sock).store_name == "kept----1--25"


def test_a_childs_environment_has_nothing_of_systemds_words_to_the_master() -> None:
    environ = {"NOTIFY_SOCKET": "/a", "WATCHDOG_USEC": "1", "LISTEN_FDS": "1", "LANG": "C"}
    assert sockets.environment(environ) == {"LANG": "C"}
