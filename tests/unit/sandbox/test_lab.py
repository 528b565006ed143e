"""relayd.sandbox.lab: who is meant by a name, and how fast time runs."""

from __future__ import annotations

from relayd.clock import FakeClock
from relayd.sandbox.fields import changed
from relayd.sandbox.knobs import Mailbox
from relayd.sandbox.lab import Watcher, stable_id
from tests.sandbox_lab import TENANT, make_lab


def test_a_mailbox_is_known_by_sign_in_name_and_object_id_but_not_by_alias() -> None:
    directory = make_lab().directory
    mailbox = directory.mailbox("ALERTS@contoso.com")
    assert mailbox is not None
    assert directory.mailbox(mailbox.object_id.upper()) == mailbox
    assert directory.mailbox("alarm@contoso.com") is None


def test_an_address_that_is_not_the_sign_in_name_names_nobody() -> None:
    directory = make_lab().directory
    directory.put(Mailbox(address="a@contoso.com", upn="a@corp.contoso.com"))
    assert directory.mailbox("a@contoso.com", any_mailbox=True) is None
    assert directory.mailbox("a@corp.contoso.com") is not None


def test_any_mailbox_is_made_when_it_is_asked_for() -> None:
    directory = make_lab().directory
    assert directory.mailbox("new@contoso.com") is None
    made = directory.mailbox("New@contoso.com", any_mailbox=True)
    assert made is not None
    assert made.object_id == stable_id("mailbox", "new@contoso.com")
    assert directory.mailbox("new@contoso.com") == made
    assert directory.mailbox("no-address", any_mailbox=True) is None


def test_an_alias_has_an_owner() -> None:
    directory = make_lab().directory
    owner = directory.owner("Alarm@contoso.com")
    assert owner is not None
    assert owner.address == "alerts@contoso.com"
    assert directory.owner("nobody@contoso.com") is None


def test_a_tenant_is_known_by_guid_and_domain() -> None:
    directory = make_lab().directory
    assert directory.tenant(TENANT.upper()) == directory.tenant("Contoso.onmicrosoft.com")
    assert directory.tenant("fabrikam.onmicrosoft.com") is None


def test_the_labs_time_runs_as_fast_as_it_is_told() -> None:
    lab, clock = make_lab(), FakeClock()
    lab.clock = clock
    lab.knobs = changed(lab.knobs, {"time_factor": 60})
    before = lab.lab_now()
    clock.advance(2)
    assert lab.lab_now() - before == 120


def test_a_reset_keeps_knobs_and_directory() -> None:
    lab = make_lab()
    lab.knobs = changed(lab.knobs, {"linger_s": 1})
    lab.counts["x"] += 1
    lab.requests.append({})
    lab.reset()
    assert not lab.counts
    assert not lab.requests
    assert lab.knobs.linger_s == 1
    assert lab.directory.mailboxes


def test_a_watcher_that_does_not_look_does_no_harm() -> None:
    Watcher().refused(400, "code", "reason")
