"""One upstream from its configuration to its mailbox; who may not read asks the running relay."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.clock import FakeClock
from relayd.config.partial import look
from relayd.doctor.connection import Reach
from relayd.doctor.examination import Examination
from relayd.doctor.relay import Away, Relay
from relayd.doctor.steps import State, Step
from relayd.errors import TokenUnavailable
from relayd.identity.credentials import Credential
from relayd.identity.oauth import Issued
from tests.fake_entra import SECRET, TENANT, FakeEntra, expired_secret, jwt, unavailable
from tests.unit.doctor.test_permission import Running

APP = "11111111-1111-4111-8111-111111111111"
AWAY = Away("relayd does not run", "systemctl start relayd")
CONFIG = """\
[server]
hostname = "relay.test"
state_dir = "{folder}/state"
[cloud.lab]
authority = "{authority}"
graph = "{authority}/v1.0"
ca_file = "{ca_file}"
[upstream.contoso]
cloud = "lab"
tenant = "{tenant}"
client_id = "{app}"
{secret}
mailbox = "alerts@contoso.com"
"""


@pytest.fixture
def entra(tmp_path: Path) -> Iterator[FakeEntra]:
    with FakeEntra(tmp_path) as made:
        yield made


class Bench:
    """A configuration on disk, and its examination."""

    def __init__(self, folder: Path, entra: FakeEntra) -> None:
        self.folder = folder
        self.entra = entra
        self.path = folder / "relayd.toml"
        (folder / "state").mkdir()
        self.write()

    def write(self, *, secret: str = f'client_secret = "{SECRET}"', more: str = "") -> None:
        text = CONFIG.format(
            folder=self.folder, authority=self.entra.authority, ca_file=self.entra.ca_file,
            tenant=TENANT, app=APP, secret=secret,
        )  # fmt: skip
        self.path.write_text(text + more)
        self.path.chmod(0o600)

    def steps(
        self, relay: Relay = AWAY, *, as_service: bool = True, reach: Reach | None = None
    ) -> dict[str, Step]:
        seen = look(str(self.path), {})
        upstream = seen.config.upstream[0]
        steps = list(Examination(seen, upstream, relay, as_service=as_service, reach=reach).steps())
        return {step.name: step for step in steps}


@pytest.fixture
def bench(tmp_path: Path, entra: FakeEntra) -> Bench:
    return Bench(tmp_path, entra)


def test_every_step_is_taken_in_its_order(bench: Bench) -> None:
    steps = bench.steps()
    assert list(steps) == [
        "configuration", "secret", "relay", "dns", "tcp", "proxy", "tls", "clock", "tenant",
        "token", "roles", "mailbox",
    ]  # fmt: skip
    assert steps["configuration"].text.startswith(f"tenant {TENANT}, application {APP}")
    assert steps["token"].text == "Entra gave one, good for 60 min"
    assert SECRET not in str(steps)


# ---- configuration and secret


def test_what_is_wrong_with_the_upstream_is_told_and_nothing_is_asked(bench: Bench) -> None:
    bench.path.write_text(bench.path.read_text().replace('cloud = "lab"', 'cloud = "moon"'))
    steps = bench.steps()
    assert steps["configuration"].state is State.PROBLEM
    assert "moon" in steps["configuration"].text
    assert steps["dns"].text == "the configuration comes first"
    assert steps["token"].state is State.SKIPPED
    assert bench.entra.requests == []


def test_a_secret_the_service_cannot_read_comes_with_chown_and_chmod(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bench.folder / "secret"
    file.write_text(SECRET)
    bench.write(secret=f'client_secret_file = "{file}"')
    refuse(monkeypatch, file)
    step = bench.steps()["secret"]
    assert step.state is State.PROBLEM
    assert step.text == f"the relay's own user cannot read {file}"
    assert step.commands == (f"chown root:relayd {file}", f"chmod 640 {file}", f"namei -l {file}")


def refuse(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Have opening `file` fail as for another user; tests may run as root."""
    true_open = open

    def fail(name: object, *more: object, **named: object) -> object:
        if str(name) == str(file):
            raise PermissionError(13, "Permission denied", str(file))
        return true_open(name, *more, **named)  # type: ignore[call-overload]  # whatever was asked

    monkeypatch.setattr("builtins.open", fail)


def test_who_is_not_the_service_is_told_that_it_takes_root(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = bench.folder / "secret"
    file.write_text(SECRET)
    bench.write(secret=f'client_secret_file = "{file}"')
    refuse(monkeypatch, file)
    steps = bench.steps(as_service=False)
    assert (steps["secret"].state, steps["secret"].do) == (
        State.SKIPPED,
        "sudo relayd doctor contoso",
    )
    assert steps["tenant"].state is State.OK  # what needs no secret is done all the same
    assert steps["token"].do == "sudo relayd doctor contoso"
    assert steps["mailbox"].state is State.SKIPPED


def test_a_missing_file_is_a_problem_for_everybody(bench: Bench) -> None:
    bench.write(secret=f'client_secret_file = "{bench.folder}/none"')
    step = bench.steps()["secret"]
    assert (step.state, "No such file" in step.text) == (State.PROBLEM, True)


@pytest.mark.parametrize(
    ("secret", "place"),
    [
        ('client_secret_credential = "contoso"', "systemd credential contoso"),
        ('client_secret_env = "CONTOSO"', "$CONTOSO"),
    ],
)
def test_a_secret_only_the_service_has_is_left_to_it(bench: Bench, secret: str, place: str) -> None:
    bench.write(secret=secret)
    steps = bench.steps(running())
    assert steps["secret"].text == f"only the running service has it ({place})"
    assert steps["token"].text == "the running relay has one, good for 50 min"
    assert steps["mailbox"].state is State.OK


def test_no_secret_at_all_is_a_problem(bench: Bench) -> None:
    bench.write(secret="")
    assert bench.steps()["secret"].state is State.PROBLEM


def test_a_secret_id_in_place_of_a_secret_is_seen(bench: Bench) -> None:
    bench.write(secret=f'client_secret = "{APP}"')
    step = bench.steps()["secret"]
    assert (step.state, "Secret ID" in step.text) == (State.WARNING, True)
    assert APP in "\n".join(step.commands)  # as the application id


@pytest.mark.parametrize(
    ("day", "state", "words"),
    [
        ("2027-11-20", State.OK, "good until 2027-11-20"),
        ("2026-12-01", State.WARNING, "it expires in 11 days, on 2026-12-01"),
        ("2026-11-01", State.PROBLEM, "it expired on 2026-11-01"),
    ],
)
def test_the_day_a_secret_expires_is_told_in_time(
    bench: Bench, day: str, state: State, words: str
) -> None:
    bench.write(more=f'credential_expires = "{day}"\n')
    step = bench.steps(reach=Reach(clock=FakeClock()))["secret"]
    assert step.state is state
    assert words in step.text


# ---- the token


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (expired_secret(), "AADSTS7000222"),
        (unavailable(), "answered HTTP 503"),
    ],
)
def test_entras_no_is_explained(bench: Bench, said: object, words: str) -> None:
    bench.entra.token_answers.append(said)  # type: ignore[arg-type]  # a Said
    steps = bench.steps()
    assert words in steps["token"].text
    assert steps["token"].state is State.PROBLEM
    assert steps["roles"].text == steps["mailbox"].text == "token comes first"


def test_a_wrong_secret_is_explained(bench: Bench) -> None:
    bench.write(secret='client_secret = "wrong"')
    step = bench.steps()["token"]
    assert "AADSTS7000215" in step.text
    assert "Value (not the Secret ID)" in step.do


def test_without_a_tenant_no_token_is_asked_for(bench: Bench) -> None:
    bench.path.write_text(bench.path.read_text().replace(TENANT, "nowhere.example"))
    assert bench.steps()["token"].text == "tenant comes first"
    assert bench.entra.token_requests == []


def test_no_answer_in_time_is_told(bench: Bench) -> None:
    def fail(_credential: Credential) -> Issued:
        raise TokenUnavailable("entra-unreachable", "no answer within 15 s", configuration=False)

    assert bench.steps(reach=Reach(fetch=fail))["token"].text == "no answer within 15 s"


# ---- the running relay


def running(**row: object) -> Running:
    relay = Running()
    relay.rows["upstream"] = {"state": "up", "held": {}, "held_messages": 0, **row}  # type: ignore[dict-item]  # JSON of the test
    relay.rows["token"] = {
        "state": "ok", "roles": ["Mail.Send"], "expires_in_s": 3000, "app_id": APP,
        "tenant": "t", "audience": "https://graph.microsoft.com", "object_id": "",
    }  # fmt: skip
    relay.rows["mailbox"] = {"state": "may send"}
    return relay


def test_a_relay_that_is_away_is_said_to_be(bench: Bench) -> None:
    step = bench.steps()["relay"]
    assert (step.state, step.text, step.do) == (State.SKIPPED, AWAY.away, AWAY.remedy)


def test_a_relay_that_is_well_is_said_to_be(bench: Bench) -> None:
    step = bench.steps(running())["relay"]
    assert (step.state, step.text) == (State.OK, "up, nothing held")


def test_an_upstream_that_is_down_is_told_as_status_tells_it(bench: Bench) -> None:
    relay = running(state="down", why="Entra refuses the secret.", do="Make a new one.")
    step = bench.steps(relay)["relay"]
    assert (step.state, step.do) == (State.PROBLEM, "Make a new one.")
    assert step.text == "down, nothing held. Entra refuses the secret."


def test_a_refusal_that_outlives_its_mail_is_told_as_that(bench: Bench) -> None:
    step = bench.steps(running(held={"ErrorAccessDenied": 1}))["relay"]
    assert step.state is State.WARNING
    assert step.text.endswith("refused the mail before, which was deleted (ErrorAccessDenied)")
    assert step.do.endswith("relayd queue list --state all --upstream contoso")


def test_held_mail_is_told_with_how_to_see_why(bench: Bench) -> None:
    step = bench.steps(running(held={"ErrorSendAsDenied": 1}, held_messages=1))["relay"]
    assert (step.state, step.text) == (State.WARNING, "up, but 1 message held (ErrorSendAsDenied)")
    assert step.do.endswith("relayd queue list --state held --upstream contoso")


def test_an_upstream_the_running_relay_does_not_know_wants_a_reload(bench: Bench) -> None:
    relay = running()
    del relay.rows["upstream"]
    assert bench.steps(relay)["relay"].do == "relayd check && relayd reload"


def test_that_no_worker_serves_is_what_blocks_the_way_out(bench: Bench) -> None:
    relay = running()
    del relay.rows["upstream"]
    relay.unavailable = "worker 1: /var/spool/relayd is open to others"
    step = bench.steps(relay)["relay"]
    assert step.state is State.PROBLEM
    assert step.text == "no worker serves: worker 1: /var/spool/relayd is open to others"
    assert "reload" not in step.do


def test_a_relay_that_starts_still_is_not_asked_for_a_reload(bench: Bench) -> None:
    relay = running()
    del relay.rows["upstream"]
    relay.is_starting = True
    step = bench.steps(relay)["relay"]
    assert (step.state, step.do) == (State.SKIPPED, "Ask again in a few seconds.")


def test_a_relay_without_a_token_says_why(bench: Bench) -> None:
    bench.write(secret='client_secret_env = "CONTOSO"')
    relay = running()
    relay.rows["token"] = {
        "state": "failed", "cause": "AADSTS7000215", "why": "the secret is wrong", "do": "make one",
    }  # fmt: skip
    step = bench.steps(relay)["token"]
    assert (step.state, step.do) == (State.PROBLEM, "make one")
    assert "the secret is wrong (AADSTS7000215)" in step.text


def test_a_configuration_that_is_not_ones_own_leaves_all_to_the_running_relay(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen_before = look(str(bench.path), {})
    refuse(monkeypatch, bench.path)
    seen = look(str(bench.path), {})
    assert seen.found
    relay = running()
    relay.boxes = ("alerts@contoso.com",)
    (upstream,) = seen_before.config.upstream
    steps = {
        step.name: step for step in Examination(seen, upstream, relay, as_service=False).steps()
    }
    assert steps["configuration"].do == "sudo relayd doctor contoso"
    assert steps["dns"].state is State.SKIPPED
    assert steps["token"].state is State.OK
    assert steps["mailbox"].state is State.OK


def test_a_token_of_ones_own_never_goes_to_the_relay(bench: Bench) -> None:
    given: list[Credential] = []

    def fetch(credential: Credential) -> Issued:
        given.append(credential)
        return Issued(jwt(1), 3600.0)

    steps = bench.steps(running(), reach=Reach(fetch=fetch))
    assert [one.client_id for one in given] == [APP]
    assert jwt(1) not in str(steps)
    assert os.listdir(bench.folder / "state") == []
