"""The lines and counts of deliveries say what an operator needs at night."""

from __future__ import annotations

from datetime import timedelta

from relayd.deliver.outcome import Answer, Divided, Sent
from tests.courier_scene import BAD, DNS, SECRET, Scene


def test_the_log_line_of_a_sent_message_is_complete(scene: Scene) -> None:
    scene.start()
    scene.clock.advance(1.5)
    scene.door.accept(accepted_at=scene.clock.now - timedelta(seconds=1.5))
    scene.settle()

    line = scene.line("message.sent")
    assert line["upstream"] == "contoso"
    assert line["mailbox"] == "alerts@contoso.com"
    assert (line["recipients"], line["attempt"], line["queued_s"]) == (1, 1, 1.5)
    assert line["request_id"] == "r"
    assert {"id", "bytes", "session", "device"} <= set(line)


def test_long_lists_of_failed_recipients_are_cut_in_the_log(scene: Scene) -> None:
    names = tuple(f"r{n}@x" for n in range(9))
    parts = ((("a@x",), Sent(Answer(status=202))), (names, BAD))
    scene.transport.default = lambda _: Divided(parts)
    scene.start()
    scene.door.accept(recipients=("a@x", *names))
    scene.settle()

    assert str(scene.line("message.sent")["failed_recipients"]).endswith("and 4 more")


def test_the_outage_is_told_with_its_cause_and_what_to_do(scene: Scene) -> None:
    scene.transport.default = lambda _: DNS
    scene.start()
    scene.door.accept()
    scene.settle()

    line = scene.line("upstream.down")
    assert (line["cause"], line["text"], line["retry_in_s"]) == ("dns-failed", "no such host", 2)
    assert "resolv.conf" in str(line["advice"])
    assert line["log_level"] == "error"
    (contoso, fabrikam) = scene.courier.upstreams()
    assert (contoso.state, contoso.cause, contoso.mailboxes_waiting) == ("down", "dns-failed", 1)
    assert contoso.retry_in_s == 2.0
    assert (fabrikam.state, fabrikam.cause, fabrikam.down_s) == ("up", "", 0.0)


def test_an_outage_at_entra_says_what_to_do_too(scene: Scene) -> None:
    scene.transport.default = lambda _: SECRET
    scene.start()
    scene.door.accept()
    scene.settle()

    assert "Value (not the Secret ID)" in str(scene.line("upstream.down")["advice"])
