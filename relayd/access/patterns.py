"""Addresses and patterns of the settings: compiled once, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from relayd.message.address import AddressPatterns, parse_path


@lru_cache(maxsize=1024)
def compiled(patterns: tuple[str, ...]) -> AddressPatterns:
    """Return a setting's list compiled; the same few are asked for each message.

    raises: ValueError - one is no pattern; `pattern_problems` says so at check.
    """
    return AddressPatterns.compile(patterns)


def address_problems(what: str, text: str) -> list[str]:
    """Return what is wrong with an address; "" is not set, and fine."""
    try:
        if text and not parse_path(text).domain:
            raise ValueError("it has no domain")
    except ValueError as error:
        return [f'{what}: "{text}" is no address ({error}); write "alerts@example.com"']
    return []


def pattern_problems(what: str, patterns: Iterable[str]) -> list[str]:
    """Return what is wrong with each of a setting's patterns."""
    found = []
    for pattern in patterns:
        try:
            AddressPatterns.compile((pattern,))
        except ValueError as error:
            found.append(f'{what}: {error}; write "a@example.com", "*@example.com" or "*"')
    return found
