"""The ceiling of this language and loop: a hundred lines that parse, post, wait, and keep nothing.

    python -m bench.toy PORT GRAPH_URL CA_FILE PROCESSES [sink]

Not a product: no limits, no errors, no spool. `sink` drops instead of posting.
"""

from gevent import monkey

monkey.patch_all()

import base64  # noqa: E402  patched first
import ctypes  # noqa: E402
import http.client  # noqa: E402
import os  # noqa: E402
import ssl  # noqa: E402
import sys  # noqa: E402
from urllib.parse import urlsplit  # noqa: E402

from gevent import socket  # noqa: E402
from gevent.server import StreamServer  # noqa: E402


class Toy:
    """One process's pool of connections to Graph and its handler."""

    def __init__(self, graph: str, ca_file: str, *, sink: bool) -> None:
        self.url = urlsplit(graph)
        self.context = ssl.create_default_context(cafile=ca_file)
        self.idle: list[http.client.HTTPSConnection] = []
        self.sink = sink

    def post(self, content: bytes) -> None:
        """Send one message and wait for the answer."""
        if self.sink:
            return
        if self.idle:
            one = self.idle.pop()
        else:
            host, port = self.url.hostname or "", self.url.port
            one = http.client.HTTPSConnection(host, port, context=self.context)
        headers = {"Content-Type": "text/plain", "Authorization": "Bearer e30.e30.bench"}
        body = base64.b64encode(content)
        one.request("POST", f"{self.url.path}/users/a%40b.test/sendMail", body, headers)
        answer = one.getresponse()
        answer.read()
        assert answer.status == 202
        self.idle.append(one)

    def handle(self, client: socket.socket, _: object) -> None:
        """Serve one SMTP client."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"220 toy\r\n")
        buffer = b""
        while chunk := client.recv(65536):
            buffer += chunk
            while (end := buffer.find(b"\r\n")) >= 0:
                line, buffer = buffer[:end].upper(), buffer[end + 2 :]
                if line.startswith(b"DATA"):
                    client.sendall(b"354 go\r\n")
                    while (stop := buffer.find(b"\r\n.\r\n")) < 0:
                        buffer += client.recv(65536)
                    self.post(buffer[: stop + 2].replace(b"\r\n..", b"\r\n."))
                    buffer = buffer[stop + 5 :]
                    client.sendall(b"250 2.0.0 Ok\r\n")
                elif line.startswith(b"QUIT"):
                    client.sendall(b"221 bye\r\n")
                    return
                else:
                    client.sendall(b"250 ok\r\n")


def main() -> None:
    """Listen, fork, serve."""
    port, graph, ca_file, processes = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    for _ in range(processes - 1):
        if os.fork() == 0:
            libc = ctypes.CDLL(None)
            libc.prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM: the bench only knows the parent
            break
    toy = Toy(graph, ca_file, sink="sink" in sys.argv[5:])
    server = StreamServer(listener, toy.handle)
    server.max_accept = 1
    server.serve_forever()


if __name__ == "__main__":
    main()
