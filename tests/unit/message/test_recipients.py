"""Whoever reads the head with another program sees the envelope's recipients, no more, no less."""

from __future__ import annotations

from email import message_from_bytes
from email.utils import getaddresses
from inspect import signature

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relayd.message.address import Address
from relayd.message.headers import Head
from relayd.message.recipients import authoritative, join_folded

people = st.sampled_from(
    ["a@x.example", "B@x.example", "c@y.example", "d@[10.0.0.1]", '"e f"@x.example']
)
oddities = st.sampled_from(
    [
        ", ",
        "; ",
        " ",
        "\r\n ",
        "Team: ",
        ";",
        '"Foo, Bar" ',
        "Foo (bar) ",
        "<",
        ">",
        '"',
        "(",
        ")",
        "\\",
        "@",
        ":",
        "\r",
        "\n",
        "\0",
        "=?utf-8?q?x?= ",
        "Ż",
        "undisclosed-recipients:;",
        "\r\nBcc: v@x.example",
    ]
)
values = st.lists(people | people.map("<{}>".format) | oddities, max_size=8).map("".join)
names = st.sampled_from(
    ["To", "TO", "Cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc", "Subject", "To ", "X-To"]
)
heads = st.lists(st.tuples(names, values), max_size=5).map(
    lambda fields: "".join(f"{name}: {value}\r\n" for name, value in fields).encode() + b"\r\n"
)


# Debian 12's Python 3.11.2 is "strict" (CVE-2023-27043) and then sees no literal, d@[10.0.0.1].
LENIENT = {"strict": False} if "strict" in signature(getaddresses).parameters else {}


def seen_by_another(head: bytes) -> list[str]:
    """Return the addresses the standard library finds in every field that may name some."""
    message = message_from_bytes(head + b"body")
    found = []
    for name in ("To", "Cc", "Bcc", "Resent-To", "Resent-Cc", "Resent-Bcc"):
        for value in message.get_all(name, []):
            assert str(value).strip()
            found += [address for _, address in getaddresses([str(value)], **LENIENT)]
    return sorted(address.lower() for address in found)


@given(head=heads, envelope=st.lists(people, min_size=1, unique=True))
@example(head=b"To: a@x.example\rBcc: v@x.example\r\n\r\n", envelope=["a@x.example"])
@example(head=b'To: "a@x.example" <c@y.example>\r\n\r\n', envelope=["a@x.example"])
def test_the_delivered_are_the_envelope_exactly(head: bytes, envelope: list[str]) -> None:
    rendered = authoritative(Head.parse(head), envelope).render()

    assert seen_by_another(rendered) == sorted(one.lower() for one in envelope)


@given(
    local=st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=64),
    domain=st.from_regex(r"[a-z0-9_-]{1,20}(\.[a-z0-9_-]{1,20}){0,3}", fullmatch=True),
)
def test_any_address_stays_one_address(local: str, domain: str) -> None:
    address = str(Address(local, domain))

    rendered = authoritative(Head(()), [address]).render()

    assert rendered == f"Bcc: {address}\r\n\r\n".encode()


@given(recipient=st.text(min_size=1, max_size=60))
def test_no_text_at_all_injects_a_field(recipient: str) -> None:
    try:
        rendered = authoritative(Head(()), [recipient]).render()
    except ValueError:
        return
    assert rendered.count(b"\r\n") == 2
    assert rendered.count(b"\n") == rendered.count(b"\r") == 2


def edited(head: bytes, *recipients: str) -> bytes:
    return authoritative(Head.parse(head), recipients).render()


def test_a_recipient_in_no_field_goes_into_bcc() -> None:
    assert edited(b"To: a@b\r\n\r\n", "a@b", "c@d") == b"To: a@b\r\nBcc: c@d\r\n\r\n"


def test_a_stranger_goes_and_so_does_an_empty_field() -> None:
    assert edited(b"To: a@b\r\nCc: c@d\r\n\r\n", "a@b") == b"To: a@b\r\n\r\n"
    assert edited(b"To: x@y\r\nCc: c@d\r\n\r\n", "c@d") == b"Cc: c@d\r\n\r\n"
    assert edited(b"To: undisclosed-recipients:;\r\n\r\n", "a@b") == b"Bcc: a@b\r\n\r\n"


def test_the_original_bcc_and_resent_fields_go() -> None:
    head = b"Bcc: a@b, x@y\r\nResent-To: x@y\r\nResent-Cc: x@y\r\nResent-Bcc: x@y\r\n\r\n"

    assert edited(head, "a@b") == b"Bcc: a@b\r\n\r\n"


def test_case_does_not_matter_and_names_stay() -> None:
    head = b'To: "Foo, Bar" <Ann@B.Example>, <x@y>\r\n\r\n'

    assert edited(head, "ann@b.example") == b'To: "Foo, Bar" <Ann@b.example>\r\n\r\n'


def test_two_to_fields_become_one() -> None:
    assert (
        edited(b"To: a@b\r\nX: 1\r\nTo: c@d\r\n\r\n", "a@b", "c@d")
        == b"To: a@b, c@d\r\nX: 1\r\n\r\n"
    )


def test_an_address_in_to_and_cc_is_named_once() -> None:
    assert edited(b"To: a@b\r\nCc: a@b, c@d\r\n\r\n", "a@b", "c@d") == b"To: a@b\r\nCc: c@d\r\n\r\n"


def test_a_long_list_is_folded() -> None:
    recipients = [f"user{n}@example.com" for n in range(500)]

    rendered = edited(b"Subject: x\r\n\r\n", *recipients)

    assert all(len(line) <= 78 for line in rendered.split(b"\r\n"))
    assert seen_by_another(rendered) == sorted(recipients)


def test_joining_keeps_the_first_on_its_line() -> None:
    assert join_folded([b"x" * 100, b"y"], start=4) == b"x" * 100 + b",\r\n y"
    assert join_folded([], start=4) == b""


@pytest.mark.parametrize("recipient", ["a@b\r\nBcc: c@d", "a@b, c@d", "", "a b\0@c", "ż@b"])
def test_what_is_no_address_is_refused(recipient: str) -> None:
    with pytest.raises(ValueError):
        edited(b"\r\n", recipient)
