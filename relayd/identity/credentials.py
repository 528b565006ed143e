"""Who we are to Entra: everything a token depends on, as one value.

A worker builds it from the configuration and sends it whole over the cache socket, so the
daemon needs no configuration and no reload; a token is kept under `fingerprint`, which
covers every part, so a changed secret, tenant or authority never gets the old token.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from relayd.cache import frames
from relayd.config.clouds import endpoints
from relayd.config.model import Config, Secret, Upstream
from relayd.values import frozen

_DOMAIN: Final = b"relayd credential 1\n"


@frozen(kw_only=True)
class Credential:
    """authority:       "https://login.microsoftonline.com", no tenant, no slash at its end.
    kind:            an Upstream's `credential`; only "secret" can be used so far.
    next_secret:     tried when `secret` is refused; empty if there is none.
    scope:           "https://graph.microsoft.com/.default".
    ca_file:         "": the system's roots.
    proxy:           "": none.
    token_timeout_s: for one token, from the question to the answer.
    """

    authority: str
    tenant: str
    client_id: str
    kind: str
    secret: Secret
    next_secret: Secret
    scope: str
    ca_file: str
    proxy: str
    token_timeout_s: float

    def fingerprint(self) -> str:
        """Return 64 hex digits that differ when any part differs.

        SECURITY: never shown or logged: a guessed secret could be tested against it.
        """
        parts = json.dumps(self.payload(), sort_keys=True).encode("ascii")
        return hashlib.sha256(_DOMAIN + parts).hexdigest()

    def payload(self) -> frames.Payload:
        """Return the form for the cache socket, secrets in clear."""
        return {
            "authority": self.authority,
            "tenant": self.tenant,
            "client_id": self.client_id,
            "kind": self.kind,
            "secret": self.secret.reveal(),
            "next_secret": self.next_secret.reveal(),
            "scope": self.scope,
            "ca_file": self.ca_file,
            "proxy": self.proxy,
            "token_timeout_s": self.token_timeout_s,
        }


def parse_credential(payload: frames.Payload) -> Credential:
    """Return what `payload` was made from; raises frames.Garbage."""
    return Credential(
        authority=frames.text(payload, "authority"),
        tenant=frames.text(payload, "tenant"),
        client_id=frames.text(payload, "client_id"),
        kind=frames.text(payload, "kind"),
        secret=Secret(frames.text(payload, "secret")),
        next_secret=Secret(frames.text(payload, "next_secret")),
        scope=frames.text(payload, "scope"),
        ca_file=frames.text(payload, "ca_file"),
        proxy=frames.text(payload, "proxy"),
        token_timeout_s=frames.number(payload, "token_timeout_s"),
    )


def credential_for(config: Config, upstream: Upstream) -> Credential:
    """Return the credential `upstream` asks for tokens with."""
    cloud = endpoints(config, upstream)
    return Credential(
        authority=cloud.authority.rstrip("/"),
        tenant=upstream.tenant,
        client_id=upstream.client_id,
        kind=upstream.credential,
        secret=upstream.client_secret,
        next_secret=upstream.next_client_secret,
        scope=cloud.smtp_scope if upstream.transport == "smtp" else cloud.graph_scope,
        ca_file=cloud.ca_file or config.http.ca_file,
        proxy=config.http.proxy,
        token_timeout_s=config.http.token_timeout,
    )
