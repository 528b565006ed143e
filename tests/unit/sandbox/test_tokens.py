"""relayd.sandbox.tokens: Graph believes what Entra signed, for as long as it said."""

from __future__ import annotations

import base64
import json

import pytest

from relayd.sandbox.knobs import App
from relayd.sandbox.tokens import Claims, Mint, TokenRefused

AUDIENCE = "https://graph.microsoft.com"


def issue(mint: Mint, **changes: object) -> str:
    roles = changes.get("roles", ("Mail.Send",))
    assert isinstance(roles, tuple)
    app = App(client_id="app", tenant="t", object_id="oid", roles=roles)
    return mint.issue(app, tenant_id="tid", audience=AUDIENCE, now=1000, lifetime_s=100)


def judge(mint: Mint, token: str, *, now: int = 1000, audience: str = AUDIENCE) -> str:
    verdict = mint.verify(token, audiences=(audience,), now=now)
    return verdict.text if isinstance(verdict, TokenRefused) else "good"


def test_a_token_says_who_whose_and_what_for() -> None:
    mint = Mint(b"k")
    verdict = mint.verify(issue(mint), audiences=(AUDIENCE,), now=1050)
    assert isinstance(verdict, Claims)
    assert (verdict.appid, verdict.tid, verdict.aud) == ("app", "tid", AUDIENCE)
    assert (verdict.roles, verdict.nbf, verdict.exp) == (("Mail.Send",), 1000, 1100)


def test_a_token_reads_as_a_jwt() -> None:
    header, claims, _ = issue(Mint(b"k")).split(".")
    assert json.loads(base64.urlsafe_b64decode(header + "=="))["typ"] == "JWT"
    assert json.loads(base64.urlsafe_b64decode(claims + "=="))["oid"] == "oid"


@pytest.mark.parametrize("now", [999, 1100, 5000])
def test_a_token_is_good_only_in_its_time(now: int) -> None:
    mint = Mint(b"k")
    token = issue(mint)
    assert judge(mint, token, now=1099) == "good"
    assert "expired" in judge(mint, token, now=now)


def test_a_token_for_somebody_else_is_refused() -> None:
    mint = Mint(b"k")
    assert "Invalid audience" in judge(mint, issue(mint), audience="https://outlook.office365.com")


def test_a_changed_token_is_refused() -> None:
    mint = Mint(b"k")
    head, claims, signature = issue(mint).split(".")
    other = base64.urlsafe_b64encode(b'{"exp":9999999999}').decode().rstrip("=")
    assert "Invalid signature" in judge(mint, f"{head}.{other}.{signature}")
    assert "Invalid signature" in judge(mint, f"{head}.{claims}.é")


@pytest.mark.parametrize("token", ["", "abc", "a.b", "a..c"])
def test_what_is_no_jwt_is_refused(token: str) -> None:
    assert "CompactToken" in judge(Mint(b"k"), token)


def test_one_token_is_revoked_and_another_stays() -> None:
    mint = Mint(b"k")
    one, two = issue(mint), issue(mint)
    assert judge(mint, one) == judge(mint, two) == "good"
    assert mint.revoke(one)
    assert judge(mint, one) != "good"
    assert judge(mint, two) == "good"
    assert not mint.revoke("nonsense")


def test_all_tokens_are_revoked_at_once() -> None:
    mint = Mint(b"k")
    token = issue(mint)
    assert judge(mint, token) == "good"
    mint.revoke_all()
    assert judge(mint, token) != "good"
    assert judge(mint, issue(mint)) == "good"


def test_an_application_without_roles_has_none_in_its_token() -> None:
    mint = Mint(b"k")
    verdict = mint.verify(issue(mint, roles=()), audiences=(AUDIENCE,), now=1000)
    assert isinstance(verdict, Claims)
    assert verdict.roles == ()


def test_what_is_remembered_of_tokens_is_bounded() -> None:
    mint = Mint(b"k")
    for _ in range(4100):
        assert judge(mint, issue(mint)) == "good"
    assert len(mint._known) <= 4096
