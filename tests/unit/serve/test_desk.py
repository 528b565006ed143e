"""A desk keeps mail before it says 250, and lets nobody do what nobody allowed."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relayd.access.logins import Accepted, Rejected, Unavailable, Verdict
from relayd.access.passwords import DUMMY_HASH
from relayd.access.plan import Planner
from relayd.access.users import UsersFile, path_in
from relayd.clock import FakeClock
from relayd.config.model import Config, Device, Limits, Listener, Secret, Server, Upstream, User
from relayd.errors import SpoolFull, SpoolUnavailable
from relayd.message.address import Address
from relayd.serve.desk import Desk, House
from relayd.smtp import replies
from relayd.smtp.commands import Ehlo, Helo, Mail, Rcpt
from relayd.smtp.replies import Reply
from relayd.smtp.sasl import Credentials
from relayd.smtp.server import ContentEnd, ContentTerms
from relayd.spool.memory import MemoryDoor, MemorySpool
from relayd.spool.model import MailboxRef

UPSTREAM = Upstream(name="contoso", mailbox="alerts@contoso.com", own_domains=("contoso.com",))
UPS = Device(name="ups", networks=("192.0.2.5/32",), upstream="contoso", priority="high")
PRINTER = User(name="printer", upstream="contoso", password_hash=Secret("x"), allow_to=("*",))
LAN = Listener(name="lan", address=("127.0.0.1:0",), auth_without_tls=True)
CONFIG = Config(
    server=Server(hostname="relay.test", default_domain="contoso.com", workers=1),
    listener=(LAN,),
    limits=Limits(max_message_size=1000, max_recipients=2),
    upstream=(UPSTREAM,),
    device=(UPS,),
    user=(PRINTER,),
)
BODY = b"From: ups@nas.local\r\nSubject: on battery\r\n\r\n17 minutes\r\n"


class Gate:
    """A Verifier that knows one password."""

    def __init__(self, verdict: Verdict | None = None) -> None:
        self.verdict = verdict

    def verify(self, peer: str, name: str, password: str) -> Verdict:
        if self.verdict is not None:
            return self.verdict
        if password == "right":
            return Accepted(replace(PRINTER, name=name))
        return Rejected("wrong password")


class NoPulse:
    def beat(self) -> None:
        raise AssertionError

    def accept(self, *, does: bool) -> None:
        raise AssertionError

    def others(self) -> int:
        raise NotImplementedError

    def is_ahead(self) -> bool:
        return False

    def enter(self, device: str) -> bool:
        return True

    def is_full(self) -> bool:
        return False

    def leave(self, device: str) -> None:
        pass

    def move(self, old: str, new: str) -> bool:
        return True


class Room:
    """A desk and the spool behind it."""

    def __init__(
        self,
        config: Config = CONFIG,
        *,
        ip: str = "192.0.2.5",
        listener: Listener = LAN,
        verdict: Verdict | None = None,
        context: ssl.SSLContext | None = None,
        is_tls: bool = False,
    ) -> None:
        self.clock = FakeClock()
        self.door = MemoryDoor(MemorySpool(), clock=self.clock)
        house = House(
            config=config,
            planner=Planner(config),
            verifier=Gate(verdict),
            door=self.door,
            pulse=NoPulse(),
            context=lambda _: context,
            clock=self.clock,
        )
        self.callers = house.callers
        self.desk = Desk(house, listener, session="s1", ip=ip, is_tls=is_tls)

    def send(self, *recipients: str, content: bytes = BODY) -> Reply:
        """Play one whole transaction; returns the first refusal, or the last reply."""
        self.desk.on_hello(Ehlo("ups"))
        answers = [self.desk.on_mail(Mail(Address("ups", "nas.local")))]
        for recipient in recipients or ("ops@contoso.com",):
            local, _, domain = recipient.partition("@")
            answers.append(self.desk.on_rcpt(Rcpt(Address(local, domain))))
        for answer in answers:
            if not answer.is_positive:
                return answer
        terms = self.desk.on_data()
        assert isinstance(terms, ContentTerms)
        self.desk.on_piece(content)
        reply = self.desk.on_end(ContentEnd(size=len(content)))
        self.desk.reset()
        return reply


def test_a_message_is_in_the_spool_when_250_is_said() -> None:
    room = Room()

    reply = room.send()

    assert reply.code == 250
    assert reply.lines[0].startswith("Ok: queued as ")
    (lease,) = room.door.lease(MailboxRef("contoso", "alerts@contoso.com"), limit=5)
    assert lease.recipients == ("ops@contoso.com",)
    assert lease.set_from == "alerts@contoso.com"
    assert lease.reply_to_original
    assert lease.priority == 0
    with room.door.content(lease.message) as pieces:
        stored = b"".join(pieces)
    assert stored.startswith(b"Received: from ups ([192.0.2.5])\r\n\tby relay.test (relayd)")
    assert stored.endswith(BODY)


def test_a_stranger_is_asked_to_log_in_where_that_is_offered() -> None:
    assert Room(ip="198.51.100.1").send() == replies.AUTH_REQUIRED


def test_a_stranger_is_turned_away_where_it_is_not() -> None:
    listener = replace(LAN, auth="off")

    assert Room(ip="198.51.100.1", listener=listener).send() == replies.RELAY_DENIED


def test_without_an_upstream_everybody_is_told_to_come_back() -> None:
    config = replace(CONFIG, upstream=(), device=(), user=())

    assert Room(config).send() == replies.NOT_CONFIGURED


def test_a_recipient_outside_is_refused_for_a_device_that_was_not_given_them() -> None:
    reply = Room().send("somebody@elsewhere.example")

    assert (reply.code, reply.enhanced) == (550, "5.7.1")


def test_who_logged_in_may_do_what_the_user_may() -> None:
    room = Room(ip="198.51.100.1")

    assert room.desk.on_auth(Credentials("printer", "right")) == replies.AUTH_OK
    assert room.send("somebody@elsewhere.example").code == 250


def test_a_user_deleted_meanwhile_sends_no_more_in_an_open_session(tmp_path: Path) -> None:
    config = replace(CONFIG, server=replace(CONFIG.server, state_dir=str(tmp_path)), user=())
    users = UsersFile(path_in(config))
    users.add(replace(PRINTER, password_hash=Secret(DUMMY_HASH)))
    room = Room(config, ip="198.51.100.1")
    room.desk.on_auth(Credentials("printer", "right"))
    assert room.send("somebody@elsewhere.example").code == 250

    users.delete("printer")

    assert room.send("somebody@elsewhere.example") == replies.AUTH_REQUIRED


@pytest.mark.parametrize(
    ("verdict", "reply"),
    [
        (Rejected("no such user"), replies.AUTH_FAILED),
        (Unavailable("no turn"), replies.AUTH_UNAVAILABLE),
    ],
)
def test_a_login_that_is_not_accepted_gives_no_right(verdict: Verdict, reply: Reply) -> None:
    room = Room(ip="198.51.100.1", verdict=verdict)

    assert room.desk.on_auth(Credentials("printer", "right")) == reply
    assert room.send() == replies.AUTH_REQUIRED


def test_tls_forgets_the_login_of_before() -> None:
    room = Room(ip="198.51.100.1")
    room.desk.on_auth(Credentials("printer", "right"))

    room.desk.tls_started("TLSv1.3", "TLS_AES_256_GCM_SHA384")

    assert room.send() == replies.AUTH_REQUIRED


def test_one_recipient_too_many_is_452_and_the_others_stand() -> None:
    reply = Room().send("a@contoso.com", "b@contoso.com", "c@contoso.com")

    assert reply == replies.TOO_MANY_RECIPIENTS


def test_a_declared_size_that_cannot_leave_is_refused_at_mail() -> None:
    reply = Room().desk.on_mail(Mail(None, size=1001))

    assert (reply.code, reply.enhanced) == (552, "5.3.4")


def test_content_terms_tell_the_limit_of_this_submitter() -> None:
    room = Room()
    room.desk.on_mail(Mail(None))
    room.desk.on_rcpt(Rcpt(Address("ops", "contoso.com")))

    terms = room.desk.on_data()

    assert terms == ContentTerms(1000, lf_dot=False)


def test_a_message_that_goes_round_is_ended() -> None:
    received = b"Received: from a by b; Fri, 20 Nov 2026 10:00:00 +0000\r\n" * 50

    assert Room().send(content=received + BODY) == replies.TOO_MANY_HOPS


def test_a_head_longer_than_delivery_reads_is_refused_with_its_reason() -> None:
    # It was taken, and left without To and Content-Type; its Bcc was body text.
    names = b",\r\n ".join(b"recipient%05d@contoso.com" % n for n in range(12000))
    room = Room(replace(CONFIG, limits=replace(CONFIG.limits, max_message_size=10**6)))
    with capture_logs() as logs:
        reply = room.send(content=b"To: " + names + b"\r\nBcc: boss@contoso.com\r\n" + BODY)
    assert reply == replies.HEAD_TOO_LONG
    (line,) = logs
    assert (line["event"], line["code"], line["device"]) == ("message.refused", 554, "ups")
    assert "252 KiB" in line["reason"]
    found = room.desk.why
    assert found is not None
    assert "To and Cc" in found.do


@pytest.mark.parametrize(
    ("trouble", "code"), [(SpoolFull("5 octets free"), 452), (SpoolUnavailable("not in time"), 451)]
)
@pytest.mark.parametrize("when", ["at DATA", "while it comes", "at the dot"])
def test_what_the_spool_cannot_take_is_no_250_and_told_with_its_reason(
    trouble: SpoolUnavailable, code: int, when: str
) -> None:
    room = Room()
    room.desk.on_mail(Mail(None))
    room.desk.on_rcpt(Rcpt(Address("ops", "contoso.com")))
    with capture_logs() as logs:
        if when == "at DATA":
            room.door.broken = trouble
        reply = room.desk.on_data()
        if when != "at DATA":
            assert room.desk._intake is not None
            room.desk._intake._error = trouble if when == "while it comes" else None
            room.door.broken = trouble
            reply = room.desk.on_end(ContentEnd(size=0))
    assert isinstance(reply, Reply)
    assert reply.code == code
    (line,) = logs
    assert (line["event"], line["log_level"], line["device"]) == ("message.refused", "error", "ups")
    assert (line["code"], line["reason"]) == (code, f"the spool cannot take it: {trouble}")
    found = room.desk.why
    assert found is not None
    assert (found.code, "relayd status" in found.do) == (code, True)


def test_content_that_is_too_large_is_told_with_the_setting_that_would_let_it_in() -> None:
    room = Room()
    room.desk.on_mail(Mail(None))
    room.desk.on_rcpt(Rcpt(Address("ops", "contoso.com")))
    room.desk.on_data()
    with capture_logs() as logs:
        room.desk.on_unfit(ContentEnd(size=1001, too_large=True), replies.MESSAGE_TOO_LARGE)
    (line,) = logs
    assert (line["event"], line["code"], line["device"]) == ("message.refused", 552, "ups")
    assert line["reason"] == "1001 octets are more than the 1000 that 'ups' may send"
    found = room.desk.why
    assert found is not None
    assert "max_message_size" in found.do


def test_content_that_became_too_large_by_its_line_ends_is_told_too() -> None:
    room = Room()
    room.desk.on_mail(Mail(None))
    with capture_logs() as logs:
        room.desk.on_unfit(ContentEnd(size=990, too_large=True), replies.MESSAGE_TOO_LARGE)
    (line,) = logs
    assert (line["code"], line["reason"]) == (552, "Message too large")


def test_bare_line_ends_are_told_with_the_profile_that_mends_them() -> None:
    room = Room()
    with capture_logs() as logs:
        room.desk.on_unfit(ContentEnd(size=9, bare_newline=True), replies.BARE_NEWLINE)
    (line,) = logs
    assert (line["code"], line["reason"]) == (550, "Bare CR or LF in message")
    found = room.desk.why
    assert found is not None
    assert 'profile = "device"' in found.do


def test_recipients_that_are_too_many_are_told_once() -> None:
    room = Room()
    room.desk.on_mail(Mail(None))
    with capture_logs() as logs:
        said = [room.desk.on_rcpt(Rcpt(Address(f"ops{n}", "contoso.com"))) for n in range(5)]
    assert said == [replies.RECIPIENT_OK] * 2 + [replies.TOO_MANY_RECIPIENTS] * 3
    (line,) = logs
    assert (line["event"], line["code"], line["recipient"]) == (
        "message.refused", 452, "ops2@contoso.com",
    )  # fmt: skip
    found = room.desk.why
    assert found is not None
    assert "max_recipients" in found.do
    room.desk.reset()
    room.desk.on_mail(Mail(None))
    assert room.desk.on_rcpt(Rcpt(Address("ops", "contoso.com"))) == replies.RECIPIENT_OK


def test_nothing_of_one_message_is_left_for_the_next() -> None:
    room = Room()
    room.send("a@contoso.com")

    assert room.desk.on_rcpt(Rcpt(Address("b", "contoso.com"))) == replies.NEED_MAIL
    assert room.desk.on_data() == replies.NEED_MAIL


def test_a_required_login_counts_for_devices_too() -> None:
    listener = replace(LAN, auth="required")

    assert Room(listener=listener).send() == replies.AUTH_REQUIRED


def test_required_tls_comes_before_all() -> None:
    listener = replace(LAN, tls="required")

    assert Room(listener=listener).send() == replies.TLS_REQUIRED


def test_a_password_is_not_asked_for_in_the_clear() -> None:
    listener = replace(LAN, auth_without_tls=False)

    assert Room(listener=listener).desk.may_authenticate("PLAIN") == replies.AUTH_NEEDS_TLS
    assert Room(listener=listener, is_tls=True).desk.may_authenticate("PLAIN") is None


def test_keywords_are_what_this_peer_may_use() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    reply = Room(context=context).desk.on_hello(Ehlo("ups"))

    assert reply.lines == (
        "relay.test", "SIZE 1000", "PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES",
        "STARTTLS", "AUTH PLAIN LOGIN",
    )  # fmt: skip


def test_a_device_is_not_shown_what_it_cannot_do() -> None:
    config = replace(CONFIG, device=(replace(UPS, hide=("starttls", "AUTH")),))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    lines = Room(config, context=context).desk.on_hello(Ehlo("ups")).lines

    assert not any(line.startswith(("STARTTLS", "AUTH")) for line in lines)


def test_helo_gets_no_keywords() -> None:
    assert Room().desk.on_hello(Helo("ups")).lines == ("relay.test",)


def test_starttls_without_a_certificate_is_unavailable_not_a_crash() -> None:
    assert Room().desk.may_start_tls() == replies.TLS_UNAVAILABLE
    off = Room(listener=replace(LAN, tls="off"))
    assert off.desk.may_start_tls() == replies.TLS_NOT_OFFERED


def why(room: Room) -> tuple[int, str, str]:
    found = room.desk.why
    assert found is not None
    return found.code, found.reason, found.sender


def test_the_rule_that_refused_is_kept_with_what_was_asked() -> None:
    assert Room().desk.why is None
    room = Room()
    room.send("x@example.com")
    assert why(room)[0] == 550
    found = room.desk.why
    assert found is not None
    assert "own_domains of upstream 'contoso'" in found.reason
    assert (found.sender, found.recipient) == ("ups@nas.local", "x@example.com")
    assert found.reply == "Recipient not allowed"


def test_the_first_refusal_is_kept_until_a_message_is_accepted() -> None:
    room = Room()
    room.desk.on_auth(Credentials(user="printer", password="wrong", mechanism="PLAIN"))
    room.desk.may_authenticate("PLAIN")
    assert why(room)[0] == 535
    assert room.send().code == 250
    assert room.desk.why is None


def test_of_refused_recipients_the_first_is_kept_though_the_message_is_accepted() -> None:
    room = Room()
    room.desk.on_auth(Credentials(user="printer", password="wrong", mechanism="PLAIN"))
    room.desk.on_mail(Mail(Address("ups", "nas.local")))
    for name in ("x", "y"):
        assert room.desk.on_rcpt(Rcpt(Address(name, "example.com"))).code == 550
    room.desk.reset()
    assert room.send().code == 250
    found = room.desk.why
    assert found is not None
    assert (found.code, found.recipient, found.sender) == (550, "x@example.com", "ups@nas.local")


def test_a_peer_nobody_knows_is_told_apart_from_one_that_may_not() -> None:
    room = Room(ip="198.51.100.1")
    room.send()
    assert why(room) == (
        530, "no [[device]] has this address in its networks, and there was no login",
        "ups@nas.local",
    )  # fmt: skip
    found = room.desk.why
    assert found is not None
    assert "relayd device add 198.51.100.1" in found.do
    room = Room(replace(CONFIG, upstream=()), ip="198.51.100.1")
    room.send()
    assert why(room)[:2] == (451, "no [upstream.*] is configured yet")


def test_settings_of_the_listener_that_refuse_are_named() -> None:
    room = Room(listener=replace(LAN, auth="required"))
    room.send()
    assert why(room)[1] == "auth of listener 'lan' is required"
    room = Room(listener=replace(LAN, tls="required"))
    room.send()
    assert why(room)[1] == "tls of listener 'lan' is required"
    room = Room(listener=replace(LAN, auth_without_tls=False))
    room.desk.may_authenticate("PLAIN")
    assert why(room)[1] == "no TLS, and auth_without_tls of listener 'lan' is false"
    room = Room(listener=replace(LAN, auth="off"))
    room.desk.may_authenticate("PLAIN")
    assert why(room)[1] == "auth of listener 'lan' is off"


def test_a_login_that_failed_is_kept_with_its_name_and_never_its_password() -> None:
    room = Room()
    room.desk.on_auth(Credentials(user="printer", password="hunter2", mechanism="PLAIN"))
    found = room.desk.why
    assert found is not None
    assert (found.reason, found.login) == ("login: wrong password", "printer")
    assert "hunter2" not in repr(found)


def test_what_was_accepted_is_remembered_of_the_peer() -> None:
    room = Room()
    assert room.send().code == 250
    ((row,),) = room.callers.take()
    assert (row["ip"], row["device"], row["accepted"]) == ("192.0.2.5", "ups", 1)
    assert "ups@nas.local" in str(row["last"])


def test_a_mail_loop_is_remembered_as_one() -> None:
    room = Room()
    room.send(content=b"Received: x\r\n" * 100 + BODY)
    assert "mail loop" in why(room)[1]


def test_a_local_part_alone_gets_the_default_domain() -> None:
    room = Room()

    assert room.send("ops").code == 250
    (lease,) = room.door.lease(MailboxRef("contoso", "alerts@contoso.com"), limit=5)
    assert lease.recipients == ("ops@contoso.com",)
