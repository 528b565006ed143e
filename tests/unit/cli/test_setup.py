"""The first run: what is asked, written, taken over, taken back, and said of all that."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import pwd
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd import check
from relayd.cli import send, setup, setupask, setupplan
from relayd.cli.interview import name_for
from relayd.master.frames import done, refused
from relayd.master.sockets import NEEDS_RESTART
from tests.control_socket import ControlSocket, Terminal

TEXT = """\
[server]
hostname = "relay.test"
runtime_dir = "{folder}"
state_dir = "{folder}/state"
[spool]
url = "sqlite:///{folder}/spool/spool.db"
[tls]
source = "off"
[admin]
address = ""
[[listener]]
name = "lan"
address = ["127.0.0.1:25"]
"""
SECRET = "s3cret~value"
ID = "10000000-0000-0000-0000-000000000000"
OBJECT = "20000000-0000-0000-0000-000000000000"


class Place:
    """A relay that can be configured, and the commands on it. doctor: what it will answer."""

    def __init__(self, control: ControlSocket, folder: Path) -> None:
        self.control = control
        self.folder = folder
        self.config = control.config
        self.config.write_text(TEXT.format(folder=folder))
        self.config.chmod(0o640)
        self.secret = folder / "given.secret"
        self.secret.write_text(f"{SECRET}\n")
        self.commands: list[list[str]] = []
        self.doctor: int | Exception = 0
        control.answers["reload"] = [done({"workers": 2})]

    def setup(self, *words: str) -> int:
        return self.control.relayd("setup", *words)

    def flags(self, *words: str) -> int:
        return self.setup(
            "--no-input", "--tenant", "contoso.onmicrosoft.com", "--client-id", ID, "--mailbox",
            "alerts@contoso.com", "--secret-file", str(self.secret), "--network", "10.0.0.0/24",
            *words,
        )  # fmt: skip

    def read(self, name: str = "relayd.toml") -> dict[str, Any]:
        return tomllib.loads((self.folder / name).read_text())

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        self.commands.append(command)
        if isinstance(self.doctor, Exception):
            raise self.doctor
        return subprocess.CompletedProcess(command, self.doctor)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with ControlSocket(tmp_path) as control:
        place = Place(control, tmp_path)
        monkeypatch.setattr(setup.subprocess, "run", place.run)  # type: ignore[attr-defined]
        yield place


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what lets lines be typed on a terminal, and the secret at its prompt."""

    def typed(*lines: str, secret: str = SECRET) -> None:
        monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(getpass, "getpass", lambda _prompt: secret)

    return typed


# ---- by options


def test_by_options_it_is_written_taken_over_and_looked_at(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.flags() == 0
    assert place.read()["upstream"]["contoso"]["mailbox"] == "alerts@contoso.com"
    assert place.read()["listener"][0]["address"] == ["0.0.0.0:25", "[::]:25"]
    assert (place.folder / "secrets/contoso").read_text() == f"{SECRET}\n"
    assert place.control.asked() == [{"command": "reload"}]
    (doctor,) = place.commands
    assert doctor[:4] == [sys.executable, "-P", "-m", "relayd"]  # nothing of where root stands
    assert doctor[-2:] == ["doctor", "contoso"]
    out, err = capsys.readouterr()
    for wanted in (
        "New-ManagementScope",
        "a client secret, 12 characters",
        '+tenant = "contoso.onmicrosoft.com"',
        f"wrote {place.config}",
        "as it was",
        "the running relay took it over",
        f"next:  relayd --config {place.config} status",
        "send --to you@contoso.com --wait",
    ):
        assert wanted in out
    assert SECRET not in out + err


def test_the_same_again_is_unchanged(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.flags() == 0
    before = {path: path.stat().st_mtime_ns for path in place.folder.rglob("*.toml*")}
    capsys.readouterr()
    assert place.flags() == 0
    assert capsys.readouterr().out == f"unchanged: {place.config} says all of this already\n"
    assert {path: path.stat().st_mtime_ns for path in place.folder.rglob("*.toml*")} == before
    assert len(place.control.asked()) == len(place.commands) == 1


def test_as_json_it_says_what_was_done(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.flags("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["changed"] is True
    assert told["running"] == "reloaded"
    assert told["doctor"] == "ok"
    assert [os.path.basename(path) for path in told["files"]] == [
        "contoso",
        "zz-lan.toml",
        "relayd.toml",
    ]
    assert len(told["kept"]) == 1
    assert place.flags("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["changed"], told["files"], told["running"]) == (False, [], "untouched")


def test_a_later_change_says_only_what_is_new(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.flags() == 0
    assert place.setup("--no-input", "--mailbox", "new@contoso.com") == 0
    assert place.read()["upstream"]["contoso"]["mailbox"] == "new@contoso.com"
    assert place.read()["upstream"]["contoso"]["client_id"] == ID
    assert capsys.readouterr().out.count("New-ManagementScope") == 1


def test_a_secret_beside_what_changes_is_not_shown(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    text = '[upstream.contoso]\ntenant = "a.example"\nclient_secret = "in-the-clear"\n'
    place.config.write_text(f"{place.config.read_text()}{text}client_id = {json.dumps(ID)}\n")
    words = ("--tenant", "b.example", "--mailbox", "a@b.example")
    assert place.setup("--no-input", *words) == 0
    out, err = capsys.readouterr()
    assert '-tenant = "a.example"' in out
    assert '+tenant = "b.example"' in out
    assert "in-the-clear" not in out + err


def test_endpoints_of_ones_own_need_no_portal(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    base = "https://127.0.0.1:8443"
    assert place.flags("--authority", base, "--graph", f"{base}/v1.0") == 0
    assert place.read()["upstream"]["contoso"]["cloud"] == "lab"
    assert place.read()["cloud"]["lab"]["graph"] == f"{base}/v1.0"
    assert "New-ManagementScope" not in capsys.readouterr().out
    # Later it goes by that cloud's name, whatever it is.
    assert place.setup("--no-input", "--authority", "https://127.0.0.1:8444") == 0
    assert place.read()["cloud"]["lab"]["authority"] == "https://127.0.0.1:8444"


def test_what_is_missing_is_listed_where_nobody_can_be_asked(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.setup("--authority", "https://x", "--listen", "nowhere") == 2
    err = capsys.readouterr().err
    assert "relayd: these options are missing or cannot be used:\n" in err
    for option in ("--tenant", "--client-id", "--mailbox", "--secret-file or --secret-stdin"):
        assert f"  {option}: is missing\n" in err
    assert "  --graph: is missing\n" in err
    assert "  --listen: " in err
    assert err.endswith("relayd: nothing was changed\n")
    assert "upstream" not in place.read()


def test_a_ca_file_is_looked_at_as_the_relay_would_before_anything_is_asked(
    place: Place,
    typed: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (place.folder / "state").mkdir()
    asked: list[tuple[str, str]] = []

    def relay_user(config: str, state_dir: str) -> pwd.struct_passwd:
        asked.append((config, state_dir))
        return pwd.getpwnam("nobody")

    monkeypatch.setattr(check, "relay_user", relay_user)
    file = place.folder / "ca.pem"
    file.write_text("-----BEGIN CERTIFICATE-----\n")
    file.chmod(0o600)
    monkeypatch.setattr(check, "seen_by", lambda user: _Refusing(user.pw_name))
    typed("contoso.com")
    assert place.setup("--authority", "https://x", "--ca-file", str(file)) == 2
    out, err = capsys.readouterr()
    assert f"--ca-file: {file} cannot be read (Permission denied); the relay's own user" in err
    assert out == ""
    assert asked == [(str(place.config), f"{place.folder}/state")]


class _Refusing(contextlib.AbstractContextManager[None]):
    """The eyes of somebody who may read nothing."""

    def __init__(self, name: str) -> None:
        assert name == "nobody"

    def __enter__(self) -> None:
        raise PermissionError(13, "Permission denied")

    def __exit__(self, *_: object) -> None:
        pass


def test_of_several_upstreams_one_is_named(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.config.write_text(place.config.read_text() + "[upstream.a]\n[upstream.b]\n")
    assert place.flags() == 2
    assert "--name: there are several upstreams, a, b; say which" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (ID.encode(), "Secret ID"),
        (b"\xff\xfe", "no text"),
        (b"\n", "empty"),
        (b"two\nlines\n", "one line"),
    ],
)
def test_a_secret_that_cannot_be_one_is_refused_unshown(
    place: Place, capsys: pytest.CaptureFixture[str], octets: bytes, words: str
) -> None:
    place.secret.write_bytes(octets)
    assert place.flags() == 2
    out, err = capsys.readouterr()
    assert words in err
    assert ID not in err
    assert "two" not in err
    assert not (place.folder / "secrets").exists()
    assert out == ""


def test_a_secret_comes_by_a_pipe(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.write(write, b"from-a-pipe\r\n")
    os.close(write)
    place.secret.unlink()
    with open(read, encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        words = ["--tenant", "contoso.com", "--client-id", ID, "--mailbox", "a@contoso.com"]
        assert place.setup(*words, "--secret-stdin") == 0
    assert (place.folder / "secrets/contoso").read_text() == "from-a-pipe\n"


def test_a_file_that_cannot_be_read_is_named(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.secret.unlink()
    assert place.flags() == 1
    assert f"{place.secret}: No such file or directory; nothing was" in capsys.readouterr().err


def test_who_may_not_write_there_is_told_to_use_sudo(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: str, *_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "mkdir", denied)
    assert place.flags() == 1
    assert "nothing was changed; say it again with sudo" in capsys.readouterr().err


def test_what_is_there_already_and_broken_is_told_first(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.config.write_text("[upstream\n")
    assert place.flags() == 78
    assert f"{place.config}:1" in capsys.readouterr().err


def test_what_must_be_done_by_hand_is_said(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.config.write_text(place.config.read_text() + '[upstream.contoso]\nclient_secret = "x"\n')
    assert place.flags() == 1
    assert "client_secret is set there; take that line out first" in capsys.readouterr().err


# ---- refused


def test_what_check_would_refuse_is_not_written(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.config.write_text(f'{place.config.read_text()}[[device]]\nname = "ups"\n')
    before = place.config.read_bytes()
    assert place.flags() == 1
    err = capsys.readouterr().err
    assert "relayd check would refuse this:\n  " in err
    assert '[[device]] "ups" networks: is missing' in err
    assert err.endswith("relayd: nothing was changed\n")
    assert place.config.read_bytes() == before
    assert not (place.folder / "secrets").exists()


def test_what_the_running_relay_refuses_is_taken_back(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = place.config.read_bytes()
    place.control.answers["reload"] = [refused("no", problems=["no workers came up"])]
    assert place.flags() == 1
    assert "refused this:\n  no workers came up\nrelayd: nothing was" in capsys.readouterr().err
    assert place.config.read_bytes() == before
    assert not (place.folder / "secrets").exists()
    assert not list(place.folder.glob("*.before-setup-*"))


def test_a_relay_that_cannot_listen_is_told_of_and_the_files_stay(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.control.answers["reload"] = [refused("no", problems=[f"held; {NEEDS_RESTART}"])]
    assert place.flags() == 69
    assert capsys.readouterr().err.endswith("relayd: the configuration is written\n")
    assert "contoso" in place.read()["upstream"]


def test_without_a_start_it_is_only_written(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.flags("--no-start") == 0
    assert not place.control.asked()
    assert not place.commands
    assert "not taken over, as --no-start says" in capsys.readouterr().out


# ---- doctor and the test mail


def test_a_way_out_that_is_not_whole_yet_is_no_failure(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.doctor = 1
    assert place.flags() == 0
    assert "up to two hours" in capsys.readouterr().out


def test_a_doctor_that_does_not_end_is_left_to_later(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.doctor = subprocess.TimeoutExpired("doctor", 180)
    assert place.flags("--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["doctor"] == "unknown"
    assert "again: relayd doctor" in err


def test_a_test_mail_is_followed_and_its_end_is_the_exit_code(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def sent(options: Any) -> int:
        asked.append(options)
        print('{"id": "1", "state": "queued", "why": "", "do": ""}' if options.json else "queued")
        return 75

    monkeypatch.setattr(send, "send", sent)
    assert place.flags("--test-to", "you@contoso.com") == 75
    assert (asked[0].to, asked[0].wait, asked[0].device) == (["you@contoso.com"], True, "")
    out = capsys.readouterr().out
    assert out.endswith("queued\n")
    assert place.setup("--test-to", "you@contoso.com", "--json") == 75
    assert json.loads(capsys.readouterr().out)["test"]["state"] == "queued"


# ---- on a terminal


def test_on_a_terminal_all_is_asked_and_every_step_is_said(
    place: Place,
    typed: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(setupask, "own_networks", lambda: ("192.168.10.0/24",))
    typed(
        "contoso", "contoso.onmicrosoft.com", "alerts@contoso.com", "mars", "", ID, OBJECT,
        "", "", "y", "",
    )  # fmt: skip
    assert place.setup() == 0
    out = capsys.readouterr().out
    order = [
        f"This writes {place.config}.",
        'Tenant: no tenant; write "contoso.onmicrosoft.com"'.partition(" ")[0],
        "Mailbox that sends everything: ",
        "no cloud; choose global, gcc-high, dod, 21vianet",
        "New registration",
        "Application (client) ID: ",
        "Object ID of the enterprise application",
        f"New-ServicePrincipal -AppId {ID} -ObjectId {OBJECT}",
        "Grant admin consent",
        "New client secret",
        "Networks whose devices may send without a password, or none [192.168.10.0/24]: ",
        "Listen on [0.0.0.0:25 [::]:25]: ",
        "Write this? [Y/n]: ",
        "wrote ",
        "relayd doctor:",
        "Send a test mail to (an address at contoso.com; Enter: none): ",
        "next:  relayd ",
    ]
    places = [out.index(each) for each in order]
    assert places == sorted(places)
    assert SECRET not in out
    assert place.read("conf.d/zz-lan.toml")["device"][0]["networks"] == ["192.168.10.0/24"]


def test_what_is_there_is_proposed_and_enter_keeps_it(
    place: Place, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.flags() == 0
    capsys.readouterr()
    # Such a mailbox is nobody's address, and stays all the same.
    text = place.config.read_text().replace(
        '"alerts@contoso.com"', '"sender"\nallowed_senders = ["*@a.example"]', 1
    )
    place.config.write_text(text)
    typed(*[""] * 5, secret="")
    assert place.setup() == 0
    out = capsys.readouterr().out
    assert "Mailbox that sends everything [sender]: " in out
    assert "New registration" not in out  # that is done
    assert "Tenant [contoso.onmicrosoft.com]: " in out
    assert "Networks" not in out
    assert f"unchanged: {place.config}" in out


def test_what_no_answer_mends_is_told_before_the_first_question(
    place: Place, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    place.config.write_text(f'{place.config.read_text()}[[device]]\nname = "ups"\n')
    typed("contoso.com")
    assert place.setup() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "cannot be used, correct this first:\n" in err
    assert '[[device]] "ups" networks: is missing' in err


def test_what_this_host_lacks_is_told_before_the_first_question_too(
    place: Place,
    typed: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packaged = place.folder / "packaged.toml"
    packaged.write_text(TEXT.format(folder="/dev/null/x"))
    place.config.unlink()
    monkeypatch.setattr(setupplan, "TEMPLATES", (str(packaged),))
    typed("contoso.com")
    assert place.setup() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "[server] state_dir: /dev/null is no folder" in err
    assert not place.config.exists()


def test_what_the_check_finds_leads_back_to_its_question_and_nothing_else_is_asked(
    place: Place, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    upstream = '[upstream.contoso]\nmailbox = "sender"\n'
    place.config.write_text(place.config.read_text() + upstream)
    # Enter keeps "sender", which needs allowed_senders; only the check knows that.
    typed("contoso.com", "", "", ID, "", "none", "", "alerts@contoso.com", "y", "")
    assert place.setup() == 0
    out = capsys.readouterr().out
    assert out.count("Tenant: ") == out.count("Listen on ") == 1
    refused = out.index("relayd check would refuse this:")
    assert out.index("your other answers stay", refused) < out.index(
        "Mailbox that sends everything [sender]: ", refused
    )
    # The commands for Exchange are said again, with the mailbox that is meant.
    assert out.count("New-ManagementScope") == 2
    assert place.read()["upstream"]["contoso"]["mailbox"] == "alerts@contoso.com"


def test_what_is_wrong_again_and_again_ends_it_with_the_answers_as_options(
    place: Place, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    upstream = '[upstream.contoso]\nmailbox = "sender"\n'
    place.config.write_text(place.config.read_text() + upstream)
    before = place.config.read_bytes()
    typed("contoso.com", "", "", ID, "", "none", "", *[""] * 9)
    assert place.setup() == 1
    err = capsys.readouterr().err
    assert '"sender" needs allowed_senders' in err
    assert (
        "nothing was changed\n  with the same answers: relayd --config"
        f" {place.config} setup --tenant contoso.com"
        f" --client-id {ID} --mailbox sender --cloud global --network none"
    ) in err
    assert SECRET not in err
    assert place.config.read_bytes() == before


def test_what_the_running_relay_cannot_have_leads_back_too(
    place: Place, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = place.config.read_bytes()
    place.control.turns["reload"] = [
        [refused("no", problems=['cannot listen on 0.0.0.0:25 (listener "lan"): held by exim4'])],
        [done({"workers": 2})],
    ]
    typed("contoso.com", "a@contoso.com", "", ID, "", "10.0.0.0/8", "", "y", "127.0.0.1:2525",
          "y", "")  # fmt: skip
    assert place.setup() == 0
    out = capsys.readouterr().out
    refusal = out.index("the running relay refused this:\n  cannot listen on 0.0.0.0:25")
    assert out.index("Listen on [0.0.0.0:25 [::]:25]: ", refusal) > refusal
    assert place.read()["listener"][0]["address"] == ["127.0.0.1:2525"]
    assert before == Path(next(place.folder.glob("*.before-setup-*"))).read_bytes()


def test_who_does_not_confirm_changes_nothing(
    place: Place, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = place.config.read_bytes()
    typed("contoso.com", "a@contoso.com", "", ID, "", "none", "", "n")
    assert place.setup() == 1
    err = capsys.readouterr().err
    assert "not confirmed; nothing was changed\n  with the same answers: relayd --config" in err
    assert place.config.read_bytes() == before


def test_ctrl_c_and_ctrl_d_change_nothing(
    place: Place,
    typed: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = place.config.read_bytes()
    typed("contoso.com")
    assert place.setup() == 1
    assert "the input ended; nothing was changed" in capsys.readouterr().err

    def pressed(_prompt: str) -> str:
        raise KeyboardInterrupt

    typed("contoso.com", "a@contoso.com", "", ID, "")
    monkeypatch.setattr(getpass, "getpass", pressed)
    assert place.setup() == 130
    assert "interrupted; nothing was changed" in capsys.readouterr().err
    assert place.config.read_bytes() == before
    assert sorted(path.name for path in place.folder.iterdir()) == [
        "control.sock",
        "given.secret",
        "relayd.toml",
    ]


@pytest.mark.parametrize(
    ("tenant", "mailbox", "name"),
    [
        ("contoso.onmicrosoft.com", "a@example.com", "contoso"),
        (ID, "a@Mail.Example.com", "mail"),
        ("a.b", "", "a"),
    ],
)
def test_an_upstream_is_called_like_its_tenant(tenant: str, mailbox: str, name: str) -> None:
    assert name_for(tenant, mailbox) == name
