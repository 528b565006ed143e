"""`relayd send` speaks SMTP over the control socket and follows the mail to its end."""

from __future__ import annotations

import email
import email.policy
import json
import socket
from collections.abc import Iterator
from io import BufferedRWPair
from pathlib import Path

import pytest

from relayd.cli import send
from relayd.master.frames import Frame, Json, done, refused
from tests.control_socket import ControlSocket, pages

ID = "1JV7SEQSLMJCW"
OK: Frame = done({"device": "ups"})


class Relay:
    """The other end of the session: answers each command by its word, keeps what it heard."""

    def __init__(self) -> None:
        self.replies = {
            "BANNER": "220 relay.test ESMTP relayd",
            "EHLO": "250 relay.test",
            "MAIL": "250 2.1.0 Sender ok",
            "RCPT": "250 2.1.5 Recipient ok",
            "DATA": "354 Start mail input",
            "DOT": f"250 2.0.0 Ok: queued as {ID}",
            "QUIT": "221 2.0.0 Bye",
        }
        self.lines: list[str] = []
        self.content = b""

    def __call__(self, sock: socket.socket) -> None:
        with sock.makefile("rwb") as stream:
            self._say(stream, "BANNER")
            for line in stream:
                self.lines.append(line.decode().rstrip("\r\n"))
                word = line[:4].decode().upper()
                self._say(stream, word)
                if word == "DATA" and self.replies["DATA"].startswith("354"):
                    self._read_content(stream)
                if word == "QUIT":
                    return

    def _read_content(self, stream: BufferedRWPair) -> None:
        for line in stream:
            if line == b".\r\n":
                break
            self.content += line
        self._say(stream, "DOT")

    def _say(self, stream: BufferedRWPair, word: str) -> None:
        stream.write(f"{self.replies[word]}\r\n".encode())
        stream.flush()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as control:
        control.answers |= {
            "devices": pages({"devices": []}, {"devices": [{"name": "ups", "kind": "device"}]}),
            "smtp": [OK],
        }
        yield control


@pytest.fixture
def relay(control: ControlSocket) -> Relay:
    relay = Relay()
    control.smtp = relay
    return relay


def run(control: ControlSocket, *words: str) -> int:
    return control.relayd("send", "--to", "a@contoso.com", *words)


def story(*ways: dict[str, Json]) -> Frame:
    return done({"id": ID, "deliveries": list(ways)})


def delivery(state: str, why: str = "", do: str = "", **more: Json) -> dict[str, Json]:
    return {"state": state, "why": why, "do": do, "results": {}, **more}


def row(name: str, reply: str = "", kind: str = "device") -> dict[str, Json]:
    why = {"reply": reply, "why": f"the rule of {name}", "do": f"Widen {name}."}
    return {"name": name, "kind": kind, "refusal": why if reply else None}


def test_a_mail_goes_in_as_the_first_that_may_send_it(
    control: ControlSocket, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Json] = [row("ups", "550 5.7.1 Recipient not allowed"), row("p1", kind="user")]
    control.answers["devices"] = pages({"devices": rows[:1]}, {"devices": rows[1:]})
    assert run(control) == 0
    told = capsys.readouterr()
    assert told.out == f"{ID}: queued\n"
    assert told.err == "relayd: speaking as [[user]] p1, the only one of 2 that may send this\n"
    assert control.asked()[-1] == {"command": "smtp", "device": "p1"}


def test_of_several_that_may_the_flag_that_chooses_is_told_in_one_line(
    control: ControlSocket, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["ups", "a", "b", "c", "d", "e", "f"]
    control.answers["devices"] = pages({"devices": [row(name) for name in names]})
    assert run(control) == 0
    assert capsys.readouterr().err == (
        "relayd: speaking as [[device]] ups; as another: --device NAME (a, b, c, d, e and 1 more)\n"
    )
    assert run(control, "--json") == 0
    told = capsys.readouterr()
    assert (json.loads(told.out)["device"], told.err) == ("ups", "")


def test_where_nobody_may_the_rule_and_the_setting_are_told(
    control: ControlSocket, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = "550 5.7.1 Recipient not allowed"
    control.answers["devices"] = pages({"devices": [row("ups", reply), row("p1", reply)]})
    assert run(control) == 1
    assert capsys.readouterr().err == (
        f"relayd: ups may not send this (nor p1): {reply}\n  the rule of ups\n  do: Widen ups.\n"
    )
    assert run(control, "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "id": "", "device": "ups", "state": "refused", "why": reply, "do": "Widen ups.",
    }  # fmt: skip
    assert all(one["command"] == "devices" for one in control.asked())


def test_a_device_that_is_named_and_refused_is_told_its_rule(
    control: ControlSocket, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    relay.replies["RCPT"] = reply = "550 5.7.1 Recipient not allowed"
    control.answers["devices"] = pages({"devices": [row("ups"), row("p1", reply)]})
    assert run(control, "--device", "p1") == 1
    assert capsys.readouterr().err == (
        f"relayd: speaking as p1\nrelayd: refused as p1: {reply}\n"
        "  the rule of p1\n  do: Widen p1.\n"
    )


def test_a_mail_goes_in_as_the_first_device_of_a_relay_that_tells_no_refusal(
    control: ControlSocket, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(control, "--to", "b@contoso.com", "--from", "ups@nas.local") == 0
    assert capsys.readouterr().out == f"{ID}: queued\n"
    asked, spoken = control.asked()
    assert asked["to"] == ["a@contoso.com", "b@contoso.com"]
    assert asked["from"] == "ups@nas.local"
    assert asked["size"] == len(relay.content.replace(b"\r\n..", b"\r\n."))
    assert spoken == {"command": "smtp", "device": "ups"}
    assert relay.lines[1:4] == [
        "mail FROM:<ups@nas.local>", "rcpt TO:<a@contoso.com>", "rcpt TO:<b@contoso.com>",
    ]  # fmt: skip
    message = email.message_from_bytes(relay.content, policy=email.policy.default)
    assert message["To"] == "a@contoso.com, b@contoso.com"
    assert message["From"] == "ups@nas.local"
    assert message["Subject"] == "Test mail from relayd"
    assert relay.content.count(b"\n") == relay.content.count(b"\r\n")


def test_a_mail_goes_in_as_the_device_that_is_named(control: ControlSocket, relay: Relay) -> None:
    assert run(control, "--device", "scanner", "--subject", "Grüße") == 0
    assert control.asked() == [{"command": "smtp", "device": "scanner"}]
    message = email.message_from_bytes(relay.content, policy=email.policy.default)
    assert message["Subject"] == "Grüße"
    assert message["From"] is None, "the relay gives one"


def test_a_mail_is_queued_even_if_the_relay_is_leaving_by_then(
    control: ControlSocket, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    relay.replies["QUIT"] = "421 4.3.2 Shutting down"
    assert run(control) == 0
    assert capsys.readouterr().out == f"{ID}: queued\n"


def test_files_go_with_it(control: ControlSocket, relay: Relay, tmp_path: Path) -> None:
    (tmp_path / "scan.pdf").write_bytes(b"%PDF-\x00")
    (tmp_path / "odd").write_bytes(b"\xff")
    words = ["--attach", str(tmp_path / "scan.pdf"), "--attach", str(tmp_path / "odd")]
    assert run(control, *words) == 0
    message = email.message_from_bytes(relay.content, policy=email.policy.default)
    found = [
        (part.get_filename(), part.get_content_type(), part.get_content())
        for part in message.iter_attachments()
    ]
    assert found == [
        ("scan.pdf", "application/pdf", b"%PDF-\x00"),
        ("odd", "application/octet-stream", b"\xff"),
    ]


def test_a_configuration_that_cannot_be_read_does_not_matter(
    control: ControlSocket, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.config.write_text(control.config.read_text() + "[upstream.x]\nnonsense = true\n")
    assert run(control) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--at", "tomorrow"], "not available yet"),
        (["--from", "jörg@contoso.com"], "use ASCII"),
        (["--to", "a@b\r\nRCPT TO:<c@d>"], "use ASCII"),
        (["--subject", "a\nb"], "no mail can be made of this"),
    ],
)
def test_what_cannot_be_sent_is_wrong_usage(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert run(control, *words) == 2
    assert told in capsys.readouterr().err
    assert control.requests == []


def test_a_file_that_cannot_be_read_is_named(
    control: ControlSocket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(control, "--attach", str(tmp_path / "none.pdf")) == 1
    assert f"cannot attach {tmp_path}/none.pdf: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "reply", "told"),
    [
        ("MAIL", "451 4.3.5 Relay is not configured yet", "do: relayd setup"),
        ("RCPT", "550 5.7.1 Relaying denied", "allow_to of the [[device]]"),
        ("DATA", "554 5.5.1 No valid recipients", "no recipient was accepted"),
        ("DOT", "552 5.3.4 Message too large", "larger than its way out carries"),
        ("BANNER", "421 4.3.2 Service shutting down", "stopping"),
        ("RCPT", "599 something new", "599 something new"),
    ],
)
def test_a_refusal_is_told_and_explained(
    control: ControlSocket,
    relay: Relay,
    capsys: pytest.CaptureFixture[str],
    word: str,
    reply: str,
    told: str,
) -> None:
    relay.replies[word] = reply
    assert run(control) == 1
    err = capsys.readouterr().err
    assert f"refused as ups: {reply}" in err
    assert told in err


def test_a_refusal_as_json(
    control: ControlSocket, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    relay.replies["RCPT"] = "550 5.7.1 Relaying denied"
    assert run(control, "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "id": "", "device": "ups", "state": "refused", "why": "550 5.7.1 Relaying denied",
        "do": "",
    }  # fmt: skip


def test_a_session_that_breaks_may_be_tried_again(
    control: ControlSocket, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    control.smtp = lambda sock: sock.sendall(b"220 relay.test\r\n")
    assert run(control) == 75
    assert "broke the session off" in capsys.readouterr().err


def test_an_unknown_device_is_told_which_there_are(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["smtp"] = [refused("no [[device]] or [[user]] named 'x'; there are: ups")]
    assert run(control, "--device", "x") == 1
    assert "there are: ups" in capsys.readouterr().err


def test_without_any_device_nobody_may_send(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["devices"] = pages({"devices": []})
    assert run(control) == 1
    told = capsys.readouterr().err
    assert "nobody may send" in told
    assert "next step: relayd setup" in told


def test_when_nobody_is_there_it_says_how_to_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ControlSocket(tmp_path) as control:
        pass
    assert run(control, "--device", "ups") == 69
    assert "/relayd.toml run\n" in capsys.readouterr().err


@pytest.mark.parametrize("reply", [[], [done({"x": 1}, more=True)]])
def test_a_daemon_that_says_nonsense_costs_no_traceback(
    control: ControlSocket, reply: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "_WITHIN_S", 0.5)
    control.answers["smtp"] = reply
    assert run(control, "--device", "ups") in {69, 75}


# ---- followed


@pytest.mark.parametrize(
    ("ways", "code", "state"),
    [
        ([delivery("sent", "Microsoft took it over.")], 0, "sent"),
        ([delivery("sent"), delivery("sent")], 0, "sent"),
        ([delivery("sent", results={"b@x": "unknown"})], 1, "sent"),
        ([delivery("sent", results={"b@x": ""})], 0, "sent"),
        ([delivery("failed", "Given up.", "Correct it.")], 1, "failed"),
        ([delivery("sent"), delivery("failed", "Given up.")], 1, "failed"),
        ([delivery("held", "Held.", "Release it.")], 1, "held"),
        ([delivery("ready", "Upstream lab is down.", "Mend it.")], 75, "queued"),
        ([delivery("deferred", "Tried once.")], 75, "queued"),
    ],
)
def test_it_is_followed_to_its_end(
    control: ControlSocket,
    relay: Relay,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ways: list[dict[str, Json]],
    code: int,
    state: str,
) -> None:
    monkeypatch.setattr(send, "_FOLLOW_S", 0.0)
    control.answers["queue.show"] = [story(*ways)]
    assert run(control, "--wait", "--json") == code
    told = json.loads(capsys.readouterr().out)
    assert (told["id"], told["state"]) == (ID, state)
    assert set(told) == {"id", "device", "state", "why", "do"}


def test_it_waits_while_there_is_hope(
    control: ControlSocket,
    relay: Relay,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([delivery("ready"), delivery("leased"), delivery("sent", "Microsoft has it.")])
    monkeypatch.setattr(send, "_LOOK_S", 0.0)
    monkeypatch.setattr(send, "ask", lambda *_: {"deliveries": [next(answers)]})
    assert run(control, "--wait") == 0
    assert capsys.readouterr().out == f"{ID}: sent - Microsoft has it.\n"


def test_what_to_do_is_told_on_a_line_of_its_own(
    control: ControlSocket, relay: Relay, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["queue.show"] = [story(delivery("held", "Held\x1b[2J.", "Release it."))]
    assert run(control, "--wait") == 1
    assert capsys.readouterr().out == f"{ID}: held - Held\\x1b[2J.\n  do: Release it.\n"
