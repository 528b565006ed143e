"""What an outcome says about the upstream and the mailbox it came from.

    sent                         the mailbox has no strikes, the upstream is up
    the whole upstream failed    its circuit goes down; one probe at a time finds out
    nobody knows (502, no end)   a doubt; three in a row count as down
    429                          the mailbox rests, in all workers
    any other refusal            the upstream is there: it is up

The first success after an outage releases all that waits, in all workers; what other workers
say of theirs is heeded likewise.
"""

from __future__ import annotations

from relayd.clock import Clock
from relayd.deliver import telling
from relayd.deliver.agenda import Agenda
from relayd.deliver.lane import Carried, Lane, Slots, Way
from relayd.deliver.outcome import (
    Ambiguous,
    Answer,
    Deferred,
    Divided,
    Misconfigured,
    Outcome,
    Result,
    Sent,
)
from relayd.deliver.roster import Roster
from relayd.spool.model import MailboxRef


class Standing:
    """Moves circuits and rests of one worker, and tells the others; owned by the courier."""

    def __init__(self, roster: Roster, slots: Slots, agenda: Agenda, clock: Clock) -> None:
        self._roster = roster
        self._slots = slots
        self._agenda = agenda
        self._clock = clock

    def listen(self) -> None:
        """Hear from now on what other workers find out."""
        self._slots.on_rest(self._told_to_rest)
        self._slots.on_back(self._told_back)

    def heed(self, lane: Lane, carried: Carried, result: Result) -> None:
        """Draw the conclusions from what came of one send."""
        if isinstance(result, Sent):
            lane.strikes = 0
            if lane.way.circuit.succeeded():
                self._came_back(lane.way)
            return
        outcomes = [o for _, o in result.parts] if isinstance(result, Divided) else [result]
        for outcome in {id(one): one for one in outcomes}.values():
            self._heed_one(lane, carried, outcome)

    def spare_probe(self, lane: Lane, carried: Carried) -> None:
        """It said nothing about the upstream: if it was the probe, another may go."""
        if carried.is_probe:
            lane.way.circuit.spare(self._clock.monotonic())

    def _heed_one(self, lane: Lane, carried: Carried, outcome: Outcome) -> None:
        way, now = lane.way, self._clock.monotonic()
        answer = outcome.answer
        is_news = False
        match outcome:
            case Deferred(whole_upstream=True, retry_after_s=wish):
                is_news = way.circuit.failed(
                    now, cause=_cause(outcome), text=answer.text, retry_after_s=wish
                )
                lane.has_work = True
            case Misconfigured(whole_upstream=True):
                is_news = way.circuit.failed(
                    now, cause=_cause(outcome), text=answer.text, by_configuration=True
                )
                lane.has_work = True
            case Ambiguous() | Deferred(answer=Answer(code="send-interrupted")):
                is_news = way.circuit.doubt(now, cause=_cause(outcome), text=answer.text)
            case Deferred(whole_mailbox=True, retry_after_s=wish):
                lane.rest(now, wish)
                self._slots.rest(lane.ref, lane.rest_until - now)
                self._answered(way)
            case Deferred() if answer.status == 0:
                self.spare_probe(lane, carried)  # it says nothing about the upstream
            case _:
                self._answered(way)
        if is_news:
            telling.went_down(way, now)
        self._agenda.wake()

    def _answered(self, way: Way) -> None:
        """It said no to this message or mailbox, but it is there."""
        if way.circuit.succeeded():
            self._came_back(way)

    def _came_back(self, way: Way) -> None:
        """Its first success releases all that waits for it, at once, in all workers."""
        self._slots.back(way.upstream.name)
        self._is_back(way)

    def _is_back(self, way: Way) -> None:
        telling.came_back(way, self._clock.monotonic())
        self._agenda.scan()

    # --- what other workers found out ------------------------------------------------------

    def _told_to_rest(self, ref: MailboxRef, rest_s: float) -> None:
        """Another worker got a 429: the mailbox is everybody's."""
        lane = self._roster.lane(ref) if ref.upstream in self._roster.ways else None
        if lane is not None:
            lane.rest_until = max(lane.rest_until, self._clock.monotonic() + rest_s)
            self._agenda.wake()

    def _told_back(self, upstream: str) -> None:
        """Another worker got through: what waits here need not wait for a probe of our own."""
        way = self._roster.ways.get(upstream)
        if way is not None and way.circuit.succeeded():
            self._is_back(way)


def _cause(outcome: Outcome) -> str:
    return outcome.answer.code or f"HTTP {outcome.answer.status}"
