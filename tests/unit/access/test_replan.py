"""What becomes of planned mail when the configuration is another: every rule as one row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relayd.access.replan import Replanner
from relayd.access.senders import Refuse
from relayd.config.model import Config, Device, Upstream, User
from relayd.spool.model import Course, MailboxRef, QueueId, Redirect, State

MENDED = Upstream(
    name="contoso",
    mailbox="Alerts@contoso.com",
    allowed_senders=("erp@contoso.com",),
    own_domains=("contoso.com",),
)
REJECT = replace(MENDED, on_foreign_sender="reject")
BY_ID = replace(MENDED, mailbox_id="4F6A-01")
BY_SENDER = replace(MENDED, mailbox="sender", allowed_senders=("*@contoso.com",))
ACS = Upstream(name="acs", mailbox="relay@fabrikam.com", allowed_senders=("*@fabrikam.com",))
DEVICES = (
    Device(name="ups"),
    Device(name="fixed", from_="fixed@contoso.com"),
    Device(name="named", default_from="named@contoso.com"),
    Device(name="listed", allow_from=("*@shop.com",)),
)
WRONG = MailboxRef("contoso", "alert@contoso.com")


def course(
    sender: str, mailbox: MailboxRef = WRONG, *, device: str = "ups", reply: bool = False
) -> Course:
    return Course(
        delivery=64,
        message=QueueId(64),
        state=State.READY,
        held_by="",
        mailbox=mailbox,
        header_from=sender.lower(),
        set_from=sender,
        reply_to_original=reply,
        device=device,
        user="printer1" if device == "login" else "",
    )


def replanner(*upstreams: Upstream) -> Replanner:
    user = User(name="printer1", default_from="printer@contoso.com")
    return Replanner(Config(upstream=upstreams, device=DEVICES, user=(user,)))


def words(redirect: Redirect | Refuse | None) -> str:
    match redirect:
        case None:
            return "as it was"
        case Refuse():
            return "refused"
        case Redirect(mailbox=mailbox, set_from=sender, reply_to_original=reply):
            return f"{mailbox.mailbox} as {sender}" + (", reply to original" if reply else "")


def corrected(one: Course, upstream: Upstream) -> str:
    found = replanner(upstream).corrected([one])
    return words(found[0] if found else None)


@pytest.mark.parametrize(
    ("upstream", "planned", "expected"),
    [
        # the device's own was replaced by the wrong mailbox
        (
            MENDED,
            course("alert@contoso.com", reply=True),
            "alerts@contoso.com as Alerts@contoso.com, reply to original",
        ),
        # it had none, or was told the same wrong address
        (MENDED, course("Alert@contoso.com"), "alerts@contoso.com as Alerts@contoso.com"),
        (
            MENDED,
            course("alert@contoso.com", device="named"),
            "alerts@contoso.com as Alerts@contoso.com",
        ),
        (REJECT, course("alert@contoso.com"), "alerts@contoso.com as Alerts@contoso.com"),
        # allowed senders, of upstream, device and user, stay
        (MENDED, course("ERP@contoso.com"), "alerts@contoso.com as ERP@contoso.com"),
        (MENDED, course("alerts@contoso.com"), "alerts@contoso.com as alerts@contoso.com"),
        (
            MENDED,
            course("named@contoso.com", device="named"),
            "alerts@contoso.com as named@contoso.com",
        ),
        (MENDED, course("a@shop.com", device="listed"), "alerts@contoso.com as a@shop.com"),
        (
            MENDED,
            course("printer@contoso.com", device="login"),
            "alerts@contoso.com as printer@contoso.com",
        ),
        # `from` replaces always
        (
            MENDED,
            course("alert@contoso.com", device="fixed"),
            "alerts@contoso.com as fixed@contoso.com",
        ),
        # what is foreign now
        (
            MENDED,
            course("old@contoso.com"),
            "alerts@contoso.com as Alerts@contoso.com, reply to original",
        ),
        # accepted mail is not refused again
        (REJECT, course("old@contoso.com"), "alerts@contoso.com as old@contoso.com"),
        # a device that is gone is judged by the upstream alone
        (
            MENDED,
            course("a@shop.com", device="gone"),
            "alerts@contoso.com as Alerts@contoso.com, reply to original",
        ),
        # a mailbox by its id
        (BY_ID, course("erp@contoso.com"), "4f6a-01 as erp@contoso.com"),
        # nobody can read it
        (MENDED, course("@"), "alerts@contoso.com as @"),
        # nothing to correct, or nothing to correct it by
        (
            MENDED,
            course("erp@contoso.com", MailboxRef("contoso", "alerts@contoso.com")),
            "as it was",
        ),
        (BY_SENDER, course("alert@contoso.com"), "as it was"),
        (ACS, course("alert@contoso.com"), "as it was"),
        (replace(MENDED, mailbox=""), course("alert@contoso.com"), "as it was"),
    ],
)
def test_mail_goes_as_its_upstream_is_configured_now(
    upstream: Upstream, planned: Course, expected: str
) -> None:
    assert corrected(planned, upstream) == expected


def test_a_sender_that_is_allowed_no_longer_is_replaced_when_its_mail_is_sent_again() -> None:
    """ErrorSendAsDenied, then the address is taken out of allowed_senders."""
    right = MailboxRef("contoso", "alerts@contoso.com")
    assert corrected(course("nas@contoso.com", right), MENDED) == (
        "alerts@contoso.com as Alerts@contoso.com, reply to original"
    )
    assert corrected(course("nas@contoso.com", right, device="gone"), MENDED) == "as it was"
    assert corrected(course("nas@contoso.com", right), REJECT) == "as it was"


@pytest.mark.parametrize(
    ("upstream", "planned", "expected"),
    [
        (ACS, course("a@fabrikam.com"), "relay@fabrikam.com as a@fabrikam.com"),
        (ACS, course("alert@contoso.com"), "relay@fabrikam.com as relay@fabrikam.com"),
        (
            ACS,
            course("alert@contoso.com", reply=True),
            "relay@fabrikam.com as relay@fabrikam.com, reply to original",
        ),
        (
            ACS,
            course("erp@contoso.com"),
            "relay@fabrikam.com as relay@fabrikam.com, reply to original",
        ),
        (ACS, course("@"), "relay@fabrikam.com as @"),
        (replace(ACS, on_foreign_sender="reject"), course("erp@contoso.com"), "refused"),
        (ACS, course("relay@fabrikam.com", MailboxRef("acs", "relay@fabrikam.com")), "as it was"),
        (BY_SENDER, course("erp@contoso.com"), "erp@contoso.com as erp@contoso.com"),
        (BY_SENDER, course("erp@fabrikam.com"), "refused"),
        (
            BY_SENDER,
            course("erp@fabrikam.com", device="named"),
            "named@contoso.com as named@contoso.com, reply to original",
        ),
    ],
)
def test_mail_is_moved_by_the_rules_of_where_it_goes(
    upstream: Upstream, planned: Course, expected: str
) -> None:
    assert words(replanner(upstream).moved(planned, upstream.name)) == expected


def test_only_upstreams_with_one_mailbox_name_it() -> None:
    there = replanner(MENDED, replace(BY_SENDER, name="each"), replace(BY_ID, name="by-id"))
    assert there.mailboxes() == (
        MailboxRef("contoso", "alerts@contoso.com"),
        MailboxRef("by-id", "4f6a-01"),
    )
    assert there.upstreams == ("contoso", "each", "by-id")
    assert there.knows("each")
    assert not there.knows("gone")


def test_the_first_of_two_devices_with_a_name_is_meant() -> None:
    config = Config(
        upstream=(MENDED,),
        device=(Device(name="ups", from_="first@contoso.com"), Device(name="ups")),
    )
    (redirect,) = Replanner(config).corrected([course("x@contoso.com")])
    assert redirect.set_from == "first@contoso.com"
