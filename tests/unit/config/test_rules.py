"""One rule for each kind of value: what passes, what does not, and that it says what to do."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config import model, rules
from relayd.config.rules import RULES, Rule, rule_for

GOOD: list[tuple[Rule, Sequence[object]]] = [
    (rules.between(1, 4), [1, 4]),
    (rules.lasting("1s", "1h"), [1.0, 3600.0]),
    (rules.sized("64KiB", "1MB"), [65536, 1_000_000]),
    (rules.absolute, ["", "/etc/relayd/tls/key.pem"]),
    (rules.host_port, ["", "0.0.0.0:25", "127.0.0.1:65535", "[::]:25", "[fd00::1]:587"]),
    (rules.peer_port, ["", "smtp.office365.com:587", "127.0.0.1:8587", "[::1]:25"]),
    (rules.network, ["192.168.10.5", "192.168.10.0/24", "fd00::/64", "0.0.0.0/0", "::/0"]),
    (rules.https, ["", "https://login.microsoftonline.com", "https://127.0.0.1:8443/v1.0"]),
    (rules.proxy, ["", "http://proxy:3128", "https://[::1]:8080"]),
    (rules.spool_url, ["sqlite:///var/spool/relayd/spool.db"]),
    (rules.day, ["", "2027-05-31"]),
    (rules.mailbox, ["", "sender", "alerts@contoso.com"]),
    (rules.host_name, ["", "relay", "relay.example.com", "[192.0.2.1]", "[IPv6:fd00::1]"]),
    (rules.mail, ["", "a@b.example", "o'neil+x@contoso.com", "m\u00fcller@b\u00fccher.example"]),
    (rules.domain, ["", "example.com", "b\u00fccher.example", "xn--bcher-kva.example"]),
    (rules.pattern, ["*", "a@example.com", "*@example.com", "example.com", "*.example.com"]),
    (rules.name, ["lan", "ups-1", "a.b_c"]),
    (rules.user_name, ["printer1", "printer@contoso.com", "tenant:client"]),
    (rules.password_hash, ["", "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaA"]),
]

BAD: list[tuple[Rule, Sequence[object]]] = [
    (rules.between(1, 4), [0, 5, -1]),
    (rules.lasting("1s", "1h"), [0.0, 3601.0]),
    (rules.sized("64KiB", "1MB"), [1, 1_000_001]),
    (rules.absolute, ["etc/key.pem", "~/key.pem", "/a\x00b"]),
    (
        rules.host_port,
        ["25", "0.0.0.0", "0.0.0.0:0", "0.0.0.0:65536", "::1:25", "relay:25", "[::1]", "1.2.3.4:x"]
        + ["1.2.3.4:\u0662\u0665", "*:25", "1.2.3.4: 25"],
    ),
    (rules.peer_port, ["smtp.office365.com", "smtp..com:587", "a b:25", "host:0", "http://x:80"]),
    (
        rules.network,
        ["", "192.168.10.5/24", "192.168.10.*", "10.0.0.0/33", "fd00::1/64", "::ffff:10.0.0.1"]
        + ["10.0.0.1-10.0.0.5", "printer.example.com"],
    ),
    (
        rules.https,
        ["http://x", "https://", "x", "https://u:p@x/", "https://x/?a", "https://x/#a"]
        + ["https://x:99999", "https://a b/"],
    ),
    (rules.proxy, ["proxy:3128", "http://proxy", "socks5://proxy:1080", "http://me:pw@proxy:1"]),
    (rules.spool_url, ["", "sqlite://spool.db", "/var/spool.db", "sqlite:////", "postgresql://x"]),
    (rules.day, ["tomorrow", "2027-13-01"]),
    (rules.mailbox, ["alerts", "Sender", "a@b@c"]),
    (rules.host_name, ["a..b", "-a", "a_b-", "[192.0.2]", "a b", "a." + "x" * 64]),
    (rules.mail, ["a", "@b", "a@", "a b@c", "A <a@b>", "a@b..c", "a@b,c@d", "a\r\n@b"]),
    (rules.domain, ["a b", ".a", "a.", "*.a", "a/b"]),
    (rules.pattern, ["*@", "a b@c", "**", "@", "*.", "a*b@c d"]),
    (rules.name, ["", "a b", "-a", "a/b", "x" * 64, "\u00fc"]),
    (rules.user_name, ["", "a b", "a\x00", "x" * 129]),
    (rules.password_hash, ["geheim", "$2b$12$abc", "$argon2id$", "$argon2id$v=19$m=1$x$y"]),
]


@pytest.mark.parametrize(("rule", "value"), [(r, v) for r, some in GOOD for v in some])
def test_what_is_right_passes(rule: Rule, value: object) -> None:
    assert rule(value) is None


@pytest.mark.parametrize(("rule", "value"), [(r, v) for r, some in BAD for v in some])
def test_what_is_wrong_is_told_with_what_to_do(rule: Rule, value: object) -> None:
    complaint = rule(value)
    assert complaint is not None
    assert "; " in complaint
    assert complaint.isprintable()


def test_host_bits_are_told_with_both_ways_to_write_it() -> None:
    complaint = rules.network("192.168.10.5/24")
    assert complaint is not None
    assert '"192.168.10.0/24"' in complaint
    assert '"192.168.10.5/32"' in complaint


def test_passwords_are_not_shown() -> None:
    for rule, value in ((rules.proxy, "http://me:geheim@x:1"), (rules.password_hash, "geheim")):
        assert "geheim" not in str(rule(value))


def test_a_required_value_says_so_when_empty() -> None:
    rule = rules.required(rules.domain, '"example.com"')
    assert rule("") == 'empty; write "example.com"'
    assert rule("example.com") is None
    assert rule("a b") == '"a b" is no domain; write "example.com"'


def test_a_long_value_is_cut() -> None:
    assert len(rules.shown("x" * 1000)) == 81
    assert rules.shown("a\nb") == "a?b"


def test_every_rule_belongs_to_a_field() -> None:
    for row, fields in RULES.items():
        known = {each.name for each in dataclasses.fields(typing.cast("type[typing.Any]", row))}
        assert set(fields) <= known, row


def test_a_rule_of_the_parent_is_the_childs_too() -> None:
    assert rule_for(model.Device, "from_") is rules.mail
    assert rule_for(model.Device, "networks") is rules.network
    assert rule_for(model.Server, "reply") is None


@given(st.text(max_size=50))
def test_no_text_breaks_a_rule(text: str) -> None:
    for fields in RULES.values():
        for rule in fields.values():
            complaint = rule(text)
            assert complaint is None or complaint.isprintable()
