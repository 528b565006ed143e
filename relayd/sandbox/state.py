"""What the sandbox keeps between two starts: its CA, its certificate, its secrets.

A configuration pasted into relayd.toml yesterday must work today. All files are 0600 in a
folder 0700; the secrets guard a toy, but people paste secrets where they should not.

    ca.pem ca.key   the authority, ten years; `ca_file` of the relay
    server.pem      certificate and key, made anew at each start
    secrets.json    client secret, control key, token key
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from relayd.clock import SYSTEM
from relayd.net.certificates import Authority, make_ca, make_leaf, not_after

_CA_DAYS = 3650
_LEAF_DAYS = 365


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """client_secret, secret_id: of the first application. token_key: hex."""

    client_secret: str
    secret_id: str
    control_key: str
    token_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Paths and secrets, all there."""

    ca_file: str
    server_file: str
    secrets: Secrets


def prepare(folder: str, names: Sequence[str]) -> State:
    """Make what is missing in `folder` (made too) and return all of it.

    names:  host names and addresses the server is reached by.
    raises: OSError - the folder cannot be written; ValueError - a file in it is broken.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    ca_file, key_file = os.path.join(folder, "ca.pem"), os.path.join(folder, "ca.key")
    authority = _authority(ca_file, key_file)
    leaf = make_leaf(authority, names, days=_LEAF_DAYS)
    server_file = os.path.join(folder, "server.pem")
    _write(server_file, leaf.certificate_pem + leaf.key_pem)
    return State(
        ca_file=os.path.abspath(ca_file),
        server_file=os.path.abspath(server_file),
        secrets=_secrets(os.path.join(folder, "secrets.json")),
    )


def _authority(ca_file: str, key_file: str) -> Authority:
    try:
        known = Authority(_read(ca_file), _read(key_file))
    except FileNotFoundError:
        pass
    else:
        if not_after(known.certificate_pem) > SYSTEM.utcnow():
            return known
    authority = make_ca("relayd sandbox", days=_CA_DAYS)
    _write(key_file, authority.key_pem)
    _write(ca_file, authority.certificate_pem, mode=0o644)
    return authority


def _secrets(path: str) -> Secrets:
    try:
        kept = json.loads(_read(path))
        return Secrets(**kept)
    except FileNotFoundError:
        pass
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is broken ({error}); delete it to have it made anew") from error
    made = Secrets(
        client_secret="sbx~" + secrets.token_urlsafe(24),
        secret_id=_guid(),
        control_key=secrets.token_urlsafe(24),
        token_key=secrets.token_hex(32),
    )
    _write(path, json.dumps(asdict(made)).encode())
    return made


def _guid() -> str:
    digits = secrets.token_hex(16)
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write(path: str, octets: bytes, *, mode: int = 0o600) -> None:
    """Write a file whole or not at all; the mode holds from its first moment."""
    temporary = f"{path}.{os.getpid()}.tmp"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(octets)
    os.replace(temporary, path)
