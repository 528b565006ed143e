"""What a token and a mailbox allow, told with what mends it, and Exchange left alone in time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from relayd.clock import FakeClock
from relayd.config.model import Cloud, Config, Device, Secret, Server, Upstream
from relayd.deliver.silence import Silence
from relayd.doctor.permission import Permission, as_root, names_of
from relayd.doctor.relay import Away, Relay, Row
from relayd.doctor.steps import State, Step
from relayd.identity.tokens import Claims, claims_of
from tests.sandbox_process import SandboxProcess, start_sandbox

BOX = "alerts@contoso.com"
APP = "11111111-1111-4111-8111-111111111111"
PRINCIPAL = "22222222-2222-4222-8222-222222222222"
GRAPH = "https://graph.microsoft.com"
CLAIMS = Claims(roles=(), app_id=APP, tenant="t", audience=GRAPH, object_id=PRINCIPAL)
UPSTREAM = Upstream(
    name="contoso", cloud="lab", tenant="t", client_id=APP, client_secret=Secret("s"), mailbox=BOX
)
NOWHERE = Cloud(name="lab", authority="https://127.0.0.1:1", graph="https://127.0.0.1:1/v1.0")


class Running:
    """A running relay that answers what it is told."""

    away = ""
    remedy = ""
    unavailable = ""
    is_starting = False

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.held: Sequence[Row] = ()
        self.boxes: Sequence[str] = ()

    def upstream(self, _name: str) -> Row | None:
        return self.rows.get("upstream")

    def token(self, _name: str) -> Row | None:
        return self.rows.get("token")

    def mailbox(self, _name: str, _mailbox: str) -> Row | None:
        return self.rows.get("mailbox")

    def holds(self, _name: str) -> Sequence[Row]:
        return self.held

    def mailboxes(self, _name: str) -> Sequence[str]:
        return self.boxes


class Bench:
    """A Permission and what is around it."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.relay: Relay = Away("relayd does not run")
        self.cloud: Cloud | None = NOWHERE
        self.upstream = UPSTREAM
        self.devices: tuple[Device, ...] = ()
        self.folder = folder
        self.token = "opaque"

    def steps(self, claims: Claims = CLAIMS) -> list[Step]:
        config = Config(
            server=Server(state_dir=str(self.folder)),
            cloud=(self.cloud,) if self.cloud else (),
            upstream=(self.upstream,),
            device=self.devices,
        )
        return list(
            Permission(
                config,
                self.upstream,
                self.relay,
                claims,
                token=self.token,
                cloud=self.cloud,
                clock=self.clock,
            ).steps()
        )

    def step(self, name: str, claims: Claims = CLAIMS) -> Step:
        return next(step for step in self.steps(claims) if step.name == name)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def having(*roles: str) -> Claims:
    return Claims(roles, app_id=APP, tenant="t", audience=GRAPH, object_id=PRINCIPAL)


# ---- roles


def test_no_role_is_right_where_exchange_grants_it(bench: Bench) -> None:
    step = bench.step("roles")
    assert step.state is State.OK
    assert "RBAC for Applications" in step.text


def test_mail_send_for_the_whole_tenant_is_narrowed(bench: Bench) -> None:
    step = bench.step("roles", having("Mail.Send"))
    assert step.state is State.WARNING
    assert "every mailbox of the tenant" in step.text
    assert any(f"-App {PRINCIPAL}" in line for line in step.commands)
    assert "Revoke admin consent" in step.commands[-1]


def test_more_than_is_needed_is_taken_back(bench: Bench) -> None:
    step = bench.step("roles", having("Mail.Send", "Mail.ReadWrite", "Directory.Read.All"))
    assert step.state is State.WARNING
    assert step.text == "more than relayd needs: Directory.Read.All"
    assert "Directory.Read.All > Revoke admin consent" in step.commands[-1]


def test_mail_read_write_alone_is_told_as_it_is(bench: Bench) -> None:
    step = bench.step("roles", having("Mail.ReadWrite"))
    assert (step.state, "not Mail.Send" in step.text) == (State.OK, True)


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        (Claims(audience="https://outlook.office365.com"), "for https://outlook.office365.com"),
        (Claims(app_id="another"), "for application another"),
    ],
)
def test_a_token_for_something_else_is_a_problem(bench: Bench, claims: Claims, words: str) -> None:
    step = bench.step("roles", claims)
    assert step.state is State.PROBLEM
    assert words in step.text


def test_a_token_of_another_tenant_is_told_where_the_tenant_is_a_guid(bench: Bench) -> None:
    assert bench.step("roles", Claims(tenant="other")).state is State.OK  # "t" may be its domain
    bench.upstream = Upstream(name="contoso", tenant=PRINCIPAL, mailbox=BOX)
    assert bench.step("roles", Claims(tenant=PRINCIPAL.upper())).state is State.OK
    assert "for tenant" in bench.step("roles", Claims(tenant=APP)).text


def test_graph_may_be_named_by_its_id(bench: Bench) -> None:
    by_id = Claims(audience="00000003-0000-0000-c000-000000000000")
    assert bench.step("roles", by_id).state is State.OK


def test_a_running_relay_with_an_older_token_is_to_refresh_it(bench: Bench) -> None:
    relay = Running()
    relay.rows["token"] = {"state": "ok", "roles": ["Mail.Send"]}
    bench.relay = relay
    step = bench.step("roles", having())
    assert step.commands == ("relayd token refresh contoso",)
    assert bench.step("roles", having("Mail.Send")).commands != step.commands


# ---- the mailbox, asked by the running relay


def asked_by_relay(bench: Bench, **row: str | int) -> Step:
    relay = Running()
    relay.rows["mailbox"] = {"upstream": "contoso", "mailbox": BOX, **row}
    bench.relay, bench.token = relay, ""
    return bench.step("mailbox")


def test_without_a_token_of_ones_own_the_running_relay_asks(bench: Bench) -> None:
    assert asked_by_relay(bench, state="may send").state is State.OK
    refused = asked_by_relay(bench, state="refused", cause="ErrorAccessDenied", http_status=403)
    assert refused.state is State.PROBLEM
    assert any(line.startswith("New-ManagementRoleAssignment") for line in refused.commands)
    silent = asked_by_relay(bench, state="silent", until="2026-11-20T10:30:00Z")
    assert (silent.state, "2026-11-20T10:30:00Z" in silent.text) == (State.PROBLEM, True)
    assert asked_by_relay(bench, state="no token").text == "token comes first"
    gone = asked_by_relay(bench, state="refused", cause="ErrorInvalidUser", http_status=404)
    assert "Get-EXOMailbox" in gone.commands[-1]


def test_with_nobody_to_ask_it_is_told_how(bench: Bench) -> None:
    bench.token = ""
    step = bench.step("mailbox")
    assert (step.state, step.do) == (State.SKIPPED, "sudo relayd doctor contoso")


@pytest.mark.parametrize(
    ("cause", "status", "state"),
    [
        ("ApplicationThrottled", 429, State.WARNING),
        ("HTTP 429", 429, State.WARNING),
        ("HTTP 503", 503, State.PROBLEM),
        ("ErrorQuotaExceeded", 507, State.PROBLEM),
        ("SomethingNew", 400, State.PROBLEM),
    ],
)
def test_other_answers_are_told_by_the_catalogue(
    bench: Bench, cause: str, status: int, state: State
) -> None:
    step = asked_by_relay(bench, state="unknown", cause=cause, http_status=status)
    assert step.state is state
    assert cause in step.text
    assert step.do


def test_a_graph_that_cannot_be_reached_says_nothing_of_permission(bench: Bench) -> None:
    step = bench.step("mailbox")  # at a port where nobody listens
    assert "could not be asked" in step.text
    assert Silence(str(bench.folder), clock=bench.clock).until("contoso", BOX) is None


# ---- silence


def test_after_a_refusal_nobody_is_asked_for_half_an_hour(bench: Bench) -> None:
    Silence(str(bench.folder), clock=bench.clock).note("contoso", BOX)
    step = bench.step("mailbox")
    assert step.state is State.PROBLEM
    assert "not asked again before 2026-11-20T10:30:00Z" in step.text
    assert any(line.startswith("Test-ServicePrincipalAuthorization") for line in step.commands)
    bench.clock.advance(1800)
    assert "could not be asked" in bench.step("mailbox").text


def test_mail_the_relay_holds_for_it_keeps_doctor_silent_too(bench: Bench) -> None:
    relay = Running()
    later = bench.clock.now + timedelta(minutes=12)
    hold = {"cause": "ErrorAccessDenied", "mailbox": BOX, "probe_at": f"{later:%Y-%m-%dT%H:%M:%SZ}"}
    relay.held = (hold,)
    bench.relay = relay
    assert "before 2026-11-20T10:12:00Z" in bench.step("mailbox").text
    relay.held = ({**hold, "cause": "ErrorSendAsDenied"}, {**hold, "mailbox": "b@contoso.com"})
    assert "could not be asked" in bench.step("mailbox").text
    relay.held = ({**hold, "probe_at": "2026-11-20T09:59:00Z"},)
    assert "could not be asked" in bench.step("mailbox").text


# ---- which mailboxes, which senders


def test_each_mailbox_of_the_senders_is_asked_about(bench: Bench) -> None:
    bench.upstream = Upstream(
        name="contoso", mailbox="sender", allowed_senders=("a@contoso.com", "b@contoso.com")
    )
    bench.token = ""
    assert [step.name for step in bench.steps()] == ["roles", "mailbox", "mailbox"]


def test_without_a_named_sender_only_a_real_mail_tells(bench: Bench) -> None:
    bench.upstream = Upstream(name="contoso", mailbox="sender", allowed_senders=("*@contoso.com",))
    step = bench.step("mailbox")
    assert (step.state, "relayd send" in step.do) == (State.SKIPPED, True)


def test_an_unreadable_configuration_has_the_relays_mailboxes(bench: Bench) -> None:
    relay = Running()
    relay.boxes = (BOX,)
    relay.rows["mailbox"] = {"state": "may send"}
    bench.relay, bench.token, bench.cloud = relay, "", None
    bench.upstream = Upstream(name="contoso")
    assert bench.step("mailbox").text.startswith(BOX)


def test_other_senders_are_left_to_a_real_mail(bench: Bench) -> None:
    bench.devices = (Device(name="ups", upstream="contoso", from_="UPS@contoso.com"),)
    step = bench.step("senders")
    assert step.state is State.SKIPPED
    assert "ups@contoso.com" in step.text
    assert "relayd send --from ups@contoso.com" in step.do
    assert "Add-RecipientPermission -Identity ups@contoso.com" in step.commands[-1]
    bench.devices = (Device(name="ups", upstream="contoso", from_=BOX),)
    assert [one.name for one in bench.steps()] == ["roles", "mailbox"]


def test_a_sender_that_was_refused_already_is_a_problem_with_what_lets_it(bench: Bench) -> None:
    relay = Running()
    relay.held = (
        {
            "cause": "ErrorSendAsDenied",
            "mailbox": BOX,
            "from": "ups@contoso.com",
            "probe_at": "2026-11-20T10:12:00Z",
        },
        {"cause": "ErrorQuotaExceeded", "mailbox": BOX, "from": BOX, "probe_at": ""},
    )
    bench.relay = relay
    (step,) = [one for one in bench.steps() if one.name == "senders"]
    assert step.state is State.PROBLEM
    assert "may not send as ups@contoso.com" in step.text
    assert "-Identity ups@contoso.com -Trustee alerts@contoso.com" in step.commands[-1]


def test_names_come_from_the_token_where_it_has_them() -> None:
    assert names_of(UPSTREAM, CLAIMS).principal == PRINCIPAL
    assert names_of(UPSTREAM, Claims()).app == APP
    assert as_root(UPSTREAM) == "sudo relayd doctor contoso"


# ---- against the sandbox


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxProcess]:
    with start_sandbox(tmp_path_factory.mktemp("lab")) as made:
        yield made


def at(bench: Bench, sandbox: SandboxProcess, mailbox: str = BOX) -> Claims:
    """Point the bench at the sandbox; returns the claims of a new token."""
    bench.cloud = Cloud(
        name="lab",
        authority=sandbox.base,
        graph=f"{sandbox.base}/v1.0",
        ca_file=str(sandbox.facts["ca_file"]),
    )
    bench.token = sandbox.client.token()
    claims = claims_of(bench.token)
    bench.upstream = Upstream(name="contoso", client_id=claims.app_id, mailbox=mailbox)
    return claims


@pytest.mark.slow(3)
def test_a_mailbox_that_may_be_sent_through(bench: Bench, sandbox: SandboxProcess) -> None:
    claims = at(bench, sandbox)
    Silence(str(bench.folder), clock=bench.clock).note("another", BOX)
    assert bench.step("mailbox", claims).state is State.OK
    assert sandbox.client.counts()["messages"] == 0


@pytest.mark.slow(3)
def test_a_role_and_a_refusal_point_at_an_access_policy(
    bench: Bench, sandbox: SandboxProcess
) -> None:
    sandbox.client.mailbox("shut@contoso.com", denied="ErrorAccessDenied")
    claims = at(bench, sandbox, "shut@contoso.com")
    step = bench.step("mailbox", claims)
    assert "an application access policy shuts the mailbox out" in step.text
    assert any(line.startswith("Test-ApplicationAccessPolicy") for line in step.commands)
    asked = sandbox.client.counts()["send_requests"]
    assert "not asked again" in bench.step("mailbox", claims).text
    assert sandbox.client.counts()["send_requests"] == asked


@pytest.mark.slow(3)
def test_no_role_and_a_refusal_point_at_rbac(bench: Bench, sandbox: SandboxProcess) -> None:
    client_id = str(sandbox.facts["client_id"])
    sandbox.client.app(client_id, roles=[])
    try:
        claims = at(bench, sandbox)
        step = bench.step("mailbox", claims)
    finally:
        sandbox.client.app(client_id, roles=["Mail.Send"])
    assert "Exchange grants nothing for this mailbox yet" in step.text
    kinds = [line.split(" ")[0] for line in step.commands]
    assert kinds.index("New-ServicePrincipal") < kinds.index("New-ApplicationAccessPolicy")
    assert claims.object_id in "\n".join(step.commands)
    assert "30 minutes to 2 hours" in step.do


@pytest.mark.slow(3)
def test_a_mailbox_that_is_not_there(bench: Bench, sandbox: SandboxProcess) -> None:
    claims = at(bench, sandbox, "nobody@contoso.com")
    step = bench.step("mailbox", claims)
    assert "ErrorInvalidUser" in step.text
    assert "Get-EXORecipient" in step.commands[1]


@pytest.mark.slow(3)
def test_a_service_that_is_away_is_no_refusal(bench: Bench, sandbox: SandboxProcess) -> None:
    claims = at(bench, sandbox)
    sandbox.client.fault("503")
    step = bench.step("mailbox", claims)
    assert (step.state, "503" in step.text or "serviceNotAvailable" in step.text) == (
        State.PROBLEM,
        True,
    )
