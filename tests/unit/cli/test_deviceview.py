"""A device's last mail and refusal, with what would let it in; and who knocked without a name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.master.frames import Frame, done
from tests.control_socket import ControlSocket, pages

UPS: Frame = {
    "name": "ups", "kind": "device", "upstream": "contoso", "from": "ups@contoso.com",
    "networks": ["192.0.2.5/32"], "to": [], "priority": "high",
}  # fmt: skip
NAS: Frame = {**UPS, "name": "nas", "kind": "user", "networks": [], "priority": "normal"}
REFUSAL: Frame = {
    "at": "2026-11-20T10:00:00.123Z", "code": 550, "reply": "Recipient not allowed",
    "reason": "recipient x@example.com not in allow_to", "do": "Add it to allow_to.",
    "sender": "ups@nas.local", "recipient": "x@example.com", "login": "", "session": "s1",
    "listener": "lan",
    "transcript": ["C: RCPT TO:<x@example.com>\x1b[2J", "S: 550 5.7.1 Recipient not allowed"],
}  # fmt: skip
CALLER: Frame = {
    "ip": "192.0.2.5", "device": "ups", "user": "", "accepted": 12, "refused": 3,
    "last": {"at": "2026-11-20T09:00:00.000Z", "id": "1JV7SEQSLMJCW", "from": "ups@nas.local"},
    "refusal": REFUSAL,
}  # fmt: skip
STRANGER: Frame = {
    "ip": "192.0.2.9", "device": "", "user": "", "accepted": 0, "refused": 1,
    "refusal": {**REFUSAL, "reason": "no [[device]] has this address"},
}  # fmt: skip


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as control:
        control.answers["devices"] = pages({"devices": [UPS]}, {"devices": [NAS]})
        control.answers["callers"] = [done({"up_s": 7500, "callers": [STRANGER, CALLER]})]
        yield control


def test_a_list_has_devices_with_their_last_mail_and_who_else_knocked(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert control.relayd("device", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["ups", "192.0.2.5/32", "contoso", "12", "3"]
    assert "2026-11-20 09:00:00  2026-11-20 10:00:00: recipient x@example.com" in lines[1]
    assert "nas" not in "".join(lines), "a user is no device"
    assert lines[-1] == (
        "  192.0.2.9  refused once, last 2026-11-20 10:00:00: no [[device]] has this address"
    )


def test_a_list_as_json_has_strangers_without_a_name(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert control.relayd("device", "list", "--json") == 0
    ups, stranger = json.loads(capsys.readouterr().out)
    assert (ups["name"], ups["accepted"], ups["refused"]) == ("ups", 12, 3)
    assert (stranger["name"], stranger["networks"]) == ("", ["192.0.2.9"])


GUESSED: Frame = {
    **STRANGER, "user": "nas", "refusal": {**REFUSAL, "reason": "login: wrong", "login": "nas"},
}  # fmt: skip


def test_who_only_gave_the_name_of_a_user_has_knocked_and_who_logged_in_has_not(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, strangers in (({}, ["192.0.2.9"]), ({"accepted": 1}, [])):
        control.answers["callers"] = [done({"up_s": 1, "callers": [{**GUESSED, **changes}]})]
        assert control.relayd("device", "list", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert [row["networks"][0] for row in told if not row["name"]] == strangers


def test_a_users_refused_logins_are_shown_with_where_they_came_from(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["devices"] = pages({"devices": [{**NAS, "upstream": ""}]})
    control.answers["callers"] = [done({"up_s": 1, "callers": [GUESSED]})]
    assert control.relayd("device", "show", "nas") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "user nas, From ups@contoso.com, may write to own domains"
    assert lines[1].endswith("0 accepted, 1 refused")
    assert "from 192.0.2.9: 550" in lines[3]
    assert "  why           login: wrong" in lines


def test_several_addresses_of_a_device_are_added_up_and_the_latest_counts(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    other: Frame = {
        **CALLER, "ip": "192.0.2.6",
        "last": {"at": "2026-11-20T09:30:00.000Z", "id": "B"}, "refusal": None,
    }  # fmt: skip
    control.answers["callers"] = [done({"up_s": 1, "callers": [CALLER, other]})]
    assert control.relayd("device", "list", "--json") == 0
    (ups,) = json.loads(capsys.readouterr().out)
    assert (ups["accepted"], ups["last_at"]) == (24, "2026-11-20T09:30:00.000Z")
    assert ups["refused_at"] == REFUSAL["at"]


def test_without_devices_the_list_says_how_to_make_one(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["devices"] = pages({"devices": []})
    control.answers["callers"] = [done({"callers": [STRANGER] * 12})]
    assert control.relayd("device", "list") == 0
    out = capsys.readouterr().out
    assert "relayd device add IP --name NAME" in out
    assert "and 2 more" in out


def test_a_device_is_shown_with_its_last_refusal_and_what_would_let_it_in(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["callers"] = [done({"up_s": 7500, "callers": [CALLER]})]
    assert control.relayd("device", "show", "ups") == 0
    assert control.asked()[-1] == {"command": "callers", "name": "ups"}
    out = capsys.readouterr().out
    for wanted in (
        "device ups, 192.0.2.5/32, upstream contoso, From ups@contoso.com, may write to own",
        "own domains, priority high",
        "since relayd started 2 h 5 min ago: 12 accepted, 3 refused",
        "last mail     2026-11-20 09:00:00 from 192.0.2.5, id 1JV7SEQSLMJCW, sender ups@nas.local",
        "last refusal  2026-11-20 10:00:00 from 192.0.2.5: 550 Recipient not allowed",
        "why           recipient x@example.com not in allow_to",
        "do            Add it to allow_to.",
        "    C: RCPT TO:<x@example.com>\\x1b[2J",
    ):
        assert wanted in out
    assert "\x1b" not in out
    assert "login as" not in out


def test_an_address_is_shown_with_the_device_it_is(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["callers"] = [done({"up_s": 1, "callers": [CALLER]})]
    assert control.relayd("device", "show", "192.0.2.5") == 0
    assert control.asked()[-1] == {"command": "callers", "ip": "192.0.2.5"}
    assert "device ups" in capsys.readouterr().out


def test_a_strangers_address_is_shown_as_nobodys(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["callers"] = [done({"up_s": 1, "callers": [STRANGER]})]
    assert control.relayd("device", "show", "192.0.2.9") == 0
    assert "192.0.2.9 is no device and did not log in" in capsys.readouterr().out


def test_one_that_never_called_has_no_mail_and_no_refusal(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["callers"] = [done({"up_s": 1, "callers": []})]
    assert control.relayd("device", "show", "nas") == 0
    out = capsys.readouterr().out
    assert "user nas" in out
    assert "last mail     none" in out
    assert "relayd queue list --state all --device nas" in out
    assert "last refusal  none" in out


@pytest.mark.parametrize(
    ("name", "words"),
    [("printer", "there are: ups, nas"), ("198.51.100.7", "relayd device add 198.51.100.7")],
)
def test_who_nobody_knows_is_said_so(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    control.answers["callers"] = [done({"up_s": 1, "callers": []})]
    assert control.relayd("device", "show", name) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("words", [["list"], ["show", "ups"]])
def test_without_the_relay_there_is_nothing_to_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with ControlSocket(tmp_path) as control:
        (tmp_path / "control.sock").unlink()
        assert control.relayd("device", *words) == 69
    assert "/relayd.toml run\n" in capsys.readouterr().err
