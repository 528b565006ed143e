"""What the log and the metrics are told of deliveries: one line and one count for each change.

Plain functions that keep nothing: who sees the change calls them. The words of the lines are
in docs/logs.md, those of the counters in docs/metrics.md.
"""

from __future__ import annotations

from datetime import datetime

import structlog

from relayd.deliver import catalogue
from relayd.deliver.lane import Way
from relayd.identity import aadsts
from relayd.observe import metrics
from relayd.spool.model import Lease, Settlement, State, queue_id_text
from relayd.spool.store import Expired

log = structlog.get_logger()

_RECIPIENTS_SHOWN = 5


def decided(lease: Lease, settlement: Settlement, now: datetime) -> None:
    """Tell what becomes of a delivery after an attempt."""
    upstream = lease.mailbox.upstream
    fields: dict[str, object] = {
        "id": queue_id_text(lease.message),
        "session": lease.session,
        "device": lease.device,
        "upstream": upstream,
        "mailbox": lease.mailbox.mailbox,
        "recipients": len(lease.recipients),
        "bytes": lease.size_bytes,
        "attempt": lease.attempt,
        "request_id": settlement.request_id,
    }
    reason = settlement.code or str(settlement.http_status or settlement.outcome)
    if settlement.state is not State.SENT:
        fields |= {"reason": reason, "status": settlement.http_status, "text": settlement.text}
    if settlement.failed_recipients and settlement.state is not State.FAILED:
        fields["failed_recipients"] = _some_of(list(settlement.failed_recipients))
        metrics.count(
            "relayd_recipients_left_out_total", len(settlement.failed_recipients), upstream=upstream
        )
    match settlement.state:
        case State.SENT:
            queued_s = (now - lease.accepted_at).total_seconds()
            metrics.count("relayd_messages_sent_total", upstream=upstream)
            metrics.observe("relayd_queued_seconds", queued_s, upstream=upstream)
            if settlement.failed_recipients:  # somebody was left out, and nobody else will say so
                log.error(
                    "message.sent", queued_s=round(queued_s, 3), text=settlement.text, **fields
                )
            else:
                log.info("message.sent", queued_s=round(queued_s, 3), **fields)
        case State.FAILED:
            metrics.count("relayd_messages_failed_total", upstream=upstream, reason=reason)
            log.error("message.failed", **fields)
        case State.HELD:
            log.error("message.held", **fields)
        case State.READY:
            metrics.count("relayd_messages_deferred_total", upstream=upstream, reason=reason)
            log.info("message.deferred", due="with the upstream", **fields)
        case _:
            metrics.count("relayd_messages_deferred_total", upstream=upstream, reason=reason)
            due = settlement.due_at
            log.warning(
                "message.deferred",
                due=due.isoformat(timespec="seconds") if due else "",
                **fields,
            )


def _some_of(recipients: list[str]) -> str:
    more = len(recipients) - _RECIPIENTS_SHOWN
    return ", ".join(recipients[:_RECIPIENTS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def expired(one: Expired) -> None:
    """Tell of a delivery that was given up because its time was over."""
    metrics.count("relayd_messages_failed_total", upstream=one.mailbox.upstream, reason="expired")
    log.error(
        "message.failed",
        id=queue_id_text(one.message),
        session=one.session,
        device=one.device,
        upstream=one.mailbox.upstream,
        mailbox=one.mailbox.mailbox,
        recipients=len(one.recipients),
        attempt=one.attempts,
        reason="expired",
        text=f"held by {one.held_by}" if one.held_by else "its time was over",
    )


def lease_lost(lease: Lease, text: str, **more: str) -> None:
    """Tell that a delivery is nothing of ours any more. more: what came of it, if it was sent."""
    log.warning("lease.lost", id=queue_id_text(lease.message), **more, text=text)


def unsettled(lease: Lease, settlement: Settlement) -> None:
    """Tell that what became of a delivery will not be written down."""
    log.error(
        "message.unsettled",
        id=queue_id_text(lease.message),
        outcome=settlement.outcome,
        text="the worker ends and the spool cannot be written",
    )


# --- upstreams -------------------------------------------------------------------------------


def went_down(way: Way, now: float) -> None:
    """Tell that an upstream is down, for which cause now, and what to do. now: monotonic."""
    circuit = way.circuit
    log.error(
        "upstream.down",
        upstream=way.upstream.name,
        cause=circuit.cause,
        text=circuit.text,
        retry_in_s=round(circuit.probe_at - now),
        **({"advice": advice} if (advice := _advice(circuit.cause)) else {}),
    )


def came_back(way: Way, now: float) -> None:
    """Tell that it works again. now: monotonic."""
    log.info("upstream.up", upstream=way.upstream.name, down_s=round(now - way.circuit.down_since))


def _advice(cause: str) -> str:
    """Return what to do about a circuit's cause, Graph's or Entra's; "" if nobody knows."""
    meaning = aadsts.explain(cause)
    if meaning is not None:
        return meaning.action
    row = catalogue.explain(cause)
    return row.advice if row is not None else ""


# --- the wall clock --------------------------------------------------------------------------


def clock_leaped(seconds: float) -> None:
    """Tell that the wall clock was set, by how much."""
    log.warning(
        "clock.leaped",
        seconds=round(seconds),
        text="nothing is sent for a minute, nothing expires for an hour",
    )


def clock_wrong(now: datetime) -> None:
    """Tell that nothing is sent because of what the wall clock shows."""
    log.error(
        "clock.wrong",
        now=now.isoformat(timespec="seconds"),
        text="sending waits until the clock is right; mail is accepted and kept",
    )


def clock_right() -> None:
    """Tell that sending goes on."""
    log.info("clock.right")
