"""aiosmtpd with a handler that posts to Graph before it answers: what a user would write first.

python -m bench.aiosmtpd_relay PORT GRAPH_URL CA_FILE
"""

from __future__ import annotations

import asyncio
import base64
import sys

import urllib3
from aiosmtpd.smtp import SMTP, Envelope, Session


class Relay:
    """Posts each message in a thread, over one pool."""

    def __init__(self, graph: str, ca_file: str) -> None:
        self.url = f"{graph}/users/a%40b.test/sendMail"
        self.pool = urllib3.PoolManager(ca_certs=ca_file, maxsize=64, retries=False)

    async def handle_DATA(  # noqa: N802  aiosmtpd names it
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
    ) -> str:
        """Answer 250 once Graph said 202."""
        body = base64.b64encode(envelope.content or b"")  # type: ignore[arg-type]  # bytes here
        loop = asyncio.get_running_loop()
        status = await loop.run_in_executor(None, self._post, body)
        return "250 OK" if status == 202 else "451 later"

    def _post(self, body: bytes) -> int:
        headers = {"Content-Type": "text/plain", "Authorization": "Bearer e30.e30.bench"}
        return self.pool.request("POST", self.url, body=body, headers=headers).status


async def main() -> None:
    """Serve until told to stop."""
    relay = Relay(sys.argv[2], sys.argv[3])
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(relay), "127.0.0.1", int(sys.argv[1]))
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
