"""Answers are judged when they are given; what the check finds opens its own question again."""

from __future__ import annotations

import argparse
import getpass
import io
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from relayd.cli import setupask, takeover
from relayd.cli.interview import CannotGoOn, Interview, Question, question_of
from relayd.cli.setupplan import look
from tests.control_socket import Terminal

TENANT = "30000000-0000-0000-0000-000000000000"
ID = "10000000-0000-0000-0000-000000000000"
OBJECT = "20000000-0000-0000-0000-000000000000"
SECRET = "s3cret~value"
TEXT = """\
[[listener]]
name = "lan"
address = ["127.0.0.1:2525"]
[[listener]]
name = "submission"
address = ["127.0.0.1:2587"]
"""
THERE = """\
[upstream.contoso]
tenant = "contoso.com"
client_id = "{ID}"
client_secret = "x"
mailbox = "a@contoso.com"
""".replace("{ID}", ID)
DEVICE = '[[device]]\nname = "ups"\nnetworks = ["10.0.0.5/32"]\n'


def options(**given: object) -> argparse.Namespace:
    texts = "tenant client_id mailbox object_id name cloud authority graph ca_file test_to"
    empty = dict.fromkeys((*texts.split(), "secret_file"), "")
    flags = dict.fromkeys(("secret_stdin", "no_start", "no_input", "json"), False)
    return argparse.Namespace(**{**empty, **flags, "network": [], "listen": [], **given})


class Talk:
    """An interview on a configuration, with what it said."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "relayd.toml"
        self.config.write_text(TEXT)
        self.said: list[str] = []

    def begin(self, more: str = "", **given: object) -> Interview:
        self.config.write_text(TEXT + more)
        return Interview(look(str(self.config)), options(**given), self._say)

    def _say(self, *lines: str) -> None:
        self.said += lines
        print(*lines, sep="\n")


@pytest.fixture
def talk(tmp_path: Path) -> Talk:
    return Talk(tmp_path)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def typed(*lines: str, secret: str = SECRET) -> None:
        monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(getpass, "getpass", lambda _prompt: secret)

    monkeypatch.setattr(setupask, "own_networks", tuple)
    return typed


# ---- once, and again


def test_what_is_open_again_is_asked_and_the_rest_stays(
    talk: Talk, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    # Enter is no answer where nothing stands in brackets.
    typed("", "contoso.com", "a@contoso.com", "", "", ID, "", "none", "", "b@contoso.com")
    interview = talk.begin()
    first = interview.answers()
    assert (first.tenant, first.mailbox) == ("contoso.com", "a@contoso.com")
    assert (first.secret, first.networks) == (SECRET, ())
    assert first.listen == ("127.0.0.1:2525",)
    capsys.readouterr()
    assert interview.reopen(["/x:1: [upstream.contoso] mailbox: no", "/x: something else"])
    second = interview.answers()
    out = capsys.readouterr().out
    assert out.startswith("Mailbox that sends everything [a@contoso.com]: ")
    assert out.count("]: ") == 1, "the only question"
    assert (second.mailbox, second.tenant, second.secret) == (
        "b@contoso.com", first.tenant, first.secret,
    )  # fmt: skip


def test_an_option_that_was_wrong_is_asked_for(
    talk: Talk, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    typed("", ID, "none", "")
    interview = talk.begin(tenant="contoso.com", mailbox="a@contoso.com", object_id=OBJECT)
    assert interview.answers().tenant == "contoso.com"
    assert "Tenant" not in capsys.readouterr().out.replace("Tenant ID", "")
    typed("fabrikam.com")
    assert interview.reopen(["/x:1: [upstream.contoso] tenant: no"])
    assert interview.answers().tenant == "fabrikam.com"


def test_what_belongs_to_no_question_and_what_nobody_answers_is_not_asked(
    talk: Talk, typed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed()
    assert not talk.begin().reopen(['/x:1: [[device]] "ups" networks: is missing'])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    interview = talk.begin(THERE)
    assert not interview.reopen(["/x:1: [upstream.contoso] mailbox: no"])
    assert interview.again() == ""


def test_it_is_not_asked_for_ever(talk: Talk, typed: Callable[..., None]) -> None:
    typed()
    interview = talk.begin()
    tries = [interview.reopen(["/x:1: [upstream.contoso] mailbox: no"]) for _ in range(6)]
    assert tries == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("problem", "question"),
    [
        ("/x:7: [upstream.a-b] tenant: no", Question.TENANT),
        ("/x:7: [upstream.a] client_id: is missing", Question.CLIENT_ID),
        ('/x:7: [upstream.a] mailbox: "sender" needs', Question.MAILBOX),
        ('/x:7: [upstream.a] cloud: "b" is not configured', Question.CLOUD),
        ("/x:7: [upstream.a] client_secret_file: cannot be read", Question.SECRET),
        ("/x: [upstream.a] client_secret: is missing", Question.SECRET),
        ('/x:3: [[listener]] "lan" address: "b" is listed twice', Question.LISTEN),
        ('cannot listen on 0.0.0.0:25 (listener "lan"): held by exim4', Question.LISTEN),
        ('/e/conf.d/zz-lan.toml:9: [[device]] "lan" networks: no', Question.NETWORKS),
        ('/e/relayd.toml:9: [[device]] "ups" networks: no', None),
        ('/x:3: [[listener]] "smtps" address: "b" is listed twice', None),
        ("/x:7: [upstream.a] mailbox_id: no", None),
        ("/x:7: [cloud.lab] ca_file: cannot be read", None),
    ],
)
def test_a_problem_belongs_to_a_question(problem: str, question: Question | None) -> None:
    assert question_of(problem) is question


def test_what_an_option_brings_is_no_problem_of_before(
    talk: Talk, typed: Callable[..., None]
) -> None:
    typed()
    problems = ["/x: [cloud.lab] graph: is missing", "/x: [spool] retry: is empty"]
    assert talk.begin().others([*problems, "/x: [upstream.a] tenant: no"]) == problems
    lab = talk.begin(authority="https://lab.example", graph="https://lab.example/v1.0")
    assert lab.others(problems) == problems[1:]


# ---- judged when it is given


def test_ids_that_are_taken_for_each_other_are_told(
    talk: Talk, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    typed(TENANT, "a@contoso.com", "", TENANT, ID, ID, TENANT, OBJECT, "none", "")
    assert talk.begin().answers().client_id == ID
    out = capsys.readouterr().out
    assert "that is the tenant ID; the Application (client) ID stands beside it" in out
    assert "that is the application's own (client) ID" in out
    assert "that is the tenant ID; step 3" in out
    assert f"-ObjectId {OBJECT}" in out


def test_an_address_that_cannot_be_listened_on_is_asked_again(
    talk: Talk, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    listen = ("0.0.0.0:2587", "127.0.0.1:26 0.0.0.0:26", "192.0.2.1:25", "127.0.0.1:2526")
    typed("contoso.com", "a@contoso.com", "", ID, "", "none", *listen)
    assert talk.begin().answers().listen == ("127.0.0.1:2526",)
    out = capsys.readouterr().out
    assert '"0.0.0.0:2587" cannot be bound beside 127.0.0.1:2587' in out
    assert "this host does not have the address 192.0.2.1; ip -brief address" in out


def test_who_holds_the_port_is_told_where_it_is_asked(
    talk: Talk,
    typed: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = ["127.0.0.1:25 is held by exim4 (pid 8): stop it", "x is held by relayd: master (9)"]
    monkeypatch.setattr(takeover, "in_the_way", lambda _listen: iter(texts))
    typed("contoso.com", "a@contoso.com", "", ID, "", "none", "")
    talk.begin().answers()
    assert [each for each in talk.said if "held" in each] == [f"  note: {texts[0]}"]
    capsys.readouterr()


def test_a_secret_kept_elsewhere_is_not_asked_for(
    talk: Talk, typed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed("", "", "", "", "", "")

    def asked(_prompt: str) -> str:
        pytest.fail("it could not be written")

    monkeypatch.setattr(getpass, "getpass", asked)
    assert talk.begin(THERE + DEVICE).answers().secret is None
    (said,) = (each for each in talk.said if each.startswith("The client secret"))
    assert said.startswith("The client secret stays as it is; to change it here: /")
    assert said.endswith(": client_secret is set there; take that line out first")


def test_an_answer_that_cannot_be_written_is_told_and_enter_keeps_what_is_there(
    talk: Talk, typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    one_line = THERE.replace("[upstream.contoso]\n", "").strip().replace("\n", ", ")
    inline = f"[upstream]\ncontoso = {{ {one_line} }}\n"
    typed("fabrikam.com", "", "", "", "", "", "")
    assert talk.begin(inline + DEVICE).answers().tenant == "contoso.com"
    assert 'by hand: tenant = "fabrikam.com"' in capsys.readouterr().out


# ---- options, before the first question


@pytest.mark.parametrize(
    ("more", "given", "told"),
    [
        ("", {"cloud": "mars"}, "--cloud mars: no cloud; choose global, gcc-high, dod, 21vianet"),
        ("", {"listen": ["127.0.0.1:2587"]}, '--listen: "127.0.0.1:2587" is listed twice'),
        ("", {"listen": ["192.0.2.1:25"]}, "--listen: this host does not have the address"),
        (THERE, {"name": "Contoso"}, "--name Contoso: there is contoso; they differ in case only"),
        (THERE + DEVICE, {"name": "b"}, 'first write upstream = "contoso" into: ups'),
        ("", {"ca_file": "/nowhere/ca.pem"}, "--ca-file: /nowhere/ca.pem cannot be read"),
        (THERE, {"secret_file": "/dev/null"}, "client_secret is set there; take that line out"),
        ("", {"secret_file": "/dev/null"}, "/dev/null: no secret: it is empty"),
    ],
)
def test_options_are_judged_before_anything_is_asked(
    talk: Talk, typed: Callable[..., None], more: str, given: dict[str, object], told: str
) -> None:
    typed()
    with pytest.raises(CannotGoOn) as caught:
        talk.begin(more, **given)
    assert told in str(caught.value)
    assert talk.said == []


def test_a_second_upstream_is_fine_where_everybody_names_one(
    talk: Talk, typed: Callable[..., None]
) -> None:
    typed()
    device = DEVICE + 'upstream = "contoso"\n'
    assert talk.begin(THERE + device, name="b").is_new


def test_addresses_with_no_listener_to_write_them_into_are_told_first(
    talk: Talk, typed: Callable[..., None]
) -> None:
    typed()
    talk.config.write_text("")
    text = TEXT.replace('"lan"', '"inside"')
    with pytest.raises(CannotGoOn, match='none is named "lan"'):
        Interview(
            look(_written(talk.config, text)), options(listen=["127.0.0.1:26"]), lambda *_: None
        )


def _written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_an_address_without_a_family_here_is_left_to_the_relay(
    talk: Talk, typed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket

    def without_ipv6(family: int, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *rest)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    typed()
    assert talk.begin(listen=["[2001:db8::1]:26"]).is_asking
