"""The configuration, as plain frozen values: one class for each table of relayd.toml.

A room is handed its own slice and nothing else. A field is named as its key is; its type
says how the text is read: `Seconds` "5m", `Octets` "35MB", `Secret` may come by file,
environment or systemd credential. A default is a safe production value. `config.load`
builds these by walking the fields, so a new setting is: a field here, a line in
conf/relayd.toml, a row in docs/settings.md.

Values that stand between processes travel as JSON (`config.codec`).
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Final, Literal, TypeAlias

from relayd.values import frozen

Seconds: TypeAlias = Annotated[float, "duration"]
Octets: TypeAlias = Annotated[int, "size"]

AUTO: Final = 0
"""What "auto" becomes where a number is expected."""


@frozen
class Secret:
    """A secret in memory; shows itself only when `reveal` is called."""

    _value: str = ""

    def reveal(self) -> str:
        """Return the secret itself; never log or show what this returns."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret(set)" if self._value else "Secret()"

    __str__ = __repr__


Tls = Literal["off", "opportunistic", "required", "implicit"]
Auth = Literal["off", "optional", "required"]
Priority = Literal["high", "normal", "low"]


@frozen(kw_only=True)
class Server:
    """[server]."""

    hostname: str = ""  # "": the host's FQDN, resolved once by the checker
    default_domain: str = ""
    workers: int = AUTO  # "auto": min(4, max(2, CPUs it may use)), resolved by the checker
    reply: Literal["queued", "cutthrough", "proxy"] = "queued"
    cutthrough_timeout: Seconds = 5.0
    graceful_timeout: Seconds = 150.0
    runtime_dir: str = "/run/relayd"
    state_dir: str = "/var/lib/relayd"


@frozen(kw_only=True)
class Listener:
    """[[listener]]. address: "192.0.2.1:25", "[::]:25" each."""

    name: str
    address: tuple[str, ...]
    tls: Tls = "opportunistic"
    auth: Auth = "optional"
    auth_without_tls: bool = False
    profile: Literal["device", "strict"] = "device"
    proxy_protocol_from: tuple[str, ...] = ()
    legacy_tls: bool = False


@frozen(kw_only=True)
class TlsSettings:
    """[tls]."""

    source: Literal["self-signed", "file", "keyvault", "off"] = "self-signed"
    certificate: str = ""
    key: str = ""
    minimum_version: Literal["1.2", "1.3"] = "1.2"
    vault_url: str = ""
    vault_certificate: str = ""
    vault_identity: str = ""
    poll: Seconds = 3600.0


@frozen(kw_only=True)
class Limits:
    """[limits]. max_message_size AUTO: what the ways out carry, resolved by the checker."""

    max_message_size: Octets = AUTO
    max_recipients: int = 500
    max_connections: int = 2000
    max_connections_per_device: int = 200
    idle_timeout: Seconds = 300.0
    data_timeout: Seconds = 180.0
    min_data_rate: int = 500
    max_errors: int = 50
    min_free_disk: Octets = 256 * 1024 * 1024


@frozen(kw_only=True)
class Spool:
    """[spool]."""

    url: str = "sqlite:///var/spool/relayd/spool.db"
    retry: tuple[Seconds, ...] = (60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
    max_age: Seconds = 432_000.0
    warn_after: Seconds = 900.0
    history: Seconds = 7_776_000.0
    keep_sent_content: Seconds = 0.0
    keep_failed_content: Seconds = 2_592_000.0
    encryption_key: Secret = field(default_factory=Secret)


@frozen(kw_only=True)
class Upstream:
    """[upstream.NAME]. `endpoints` is resolved by the loader from `cloud`."""

    name: str
    transport: Literal["graph", "smtp"] = "graph"
    cloud: str = "global"
    tenant: str = ""
    client_id: str = ""
    credential: Literal[
        "secret", "certificate", "managed-identity", "device-code", "ropc", "none", "password"
    ] = "secret"
    client_secret: Secret = field(default_factory=Secret)
    next_client_secret: Secret = field(default_factory=Secret)
    certificate_file: str = ""
    credential_expires: str = ""  # ISO date; "" unknown
    mailbox: str = ""  # an address, or "sender"
    mailbox_id: str = ""
    allowed_senders: tuple[str, ...] = ()
    on_foreign_sender: Literal["rewrite", "reject"] = "rewrite"
    own_domains: tuple[str, ...] = ()  # (): the domain of `mailbox`, resolved by the loader
    large: Literal["upload", "smtp", "refuse"] = "refuse"
    mime_limit: Octets = 3_000_000
    """Largest message Graph takes as MIME, octets before base64 (microsoft365: 4 MiB of body)."""
    save_to_sent: bool = True
    ambiguous: Literal["retry", "hold", "verify"] = "retry"
    concurrency: int = 3
    messages_per_minute: int = 30
    recipients_per_day: int = 10_000
    notify: tuple[str, ...] = ()
    host: str = ""
    starttls: Literal["required", "implicit", "off"] = "required"
    username: str = ""
    password: Secret = field(default_factory=Secret)
    mailboxes: tuple[str, ...] = ()


@frozen(kw_only=True)
class Route:
    """[[route]]."""

    upstream: str
    from_: tuple[str, ...] = ()
    to: tuple[str, ...] = ()
    device: tuple[str, ...] = ()
    larger_than: Octets = 0
    standby: str = ""
    standby_after: Seconds = 120.0


@frozen(kw_only=True)
class RateLimits:
    """limits = { per_minute = 30, ... } of a device or user; 0 is no limit."""

    per_minute: int = 0
    per_hour: int = 0
    per_day: int = 0
    on_limit: Literal["low", "hold", "refuse"] = "low"


@frozen(kw_only=True)
class Submitter:
    """What [[device]] and [[user]] share: who may send what as whom. `from_` is key `from`."""

    name: str
    upstream: str = ""  # "": the only one there is, resolved by the loader
    from_: str = ""
    default_from: str = ""
    allow_from: tuple[str, ...] = ()
    allow_to: tuple[str, ...] = ()  # (): the upstream's own_domains; ("*",): anybody
    priority: Priority = "normal"
    limits: RateLimits = field(default_factory=RateLimits)
    hide: tuple[str, ...] = ()
    lf_dot: bool = False
    reply: Literal["", "queued", "cutthrough", "proxy"] = ""
    max_age: Seconds = 0.0  # 0: [spool] max_age
    expect_every: Seconds = 0.0


@frozen(kw_only=True)
class Device(Submitter):
    """[[device]]: may submit without a password from its networks; first match wins."""

    networks: tuple[str, ...] = ()


@frozen(kw_only=True)
class User(Submitter):
    """[[user]]: a name and a password a device logs in with."""

    password_hash: Secret = field(default_factory=Secret)
    cram_md5_password: Secret = field(default_factory=Secret)


@frozen(kw_only=True)
class Cloud:
    """[cloud.NAME]: endpoints; the built-in ones are in config.clouds."""

    name: str
    authority: str
    graph: str
    graph_scope: str = "https://graph.microsoft.com/.default"
    smtp: str = ""
    smtp_scope: str = "https://outlook.office365.com/.default"
    ca_file: str = ""


@frozen(kw_only=True)
class Http:
    """[http]."""

    proxy: str = ""
    ca_file: str = ""
    connect_timeout: Seconds = 10.0
    token_timeout: Seconds = 15.0
    send_timeout: Seconds = 120.0
    upload_timeout: Seconds = 60.0


@frozen(kw_only=True)
class Admin:
    """[admin]."""

    address: str = "127.0.0.1:8025"


@frozen(kw_only=True)
class Log:
    """[log]."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "logfmt", "json", "console"] = "auto"
    file: str = ""
    subjects: bool = False


@frozen(kw_only=True)
class Config:
    """All of relayd.toml, resolved: no "auto", no file names of secrets, no empty defaults."""

    server: Server = field(default_factory=Server)
    listener: tuple[Listener, ...] = ()
    tls: TlsSettings = field(default_factory=TlsSettings)
    limits: Limits = field(default_factory=Limits)
    spool: Spool = field(default_factory=Spool)
    upstream: tuple[Upstream, ...] = ()
    device: tuple[Device, ...] = ()
    user: tuple[User, ...] = ()
    cloud: tuple[Cloud, ...] = ()  # the built-in ones and [cloud.*]
    http: Http = field(default_factory=Http)
    admin: Admin = field(default_factory=Admin)
    log: Log = field(default_factory=Log)
    source: str = ""  # the file it was read from
