"""Postfix from Debian, in a folder of its own: its queue on the same disk, relaying to smtp-sink.

accept only: mail is deferred at once (`defer_transports`), so what is measured is its 250.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.process import clean_environment, wait_for_port

_MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
mail_owner = postfix
setgid_group = postdrop
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
myhostname = postfix.bench.test
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
relayhost = [127.0.0.1]:{sink}
alias_maps =
alias_database =
default_process_limit = 250
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
default_destination_concurrency_limit = 100
initial_destination_concurrency = 50
smtp_host_lookup = native
disable_dns_lookups = yes
{extra}
"""

_MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


@contextlib.contextmanager
def postfix(folder: Path, *, port: int, sink: int, deliver: bool) -> Iterator[int]:
    """Run Postfix while the block lasts; yields the pid of its master."""
    etc = folder / "etc"
    etc.mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "queue").mkdir()
    extra = "" if deliver else "defer_transports = smtp relay"
    (etc / "main.cf").write_text(_MAIN.format(folder=folder, sink=sink, extra=extra))
    (etc / "master.cf").write_text(_MASTER.format(port=port))
    folder.chmod(0o755)
    subprocess.run(["chown", "postfix", folder / "data"], check=True)
    command = ["/usr/sbin/postfix", "-c", str(etc)]
    environment = clean_environment() | {"MAIL_CONFIG": str(etc)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    subprocess.run([*command, "start"], check=True, **quiet)  # type: ignore[call-overload]  # Popen's
    try:
        wait_for_port(port)
        yield int((folder / "queue/pid/master.pid").read_text())
    finally:
        subprocess.run([*command, "stop"], check=False, **quiet)  # type: ignore[call-overload]  # Popen's
