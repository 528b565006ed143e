"""`relayd sandbox`: a Microsoft 365 on localhost until Ctrl-C; here its arguments.

What it does is in relayd.cli.lab.
"""

from __future__ import annotations

import argparse
from typing import Final

from relayd.cli.main import later

_DEFAULT_STATE: Final = "~/.local/state/relayd/sandbox"
_EPILOG: Final = """\
examples:
  relayd sandbox                         paste what it prints, open the inbox
  relayd sandbox --any-mailbox           every address is a mailbox
  relayd sandbox --mailbox a@contoso.com --mailbox b@contoso.com
  relayd sandbox --print-config >> relayd.toml
  relayd sandbox --listen 127.0.0.1:0 --inbox 127.0.0.1:0 --json    for programs

Faults, limits and all that was delivered: the control API, docs/sandbox.md.
exit: 0 stopped, 2 wrong usage, 69 cannot listen"""


def add_sandbox(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `relayd sandbox`."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "--listen",
        metavar="ADDRESS:PORT",
        type=_socket_address,
        default=("127.0.0.1", 8443),
        help="Entra, Graph and control API, TLS (127.0.0.1:8443; port 0: any)",
    )
    parser.add_argument(
        "--inbox",
        metavar="ADDRESS:PORT",
        type=_socket_address,
        default=("127.0.0.1", 8480),
        help="the page that shows what arrived, plain HTTP (127.0.0.1:8480)",
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        default=_DEFAULT_STATE,
        help=f"CA and secrets, kept for the next start ({_DEFAULT_STATE})",
    )
    parser.add_argument("--tenant", default="contoso.onmicrosoft.com", help="its domain")
    parser.add_argument("--client-id", default="", help="application id (default: made of tenant)")
    parser.add_argument("--secret", default="", help="client secret (default: made once)")
    parser.add_argument(
        "--mailbox",
        metavar="ADDR",
        action="append",
        default=[],
        help="a mailbox that may send; may be given again (alerts@contoso.com)",
    )
    parser.add_argument(
        "--any-mailbox", action="store_true", help="let every address send, not only --mailbox"
    )
    parser.add_argument("--control-key", default="", help="key of the control API (made once)")
    parser.add_argument(
        "--keep", metavar="FILE", default="", help="append each message to FILE as a line of JSON"
    )
    parser.add_argument(
        "--keep-bodies",
        action=argparse.BooleanOptionalAction,
        help="keep bodies above 64 KiB too, or only their hash (default: kept; with --json not)",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print what to put into relayd.toml, and exit"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no line for each message and each refusal"
    )
    parser.set_defaults(act=later("relayd.cli.lab", "run"))


def _socket_address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT, e.g. 127.0.0.1:8443")
    return host.removeprefix("[").removesuffix("]"), int(port)
