"""Passwords: made into argon2id hashes and verified; blocking, no gevent.

m = 19 MiB, t = 2, p = 1 is OWASP's smallest: 26 ms a login on a small host. Hashes may come
from elsewhere, but not with a cost that would let one login stall a worker.

Source: RFC 9106 §4; OWASP Password Storage Cheat Sheet.
"""

from __future__ import annotations

from typing import Final

from argon2 import PasswordHasher, Type, extract_parameters
from argon2.exceptions import Argon2Error, InvalidHash

MEMORY_KIB: Final = 19 * 1024
ROUNDS: Final = 2

_MOST_MEMORY_KIB: Final = 128 * 1024
_MOST_WORK: Final = 256 * 1024  # memory x rounds; the library's own defaults are 192 Ki
_MOST_LANES: Final = 8
_HASHER: Final = PasswordHasher(  # all said: the lengths' defaults differ between versions
    time_cost=ROUNDS,
    memory_cost=MEMORY_KIB,
    parallelism=1,
    hash_len=32,
    salt_len=16,
    type=Type.ID,
)

DUMMY_HASH: Final = (
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$"
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
)
"""What an unknown user's password is compared with: the same work, and nothing matches."""


def hash_password(password: str) -> str:
    """Return the hash to store; about 26 ms."""
    return _HASHER.hash(_octets(password))


def verify(password_hash: str, password: str) -> bool:
    """Tell whether the password is the one; False too for a hash that is refused.

    Blocks for 26 ms (ours) to about 300 ms (the dearest hash taken), the GIL released.
    """
    if complaint(password_hash) is not None:
        return False
    try:
        return _HASHER.verify(password_hash, _octets(password))
    except (Argon2Error, InvalidHash):
        return False


def complaint(password_hash: str) -> str | None:
    """Return what is wrong with a hash from outside, and what to do; None if it is usable."""
    remedy = "make one with: relayd user passwd NAME"
    if not password_hash.startswith("$argon2id$"):
        return f"is no argon2id hash; {remedy}"
    try:
        cost = extract_parameters(password_hash)
    except (InvalidHash, ValueError):
        return f"is a broken argon2id hash; {remedy}"
    # SECURITY: a hash that costs gigabytes or seconds would let each login stop a worker.
    if (
        cost.memory_cost > _MOST_MEMORY_KIB
        or cost.memory_cost * cost.time_cost > _MOST_WORK
        or cost.parallelism > _MOST_LANES
    ):
        return (
            f"costs too much to verify (m={cost.memory_cost} KiB, t={cost.time_cost}, "
            f"p={cost.parallelism}); {remedy}"
        )
    return None


def _octets(password: str) -> bytes:
    return password.encode("utf-8", "surrogateescape")
