"""A relay that does not run knows nothing, and says why and what mends it."""

from __future__ import annotations

from relayd.doctor.relay import Away, Relay


def test_nobody_answers_for_a_relay_that_is_away() -> None:
    away: Relay = Away("relayd does not run", "systemctl start relayd")
    assert (away.away, away.remedy) == ("relayd does not run", "systemctl start relayd")
    assert away.upstream("contoso") is None
    assert away.token("contoso") is None
    assert away.mailbox("contoso", "a@contoso.com") is None
    assert (away.holds("contoso"), away.mailboxes("contoso")) == ((), ())
