"""Access tokens: JWTs that the Entra half signs and the Graph half verifies.

HS256 with a key of the sandbox's own: nobody else has to trust them, and clients must treat
them as opaque. What a token claims is all that Graph knows of its bearer.

Source: RFC 7519 (claims), Microsoft identity platform access token reference.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from relayd.sandbox.knobs import App

_HEADER: Final = {"typ": "JWT", "alg": "HS256", "kid": "relayd-sandbox"}
_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a good token says. exp, nbf: seconds since 1970."""

    uti: str
    appid: str
    tid: str
    aud: str
    roles: tuple[str, ...]
    nbf: int
    exp: int


@dataclass(frozen=True, slots=True)
class TokenRefused:
    """Why Graph answers 401, in Graph's words."""

    text: str


@dataclass(slots=True)
class Mint:
    """Signs and verifies; owns the key and the list of revoked tokens."""

    key: bytes
    _known: dict[str, Claims] = field(default_factory=dict)
    _revoked: set[str] = field(default_factory=set)

    def issue(self, app: App, *, tenant_id: str, audience: str, now: int, lifetime_s: int) -> str:
        """Return a new token for `app`. now: seconds since 1970."""
        claims = {
            "aud": audience,
            "iss": f"https://sts.windows.net/{tenant_id}/",
            "iat": now,
            "nbf": now,
            "exp": now + lifetime_s,
            "appid": app.client_id,
            "appidacr": "1",
            "idtyp": "app",
            "oid": app.object_id,
            "sub": app.object_id,
            "tid": tenant_id,
            "uti": uuid.uuid4().hex,
            "ver": "1.0",
        }
        if app.roles:
            claims["roles"] = list(app.roles)
        text = f"{_packed(_HEADER)}.{_packed(claims)}"
        return f"{text}.{self._signature(text)}"

    def verify(self, token: str, *, audiences: Collection[str], now: int) -> Claims | TokenRefused:
        """Judge a bearer token. now: seconds since 1970."""
        claims = self._known.get(token) or self._parse(token)
        if isinstance(claims, TokenRefused):
            return claims
        if now >= claims.exp or now < claims.nbf:
            return TokenRefused("Lifetime validation failed, the token is expired.")
        if claims.aud not in audiences:
            return TokenRefused("Access token validation failure. Invalid audience.")
        if claims.uti in self._revoked:
            return TokenRefused("Access token has expired or is not yet valid.")
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[token] = claims
        return claims

    def revoke(self, token: str) -> bool:
        """Revoke one token; False if it is none of ours."""
        claims = self._parse(token)
        if isinstance(claims, TokenRefused):
            return False
        self._revoked.add(claims.uti)
        return True

    def revoke_all(self) -> None:
        """Revoke every token issued so far, by changing the key."""
        self.key = hashlib.sha256(self.key).digest()
        self._known.clear()

    def _signature(self, text: str) -> str:
        return _base64url(hmac.new(self.key, text.encode("ascii", "replace"), "sha256").digest())

    def _parse(self, token: str) -> Claims | TokenRefused:
        head, _, rest = token.partition(".")
        body, _, signature = rest.partition(".")
        if not (head and body and signature):
            return TokenRefused("CompactToken parsing failed with error code: 80049217")
        # SECURITY: the signature before anything the token says, its algorithm included.
        if not hmac.compare_digest(self._signature(f"{head}.{body}").encode(), signature.encode()):
            return TokenRefused("Access token validation failure. Invalid signature.")
        claims = json.loads(_unpacked(body))
        return Claims(
            uti=claims["uti"],
            appid=claims["appid"],
            tid=claims["tid"],
            aud=claims["aud"],
            roles=tuple(claims.get("roles", ())),
            nbf=claims["nbf"],
            exp=claims["exp"],
        )


def _packed(value: object) -> str:
    return _base64url(json.dumps(value, separators=(",", ":")).encode())


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def _unpacked(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
