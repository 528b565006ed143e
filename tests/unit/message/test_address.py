"""Addresses: one meaning for each, none that can break a header, devices' ways of writing them."""

from __future__ import annotations

import re

import idna
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relayd.message.address import (
    Address,
    AddressPatterns,
    NeedsSmtputf8,
    fold_domain,
    matches,
    parse_address_list,
    parse_path,
    render_mailbox,
)

locals_ = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=64)
domains = st.from_regex(r"[a-z0-9_-]{1,20}(\.[a-z0-9_-]{1,20}){0,3}", fullmatch=True)
addresses = st.builds(Address, locals_, domains).filter(
    lambda a: len(str(a)) <= 254 and "=?" not in a.local
)


words = st.tuples(st.sampled_from(["utf-8", "iso-8859-1", ""]), st.sampled_from("bBqQx"), locals_)


@given(
    word=words.map(lambda word: "=?{}?{}?{}?=".format(*word)),
    form=st.sampled_from(["{}@c", '"{}"@c', '"a {}"@c', "a{}@c"]),
    lenient=st.booleans(),
)
def test_an_encoded_word_is_no_local_part(word: str, form: str, lenient: bool) -> None:  # noqa: FBT001 - hypothesis
    with pytest.raises(ValueError):
        parse_path(form.format(word), lenient=lenient)
    for found in parse_address_list(form.format(word).encode()):
        assert not re.search(r"=\?.*\?=", found.address.local)


@given(address=addresses)
def test_what_is_rendered_parses_to_the_same_address(address: Address) -> None:
    assert parse_path(str(address)) == address
    assert parse_path(f"<{address}>") == address


@given(address=addresses, display=st.text(max_size=300))
def test_a_rendered_mailbox_parses_to_the_same_address_and_has_no_bare_newline(
    address: Address, display: str
) -> None:
    octets = render_mailbox(display, address)

    assert octets.isascii()
    assert b"\n" not in octets.replace(b"\r\n ", b"")
    assert b"\r" not in octets.replace(b"\r\n ", b"")
    if not set('<>()"') & set(address.local):
        assert [m.address for m in parse_address_list(octets)] == [address]


@given(text=st.text(max_size=200), lenient=st.booleans())
def test_any_text_is_an_address_or_a_value_error(text: str, lenient: bool) -> None:  # noqa: FBT001 - hypothesis
    try:
        address = parse_path(text, lenient=lenient)
    except ValueError:
        return
    assert str(address).isascii()
    assert str(address).isprintable()
    assert len(str(address)) <= 254


@given(
    display=st.from_regex(r'"?[A-Za-z0-9 ]{0,9}"? {0,2}', fullmatch=True),
    path=st.sampled_from(
        ["a@b", "A.b@C.d", "a@" + "b." * 130 + "c", "x" * 70 + "@b", "a@[10.0.0.1]"]
    ),
)
def test_the_short_way_reads_what_the_long_way_reads(display: str, path: str) -> None:
    short = parse_address_list(f"{display}<{path}>".encode())
    long = parse_address_list(f"{display}<{path}>,".encode())  # a comma leads round it

    assert short == long


@given(octets=st.binary(max_size=300))
def test_any_octets_are_a_list_of_addresses(octets: bytes) -> None:
    for mailbox in parse_address_list(octets):
        assert str(mailbox.address).isprintable()
        assert "\n" not in mailbox.display


@pytest.mark.parametrize(
    "value",
    [
        b"(" * 60_000,
        b'"' + b'\\"' * 30_000,
        b"<" * 60_000,
        b"[" * 60_000,
        b"a@b," * 15_000,
        b"(()" * 20_000,
        b" " * 60_000,
        b":" * 60_000,
        b'"a"@' * 15_000,
    ],
)
def test_hostile_lists_take_linear_time(value: bytes) -> None:
    parse_address_list(value)  # quadratic would meet the timeout, not a stop watch


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("a@b.example", "a", "b.example"),
        ("Ann@B.Example", "Ann", "b.example"),
        ("  a@b ", "a", "b"),
        ("<a@b>", "a", "b"),
        ("< a@b >", "a", "b"),
        ("@one,@two:a@b", "a", "b"),
        ('"a b"@c', "a b", "c"),
        ('"a\\"\\\\b"@c', 'a"\\b', "c"),
        ('"a@b"@c', "a@b", "c"),
        ("a..b@c", "a..b", "c"),
        ("a@b.", "a", "b"),
        ("a@[10.0.0.5]", "a", "[10.0.0.5]"),
        ("a@[ipv6:FE80::1]", "a", "[IPv6:fe80::1]"),
        ("a@[::1]", "a", "[IPv6:::1]"),
        ("postmaster", "postmaster", ""),
        ("a@bücher.example", "a", "xn--bcher-kva.example"),
        ("under_score@my_host", "under_score", "my_host"),
    ],
)
def test_ways_to_write_an_address(text: str, local: str, domain: str) -> None:
    assert parse_path(text) == Address(local, domain)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<>",
        "@",
        "@b",
        "a@",
        "a@b@c",
        "a@b c",
        "a b@c",
        "a@.b",
        "a@b..c",
        "a@[1.2.3]",
        "a@[1.2.3.4",
        "a@[fe80::1%eth0]",
        "a\r\nb@c",
        "a\0@b",
        '"a"b@c',
        '"a@b',
        "a@b>",
        "<a@b>>",
        "a,b@c",
        "a;b@c",
        "a@b\u2025c",
        "a@b\uff20c",
        "a@" + "x" * 64,
        "x" * 65 + "@b",
        "a@" + "b." * 130 + "c",
        "@" * 2000,
        "x" * 60 + "@" + ".".join(["y" * 48] * 4),
        "a@[IPv6:10.0.0.1.2]",
        "a@-\u00fc" + "x" * 70,
        "=?utf-8?q?victim=40evil.example?=@c",
        "info@stra\u00dfe.example",
        "info@STRA\u1e9eE.example",
        "x@\u03b2\u03cc\u03bb\u03bf\u03c2.example",
        "x@a\u200db.example",
        "x@a\u200cb.example",
        '"=?utf-8?q?victim=40evil.example=2C?="@c',
        '"a =?utf-8?q?b?= c"@d',
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        parse_path(text)


def test_a_non_ascii_local_part_has_its_own_refusal() -> None:
    with pytest.raises(NeedsSmtputf8):
        parse_path("żółw@example.com")


def test_a_device_may_have_spaces_in_its_name() -> None:
    with pytest.raises(ValueError):
        parse_path("Rack Enclosure 1@example.com")

    address = parse_path("Rack Enclosure 1@example.com", lenient=True)

    assert str(address) == '"Rack Enclosure 1"@example.com'
    assert parse_path("x" * 200 + "@b", lenient=True).local == "x" * 200


def test_an_address_with_a_line_break_cannot_be_made() -> None:
    for local, domain in (("a\r\nb", "c"), ("a", "b\nc"), ("", "b"), ("a", "b>"), ("ä", "b")):
        with pytest.raises(ValueError):
            Address(local, domain)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            b"printer@domain.com <printer@domain.com>",
            [("printer@domain.com", "printer@domain.com")],
        ),
        (b"undisclosed-recipients:;", []),
        (b'"Foo, Bar" <a@b>, x@y (Name)', [("Foo, Bar", "a@b"), ("Name", "x@y")]),
        (b'Team: a@b, "q r"@c;, z@d', [("", "a@b"), ("", '"q r"@c'), ("", "z@d")]),
        (b"a@b;c@d", [("", "a@b"), ("", "c@d")]),
        (b"<a@b", [("", "a@b")]),
        (b"<<a@b>>", [("", "a@b")]),
        (b"Foo (x <a@b>", [("Foo x", "a@b")]),
        (b'"Foo <a@b>', [("Foo", "a@b")]),
        (b"root", [("", "root")]),
        (b"root (Cron Daemon)", [("Cron Daemon", "root")]),
        (b"Main Printer", []),
        (b"", []),
        (b"Enc Name@dom", [("Enc", "Name@dom")]),
        (b"<Enc Name@dom>", [("", '"Enc Name"@dom')]),
        (b"<@x,@y:u@c>", [("", "u@c")]),
        (b"a@[IPv6:fe80::1], b@[10.0.0.1]", [("", "a@[IPv6:fe80::1]"), ("", "b@[10.0.0.1]")]),
        (b"\xc5\xbb\xc3\xb3\xc5\x82w <a@b>", [("Żółw", "a@b")]),
        (b"Caf\xe9 <a@b>", [("Café", "a@b")]),
        (b"=?utf-8?q?x?= y <a@b>", [("=?utf-8?q?x?= y", "a@b")]),
        (b"(a (nested) one) a@b", [("a (nested) one", "a@b")]),
        (b"a@b (\\) still)", [("\\) still", "a@b")]),
        (b"bad<>, \xc5\xbb@x, ok@y", [("", "bad"), ("", "ok@y")]),
        (b"a@b <not an address@@>", []),
        (b'"a  b"@c, two  words <a@b>', [("", '"a  b"@c'), ("two words", "a@b")]),
        (b"a <x@y> <c@d>", [("a", "x@y")]),
        (b"Foo <=?utf-8?q?x=40y?=@c>, =?utf-8?q?x=40y?=@c, ok@y", [("", "ok@y")]),
        (b"Foo <=?utf-8?q?x=40y?=@c>", []),
        (b"=?utf-8?q?Main_Printer?=", []),
        (b"Foo <a=?b@c>", [("Foo", "a=?b@c")]),
    ],
)
def test_lists_as_devices_write_them(value: bytes, expected: list[tuple[str, str]]) -> None:
    assert [(m.display, str(m.address)) for m in parse_address_list(value)] == expected


@pytest.mark.parametrize(
    ("display", "rendered"),
    [
        ("", b"a@b"),
        ("UPS Rack 3", b"UPS Rack 3 <a@b>"),
        ("J. Smith", b'"J. Smith" <a@b>'),
        ('say "hi" \\', b'"say \\"hi\\" \\\\" <a@b>'),
        ("evil\r\nBcc: x@y", b'"evil Bcc: x@y" <a@b>'),
        ("=?utf-8?q?x=2Cy?=", b"=?utf-8?q?x=2Cy?= <a@b>"),
        ("=?utf-8?q?x?=, y", b"=?utf-8?b?eCwgeQ==?= <a@b>"),
        ("Żółw", b"=?utf-8?b?xbvDs8WCdw==?= <a@b>"),
    ],
)
def test_display_names_are_made_safe(display: str, rendered: bytes) -> None:
    assert render_mailbox(display, Address("a", "b")) == rendered


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("*", "a@b", True),
        ("a@b", "A@B", True),
        ("a@b", "c@b", False),
        ("*@b.example", "x@B.example", True),
        ("*@b.example", "x@c.b.example", False),
        ("b.example", "x@b.example", True),
        ("B.Example", "x@b.example", True),
        ("*@*.b.example", "x@c.b.example", True),
        ("*@*.b.example", "x@b.example", False),
        ("*.b.example", "x@d.c.b.example", True),
        ("*@*.b.example", "x@evilb.example", False),
        ("*@bücher.example", "x@xn--bcher-kva.example", True),
        ("*@[10.0.0.1]", "x@[10.0.0.1]", True),
    ],
)
def test_patterns(pattern: str, text: str, expected: bool) -> None:  # noqa: FBT001 - a table
    assert matches(pattern, parse_path(text)) is expected


@pytest.mark.parametrize("pattern", ["", "a b@c", "*@", "*@a b", "*.", "a@b@c"])
def test_a_broken_pattern_is_named(pattern: str) -> None:
    with pytest.raises(ValueError, match="no address and no pattern"):
        AddressPatterns.compile((pattern,))


def test_no_patterns_match_nobody() -> None:
    assert not AddressPatterns.compile(()).matches(Address("a", "b"))
    assert not AddressPatterns.compile(("*@*.b",)).matches(Address("postmaster", ""))


letters = st.characters(max_codepoint=0x52F, categories=["Ll", "Lu", "Lo"]) | st.sampled_from(
    "ßẞςあア漢字한글"
)


@given(label=st.text(letters, min_size=1, max_size=12))
@example(label="straße")
@example(label="βόλος")
def test_a_domain_is_folded_to_what_its_registry_has_or_refused(label: str) -> None:
    # Under IDNA2003 "straße" is "strasse", and mail goes to another's domain.
    try:
        folded = fold_domain(f"{label}.example")
        registered = idna.encode(f"{label}.example", uts46=True).decode("ascii")
    except ValueError:  # IDNAError is one
        return

    assert folded == registered


def test_domains_fold_to_one_form() -> None:
    assert fold_domain("Bücher.Example.") == "xn--bcher-kva.example"


def test_a_list_that_is_remembered_is_given_to_each_as_his_own() -> None:
    parse_address_list(b"a@b, c@d").clear()

    assert [str(one.address) for one in parse_address_list(b"a@b, c@d")] == ["a@b", "c@d"]
