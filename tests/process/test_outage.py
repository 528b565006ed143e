"""Microsoft is slow, away, refuses, or says nothing: what was accepted stays, says why, and leaves.

Each test is told by what the sandbox saw and what `status` and `queue` say, never by how long
it took; where time matters, it is compared with an idle twin in the same run.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import smtplib
import statistics
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.load import Load, submit, verdict
from tests.relay_process import RelayProcess, wait_until
from tests.sandbox_process import SandboxProcess, start_sandbox

ALERTS = "alerts@contoso.com"
SLOW = "slow@contoso.com"
SLOW_DEVICE = """
[[device]]
name = "slow"
upstream = "slow"
networks = ["127.0.0.2/32"]
allow_to = ["*"]
default_from = "slow@contoso.com"
"""
ANYBODY = 'allow_from = ["*@contoso.com"]\nallow_to'
SENDING = ("alerts@contoso.com", "slow@contoso.com", "ups@contoso.com")


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[SandboxProcess]:
    with a_sandbox(tmp_path) as sandbox:
        yield sandbox


def a_sandbox(folder: Path, *, port: int = 0) -> SandboxProcess:
    sandbox = start_sandbox(folder / "sandbox", mailboxes=SENDING, port=port)
    sandbox.client.knobs(requests_per_window=0, octets_per_window=0, recipients_per_day=0)
    return sandbox


def a_relay(
    folder: Path,
    sandbox: SandboxProcess,
    *,
    more: str = "",
    retry: str = "1s",
    **upstream: Any,
) -> RelayProcess:
    toml = sandbox.upstream_toml(messages_per_minute=0, **upstream)
    return RelayProcess(
        folder / "relay", toml, more=more, **{'retry = ["1s"]': f'retry = ["{retry}"]'}
    )


def upstream_of(relay: RelayProcess, name: str = "lab") -> dict[str, Any]:
    """Return what `status` says of an upstream; {} while it is not known."""
    found: dict[str, Any] = (relay.status().get("upstreams") or {}).get(name, {})
    return found


def wait_until_down(relay: RelayProcess, *, cause: str) -> dict[str, Any]:
    """Wait until `status` shows the upstream down, by `cause`."""
    wait_until(
        lambda: upstream_of(relay).get("cause") == cause,
        told=lambda: f"{cause} is not shown: {upstream_of(relay)}",
    )
    return upstream_of(relay)


def wait_until_only(relay: RelayProcess, ids: list[str]) -> None:
    """Wait until these are all that wait."""
    wait_until(lambda: {one["id"] for one in relay.queue()} == set(ids), told=relay.queue)


def in_flight(sandbox: SandboxProcess, mailbox: str) -> int:
    seen = sandbox.client.counts()["mailboxes"].get(mailbox, {})
    return int(seen.get("in_flight", 0))


# ---- slow


@pytest.mark.slow(8)
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("kind", "delay_s"), [("latency", 30.0), ("hang-close", 3600.0)])
def test_a_graph_that_does_not_answer_stands_in_nobody_elses_way(
    kind: str, delay_s: float, tmp_path: Path, sandbox: SandboxProcess
) -> None:
    both = sandbox.upstream_toml("quick", messages_per_minute=0, mailbox=ALERTS)
    both += sandbox.upstream_toml("slow", messages_per_minute=0, mailbox=SLOW, concurrency=3)
    relay = RelayProcess(
        tmp_path / "relay",
        both,
        more=SLOW_DEVICE,
        **{"[[device]]": '[[device]]\nupstream = "quick"'},
    )
    with relay:
        idle, idle_s = passes_through(relay, sandbox, "idle-", before=0)
        sandbox.client.fault(kind, mailbox=SLOW, delay_s=delay_s, times=0)
        stuck = Load(
            relay.port, senders=4, per_sender=15, sizes=(400,), name="stuck-", source="127.0.0.2",
            sender=SLOW,
        )  # fmt: skip
        with stuck:
            stuck.wait()
            wait_until(lambda: in_flight(sandbox, SLOW) == 3, told="nothing hangs")
            busy, busy_s = passes_through(relay, sandbox, "busy-", before=len(idle.acknowledged))
        counts = sandbox.client.counts()
        assert counts["deliveries"] == len(idle.acknowledged) + len(busy.acknowledged)
        assert in_flight(sandbox, SLOW) == 3
        # Every connection got its banner, every message its 250, and the slow ones wait.
        assert len(stuck.acknowledged) == 60
        assert len(relay.queue(upstream="slow")) == 60
        for load in (stuck, busy):
            assert load.broken == []
            assert load.refused == []
            assert statistics.median(load.took_s) < 20 * statistics.median(idle.took_s)
        assert busy_s < 10 * idle_s


@pytest.mark.slow(8)
@pytest.mark.timeout(240)
def test_an_upstream_that_hangs_with_hundreds_of_mailboxes_leaves_room_for_another(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    sandbox.client.knobs(any_mailbox=True)
    quick = sandbox.upstream_toml("quick", messages_per_minute=0, mailbox=ALERTS)
    slow = sandbox.upstream_toml(
        "slow", messages_per_minute=0, mailbox="sender", allowed_senders=["*@many.example"]
    )
    relay = RelayProcess(
        tmp_path / "relay",
        quick + slow,
        more=SLOW_DEVICE.replace("allow_to", 'allow_from = ["*@many.example"]\nallow_to'),
        **{"[[device]]": '[[device]]\nupstream = "quick"'},
    )
    with relay:
        idle, idle_s = passes_through(relay, sandbox, "idle-", before=0)
        mailboxes = [f"m{number}@many.example" for number in range(200)]
        for one in mailboxes:
            sandbox.client.fault("hang-close", mailbox=one, delay_s=3600.0, times=0)
        loads = [
            Load(
                relay.port, senders=1, per_sender=1, sizes=(400,), source="127.0.0.2", sender=one,
                new_connection_each=True, name=f"stuck-{number}-",
            )
            for number, one in enumerate(mailboxes * 3)
        ]  # fmt: skip
        for load in loads:  # one after the other: the kernel spreads them over the workers
            load.start()
            load.wait()
        wait_until(lambda: sandbox.client.counts()["send_requests"] > 120 + 400, told="none hangs")
        busy, busy_s = passes_through(relay, sandbox, "busy-", before=len(idle.acknowledged))
        assert sandbox.client.counts()["deliveries"] == 240
        assert busy_s < 10 * idle_s
        wait_until(
            lambda: upstream_of(relay, "slow")["in_flight"] > 400, told=lambda: upstream_of(relay)
        )
    assert busy.broken == busy.refused == []


def passes_through(
    relay: RelayProcess, sandbox: SandboxProcess, name: str, *, before: int
) -> tuple[Load, float]:
    """Send 120 messages on new connections, wait until all arrived; returns seconds, too."""
    began = time.monotonic()
    load = Load(
        relay.port, senders=4, per_sender=30, sizes=(400,), pause_s=0, new_connection_each=True,
        name=name,
    )  # fmt: skip
    load.start()
    load.wait()
    assert len(load.acknowledged) == 120, (load.refused, load.broken)
    sandbox.client.wait_for_deliveries(before + 120, seconds=120)
    return load, time.monotonic() - began


# ---- Entra


@pytest.mark.slow(10)
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["503", "429-plain", "hang-close"])
def test_mail_is_kept_while_entra_is_away_and_leaves_when_it_is_back(
    kind: str, tmp_path: Path, sandbox: SandboxProcess
) -> None:
    sandbox.client.fault(kind, operation="token", times=0, delay_s=0.1)
    with a_relay(tmp_path, sandbox, retry="1h") as relay:
        ids = [submit(relay.port, f"kept-{n}") for n in range(10)]
        wait_until(lambda: upstream_of(relay).get("state") in ("down", "probing"), told="not down")
        row = upstream_of(relay)
        assert row["cause"]
        assert row["why"]
        assert sandbox.client.counts()["send_requests"] == 0
        assert {one["id"] for one in relay.queue()} == set(ids)
        delivery = relay.show(ids[0])["deliveries"][0]
        assert "Upstream lab is down" in delivery["why"]
        assert row["cause"] in relay.cli("status").stdout
        sandbox.client.clear_faults()
        sandbox.client.wait_for_deliveries(10, seconds=120)
        # Who has a token does not need Entra.
        sandbox.client.fault(kind, operation="token", times=0)
        submit(relay.port, "later")
        sandbox.client.wait_for_deliveries(11)
        relay.wait_empty()
        assert relay.lines("upstream.down")
        wait_until(lambda: relay.lines("upstream.up"), told=relay.log)
    assert sandbox.client.duplicates_by("X-Load-Id") == 0


@pytest.mark.slow(12)
@pytest.mark.timeout(180)
def test_status_knows_an_outage_that_one_worker_met_and_that_it_is_over(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    sandbox.client.fault("503", operation="token", times=0)
    with a_relay(tmp_path, sandbox, retry="1h") as relay:
        submit(relay.port, "lonely")
        wait_until(lambda: upstream_of(relay).get("state") == "down", told="not seen")
        # Who looks again and again meets every worker's report.
        for _ in range(25):
            assert upstream_of(relay)["state"] != "up"
            time.sleep(0.1)
        sandbox.client.clear_faults()
        sandbox.client.wait_for_deliveries(1, seconds=120)
        # There is no other mail by which the other worker could find out.
        wait_until(lambda: upstream_of(relay)["state"] == "up", told=lambda: upstream_of(relay))
        assert sandbox.client.counts()["send_requests"] == 1


@pytest.mark.slow(65)
@pytest.mark.timeout(300)
def test_a_wrong_secret_is_named_and_mail_leaves_once_it_is_mended(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    app = sandbox.facts["client_id"]
    (before,) = [one for one in sandbox.client.apps() if one["client_id"] == app]
    sandbox.client.app(app, secrets=[{"value": "another one"}])
    with a_relay(tmp_path, sandbox, retry="1h") as relay:
        # It is known by daylight, before the first mail.
        wait_until(lambda: relay.lines("token.failed"), told="no word of the secret at start")
        assert "7000215" in relay.lines("token.failed")[0]
        ids = [submit(relay.port, f"kept-{n}") for n in range(10)]
        row = wait_until_down(relay, cause="7000215")
        assert "secret" in row["do"]
        delivery = relay.show(ids[0])["deliveries"][0]
        assert "secret" in delivery["do"]
        assert len(relay.queue()) == 10
        sandbox.client.app(app, secrets=before["secrets"])
        sandbox.client.wait_for_deliveries(10, seconds=200)
        relay.wait_empty()


# ---- the whole of Microsoft is away


@pytest.mark.slow(15)
@pytest.mark.timeout(240)
def test_everything_kept_leaves_once_microsoft_is_back(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(a_sandbox(tmp_path))
        # An hour between tries: what leaves sooner was released by the first success.
        relay = stack.enter_context(a_relay(tmp_path, first, retry="1h"))
        submit(relay.port, "before")
        first.client.wait_for_deliveries(1)
        relay.wait_empty()
        first.kill()
        load = Load(relay.port, senders=4, per_sender=50, sizes=(400, 20_000, 150_000))
        load.start()
        load.wait()
        assert len(load.acknowledged) == 200, (load.refused, load.broken)
        wait_until(lambda: upstream_of(relay).get("state") in ("down", "probing"), told="not down")
        assert len(relay.queue()) == 200
        assert upstream_of(relay)["cause"] == "connect-failed"
        second = stack.enter_context(a_sandbox(tmp_path, port=first.port))
        second.client.wait_for_deliveries(200, seconds=150)
        told = verdict(load.acknowledged, second.client)
        assert (told.lost, told.damaged, told.twice) == ([], [], {})
        relay.wait_empty()
        wait_until(lambda: upstream_of(relay).get("state") == "up", told="not up")


@pytest.mark.slow(20)
@pytest.mark.timeout(240)
def test_what_was_under_way_when_microsoft_went_away_arrives(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(a_sandbox(tmp_path))
        first.client.knobs(graph_latency_s=0.05)
        relay = stack.enter_context(a_relay(tmp_path, first))
        load = stack.enter_context(Load(relay.port, pause_s=0))
        wait_until(lambda: len(load.acknowledged) > 50, told="no mail is accepted")
        seen = {one.x_field("X-Load-Id") for one in first.client.messages()}
        first.kill()
        count = len(load.acknowledged)
        wait_until(lambda: len(load.acknowledged) > count + 100, told="no mail is accepted")
        second = stack.enter_context(a_sandbox(tmp_path, port=first.port))
        load.stop()
        relay.wait_empty()
        assert not kept.exists()
        assert load.broken == []
        lost = set(verdict(load.acknowledged, second.client).lost) - seen
        # What the first one took after we looked is known to the relay as sent.
        sent = {one["id"] for one in relay.queue("sent")}
        assert [name for name in lost if load.queue_ids[name] not in sent] == []


# ---- refusals that a person must mend


@pytest.mark.slow(6)
@pytest.mark.timeout(180)
def test_send_as_denied_holds_that_sender_only(tmp_path: Path, sandbox: SandboxProcess) -> None:
    sandbox.client.mailbox(ALERTS, send_as=["ups@contoso.com"])
    with a_relay(tmp_path, sandbox, mailbox=ALERTS, allowed_senders=["*@contoso.com"]) as relay:
        relay.configure(allow_to=ANYBODY)
        relay.cli("reload")
        denied = [submit(relay.port, "nas-0", sender="nas@contoso.com")]
        wait_until(lambda: relay.queue("held"), told=relay.queue)
        denied += [submit(relay.port, f"nas-{n}", sender="nas@contoso.com") for n in (1, 2, 3)]
        wait_until(lambda: len(relay.queue("held")) == 4, told=relay.queue)
        for n in range(4):
            submit(relay.port, f"ups-{n}", sender="ups@contoso.com")
            submit(relay.port, f"own-{n}", sender=ALERTS)
        sandbox.client.wait_for_deliveries(8)
        wait_until_only(relay, denied)
        delivery = relay.show(denied[0])["deliveries"][0]
        assert delivery["held_by"] == "ErrorSendAsDenied"
        assert "Send As" in delivery["do"]
        assert upstream_of(relay)["state"] == "up"
        wait_until(
            lambda: upstream_of(relay)["held_messages"] == 4, told=lambda: upstream_of(relay)
        )
        # Exchange keeps a denial alive as long as it is asked: one question from each worker.
        asked = [one for one in sandbox.client.requests() if one["code"] == "ErrorSendAsDenied"]
        assert len(asked) <= 2
        sandbox.client.mailbox(ALERTS, send_as=["ups@contoso.com", "nas@contoso.com"])
        relay.cli("queue", "release", denied[1])
        # Its success releases the others.
        sandbox.client.wait_for_deliveries(12)
        relay.wait_empty()
    assert sandbox.client.duplicates_by("X-Load-Id") == 0


@pytest.mark.slow(12)
@pytest.mark.timeout(180)
def test_a_denial_that_heals_when_nobody_asks_heals(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    sandbox.client.mailbox(ALERTS, denied="ErrorAccessDenied", heals_after_s=5.0)
    with a_relay(tmp_path, sandbox) as relay:
        first = submit(relay.port, "first")
        wait_until(lambda: relay.queue("held"), told=relay.queue)
        # Mail goes on to come for longer than it takes to heal, as it does at night.
        count, asked, asked_at = 0, 0, time.monotonic()
        while time.monotonic() < asked_at + 6:
            submit(relay.port, f"next-{count}")
            count += 1
            if (now := len(sandbox.client.requests())) > asked:
                asked, asked_at = now, time.monotonic()
            time.sleep(0.2)
        assert asked <= 2, "more than one question from each worker"
        assert len(relay.queue("held")) == count + 1
        relay.cli("queue", "retry", first)
        sandbox.client.wait_for_deliveries(count + 1)
        relay.wait_empty()


@pytest.mark.slow(6)
@pytest.mark.timeout(180)
def test_a_mailbox_that_is_not_there_holds_its_own_mail_only(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    sandbox.client.mailbox("ghost@contoso.com", exists=False)
    every = ["*@contoso.com"]
    with a_relay(tmp_path, sandbox, mailbox="sender", allowed_senders=every) as relay:
        relay.configure(allow_to=ANYBODY)
        relay.cli("reload")
        lost = [submit(relay.port, f"ghost-{n}", sender="ghost@contoso.com") for n in range(3)]
        wait_until(lambda: len(relay.queue("held")) == 3, told=relay.queue)
        for n in range(3):
            submit(relay.port, f"ups-{n}", sender="ups@contoso.com")
        sandbox.client.wait_for_deliveries(3)
        wait_until_only(relay, lost)
        shown = relay.cli("queue", "show", lost[0]).stdout
        assert "ErrorInvalidUser" in shown
        wait_until(lambda: relay.status()["queue"].get("held") == 3)
        nagios = relay.cli("status", "--nagios", check=False)
        assert (nagios.returncode, relay.status()["blocked"]) == (1, {}), nagios.stdout
        assert "ghost@contoso.com" in shown
        sandbox.client.mailbox("ghost@contoso.com", exists=True)
        relay.cli("queue", "retry", "--state", "held", "--yes")
        sandbox.client.wait_for_deliveries(6)
        relay.wait_empty()
        assert {one.mailbox for one in sandbox.client.messages(recipient="ops@contoso.com")} == {
            "ghost@contoso.com",
            "ups@contoso.com",
        }


# ---- nobody knows whether it was sent

AMBIGUOUS = (("commit-504", 0.0), ("commit-close", 0.0), ("commit-hang", 60.0))
IMPATIENT = '[http]\nsend_timeout = "5s"\n'


@pytest.mark.slow(12)
@pytest.mark.timeout(180)
def test_with_retry_doubtful_mail_arrives_and_the_journal_names_each_duplicate(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    for kind, delay_s in AMBIGUOUS:
        sandbox.client.fault(kind, delay_s=delay_s)
    with a_relay(tmp_path, sandbox, more=IMPATIENT, ambiguous="retry") as relay:
        ids = {f"m-{n}": submit(relay.port, f"m-{n}") for n in range(6)}
        relay.wait_empty()
        came = sandbox.client.deliveries_by("X-Load-Id")
        assert set(came) == set(ids)
        times = {name: by["ops@contoso.com"] for name, by in came.items()}
        assert sorted(times.values()) == [1, 1, 1, 2, 2, 2]
        for name, count in times.items():
            attempts = relay.json("queue", "trace", ids[name])["attempts"]
            outcomes = [one["outcome"] for one in attempts]
            assert outcomes.count("ambiguous") == count - 1, (name, attempts)
            assert outcomes[-1] == "sent"
            assert attempts[-1]["request_id"]


@pytest.mark.slow(12)
@pytest.mark.timeout(180)
def test_with_hold_doubtful_mail_waits_for_a_person_who_sees_it(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    for kind, delay_s in AMBIGUOUS:
        sandbox.client.fault(kind, delay_s=delay_s)
    with a_relay(tmp_path, sandbox, more=IMPATIENT, ambiguous="hold") as relay:
        for n in range(6):
            submit(relay.port, f"m-{n}")
        sandbox.client.wait_for_deliveries(6)
        wait_until(
            lambda: [one["state"] for one in relay.queue()] == ["held"] * 3, told=relay.queue
        )
        relay_knows = {one["id"]: one for one in relay.queue()}
        assert all(one["maybe_sent"] for one in relay_knows.values())
        assert sandbox.client.duplicates_by("X-Load-Id") == 0
        wait_until(lambda: len(relay.lines("message.held")) == 3, told=relay.log)
        wait_until(
            lambda: upstream_of(relay)["held_messages"] == 3, told=lambda: upstream_of(relay)
        )
        first, second, third = sorted(relay_knows)
        story = relay.show(first)
        assert "may have been sent" in story["deliveries"][0]["why"]
        assert story["message_id"] in story["deliveries"][0]["do"]
        relay.cli("queue", "delete", first, second)
        relay.cli("queue", "release", third)
        sandbox.client.wait_for_deliveries(7)
        relay.wait_empty()
        assert sandbox.client.duplicates_by("X-Load-Id") == 1


# ---- throttling


@pytest.mark.slow(10)
@pytest.mark.timeout(180)
def test_a_burst_never_has_more_in_flight_than_allowed_and_is_never_throttled(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    sandbox.client.knobs(graph_latency_s=0.02)
    with a_relay(tmp_path, sandbox, concurrency=3) as relay:
        load = Load(
            relay.port, senders=10, per_sender=30, sizes=(400, 20_000), pause_s=0,
            new_connection_each=True,
        )  # fmt: skip
        with load:
            load.wait()
            sandbox.client.wait_for_deliveries(300, seconds=120)
        assert len(load.acknowledged) == 300
        workers = {line.rpartition("process=")[2].split(" ts=")[0] for line in
                   relay.lines("message.sent")}  # fmt: skip
        assert len(workers) == 2, "one worker did it all: nothing was proven"
        seen = sandbox.client.counts()["mailboxes"][ALERTS]
        assert seen["in_flight_max"] == 3
        assert seen["throttled"] == 0


@pytest.mark.slow(25)
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("kind", "wish", "rest_s"), [("429", "6", 6.0), ("429-plain", "", 5.0)])
def test_both_workers_leave_a_mailbox_alone_that_said_429(
    kind: str, wish: str, rest_s: float, tmp_path: Path, sandbox: SandboxProcess
) -> None:
    sandbox.client.knobs(graph_latency_s=0.05)
    with a_relay(tmp_path, sandbox, concurrency=3) as relay:
        load = Load(relay.port, senders=6, per_sender=50, sizes=(400,), pause_s=0)
        with load:
            sandbox.client.wait_for_deliveries(20)
            sandbox.client.fault(kind, retry_after=wish)
            load.wait()
        sandbox.client.wait_for_deliveries(300, seconds=120)
        requests = sandbox.client.requests()
        (at,) = [n for n, one in enumerate(requests) if one["status"] == 429]
        moment = datetime.fromisoformat(requests[at]["at"])
        soon = [
            one
            for one in requests[at + 1 :]
            if (datetime.fromisoformat(one["at"]) - moment).total_seconds() < rest_s
        ]
        # What was in flight already could not know, nor what began before the word went round.
        assert len(soon) <= 8, [(one["at"], one["status"]) for one in soon]
        assert sandbox.client.in_flight_max(ALERTS) <= 3
    assert sandbox.client.duplicates_by("X-Load-Id") == 0


# ---- tokens, recipients, sizes


@pytest.mark.slow(15)
@pytest.mark.timeout(240)
def test_a_thousand_messages_cost_one_token(tmp_path: Path, sandbox: SandboxProcess) -> None:
    with a_relay(tmp_path, sandbox) as relay:
        load = Load(relay.port, senders=8, per_sender=125, sizes=(400,), pause_s=0)
        with load:
            load.wait()
            sandbox.client.wait_for_deliveries(1000, seconds=180)
        assert sandbox.client.counts()["token_requests"] == 1
        assert len(relay.lines("token.acquired")) == 1


@pytest.mark.slow(5)
@pytest.mark.timeout(120)
def test_a_recipient_that_graph_refuses_does_not_lose_the_two_others(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    three = ("one@contoso.com", "not@-one.contoso.com", "two@contoso.com")
    with a_relay(tmp_path, sandbox) as relay:
        queue_id = submit(relay.port, "three", recipients=three)
        relay.wait_empty()
        assert sandbox.client.recipients() == {"one@contoso.com": 1, "two@contoso.com": 1}
        (delivery,) = relay.show(queue_id)["deliveries"]
        assert delivery["state"] == "sent"
        assert "not@-one" in delivery["why"]
        wait_until(lambda: relay.lines("message.sent"), told=relay.log)
        assert "not@-one" in relay.lines("message.sent")[0]


@pytest.mark.slow(5)
@pytest.mark.timeout(120)
def test_what_is_too_large_is_refused_before_and_at_the_dot_and_nothing_is_kept(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    with a_relay(tmp_path, sandbox, mime_limit=1_000_000) as relay:
        with smtplib.SMTP("127.0.0.1", relay.port, "device.test", timeout=60) as client:
            client.ehlo()
            limit = int(client.esmtp_features["size"])
            assert limit < 1_000_000
            code, text = client.mail("device@contoso.com", [f"SIZE={limit + 1}"])
            assert (code, text[:5]) == (552, b"5.3.4")
            assert str(limit).encode() in text
            for size in (limit + 1, limit * 2):
                assert client.mail("device@contoso.com")[0] == 250
                assert client.rcpt("ops@contoso.com")[0] == 250
                code, text = client.data(b"Subject: large\r\n\r\n" + b"x\r\n" * (size // 3))
                assert (code, text[:5]) == (552, b"5.3.4"), (size, code, text)
            # The session goes on, and so does what fits.
            assert client.mail("device@contoso.com")[0] == 250
            assert client.rcpt("ops@contoso.com")[0] == 250
            code, _ = client.data(b"Subject: fits\r\n\r\n" + b"x\r\n" * (limit // 3 - 300))
            assert code == 250
        relay.wait_empty()
        assert [one["state"] for one in relay.queue("all")] == ["sent"]
        assert sandbox.client.counts()["messages"] == 1
        assert list((relay.folder / "spool").rglob("*.eml")) == []


@pytest.mark.slow(25)
@pytest.mark.timeout(300)
def test_where_no_worker_can_open_the_spool_devices_are_answered_until_one_can(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    with a_relay(tmp_path, sandbox) as relay:
        spool = relay.folder / "spool"
        spool.chmod(0o755)  # open to others: refused
        for pid in relay.pids("worker"):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: relay.lines("relay.unavailable"), seconds=120)
        assert "is open to others" in relay.lines("relay.unavailable")[0]
        with pytest.raises(smtplib.SMTPConnectError) as told:
            smtplib.SMTP("127.0.0.1", relay.port, timeout=60)
        assert (told.value.smtp_code, told.value.smtp_error) == (
            421,
            b"4.3.0 Service not available, try again later",
        )
        assert "is open to others" in relay.cli("status").stdout
        nagios = relay.cli("status", "--nagios", check=False)
        assert (nagios.returncode, "no worker serves" in nagios.stdout) == (2, True), nagios.stdout
        assert "is open to others" in nagios.stdout
        spool.chmod(0o700)
        wait_until(relay.is_up, seconds=120)
        submit(relay.port, "after")
        relay.wait_empty()
        assert [one.x_field("X-Load-Id") for one in sandbox.client.messages()] == ["after"]


@pytest.mark.slow(30)
@pytest.mark.timeout(300)
def test_new_code_that_finds_no_worker_serving_answers_devices_at_once(
    tmp_path: Path, sandbox: SandboxProcess
) -> None:
    with a_relay(tmp_path, sandbox) as relay:
        wait_until(lambda: relay.lines("relay.ready"))
        database = relay.folder / "spool" / "spool.db"
        kept = database.rename(database.with_name("kept"))
        database.mkdir()  # `check` does not look into it, so an upgrade goes through
        for pid in relay.pids("worker"):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: relay.lines("relay.unavailable"), seconds=120)
        os.kill(relay.pid, signal.SIGUSR2)
        wait_until(lambda: relay.lines("upgrade.done"), seconds=60)
        wait_until(lambda: len(relay.lines("relay.unavailable")) == 2)
        before = relay.log().partition("upgrade.done")[2].partition("relay.unavailable")[0]
        born = set(re.findall(r"child\.forked .*pid=(\d+)", before))
        assert not born & set(re.findall(r"child\.died .*pid=(\d+)", before)), "not at once"
        database.rmdir()
        kept.rename(database)
        wait_until(relay.is_up, seconds=120)


FEW_FILES = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
sys.argv[0] = "relayd"
runpy.run_module("relayd", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow(5)
def test_connections_leave_files_for_the_way_out(tmp_path: Path, sandbox: SandboxProcess) -> None:
    relay = a_relay(tmp_path, sandbox)
    with contextlib.ExitStack() as stack:
        relay.start(program=("-c", FEW_FILES))
        stack.callback(relay.stop, fast=True)
        warning = "[limits] max_connections: 2000 may need more than the 300 files that may be"
        assert warning in relay.log()
        wait_until(lambda: relay.status()["connections"] == 0)  # that of `start`
        clients = [smtplib.SMTP("127.0.0.1", relay.port, timeout=60) for _ in range(75)]
        for one in clients:
            stack.callback(one.close)
        for one in clients[1:]:  # with a file in the spool each
            one.ehlo()
            one.mail(ALERTS)
            one.rcpt("ops@contoso.com")
            one.docmd("DATA")
            one.send(b"Subject: scan\r\n\r\n" + (b"x" * 76 + b"\r\n") * 1500)
        workers = relay.pids("worker")
        wait_until(lambda: sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in workers) > 2 * 74)
        with pytest.raises(smtplib.SMTPConnectError) as told:
            smtplib.SMTP("127.0.0.1", relay.port, timeout=60)
        assert told.value.smtp_code == 421
        clients[0].sendmail(ALERTS, ["ops@contoso.com"], "X-Load-Id: among many\r\n\r\nbody\r\n")
        relay.wait_empty()
        assert [one.x_field("X-Load-Id") for one in sandbox.client.messages()] == ["among many"]
