"""Entra's answers by themselves; with MSAL in between, in every version: tests/identity_msal."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.errors import TokenUnavailable
from relayd.identity.oauth import Issued, Reply, classify, retry_after
from tests.fake_entra import wrong_secret


def reply(status: int, text: str = "", **headers: str) -> Reply:
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, text)


@settings(deadline=None)
@given(st.integers(100, 599), st.text(), st.text())
def test_any_answer_is_classified(status: int, text: str, wish: str) -> None:
    why = classify(Reply(status, {"Retry-After": wish}, text), "login.example")
    assert isinstance(why, TokenUnavailable)
    assert why.text.isprintable()
    assert why.retry_after_s is None or 0 < why.retry_after_s <= 3600


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(deadline=None)
@given(
    st.sampled_from([200, 400, 401, 429, 503]),
    st.fixed_dictionaries(
        {},
        optional={
            "error": json_values,
            "error_codes": json_values,
            "error_description": json_values,
            "trace_id": json_values,
        },
    ),
)
def test_any_members_are_classified(status: int, members: dict[str, object]) -> None:
    why = classify(reply(status, json.dumps(members)), "login.example")
    assert why.cause.isprintable()
    assert why.text.isprintable()


def test_codes_are_found_in_the_description_when_they_are_not_listed() -> None:
    text = json.dumps({"error": "x", "error_description": "AADSTS7000222: expired.\r\nTrace ID: 1"})
    assert classify(reply(401, text), "h").cause == "7000222"


def test_an_unknown_code_is_quoted_without_its_trace() -> None:
    text = json.dumps({"error": "x", "error_description": "AADSTS123456: News.\r\nTrace ID: 1"})
    why = classify(reply(400, text), "login.example")
    assert why.text == "login.example says: AADSTS123456: News."


def test_retry_after_by_date_is_counted_from_the_servers_date() -> None:
    later = reply(
        429, Date="Fri, 20 Nov 2026 10:00:00 GMT", Retry_After="Fri, 20 Nov 2026 10:02:00 GMT"
    )
    assert retry_after(later) == 120
    past = dataclasses.replace(
        later, headers={**later.headers, "Date": "Fri, 20 Nov 2026 11:00:00 GMT"}
    )
    assert retry_after(past) is None
    assert retry_after(reply(429, Retry_After="Fri, 20 Nov 2026 10:02:00 GMT")) is None


@pytest.mark.parametrize(
    "absurd", ["Fri, 99999999999999999999 Nov 2026 10:02:00 GMT", "Fri, 20 Nov 2026", "\xb2", "\0"]
)
def test_an_absurd_retry_after_is_none(absurd: str) -> None:
    date = "Fri, 20 Nov 2026 10:00:00 GMT"
    assert retry_after(reply(429, Date=date, Retry_After=absurd)) is None
    assert retry_after(reply(429, Date=absurd, Retry_After=date)) is None


@pytest.mark.parametrize(("text", "wish"), [("0", None), ("000", None), ("-1", None), ("1", 1)])
def test_who_wishes_no_wait_leaves_it_to_us(text: str, wish: float | None) -> None:
    assert retry_after(reply(429, Retry_After=text)) == wish


def test_raise_for_status_raises_what_msal_expects() -> None:
    reply(200).raise_for_status()
    with pytest.raises(requests.HTTPError):
        reply(503).raise_for_status()


def test_values_do_not_show_what_they_hold() -> None:
    said = wrong_secret()
    assert "hush" not in repr(Issued("hush", 1.0))
    assert "hush" not in repr(reply(said.status, "hush"))


@pytest.mark.slow(1)
def test_a_workers_side_brings_in_neither_msal_nor_requests() -> None:
    lines = (
        "import sys, relayd.identity.tokens, relayd.quota.slots, relayd.cache.client;"
        "print([name for name in ('msal', 'requests', 'gevent') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, timeout=15, check=True
    )
    assert done.stdout == "[]\n"
