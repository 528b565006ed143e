"""The rule that decides is named with the setting that would change it; the relay's own rules."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from relayd.access.plan import Plan, Planner
from relayd.cli.explain_access import judge, read_mail
from relayd.config.partial import look
from relayd.message.address import parse_path
from tests.control_socket import ControlSocket, pages, relayd

CONFIG = """\
[server]
hostname = "relay.test"
default_domain = "contoso.com"
runtime_dir = "{folder}"
state_dir = "{folder}"
[[listener]]
name = "lan"
address = ["0.0.0.0:25"]
auth_without_tls = true
[[listener]]
name = "logins"
address = ["0.0.0.0:587"]
auth = "required"
tls = "required"
[[listener]]
name = "open"
address = ["127.0.0.1:26"]
auth = "off"
[upstream.contoso]
tenant = "contoso.onmicrosoft.com"
client_id = "11111111-1111-4111-8111-111111111111"
client_secret_file = "{folder}/not-ours-to-read"
mailbox = "alerts@contoso.com"
[[device]]
name = "ups"
networks = ["192.0.2.5/32"]
priority = "high"
[[device]]
name = "nas"
networks = ["192.0.2.6/32"]
from = "nas@contoso.com"
allow_to = ["*"]
[[user]]
name = "printer1"
password_hash = "{hash}"
"""

HASH = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$" + "A" * 43
UPS, NAS, STRANGER = "192.0.2.5", "192.0.2.6", "198.51.100.1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "relayd.toml"
    made.write_text(CONFIG.format(folder=tmp_path, hash=HASH))
    made.chmod(0o600)
    return made


class Asked:
    """Runs the command and keeps what it said."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.capsys = capsys
        self.exit = 0

    def json(self, *words: str) -> Any:
        self.exit = relayd("--json", "--config", str(self.path), "explain-access", *words)
        return json.loads(self.capsys.readouterr().out)

    def text(self, *words: str) -> str:
        self.exit = relayd("--config", str(self.path), "explain-access", *words)
        out, err = self.capsys.readouterr()
        return out + err


@pytest.fixture
def asked(path: Path, capsys: pytest.CaptureFixture[str]) -> Asked:
    return Asked(path, capsys)


def mail(ip: str, sender: str = "a@contoso.com", to: str = "it@contoso.com") -> list[str]:
    return ["--ip", ip, "--from", sender, "--to", to]


def rules(told: Any) -> dict[str, Any]:
    return {rule["rule"]: rule for rule in told["rules"]}


# ---- let in


def test_a_device_is_let_in_by_its_networks_and_rewritten_to_the_mailbox(asked: Asked) -> None:
    told = asked.json(*mail(UPS, "ups@nas.local"))
    assert (asked.exit, told["accepted"], told["reply"]) == (0, True, "250 2.0.0 Ok")
    found = rules(told)
    assert list(found) == ["listener", "who", "sender", "recipient", "upstream", "size"]
    assert found["who"]["text"] == "[[device]] 'ups', by its networks"
    assert "ups@nas.local is rewritten to alerts@contoso.com; Reply-To" in found["sender"]["text"]
    assert told["deliveries"] == [
        {
            "upstream": "contoso",
            "mailbox": "alerts@contoso.com",
            "from": "alerts@contoso.com",
            "recipients": ["it@contoso.com"],
        }
    ]


@pytest.mark.parametrize(
    ("ip", "sender", "words"),
    [
        (UPS, "alerts@contoso.com", "alerts@contoso.com stays in From"),
        (UPS, "alerts", "alerts@contoso.com stays in From"),
        (UPS, "<>", "without a sender, it goes out as alerts@contoso.com"),
        (NAS, "x@y.example", "is replaced by `from` of 'nas': nas@contoso.com"),
    ],
)
def test_what_becomes_of_the_sender_is_said(asked: Asked, ip: str, sender: str, words: str) -> None:
    assert words in rules(asked.json(*mail(ip, sender)))["sender"]["text"]


def test_the_login_goes_before_the_device_and_takes_its_priority(asked: Asked) -> None:
    text = rules(asked.json(*mail(UPS), "--user", "printer1"))["who"]["text"]
    assert text == (
        "[[user]] 'printer1', by its login; the login goes before [[device]] 'ups',"
        " whose priority high it takes"
    )


def test_a_mapped_address_is_the_address(asked: Asked) -> None:
    assert asked.json(*mail(f"::ffff:{UPS}"))["accepted"]


def test_people_read_the_same(asked: Asked) -> None:
    text = asked.text(*mail(UPS))
    assert "  who        ok       [[device]] 'ups'" in text
    assert "Let in: 250 2.0.0 Ok" in text


# ---- refused


def refused_by(asked: Asked, *words: str) -> tuple[str, str, str]:
    """Return rule, reply and advice of a refusal."""
    told = asked.json(*words)
    assert (asked.exit, told["accepted"], told["deliveries"]) == (1, False, [])
    last = told["rules"][-1]
    assert not last["lets_in"]
    assert all(rule["lets_in"] for rule in told["rules"][:-1])
    return last["rule"], told["reply"], last["do"]


def test_a_stranger_is_told_how_it_would_be_let_in(asked: Asked) -> None:
    rule, reply, do = refused_by(asked, *mail(STRANGER))
    assert (rule, reply) == ("who", "530 5.7.0 Authentication required")
    assert f"relayd device add {STRANGER}" in do
    rule, reply, _ = refused_by(asked, *mail(STRANGER), "--listener", "open")
    assert (rule, reply) == ("who", "550 5.7.1 Relaying denied")


def test_a_recipient_elsewhere_is_refused_with_the_line_to_write(asked: Asked) -> None:
    rule, reply, do = refused_by(asked, *mail(UPS, to="x@example.org"))
    assert (rule, reply) == ("recipient", "550 5.7.1 Recipient not allowed")
    assert 'allow_to = ["contoso.com", "x@example.org"]' in do
    assert asked.json(*mail(NAS, to="x@example.org"))["accepted"]


def test_a_second_recipient_decides_too(asked: Asked) -> None:
    assert refused_by(asked, *mail(UPS), "--to", "x@example.org")[0] == "recipient"


def test_a_foreign_sender_is_refused_where_it_is_not_rewritten(asked: Asked) -> None:
    strict = asked.path.read_text().replace(
        'mailbox = "alerts@contoso.com"\n',
        'mailbox = "alerts@contoso.com"\non_foreign_sender = "reject"\n',
    )
    asked.path.write_text(strict)
    rule, reply, do = refused_by(asked, *mail(UPS, "x@y.example"))
    assert (rule, reply[:9]) == ("sender", "553 5.7.1")
    assert "allowed_senders of [upstream.contoso]" in do


def test_too_much_is_refused_by_size(asked: Asked) -> None:
    rule, reply, do = refused_by(asked, *mail(UPS), "--size", "40MB")
    assert (rule, reply[:9]) == ("size", "552 5.3.4")
    assert do
    assert "900000 octets" in rules(asked.json(*mail(UPS), "--size", "900000"))["size"]["text"]


def test_a_listener_for_logins_refuses_without_one(asked: Asked) -> None:
    rule, reply, do = refused_by(asked, *mail(UPS), "--listener", "logins")
    assert (rule, reply) == ("listener", "530 5.7.0 Authentication required")
    assert 'auth = "optional"' in do
    told = asked.json(*mail(UPS), "--listener", "logins", "--user", "printer1")
    assert "STARTTLS must come first" in rules(told)["listener"]["text"]


def test_a_login_where_there_is_none_is_refused(asked: Asked) -> None:
    rule, reply, _ = refused_by(asked, *mail(UPS), "--user", "printer1", "--listener", "open")
    assert (rule, reply[:3]) == ("listener", "502")


def test_an_unknown_user_is_refused(asked: Asked) -> None:
    rule, reply, do = refused_by(asked, *mail(UPS), "--user", "x")
    assert (rule, reply) == ("who", "535 5.7.8 Authentication failed")
    assert "relayd user add x" in do


def test_more_recipients_than_may_be_are_refused(asked: Asked) -> None:
    asked.path.write_text(asked.path.read_text() + "[limits]\nmax_recipients = 1\n")
    rule, reply, _ = refused_by(asked, *mail(UPS), "--to", "b@contoso.com")
    assert (rule, reply[:9]) == ("recipients", "452 4.5.3")


def test_without_an_upstream_nobody_is_let_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "relayd.toml"
    path.write_text(f'[server]\nhostname = "r.test"\nstate_dir = "{tmp_path}"\n')
    rule, reply, do = refused_by(Asked(path, capsys), *mail(STRANGER))
    assert (rule, reply[:9]) == ("who", "451 4.3.5")
    assert do


# ---- it is the relay's own verdict


def test_the_relays_own_rules_are_asked(path: Path) -> None:
    config = look(str(path)).config
    planner = Planner(config)
    for ip in (UPS, NAS, STRANGER):
        for sender in ("alerts@contoso.com", "x@y.example", "<>"):
            for to in ("it@contoso.com", "x@example.org"):
                given = argparse.Namespace(ip=ip, user="", from_=sender, to=[to], size="")
                verdict = judge(config, config.listener[0], read_mail(given))
                submitter = planner.submitter_for(ip, None)
                expected = submitter is not None and not planner.check_rcpt(
                    submitter, parse_path(to)
                )
                assert isinstance(verdict.plan, Plan) is expected


# ---- what may differ


def test_wrong_usage_is_told_without_a_verdict(asked: Asked) -> None:
    assert "is no address" in asked.text(*mail("x"))
    assert asked.exit == 2
    assert "--to: 'x@'" in asked.text(*mail(UPS, to="x@"))
    assert "--size" in asked.text(*mail(UPS), "--size", "much")
    assert asked.exit == 2
    assert "there are: lan, logins, open" in asked.text(*mail(UPS), "--listener", "x")
    assert asked.exit == 2


def test_a_configuration_that_cannot_be_read_is_78(tmp_path: Path) -> None:
    assert relayd("--config", str(tmp_path / "none"), "explain-access", *mail(UPS)) == 78


def test_an_unreadable_secret_does_not_matter_and_other_problems_are_told(asked: Asked) -> None:
    assert not [note for note in asked.json(*mail(UPS))["notes"] if "problem" in note]
    asked.path.write_text(asked.path.read_text() + "[limits]\nmax_errors = -1\n")
    assert "1 problem (relayd check)" in str(asked.json(*mail(UPS))["notes"])


def test_logins_of_users_toml_count_and_a_broken_one_is_told(asked: Asked, tmp_path: Path) -> None:
    users = tmp_path / "users.toml"
    users.write_text('[[user]]\nname = "fax"\npassword_hash = "x"\n')
    notes = asked.json(*mail(UPS))["notes"]
    users.write_text("no toml")
    notes += asked.json(*mail(UPS))["notes"]
    assert "logins made by `relayd user` are not seen here" in str(notes)


def test_a_listener_for_this_host_only_is_told(asked: Asked) -> None:
    notes = asked.json(*mail(UPS), "--listener", "open")["notes"]
    assert any("can only be reached from this host" in note for note in notes)
    assert not any("this host" in note for note in asked.json(*mail("127.0.0.1"))["notes"])


def test_a_relay_that_does_not_run_is_told(asked: Asked) -> None:
    assert "relayd is not running" in str(asked.json(*mail(UPS))["notes"])


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as made:
        yield made


def notes_with(control: ControlSocket, asked: Asked, tmp_path: Path, **status: object) -> str:
    asked.path.write_text(CONFIG.format(folder=tmp_path, hash=HASH))
    os.utime(asked.path, (1_700_000_000, 1_700_000_000))
    control.answers["status"] = pages({"up_s": 100, "config": str(asked.path), **status})  # type: ignore[dict-item]  # JSON of the test
    return str(asked.json(*mail(UPS))["notes"])


def test_a_relay_with_the_same_configuration_is_not_mentioned(
    control: ControlSocket, asked: Asked, tmp_path: Path
) -> None:
    assert notes_with(control, asked, tmp_path) == "[]"


def test_a_file_changed_since_wants_a_reload(
    control: ControlSocket, asked: Asked, tmp_path: Path
) -> None:
    notes_with(control, asked, tmp_path)
    os.utime(asked.path)
    assert "was changed since the running relay read it" in str(asked.json(*mail(UPS))["notes"])
    later = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    control.answers["status"] = pages(
        {"up_s": 100, "config": str(asked.path), "reload": {"result": "done", "at": later}}
    )
    assert asked.json(*mail(UPS))["notes"] == []


def test_a_refused_reload_and_another_configuration_are_told(
    control: ControlSocket, asked: Asked, tmp_path: Path
) -> None:
    told = notes_with(control, asked, tmp_path, reload={"result": "refused", "at": ""})
    assert "the last reload was refused" in told
    assert "another configuration: /etc/x" in notes_with(control, asked, tmp_path, config="/etc/x")
