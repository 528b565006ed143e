"""A courier with fakes around it, and the outcomes its tests hand out; see deliver_fakes."""

from __future__ import annotations

from dataclasses import dataclass, field

import gevent
from gevent.event import Event

from relayd.clock import FakeClock
from relayd.config.model import Spool, Upstream
from relayd.deliver.agenda import Agenda
from relayd.deliver.carriers import Carriers
from relayd.deliver.courier import Courier
from relayd.deliver.custody import Custody
from relayd.deliver.gate import Gate
from relayd.deliver.lane import Carried, Lane, Way
from relayd.deliver.outcome import Ambiguous, Answer, Deferred, Failed, Misconfigured
from relayd.deliver.pumps import Pumps
from relayd.deliver.roster import Roster
from relayd.spool.model import Lease, MailboxRef, NewDelivery, Settlement, State
from tests.deliver_fakes import ALERTS, FakeDoor, FakeSlots, FakeTransport

OTHER = MailboxRef("contoso", "other@contoso.com")
FOREIGN = MailboxRef("fabrikam", "alerts@fabrikam.com")
DNS = Deferred(Answer(code="dns-failed", text="no such host"), whole_upstream=True)
SECRET = Misconfigured(Answer(code="7000215", text="wrong secret"), whole_upstream=True)
THROTTLED = Deferred(Answer(status=429, code="ApplicationThrottled"), 30.0, whole_mailbox=True)
DENIED = Misconfigured(Answer(status=403, code="ErrorSendAsDenied"))
GATEWAY = Ambiguous(Answer(status=504))
BAD = Failed(Answer(status=400, code="ErrorMimeContentInvalid"), "5.6.0")


@dataclass
class Scene:
    """A courier with fakes around it; `settle` lets every greenlet run until none can."""

    clock: FakeClock = field(default_factory=FakeClock)
    slots: FakeSlots = field(default_factory=FakeSlots)
    transport: FakeTransport = field(default_factory=FakeTransport)
    foreign: FakeTransport = field(default_factory=FakeTransport)
    outcomes: list[tuple[Lease, Settlement]] = field(default_factory=list)
    lines: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.door = FakeDoor(self.clock)
        self.courier = self.make()

    def make(self, *, carriers: int = 16, **upstream: object) -> Courier:
        ways = [
            Way(Upstream(name="contoso", **upstream), self.transport),  # type: ignore[arg-type]  # a test's keywords
            Way(Upstream(name="fabrikam"), self.foreign),
        ]
        self.courier = Courier(
            self.door,
            self.slots,
            ways,
            Spool(),
            carriers=carriers,
            clock=self.clock,
            dice=lambda: 0.5,
            on_outcome=lambda lease, word: self.outcomes.append((lease, word)),
        )
        self.agenda.sleep = self._sleep  # type: ignore[method-assign]  # no real time goes by
        return self.courier

    def _sleep(self, wait_s: float) -> None:
        """Wait as the loop does, but for `advance`: a machine that stalls must not wake it."""
        self.agenda.sleeps_until = self.clock.monotonic() + wait_s
        self.agenda._rung.wait()

    def start(self, **upstream: object) -> Scene:
        if upstream:
            self.make(**upstream)  # type: ignore[arg-type]  # likewise
        self.courier.start()
        self.settle()
        return self

    def end(self) -> None:
        """Let go what waits, and stop the loops."""
        self.transport.gate = self.foreign.gate = None
        self.courier._stopped.set()
        self.gate.is_draining = True
        gevent.killall(self.courier._greenlets)
        self.slots.close()
        self.settle()

    # --- the courier's parts

    @property
    def agenda(self) -> Agenda:
        return self.courier._agenda

    @property
    def roster(self) -> Roster:
        return self.courier._roster

    @property
    def gate(self) -> Gate:
        return self.courier._gate

    @property
    def custody(self) -> Custody:
        return self.courier._custody

    @property
    def carriers(self) -> Carriers:
        return self.courier._carriers

    @property
    def pumps(self) -> Pumps:
        return self.courier._pumps

    def lane(self, ref: MailboxRef) -> Lane:
        lane = self.roster.lane(ref)
        assert lane is not None
        return lane

    # --- what goes on

    def settle(self) -> None:
        for _ in range(12):
            gevent.idle()

    def wake(self) -> None:
        self.agenda.wake()
        self.settle()

    def advance(self, seconds: float) -> None:
        """Let time go by, and the loop notice."""
        self.clock.advance(seconds)
        self.wake()

    def states(self) -> list[State]:
        return [row.state for row in self.door.rows.values()]

    def events(self, *names: str) -> list[str]:
        return [str(one["event"]) for one in self.lines if not names or one["event"] in names]

    def line(self, name: str) -> dict[str, object]:
        return next(one for one in self.lines if one["event"] == name)


def ahead(scene: Scene) -> None:
    """Make leasing slow and sending fast, so that rows are leased ahead."""
    real = scene.door.lease

    def slow(mailbox: MailboxRef, *, limit: int) -> list[Lease]:
        scene.clock.advance(0.1)
        return real(mailbox, limit=limit)

    scene.door.lease = slow  # type: ignore[method-assign]
    scene.slots.capacity = 1
    scene.start(messages_per_minute=0)
    lane = scene.lane(ALERTS)
    lane.has_work, lane.send_s, lane.lease_s = True, 0.001, 0.1


def crowded(scene: Scene) -> Event:
    """Let one slot be in use by a send that waits, with room in hand behind it."""
    scene.slots.capacity = 1
    scene.start(messages_per_minute=0)
    lane = scene.lane(ALERTS)
    lane.send_s, lane.lease_s = 0.001, 0.1
    scene.transport.gate = gate = Event()
    scene.door.accept()
    scene.settle()
    assert scene.transport.at_once == 1
    return gate


def new(mailbox: MailboxRef = ALERTS, header_from: str = "alerts@contoso.com") -> NewDelivery:
    return NewDelivery(mailbox=mailbox, recipients=("b@x",), header_from=header_from)


def soon(scene: Scene) -> float:
    return scene.clock.monotonic() + 10


def leased(scene: Scene, ref: MailboxRef = ALERTS, **changes: object) -> Carried:
    """Return a lease under way, with its permit, as a pump hands it out."""
    lane = scene.lane(ref)
    assert lane.permits.acquire(blocking=False)
    lane.in_flight += 1
    lane.unsent += 1
    return scene.custody.pick_up(scene.door._leased(scene.door.put(mailbox=ref, **changes)))
