"""What is secret goes, known or not; addresses become pseudonyms that stay the same."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.cli.redact import Redactor

SECRET = 'p~8Q+/x y&z="é\\'
JWT = "eyJ0eXAiOiJKV1QiLCJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJodHRwczovL2dyYXBoIn0.c2ln-bmF0_dXJl"
ENTRA = "Abc8Q~dEfGhIjKlMnOpQrStUvWxYz0123456789.-"
PEM = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIPLANTED\n-----END EC PRIVATE KEY-----"


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        quote(SECRET, safe=""),
        quote(SECRET),
        quote(SECRET, safe="").lower(),
        quote_plus(SECRET),
        json.dumps(SECRET)[1:-1],
        base64.b64encode(SECRET.encode()).decode(),
        base64.b64encode(b"\0user\0" + SECRET.encode()).decode(),
        base64.b64encode(b"u" + SECRET.encode() + b"tail").decode(),
        base64.b64encode(b"u\0" + SECRET.encode() + b"ta").decode(),
        base64.b64encode(b"us\0" + SECRET.encode() + b"t").decode(),
    ],
)
def test_a_known_secret_goes_in_every_form(form: str) -> None:
    told = Redactor(secrets=[SECRET]).text(f"before {form} after")
    assert told.startswith("before ")
    assert "***" in told
    assert form[6:-6] not in told


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=12), st.text())
def test_no_known_secret_is_left_wherever_it_stands(secret: str, before: str) -> None:
    told = Redactor(secrets=[secret], keeps_addresses=True).text(f"{before}{secret}")
    assert secret not in told.replace("***", "") or secret in "***"


@pytest.mark.parametrize(
    ("text", "planted"),
    [
        (f"Authorization: Bearer {JWT}", JWT),
        ("client_secret=first,planted", "planted"),
        ("client_secret=first;planted&planted", "planted"),
        ("Cookie: a=b; c=planted", "planted"),
        ('"password": ["one", "planted"]', "planted"),
        ("http://user:p@planted@proxy:3128/", "planted"),
        ("AccountKey=planted==;EndpointSuffix=x", "planted"),
        (f"token was {JWT}.", JWT),
        ("Authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ('client_secret = "hunter2 and more"', "hunter2"),
        ("client_secret=hunter2&scope=x", "hunter2"),
        ('{"access_token": "hunter2", "x": 1}', "hunter2"),
        ('"password_hash": "hunter2"', "hunter2"),
        ("password: hunter2", "hunter2"),
        ("PWD=hunter2;Server=x", "hunter2"),
        (f"it said {ENTRA} here", ENTRA),
        (PEM, "PLANTED"),
        (PEM[:-20], "PLANTED"),
        ("$argon2id$v=19$m=65536,t=3,p=4$c2FsdA$aGFzaA", "c2FsdA"),
        ("http://user:hunter2@proxy:3128", "hunter2"),
        ("C: AUTH PLAIN AHVzZXIAaHVudGVyMg==", "AHVzZXIA"),
        ('subject="hunter2 \\"is\\" fired" bytes=3', "fired"),
        ('"subject": "hunter2"', "hunter2"),
        ("https://x.blob/?sv=1&sig=hunter2", "hunter2"),
        ("C: EHLO bobs-laptop", "bobs"),
        ("helo=bobs-laptop bytes=1", "bobs"),
        ('"login": "hunter2"', "hunter2"),
    ],
)
def test_what_looks_like_a_secret_goes(text: str, planted: str) -> None:
    for redactor in (Redactor(), Redactor(keeps_addresses=True)):
        assert planted not in redactor.text(text)


@pytest.mark.parametrize(
    "text",
    [
        'client_secret_file = "/etc/relayd/secrets/contoso"',
        'client_secret_env: "SECRET"',
        "credential_expires = 2027-05-31",
        '"token_expires_s": 3000',
        "id=1JV7SEQSLMJCW request_id=3b1c0000-0000-0000-0000-000000000000",
        "listening on 127.0.0.1:25, [::1]:25, 0.0.0.0:25 and [::]:25 at 10:00:00",
        "graph.microsoft.com login.microsoftonline.com",
        "login: wrong name",
    ],
)
def test_what_helps_and_tells_nothing_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_the_same_address_has_the_same_pseudonym_everywhere() -> None:
    redactor = Redactor()
    assert redactor.text("from=<Bob@Contoso.com> to=ann@contoso.com") == (
        "from=<u1@d1.example> to=u2@d1.example"
    )
    assert redactor.text('"bob@contoso.com", bob@fabrikam.com') == (
        '"u1@d1.example", u3@d2.example'
    )


def test_pseudonyms_are_not_given_pseudonyms() -> None:
    redactor = Redactor(domains=["contoso.com"])
    once = redactor.text("bob@contoso.com at mail.contoso.com from 192.0.2.5")
    assert once == "u1@d1.example at h1.d1.example from ip1"
    assert redactor.text(once) == once


@pytest.mark.parametrize(
    "address",
    ['"bob smith"@contoso.com', "bob.o'brien+x@mail.contoso.com", "bob@[192.0.2.5]", "bob@nas",
     "jörg@müller.example", "*@contoso.com"],
)  # fmt: skip
def test_no_part_of_an_odd_address_stays(address: str) -> None:
    told = Redactor().text(f"MAIL FROM:<{address}> size=3")
    for part in ("bob", "smith", "contoso", "nas", "jörg", "müller", "192"):
        assert part not in told
    assert told.startswith("MAIL FROM:<")


def test_addresses_of_the_network_are_hidden_and_loopback_is_not() -> None:
    told = Redactor().text(
        "ip=192.0.2.5 net 192.168.10.0/24 [2001:db8::5]:25 ::ffff:10.1.2.3 192.0.2.5."
    )
    for part in ("192.0", "192.168", "2001", "10.1"):
        assert part not in told
    assert told.startswith("ip=ip1 net ip2/24 [")
    assert told.endswith("ip1.")


def test_the_houses_domains_and_names_are_hidden_without_an_address_too() -> None:
    redactor = Redactor(
        domains=["contoso.com"],
        names=[("contoso.onmicrosoft.com", "tenant-1"), ("11111111-2222", "client-1")],
    )
    told = redactor.text(
        "relay.contoso.com, CONTOSO.COM, contoso.onmicrosoft.com/11111111-2222, notcontoso.com"
    )
    assert told == "h1.d1.example, d1.example, tenant-1/client-1, notcontoso.com"


def test_addresses_may_be_kept_and_secrets_go_all_the_same() -> None:
    redactor = Redactor(secrets=["hunter2hunter2"], domains=["contoso.com"], keeps_addresses=True)
    told = redactor.text("bob@contoso.com 192.0.2.5 hunter2hunter2")
    assert told == "bob@contoso.com 192.0.2.5 ***"
