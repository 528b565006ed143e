"""relayd.sandbox.fields: a knob with a typing mistake fails at the knob."""

from __future__ import annotations

import pytest

from relayd.sandbox.fields import BadFields, Json, changed, made, shown
from relayd.sandbox.knobs import App, AppSecret, Fault, Knobs, Mailbox


def test_a_change_replaces_only_what_it_names() -> None:
    before = Mailbox(address="a@b.c", full=True)
    after = changed(before, {"licensed": False, "aliases": ["d@b.c"]})
    assert after == Mailbox(address="a@b.c", full=True, licensed=False, aliases=("d@b.c",))


def test_an_unknown_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(BadFields, match=r"did you mean .linger_s."):
        changed(Knobs(), {"linger": 1})


def test_a_key_like_no_other_is_refused_with_all_there_are() -> None:
    with pytest.raises(BadFields, match=r"there are .*kind"):
        made(Fault, {"kind": "close", "zzz": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("linger_s", "1"),
        ("concurrency", 1.5),
        ("concurrency", True),
        ("concurrency", -1),
        ("any_mailbox", 1),
        ("too_large_answer", "414"),
        ("known_x_headers", "X-A"),
        ("known_x_headers", [1]),
        ("retry_after", None),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: Json) -> None:
    with pytest.raises(BadFields, match=f"^{name}: "):
        changed(Knobs(), {name: value})


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(BadFields) as caught:
        changed(Knobs(), {"linger_s": "x", "nonsense_knob": 1})
    assert len(caught.value.problems) == 2


def test_a_whole_number_is_a_duration_too() -> None:
    assert changed(Knobs(), {"linger_s": 2}).linger_s == 2.0


def test_values_within_values_are_made_and_checked() -> None:
    app = made(App, {"client_id": "x", "tenant": "t", "secrets": [{"value": "s", "expired": True}]})
    assert app.secrets == (AppSecret(value="s", expired=True),)
    with pytest.raises(BadFields, match=r"secrets\.value: missing"):
        made(App, {"client_id": "x", "tenant": "t", "secrets": [{}]})


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(BadFields, match="JSON object"):
        made(Fault, [])


def test_shown_and_made_are_inverse() -> None:
    app = App(client_id="x", tenant="t", secrets=(AppSecret(value="s"),), roles=("Mail.Send",))
    assert made(App, shown(app)) == app
    assert made(Knobs, shown(Knobs())) == Knobs()


def test_what_has_no_json_form_is_a_bug() -> None:
    with pytest.raises(TypeError):
        shown(object())
