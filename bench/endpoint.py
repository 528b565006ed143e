"""A fast stand-in for Entra and Graph: nginx, which answers tokens and 202 and keeps nothing.

The sandbox is for correctness; here a Python endpoint would eat the cores it measures.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.process import free_port, running, wait_for_port
from relayd.net.certificates import make_ca, make_leaf

_CONFIG = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.err; worker_processes 2;
include /etc/nginx/modules-enabled/*.conf;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_max_body_size 64m; client_body_buffer_size 64k;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000; keepalive_timeout 300s; default_type application/json;
  log_format one "$request_uri";
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096; ssl_certificate {folder}/leaf.pem;
    ssl_certificate_key {folder}/leaf.pem; ssl_session_cache shared:a:1m;
    location ~ openid-configuration$ {{ return 200 '{discovery}'; }}
    location ~ /token$ {{ access_log {folder}/tokens.log one; return 200 '{token}'; }}
    location ~ ^/v1.0/users/slow.*/sendMail$ {{
      access_log {folder}/sent.log one buffer=64k flush=100ms;
      echo_read_request_body; echo_sleep {slow_s}; echo_status 202; echo_duplicate 1 "";
    }}
    location ~ ^/v1.0/users/.*/sendMail$ {{
      access_log {folder}/sent.log one buffer=64k flush=100ms; return 202 "";
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Endpoint:
    """A running endpoint. port: HTTPS; ca_file: whom to trust."""

    port: int
    folder: Path

    @property
    def ca_file(self) -> Path:
        """The CA that signed its certificate."""
        return self.folder / "ca.pem"

    def sent(self) -> int:
        """Return how many sendMail requests were answered."""
        return _lines(self.folder / "sent.log")

    def tokens(self) -> int:
        """Return how many tokens were asked for."""
        return _lines(self.folder / "tokens.log")

    def probe(self) -> None:
        """Ask for one token, to see that it answers; raises OSError."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=5, context=context)
        connection.request("GET", "/t/v2.0/.well-known/openid-configuration")
        assert connection.getresponse().status == 200
        connection.close()


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@contextlib.contextmanager
def endpoint(folder: Path, *, slow_s: float = 0.3) -> Iterator[Endpoint]:
    """Run nginx while the block lasts. Mailboxes named slow* are answered after `slow_s`."""
    folder.mkdir(parents=True, exist_ok=True)
    ca = make_ca("relayd bench", days=2)
    leaf = make_leaf(ca, ["localhost", "127.0.0.1"], days=1)
    (folder / "ca.pem").write_bytes(ca.certificate_pem)
    (folder / "leaf.pem").write_bytes(leaf.certificate_pem + leaf.key_pem)
    port = free_port()
    base = f"https://127.0.0.1:{port}/t"
    discovery = {
        "issuer": f"{base}/v2.0",
        "token_endpoint": f"{base}/oauth2/v2.0/token",
        "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
        "device_authorization_endpoint": f"{base}/oauth2/v2.0/devicecode",
    }
    token = {"token_type": "Bearer", "expires_in": 3599, "access_token": "e30.e30.bench"}
    text = _CONFIG.format(
        folder=folder,
        port=port,
        slow_s=slow_s,
        discovery=json.dumps(discovery),
        token=json.dumps(token),
    )
    (folder / "nginx.conf").write_text(text)
    folder.chmod(0o755)
    with running(["/usr/sbin/nginx", "-c", str(folder / "nginx.conf")], folder / "nginx.log"):
        wait_for_port(port)
        one = Endpoint(port, folder)
        one.probe()
        yield one
