"""The rim: sockets, TLS and one event loop; everything else is called from here.

One thread, one loop (asyncio): a request is served by one coroutine, so nothing in a Lab
needs a lock, and a hundred hanging requests cost nothing. Message parsing above 128 KiB
goes to a thread (letters.read).

    TLS port    /v1.0/…  Graph   /_sandbox/…  control   anything else  Entra
    inbox port  plain HTTP, the pages

A connection that goes away does not stop its request: Microsoft's does not either.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import format_datetime
from typing import Final

import structlog

from relayd.sandbox.control import PREFIX, Control
from relayd.sandbox.entra import Entra
from relayd.sandbox.graph import Graph
from relayd.sandbox.http import CONTINUE, BadRequest, Head, Receiver, Request, Response
from relayd.sandbox.knobs import App, AppSecret, Knobs, Mailbox, Tenant
from relayd.sandbox.lab import Directory, Lab, Watcher, stable_id
from relayd.sandbox.limits import Ticket
from relayd.sandbox.pages import Pages
from relayd.sandbox.state import State, prepare
from relayd.sandbox.store import Store
from relayd.sandbox.tokens import Mint

log = structlog.get_logger()

_SMALL_BODY_BYTES: Final = 1024 * 1024
_PIPELINE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a sandbox is set up. listen, inbox: (address, port), port 0 for any.

    client_id, secret, control_key: "" for the kept ones. keep: journal file, "" none.
    """

    state_dir: str
    listen: tuple[str, int] = ("127.0.0.1", 0)
    inbox: tuple[str, int] = ("127.0.0.1", 0)
    tenant: str = "contoso.onmicrosoft.com"
    client_id: str = ""
    secret: str = ""
    mailboxes: tuple[str, ...] = ()
    knobs: Knobs = field(default_factory=Knobs)
    control_key: str = ""
    keep: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a running sandbox is and what opens it."""

    host: str
    port: int
    inbox_host: str
    inbox_port: int
    ca_file: str
    tenant: str
    tenant_id: str
    client_id: str
    client_secret: str
    control_key: str
    mailboxes: tuple[str, ...]

    @property
    def base(self) -> str:
        """Return the URL of the TLS port, without a slash at its end."""
        return f"https://{_authority(self.host, self.port)}"

    @property
    def inbox_url(self) -> str:
        """Return the URL of the pages."""
        return f"http://{_authority(self.inbox_host, self.inbox_port)}/"


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def make_lab(options: Options, state: State) -> Lab:
    """Return a lab with the tenant, application and mailboxes that `options` name."""
    tenant = Tenant(
        id=stable_id("tenant", options.tenant.lower()), domains=(options.tenant.lower(),)
    )
    client_id = (options.client_id or default_client_id(options.tenant)).lower()
    secret = AppSecret(
        value=options.secret or state.secrets.client_secret, id=state.secrets.secret_id
    )
    app = App(
        client_id=client_id,
        tenant=tenant.id,
        object_id=stable_id("app", client_id),
        secrets=(secret,),
    )
    directory = Directory(tenants=[tenant], apps={client_id: app})
    for address in options.mailboxes:
        key = address.lower()
        directory.put(Mailbox(address=key, object_id=stable_id("mailbox", key)))
    return Lab(
        mint=Mint(bytes.fromhex(state.secrets.token_key)),
        directory=directory,
        knobs=options.knobs,
        store=Store(journal=options.keep),
    )


def default_client_id(tenant: str) -> str:
    """Return the application id a sandbox for `tenant` has unless told another."""
    return stable_id("client", tenant.lower())


class Sandbox:
    """A running sandbox. `start` and `stop` from the loop; `lab` is the loop's alone."""

    def __init__(self, options: Options, watcher: Watcher | None = None) -> None:
        hosts = {options.listen[0], "127.0.0.1", "::1", "localhost"} - {"0.0.0.0", "::", ""}
        self._options = options
        self._state = prepare(options.state_dir, sorted(hosts))
        self.lab = make_lab(options, self._state)
        key = options.control_key or self._state.secrets.control_key
        self._key = key
        self._connections: set[_Connection] = set()
        self._servers: list[asyncio.Server] = []
        watcher = watcher or Watcher()
        self._entra = Entra(self.lab, asyncio.sleep, watcher)
        self._graph = Graph(self.lab, asyncio.sleep, watcher)
        self._control = Control(self.lab, key, lambda: len(self._connections))
        self._pages = Pages(self.lab)

    async def start(self) -> Place:
        """Bind both ports and serve; raises OSError."""
        loop, options = asyncio.get_running_loop(), self._options
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._state.server_file)
        tls = await loop.create_server(
            lambda: _Connection(self, self._route, self._connections),
            options.listen[0],
            options.listen[1],
            ssl=context,
            backlog=512,
        )
        self._servers.append(tls)
        plain = await loop.create_server(
            lambda: _Connection(self, self._page, self._connections),
            options.inbox[0],
            options.inbox[1],
        )
        self._servers.append(plain)
        return self.place(_bound(tls), _bound(plain))

    async def stop(self) -> None:
        """Stop at once: requests under way are dropped, connections cut."""
        for server in self._servers:
            server.close()
        tasks = [task for connection in set(self._connections) for task in connection.abort()]
        await asyncio.gather(*tasks, return_exceptions=True)
        # TLS transports take two turns of the loop to let go of their sockets.
        for _ in range(3):
            await asyncio.sleep(0)

    def enter(self, head: Head) -> Ticket | None:
        """Count a request in at its head."""
        return self._graph.enter(head)

    def leave(self, ticket: Ticket) -> None:
        """Count it out again."""
        self._graph.leave(ticket)

    async def _route(self, request: Request, ticket: Ticket | None) -> Response | None:
        path = request.head.path
        if path.startswith("/v1.0/"):
            return await self._graph.handle(request, ticket)
        if path.startswith(PREFIX):
            return self._control.handle(request)
        return await self._entra.handle(request)

    async def _page(self, request: Request, _ticket: Ticket | None) -> Response | None:
        return self._pages.handle(request)

    def place(self, listen: tuple[str, int], inbox: tuple[str, int]) -> Place:
        """Return where it is, once these addresses are bound, and what opens it."""
        directory = self.lab.directory
        tenant, app = directory.tenants[0], next(iter(directory.apps.values()))
        return Place(
            host=listen[0],
            port=listen[1],
            inbox_host=inbox[0],
            inbox_port=inbox[1],
            ca_file=self._state.ca_file,
            tenant=self._options.tenant,
            tenant_id=tenant.id,
            client_id=app.client_id,
            client_secret=app.secrets[0].value,
            control_key=self._key,
            mailboxes=tuple(directory.mailboxes),
        )


def _bound(server: asyncio.Server) -> tuple[str, int]:
    host, port = server.sockets[0].getsockname()[:2]
    # Nobody can connect to "everywhere".
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port


Handler = Callable[[Request, Ticket | None], Awaitable[Response | None]]


class _Connection(asyncio.Protocol):
    """One client's connection; requests one after the other."""

    def __init__(self, sandbox: Sandbox, handler: Handler, everyone: set[_Connection]) -> None:
        self._sandbox = sandbox
        self._handler = handler
        self._receiver = Receiver(_SMALL_BODY_BYTES)
        self._everyone = everyone
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticket: Ticket | None = None
        self._served = 0
        self._busy = False
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
        self._everyone.add(self)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._everyone.discard(self)
        self._transport = None
        self._stop_idling()
        if not self._busy:
            self._leave()  # its head came, its body never will

    def data_received(self, data: bytes) -> None:
        self._stop_idling()
        self._receiver.feed(data)
        if self._busy and self._receiver.waiting_bytes > _PIPELINE_BYTES and self._transport:
            self._transport.pause_reading()
        self._go_on()

    def abort(self) -> set[asyncio.Task[None]]:
        """Cut the connection and give up its request; returns what must still end."""
        for task in self._tasks:
            task.cancel()
        if self._transport is not None:
            self._transport.abort()
        return self._tasks

    def _go_on(self) -> None:
        while not self._busy and self._transport is not None:
            try:
                event = self._receiver.next_event()
            except BadRequest as error:
                self._answer(Response(status=400, body=str(error).encode()), close=True)
                return
            if event is None:
                return
            if isinstance(event, Head):
                # What is over the limit is refused for its length; nobody reads it.
                limit = self._sandbox.lab.knobs.body_limit
                self._receiver.keep = max(limit, _SMALL_BODY_BYTES)
                self._ticket = self._sandbox.enter(event)
                if event.get("expect").lower() == "100-continue":
                    self._transport.write(CONTINUE)
                continue
            self._busy = True
            task = asyncio.get_running_loop().create_task(self._serve(event))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, request: Request) -> None:
        response: Response | None = None
        try:
            response = await self._handler(request, self._ticket)
        except Exception:  # a bug here must be a 500, not a silent hang
            log.exception("sandbox.broken", path=request.head.path)
            response = Response(status=500, body=b"the sandbox itself is broken; see its log")
        finally:
            self._leave()
            self._busy = False
        self._end(request, response)

    def _end(self, request: Request, response: Response | None) -> None:
        if self._transport is None:
            return
        if response is None:
            self._transport.close()
            return
        self._served += 1
        keep_alive = request.head.keep_alive
        self._answer(response, close=not keep_alive, without_body=request.head.method == "HEAD")
        if self._served == self._sandbox.lab.knobs.requests_per_connection:
            self._transport.close()
            return
        if keep_alive and self._transport is not None:
            self._transport.resume_reading()
            self._start_idling()
            self._go_on()

    def _answer(self, response: Response, *, close: bool, without_body: bool = False) -> None:
        if self._transport is None:
            return
        at = format_datetime(self._sandbox.lab.clock.utcnow(), usegmt=True)
        dated = Response(
            status=response.status,
            fields=(("Date", at), *response.fields),
            body=response.body,
        )
        self._transport.write(dated.render(close=close, without_body=without_body))
        if close:
            self._transport.close()

    def _leave(self) -> None:
        if self._ticket is not None:
            self._sandbox.leave(self._ticket)
            self._ticket = None

    def _start_idling(self) -> None:
        keep_alive_s = self._sandbox.lab.knobs.keep_alive_s
        if keep_alive_s and self._transport is not None:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(keep_alive_s, self._transport.close)

    def _stop_idling(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


class Background:
    """A sandbox on a thread of its own, for tests in this process."""

    def __init__(self, options: Options) -> None:
        self.sandbox = Sandbox(options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="sandbox", daemon=True)

    def start(self) -> Place:
        """Serve; returns where. raises: OSError."""
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self.sandbox.start(), self._loop).result(10)

    def stop(self) -> None:
        """Stop and wait for the thread's end."""
        asyncio.run_coroutine_threadsafe(self.sandbox.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        with contextlib.closing(self._loop):
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
