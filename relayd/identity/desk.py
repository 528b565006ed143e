"""The token cache on the socket: which frame asks it what (see `identity.tokens`)."""

from __future__ import annotations

from collections.abc import Mapping

from relayd.cache import frames
from relayd.cache.server import Connection, Handler, Request
from relayd.errors import TokenUnavailable
from relayd.identity.credentials import Credential, parse_credential
from relayd.identity.tokencache import Outcome, TokenCache, TokenState


class TokenDesk:
    """Belongs to the server's thread, as the cache does."""

    def __init__(self, cache: TokenCache) -> None:
        self._cache = cache
        self._askers: dict[int, Connection] = {}

    def handlers(self) -> Mapping[str, Handler]:
        """Return what the server is to call."""
        return {
            "token": self._ask,
            "token.drop": self._drop,
            "token.forget": self._forget,
            "token.refresh": self._refresh,
        }

    def left(self, connection: Connection) -> None:
        """Hear that a connection has ended."""
        self._askers.pop(connection.serial, None)
        self._cache.left(connection.serial)

    def tick(self) -> None:
        """Do what time has made due; about once a second."""
        self._cache.tick()

    def status(self) -> list[frames.Json]:
        """Return the tokens for `status`, without any secret."""
        return [_shown(state) for state in self._cache.states()]

    def _ask(self, request: Request) -> None:
        self._askers[request.connection.serial] = request.connection
        self._cache.ask(
            parse_credential(frames.table(request.payload, "credential")),
            upstream=frames.text(request.payload, "upstream"),
            asker=request.connection.serial,
            told=lambda outcome: _tell(request, outcome),
        )

    def _refresh(self, request: Request) -> None:
        credential = parse_credential(frames.table(request.payload, "credential"))

        def told(outcome: Outcome) -> None:
            if not isinstance(outcome, TokenUnavailable):
                self._tell_changed(credential)
            _tell(request, outcome)

        self._cache.refresh(
            credential,
            upstream=frames.text(request.payload, "upstream"),
            asker=request.connection.serial,
            told=told,
        )

    def _forget(self, request: Request) -> None:
        credential = parse_credential(frames.table(request.payload, "credential"))
        was_held = self._cache.forget(credential)
        self._tell_changed(credential)
        request.answer({"held": was_held})

    def _tell_changed(self, credential: Credential) -> None:
        """Have every worker let go of what it holds; before the answer, so that it is in force."""
        for connection in self._askers.values():
            connection.push("token.changed", {"fingerprint": credential.fingerprint()})

    def _drop(self, request: Request) -> None:
        self._cache.drop(
            frames.text(request.payload, "fingerprint"), frames.text(request.payload, "value")
        )
        request.answer({})


def _tell(request: Request, outcome: Outcome) -> None:
    if isinstance(outcome, TokenUnavailable):
        detail: frames.Payload = {
            "configuration": outcome.configuration,
            "retry_after_s": outcome.retry_after_s,
        }
        request.refuse(outcome.cause, outcome.text, detail)
    else:
        request.answer(outcome.payload())


def _shown(state: TokenState) -> frames.Json:
    return {
        "upstreams": list(state.upstreams),
        "tenant": state.tenant,
        "client_id": state.client_id,
        "expires_in_s": round(state.expires_in_s),
        "roles": list(state.roles),
        "cause": state.cause,
        "text": state.text,
        "configuration": state.configuration,
        "next_try_in_s": round(state.next_try_in_s),
        "by_next_secret": state.by_next_secret,
    }
