"""One line, one value: what devices write is read, what is no SMTP is told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.message.address import Address
from relayd.smtp import replies
from relayd.smtp.commands import (
    Auth,
    BadCommand,
    Command,
    Data,
    Ehlo,
    Expn,
    Hangup,
    Helo,
    Help,
    Line,
    Mail,
    Noop,
    Profile,
    Quit,
    Rcpt,
    Rset,
    StartTls,
    Unknown,
    Vrfy,
    parse_command,
    parse_ordinary,
)
from relayd.smtp.replies import Reply

A = Address("a", "x.org")
BOTH: list[Profile] = ["device", "strict"]


def device(line: str) -> Line:
    return parse_command(line.encode(), "device")


def strict(line: str) -> Line:
    return parse_command(line.encode(), "strict")


@given(
    line=st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda verb, rest: verb + rest,
            st.sampled_from([b"MAIL FROM:", b"RCPT TO:<", b"AUTH ", b"EHLO ", b"mail from: <a@b "]),
            st.binary(max_size=40),
        ),
    ),
    smtputf8=st.booleans(),
)
@pytest.mark.parametrize("profile", BOTH)
def test_any_octets_give_a_value(profile: Profile, line: bytes, *, smtputf8: bool) -> None:
    said = parse_command(line, profile, smtputf8=smtputf8)

    assert isinstance(said, Command | BadCommand | Hangup)
    assert said == parse_command(line, profile, smtputf8=smtputf8)


@pytest.mark.parametrize("profile", BOTH)
@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("EHLO a.b", Ehlo("a.b")),
        ("helo [10.0.0.1]", Helo("[10.0.0.1]")),
        ("MAIL FROM:<a@x.org>", Mail(A)),
        ("mail from:<a@X.ORG> size=5 Body=8bitmime", Mail(A, 5, "8BITMIME")),
        ("MAIL FROM:<a@x.org> SMTPUTF8 AUTH=<>", Mail(A, smtputf8=True, auth="<>")),
        ("MAIL FROM:<>", Mail(None)),
        ("MAIL FROM:<@h,@i:a@x.org>", Mail(A)),
        ('MAIL FROM:<"a>b c"@x.org> SIZE=1', Mail(Address("a>b c", "x.org"), 1)),
        ("RCPT TO:<a@x.org>", Rcpt(A)),
        ("RCPT TO:<Postmaster>", Rcpt(Address("Postmaster", ""))),
        ("DATA", Data()),
        ("DATA ", Data()),
        ("STARTTLS", StartTls()),
        ("AUTH plain", Auth("PLAIN", None)),
        ("AUTH LOGIN YQ==", Auth("LOGIN", b"YQ==")),
        ("AUTH LOGIN  = ", Auth("LOGIN", b"=")),
        ("RSET", Rset()),
        ("NOOP what ever", Noop()),
        ("VRFY root", Vrfy()),
        ("EXPN", Expn()),
        ("HELP me", Help()),
        ("quit", Quit()),
        ("ETRN x", Unknown("ETRN", is_smtp=True)),
        ("XYZZY", Unknown("XYZZY", is_smtp=False)),
        ("", Unknown("", is_smtp=False)),
        (" NOOP", Unknown("", is_smtp=False)),
    ],
)
def test_both_profiles_read(profile: Profile, line: str, command: Command) -> None:
    assert parse_command(line.encode(), profile) == command


@pytest.mark.parametrize(
    ("line", "command", "said_strictly"),
    [
        ("HELO", Helo(""), replies.NAME_MISSING),
        ("EHLO ", Ehlo(""), replies.NAME_MISSING),
        ("MAIL FROM: <a@x.org>", Mail(A), replies.FROM_MISSING),
        ("MAIL FROM:a@x.org", Mail(A), replies.BAD_SENDER),
        ("MAIL FROM:a@x.org SIZE=3", Mail(A, 3), replies.BAD_SENDER),
        ("MAIL\tFROM:<a@x.org>\tSIZE=3", Mail(A, 3), Mail(A, 3)),
        ("MAIL FROM : < a@x.org >", Mail(A), replies.FROM_MISSING),
        ("MAIL FROM: <ESP-CAM>", Mail(Address("ESP-CAM", "")), replies.FROM_MISSING),
        ("MAIL FROM:<ESP-CAM>", Mail(Address("ESP-CAM", "")), replies.BAD_SENDER),
        ("MAIL FROM:<My UPS@x.org>", Mail(Address("My UPS", "x.org")), replies.BAD_SENDER),
        ("RCPT TO: a@x.org", Rcpt(A), replies.TO_MISSING),
        ("RCPT TO:<a>", Rcpt(Address("a", "")), replies.BAD_RECIPIENT),
        ("RSET now", Rset(), replies.NO_ARGUMENT),
        ("QUIT now", Quit(), replies.NO_ARGUMENT),
    ],
)
def test_the_device_profile_forgives_what_strict_refuses(
    line: str, command: Command, said_strictly: Reply | Command
) -> None:
    assert device(line) == command
    want = BadCommand(said_strictly) if isinstance(said_strictly, Reply) else said_strictly
    assert strict(line) == want


@pytest.mark.parametrize("profile", BOTH)
@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("MAIL", replies.FROM_MISSING),
        ("MAIL FROM:", replies.FROM_MISSING),
        ("MAIL a@x.org", replies.FROM_MISSING),
        ("MAIL FROM:<a@x.org", replies.BAD_SENDER),
        ("MAIL FROM:<a@x.org>>", replies.BAD_SENDER),
        ("MAIL FROM:<>>>>>", replies.BAD_SENDER),
        ("MAIL FROM:<a@x.org>SIZE=1", replies.BAD_SENDER),
        ("MAIL FROM:<a@b@x.org>", replies.BAD_SENDER),
        ('MAIL FROM:<"a@x.org>', replies.BAD_SENDER),
        ("MAIL FROM:<a@x.org> RET=FULL", replies.UNKNOWN_PARAMETER),
        ("MAIL FROM:<a@x.org> ENVID=1", replies.UNKNOWN_PARAMETER),
        ("MAIL FROM:<a@x.org> SIZE", replies.BAD_PARAMETER),
        ("MAIL FROM:<a@x.org> SIZE=", replies.BAD_PARAMETER),
        ("MAIL FROM:<a@x.org> SIZE=-1", replies.BAD_PARAMETER),
        ("MAIL FROM:<a@x.org> SIZE=\u0663", replies.BAD_PARAMETER),
        ("MAIL FROM:<a@x.org> SIZE=" + "9" * 21, replies.BAD_PARAMETER),
        ("MAIL FROM:<a@x.org> SIZE=1 SIZE=1", replies.BAD_PARAMETER),
        ("MAIL FROM:<a@x.org> BODY=BINARYMIME", replies.BAD_PARAMETER),
        ("MAIL FROM:<a@x.org> BODY=", replies.BAD_PARAMETER),
        ("MAIL FROM:<a@x.org> SMTPUTF8=yes", replies.BAD_PARAMETER),
        ("RCPT", replies.TO_MISSING),
        ("RCPT TO:<>", replies.BAD_RECIPIENT),
        ("RCPT TO:<a@x.org> NOTIFY=NEVER", replies.UNKNOWN_PARAMETER),
        ("RCPT TO:<a b@x.org>", replies.BAD_RECIPIENT),
        ("RCPT TO:<a@x.org,b@x.org>", replies.BAD_RECIPIENT),
        ("RCPT TO:<a@x.org;b@x.org>", replies.BAD_RECIPIENT),
        ("MAIL FROM:<\u00fc@x.org>", replies.NEEDS_SMTPUTF8),
        ("RCPT TO:<a@\u00fc.org>", replies.NEEDS_SMTPUTF8),
        ("DATA now", replies.NO_ARGUMENT),
        ("STARTTLS now", replies.NO_ARGUMENT),
        ("AUTH", replies.ARGUMENT_MISSING),
        ("AUTH \u00fc", replies.AUTH_UNKNOWN_MECHANISM),
        ("NOOP\0", replies.NUL_IN_COMMAND),
        ("NOOP\x1b[2J", replies.BAD_CHARACTERS),
        ("NOOP\rMAIL FROM:<a@x.org>", replies.BAD_CHARACTERS),
    ],
)
def test_bad_lines_earn_their_reply(profile: Profile, line: str, reply: Reply) -> None:
    assert parse_command(line.encode(), profile) == BadCommand(reply)


def test_broken_utf_8_is_refused_and_nul_named() -> None:
    assert parse_command(b"NOOP \xff", "device") == BadCommand(replies.BAD_CHARACTERS)
    assert parse_command(b"NOOP \xff\0", "device") == BadCommand(replies.NUL_IN_COMMAND)


def test_smtputf8_opens_domains_but_no_local_parts() -> None:
    # Microsoft 365 has no mailbox with such a name; a domain has its ASCII form.
    said = parse_command("MAIL FROM:<a@\u00fc.org> SMTPUTF8".encode(), "device")
    assert said == Mail(Address("a", "xn--tda.org"), smtputf8=True)

    said = parse_command("RCPT TO:<a@\u00fc.org>".encode(), "device", smtputf8=True)
    assert said == Rcpt(Address("a", "xn--tda.org"))

    said = parse_command("RCPT TO:<\u00fc@x.org>".encode(), "device", smtputf8=True)
    assert said == BadCommand(replies.NEEDS_SMTPUTF8)


# What an ordinary line is made of, and what makes one out of the ordinary.
near = st.builds(
    lambda head, local, domain, tail: head + local + domain + tail,
    st.sampled_from([b"MAIL FROM:<", b"RCPT TO:<", b"mail from:<", b"MAIL FROM: <", b"RCPT TO:"]),
    st.one_of(
        st.text("aZ0.+_-' \"@<>\\", max_size=4).map(str.encode),
        st.sampled_from([b"a" * 64, b"a" * 65, b"\xc3\xbc"]),
    ),
    st.one_of(
        st.text("aZ0.-_@[]", max_size=5).map(lambda text: b"@" + text.encode()),
        st.sampled_from([b"", b"@x.org", b"@" + b"a." * 94 + b"a", b"@" + b"a" * 64, b"@x.org\n"]),
    ),
    st.sampled_from(
        [b">", b"> SIZE=5", b"> SIZE=" + b"9" * 20, b"> SIZE=" + b"9" * 21, b"> SIZE=", b"> ", b""]
        + [b"> size=5", b"> SIZE=5 BODY=8BITMIME", b"> SMTPUTF8", b">>", b"> SIZE=5\n", b"\0>"]
    ),
)


@given(line=st.one_of(near, st.sampled_from([b"DATA", b"DATA ", b"QUIT", b"RSET", b"STARTTLS"])))
@pytest.mark.parametrize("profile", BOTH)
@pytest.mark.parametrize("smtputf8", [False, True])
def test_the_ordinary_way_says_what_the_careful_one_does(
    profile: Profile, line: bytes, *, smtputf8: bool
) -> None:
    said = parse_ordinary(line)

    assert said in (None, parse_command(line, profile, smtputf8=smtputf8))


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"MAIL FROM:<a@x.org>", Mail(A)),
        (b"MAIL FROM:<a@X.org> SIZE=5", Mail(A, 5)),
        (b"RCPT TO:<a@x.org>", Rcpt(A)),
        (b"DATA", Data()),
        (b"QUIT", Quit()),
        (b"MAIL FROM:<>", None),
        (b"MAIL FROM:<a@x.org> BODY=7BIT", None),
        (b"RCPT TO:<a@x.org> SIZE=5", None),
        (b"RCPT TO:<a@x..org>", None),
        (b"AUTH PLAIN AGEAYg==", None),
    ],
)
def test_what_is_ordinary(line: bytes, command: Command | None) -> None:
    assert parse_ordinary(line) == command


@pytest.mark.parametrize("verb", ["GET", "post", "CONNECT", "PRI", "OPTIONS"])
def test_http_is_hung_up_on(verb: str) -> None:
    assert device(f"{verb} / HTTP/1.1") == Hangup("http", replies.NOT_HTTP)


@pytest.mark.parametrize("line", ["Host: x", "Subject: hi", "X-Spam-1:no", "Host:"])
def test_a_header_is_hung_up_on(line: str) -> None:
    assert device(line) == Hangup("header", replies.NOT_A_HEADER)


def test_bdat_is_hung_up_on_because_its_payload_follows() -> None:
    assert device("BDAT 100 LAST") == Hangup("bdat", replies.NOT_IMPLEMENTED)


def test_names_and_verbs_are_bounded() -> None:
    assert device("EHLO " + "x" * 4000) == Ehlo("x" * 255)
    assert device("x" * 4000) == Unknown("x" * 255, is_smtp=False)


def test_a_secret_does_not_show() -> None:
    assert "AGEA" not in repr(device("AUTH PLAIN AGEAYg=="))


def test_hostile_quotes_are_read_in_linear_time() -> None:
    # A pattern that backtracks would take minutes for this.
    said = device("MAIL FROM:<" + '"\\' * 2000)

    assert said == BadCommand(replies.BAD_SENDER)
