"""The head on its way out: right for Exchange, and otherwise as the device wrote it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.header import Header, decode_header, make_header
from email.utils import getaddresses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relayd.message.headers import Head
from relayd.message.outgoing import outgoing_head, read_mark

NOW = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
GOOD = b"Date: Fri, 20 Nov 2026 09:59:59 +0000\r\nMessage-ID: <1@dev>\r\n"
MARK = b"X-Relayd-Hops: 1 relay.example\r\n"


def out(
    head: bytes,
    *,
    set_from: str = "",
    reply_to_original: bool = False,
    mailbox: str = "alerts@contoso.com",
    recipients: tuple[str, ...] = ("a@b",),
) -> bytes:
    return outgoing_head(
        head,
        recipients=recipients,
        set_from=set_from,
        reply_to_original=reply_to_original,
        mailbox=mailbox,
        message_id_domain="relay.example",
        queue_id="0123456789ABC",
        now=NOW,
        accepted_at=NOW - timedelta(hours=1),
    )


def value(name: str, head: bytes) -> bytes | None:
    return Head.parse(head).get(name)


def test_a_good_message_only_gets_our_mark() -> None:
    head = b"From: UPS <alerts@contoso.com>\r\nTo: a@b\r\nSubject: x\r\n" + GOOD + b"X:  odd \r\n"

    assert out(head + b"\r\n") == head + MARK + b"\r\n"


def test_no_name_leaves_with_a_space_behind_that_others_take_for_the_end() -> None:
    head = out(b"X-Odd\t : a : b\r\n c : d\r\nReply-To : x@y\r\nSubject : z\r\n" + GOOD + b"\r\n")

    assert head.startswith(b"X-Odd: a : b\r\n c : d\r\nReply-To: x@y\r\nSubject: z\r\n")
    assert message_from_bytes(head)["Bcc"] == "a@b"


def test_from_is_replaced_and_the_original_answers() -> None:
    head = out(
        b"From: UPS <ups@nas.local>\r\nSender: ups@nas.local\r\nTo: a@b\r\n" + GOOD + b"\r\n",
        set_from="alerts@contoso.com",
        reply_to_original=True,
    )

    assert head == (
        b"From: UPS <alerts@contoso.com>\r\nTo: a@b\r\n"
        + GOOD
        + b"Reply-To: UPS <ups@nas.local>\r\n"
        + MARK
        + b"\r\n"
    )


def test_a_local_part_as_long_as_some_devices_have_it_is_an_address_still() -> None:
    # It was taken for a name, and nobody could answer.
    long = b"enclosure-" * 7 + b"@nas.local"
    head = out(
        b"From: " + long + b"\r\n\r\n", set_from="alerts@contoso.com", reply_to_original=True
    )

    assert value("Reply-To", head) == long
    assert value("From", head) == b"alerts@contoso.com"
    assert value("From", out(b"From: " + long + b"\r\n\r\n", set_from=long.decode())) == long


def test_a_reply_to_of_the_device_stays() -> None:
    head = out(
        b"From: ups@nas.local\r\nReply-To: it@contoso.com\r\nReply-To: x@y\r\n\r\n",
        set_from="alerts@contoso.com",
        reply_to_original=True,
    )

    assert Head.parse(head).all("Reply-To") == [b"it@contoso.com"]


@pytest.mark.parametrize("unusable", [b"", b" ", b"<>", b"noreply", b"it@[10.0.0.5]"])
def test_a_reply_to_that_nobody_can_answer_is_none(unusable: bytes) -> None:
    # Devices whose field for it was left empty: the original was lost, nobody could answer.
    head = b"From: ups@nas.local\r\nReply-To: " + unusable + b"\r\n\r\n"

    rewritten = out(head, set_from="alerts@contoso.com", reply_to_original=True)

    assert Head.parse(rewritten).all("Reply-To") == [b"ups@nas.local"]
    assert value("Reply-To", out(head, set_from="ups@nas.local")) == unusable.strip()


@pytest.mark.parametrize("original", [b"root", b"ups@[10.0.0.5]", b"Main Printer", b""])
def test_an_address_nobody_can_answer_is_no_reply_to(original: bytes) -> None:
    head = out(
        b"From: " + original + b"\r\n\r\n", set_from="alerts@contoso.com", reply_to_original=True
    )

    assert value("Reply-To", head) is None


@pytest.mark.parametrize(
    ("original", "rendered"),
    [
        (b"printer@domain.com <printer@domain.com>", b'"printer@domain.com" <m@c>'),
        (b"Main Printer", b"Main Printer <m@c>"),
        (b"root", b"root <m@c>"),
        (b"root (Cron Daemon)", b"Cron Daemon <m@c>"),
        (b"T\xc5\x82 <t@x>", b"=?utf-8?b?VMWC?= <m@c>"),
        (b'"Rack 1" <Rack 1@dom>', b"Rack 1 <m@c>"),
        (b"=?utf-8?q?T=C5=82?= <t@x>", b"=?utf-8?q?T=C5=82?= <m@c>"),
        (b"=?utf-8?q?T=C5=82?=", b"=?utf-8?q?T=C5=82?= <m@c>"),
        (b"<>", b"m@c"),
        (b"", b"m@c"),
        (b"a@b, c@d", b"m@c"),
    ],
)
def test_the_display_name_stays(original: bytes, rendered: bytes) -> None:
    assert value("From", out(b"From: " + original + b"\r\n\r\n", set_from="m@c")) == rendered


@given(
    name=st.text(st.sampled_from("Щит 12"), min_size=1, max_size=400).map(
        lambda t: " ".join(t.split())
    ),
    charset=st.sampled_from(["utf-8", "koi8-r"]),
)
@example(name="Щит " * 1000, charset="utf-8")
def test_a_long_name_is_decoded_before_it_is_cut(name: str, charset: str) -> None:
    # It was cut inside an encoded word, and half of that was shown.
    words = Header(name, charset).encode(linesep="\r\n").encode()
    head = out(b"From: " + words + b" <ups@x>\r\n\r\n", set_from="m@c", reply_to_original=True)

    for field in ("From", "Reply-To"):
        shown, _, _ = (value(field, head) or b"").decode("ascii").rpartition(" <")
        assert str(make_header(decode_header(shown))).strip('"') == name[:256].strip()


def test_a_from_others_could_misread_is_written_anew() -> None:
    head = b"From: alerts@contoso.com <alerts@contoso.com>, x@y\r\n\r\n"

    assert value("From", out(head)) == b'"alerts@contoso.com" <alerts@contoso.com>'
    assert value("From", out(head, set_from="alerts@contoso.com")) == value("From", out(head))


def test_a_missing_from_is_the_mailbox() -> None:
    assert value("From", out(b"Subject: x\r\n\r\n")) == b"alerts@contoso.com"
    assert value("From", out(b"From: nobody here\r\n\r\n")) == b"nobody here <alerts@contoso.com>"


def test_with_an_object_id_exchange_writes_from() -> None:
    assert value("From", out(b"Subject: x\r\n\r\n", mailbox="0b1-object-id")) is None
    assert value("From", out(b"From: root\r\n\r\n", mailbox="0b1-object-id")) == b"root <root>"


def test_a_sender_stays_only_if_it_is_the_one_in_from() -> None:
    kept = b"From: alerts@contoso.com\r\nSender: Alerts@contoso.com\r\n\r\n"
    foreign = b"From: alerts@contoso.com\r\nSender: ups@nas.local\r\n\r\n"

    assert value("Sender", out(kept)) == b"Alerts@contoso.com"
    assert value("Sender", out(foreign)) is None


@pytest.mark.parametrize(
    "date",
    [
        "Fri, 20 Nov 2026 09:59:59 +0000",
        "20 Nov 2026 9:59 GMT",
        "Fri, 20 Nov 2026 09:59:59 -0500 (EST)",
        "Sun, 22 Nov 2026 09:59:59 +1400",
        "Mon,  1 Jan 2001 00:00:00 +0000",
    ],
)
def test_a_possible_date_stays(date: str) -> None:
    head = out(f"Date: {date}\r\n\r\n".encode())

    assert value("Date", head) == date.encode()
    assert value("X-Original-Date", head) is None


@pytest.mark.parametrize(
    "date",
    [
        "05/03/19 10:42 AM +00:00 (GMT+00:00)",
        "Thu, 01 Jan 1970 00:00:10 +0000",
        "now",
        "2026-11-20",
        "Fri, 20 Nov 2026 09:59:59",
        "Fri, 20 Foo 2026 09:59:59 +0000",
        "Fri, 32 Nov 2026 09:59:59 +0000",
        "Fri, 20 Nov 2026 25:59:59 +0000",
        "Fri, 20 Nov 2036 09:59:59 +0000",
        "20 Nov 2026 10:61 +0000",
    ],
)
def test_an_impossible_date_is_replaced_and_kept(date: str) -> None:
    head = out(f"Date: {date}\r\n\r\n".encode())

    assert value("Date", head) == b"Fri, 20 Nov 2026 09:00:00 +0000"
    assert value("X-Original-Date", head) == date.encode()


def test_missing_date_and_message_id_are_added() -> None:
    head = out(b"Date:\r\nFrom: alerts@contoso.com\r\n\r\n")

    assert value("Date", head) == b"Fri, 20 Nov 2026 09:00:00 +0000"
    assert value("X-Original-Date", head) is None
    assert value("Message-ID", head) == b"<0123456789ABC@relay.example>"


@pytest.mark.parametrize(
    "bad", [b"", b"<>", b"abc", b"<abc>", b"a@b", b"<a b@c>", b"<a@b@c>", b"<a@b> x"]
)
def test_a_malformed_message_id_is_replaced(bad: bytes) -> None:
    assert (
        value("Message-ID", out(b"Message-ID: " + bad + b"\r\n\r\n"))
        == b"<0123456789ABC@relay.example>"
    )


def test_the_first_of_each_stays() -> None:
    twice = b"".join(
        b"%s: %s\r\n" % pair
        for pair in [
            (b"From", b"alerts@contoso.com"),
            (b"From", b"x@y"),
            (b"Subject", b"1"),
            (b"Subject", b"2"),
            (b"Message-ID", b"<1@1>"),
            (b"Message-ID", b"<2@2>"),
            (b"Date", b"Fri, 20 Nov 2026 09:59:59 +0000"),
            (b"Date", b"Fri, 20 Nov 2026 09:59:58 +0000"),
            (b"X", b"1"),
            (b"X", b"2"),
        ]
    )
    head = Head.parse(out(twice + b"\r\n"))

    for name, values in (
        ("From", [b"alerts@contoso.com"]),
        ("Subject", [b"1"]),
        ("Message-ID", [b"<1@1>"]),
        ("X", [b"1", b"2"]),
    ):
        assert head.all(name) == values
    assert len(head.all("Date")) == 1


def test_return_path_goes() -> None:
    assert value("Return-Path", out(b"Return-Path: <x@y>\r\n\r\n")) is None


def test_only_bcc_is_enough() -> None:
    head = out(b"Subject: x\r\n\r\n", recipients=("a@b", "c@d"))

    assert value("To", head) is None
    assert value("Bcc", head) == b"a@b, c@d"


def test_raw_text_becomes_encoded_words() -> None:
    head = out(
        "Subject: Tył\r\nX-Camera: ogród\r\nReply-To: Tył <t@x>\r\n"
        'Content-Type: text/plain; name="tył"\r\n\r\n'.encode()
    )

    assert value("Subject", head) == b"=?utf-8?b?VHnFgg==?="
    assert value("X-Camera", head) == b"=?utf-8?b?b2dyw7Nk?="
    assert value("Reply-To", head) == b"=?utf-8?b?VHnFgg==?= <t@x>"
    assert value("Content-Type", head) == 'text/plain; name="tył"'.encode()


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("gb2312", "移动侦测报警"),
        ("windows-1251", "Ошибка диска"),
        ("shift_jis", "表示ソフト"),  # their second octets are ASCII, a backslash among them
        ("iso-8859-2", "Błąd zasilania"),
    ],
)
def test_raw_text_is_read_in_the_charset_that_the_head_declares(charset: str, text: str) -> None:
    # It left as Western European: what a camera says, unreadable for ever.
    names = f"From: {text} <cam@x>\r\nReply-To: {text} <it@x>\r\nTo: {text} <a@b>\r\n"
    rest = f"Cc: {text} <c@d>\r\nSubject: {text}\r\nContent-Type: text/plain; charset={charset}\r\n"
    head = out((names + rest + "\r\n").encode(charset), recipients=("a@b", "c@d"))

    message = message_from_bytes(head, policy=policy.default)
    assert message["Subject"] == text
    for name, address in (("From", "cam@x"), ("Reply-To", "it@x"), ("To", "a@b"), ("Cc", "c@d")):
        (found,) = message[name].addresses
        assert (found.display_name, found.addr_spec) == (text, address)
    assert "Bcc" not in message


def test_hops_are_counted_for_this_relay_only() -> None:
    assert (
        value("X-Relayd-Hops", out(b"X-Relayd-Hops: 1 relay.example\r\n\r\n")) == b"2 relay.example"
    )
    assert (
        value("X-Relayd-Hops", out(b"X-Relayd-Hops: 7 other.example\r\n\r\n")) == b"1 relay.example"
    )
    assert read_mark(b"99999 relay.example", "relay.example") == 0


def test_what_was_no_header_goes_into_the_body() -> None:
    assert out(b"Subject: x\r\nHello\r\n\r\n").endswith(b"\r\n\r\nHello\r\n\r\n")


@given(
    octets=st.binary(max_size=200),
    value=st.text(max_size=80),
    name=st.sampled_from(
        ["From", "To", "Date", "Sender", "Reply-To", "Message-ID", "Subject", "X-Relayd-Hops"]
    ),
)
def test_any_octets_go_out_to_the_envelope_and_nobody_else(
    octets: bytes, value: str, name: str
) -> None:
    for head in (octets, f"{name}: {value}\r\n".encode("utf-8", "surrogateescape") + octets):
        rendered = out(head, set_from="m@c", reply_to_original=True)

        message = message_from_bytes(rendered)
        named = [v for n in ("To", "Cc", "Bcc", "Resent-To") for v in message.get_all(n, [])]
        assert [address.lower() for _, address in getaddresses(named)] == ["a@b"]
        assert [a for _, a in getaddresses(message.get_all("From", []))] == ["m@c"]
        assert len(message.get_all("Date", [])) == len(message.get_all("Message-ID", [])) == 1
