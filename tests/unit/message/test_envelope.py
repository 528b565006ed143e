"""An envelope is one value: replaced whole, never changed."""

from __future__ import annotations

from dataclasses import replace

from relayd.message.address import Address
from relayd.message.envelope import Envelope, Origin

ORIGIN = Origin(session="s", listener="l", ip="::1", helo="h", device="", user="", protocol="SMTP")
ENVELOPE = Envelope(sender=None, recipients=(Address("a", "b"),), origin=ORIGIN)


def test_no_field_of_an_envelope_changes_by_itself() -> None:
    assert replace(ENVELOPE, sender=Address("c", "d")).recipients == ENVELOPE.recipients
    assert ENVELOPE.sender is None
