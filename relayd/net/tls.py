"""Certificates and TLS contexts of the listeners: from files, or made here.

    file         the administrator's pair; renewed under us by certbot and the like
    self-signed  our own authority (10 years) and a leaf (90 days, renewed when a third is
                 left) for the host's name and all its addresses; devices may trust ca.crt
    off          no TLS

`refresh`, every half minute, looks at the files' places, inodes, times and sizes; only a pair
that belongs together is taken, all at once; else what is in use stays and the log says why. A
session that is up keeps the context it began with. Each listener has its own context, so that
session tickets of one are worth nothing at another; what name a client asks for (SNI) is not
looked at.

Source: RFC 8446, RFC 3207 (STARTTLS).
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import structlog

from relayd.clock import SYSTEM, Clock
from relayd.config.model import Config, Listener, TlsSettings
from relayd.errors import ConfigError
from relayd.net.pair import (
    CertificateRefused,
    Mark,
    Pair,
    last_moment,
    marks,
    read,
    server_context,
    words,
)
from relayd.net.selfsigned import SelfSigned
from relayd.observe import metrics

log = structlog.get_logger()

_WARN_BEFORE: Final = timedelta(days=14)


class ServerTls:
    """The listeners' TLS; one for each worker. `refresh` it every half minute."""

    def __init__(self, config: Config, *, clock: Clock = SYSTEM) -> None:
        """Load, or make, the certificate. raises: ConfigError - there is none to begin with."""
        self._config = config
        self._clock = clock
        self._listeners = [one for one in config.listener if one.tls != "off"]
        self._self_signed = SelfSigned(config, clock)
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._marks: tuple[Mark, ...] = ()
        self._warned_of: str = ""
        if config.tls.source == "off" or not self._listeners:
            return
        try:
            self._take(self._pair())
        except CertificateRefused as error:
            raise ConfigError([f"[tls] {error}"]) from error

    def context(self, listener: str) -> ssl.SSLContext | None:
        """Return what `listener` wraps a new session with; None: it has no TLS."""
        return self._contexts.get(listener)

    def refresh(self) -> bool:
        """Take a renewed certificate, if there is one; True when it was taken; never raises."""
        if not self._contexts:
            return False
        try:
            pair = self._pair()
            if marks(pair) == self._marks:
                return False
            self._take(pair)
        except (CertificateRefused, OSError) as error:
            self._warn(str(error))
            return False
        return True

    def _warn(self, text: str) -> None:
        """Say it once, not every half minute."""
        if text and text != self._warned_of:
            log.warning("certificate.refused", text=text)
        self._warned_of = text

    def _pair(self) -> Pair:
        tls = self._config.tls
        if tls.source == "file":
            return _pair_of(tls)
        if tls.source == "self-signed":
            pair, trouble = self._self_signed.pair()
            self._warn(trouble)
            return pair
        raise CertificateRefused(f'source = "{tls.source}" is not available yet')

    def _take(self, pair: Pair) -> None:
        """Make all contexts anew, then swap them in together. raises: CertificateRefused."""
        try:
            before = marks(pair)
            contexts = {
                one.name: server_context(pair, self._config.tls.minimum_version)
                for one in self._listeners
            }
            end = last_moment(pair)
            if before != marks(pair):
                raise CertificateRefused("the files changed while they were read")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise CertificateRefused(f"{pair.certificate}: {words(error)}") from error
        if self._contexts and end <= self._clock.utcnow():
            raise CertificateRefused(f"{pair.certificate}: expired {end:%Y-%m-%d}")
        self._contexts = contexts
        self._marks = before
        for name in contexts:
            metrics.gauge(
                "relayd_certificate_expiry_timestamp_seconds", end.timestamp(), listener=name
            )
        log.info(
            "certificate.loaded",
            source=self._config.tls.source,
            file=pair.certificate,
            expires=end.isoformat(timespec="seconds"),
        )


def problems(config: Config) -> list[str]:
    """Return why listeners could not do TLS as configured; for `check`."""
    out = [
        f'[listener.{one.name}] tls = "{one.tls}" needs a certificate, but [tls] source is "off"'
        for one in config.listener
        if config.tls.source == "off" and one.tls in ("required", "implicit")
    ]
    if config.tls.source == "file" and _wants_tls(config.listener):
        out += _file_problems(config)
    return out


def warnings(config: Config, *, clock: Clock = SYSTEM) -> list[str]:
    """Return what is allowed but will hurt: a certificate that has ended, or soon will."""
    if config.tls.source != "file" or not _wants_tls(config.listener):
        return []
    try:
        end = last_moment(_pair_of(config.tls))
    except (OSError, ValueError):
        return []  # a problem, told above
    if end <= clock.utcnow():
        text = "devices that look at it refuse to send; renew it, no restart is needed"
        return [f"[tls] certificate: {config.tls.certificate} expired {end:%Y-%m-%d}; {text}"]
    if end - clock.utcnow() < _WARN_BEFORE:
        return [f"[tls] certificate: {config.tls.certificate} ends {end:%Y-%m-%d}; renew it"]
    return []


def _pair_of(tls: TlsSettings) -> Pair:
    return Pair(tls.certificate, tls.key or tls.certificate)


def _wants_tls(listeners: Sequence[Listener]) -> bool:
    return any(one.tls != "off" for one in listeners)


def _file_problems(config: Config) -> list[str]:
    tls = config.tls
    if not tls.certificate:
        return ['[tls] certificate: source = "file" needs the file of the certificate chain (PEM)']
    out = []
    for key, path in (("certificate", tls.certificate), ("key", tls.key or tls.certificate)):
        try:
            read(path)
        except OSError as error:
            out.append(f"[tls] {key}: {path}: {error.strerror}; relayd must be able to read it")
    if out:
        return out
    try:
        server_context(_pair_of(tls), tls.minimum_version)
    except (OSError, ValueError) as error:
        return [f"[tls] certificate: {tls.certificate}: {words(error)}"]
    return []
