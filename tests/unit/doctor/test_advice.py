"""Commands that may be pasted: the right ids, nothing foreign in them, and in the documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.doctor import advice
from relayd.doctor.advice import Names

APP = "11111111-1111-4111-8111-111111111111"
PRINCIPAL = "22222222-2222-4222-8222-222222222222"
NAMES = Names(app_id=APP, object_id=PRINCIPAL, mailbox="alerts@contoso.com", tenant="t")
DOCUMENT = (Path(__file__).parents[3] / "docs/permissions.md").read_text()

EVERY: list[Callable[[Names], tuple[str, ...]]] = [
    advice.rbac, advice.widen, advice.access_policy, advice.new_access_policy, advice.consent,
    advice.narrow, advice.mailbox, advice.new_secret,
    lambda names: advice.remove(names, ("Mail.Read",)),
    lambda names: advice.send_as(names, "ups@contoso.com"),
]  # fmt: skip


def test_least_privilege_is_four_commands_with_the_ids_in_them() -> None:
    commands = [line for line in advice.rbac(NAMES) if not line.startswith("#")]
    assert [line.split(" ")[0] for line in commands] == [
        "Connect-ExchangeOnline",
        "New-ServicePrincipal",
        "New-ManagementScope",
        "New-ManagementRoleAssignment",
        "Test-ServicePrincipalAuthorization",
    ]
    assert f"-AppId {APP} -ObjectId {PRINCIPAL}" in commands[1]
    assert "\"PrimarySmtpAddress -eq 'alerts@contoso.com'\"" in commands[2]
    assert f'-App {PRINCIPAL} -Role "Application Mail.Send"' in commands[3]


def test_what_is_not_known_is_left_to_fill_in() -> None:
    text = "\n".join(advice.rbac(Names()))
    assert "-ObjectId '<object id of the enterprise application>'" in text
    assert "-AppId '<application id>'" in text


def test_an_apostrophe_in_an_address_ends_no_string() -> None:
    lines = "\n".join(advice.rbac(Names(app_id=APP, object_id=PRINCIPAL, mailbox="o'hara@x.com")))
    assert "-eq 'o''hara@x.com'" in lines
    assert "-Resource 'o''hara@x.com'" in lines


@pytest.mark.parametrize(
    "text",
    ["$(calc)@x.com", "a@x.com; rm -r /", "`x`@x.com", "a|b@x.com", "a\n@x.com", "no-address"],
)
def test_what_is_no_plain_address_is_not_put_into_a_command(text: str) -> None:
    names = Names(app_id=text, object_id=text, mailbox=text)
    for give in EVERY:
        assert text not in "\n".join(give(names))


@given(st.text())
def test_no_text_makes_a_line_of_its_own(text: str) -> None:
    names = Names(app_id=text, object_id=text, mailbox=text)
    for give in EVERY:
        assert len(give(names)) == len(give(NAMES))
        assert all(line.isprintable() for line in give(names))


def test_consent_for_everybody_comes_with_what_narrows_it() -> None:
    assert "Revoke" in "\n".join(advice.narrow(NAMES))
    assert "RestrictAccess" in "\n".join(advice.new_access_policy(NAMES))


def test_a_new_secret_does_not_delete_the_others() -> None:
    assert "--append" in "\n".join(advice.new_secret(NAMES))


def test_the_document_has_every_command() -> None:
    example = Names(app_id=APP, object_id=PRINCIPAL, mailbox="alerts@contoso.com")
    for give in EVERY:
        for line in give(example):
            if not line.startswith("#"):
                assert line in DOCUMENT, line


def test_wherever_a_scope_is_made_it_is_said_how_one_that_is_there_is_changed() -> None:
    lines = advice.narrow(advice.Names(app_id=APP, mailbox="alerts@contoso.com"))
    made = next(n for n, line in enumerate(lines) if line.startswith("New-ManagementScope"))
    changed = next(n for n, line in enumerate(lines) if line.startswith("Set-ManagementScope"))
    assert made < changed
    assert "alerts@contoso.com" in lines[changed]
