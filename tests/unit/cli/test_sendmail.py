"""What the options of sendmail ask for, whom it goes to, and what its exit code says."""

from __future__ import annotations

import os
import pwd
import re
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from relayd.cli import deadletter, mailq, sendmail, submit
from relayd.cli.letter import Letter, read
from relayd.cli.sendmail import Call, Wrong, advice, code_of, main, parse, places, recipients_of
from relayd.cli.submit import Away, Mail, Outcome, Place, Refused, Reply


class Relay:
    """Stands for `submit.submit`: keeps what it is given and answers as it is told."""

    def __init__(self) -> None:
        self.mails: list[Mail] = []
        self.places: list[Sequence[Place]] = []
        self.answer: Outcome | Exception = Outcome(["1JV7SEQSLMJCW"])

    def submit(self, where: Sequence[Place], mail: Mail) -> Outcome:
        self.places.append(where)
        self.mails.append(mail)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture(autouse=True)
def relay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Relay:
    relay = Relay()
    monkeypatch.setattr(submit, "submit", relay.submit)
    monkeypatch.setattr(sendmail, "SETTINGS", str(tmp_path / "sendmail.conf"))
    monkeypatch.setattr(deadletter, "_SHARED", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    tmp_path.chmod(0o700)
    monkeypatch.delenv("RELAYD_SMTP", raising=False)
    return relay


def run(*words: str, text: bytes = b"Subject: x\n\nhi\n") -> int:
    """Call sendmail with `text` on descriptor 0."""
    read_end, write_end = os.pipe()
    before = os.dup(0)
    os.dup2(read_end, 0)
    os.close(read_end)
    with os.fdopen(write_end, "wb") as stream:
        stream.write(text)
    try:
        return main(["/usr/sbin/sendmail", *words])
    finally:
        os.dup2(before, 0)
        os.close(before)


# ---- options


@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("root", Call(recipients=["root"])),
        ("-i -FCronDaemon -B8BITMIME -oem root",
         Call(name="CronDaemon", ends_at_dot=False, recipients=["root"])),
        ("-t -i", Call(from_header=True, ends_at_dot=False)),
        ("-ti", Call(from_header=True, ends_at_dot=False)),
        ("-oi -t -fwww@contoso.com", Call(from_header=True, ends_at_dot=False,
                                          sender="www@contoso.com")),
        ("-r www -- -odd@contoso.com", Call(sender="www", recipients=["-odd@contoso.com"])),
        ("-f <> root", Call(sender="", recipients=["root"])),
        ("root -f www", Call(sender="www", recipients=["root"])),
        ("-N never -R hdrs -V x -XV -L tag -O A=b -C /x root", Call(recipients=["root"])),
        ("-Am -h 3 -p x -G -U -n -m -v -v -em -om -o7 -e p root", Call(recipients=["root"])),
        ("-bs", Call(mode="s")),
        ("-bp", Call(mode="p")),
        ("-bi", Call(mode="i")),
        ("-I", Call(mode="i")),
        ("-bm root", Call(recipients=["root"])),
        ("-bv root", Call(mode="v", recipients=["root"])),
        ("-q", Call(mode="q")),
        ("-q30m", Call(mode="q")),
        ("-qRcontoso.com", Call(mode="q")),
    ],
)  # fmt: skip
def test_options_mean_what_they_mean_elsewhere(line: str, call: Call) -> None:
    assert parse(line.split()) == call


@pytest.mark.parametrize(
    ("sender", "address"),
    [
        ("Ann <a@b.c>", "a@b.c"),
        ("", ""),
        (" a@b.c ", "a@b.c"),
        ('"a b"@c.d', '"a b"@c.d'),
        ("a@B\N{LATIN SMALL LETTER U WITH DIAERESIS}.de", "a@xn--b-eha.de"),
    ],
)
def test_a_sender_may_be_written_as_people_do(sender: str, address: str) -> None:
    assert parse(["-f", sender]).sender == address


@pytest.mark.parametrize(
    "line", ["-z", "-d0", "-f", "-B9BIT root", "-f a@b@c", "-f a\r\nRCPT root", "-ix root"]
)
def test_what_makes_no_sense_is_wrong_usage(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sendmail", *line.split(" ")]) == 64
    assert capsys.readouterr().err.startswith("sendmail: ")


def test_no_line_break_gets_into_an_smtp_command() -> None:
    for text in ("a@b.c\r\nRCPT TO:<x@y.z>", "a@b.c\n", "a\0@b.c"):
        try:
            sender = parse(["-f", text]).sender or ""
        except Wrong:
            continue
        assert sender.isprintable()


@pytest.mark.parametrize("mode", ["d", "D", "l", "h", "z"])
def test_it_is_no_daemon_and_says_who_is(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sendmail", f"-b{mode}"]) == 64
    assert "systemctl start relayd" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["newaliases"], ["sendmail", "-bi"], ["/usr/sbin/sendmail", "-I"]]
)
def test_newaliases_does_nothing_and_says_so(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    assert "/etc/aliases" in capsys.readouterr().err


def test_q_does_nothing_and_says_what_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sendmail", "-q"]) == 0
    assert "relayd queue retry" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["/usr/bin/mailq"], ["sendmail", "-bp"]])
def test_mailq_is_asked_for_by_name_or_option(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def show(config: str) -> int:
        shown.append(config)
        return 0

    monkeypatch.setattr(mailq, "show", show)
    monkeypatch.setenv("RELAYD_CONFIG", "/x.toml")
    assert main(words) == 0
    assert shown == ["/x.toml"]


# ---- whom it goes to


def test_recipients_of_arguments_and_header_are_added_each_once() -> None:
    call = parse(["-t", "a@b.c", "Ann <ann@b.c>, bob@b.c"])
    letter = read(b"To: a@b.c, Group: g@b.c;\nBcc: z@b.c\n\n", ends_at_dot=False)
    assert recipients_of(call, letter) == ["a@b.c", "ann@b.c", "bob@b.c", "g@b.c", "z@b.c"]
    assert recipients_of(parse(["a@b.c"]), letter) == ["a@b.c"]


def test_a_group_of_nobody_is_no_recipient_and_no_mistake() -> None:
    letter = read(b"To: undisclosed-recipients:;\nCc: a@b.c\n\n", ends_at_dot=False)
    assert recipients_of(parse(["-t"]), letter) == ["a@b.c"]


@pytest.mark.parametrize(
    ("words", "code"), [(["-t"], 64), ([], 64), (["not an address at all @"], 65)]
)
def test_nobody_to_send_to_is_said(words: list[str], code: int) -> None:
    with pytest.raises(Wrong) as wrong:
        recipients_of(parse(words), Letter((), b""))
    assert wrong.value.code == code


# ---- where the relay is


def test_the_relay_is_on_port_25_of_this_host() -> None:
    assert places() == (Place("127.0.0.1", 25), Place("::1", 25))


def test_a_small_file_says_where_else(tmp_path: Path) -> None:
    (tmp_path / "sendmail.conf").write_text('# where\n\nrelay = "[::1]:2525"  # here\n')
    assert places() == [Place("::1", 2525)]


def test_the_environment_says_it_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sendmail.conf").write_text("relay = 10.0.0.1:25\n")
    monkeypatch.setenv("RELAYD_SMTP", "127.0.0.1:2525")
    assert places() == [Place("127.0.0.1", 2525)]


@pytest.mark.parametrize("text", ["relay = nowhere", "relay = a:0", "port = 25", "relay = a:b"])
def test_a_file_that_makes_no_sense_is_told_with_its_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sendmail.conf").write_text(text)
    assert run("root") == 78
    assert f"{tmp_path}/sendmail.conf:1" in capsys.readouterr().err
    assert (tmp_path / "dead.letter").exists()


# ---- sending


def test_a_mail_is_handed_in_as_the_calling_user(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert run("-i", "-FCronDaemon", "root", text=b"Subject: x\n\nhi\n.\nmore\n") == 0
    (mail,) = relay.mails
    user = sendmail._user().pw_name
    assert (mail.sender, mail.recipients) == (user, ["root"])
    assert f"\r\nFrom: CronDaemon <{user}>\r\n".encode() in mail.content
    assert mail.content.endswith(b"\r\n\r\nhi\r\n.\r\nmore\r\n")
    assert not mail.is_8bit


def test_a_sender_that_is_given_has_no_name_of_ours(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("-t", "-fwww@b.c", text=b"To: a@b.c\n\n\xc3\xbc\n") == 0
    assert b"\r\nFrom: www@b.c\r\n" in relay.mails[0].content
    assert relay.mails[0].is_8bit


def test_a_user_nobody_knows_may_send(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 61234)
    assert run("root") == 0
    assert relay.mails[0].sender == "uid61234"


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (Away("nobody answers at 127.0.0.1:25: x"), 75, "is it running? systemctl status relayd"),
        (Away("the relay left", maybe_taken=True), 75, "it may have been taken"),
        (Refused(Reply(451, "4.3.5 Not configured"), "sender"), 75, "relayd check"),
        (Refused(Reply(421, "4.3.2 Busy"), "relay"), 75, "421 4.3.2 Busy (relay)"),
        (Refused(Reply(530, "5.7.0 Authentication required"), "sender"), 77, "::1/128"),
        (Refused(Reply(552, "5.3.4 Too big"), "message"), 65, "552 5.3.4 Too big (message)"),
        (Refused(Reply(501, "5.1.7 Bad sender"), "sender"), 65, "501"),
        (Refused(Reply(554, "no"), "relay"), 69, "554 no"),
        (Outcome([], {"a@b.c": Reply(550, "5.7.1 Denied")}), 77, "allow_to"),
        (Outcome([], {"root": Reply(501, "5.1.3 Bad")}), 67, "default_domain"),
        (Outcome(["X"], {"a@b.c": Reply(550, "5.7.1 Denied")}), 67, "a@b.c: 550 5.7.1 Denied"),
    ],
)
def test_what_is_not_taken_is_said_kept_and_has_its_exit_code(
    answer: Outcome | Exception, code: int, words: str, relay: Relay, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    noted: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda _, line: noted.append(line))
    relay.answer = answer
    assert run("-fwww@b.c", "a@b.c") == code
    said = capsys.readouterr().err
    assert words in said
    assert f"the message is in {tmp_path}/dead.letter" in said
    kept = (tmp_path / "dead.letter").read_text()
    assert "\nSubject: x\n" in kept
    assert kept.endswith("\n\nhi\n\n")
    assert len(noted) == 1
    assert "from=<www@b.c>" in noted[0]
    assert "hi" not in noted[0].split()


def test_what_the_caller_wrote_breaks_no_line_of_a_log(
    relay: Relay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    noted: list[str] = []
    monkeypatch.setattr("syslog.syslog", lambda _, line: noted.append(line))
    assert run(os.fsdecode(b"@\nFrom x\nTo: \xff\x1b[2J")) == 65
    said = noted[0] + capsys.readouterr().err.replace("\n", "")
    assert said.isprintable()
    assert said.encode()
    assert "\nTo: " not in (tmp_path / "dead.letter").read_text()


def test_a_user_whose_name_is_no_address_may_send(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "LAN\\J\N{LATIN SMALL LETTER O WITH DIAERESIS}rg M@lan"
    user = pwd.struct_passwd((name, "x", 5, 5, "", "/", ""))
    monkeypatch.setattr(sendmail, "_user", lambda: user)
    assert run("root") == 0
    assert relay.mails[0].sender == "LAN_J_rg_M_lan"


def test_no_standard_input_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    before = os.dup(0)
    os.close(0)
    try:
        assert main(["sendmail", "root"]) == 74
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert "cannot read the message" in capsys.readouterr().err


def test_a_message_nobody_can_keep_is_said_to_be_lost(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    relay.answer = Away("nobody answers")
    monkeypatch.setenv("HOME", "/nonexistent")
    assert run("root") == 75
    assert "is lost here" in capsys.readouterr().err


def test_only_the_refused_are_named_where_others_got_it(
    relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.answer = Outcome(["X"], {"bad@b.c": Reply(550, "5.1.1 No")})
    assert run("a@b.c", "bad@b.c") == 67
    assert "X-Undelivered-To: bad@b.c\n" in (tmp_path / "dead.letter").read_text()


def test_a_message_too_large_for_anybody_is_refused(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sendmail, "_MOST_OCTETS", 10)
    assert run("root", text=b"\n0123456789") == 65
    assert not relay.mails


def test_exit_codes_are_those_of_sysexits() -> None:
    for name, code in (
        ("OK", sendmail.OK), ("USAGE", sendmail.USAGE), ("DATAERR", sendmail.DATA),
        ("NOUSER", sendmail.NO_USER), ("UNAVAILABLE", sendmail.UNAVAILABLE),
        ("IOERR", sendmail.IO_ERROR), ("TEMPFAIL", sendmail.TEMPORARY),
        ("NOPERM", sendmail.NO_PERMISSION), ("CONFIG", sendmail.CONFIG),
    ):  # fmt: skip
        assert getattr(os, f"EX_{name}") == code
    assert code_of(Reply(450, "x"), "recipient") == os.EX_TEMPFAIL
    assert advice(Reply(550, "5.1.1 No"), "a@b.c") == ""


def test_the_document_has_every_option_and_every_exit_code() -> None:
    text = (Path(__file__).parents[3] / "docs/sendmail.md").read_text()
    said = "".join(re.findall(r"(?m)^\| (`-.*?`) \|", text))
    letters = set(re.findall(r"-(\w)", said))
    assert letters == set(sendmail._VALUED + sendmail._SWITCHES) | {"q"}
    modules = (sendmail.OK, sendmail.USAGE, sendmail.DATA, sendmail.NO_USER)
    more = (sendmail.UNAVAILABLE, sendmail.IO_ERROR, sendmail.TEMPORARY, sendmail.NO_PERMISSION)
    codes = {int(code) for code in re.findall(r"(?m)^\| (\d+) \|", text)}
    assert codes == {*modules, *more, sendmail.CONFIG}


# ---- -bv and -bs


def test_bv_says_who_would_be_taken_and_sends_nothing(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {"root": Reply(250, "Ok"), "a@x.y": Reply(550, "5.7.1 Denied")}
    monkeypatch.setattr(submit, "verify", lambda *_: answers)
    assert run("-bv", "root", "a@x.y") == 77
    assert capsys.readouterr().out.splitlines()[0] == "root... deliverable"
    assert not relay.mails


@pytest.mark.parametrize(
    ("error", "code"),
    [(Away("nobody"), 75), (Refused(Reply(530, "5.7.0 x"), "sender"), 77)],
)
def test_bv_says_why_it_cannot_tell(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verify(*_: object) -> dict[str, Reply]:
        raise error

    monkeypatch.setattr(submit, "verify", verify)
    assert run("-bv", "root") == code


class Pipe:
    """Stands for a standard stream: only its descriptor is used."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor


def test_bs_joins_both_sides_until_the_relay_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").write_bytes(b"EHLO x\r\nQUIT\r\n")
    out = tmp_path / "out"
    descriptors = [os.open(tmp_path / "in", os.O_RDONLY), os.open(out, os.O_WRONLY | os.O_CREAT)]
    for name, descriptor in zip(("stdin", "stdout"), descriptors, strict=True):
        monkeypatch.setattr(f"sys.{name}", Pipe(descriptor))
    here, there = socket.socketpair()
    monkeypatch.setattr(submit, "connected", lambda _: here)
    heard = b""

    def relay() -> None:
        nonlocal heard
        there.sendall(b"220 hi\r\n")
        while octets := there.recv(100):
            heard += octets
        there.sendall(b"221 bye\r\n")
        there.close()

    thread = threading.Thread(target=relay)
    thread.start()
    try:
        assert main(["sendmail", "-bs"]) == 0
    finally:
        thread.join(10)
    assert heard == b"EHLO x\r\nQUIT\r\n"
    for descriptor in descriptors:
        os.close(descriptor)
    assert out.read_bytes() == b"220 hi\r\n221 bye\r\n"


def test_bs_answers_421_when_nobody_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def connected(_: object) -> socket.socket:
        raise Away("nobody answers")

    monkeypatch.setattr(submit, "connected", connected)
    assert main(["sendmail", "-bs"]) == 75
    assert capsys.readouterr().out.startswith("421 4.3.2 ")
