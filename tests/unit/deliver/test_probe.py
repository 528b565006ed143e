"""The message that names nobody: what its answers mean, and that it never sends anything."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from relayd.config.model import Config, Device, Http, Upstream
from relayd.deliver import probe
from relayd.deliver.outcome import Answer
from relayd.deliver.probe import Verdict
from relayd.net.http import pool
from tests.sandbox_process import SandboxProcess, start_sandbox

BOX = "alerts@contoso.com"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer(status=400, code="ErrorInvalidRecipients"), Verdict.MAY_SEND),
        (Answer(status=202), Verdict.MAY_SEND),
        (Answer(status=403, code="ErrorAccessDenied"), Verdict.REFUSED),
        (Answer(status=404, code="ErrorInvalidUser"), Verdict.REFUSED),
        (Answer(status=401, code="InvalidAuthenticationToken"), Verdict.REFUSED),
        (Answer(status=507, code="ErrorQuotaExceeded"), Verdict.REFUSED),
        (Answer(status=400, code="SomethingNew"), Verdict.UNKNOWN),
        (Answer(status=429, code="ApplicationThrottled"), Verdict.UNKNOWN),
        (Answer(status=503), Verdict.UNKNOWN),
        (Answer(status=200), Verdict.UNKNOWN),
        (Answer(), Verdict.UNKNOWN),
    ],
)
def test_an_answer_says_one_of_three_things(answer: Answer, verdict: Verdict) -> None:
    assert probe.judged(answer).verdict is verdict


def test_the_cause_is_what_explain_takes() -> None:
    assert probe.judged(Answer(status=403, code="ErrorAccessDenied")).cause == "ErrorAccessDenied"
    assert probe.judged(Answer(status=503)).cause == "HTTP 503"
    assert probe.judged(Answer()).cause == ""


def test_nobody_could_get_it_and_no_copy_is_kept() -> None:
    asked = json.loads(probe.BODY)
    assert asked["message"]["toRecipients"] == []
    assert asked["saveToSentItems"] is False
    assert not {"ccRecipients", "bccRecipients"} & asked["message"].keys()


def test_a_token_with_a_line_break_is_not_put_into_a_header() -> None:
    with pytest.raises(ValueError, match="one line"):
        probe.ask(pool(Http()), "https://x.example", BOX, "a\r\nb", timeout_s=1)


# ---- through which mailboxes


def test_an_upstream_sends_through_its_mailbox_by_its_id_if_it_has_one() -> None:
    assert probe.mailboxes(Config(), Upstream(name="c", mailbox=BOX)) == (BOX,)
    assert probe.mailboxes(Config(), Upstream(name="c", mailbox=BOX, mailbox_id="id")) == ("id",)
    assert probe.mailboxes(Config(), Upstream(name="c")) == ()


def test_through_the_senders_own_mailboxes_it_sends_through_those_that_are_named() -> None:
    upstream = Upstream(
        name="c", mailbox="sender", allowed_senders=("*@contoso.com", "a@contoso.com")
    )
    devices = (
        Device(name="ups", upstream="c", from_="Ups@contoso.com"),
        Device(name="nas", upstream="c", default_from="a@contoso.com"),
        Device(name="other", upstream="d", from_="x@contoso.com"),
    )
    config = Config(upstream=(upstream,), device=devices)
    assert probe.mailboxes(config, upstream) == ("ups@contoso.com", "a@contoso.com")


# ---- against the sandbox


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path_factory.mktemp("lab")) as made:
        yield made


def ask(sandbox: SandboxProcess, mailbox: str = BOX, token: str = "") -> probe.Probed:
    ways = pool(Http(), ca_file=str(sandbox.facts["ca_file"]))
    value = token or sandbox.client.token()
    return probe.ask(ways, f"{sandbox.base}/v1.0", mailbox, value, timeout_s=10)


@pytest.mark.slow(2)
def test_who_may_send_is_told_so_and_nothing_is_sent(sandbox: SandboxProcess) -> None:
    found = ask(sandbox)
    assert found.verdict is Verdict.MAY_SEND
    assert found.answer.request_id
    assert sandbox.client.counts()["messages"] == 0


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"denied": "ErrorAccessDenied"}, "ErrorAccessDenied"),
        ({"full": True}, "ErrorQuotaExceeded"),
        ({"disabled": True}, "ErrorAccountDisabled"),
        ({"on_premises": True}, "MailboxNotEnabledForRESTAPI"),
        ({"exists": False}, "ErrorInvalidUser"),
    ],
)
def test_what_is_wrong_with_a_mailbox_is_told_by_its_code(
    sandbox: SandboxProcess, wrong: dict[str, object], code: str
) -> None:
    name = f"{code.lower()}@contoso.com"
    sandbox.client.mailbox(name, **wrong)
    found = ask(sandbox, name)
    assert (found.verdict, found.cause) == (Verdict.REFUSED, code)


@pytest.mark.slow(2)
def test_a_wrong_token_is_a_refusal_and_a_busy_server_none(sandbox: SandboxProcess) -> None:
    assert ask(sandbox, token="rubbish").cause == "InvalidAuthenticationToken"
    sandbox.client.fault("503")
    assert ask(sandbox).verdict is Verdict.UNKNOWN


def test_a_closed_port_is_no_refusal() -> None:
    found = probe.ask(pool(Http()), "https://127.0.0.1:1/v1.0", BOX, "t", timeout_s=5)
    assert (found.verdict, found.answer.status) == (Verdict.UNKNOWN, 0)
    assert found.answer.text


@pytest.mark.slow(2)
def test_a_certificate_nobody_trusts_is_not_spoken_to(sandbox: SandboxProcess) -> None:
    found = probe.ask(pool(Http()), f"{sandbox.base}/v1.0", BOX, "t", timeout_s=5)
    assert (found.verdict, found.answer.status) == (Verdict.UNKNOWN, 0)
    assert "certificate" in found.answer.text.lower()
