"""The seam between courier and transport is kept by those who stand at it."""

from __future__ import annotations

from relayd.clock import FakeClock
from relayd.deliver.graph import GraphTransport
from relayd.deliver.lane import Carried
from relayd.deliver.transport import Grip, Transport
from tests.deliver_fakes import FakeTransport, lease_of


def test_what_the_courier_holds_is_a_grip() -> None:
    clock = FakeClock()
    grip: Grip = Carried(lease_of(clock), clock)

    assert grip.lease.delivery == 1


def test_graph_and_the_fake_are_transports() -> None:
    fake: Transport = FakeTransport()
    graph: type[Transport] = GraphTransport

    assert fake.name == "graph"
    assert graph is GraphTransport
