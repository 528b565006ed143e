"""Answers are taken or refused with words; nobody is asked for ever."""

from __future__ import annotations

import argparse
import getpass
import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from relayd.cli import setupask
from relayd.cli.setupask import Given, GivenUp, Wrong

GUID = "10000000-0000-0000-0000-000000000000"
ROUTE = """Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
eth0 00000000 010AA8C0 0003 0 0 100 00000000 0 0 0
eth0 000AA8C0 00000000 0001 0 0 100 00FFFFFF 0 0 0
eth1 0000000A 00000000 0001 0 0 100 000000FF 0 0 0
eth2 0064A8C0 00000000 0000 0 0 100 00FFFFFF 0 0 0
docker0 000011AC 00000000 0001 0 0 0 0000FFFF 0 0 0
eth3 00007108 00000000 0001 0 0 0 00FFFFFF 0 0 0
"""


def options(**given: object) -> argparse.Namespace:
    texts = "tenant client_id mailbox object_id name cloud authority graph ca_file test_to"
    empty = dict.fromkeys((*texts.split(), "secret_file"), "")
    return argparse.Namespace(
        **{**empty, "network": [], "listen": [], "secret_stdin": False, "no_start": False, **given}
    )


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (setupask.tenant, "contoso.onmicrosoft.com", "contoso.onmicrosoft.com"),
        (setupask.tenant, GUID, GUID),
        (
            setupask.client_id,
            "ABCDEF00-0000-0000-0000-000000000000",
            "abcdef00" + GUID[8:].replace("1", "0"),
        ),
        (setupask.object_id, "", ""),
        (setupask.mailbox, "alerts@contoso.com", "alerts@contoso.com"),
        (setupask.secret, "aBc~8Q.x", "aBc~8Q.x"),
        (setupask.networks, "none", ()),
        (setupask.networks, "192.168.1.0/24, 10.0.0.5 10.0.0.5", ("192.168.1.0/24", "10.0.0.5/32")),
        (setupask.addresses, "0.0.0.0:25,[::]:25", ("0.0.0.0:25", "[::]:25")),
        (setupask.https, "https://127.0.0.1:8443/", "https://127.0.0.1:8443"),
        (setupask.name, "contoso-2", "contoso-2"),
    ],
)
def test_right_answers_are_taken(
    kind: Callable[[str], object], text: str, expected: object
) -> None:
    assert kind(text) == expected


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (setupask.tenant, "contoso", "contoso.onmicrosoft.com"),
        (setupask.tenant, "", "Directory (tenant) ID"),
        (setupask.client_id, "contoso", "Application (client) ID"),
        (setupask.client_id, "", "Overview"),
        (setupask.object_id, "x", "Object ID"),
        (setupask.mailbox, "alerts", "no mailbox"),
        (setupask.mailbox, "sender", "no mailbox"),
        (setupask.mailbox, "", 'write "alerts@contoso.com"'),
        (setupask.secret, "", "empty"),
        (setupask.secret, "a\nb", "one line"),
        (setupask.secret, "x" * 1001, "one line"),
        (setupask.secret, "a b ", "blanks"),
        (setupask.secret, "sécret", "do not print"),
        (setupask.secret, GUID, "Secret ID, not the secret"),
        (setupask.networks, "192.168.1.5/24", 'write "192.168.1.0/24"'),
        (setupask.networks, "printer", "no network"),
        (setupask.networks, "0.0.0.0/0", "everybody"),
        (setupask.networks, "::/0", "everybody"),
        (setupask.networks, "8.8.8.0/24", "public internet"),
        (setupask.addresses, "relay.lan:25", "no IP address"),
        (setupask.addresses, "0.0.0.0", "no address with port"),
        (setupask.addresses, " ", "no address"),
        (setupask.https, "http://x", "no https address"),
        (setupask.https, "", "no address"),
        (setupask.name, "a b", "no name"),
    ],
)
def test_wrong_answers_are_refused_with_what_is_wanted(
    kind: Callable[[str], object], text: str, words: str
) -> None:
    with pytest.raises(Wrong) as caught:
        kind(text)
    assert words in str(caught.value)


def test_a_secret_is_never_in_the_words() -> None:
    for text in ("s3cr3t ", "s3cr3t\n", "s3cr3té", "s3cr3t" * 200, GUID):
        with pytest.raises(Wrong) as caught:
            setupask.secret(text)
        assert text.strip() not in str(caught.value)
        assert "s3cr3t" not in str(caught.value)


# ---- asking


def typed(monkeypatch: pytest.MonkeyPatch, lines: Iterable[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_enter_takes_the_default_and_nonsense_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, ["", "nonsense", "  contoso.com "])
    assert setupask.ask("Tenant", setupask.tenant, "fabrikam.com") == "fabrikam.com"
    assert setupask.ask("Tenant", setupask.tenant) == "contoso.com"
    assert capsys.readouterr().out == (
        "Tenant [fabrikam.com]: Tenant:   no tenant; write "
        '"contoso.onmicrosoft.com", or the Directory (tenant) ID\nTenant: '
    )


def test_after_five_wrong_answers_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, ["x"] * 5 + ["contoso.com"])
    with pytest.raises(GivenUp, match="5 answers"):
        setupask.ask("Tenant", setupask.tenant)
    assert sys.stdin.read() == "contoso.com\n"


def test_the_end_of_input_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, [])
    with pytest.raises(GivenUp, match="input ended"):
        setupask.ask("Tenant", setupask.tenant)


def test_a_secret_is_asked_for_like_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["", " s3cret "])
    monkeypatch.setattr(getpass, "getpass", lambda _prompt: next(answers))
    assert setupask.ask_secret("Client secret", setupask.secret) == "s3cret"

    def ends(_prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", ends)
    with pytest.raises(GivenUp, match="input ended"):
        setupask.ask_secret("Client secret", setupask.secret)


@pytest.mark.parametrize(
    ("line", "expected"), [("", True), ("Y", True), ("yes ", True), ("no", False), ("N", False)]
)
def test_enter_confirms(monkeypatch: pytest.MonkeyPatch, line: str, *, expected: bool) -> None:
    typed(monkeypatch, [line])
    assert setupask.confirm("Write this?") is expected


def test_a_slip_of_the_finger_is_neither_yes_nor_no_and_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, ["u", "ye", "y"])
    assert setupask.confirm("Write this?") is True
    assert capsys.readouterr().out.count("write y or n") == 2
    typed(monkeypatch, ["u"] * 5 + ["y"])
    with pytest.raises(GivenUp, match="5 answers"):
        setupask.confirm("Write this?")


# ---- options


def test_options_are_judged_as_answers_are_all_of_them_at_once() -> None:
    given = Given(options(tenant="x", mailbox="y", network=["0.0.0.0/0"], listen=["z"]))
    assert [text.partition(":")[0] for text in given.wrong] == [
        "--tenant x",
        "--mailbox y",
        "--network",
        "--listen",
    ]
    given = Given(options(secret_file="f", secret_stdin=True, cloud="global", graph="https://g"))
    assert [text.partition(":")[0] for text in given.wrong] == ["--secret-file", "--cloud"]


def test_a_test_mail_needs_a_relay_that_was_told() -> None:
    (wrong,) = Given(options(test_to="a@contoso.com", no_start=True)).wrong
    assert wrong.startswith("--test-to: ")


def test_what_is_not_given_is_told_from_nothing() -> None:
    given = Given(options(ca_file="ca.pem"))
    assert (given.networks, given.listen, given.wrong) == (None, None, [])
    assert given.ca_file.startswith("/")
    assert Given(options(network=["none"])).networks == ()


def test_networks_this_host_is_on_are_proposed(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net/route").write_text(ROUTE)
    # Not the default route, a network too wide, one that is down, a bridge, a public one.
    assert setupask.own_networks(tmp_path) == ("192.168.10.0/24",)
    assert setupask.own_networks(tmp_path / "nowhere") == ()
