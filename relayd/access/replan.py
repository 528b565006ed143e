"""The way out of mail that is in the spool already, judged by the configuration of now.

The delivery plan was made when the mail was accepted. Where its upstream sends through another
mailbox since, or an operator moves it to another upstream, mailbox and From are judged again, by
the rules of `senders`. The From the device wrote lies in the content and is not read again:

    it was replaced, and stands in Reply-To    by the mailbox of now
    it was the mailbox itself                  kept if it may still be, else the mailbox of now
    any other                                  kept if it may still be, else replaced likewise

Accepted mail is not refused again: what on_foreign_sender = "reject" would refuse now keeps its
From in its own upstream, and Microsoft decides; it is not moved to another.
"""

from __future__ import annotations

from collections.abc import Sequence

from relayd.access.plan import mailbox_for
from relayd.access.senders import SENDER, Judgement, Refuse, SetFrom, judge_again
from relayd.access.users import Users
from relayd.config.model import Config, Submitter, Upstream
from relayd.message.address import Address, parse_path
from relayd.spool.model import Course, MailboxRef, Redirect


class Replanner:
    """Judges for one worker. users: shared with the Planner; None: its own."""

    __slots__ = ("_devices", "_upstreams", "_users")

    def __init__(self, config: Config, users: Users | None = None) -> None:
        self._users = users if users is not None else Users(config)
        self._devices = {one.name: one for one in reversed(config.device)}
        self._upstreams = {one.name: one for one in config.upstream}

    def refresh(self) -> None:
        """See users who were added meanwhile; one stat."""
        self._users.refresh()

    def mailboxes(self) -> tuple[MailboxRef, ...]:
        """Return the one mailbox of each upstream that has one: not the sender's own."""
        fixed = (one for one in self._upstreams.values() if one.mailbox not in ("", SENDER))
        return tuple(mailbox_for(one, "") for one in fixed)

    def corrected(self, courses: Sequence[Course]) -> list[Redirect]:
        """Return what must change for these to go as their upstreams are configured now."""
        found = (self._corrected(one) for one in courses)
        return [one for one in found if one is not None]

    def _corrected(self, course: Course) -> Redirect | None:
        upstream = self._upstreams.get(course.mailbox.upstream)
        if upstream is None or upstream.mailbox in ("", SENDER):
            return None
        mailbox = mailbox_for(upstream, "")
        if mailbox == course.mailbox and self._submitter(course) is None:
            return None  # nothing that could be judged by has changed
        verdict = self._judged(course, upstream)
        if verdict is None or isinstance(verdict, Refuse):
            return _changed(course, mailbox, course.set_from or course.header_from, None)
        return _changed(course, mailbox, str(verdict.address), verdict)

    def moved(self, course: Course, upstream: str) -> Redirect | Refuse | None:
        """Return what takes a delivery to another upstream; None: it goes that way already.

        upstream: one that is configured (`knows`).
        """
        there = self._upstreams[upstream]
        verdict = self._judged(course, there)
        if isinstance(verdict, Refuse):
            return verdict
        sender = str(verdict.address) if verdict else course.set_from or course.header_from
        return _changed(course, mailbox_for(there, sender), sender, verdict)

    def knows(self, upstream: str) -> bool:
        """Tell whether an upstream is configured."""
        return upstream in self._upstreams

    @property
    def upstreams(self) -> tuple[str, ...]:
        """The names of those that are."""
        return tuple(self._upstreams)

    def _judged(self, course: Course, upstream: Upstream) -> Judgement | None:
        """Return the verdict on its From; None where nobody can read it as an address."""
        planned = _address(course.set_from or course.header_from)
        if planned is None:
            return None
        return judge_again(
            self._submitter(course) or Submitter(name=course.user or course.device),
            upstream,
            planned,
            was_foreign=course.reply_to_original,
            was_mailbox=planned.key == _key(course.mailbox.mailbox),
        )

    def _submitter(self, course: Course) -> Submitter | None:
        return self._users.find(course.user) if course.user else self._devices.get(course.device)


def _changed(
    course: Course, mailbox: MailboxRef, sender: str, verdict: Judgement | None
) -> Redirect | None:
    """Return the redirect; None where it would change nothing."""
    if mailbox == course.mailbox and sender.lower() == course.header_from:
        return None
    reply = course.reply_to_original
    if isinstance(verdict, SetFrom):
        reply = verdict.reply_to_original
    return Redirect(course=course, mailbox=mailbox, set_from=sender, reply_to_original=reply)


def _address(text: str) -> Address | None:
    try:
        return parse_path(text, lenient=True)
    except ValueError:
        return None


def _key(text: str) -> str:
    address = _address(text) if "@" in text else None
    return address.key if address is not None else ""
