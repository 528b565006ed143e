"""The steps at Microsoft: complete, narrow before wide, with the cloud's own addresses."""

from __future__ import annotations

import pytest

from relayd.cli import setupsteps
from relayd.doctor import advice
from relayd.doctor.advice import Names

NAMES = Names(
    app_id="10000000-0000-0000-0000-000000000000",
    object_id="20000000-0000-0000-0000-000000000000",
    mailbox="alerts@contoso.com",
)


def test_every_command_of_doctor_is_there_with_the_real_names() -> None:
    lines = [line.strip() for line in setupsteps.permission(NAMES, "global")]
    for command in (*advice.rbac(NAMES), *advice.consent(NAMES), *advice.new_access_policy(NAMES)):
        assert command in lines
    text = "\n".join(lines)
    assert NAMES.app_id in text
    assert NAMES.object_id in text
    assert "'alerts@contoso.com'" in text


def test_the_narrow_way_comes_first_and_the_wide_one_says_how_wide_it_is() -> None:
    text = "\n".join(setupsteps.permission(NAMES, "global"))
    order = ["New-ServicePrincipal", "New-ManagementScope", "New-ManagementRoleAssignment"]
    order += ["Test-ServicePrincipalAuthorization", "EVERY mailbox", "Grant admin consent"]
    places = [text.index(each) for each in order]
    assert places == sorted(places)


def test_the_registration_ends_with_what_is_asked_for_next() -> None:
    text = "\n".join(setupsteps.registration("contoso.onmicrosoft.com", "global"))
    for wanted in ("contoso.onmicrosoft.com", "New registration", "(client) ID", "Object ID"):
        assert wanted in text
    secret = "\n".join(setupsteps.secret(NAMES, "global"))
    assert "Value, not its Secret ID" in secret
    assert "--append" in secret


@pytest.mark.parametrize(
    ("cloud", "portal", "environment"),
    [
        ("global", "https://entra.microsoft.com", "Connect-ExchangeOnline\n"),
        ("gcc-high", "https://entra.microsoft.us", "O365USGovGCCHigh"),
        ("dod", "https://entra.microsoft.us", "O365USGovDoD"),
        ("21vianet", "https://entra.microsoftonline.cn", "O365China"),
    ],
)
def test_each_cloud_has_its_own_portal_and_environment(
    cloud: str, portal: str, environment: str
) -> None:
    lines = setupsteps.registration("x", cloud) + setupsteps.permission(NAMES, cloud)
    text = "\n".join(lines)
    assert environment in text
    assert portal in text
    assert ("entra.microsoft.com" in text) is (cloud == "global")
    assert setupsteps.is_microsoft(cloud)


def test_a_cloud_of_ones_own_has_no_portal() -> None:
    assert not setupsteps.is_microsoft("lab")
