"""Tokens are told of and never told; with the relay down they are asked for from here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd.cli import doctor
from relayd.cli.token import lines
from relayd.master.frames import Frame, done, refused
from tests.control_socket import ControlSocket, pages, relayd
from tests.fake_entra import SECRET, TENANT, TENANT_ID, FakeEntra

OK: Frame = {
    "upstream": "contoso", "state": "ok", "expires_in_s": 3000, "roles": ["Mail.Send"],
    "app_id": "app", "object_id": "sp", "tenant": "ten", "audience": "https://graph.example",
    "cause": "", "why": "", "do": "",
}  # fmt: skip
BAD: Frame = {
    **OK, "state": "failed", "expires_in_s": 0, "roles": [], "cause": "AADSTS7000222",
    "why": "the client secret has expired", "do": "make a new secret",
}  # fmt: skip


@pytest.fixture
def control(tmp_path: Path) -> Iterator[ControlSocket]:
    with ControlSocket(tmp_path) as made:
        made.answers["ping"] = pages({"pid": 1})
        yield made


@pytest.fixture
def entra(tmp_path: Path) -> Iterator[FakeEntra]:
    with FakeEntra(tmp_path) as made:
        yield made


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_token_is_shown_with_what_it_allows(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["token.test"] = pages(OK)
    assert control.relayd("token", "test") == 0
    assert capsys.readouterr().out == (
        "contoso: ok, good for 50 min\n"
        "  roles       Mail.Send\n"
        "  application app\n"
        "  object id   sp\n"
        "  tenant      ten\n"
        "  for         https://graph.example\n"
    )
    assert control.asked()[-1] == {"command": "token.test", "upstream": ""}


def test_one_failure_of_two_is_exit_1(
    control: ControlSocket, capsys: pytest.CaptureFixture[str]
) -> None:
    control.answers["token.refresh"] = pages(OK, BAD)
    assert control.relayd("token", "refresh") == 1
    out = capsys.readouterr().out
    assert "contoso: no token: the client secret has expired (AADSTS7000222)" in out
    assert "  do          make a new secret" in out


def test_a_failure_without_advice_points_at_doctor() -> None:
    assert list(lines({**BAD, "do": ""}))[-1] == "  do          relayd doctor contoso"


@pytest.mark.parametrize(("state", "words"), [("dropped", "dropped"), ("none", "none was held")])
def test_dropping_tells_whether_there_was_one(
    control: ControlSocket, capsys: pytest.CaptureFixture[str], state: str, words: str
) -> None:
    control.answers["token.drop"] = pages({"upstream": "contoso", "state": state})
    assert control.relayd("token", "drop", "contoso") == 0
    assert words in capsys.readouterr().out
    assert control.asked()[-1] == {"command": "token.drop", "upstream": "contoso"}


def test_json_is_an_array(control: ControlSocket, capsys: pytest.CaptureFixture[str]) -> None:
    control.answers["token.test"] = pages(OK)
    assert control.relayd("--json", "token", "test") == 0
    assert printed(capsys) == [OK]


def test_an_unknown_upstream_exits_as_the_relay_says(control: ControlSocket) -> None:
    control.answers["token.test"] = [refused("no upstream named 'x'", exit_code=2)]
    assert control.relayd("token", "test", "x") == 2


def test_an_answer_without_rows_is_no_success(control: ControlSocket) -> None:
    control.answers["token.test"] = [done({"state": "failed"})]
    assert control.relayd("token", "test") == 1


# ---- the relay is down


def configure(folder: Path, entra: FakeEntra, secret: str) -> str:
    path = folder / "relayd.toml"
    path.write_text(
        f'[server]\nhostname = "relay.test"\nruntime_dir = "{folder}"\nstate_dir = "{folder}"\n'
        f'[cloud.lab]\nauthority = "{entra.authority}"\ngraph = "{entra.authority}/v1.0"\n'
        f'ca_file = "{entra.ca_file}"\n[upstream.contoso]\ncloud = "lab"\ntenant = "{TENANT}"\n'
        f'client_id = "app"\n{secret}\nmailbox = "alerts@contoso.com"\n'
    )
    path.chmod(0o600)
    return str(path)


def test_it_is_asked_for_from_here_then(
    tmp_path: Path, entra: FakeEntra, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure(tmp_path, entra, f'client_secret = "{SECRET}"')
    assert relayd("--json", "--config", path, "token", "test") == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    assert (row["state"], row["roles"], row["tenant"]) == ("ok", ["Mail.Send"], TENANT_ID)
    assert "relayd is not running; Entra is asked from here" in err
    assert SECRET not in out + err


def test_a_wrong_secret_is_explained_from_here_too(
    tmp_path: Path, entra: FakeEntra, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure(tmp_path, entra, 'client_secret = "wrong"')
    assert relayd("--config", path, "token", "test", "contoso") == 1
    assert "AADSTS7000215" in capsys.readouterr().out


def test_without_the_secret_nothing_can_be_done(
    tmp_path: Path, entra: FakeEntra, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure(tmp_path, entra, f'client_secret_file = "{tmp_path}/none"')
    assert relayd("--config", path, "token", "test") == 69
    err = capsys.readouterr().err
    assert f"{tmp_path}/none cannot be read" in err
    assert "/relayd.toml run\n" in err


def test_an_unknown_upstream_is_wrong_usage_from_here_too(tmp_path: Path, entra: FakeEntra) -> None:
    path = configure(tmp_path, entra, f'client_secret = "{SECRET}"')
    assert relayd("--config", path, "token", "test", "x") == 2


@pytest.mark.parametrize("what", ["refresh", "drop"])
def test_what_only_the_relay_can_do_needs_it(tmp_path: Path, entra: FakeEntra, what: str) -> None:
    path = configure(tmp_path, entra, f'client_secret = "{SECRET}"')
    assert relayd("--config", path, "token", what) == 69
    assert entra.requests == []


def test_root_asks_as_the_relays_own_user(
    tmp_path: Path, entra: FakeEntra, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[str] = []

    def become(config: str) -> bool:
        became.append(config)
        return True

    monkeypatch.setattr(doctor, "become_service", become)
    path = configure(tmp_path, entra, f'client_secret = "{SECRET}"')
    relayd("--config", path, "token", "test")
    assert became == [path]
