"""Passwords: argon2id, our cost, and no hash from outside that could stall a worker."""

from __future__ import annotations

import pytest

from relayd.access.passwords import DUMMY_HASH, complaint, hash_password, verify

SALT = "$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


@pytest.mark.parametrize("password", ["secret", "", "zażółć", "octet \udcff", "x" * 1000])
def test_the_right_password_and_only_that_is_taken(password: str) -> None:
    made = hash_password(password)

    assert made.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert verify(made, password)
    assert not verify(made, password + "x")


def test_the_dummy_costs_what_ours_cost_and_opens_nothing() -> None:
    ours, dummy = hash_password("x").split("$"), DUMMY_HASH.split("$")

    assert dummy[:4] == ours[:4]
    assert [len(part) for part in dummy] == [len(part) for part in ours]
    assert complaint(DUMMY_HASH) is None
    assert not verify(DUMMY_HASH, "")


@pytest.mark.parametrize(
    ("foreign", "words"),
    [
        ("", "no argon2id hash"),
        ("secret", "no argon2id hash"),
        ("$2b$12$abcdefghijklmnopqrstuv", "no argon2id hash"),
        ("$argon2i$v=19$m=19456,t=2,p=1" + SALT, "no argon2id hash"),
        ("$argon2id$v=19$m=19456,t=2,p=1", "broken"),
        ("$argon2id$v=19$m=many,t=2,p=1" + SALT, "broken"),
        ("$argon2id$v=19$m=1048576,t=1,p=1" + SALT, "costs too much"),
        ("$argon2id$v=19$m=65536,t=5,p=4" + SALT, "costs too much"),
        ("$argon2id$v=19$m=8192,t=1,p=64" + SALT, "costs too much"),
    ],
)
def test_a_foreign_hash_is_refused_with_words(foreign: str, words: str) -> None:
    assert words in (complaint(foreign) or "")
    assert not verify(foreign, "secret")


def test_the_defaults_of_the_library_are_taken() -> None:
    assert complaint("$argon2id$v=19$m=65536,t=3,p=4" + SALT) is None
