"""A credential is all a token depends on, and a change of any part is another credential."""

from __future__ import annotations

import dataclasses

import pytest

from relayd.cache.frames import Garbage
from relayd.config.model import Cloud, Config, Http, Secret, Upstream
from relayd.identity.credentials import Credential, credential_for, parse_credential

UPSTREAM = Upstream(
    name="contoso",
    tenant="contoso.onmicrosoft.com",
    client_id="app",
    client_secret=Secret("s1"),
    next_client_secret=Secret("s2"),
)
CONFIG = Config(
    upstream=(UPSTREAM,), http=Http(proxy="http://proxy:3128", ca_file="/ca.pem", token_timeout=9.0)
)


def test_it_is_built_from_the_upstream_its_cloud_and_http() -> None:
    assert credential_for(CONFIG, UPSTREAM) == Credential(
        authority="https://login.microsoftonline.com",
        tenant="contoso.onmicrosoft.com",
        client_id="app",
        kind="secret",
        secret=Secret("s1"),
        next_secret=Secret("s2"),
        scope="https://graph.microsoft.com/.default",
        ca_file="/ca.pem",
        proxy="http://proxy:3128",
        token_timeout_s=9.0,
    )


def test_an_own_cloud_brings_its_authority_and_ca() -> None:
    lab = Cloud(name="lab", authority="https://127.0.0.1:8443/", graph="", ca_file="/lab.pem")
    config = dataclasses.replace(CONFIG, cloud=(lab,))
    made = credential_for(config, dataclasses.replace(UPSTREAM, cloud="lab"))
    assert (made.authority, made.ca_file) == ("https://127.0.0.1:8443", "/lab.pem")


def test_smtp_asks_for_its_own_scope() -> None:
    made = credential_for(CONFIG, dataclasses.replace(UPSTREAM, transport="smtp"))
    assert made.scope == "https://outlook.office365.com/.default"


def test_the_socket_form_comes_back_whole() -> None:
    made = credential_for(CONFIG, UPSTREAM)
    assert parse_credential(made.payload()) == made


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(Credential)])
def test_a_missing_part_is_garbage(key: str) -> None:
    payload = dict(credential_for(CONFIG, UPSTREAM).payload())
    del payload[key]
    with pytest.raises(Garbage):
        parse_credential(payload)


@pytest.mark.parametrize("field", dataclasses.fields(Credential), ids=lambda field: field.name)
def test_any_changed_part_changes_the_fingerprint(field: dataclasses.Field[object]) -> None:
    made = credential_for(CONFIG, UPSTREAM)
    old = getattr(made, field.name)
    new = 77.0 if isinstance(old, float) else "new"
    changed = parse_credential({**made.payload(), field.name: new})
    assert changed.fingerprint() != made.fingerprint()
    assert made.fingerprint() == credential_for(CONFIG, UPSTREAM).fingerprint()


def test_it_does_not_show_its_secrets() -> None:
    assert "s1" not in repr(credential_for(CONFIG, UPSTREAM))
    assert "s2" not in repr(credential_for(CONFIG, UPSTREAM))
