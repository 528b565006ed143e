"""Keys whose feature comes later: known by name, refused only with a value that asks for it.

So a configuration written for the whole of relayd loads here as long as it asks for nothing that
this version cannot do, and nothing is ever ignored in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType
from typing import Final, TypeAlias

from relayd.config import model

Allowed: TypeAlias = "tuple[object, ...]"

VALUES: Final[Mapping[type[object], Mapping[str, Allowed]]] = {
    model.Server: {"reply": ("queued",)},
    model.Listener: {"proxy_protocol_from": ((),), "legacy_tls": (False,)},
    model.TlsSettings: {
        "source": ("self-signed", "file", "off"),
        "vault_url": ("",),
        "vault_certificate": ("",),
        "vault_identity": ("",),
    },
    model.Spool: {"encryption_key": (model.Secret(),)},
    model.Upstream: {
        "transport": ("graph",),
        "credential": ("secret",),
        "certificate_file": ("",),
        "large": ("refuse",),
        "save_to_sent": (True,),
        "ambiguous": ("retry", "hold"),
        "recipients_per_day": (10_000, 0),
        "notify": ((),),
        "host": ("",),
        "starttls": ("required",),
        "username": ("",),
        "password": (model.Secret(),),
        "mailboxes": ((),),
    },
    model.RateLimits: {"per_minute": (0,), "per_hour": (0,), "per_day": (0,)},
    model.Submitter: {"reply": ("", "queued"), "expect_every": (0.0,)},
    model.User: {"cram_md5_password": (model.Secret(),)},
}
"""Fields of the model: the values that can be had now."""

Keys: TypeAlias = "Mapping[str, Allowed | EllipsisType]"

TABLES: Final[Mapping[str, Keys]] = {
    "route": {
        "from": ...,
        "to": ...,
        "device": ...,
        "larger_than": ...,
        "upstream": ("",),
        "standby": ("",),
        "standby_after": ...,
    },
    "passthrough": {
        "enabled": (False,),
        "delimiter": ...,
        "tenants": ...,
        "own_domains": ...,
        "allow_to": ...,
        "cloud": ...,
    },
    "lookup": {
        "source": ...,
        "file": ("",),
        "url": ("",),
        "identity": ...,
        "sas": ("",),
        "partition": ...,
        "domain_partition": ...,
        "dkim_partition": ...,
        "only": (False,),
        "ttl": ...,
    },
    "fallback": {
        "upstream": ("",),
        "username": ("",),
        "password": ("",),
        "anonymous_networks": ([],),
    },
    "remap": {"sender": ..., "recipient": ..., "to": ("",)},
    "dkim": {"enabled": (False,), "key": ...},
    "dkim.key": {
        "domain": ("",),
        "selector": ...,
        "key_file": ("",),
        "canonicalization": ...,
        "headers": ...,
    },
    "notify": {"webhook": ("",), "exec": ("",), "heartbeat": ("",)},
}
"""Tables the model does not have yet; `...`: the key by itself asks for nothing."""

KEYS: Final[Mapping[type[object], Keys]] = {
    model.Admin: {
        "tls": (False,),
        "base_url": ("",),
        "trusted_proxies": ([],),
        "user_header": ("",),
    },
}
"""Further keys of tables the model has."""


def values_now(row: type[object], field: str) -> Allowed | None:
    """Return the values a field may have in this version; None when it is free."""
    for each in row.__mro__:
        if field in VALUES.get(each, {}):
            return VALUES[each][field]
    return None


def refusal(allowed: Allowed) -> str:
    """Return the words for a value that asks for what is not there."""
    words = " or ".join(_write(value) for value in allowed)
    return f"not available yet; leave it out or write {words}"


def _write(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        return f'"{value:g}"'
    if isinstance(value, tuple | list):
        return "[]"
    return '""' if isinstance(value, model.Secret) else str(value)
