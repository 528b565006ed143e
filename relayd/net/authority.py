"""state_dir/tls: where our own authority and its leaf are made, once for all workers.

    ca.crt, ca.key   the authority: 10 years, made anew before it ends sooner than a leaf would
    leaf.pem         key, leaf (90 days) and authority, in this order
    .lock            held while something is made

Imports cryptography (3 to 9 MiB): `selfsigned` imports this only when something is to be made.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from relayd import whole
from relayd.clock import Clock
from relayd.net.certificates import Authority, Leaf, make_ca, make_leaf, not_after
from relayd.net.pair import read

log = structlog.get_logger()

_CA_FILE: Final = "ca.crt"
_CA_KEY: Final = "ca.key"
_LOCK: Final = ".lock"
_CA_DAYS: Final = 3650
_LEAF_DAYS: Final = 90


def renew(
    leaf: str, names: Sequence[str], *, hostname: str, is_good: Callable[[], bool], clock: Clock
) -> None:
    """Make the file `leaf` anew, and its folder and the authority where they are missing.

    names:    of the leaf, the common name first.
    hostname: the authority is named after it.
    is_good:  asked under the lock: another worker may have been quicker.
    raises:   OSError, ValueError - it cannot be made.
    """
    folder = os.path.dirname(leaf)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with _locked(os.path.join(folder, _LOCK)):
        if is_good():
            return
        authority = _authority(folder, hostname, clock)
        made = make_leaf(authority, names, days=_LEAF_DAYS, clock=clock)
        whole.replace(leaf, _chain(made, authority), mode=0o600)
        log.info("certificate.made", file=leaf, names=", ".join(names))


def _authority(folder: str, hostname: str, clock: Clock) -> Authority:
    """Return the authority, made where it is missing, broken or ends before a leaf would."""
    certificate, key = (os.path.join(folder, one) for one in (_CA_FILE, _CA_KEY))
    try:
        found = Authority(certificate_pem=read(certificate), key_pem=read(key))
        left = not_after(found.certificate_pem) - clock.utcnow()
        if left > timedelta(days=_LEAF_DAYS) and _belongs(found):
            return found
    except (OSError, ValueError):
        pass  # made anew below
    made = make_ca(f"relayd on {hostname}", days=_CA_DAYS, clock=clock)
    # DURABILITY: the key first; a certificate without its key would be trusted in vain.
    whole.replace(key, made.key_pem, mode=0o600)
    whole.replace(certificate, made.certificate_pem, mode=0o644)
    return made


def _belongs(authority: Authority) -> bool:
    """Tell whether key and certificate are a pair; raises ValueError."""
    certificate = x509.load_pem_x509_certificate(authority.certificate_pem)
    key = serialization.load_pem_private_key(authority.key_pem, password=None)
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    ours = key.public_key().public_bytes(encoding, form)
    return ours == certificate.public_key().public_bytes(encoding, form)


def _chain(leaf: Leaf, authority: Authority) -> bytes:
    return leaf.key_pem + leaf.certificate_pem + authority.certificate_pem


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
